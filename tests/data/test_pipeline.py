"""From a run file to what the clients train on."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from shepherd import plugins
from shepherd.data import data_folder, dataset, pipeline, remarks
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError, TemplateError
from shepherd.settings import RunSettings
from tests import runs
from tests.data.test_data_folder import same, settings


@pytest.fixture(scope="session")
def tokenizer(llama):
    return llama.tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return runs.written(tmp_path / "rows.jsonl")


def texts(tokenizer, data: Tokens) -> list[str]:
    return [tokenizer.decode(data.example(i)[0]) for i in range(len(data))]


# --- files


def test_every_example_goes_to_one_client_or_is_held_out(source, tokenizer) -> None:
    prepared = pipeline.prepare(settings(source), tokenizer)
    assert list(prepared.clients) == [f"client-{k}" for k in range(4)]
    assert sum(len(data) for data in prepared.clients.values()) + len(prepared.heldout) == 36
    trained = {text for data in prepared.clients.values() for text in texts(tokenizer, data)}
    held = set(texts(tokenizer, prepared.heldout))
    assert len(trained) + len(held) == 36
    assert not trained & held
    assert len(prepared.heldout_examples) == len(prepared.heldout) == 6  # two of each category
    for example, text in zip(prepared.heldout_examples, texts(tokenizer, prepared.heldout), strict=True):
        assert example.instruction in text
        assert example.response in text


def test_mixes_and_the_summary_count_what_is_kept(source, tokenizer) -> None:
    prepared = pipeline.prepare(settings(source), tokenizer)
    for name, mix in prepared.category_counts.items():
        assert sum(mix.values()) == len(prepared.clients[name])
    assert {
        c: sum(mix.get(c, 0) for mix in prepared.category_counts.values()) for c in runs.CATEGORIES
    } == dict.fromkeys(runs.CATEGORIES, 10)
    own = prepared.clients.values()
    assert prepared.summary == {
        "examples": 36,
        "skipped_rows": 0,
        "duplicates": 0,
        "held_by_several_clients": 0,
        "heldout_shared_with_training": 0,
        "sharing_a_common_instruction": 0,
        "sharing_the_commonest": 0,
        "clients_without_heldout": 0,
        "heldout": 6,
        "repeated": 0,
        "test_examples": 0,
        "in_test_set": 0,
        "without_group": 0,
        "kept": 30,
        "cut": 0,
        "cut_responses": 0,
        "marked_responses": 0,
        "dropped": 0,
        "tokens": sum(len(data.ids) for data in own),
        "trained_tokens": sum(int(data.loss_mask.sum()) for data in own),
    }
    assert dataset.mean_length(prepared) == prepared.summary["tokens"] / 30
    drawn, whole = (
        sorted(sides.example(i)[0].tolist() for i in range(len(sides)))
        for sides in (dataset.sample(prepared, 0), dataset.Tokens.pooled(list(own)))
    )
    assert drawn == whole  # so few that all are drawn
    both = replace(prepared, rejected=prepared.clients)
    assert dataset.sample(both, 0).lengths.reshape(-1, 2).tolist() == [
        [length, length] for length in dataset.sample(prepared, 0).lengths
    ]
    assert sorted(dataset.categories(prepared)) == sorted([*runs.CATEGORIES, *runs.CATEGORIES])


def test_the_seed_decides_and_the_global_generator_does_not(source, tokenizer) -> None:
    np.random.seed(1)  # noqa: NPY002 - the global one is the point
    first = pipeline.prepare(settings(source), tokenizer)
    np.random.seed(2)  # noqa: NPY002
    assert same(pipeline.prepare(settings(source), tokenizer), first)
    other = settings(source).model_copy(update={"seed": 1})
    assert not same(pipeline.prepare(other, tokenizer), first)


def test_duplicates_and_what_is_dropped_or_cut_are_counted(tmp_path, tokenizer) -> None:
    examples = runs.rows()
    examples[3]["context"] = " ".join(["w9"] * 60)  # cut
    examples.append({**examples[0], "category": "qa"})
    examples.append({**examples[0], "response": "w5"})  # another answer to the same question
    path = runs.written(tmp_path / "rows.jsonl", examples)
    summary = pipeline.prepare(settings(path, data={"holdout": 0.0}), tokenizer).summary
    assert (summary["examples"], summary["duplicates"], summary["cut"], summary["kept"]) == (38, 1, 1, 37)


def test_without_categories_there_is_one_called_all(tmp_path, tokenizer) -> None:
    examples = [{k: v for k, v in row.items() if k != "category"} for row in runs.rows()]
    prepared = pipeline.prepare(settings(runs.written(tmp_path / "rows.jsonl", examples)), tokenizer)
    assert set(dataset.categories(prepared)) == {"all"}
    assert all(set(mix) == {"all"} for mix in prepared.category_counts.values())


def test_nothing_held_out_is_fine(source, tokenizer) -> None:
    prepared = pipeline.prepare(settings(source, data={"holdout": 0.0}), tokenizer)
    assert (len(prepared.heldout), prepared.heldout_examples) == (0, [])
    assert sum(len(data) for data in prepared.clients.values()) == 36


def natural(tmp_path: Path, sizes: list[int], holdout: float = 0.3) -> RunSettings:
    """A data set in which client k has so many examples."""
    clients = [k for k, size in enumerate(sizes) for _ in range(size)]
    rows = [{**row, "who": f"c{k}"} for row, k in zip(runs.rows(len(clients)), clients, strict=True)]
    source = runs.written(tmp_path / f"{holdout}.jsonl", rows)
    return settings(source, split={"by": "natural", "field": "who"}, data={"holdout": holdout})


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([8, 8, 1, 1], "2 of 4 clients have nothing held out (c2 and c3)"),
        ([8, *[1] * 6], "6 of 7 clients have nothing held out (c1, c2, c3 and 3 others)"),
        ([1, 1, 1, 1], "nothing is held out (a client's last example is always trained on)"),
    ],
)
def test_clients_with_nothing_held_out_are_said_before_training(tmp_path, tokenizer, sizes, said) -> None:
    asked = natural(tmp_path, sizes)
    prepared = pipeline.prepare(asked, tokenizer)
    assert prepared.summary["clients_without_heldout"] == sizes.count(1)
    (sentence,) = remarks.heldout_remarks(prepared)
    assert sentence.startswith(said)
    assert remarks.division_remarks(pipeline.divide(asked), asked) == [sentence]
    data_folder.save(tmp_path / "data", prepared)
    assert remarks.heldout_remarks(data_folder.load(tmp_path / "data")) == [sentence]


def test_of_clients_that_have_something_held_out_nothing_is_said(tmp_path, source, tokenizer) -> None:
    for asked in (settings(source), natural(tmp_path, [8, 8], 0.4), natural(tmp_path, [1, 3], 0.0)):
        assert remarks.heldout_remarks(pipeline.prepare(asked, tokenizer)) == []
        assert remarks.division_remarks(pipeline.divide(asked), asked) == []
    assert remarks.heldout_remarks(pipeline.held_out(settings(source), "site-1", tokenizer)) == []


def test_one_example_leaves_nothing_to_hold_out_and_that_is_said(tmp_path, tokenizer) -> None:
    asked = settings(runs.written(tmp_path / "rows.jsonl", runs.rows(1)), split={"clients": 1})
    assert "nothing is held out" in remarks.heldout_remarks(pipeline.prepare(asked, tokenizer))[0]


def test_remarks_of_an_older_folder_are_of_what_was_counted_then(tmp_path, source, tokenizer) -> None:
    data_folder.save(tmp_path / "data", pipeline.prepare(settings(source), tokenizer))
    index = json.loads((tmp_path / "data" / "index.json").read_text())
    counted = ("examples", "duplicates", "heldout", "kept")
    index["summary"] = {name: index["summary"][name] for name in counted}
    (tmp_path / "data" / "index.json").write_text(json.dumps(index))
    assert remarks.heldout_remarks(data_folder.load(tmp_path / "data")) == []


def test_a_ready_made_folder_keeps_its_clients(tmp_path, tokenizer) -> None:
    for client, seed in (("north", 1), ("south", 2)):
        (tmp_path / "silos").mkdir(exist_ok=True)
        runs.written(tmp_path / "silos" / f"{client}.jsonl", runs.rows(9, seed))
    prepared = pipeline.prepare(settings(tmp_path / "silos", split={"by": "ready-made"}), tokenizer)
    assert set(prepared.clients) == {"north", "south"}
    first = runs.rows(9, 1)[0]["response"]
    assert any(first in text for text in texts(tokenizer, prepared.clients["north"])) or any(
        first in text for text in texts(tokenizer, prepared.heldout)
    )
    assert not any(first in text for text in texts(tokenizer, prepared.clients["south"]))


def test_a_client_that_keeps_no_example_is_named_with_the_reason(tmp_path, tokenizer) -> None:
    (tmp_path / "silos").mkdir()
    runs.written(tmp_path / "silos" / "north.jsonl", runs.rows(9))
    long = [{**row, "response": " ".join(["w7"] * 90)} for row in runs.rows(4, 2)]
    runs.written(tmp_path / "silos" / "south.jsonl", long)
    table = {"holdout": 0.0, "max_tokens": 8}
    prepared = settings(tmp_path / "silos", split={"by": "ready-made"}, data=table)
    try:
        kept = pipeline.prepare(prepared, tokenizer).clients
    except DataError as error:
        assert "client" in str(error)  # noqa: PT017 - which of the two, the template decides
        assert "keeps no example" in str(error)  # noqa: PT017
    else:
        assert all(len(data) for data in kept.values())


# --- all of it one client's


def test_one_client_has_what_it_has_in_a_ready_made_folder(tmp_path, tokenizer) -> None:
    (tmp_path / "silos").mkdir()
    for client, seed in (("north", 1), ("south", 2)):
        runs.written(tmp_path / "silos" / f"{client}.jsonl", runs.rows(12, seed))
    nothing_held = {"holdout": 0.0}
    together = pipeline.prepare(
        settings(tmp_path / "silos", split={"by": "ready-made"}, data=nothing_held), tokenizer
    )
    for client in ("north", "south"):
        alone = settings(tmp_path / "silos" / f"{client}.jsonl", data=nothing_held)
        own = pipeline.one_client(alone, client, tokenizer)
        assert list(own.clients) == [client]
        assert texts(tokenizer, own.clients[client]) == texts(tokenizer, together.clients[client])
        assert own.category_counts[client] == together.category_counts[client]


@pytest.mark.parametrize("split", [{"by": "shards", "clients": 7}, {"by": "natural", "field": "none"}])
def test_one_client_holds_all_that_is_not_held_out_in_order(source, tokenizer, split) -> None:
    whole = settings(source, split=split)
    own = pipeline.one_client(whole, "site-1", tokenizer)
    division = pipeline.divide(settings(source))  # the same seed, of one file: the same examples held out
    responses = [example.response for example in division.of(division.held.train.tolist())]
    told = texts(tokenizer, own.clients["site-1"])
    assert len(told) == len(responses) == 30
    assert all(response in text for response, text in zip(responses, told, strict=True))
    assert [e.response for e in own.heldout_examples] == [
        e.response for e in division.of(division.held.heldout.tolist())
    ]
    assert own.category_counts == {"site-1": dict.fromkeys(runs.CATEGORIES, 10)}
    assert (own.summary["kept"], own.summary["heldout"], own.summary["examples"]) == (30, 6, 36)


def test_one_client_counts_duplicates_and_skipped_rows(tmp_path, tokenizer) -> None:
    rows = [*runs.rows(), runs.rows()[0], {"instruction": "w4"}]
    table = {"holdout": 0.0, "on_bad_row": "skip"}
    own = pipeline.one_client(
        settings(runs.written(tmp_path / "rows.jsonl", rows), data=table), "site-1", tokenizer
    )
    summary = own.summary
    assert (summary["duplicates"], summary["skipped_rows"], summary["kept"]) == (1, 1, 36)


def test_one_client_reads_every_file_of_a_folder(tmp_path, tokenizer) -> None:
    (tmp_path / "files").mkdir()
    for name, seed in (("part-10", 2), ("part-9", 1)):
        runs.written(tmp_path / "files" / f"{name}.jsonl", runs.rows(6, seed))
    own = pipeline.one_client(settings(tmp_path / "files", data={"holdout": 0.0}), "site-1", tokenizer)
    expected = [row["response"] for seed in (1, 2) for row in runs.rows(6, seed)]
    found = texts(tokenizer, own.clients["site-1"])
    assert len(found) == 12
    assert all(response in text for response, text in zip(expected, found, strict=True))


def test_one_client_that_keeps_no_example_is_named(tmp_path, tokenizer) -> None:
    long = [{**row, "instruction": " ".join(["w7"] * 90)} for row in runs.rows(4)]
    whole = settings(runs.written(tmp_path / "rows.jsonl", long), data={"holdout": 0.0, "max_tokens": 8})
    with pytest.raises(DataError, match=r"client site-1 keeps no example \(its prompt leaves no room"):
        pipeline.one_client(whole, "site-1", tokenizer)


def test_one_client_is_asked_for_no_answers(tmp_path, tokenizer) -> None:
    rows = [{**row, "check": {"foo": 1}} for row in runs.rows()]
    whole = settings(runs.written(tmp_path / "rows.jsonl", rows), evaluation={"answers": 2})
    assert pipeline.one_client(whole, "site-1", tokenizer).heldout_examples


# --- the embedded world


def test_a_check_that_is_none_is_named_where_answers_are_wanted(tmp_path, tokenizer) -> None:
    rows = [{**row, "check": {"foo": 1}} for row in runs.rows()]
    source = runs.written(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"line \d+: field check: it has no kind; .*answers = 0"):
        pipeline.prepare(settings(source, evaluation={"answers": 2}), tokenizer)
    assert pipeline.prepare(settings(source), tokenizer).heldout_examples


def test_more_than_the_world_holds_is_said() -> None:
    with pytest.raises(DataError, match=r"data\.limit = 100000 asks too much .* only \d+ different"):
        pipeline.divide(settings("world", data={"limit": 100_000}))


def test_the_worlds_examples_carry_their_checks(tokenizer) -> None:
    table = {"limit": 6, "holdout": 0.2, "template": "plain", "max_tokens": 512}
    prepared = pipeline.prepare(settings("world", data=table), tokenizer)
    categories = {example.category for example in prepared.heldout_examples}
    assert prepared.summary["examples"] == 6 * len(categories)
    for example in prepared.heldout_examples:
        assert example.check is not None
        assert plugins.checker(example.check).right(example.response)


# --- chats that a template refuses, and the day


REFUSING = (
    "w{{ strftime_now('%d') }} {% for m in messages %}{% if 'w33' in m.content.split() %}"
    "{{ raise_exception('no w33 here') }}{% endif %}{{ m.content }} {% endfor %}"
)


@pytest.fixture
def chatting(tokenizer):
    own = deepcopy(tokenizer)
    own.chat_template = REFUSING
    return own


def test_a_chat_that_the_template_refuses_is_a_bad_row(tmp_path, chatting) -> None:
    rows = [{**row, "instruction": row["instruction"].replace("w33", "w34")} for row in runs.rows()]
    rows = [{key: value.replace("w33", "w34") for key, value in row.items()} for row in rows]
    rows[4]["instruction"] = "w9 w33"
    rows[7]["response"] = "w33"
    source = runs.written(tmp_path / "rows.jsonl", rows)
    chat = {"template": "chat", "date": "2026-11-28"}
    with pytest.raises(
        TemplateError, match=r'rows\.jsonl, line [58]: .* "no w33 here"; .*on_bad_row = "skip"'
    ):
        pipeline.prepare(settings(source, data=chat), chatting)
    skipping = settings(source, data={**chat, "on_bad_row": "skip"})
    for prepared in (pipeline.prepare(skipping, chatting), pipeline.one_client(skipping, "a", chatting)):
        (sentence,) = prepared.dropped
        assert sentence.startswith(
            '2 dropped: the chat template refuses this chat: "no w33 here" (the first: '
        )
        assert sentence.endswith(("line 5)", "line 8)"))
        trained = sum(len(data) for data in prepared.clients.values())
        assert trained + len(prepared.heldout) == 34
    data_folder.save(tmp_path / "data", prepared)
    assert data_folder.load(tmp_path / "data").dropped == prepared.dropped


def test_the_day_is_kept_where_a_template_prints_it(source, chatting, tokenizer) -> None:
    chat = settings(source, data={"template": "chat"})
    today = pipeline.dated(chat, chatting).data.date
    assert date.today() - timedelta(days=1) <= date.fromisoformat(today) <= date.today()
    given = settings(source, data={"template": "chat", "date": "2020-02-03"})
    assert pipeline.dated(given, chatting) == given
    plain = settings(source)
    assert pipeline.dated(plain, tokenizer) == plain
    chatting.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    assert pipeline.dated(chat, chatting) == chat


def test_what_is_cut_dropped_masked_or_skipped_is_counted_by_client(tmp_path: Path, tokenizer) -> None:
    folder = tmp_path / "clients"
    folder.mkdir()
    long = {"instruction": "Name a bird.", "output": "heron " * 400}
    marked = [
        {"role": role, "content": text, "weight": weight}
        for role, text, weight in (
            ("user", "a", 1),
            ("assistant", "b", 0),
            ("user", "c", 1),
            ("assistant", "d", 1),
        )
    ]
    rows = {
        "Ulm": [long, {"messages": marked}, {"instruction": "x", "output": ""}],
        "Bonn": [
            {"instruction": "x " * 400, "output": "y"},
            {"instruction": "Name one.", "output": "Heron."},
        ],
    }
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    (folder / "Thumbs.db").touch()
    asked = settings(
        folder,
        data={"holdout": 0.0, "on_bad_row": "skip", "max_tokens": 100},
        split={"by": "ready-made", "clients": None},
    )
    made = pipeline.prepare(asked, tokenizer)
    data_folder.save(tmp_path / "kept", made)
    back = data_folder.load(tmp_path / "kept")
    assert back.by_client == made.by_client == {
        "Bonn": {
            "examples": 2, "kept": 1, "cut": 0, "cut_responses": 0, "marked_responses": 0, "dropped": 1,
            "skipped_rows": 0,
        },
        "Ulm": {
            "examples": 2, "kept": 2, "cut": 1, "cut_responses": 1, "marked_responses": 1, "dropped": 0,
            "skipped_rows": 1,
        },
    }  # fmt: skip
    assert list(back.left_out) == ["Thumbs.db is left out, as files of the system or of an editor"]
    said = remarks.training_remarks(back)
    assert said[-5:] == [
        "rows skipped, by client: Ulm 1",
        "examples dropped, by client: Bonn 1 of 2",
        "examples cut to fit, by client: Ulm 1 of 2",
        "of these, responses cut, by client: Ulm 1 of 2",
        "responses masked by marks, by client: Ulm 1",
    ]
    for key in ("kept", "cut", "cut_responses", "marked_responses", "dropped"):
        assert made.summary[key] == sum(counts[key] for counts in made.by_client.values())


def test_a_row_that_is_skipped_is_counted_for_the_client_it_names(tmp_path: Path, tokenizer) -> None:
    rows = [{"instruction": f"q{n}", "output": "y" if n else "", "ward": 1.0} for n in range(3)]
    rows += [
        {"instruction": "q", "output": "y", "ward": "b"},
        {"instruction": "q", "output": "", "ward": None},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = settings(
        tmp_path / "a.jsonl",
        data={"holdout": 0.0, "on_bad_row": "skip"},
        split={"by": "natural", "field": "ward", "clients": None},
    )
    by_client = pipeline.prepare(asked, tokenizer).by_client
    assert {name: counts["skipped_rows"] for name, counts in by_client.items()} == {"1": 1, "b": 0}
