"""The page in Chromium: no complaint, no network, no overflow, legible in the dark and on paper."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from shepherd.ui import report
from shepherd.visible import shown
from tests import browser
from tests.ui.report import folders

RTL = ("שלום_עולם", "عميل-١")
# every element that shows text of its own, with its colour and what lies behind it, mixed down to opaque
CONTRASTS = """
() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (layers) => {
    paint.clearRect(0, 0, 1, 1);
    for (const colour of layers) { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); }
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (c) => c.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || ["STYLE", "SCRIPT", "TITLE"].includes(e.localName.toUpperCase())) continue;
    if (e.localName === "title" || !e.getClientRects().length) continue;
    const layers = [];
    for (let up = e; up; up = up.parentElement) layers.unshift(getComputedStyle(up).backgroundColor);
    const style = getComputedStyle(e);
    const text = e instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(rgb([...layers, text])), light(rgb(layers))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.localName + "." + (e.getAttribute("class") ?? ""), text]);
  }
  return found;
}
"""
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with all there can be: a comparison, three seeds, a judge, awkward names."""
    path = tmp_path_factory.mktemp("whole") / "run"
    clients = [*(f"client-{k}" for k in range(18)), "c" * 60, *RTL]
    categories = [*folders.CATEGORIES, folders.LONG, *RTL]
    folders.write(path, clients=clients, categories=categories)
    names = ("base", "federated", "local-client-0")
    answers = dict(zip(names, (folders.HOSTILE, "word " * 900, "w" * 4000), strict=True))
    sample = {
        "category": RTL[0],
        "instruction": folders.HOSTILE,
        "context": "line\n" * 80,
        "expected": "مرحبا بالعالم",
        "answers": {name: {"text": text, "right": None} for name, text in answers.items()},
    }
    variants = [f"variant-{k}" for k in range(5)]
    folders.comparison(path, seeds=3, variants=variants, categories=categories, samples=[sample])
    return report.write(path)


def test_the_page_complains_of_nothing_and_fetches_nothing(chromium: Any, whole: Path) -> None:
    with browser.visit(chromium, whole.as_uri()) as seen:
        assert seen.errors == []
        assert seen.requests == [whole.as_uri()]
        assert seen("document.fonts.size") == 0
        assert seen("document.scripts.length") == 0


def test_the_numbers_in_the_tables_are_those_of_the_json(chromium: Any, whole: Path) -> None:
    stored = json.loads((whole.parent / report.JSON).read_text())
    with browser.visit(chromium, whole.as_uri()) as seen:
        cells = seen("[...document.querySelectorAll('#arms-table tbody td')].map((e) => e.innerText)")
        shown = seen(
            "[...document.querySelectorAll('[data-path]')].map((e) => [e.dataset.path, e.dataset.value])"
        )
    assert len(shown) > 1000
    for path, value in shown:
        assert json.loads(value) == _at(stored, path), path
    wanted = []
    for arm in stored["arms"]:
        for measure in stored["measures"]:
            found = arm["measures"][measure]
            form = "{:.3f}" if measure == "loss" else "{:.1%}"
            value, low, high = (form.format(found[key]) for key in ("value", "low", "high"))
            wanted.append(f"{value} [{low}, {high}]")
        wanted.append(f"{arm['worst_client']['loss']:.3f} {arm['worst_client']['name']}")
    assert [" ".join(cell.replace("−", "-").split()) for cell in cells] == wanted


def _at(value: Any, pointer: str) -> Any:
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def test_what_a_model_said_stays_text(chromium: Any, whole: Path) -> None:
    with browser.visit(chromium, whole.as_uri()) as seen:
        said = seen("document.querySelector('.answer:not(.expected) .text').textContent")
        assert seen("document.title") == "run: Shepherd report"
        assert (
            seen("document.querySelectorAll('main script, main img, main [onerror], main style').length") == 0
        )
    assert said.startswith(shown(folders.HOSTILE))
    assert "{{7*7}}" in said


@pytest.mark.parametrize(("width", "paper"), [(360, False), (768, False), (1280, False), (690, True)])
def test_the_page_is_no_wider_than_its_window(chromium: Any, whole: Path, width: int, paper: bool) -> None:
    with browser.visit(chromium, whole.as_uri(), width=width, paper=paper) as seen:
        if not paper:
            assert seen(WIDER) <= 0
        seen("document.querySelectorAll('details').forEach((e) => e.open = true)")
        assert seen(WIDER) <= 0 or paper
        boxes = seen(
            "[...document.querySelectorAll('.box, .text')].map((e) => [e.scrollHeight, e.clientHeight])"
        )
        if paper:  # nothing can be scrolled there
            assert all(inside <= outside + 1 for inside, outside in boxes)


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_stands_out(chromium: Any, whole: Path, dark: bool) -> None:
    with browser.visit(chromium, whole.as_uri(), dark=dark) as seen:
        paper = seen("getComputedStyle(document.body).backgroundColor")
        found = seen(CONTRASTS)
    assert (int(paper.removeprefix("rgb(").split(",")[0]) < 128) == dark
    assert len(found) > 1000
    assert [entry for entry in found if entry[0] < 4.5] == []


