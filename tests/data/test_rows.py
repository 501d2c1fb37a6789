"""What is in a row is read, or named and counted; nothing of it is lost in silence."""

import csv
import json
from datetime import date

import pytest

from shepherd.data import data_folder, pipeline, remarks
from shepherd.data.examples import Turn, from_rows, read
from shepherd.data.holdout import hold_out
from shepherd.data.noted import Notes, Tally
from shepherd.data.prompts import prompt_of
from shepherd.data.split import rule
from shepherd.errors import BadRow
from shepherd.overrides import parse
from shepherd.settings import DataTable, SplitTable

IID = rule(SplitTable())


def reading(*rows, split=IID, **table):
    return from_rows(rows, DataTable(**{"source": "mem", **table}), split, "mem")


def texts(example):
    return [(turn.role, turn.text) for turn in example.turns]


def counted(tallies):
    return {what: tally.rows for what, tally in tallies.items()}


def said(*turns, **more):
    return {"messages": [{"role": role, "content": text} for role, text in turns], **more}


HI = (("user", "Hi"), ("assistant", "Hello"))


# ---- the first field that is filled


@pytest.mark.parametrize("nothing", [None, "", " \n", float("nan"), [], "\u200b"])
def test_the_first_field_that_is_filled_counts(nothing):
    (found,) = reading({"instruction": "Sum", "context": nothing, "input": "2 3", "output": "5"}).examples
    assert (found.context, found.response) == ("2 3", "5")
    (found,) = reading({"instruction": "Sum", "response": nothing, "input": "2 3", "output": "5"}).examples
    assert (found.context, found.response) == ("2 3", "5")
    (found,) = reading({"instruction": "Sum", "messages": nothing, "output": "5"}).examples
    assert found.turns == (Turn(role="user", text="Sum"), Turn(role="assistant", text="5"))
    (found,) = reading({"messages": nothing, "conversations": said(*HI)["messages"]}).examples
    assert texts(found) == [*HI]


@pytest.mark.parametrize(
    "nothing", [[None], [{"role": None, "content": None}], "[]", "null", {"role": [], "content": []}]
)
def test_a_chat_of_nothing_is_no_chat(nothing):
    with pytest.raises(BadRow, match=r"field messages is .*, expected a list of turns"):
        reading({"messages": nothing})
    found = reading({"instruction": "Sum", "messages": nothing, "output": "5"})
    assert found.examples[0].instruction == "Sum"
    assert not found.notes.unread


def test_a_chat_in_a_cell_is_json_or_as_python_prints_it():
    turns = [
        {"role": "user", "content": 'It\'s "I"'},
        {"role": "assistant", "content": None, "value": "Hello"},
    ]
    for cell in (json.dumps(turns), str(turns)):
        (found,) = reading({"messages": cell, "instruction": "", "output": ""}).examples
        assert texts(found) == [("user", 'It\'s "I"'), ("assistant", "Hello")]
    with pytest.raises(BadRow, match="field messages is not a list of turns"):
        reading({"messages": "[{'role': open('x')}]", "instruction": "", "output": ""})


def test_inside_turns_too():
    merged = [
        {"role": None, "content": None, "from": "human", "value": "Hi"},
        {"role": "assistant", "content": "Hello", "from": None, "value": None},
        None,
    ]
    found = reading({"messages": merged})
    assert texts(found.examples[0]) == [*HI]
    assert not found.notes.unread


