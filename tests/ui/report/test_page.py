"""The page without a browser: whole, labelled, its numbers those of report.json, and hostile text inert."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from shepherd.errors import FolderError
from shepherd.ui import report
from shepherd.ui.report import gather, number_formats, page
from tests.ui.report import folders

VOID = {"meta", "link", "br", "wbr", "img"}


class Outline(HTMLParser):
    """Elements with their attributes and their text; `wrong` lists tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[dict[str, Any]] = []
        self.all: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()
        self.wrong += [each["tag"] for each in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {"tag": tag, "text": "", **{key: value or "" for key, value in attrs}}
        self.wrong += [f"{key} twice" for key, times in Counter(key for key, _ in attrs).items() if times > 1]
        self.all.append(found)
        if tag not in VOID:
            self.open.append(found)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop()["tag"] != tag:
            self.wrong.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        for each in self.open:
            each["text"] += data

    def tagged(self, *tags: str) -> list[dict[str, Any]]:
        return [each for each in self.all if each["tag"] in tags]


@pytest.fixture(scope="module", params=["whole", "alone", "stopped", "nothing held out", "round 0"])
def shown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    """Pages of all sorts of runs, with their report.json."""
    path = tmp_path_factory.mktemp("runs") / "run"
    match request.param:
        case "whole":
            names = [*folders.CATEGORIES, folders.LONG, "a/b~c", "<i>&'\""]
            folders.write(path, categories=names, clients=["<b>x", "a/b", "c", "d"])
            folders.comparison(path, seeds=2, categories=names)
        case "alone":
            folders.write(path, answers=20)
        case "stopped":
            folders.comparison(folders.write(path, done=3), judge=False, finished=False)
        case "nothing held out":
            folders.write(path, heldout=False)
        case "round 0":
            folders.write(path, done=0)
    return report.write(path).read_text(), json.loads((path / report.JSON).read_text())


def test_the_page_is_well_formed_and_labelled(shown: tuple[str, dict[str, Any]]) -> None:
    outline = Outline(shown[0])
    assert outline.wrong == []
    ids = [each["id"] for each in outline.all if "id" in each]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    for key in ("aria-labelledby", "href"):
        named = [each[key].removeprefix("#") for each in outline.all if key in each]
        assert [name for name in named if name not in ids and not name.startswith("data:")] == []
    assert len(outline.tagged("h1")) == len(outline.tagged("main")) == 1
    assert all(each.get("scope") in ("row", "col") for each in outline.tagged("th"))
    assert len(outline.tagged("caption")) == len(outline.tagged("table"))
    for svg in outline.tagged("svg"):
        assert svg.get("role") == "img" or "role" not in svg
    assert all(each["text"].strip() for each in outline.tagged("h1", "h2", "h3", "h4", "caption", "summary"))


def test_nothing_on_the_page_can_run_or_reach_out(shown: tuple[str, dict[str, Any]]) -> None:
    text, _ = shown
    outline = Outline(text)
    assert outline.tagged("script", "img", "iframe", "object", "embed", "form", "base") == []
    assert [key for each in outline.all for key in each if key.startswith("on")] == []
    policy = next(each["content"] for each in outline.tagged("meta") if "http-equiv" in each)
    assert policy.split("; ")[:3] == ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    assert not re.search(r"url\(|@import|src=", outline.tagged("style")[0]["text"])
    assert all(
        each["href"][0] == "#" or each["href"].startswith("data:") for each in outline.tagged("a", "link")
    )


def test_each_number_is_the_one_in_the_json(shown: tuple[str, dict[str, Any]]) -> None:
    text, stored = shown
    numbers = [each for each in Outline(text).all if "data-path" in each]
    assert len(numbers) > 10
    for each in numbers:
        value = _at(stored, each["data-path"])
        assert json.loads(each["data-value"]) == value
        assert each["text"] == number_formats.FORMS[each["data-form"]](value)


def _at(value: Any, pointer: str) -> Any:
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def test_the_arms_come_first_after_the_answer(tmp_path: Path) -> None:
    path = folders.comparison(folders.write(tmp_path / "run"))
    text = report.write(path).read_text()
    said = json.loads((path / report.JSON).read_text())["says"]
    places = [
        text.index(each) for each in (said[0], said[1], 'id="arms-table"', 'id="intervals"', 'id="loss"')
    ]
    assert places == sorted(places)


def test_a_model_can_say_anything(tmp_path: Path) -> None:
    path = folders.write(tmp_path / "<script>1</script>", clients=[folders.HOSTILE, "b"], answers=2)
    said = folders.HOSTILE
    asked = {"category": said, "instruction": said, "context": said, "expected": said}
    sample = {**asked, "answers": {said: {"text": said, "right": False}}}
    text = report.write(folders.comparison(path, samples=[sample])).read_text()
    outline = Outline(text)
    assert outline.wrong == []
    assert outline.tagged("script", "img") == []
    answer = next(each for each in outline.all if each.get("aria-label") == "Answer")
    assert answer["text"].startswith("<script>document.title='owned'</script></script><img src=x onerror=")
    assert "{{7*7}} {% raw %} ${7*7} <!-- ]]> </style> &amp;" in answer["text"]
    assert "\x00" not in text
    assert outline.tagged("title")[0]["text"].startswith("script>: ")  # the folder's own name, its last part


def test_heat_is_told_by_numbers_and_daggers_not_by_shade_alone(tmp_path: Path) -> None:
    path = folders.comparison(folders.write(tmp_path / "run"), locals_=1)
    stored = report.collect(path)
    outline = Outline(page.html(stored))
    local = stored["arms"][1]
    unseen = sum(not local["categories"].get(name) for name in stored["categories"])
    daggers = [each for each in outline.all if each.get("aria-label") == "not trained on"]
    assert len(daggers) == 2 * unseen  # right answers and loss
    assert page.shade(1.0, (1.0, 3.0), flip=True) == "1.00"
    assert page.shade(1.5, (1.0, 3.0)) == "0.25"
    assert page.shade(None, (1.0, 3.0)) == "0"


def test_nothing_is_written_over_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folders.write(tmp_path / "run")
    first = report.write(path).read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left")))
    with pytest.raises(FolderError, match="is full"):
        report.write(path)
    assert (path / report.HTML).read_text() == first
    assert sorted(each.name for each in path.iterdir() if "report" in each.name) == [report.HTML, report.JSON]


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    path = folders.comparison(folders.write(tmp_path / "run"))
    first = report.write(path).read_bytes(), (path / report.JSON).read_bytes()
    assert (report.write(path).read_bytes(), (path / report.JSON).read_bytes()) == first


def test_settings_are_shown_by_table() -> None:
    shown = {
        "settings": {"seed": 0, "transforms": [{"name": "clip", "norm": 1.0}], "data": {"fields": {"x": ""}}}
    }
    assert page.settings_groups(shown) == [
        ("run", [("seed", "0"), ("transforms", "name=clip norm=1.0")]),
        ("data", [("fields.x", '""')]),
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("qa", '<bdi class="short">qa</bdi>'),
        ("information_extraction", '<bdi class="long">information_<wbr>extraction</bdi>'),
        ("x" * 15, f'<bdi class="long">{"x" * 14}<wbr>x</bdi>'),
        ("<b>", '<bdi class="short">&lt;b&gt;</bdi>'),
    ],
)
def test_names_break_where_a_person_would(name: str, shown: str) -> None:
    assert page.breakable(name) == shown


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("run `a <b>` now", "run <code>a &lt;b&gt;</code> now"),
        ("one ` alone & <i>", "one ` alone &amp; &lt;i&gt;"),
    ],
)
def test_commands_in_sentences_are_code(sentence: str, shown: str) -> None:
    assert page.with_code(sentence) == shown


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("federated beats base.", "Federated beats base."),
        ("By loss, it wins.", "By loss, it wins."),
        ("local-ulm beats base.", "local-ulm beats base."),
        ("`resume` it", "<code>resume</code> it"),
        ("<b> x", "&lt;b&gt; x"),
        ("", ""),
    ],
)
def test_a_headline_begins_with_a_capital(sentence: str, shown: str) -> None:
    assert str(page.headline(sentence)) == shown


