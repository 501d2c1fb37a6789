"""Rows with a chosen and a rejected answer, in the forms of public preference data sets; nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.data import pairs
from shepherd.data.columns import recognise
from shepherd.data.examples import Example, Reading, Turn, from_rows
from shepherd.data.split import rule
from shepherd.data.template import Dropped, Template, render, rendered_pairs
from shepherd.data.tokens import tokenise_pairs
from shepherd.errors import BadRow
from shepherd.settings import DataTable, SplitTable
from tests import preferences, runs
from tests.model import bases

NO_SPLIT = rule(SplitTable())


def read(*rows: dict[str, Any], **keys: Any) -> Reading:
    table = DataTable.model_validate({"source": "memory", **keys})
    return from_rows(rows, table, NO_SPLIT, "rows")


def said(turns: tuple[Turn, ...]) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in turns]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


WHO, GOOD, BAD = ("user", "Who?"), ("assistant", "I."), ("assistant", "You.")
FORMS: dict[str, dict[str, Any]] = {
    "TRL, texts": {"prompt": "Who?", "chosen": "I.", "rejected": "You."},
    "orca": {"question": "Who?", "chosen": "I.", "rejected": "You."},
    "our own": {"instruction": "Who?", "chosen": "I.", "rejected": "You."},
    "TRL, chats with the prompt apart": {
        "prompt": [user("Who?")],
        "chosen": [assistant("I.")],
        "rejected": [assistant("You.")],
    },
    "a text and answers as turns": {
        "prompt": "Who?",
        "chosen": [assistant("I.")],
        "rejected": [assistant("You.")],
    },
    "an answer as one turn": {"prompt": "Who?", "chosen": assistant("I."), "rejected": assistant("You.")},
    "TRL, whole chats": {
        "chosen": [user("Who?"), assistant("I.")],
        "rejected": [user("Who?"), assistant("You.")],
    },
    "UltraFeedback": {
        "prompt": "Who?",
        "chosen": [user("Who?"), assistant("I.")],
        "rejected": [user("Who?"), assistant("You.")],
        "messages": [user("Who?"), assistant("I.")],
    },
    "ShareGPT's keys": {
        "chosen": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}],
        "rejected": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "You."}],
    },
    "hh-rlhf": {
        "chosen": "\n\nHuman: Who?\n\nAssistant: I.",
        "rejected": "\n\nHuman: Who?\n\nAssistant: You.",
    },
    "chats as JSON in a cell": {
        "chosen": json.dumps([user("Who?"), assistant("I.")]),
        "rejected": json.dumps([user("Who?"), assistant("You.")]),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_is_the_same_pair_and_every_field_is_read(form: str) -> None:
    found = read(FORMS[form])
    (example,) = found.examples
    assert said(example.turns) == [WHO, GOOD]
    assert said(example.rejected) == [WHO, BAD]
    assert not found.notes.unread
    assert not found.notes.changed


def test_other_columns_are_counted_as_not_read() -> None:
    row = {**FORMS["UltraFeedback"], "score_chosen": 8.0, "score_rejected": 3.5, "prompt_id": "ab"}
    found = read(row, {**row, "prompt": "What?"})
    assert {name: tally.rows for name, tally in found.notes.unread.items()} == {
        "score_chosen": 2,
        "score_rejected": 2,
        "prompt_id": 2,
        "prompt": 1,
    }
    (remark,) = found.notes.changed
    assert "fields chosen and prompt are both filled and differ; chosen is read" in remark


def test_no_turn_of_a_long_dialogue_is_lost() -> None:
    start = "\n\nHuman: One?\n\nAssistant: 1: one.\n\nHuman: Two?\n\nHuman: Please.\n\nAssistant:"
    found = read({"chosen": f"{start} Yes.\n\nTwo.", "rejected": f"{start} No."})
    (example,) = found.examples
    prompt = [("user", "One?"), ("assistant", "1: one."), ("user", "Two?\n\nPlease.")]
    assert said(example.turns) == [*prompt, ("assistant", "Yes.\n\nTwo.")]
    assert said(example.rejected) == [*prompt, ("assistant", "No.")]


def test_system_texts_and_contexts_belong_to_both_answers() -> None:
    row = {"system": "Be brief.", "prompt": "Who?", "context": "I am.", "chosen": "I.", "rejected": "You."}
    (example,) = read(row).examples
    for turns in (example.turns, example.rejected):
        assert said(turns)[:2] == [("system", "Be brief."), WHO]
        assert turns[1].context == "I am."
    whole = {**FORMS["TRL, whole chats"], "system": "Be brief."}
    found = read(whole)
    assert said(found.examples[0].rejected) == [("system", "Be brief."), WHO, BAD]
    assert not found.notes.unread


def test_fields_may_be_named() -> None:
    row = {"q": "Who?", "response_j": "I.", "response_k": "You.", "chosen": "x"}
    fields = {"instruction": "q", "chosen": "response_j", "rejected": "response_k"}
    found = read(row, fields=fields)
    assert said(found.examples[0].rejected) == [WHO, BAD]
    assert list(found.notes.unread) == ["chosen"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Who?", "chosen": "I."}, "field rejected is missing.*data.fields.rejected"),
        ({"prompt": "Who?", "rejected": "I."}, "field chosen is missing.*data.fields.chosen"),
        ({"prompt": "Who?", "chosen": "I.", "rejected": " "}, "field rejected is empty"),
        ({"prompt": "Who?", "chosen": None, "rejected": "You."}, "field chosen is empty"),
        ({"prompt": " ", "chosen": "I.", "rejected": "You."}, "field prompt is empty"),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "field instruction is missing"),
        (
            {"chosen": [user("Who?"), assistant("I.")], "rejected": [user("What?"), assistant("You.")]},
            "differ in turn 1, the user's; both must answer the same prompt",
        ),
        (
            {"prompt": "Who?", "chosen": [user("Who?"), assistant("I.")], "rejected": [assistant("You.")]},
            "one of the fields chosen and rejected holds the prompt",
        ),
        (
            {
                "prompt": [user("Who?"), assistant("What?")],
                "chosen": [assistant("I.")],
                "rejected": [assistant("You.")],
            },
            "field prompt ends with the assistant's turn",
        ),
    ],
)
def test_a_bad_pair_is_refused_by_name_or_skipped_and_counted(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        read(row)
    good = FORMS["TRL, texts"]
    found = read(good, row, on_bad_row="skip")
    assert len(found.examples) == len(found.skipped) == sum(t.rows for t in found.notes.refused.values()) == 1


def test_columns_of_these_names_that_are_marks_make_no_pair() -> None:
    row = {"instruction": "Who?", "response": "I.", "chosen": True, "rejected": False}
    found = read(row)
    assert said(found.examples[0].turns) == [WHO, GOOD]
    assert not found.examples[0].rejected
    assert set(found.notes.unread) == {"chosen", "rejected"}


# --- rendered


@pytest.fixture(scope="module")
def tokenizer(llama_folder: Path) -> Any:
    from shepherd.settings import ModelTable

    return bases.bases.load_tokenizer(ModelTable(base=str(llama_folder)))


def example(instruction: str, chosen: str, rejected: str, context: str = "", where: str = "") -> Example:
    asked = Turn(role="user", text=instruction, context=context)
    return Example(
        turns=(asked, Turn(role="assistant", text=chosen)),
        rejected=(asked, Turn(role="assistant", text=rejected)),
        where=where,
    )


def test_each_answer_is_rendered_as_it_would_be_alone(tokenizer) -> None:
    given = [
        example(row["instruction"], row["chosen"], row["rejected"], row["context"])
        for row in preferences.rows()
    ]
    found = list(rendered_pairs(given, Template("plain"), tokenizer, max_tokens=100))
    for pair, each in zip(found, given, strict=True):
        assert not isinstance(pair, Dropped)
        for side, turns in zip(pair, (each.turns, each.rejected), strict=True):
            own = render(Example(turns=turns), Template("plain"), tokenizer, max_tokens=100)
            np.testing.assert_array_equal(side.ids, own.ids)
            np.testing.assert_array_equal(side.loss_mask, own.loss_mask)
            assert side.ids[-1] == tokenizer.eos_token_id


def test_earlier_answers_belong_to_the_prompt_and_are_not_trained(tokenizer) -> None:
    start = (
        Turn(role="user", text="w4"),
        Turn(role="assistant", text="w5 w6"),
        Turn(role="user", text="w7"),
    )
    given = Example(
        turns=(*start, Turn(role="assistant", text="w8 w9")),
        rejected=(*start, Turn(role="assistant", text="w10")),
    )
    (pair,) = rendered_pairs([given], Template("plain"), tokenizer, max_tokens=100)
    words = [tokenizer.decode(side.ids[side.loss_mask]) for side in pair]
    assert [text.replace("</s>", "").split() for text in words] == [["w8", "w9"], ["w10"]]
    assert pair[0].marked == 0  # nothing is said of marks, which the data do not have


@given(
    chosen=st.integers(1, 12),
    rejected=st.integers(1, 12),
    context=st.integers(0, 20),
    most=st.integers(8, 40),
)
def test_both_answers_are_to_the_same_prompt_however_they_are_cut(
    tokenizer, chosen: int, rejected: int, context: int, most: int
) -> None:
    def words(count: int, first: int) -> str:
        return " ".join(f"w{first + n % 10}" for n in range(count))

    given = example("w4 w5", words(chosen, 10), words(rejected, 30), words(context, 50))
    (pair,) = rendered_pairs([given], Template("plain"), tokenizer, max_tokens=most)
    if isinstance(pair, Dropped):
        return
    prompts = [side.ids[: int(np.argmax(side.loss_mask))].tolist() for side in pair]
    assert prompts[0] == prompts[1]
    for side in pair:
        assert len(side.ids) <= most
        assert side.loss_mask.any()
        assert side.cut_response == (side.ids[-1] != tokenizer.eos_token_id)  # law 9
    (whole,) = rendered_pairs([given], Template("plain"), tokenizer, max_tokens=200)
    needed = max(len(side.ids) for side in whole)
    assert (pair[0].cut > 0 or pair[1].cut > 0) == (needed > most)


def test_pairs_of_equal_answers_and_singles_are_dropped_and_counted(tokenizer) -> None:
    given = [
        example("w4", "w5 w6", "w7", where="line 1"),
        example("w4", "w5 w6", "w5 w6", where="line 2"),
        example("w4", " ".join(["w5"] * 30 + ["w6"]), " ".join(["w5"] * 30 + ["w7"]), where="line 3"),
        Example(turns=example("w4", "w5", "w6").turns, where="line 4"),
    ]
    chosen, rejected, outcomes = tokenise_pairs(given, Template("plain"), tokenizer, max_tokens=16)
    counts = outcomes.counts()
    assert outcomes.kept.tolist() == [0]
    assert len(chosen) == len(rejected) == 1
    same = "its chosen and its rejected answer are the same"
    assert counts.dropped == {same: 1, f"{same} in the part that fits": 1, "it has no rejected answer": 1}
    assert counts.first["it has no rejected answer"] == "line 4"
    assert (counts.examples, counts.kept) == (4, 1)
    assert counts.tokens == len(chosen.ids) + len(rejected.ids)


def test_the_prompt_ends_where_the_answers_differ() -> None:
    one, two, three = (Turn(role="assistant", text=text) for text in ("I.", "You.", "She."))
    asked = Turn(role="user", text="Who?")
    assert pairs.answers_from((asked, one), (asked, two)) == 1
    assert pairs.answers_from((asked, one, asked, two), (asked, one, asked, three)) == 3
    assert pairs.answers_from((asked, one), (asked, one)) == 1
    assert pairs.answers_from((asked, one, asked, two), (asked, one)) == 1


def test_another_worse_answer_is_no_duplicate(llama_folder, tmp_path) -> None:
    from shepherd.data import pipeline

    rows = preferences.rows(12)
    twice = [*rows, rows[0], {**rows[1], "rejected": "w4 w4 w4 w4"}]
    settings = preferences.settings(
        llama_folder, runs.written(tmp_path / "rows.jsonl", twice), tmp_path / "run"
    )
    held = pipeline.divide(settings).held
    assert held.duplicates == 1


@pytest.mark.parametrize("form", sorted({*FORMS} - {"an answer as one turn"}))
def test_columns_of_pairs_are_recognised(form: str) -> None:
    rows = [{**FORMS[form], "hospital": f"h{n % 2}"} for n in range(8)]
    found = recognise(rows)
    assert found.pair == ("chosen", "rejected")
    assert (found.response, found.messages, found.client) == ("", "", "hospital")
    prompt = {"prompt", "question", "instruction"} & FORMS[form].keys()
    texts = {name for name in prompt if isinstance(FORMS[form][name], str)}
    assert {found.instruction} - {""} == texts
    assert not recognise([{"instruction": "a b c", "response": "d e f"}]).pair