def test_a_merged_table_is_read_row_by_row_in_every_format(tmp_path):
    import datasets

    alpaca = {"instruction": "Sum", "input": "2 3", "output": "5"}
    dolly = {"instruction": "Add", "context": "4 5", "response": "9"}
    chat = {"messages": [{"role": role, "content": text} for role, text in HI]}
    names = [*alpaca, "context", "response", "messages"]
    merged = [{name: row.get(name) for name in names} for row in (alpaca, dolly, chat)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in merged))
    table = datasets.Dataset.from_list(merged)
    table.to_parquet(str(tmp_path / "a.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(
            {**row, "messages": row["messages"] and json.dumps(row["messages"])} for row in merged
        )
    for name in ("a.jsonl", "a.parquet", "saved", "a.csv"):
        found = read(DataTable(source=str(tmp_path / name)), IID, 0)
        first, second, third = found.examples
        assert (first.context, first.response, second.context, second.response) == ("2 3", "5", "4 5", "9")
        assert texts(third) == [*HI]
        assert not found.notes.sentences()


def test_two_that_are_filled_and_differ_are_named():
    row = {"instruction": "Sum", "context": "a", "input": "b", "response": "c", "output": "c"}
    found = reading(row, {**row, "input": "a"}, row)
    assert [example.context for example in found.examples] == ["a", "a", "a"]
    what = "fields context and input are both filled and differ; context is read"
    assert found.notes.changed == {what: Tally(2, "mem, record 1")}
    assert counted(found.notes.unread) == {"input": 2}
    chat = {**row, **said(*HI)}
    assert counted(reading(chat).notes.unread) == dict.fromkeys(row, 1)


# ---- system texts and histories


def test_alpacas_system_and_history_are_turns():
    row = {"instruction": "And 3?", "output": "5", "system": "Count.", "history": [["1", "2"], ["2", "3"]]}
    expected = [("system", "Count."), ("user", "1"), ("assistant", "2"), ("user", "2"), ("assistant", "3")]
    for history in (row["history"], json.dumps(row["history"]), [*row["history"], ["", None]]):
        found = reading({**row, "history": history})
        assert texts(found.examples[0]) == [*expected, ("user", "And 3?"), ("assistant", "5")]
        assert not found.notes.sentences()
    as_turns = [{"role": role, "content": text} for role, text in expected[1:]]
    assert texts(reading({**row, "history": as_turns}).examples[0])[:5] == expected
    as_turns[1]["weight"] = 0
    masked = reading({**row, "history": as_turns})
    assert [turn.trained for turn in masked.examples[0].turns] == [True, True, False, True, True, True, True]
    assert len(masked.notes.changed) == 1
    as_turns += [{"role": "user", "content": "Well?", "name": "Ada"}]
    ended = reading({**row, "history": as_turns}).notes
    assert (len(ended.changed), counted(ended.unread)) == (2, {"history[].name": 1})
    assert [turn.text for turn in prompt_of(row, DataTable(source="x")).turns] == [
        "Count.", "1", "2", "2", "3", "And 3?",
    ]  # fmt: skip
    plain = reading({**row, "history": [], "system": None}).examples[0]
    assert texts(plain) == [("user", "And 3?"), ("assistant", "5")]


@pytest.mark.parametrize("name", ["system", "system_prompt", "System Prompt"])
def test_a_system_text_beside_a_chat_is_its_first_turn(name):
    found = reading(said(*HI, **{name: "Be brief."}))
    assert texts(found.examples[0]) == [("system", "Be brief."), *HI]
    own = reading(said(("system", "Be kind."), *HI, **{name: "Be brief."}))
    assert texts(own.examples[0])[0] == ("system", "Be kind.")
    assert counted(own.notes.unread) == {name: 1}
    assert "differ; the turn is read" in own.notes.sentences()[1]
    same = reading(said(("system", "Be brief."), *HI, **{name: "Be brief."}))
    assert not same.notes.sentences()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", "nan"),
        ("messages", 5),
        ("system", ["s"]),
        ("system", 7),
        ("history", "asthma"),
        ("history", ["asthma", "gout"]),
        ("history", 3),
    ],
)
def test_what_is_no_system_text_and_no_history_is_named_and_not_refused(field, value):
    found = reading({"instruction": "a", "output": "b", field: value})
    assert len(found.examples[0].turns) == 2
    assert counted(found.notes.unread) == {field: 1}