def test_replies_without_a_word_are_counted_on_the_page(tmp_path: Path) -> None:
    path = folders.comparison(folders.write(tmp_path / "run"))
    file = path / "compare" / "comparison.json"
    compared = json.loads(file.read_text())
    compared["judge"]["wordless"] = 7
    file.write_text(json.dumps(compared))
    report.write(path)
    assert re.search(
        r"<dt>replies without a word</dt><dd><span[^>]*/judge/wordless[^>]*>7<",
        (path / report.HTML).read_text(),
    )


def test_what_is_equal_in_all_rounds_is_a_sentence_and_no_chart(tmp_path: Path) -> None:
    stored = gather.collect(folders.write(tmp_path / "run"))
    rows = [{**row, "bytes_down": 10**6, "bytes_up": row["round"] * 10**5} for row in stored["rounds"]]
    flat = [{**row, "bytes_up": 10**6, "gap": 0.25, "learning_rate": 0.004} for row in rows]
    assert page.unchanging({**stored, "rounds": rows[:1]}) == []
    inside = page.main({**stored, "rounds": rows})
    assert "chart-bytes-t" in inside
    assert "The same in every round: bytes down" in inside
    inside = page.main({**stored, "rounds": flat})
    for name in ("bytes", "gap", "learning-rate"):
        assert f"chart-{name}-t" not in inside
    assert "chart-seconds-t" in inside
    alike = [{**row, "bytes_down": row["bytes_up"]} for row in rows]
    assert "down and up" in page.main({**stored, "rounds": alike})


def test_the_audit_of_the_rounds_is_drawn_with_a_sentence_on_how_to_read_it(tmp_path: Path) -> None:
    stored = gather.collect(folders.write(tmp_path / "run"))
    inside = page.main(stored)
    for name in ("gap", "energy-kept", "spread", "cosine"):
        assert f"chart-{name}-t" in inside
    assert "Below 1 they mostly agree" in inside
    assert "lowest client" in inside
    alone = [{**row, "lowest_cosine": None} for row in stored["rounds"]]
    without = page.main({**stored, "rounds": alone})
    assert "chart-cosine-t" in without
    assert "lowest client" not in without


def test_equal_cells_are_not_shaded() -> None:
    assert page.shade(0.0, (0.0, 0.0)) == page.shade(1.0, (1.0, 1.0), flip=True) == "0"
    assert page.shade(0.5, (0.0, 1.0), flip=True) == "0.50"
