"""Columns by their names in several languages, by what they hold, and the question where it is not plain."""

from __future__ import annotations

from typing import Any

import pytest

from shepherd.data.columns import recognise
from shepherd.errors import DataError

ASKED = [f"Which of the birds of number {n} is meant here?" for n in range(40)]
SAID = [f"It is the heron with the number {n}, as everybody knows." for n in range(40)]
ABOUT = [f"There were {n} birds at the river when the ferry came." for n in range(40)]
WHO = [f"Site {n % 4}" for n in range(40)]
KIND = [("open", "closed")[n % 2] for n in range(40)]
CHAT = [
    [{"role": "user", "content": a}, {"role": "assistant", "content": b}]
    for a, b in zip(ASKED, SAID, strict=True)
]
SHAREGPT = [
    [{"from": "human", "value": a}, {"from": "gpt", "value": b}] for a, b in zip(ASKED, SAID, strict=True)
]
IDS = list(range(40))


def rows(**columns: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def found(given: dict[str, str] | None = None, **columns: list[Any]) -> dict[str, str]:
    got = recognise(rows(**columns), given)
    parts = ("messages", "instruction", "context", "response", "client", "category")
    return {part: name for part in parts if (name := getattr(got, part))}


@pytest.mark.parametrize(
    ("names", "client", "category"),
    [
        (("instruction", "input", "output"), "", ""),
        (("instruction", "context", "response"), "", "category"),
        (("question", "passage", "answer"), "hospital", "topic"),
        (("prompt", "background", "completion"), "author_id", "taskType"),
        (("frage", "kontext", "antwort"), "krankenhaus", "art"),
        (("Pregunta", "Contexto", "Respuesta"), "Cliente", "Categoría"),
        (("question", "contexte", "réponse"), "hôpital", "catégorie"),
        (("質問", "コンテキスト", "回答"), "病院", "カテゴリ"),
        (("指令", "上下文", "输出"), "客户", "类别"),
        (("вопрос", "контекст", "ответ"), "больница", "категория"),
        (("customer_question", "context_text", "best_answer"), "hospital_name", "question_type"),
    ],
)
def test_names_say_it(names: tuple[str, str, str], client: str, category: str) -> None:
    asked, about, said = names
    more = {name: values for name, values in ((client, WHO), (category, KIND)) if name}
    expected = {
        "instruction": asked,
        "context": about,
        "response": said,
        "client": client,
        "category": category,
    }
    got = found(**{"id": IDS, asked: ASKED, about: ABOUT, said: SAID, **more})
    assert got == {part: name for part, name in expected.items() if name}


def test_input_is_the_instruction_where_nothing_else_is() -> None:
    assert found(input=ASKED, output=SAID) == {"instruction": "input", "response": "output"}


@pytest.mark.parametrize(("name", "values"), [("messages", CHAT), ("conversations", SHAREGPT), ("x", CHAT)])
def test_a_chat_is_known_by_what_it_holds(name: str, values: list[Any]) -> None:
    got = recognise(rows(**{"prompt": ASKED, name: values, "hospital": WHO}))
    assert (got.messages, got.instruction, got.response, got.client) == (name, "", "", "hospital")
    assert got.unused == ("prompt",)


def test_a_column_of_messages_that_holds_none_is_no_chat() -> None:
    assert found(messages=ASKED, response=SAID) == {"instruction": "messages", "response": "response"}


def test_texts_without_a_telling_name_are_known_by_what_they_hold() -> None:
    got = recognise(rows(id=IDS, a=ASKED, b=SAID))
    assert (got.instruction, got.response, got.unused) == ("a", "b", ("id",))
    assert recognise(rows(b=SAID, a=ASKED)).instruction == "a"
    assert recognise(rows(question=ASKED, says=SAID)).why["response"] == "the only other column of texts"


def test_one_other_column_of_few_values_is_the_category_and_two_are_named() -> None:
    got = recognise(rows(question=ASKED, answer=SAID, flavour=KIND))
    assert (got.category, got.labels) == ("flavour", ())
    got = recognise(rows(question=ASKED, answer=SAID, flavour=KIND, place=WHO))
    assert (got.category, got.client, got.labels) == ("", "", ("flavour", "place"))


def test_a_client_of_each_row_and_one_of_all_are_no_clients() -> None:
    every, one = [f"author {n}" for n in IDS], ["Ann"] * 40
    assert "client" not in found(question=ASKED, answer=SAID, author=every)
    assert "client" not in found(question=ASKED, answer=SAID, author=one)


def test_what_is_given_holds() -> None:
    given = {"instruction": "b", "response": "a", "client": "kind", "category": ""}
    got = recognise(rows(a=SAID, b=ASKED, hospital=WHO, kind=KIND), given)
    assert (got.instruction, got.response, got.client, got.category) == ("b", "a", "kind", "")
    assert got.unused == ("hospital",)
    assert found({"client": ""}, question=ASKED, answer=SAID, hospital=WHO).get("client") is None


@pytest.mark.parametrize(
    ("columns", "given", "sentence"),
    [
        (
            {"question": ASKED, "prompt": ABOUT, "answer": SAID},
            {},
            "question, prompt may each be the instruction",
        ),
        (
            {"question": ASKED, "answer": SAID, "hospital": WHO, "author": KIND},
            {},
            "hospital, author may each be",
        ),
        ({"title": ABOUT, "body": SAID}, {}, "no column is named as the instruction; .* of title, body"),
        ({"question": ASKED, "n": IDS}, {}, "no column is named as the response; .* --response COLUMN, of n"),
        ({"first": CHAT, "other": CHAT}, {}, "first, other may each be the messages"),
        ({ABOUT[0] * 2: ABOUT, "18": IDS}, {}, "its first line looks like a row"),
        ({"question": ASKED, "answer": SAID}, {"client": "who"}, "--client who: there is no such column"),
    ],
)
def test_what_is_not_plain_is_asked_with_its_candidates(
    columns: dict[str, list[Any]], given: dict[str, str], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        recognise(rows(**columns), given)


@pytest.mark.parametrize(
    "rows",
    [
        [["Wer?", "Ja"], ["Was?", "Nein"]],
        [["Ulm", "Wer ist da", "Anna"], ["Ulm", "Wer kommt", "Otto"]],
        [["17", "husten"], ["18", "fieber"]],
    ],
)
def test_a_first_row_of_data_is_no_header(rows: list[list[str]]) -> None:
    header, *others = rows
    with pytest.raises(DataError, match="seems to have no header") as caught:
        recognise([dict(zip(header, row, strict=True)) for row in others])
    assert not any(cell in str(caught.value) for cell in header)
    named = [dict(zip(["frage", "antwort", "x"], row, strict=False)) for row in others]
    assert recognise(named, {"instruction": "frage", "response": "antwort"}).instruction == "frage"


def test_a_merged_table_names_the_columns_of_both_layouts() -> None:
    nothing: list[Any] = [None, [], None, []]
    merged = [
        *rows(messages=CHAT, question=[None] * 40, answer=[""] * 40),
        *(
            {"messages": nothing[n % 4], "question": q, "answer": a}
            for n, (q, a) in enumerate(zip(ASKED, SAID, strict=True))
        ),
    ]
    got = recognise(merged)
    assert (got.messages, got.instruction, got.response) == ("messages", "question", "answer")
    whole = recognise(rows(messages=CHAT, question=ASKED))
    assert (whole.messages, whole.instruction, whole.unused) == ("messages", "", ("question",))


def test_a_system_prompt_and_a_history_are_read_and_no_category() -> None:
    got = recognise(rows(question=ASKED, answer=SAID, system=KIND, history=[[["a", "b"]]] * 40))
    assert (got.category, got.unused) == ("", ())