def test_the_run_file_may_say_which_they_are_or_that_there_are_none():
    row = {"instruction": "a", "output": "b", "persona": "Be brief.", "system": "linux"}
    found = reading(row, fields={"system": "persona", "history": ""})
    assert texts(found.examples[0])[0] == ("system", "Be brief.")
    assert counted(found.notes.unread) == {"system": 1}
    assert len(reading(row, fields={"system": ""}).examples[0].turns) == 2
    with pytest.raises(BadRow, match=r"field role is missing .* data\.fields\.system"):
        reading(row, fields={"system": "role"})
    with pytest.raises(BadRow, match="field system is text, expected pairs of a question and its answer"):
        reading(row, fields={"history": "system"})


# ---- marks and keys of turns


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"weight": "0"},
        {"train": False},
        {"loss": False},
        {"training": "false"},
    ],
)
def test_a_turn_that_the_data_mark_is_not_trained(mark):
    row = said(*HI, ("user", "More"), ("assistant", "No"))
    row["messages"][1] |= mark
    found = reading(row)
    assert [turn.trained for turn in found.examples[0].turns] == [True, False, True, True]
    assert not found.notes.unread
    assert found.notes.sentences() == [
        "in 1 row an assistant turn is marked as not to be trained, and is masked (the first: mem, record 1)"
    ]
    row["messages"][3] |= mark
    with pytest.raises(BadRow, match="no assistant turn that is to be trained"):
        reading(row)


@pytest.mark.parametrize("mark", [{"weight": 1}, {"weight": None}, {"train": True}, {"loss": "true"}])
def test_a_mark_that_says_train_is_read(mark):
    row = said(*HI)
    row["messages"][1] |= mark
    found = reading(row)
    assert found.examples[0].turns[1].trained
    assert not found.notes.sentences()


def test_unknown_keys_of_turns_are_named():
    row = said(*HI)
    row["messages"][0] |= {"name": "Ada", "weight": 1}  # nothing trains a user turn
    row["messages"][1] |= {"reasoning": "I see.", "weight": 0.5, "empty": []}
    found = reading(row, row)
    assert counted(found.notes.unread) == {
        "messages[].name": 2, "messages[].weight": 2, "messages[].reasoning": 2,
    }  # fmt: skip


# ---- names that nearly fit, and types


@pytest.mark.parametrize("form", [" {}", "{} ", "\ufeff{}", "\u200b{}", "{}\xa0"])
def test_a_name_that_nearly_fits_is_taken(form):
    names = ("instruction", "input", "output", "category")
    row = {form.format(name): value for name, value in zip(names, ("Sum", "2 3", "5", "sums"), strict=True)}
    for given in (row, {name.upper(): value for name, value in row.items()}):
        found = reading(
            {**given, form.format("author"): "x"},
            split=rule(SplitTable(by="natural", field="author")),
        )
        example = found.examples[0]
        assert (example.instruction, example.context, example.response) == ("Sum", "2 3", "5")
        assert (example.category, example.client) == ("sums", "x")
        assert not found.notes.sentences()


def test_a_byte_order_mark_too_many_in_a_csv_file(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfinstruction, input,Output\nSum,2 3,5\n")
    (found,) = read(DataTable(source=str(tmp_path / "a.csv")), IID, 0).examples
    assert (found.instruction, found.context, found.response) == ("Sum", "2 3", "5")


def test_the_exact_name_goes_first_and_another_that_differs_is_named():
    found = reading({"Input": "no", "input": "2 3", "instruction": "Sum", "output": "5"})
    assert found.examples[0].context == "2 3"
    assert counted(found.notes.unread) == {"Input": 1}


def test_labels_are_their_names(tmp_path):
    import datasets

    text, label = datasets.Value("string"), datasets.ClassLabel(names=["qa", "summary"])
    features = datasets.Features({"instruction": text, "response": label, "category": label, "site": label})
    columns = {"instruction": ["a", "b"], "response": [0, 1], "category": [1, -1], "site": [1, 0]}
    table = datasets.Dataset.from_dict(columns, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "a.parquet"))
    for name in ("saved", "a.parquet"):
        found = read(DataTable(source=str(tmp_path / name)), rule(SplitTable(by="natural", field="site")), 0)
        assert [(e.response, e.category, e.client) for e in found.examples] == [
            ("qa", "summary", "summary"),
            ("summary", "", "qa"),
        ]