def test_print_is_light_whole_and_without_what_only_a_screen_needs(chromium: Any, whole: Path) -> None:
    with browser.visit(chromium, whole.as_uri(), width=690, dark=True, paper=True) as seen:
        assert seen("getComputedStyle(document.querySelector('nav')).display") == "none"
        low = min(entry[0] for entry in seen(CONTRASTS))
        assert low >= 4.5
        assert seen("document.querySelector('#every-round table').getBoundingClientRect().height") > 100


def test_the_narrow_run_of_a_hundred_clients_can_be_used(chromium: Any, tmp_path: Path) -> None:
    page = report.write(folders.write(tmp_path / "run", clients=100, rounds=40))
    with browser.visit(chromium, page.as_uri(), width=360) as seen:
        assert seen(WIDER) <= 0
        high, box = seen(
            "(() => { const box = document.getElementById('holdings-box');"
            " box.scrollTop = 900; box.scrollLeft = 300; const top = box.getBoundingClientRect();"
            " const head = box.querySelector('thead th').getBoundingClientRect();"
            " return [top.height, [head.top - top.top, head.left - top.left]]; })()"
        )
    assert high < 900  # the box scrolls, and its head and first column stay where they are
    assert max(map(abs, box)) < 2


def test_the_first_screen_has_the_answer_and_its_plot_side_by_side(chromium: Any, whole: Path) -> None:
    sides = "[...document.querySelector('.split').children].map((e) => e.getBoundingClientRect().left)"
    with browser.visit(chromium, whole.as_uri(), width=1440) as seen:
        left, right = seen(sides)
        assert right > left + 400
        assert seen("document.querySelector('.split .forest').getBoundingClientRect().top") < 900
    with browser.visit(chromium, whole.as_uri(), width=390) as seen:
        left, right = seen(sides)
        assert left == right


def test_on_a_phone_the_arms_are_lines_and_not_a_table_that_is_cut(chromium: Any, whole: Path) -> None:
    inside = "document.getElementById('arms-table').scrollWidth"
    label = "getComputedStyle(document.querySelector('#arms-table tbody td'), '::before').content"
    with browser.visit(chromium, whole.as_uri(), width=360) as seen:
        assert seen(inside) <= seen("document.getElementById('arms-box').clientWidth")
        assert seen(label) == '"Right answers"'


def test_a_long_page_is_folded(chromium: Any, whole: Path) -> None:
    height = "document.documentElement.scrollHeight"
    with browser.visit(chromium, whole.as_uri(), width=390) as seen:
        folded = seen(height)
        seen("document.querySelectorAll('details').forEach((e) => e.open = true)")
        assert folded < 0.7 * seen(height)


def test_the_keyboard_reaches_each_box(chromium: Any, whole: Path) -> None:
    with browser.visit(chromium, whole.as_uri()) as seen:
        unnamed = "[...document.querySelectorAll('.box')].filter((e) => e.tabIndex !== 0 ||"
        assert (
            seen(f"{unnamed} !document.getElementById(e.getAttribute('aria-labelledby')).textContent)") == []
        )


def test_the_served_page_follows_the_run_and_keeps_the_place(chromium: Any, tmp_path: Path) -> None:
    path = folders.write(tmp_path / "run", done=4)
    with report.serving(path) as url, browser.visit(chromium, url) as seen:
        seen("document.getElementById('every-round').open = true")
        seen("document.getElementById('every-setting').open = true")  # or the page ends before its top
        seen("document.getElementById('settings').scrollIntoView()")
        before = seen("document.getElementById('settings').getBoundingClientRect().top")
        folders.comparison(path)
        seen.wait("document.getElementById('arms-table').rows.length > 5")
        after = seen("document.getElementById('settings').getBoundingClientRect().top")
        assert abs(after - before) < 3
        assert seen("document.getElementById('every-round').open")
        assert seen.errors == []
        assert {urlsplit(address).path for address in seen.requests} == {"/", "/main"}
        assert "token" not in seen("location.href")
        assert seen("document.cookie") == ""  # no script reads it


def test_the_served_page_says_when_nobody_serves_it(chromium: Any, tmp_path: Path) -> None:
    with ExitStack() as served, ExitStack() as shown:
        url = served.enter_context(report.serving(folders.write(tmp_path / "run")))
        seen = shown.enter_context(browser.visit(chromium, url))
        served.close()
        seen.wait("document.getElementById('live').innerText.startsWith('Not live')")


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_chromium_the_tests_are_skipped_but_not_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(outcome, match="no chromium"), browser.chromium():
        pass