def test_labels_inside_lists_and_objects_are_named():
    import datasets

    from shepherd.data.labels import namer

    role = datasets.ClassLabel(names=["user", "assistant"])
    features = datasets.Features(
        {"messages": datasets.List({"role": role, "content": datasets.Value("string")})}
    )
    row = {"messages": [{"role": 0, "content": "Hi"}, {"role": 1, "content": "Hello"}]}
    assert texts(reading(namer(features)(row)).examples[0]) == [*HI]


@pytest.mark.parametrize(
    ("value", "name"),
    [(1.0, "1"), (7, "7"), (True, "true"), ("1.0", "1.0"), (-3.0, "-3"), (date(2026, 1, 2), "2026-01-02")],
)
def test_a_number_that_is_wanted_as_a_name(value, name):
    row = {"instruction": "a", "output": "b", "site": value, "category": value}
    (found,) = reading(row, split=rule(SplitTable(by="natural", field="site"))).examples
    assert (found.client, found.category) == (name, name)


@pytest.mark.parametrize("value", [1.5, float("inf")])
def test_a_number_that_is_no_name_is_refused(value):
    with pytest.raises(BadRow, match="field category is the number"):
        reading({"instruction": "a", "output": "b", "category": value})


def test_text_in_parts_is_joined_and_other_parts_are_refused():
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a bird.", "image_url": None}, None]
    found = reading(said(("user", parts), ("assistant", [{"text": "A heron."}])))
    assert texts(found.examples[0]) == [("user", "Name a bird."), ("assistant", "A heron.")]
    (found,) = reading({"instruction": parts, "context": ["See: ", *parts], "output": "A heron."}).examples
    assert (found.instruction, found.context) == ("Name a bird.", "See: Name a bird.")
    image = said(("user", [*parts, {"type": "image_url", "image_url": {"url": "x"}}]), ("assistant", "x"))
    found = reading(image, image, said(*HI), on_bad_row="skip")
    assert counted(found.notes.refused) == {"field content holds a part that is no text": 2}


# ---- chats


def test_a_chat_loses_the_turns_that_nobody_asked_or_answered_and_no_more():
    greeted = said(("system", "s"), ("assistant", "Welcome"), *HI, ("user", "Bye"), ("user", "Bye?"))
    found = reading(greeted, said(("assistant", "Welcome"), *HI), said(*HI, ("user", " ")))
    assert texts(found.examples[0]) == [("system", "s"), *HI]
    assert [texts(example) for example in found.examples[1:]] == [[*HI], [*HI]]
    begins, ends = found.notes.changed
    assert counted(found.notes.changed) == {begins: 2, ends: 1}
    assert "begins with the assistant" in begins
    assert "ends with the user" in ends


# ---- what is counted


def test_unread_fields_are_counted_by_how_many_rows_fill_them():
    row = {"instruction": "a", "output": "b", "id": 3, "note": None, "check": "no"}
    found = reading(row, {**row, "note": "x"}, {**row, "id": None}, split=IID)
    assert found.notes.unread == {
        "id": Tally(2, "mem, record 1"),
        "check": Tally(3, "mem, record 1"),
        "note": Tally(1, "mem, record 2"),
    }
    assert found.notes.sentences() == [
        "filled and not read: id (in 2 rows), check (in 3 rows), note (in 1 row); to read a field, name it"
        " in data.fields"
    ]


def test_what_is_skipped_is_counted_by_its_reason_with_the_first_place(tmp_path):
    good = {"instruction": "a", "output": "b"}
    rows = [
        *("{oops", '{"instruction": 1'),
        *map(
            json.dumps,
            [good, {**good, "output": ""}, ["x"], {**good, "output": 1.5}, {**good, "output": 2.5}],
        ),
        *map(
            json.dumps,
            [said(("user", "a"), ("bird", "b")), said(("user", "a"), ("user", "b"), ("assistant", "c"))],
        ),
        json.dumps(
            said(("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d"), ("assistant", "e"))
        ),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    found = read(DataTable(source=str(tmp_path / "a.jsonl"), on_bad_row="skip"), IID, 0)
    reasons = {
        "the row is not JSON": (2, 1),
        "field output is empty": (1, 4),
        "the row is a list and no object with named fields": (1, 5),
        "field output is a number and no text": (2, 6),
        "a turn of field messages has the role 'bird'": (1, 8),
        "the turns of field messages do not alternate between user and assistant": (2, 9),
    }
    assert {
        reason: (tally.rows, int(tally.first.split("line ")[1]))
        for reason, tally in found.notes.refused.items()
    } == reasons
    assert sum(rows for rows, _ in reasons.values()) == len(found.skipped)
    assert "2 rows skipped: the row is not JSON (the first: " in "\n".join(found.notes.sentences())


def test_a_folders_counts_are_added_up_and_keep_the_first_place(tmp_path):
    for name, count in (("a", 1), ("b", 2)):
        rows = [{"instruction": "a", "output": "b", "id": n} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({**row, "id": 1}) + "\n" for row in rows))
    found = read(DataTable(source=str(tmp_path)), rule(SplitTable(by="ready-made")), 0)
    assert found.notes.unread == {"id": Tally(3, f"{tmp_path}/a.jsonl, line 1")}
    assert found.notes.rows == 3
    assert Notes.of(json.loads(json.dumps(found.notes.plain()))) == found.notes


@pytest.mark.parametrize("word", ["<noinput>", "nan", "None", "N/A", " null "])
def test_words_that_stand_for_nothing_in_many_rows_are_pointed_out(word):
    rows = [{"instruction": f"{n}", "input": word if n < 3 else "x", "output": "b"} for n in range(20)]
    found = reading(*rows)
    assert found.examples[0].context == word
    (sentence,) = found.notes.sentences()
    assert sentence.startswith(f"in 3 of 20 rows the context is {word.strip()!r}, which is read as text")
    assert not reading(*rows[2:]).notes.sentences()  # one row is not many
    named = [{**row, "input": "", "category": row["input"]} for row in rows]
    assert "the category is" in reading(*named).notes.sentences()[0]


def test_carriage_returns_are_counted_and_kept():
    found = reading({"instruction": "a\r\nb", "output": "c"}, {"instruction": "a", "output": "c"})
    assert found.examples[0].instruction == "a\r\nb"
    assert counted(found.notes.seen) == {
        "a text holds carriage returns (\\r), which are trained as they are": 1
    }


def test_what_others_wrote_acts_on_no_terminal():
    found = reading({"instruction": "a", "output": "b", "x\x1b[2J\nround 9": 1})
    assert "\x1b" not in "".join(found.notes.sentences())
    assert "\n" not in "".join(found.notes.sentences())


# ---- the run folder and what is said before a run


@pytest.fixture
def settings(tmp_path):
    rows = [
        {"instruction": f"{n}", "output": "Heron and gull and duck" if n % 2 else "A", "id": n}
        for n in range(20)
    ]
    chats = [said(("user", f"u{n}"), ("assistant", "a"), ("user", "b"), ("assistant", "c")) for n in range(3)]
    for row in chats:
        row["messages"][1]["weight"] = 0
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, *chats, {"output": "b"}])
    )
    return parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": str(tmp_path / "a.jsonl"), "on_bad_row": "skip", "holdout": 0.0},
            "split": {"clients": 2},
        }
    )


def test_the_run_folder_keeps_what_was_found_and_a_run_says_it(settings, tmp_path, neox):
    prepared = pipeline.prepare(settings, neox)
    data_folder.save(tmp_path / "data", prepared)
    index = json.loads((tmp_path / "data" / "index.json").read_text())
    assert index["rows"]["unread"]["id"]["rows"] == 20
    assert index["rows"]["refused"]["field instruction is missing"]["rows"] == 1
    assert index["summary"]["marked_responses"] == 3
    found = data_folder.load(tmp_path / "data")
    assert found.notes == prepared.notes
    for sentences in (remarks.training_remarks(found), remarks.training_remarks(prepared)):
        assert sentences[0].startswith("filled and not read: id (in 20 rows)")
        assert "3 responses masked, as the data mark them" in sentences
    index.pop("rows")
    (tmp_path / "data" / "index.json").write_text(json.dumps(index))
    assert data_folder.load(tmp_path / "data").notes == Notes()  # an older folder


def test_the_number_of_cut_responses_is_said(settings, neox):
    long = settings.model_copy(
        update={"data": settings.data.model_copy(update={"template": "plain", "max_tokens": 8})}
    )
    prepared = pipeline.prepare(long, neox)
    cut = prepared.summary["cut_responses"]
    assert cut == sum(
        int(data.ids[stop - 1]) != neox.eos_token_id
        for data in prepared.clients.values()
        for stop in data.offsets[1:]
    )
    assert 0 < cut < prepared.summary["kept"]
    assert any("cut to fit, without an end of turn" in each for each in remarks.training_remarks(prepared))


TOOLS = [
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"id": "1"}]}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "function_call": {"name": "f"}, "content": ""}],
    [*said(*HI)["messages"], {"role": "tool", "content": "x"}, {"role": "assistant", "content": "x"}],
    [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}],
    [{"from": "human", "value": "a"}, {"from": "gpt", "value": "{}"}, {"from": "observation", "value": "{}"}],
    [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}, said(*HI)["messages"][1]],
]  # fmt: skip


def test_chats_that_call_tools_are_one_sentence_and_a_count_of_their_own():
    for chat in TOOLS:
        with pytest.raises(
            BadRow, match=r"field messages calls tools \(turn [123]\).*; leave such chats out"
        ):
            reading({"messages": chat})
    found = reading(*({"messages": chat} for chat in TOOLS), said(*HI), on_bad_row="skip")
    assert counted(found.notes.refused) == {"the chat of field messages calls tools": len(TOOLS)}
    none = said(*HI, tools=[{"name": "f"}])
    none["messages"][1] |= {"tool_calls": [], "function_call": None}
    assert counted(reading(none).notes.unread) == {"tools": 1}


def test_the_same_chat_with_other_turns_masked_is_no_duplicate(neox):
    masked = said(*HI, ("user", "More"), ("assistant", "No"))
    masked["messages"][1]["weight"] = 0
    examples = reading(masked, said(*HI, ("user", "More"), ("assistant", "No")), masked).examples
    assert hold_out(examples, 0.0, 0).train.tolist() == [0, 1]


# ---- what two layouts say, and what only one says


def test_two_chats_that_say_the_same_are_both_read():
    other = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    same = reading(said(*HI, conversations=other))
    assert (same.notes.unread, same.notes.changed) == ({}, {})
    differ = reading(said(*HI, conversations=[other[0], {"from": "gpt", "value": "Go away"}]))
    assert counted(differ.notes.unread) == {"conversations": 1}
    assert "fields messages and conversations are both filled and differ" in next(iter(differ.notes.changed))


def test_of_two_keys_of_a_turn_the_same_is_read_and_another_is_named():
    def turn(**more):
        return {
            "messages": [{"role": "user", "content": "Hi", **more}, {"role": "assistant", "content": "Ho"}]
        }

    same = reading(turn(**{"from": "human", "value": "Hi"}))
    assert (same.notes.unread, same.notes.changed) == ({}, {})
    found = reading(turn(**{"from": "gpt"}), turn(value="Bye"))
    assert [texts(each)[0] for each in found.examples] == [("user", "Hi")] * 2
    assert counted(found.notes.unread) == {"messages[].from": 1, "messages[].value": 1}
    assert list(found.notes.changed) == [
        "keys role and from of a turn of field messages are both filled and differ; role is read",
        "keys content and value of a turn of field messages are both filled and differ; content is read",
    ]


def test_the_keys_of_text_parts_are_named():
    parts = [
        {"type": "text", "text": "Hi", "citations": ["A"], "image": None},
        {"type": "text", "value": "lost"},
    ]
    chat = said(("user", parts), ("assistant", "Hello"))
    found = reading(chat, {"instruction": parts, "output": "b"})
    assert [each.instruction for each in found.examples] == ["Hi", "Hi"]
    assert counted(found.notes.unread) == {
        "messages[].content[].citations": 1,
        "messages[].content[].value": 1,
        "instruction[].citations": 1,
        "instruction[].value": 1,
    }


def test_plain_texts_in_a_list_are_parts_of_a_turn_and_elsewhere_one_text_or_refused():
    (found,) = reading(said(("user", ["Hi ", None, "there"]), ("assistant", ["Hello"]))).examples
    assert texts(found) == [("user", "Hi there"), ("assistant", "Hello")]
    (found,) = reading({"instruction": ["a", None, " "], "output": ["b"], "category": ["c"]}).examples
    assert (found.instruction, found.response, found.category) == ("a", "b", "c")
    found = reading(
        {"instruction": "a", "output": ["b", "c"]}, {"instruction": "a", "output": "b"}, on_bad_row="skip"
    )
    assert counted(found.notes.refused) == {"field output is a list of several texts": 1}


def test_a_system_turn_that_begins_the_history_is_the_rows():
    earlier = [{"role": role, "content": text} for role, text in (("system", "Be brief."), *HI)]
    row = {"instruction": "a", "output": "b", "history": earlier}
    for more in ({}, {"system": "Be brief."}):
        (found,) = reading({**row, **more}).examples
        assert texts(found) == [("system", "Be brief."), *HI, ("user", "a"), ("assistant", "b")]
    with pytest.raises(BadRow, match="field system and the system turn of field history differ"):
        reading({**row, "system": "Be long."})


def test_a_row_that_is_a_turn_is_named_as_one():
    with pytest.raises(BadRow, match=r"the row is one turn of a chat; write a row for each chat"):
        reading({"role": "user", "content": "Hi"})


@pytest.mark.parametrize("kind", ["function_call", "function_call_output"])
def test_a_tool_call_without_a_role_is_one(kind):
    items = [{"role": "user", "content": "a"}, {"type": kind, "call_id": "1"}]
    with pytest.raises(BadRow, match=r"calls tools \(turn 2\)"):
        reading({"messages": items})


def test_a_role_is_read_without_what_nobody_sees():
    (found,) = reading(said(("User ", "Hi"), ("assistant\u200b", "Hello"))).examples
    assert texts(found) == [*HI]


@pytest.mark.parametrize("words", [("N/A", "n/a"), ("None.", "none"), ("#DIV/0!", "#div/0!"), ("\\N", "\\n")])
def test_spellings_of_a_word_for_nothing_are_counted_together(words):
    found = reading(*({"instruction": f"q{n}", "input": word, "output": "1"} for n, word in enumerate(words)))
    same = words[0].casefold() == words[1].casefold()
    assert counted(found.notes.empty) == (
        {f"the context is {words[0]!r}": 2} if same else {f"the context is {word!r}": 1 for word in words}
    )
