"""Render a collected report as one HTML page. The only module that imports Jinja2.

Each number on the page carries its place in report.json, a JSON pointer, as `data-path`, and its exact
value as `data-value`, so the page and report.json cannot differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from shepherd.ui.report import chart, number_formats
from shepherd.ui.report.chart import Series
from shepherd.visible import shown, shown_line

Report = Mapping[str, Any]
Path = Sequence[str | int]
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
LIVE_POLICY = POLICY + "; connect-src 'self'; script-src 'nonce-{nonce}'"
NONE = "–"
MAX_SHORT_CHARS = 14
"""Names up to this length fit any column unbroken."""


@dataclass(frozen=True, slots=True)
class Measure:
    """How a score is named and formatted."""

    name: str
    label: str
    unit: str
    form: str
    signed: str
    lower_is_better: bool = False


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("right", "Right answers", "share that a checker accepts", "share", "signed_points"),
        Measure("exact", "Exact match", "share equal to the reference", "share", "signed_points"),
        Measure("f1", "Token F1", "overlap with the reference, 0 to 100%", "share", "signed_points"),
        Measure("rouge_l", "ROUGE-L", "overlap with the reference, 0 to 100%", "share", "signed_points"),
        Measure("loss", "Held-out loss", "nats a response token", "loss", "signed_loss", True),
    )
}


def measures_of(report: Report) -> dict[str, Measure]:
    """The usual measures and those that the report describes, by name."""
    others = {
        name: Measure(
            name, given["label"] or name, "from 0 to 100%", "share", "signed_points", given["lower_is_better"]
        )
        for name, given in report.get("other_measures", {}).items()
    }
    given = {**MEASURES, **others}
    labels = report.get("labels", {})
    return {name: _labelled(measure, labels.get(name, "")) for name, measure in given.items()}


def _labelled(measure: Measure, label: str) -> Measure:
    """The measure, under the label of a comparison whose loss is not per token."""
    if measure.name != "loss" or not label.endswith(" per character"):
        return measure
    return replace(measure, label=label[:1].upper() + label[1:], unit="nats a character of the response")


def html(report: Report) -> str:
    """The whole page, self-contained: it needs no other file and no network."""
    return _page(report["title"], main(report), POLICY)


def live(title: str, inside: str, tag: str, nonce: str) -> str:
    """The page with a script that keeps the content of <main> up to date.

    Args:
        title: of the page.
        inside: the content of <main>, from `main` or `trouble`.
        tag: the ETag of `inside`, with which the script asks for changes.
        nonce: new for each response; allows that one script.
    """
    return _page(title, inside, LIVE_POLICY.format(nonce=nonce), tag, nonce)


def main(report: Report) -> str:
    """The content of the page's <main>."""
    return (
        _environment()
        .get_template("main.html")
        .render(r={"runs": [], **report}, **_template_variables(report))
    )


def audit(found: Report) -> str:
    """The page of an audit, from the value of its audit.json."""
    inside = (
        _environment()
        .get_template("audit.html")
        .render(
            r=found, num=partial(number, found), at=partial(at, found), breakable=breakable, headline=headline
        )
    )
    return _page(f"{found['title']}, audit", inside, POLICY)


def drill(found: Report) -> str:
    """The page of a drill, from the value of its drill.json."""
    inside = (
        _environment()
        .get_template("drill.html")
        .render(
            r=found, num=partial(number, found), at=partial(at, found), breakable=breakable, headline=headline
        )
    )
    return _page(f"{found['title']}, drill", inside, POLICY)


def trouble(sentence: str) -> str:
    """The content of <main> while the folder cannot be read."""
    return _environment().get_template("trouble.html").render(sentence=shown(sentence))


def _page(title: str, inside: str, policy: str, tag: str = "", nonce: str = "") -> str:
    template = _environment().get_template("page.html")
    return template.render(
        title=shown_line(title), inside=Markup(inside), policy=policy, tag=tag, nonce=nonce
    )


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("shepherd.ui.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template_variables(report: Report) -> dict[str, Any]:
    return {
        "num": partial(number, report),
        "at": partial(at, report),
        "measures": measures_of(report),
        "breakable": breakable,
        "with_code": with_code,
        "headline": with_code if report.get("runs") else headline,
        "shade": shade,
        "tracks": partial(tracks, report),
        "spans": spans(report),
        "charts": {name: Markup(svg) for name, svg in _charts(report).items() if svg},
        "settings": settings_groups(report),
        "columns_of": columns_of,
        "judged_categories": columns_of(
            [row.get("category", {}) for row in (report["judge"] or {}).get("rows", ())]
        ),
        "judged_form": judged_form,
        "judged_label": judged_label,
        "mark": _kind_mark,
        "unchanging": unchanging(report),
        "against": _against(report),
    }


def at(report: Report, path: Path) -> Any:
    """The value at a path of keys and positions; None if there is none."""
    value: Any = report
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def pointer(path: Path) -> str:
    """The JSON pointer (RFC 6901) of a path.

    >>> pointer(["arms", 0, "category", "a/b"])
    '/arms/0/category/a~1b'
    """
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in path)


def number(report: Report, form: str, *path: str | int) -> Markup:
    """The number at `path` of the report, formatted by `number_formats.FORMS[form]`."""
    value = at(report, path)
    if not isinstance(value, int | float):
        return Markup('<span class="none">{}</span>').format(NONE)
    return Markup('<span class="n" data-path="{}" data-value="{}" data-form="{}">{}</span>').format(
        pointer(path), json.dumps(value), form, number_formats.FORMS[form](value)
    )


def breakable(name: str) -> Markup:
    """A name with line breaks allowed after punctuation; a short one is never broken."""
    if len(name) <= MAX_SHORT_CHARS:
        return Markup('<bdi class="short">{}</bdi>').format(name)
    words = re.split(r"(?<=[_/.:=-])", name)
    parts = [word[k : k + MAX_SHORT_CHARS] for word in words for k in range(0, len(word), MAX_SHORT_CHARS)]
    return Markup('<bdi class="long">{}</bdi>').format(Markup("<wbr>").join(parts))


def headline(sentence: str) -> Markup:
    """A sentence as `with_code`, with a capital at its beginning where that is a plain word."""
    return with_code(re.sub(r"^[a-z](?=[a-z]* )", lambda first: first[0].upper(), sentence))


def with_code(sentence: str) -> Markup:
    """A sentence as HTML, with the parts in backticks as code."""
    parts = sentence.split("`")
    if len(parts) % 2 == 0:  # a backtick without a partner
        return Markup("{}").format(sentence)
    forms = (Markup("{}"), Markup("<code>{}</code>"))
    return Markup("").join(forms[place % 2].format(part) for place, part in enumerate(parts))


def spans(report: Report) -> dict[str, Any]:
    """The smallest and the largest number of each heat map, for its shades."""
    cells = {
        name: [cell["value"] for arm in report["arms"] for cell in arm["category"].get(name, {}).values()]
        for name in measures_of(report)
    }
    return {
        "category": {name: _span(values) for name, values in cells.items() if values},
        "holdings": (0, _span([n for mix in report["holdings"].values() for n in mix.values()])[1]),
        "client_loss": _span([x for row in report["client_loss"]["rows"].values() for x in row.values()]),
    }


def _span(values: Sequence[float | None]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else (0.0, 0.0)


def shade(value: float | None, span: tuple[float, float], *, flip: bool = False) -> str:
    """How dark a cell of a heat map is, from 0 to 1, as text for a style; 0 if all of them are equal."""
    if value is None or span[0] == span[1]:
        return "0"
    share = chart.percent(value, *span) / 100
    return f"{1 - share if flip else share:.2f}"


def tracks(report: Report, measure: str) -> dict[str, Any]:
    """The interval plot of a measure: tracks by the arm's position, and ticks as (percent, text)."""
    arms = [(k, arm["kind"], arm["measures"].get(measure)) for k, arm in enumerate(report["arms"])]
    known = [(k, kind, found) for k, kind, found in arms if found is not None]
    values = [x for _, _, found in known for x in found.values() if x is not None]
    marks = chart.ticks(min(values), max(values), 5)
    scale = marks[0], marks[-1]
    against = [found["value"] for k, _, found in known if report["arms"][k]["name"] == _against(report)]
    reference = against[0] if against else None
    drawn = {k: Markup(chart.track(found, scale, kind=kind, reference=reference)) for k, kind, found in known}
    form = number_formats.FORMS[{"share": "whole_share", "loss": "rate"}[measures_of(report)[measure].form]]
    return {"rows": drawn, "ticks": [(f"{chart.percent(x, *scale):.2f}", form(x)) for x in marks]}


def _against(report: Report) -> str:
    return str((report["comparison"] or {}).get("against", "federated"))


def _kind_mark(kind: str) -> Markup:
    return Markup(chart.arm_mark(kind))


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of a judge's rows in order of appearance, without the table `category`."""
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key != "category"]


_JUDGED_FORMS = {
    "win_rate": "share",
    "length_controlled": "share",
    "relative": "ratio",
    "sum_first": "sum",
    "sum_second": "sum",
    "strength": "signed_loss",
    "p": "p",
    "p_holm": "p",
}
_JUDGED_LABELS = {
    "length_controlled": "win rate at equal length",
    "sum_first": "sum of the first",
    "sum_second": "sum of the second",
    "relative": "second / first",
    "strength": "strength, log odds",
    "p_holm": "p, Holm",
    "questions_needed": "questions needed to settle it",
}


def judged_form(column: str) -> str:
    """The format of the numbers in a column of the judge's tables."""
    return _JUDGED_FORMS.get(column, "count")


def judged_label(column: str) -> str:
    """The heading of a column of the judge's tables."""
    return _JUDGED_LABELS.get(column, column.replace("_", " "))


def settings_groups(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """The run file as (table, [(key, value)]), in its order; keys outside any table come first."""
    settings = report["settings"]
    top = [(key, _shown(value)) for key, value in settings.items() if not _is_table(value)]
    tables = [(name, list(_keys(value))) for name, value in settings.items() if _is_table(value)]
    return [("run", top), *((name, keys) for name, keys in tables if keys)]


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _keys(table: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{inside}{key}.")
        else:
            yield inside + key, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return '""' if value == "" else str(value)


def _charts(report: Report) -> dict[str, str]:
    curves, rows = report["curves"], report["rounds"]
    heldout = [Series(c["name"], _points(c["points"], "heldout")) for c in curves]
    train = [Series(c["name"], _points(c["points"], "train")) for c in curves]
    down, up = _points(rows, "bytes_down"), _points(rows, "bytes_up")
    # two equal lines would hide each other
    traffic = [Series("down and up", down)] if down == up else [Series("down", down), Series("up", up)]
    flat = {key for _, _, key in unchanging(report)}
    if {"bytes_down", "bytes_up"} <= flat:
        traffic = []
    small = partial(_chart, height=170, zero=True)
    return {
        "heldout": _chart("heldout", "Held-out loss by round", heldout, number_formats.rate, height=300),
        "train": _chart("train", "Training loss by round", train, number_formats.rate, height=300),
        "bytes": small("bytes", "Bytes by round", traffic, number_formats.FORMS["bytes"]),
        **{
            each.name: small(
                each.name.replace("_", "-"),
                each.title,
                [Series(label, _changing(rows, key, flat)) for label, key in each.series],
                each.form,
            )
            for each in _FIGURES
        },
    }


class _Figure(NamedTuple):
    """A small chart of figures in the rows: its name in the template, and for each line a label and a key."""

    name: str
    title: str
    series: tuple[tuple[str, str], ...]
    form: chart.Form = number_formats.rate


_FIGURES = (
    _Figure("gap", "Aggregation gap by round", (("gap", "gap"),)),
    _Figure("energy_kept", "Energy kept by round", (("energy kept", "energy_kept"),)),
    _Figure("spread", "Spread of the clients' updates by round", (("spread", "spread"),)),
    _Figure(
        "cosine",
        "Cosine of the clients' updates with the result by round",
        (("mean", "cosine"), ("lowest client", "lowest_cosine")),
    ),
    _Figure(
        "clients",
        "Held-out loss by client and round",
        (("worst client", "worst_client"), ("spread over clients", "client_spread")),
    ),
    _Figure(
        "personal",
        "Held-out loss of the clients' own models by round",
        (("mean of the clients", "personal_loss"), ("worst client", "worst_personal")),
    ),
    _Figure("learning_rate", "Learning rate by round", (("learning rate", "learning_rate"),)),
    _Figure(
        "epsilon",
        "Epsilon spent by round",
        (("of each client", "epsilon"), ("of each example", "example_epsilon")),
    ),
    _Figure("seconds", "Seconds by round", (("seconds", "seconds"),), number_formats.duration),
)


_COSTS = (
    ("bytes down", "bytes", "bytes_down"),
    ("bytes up", "bytes", "bytes_up"),
    ("gap", "rate", "gap"),
    ("energy kept", "rate", "energy_kept"),
    ("spread", "rate", "spread"),
    ("mean cosine", "rate", "cosine"),
    ("lowest cosine", "rate", "lowest_cosine"),
    ("learning rate", "rate", "learning_rate"),
)


def unchanging(report: Report) -> list[tuple[str, str, str]]:
    """Figures that are equal in all rounds, which need no chart: label, form and key in the rows."""
    found = []
    for label, form, key in _COSTS:
        values = [y for _, y in _points(report["rounds"], key)]
        if len(values) > 1 and len(set(values)) == 1 and report["rounds"][-1].get(key) is not None:
            found.append((label, form, key))
    return found


def _changing(rows: Sequence[Mapping[str, Any]], key: str, flat: Collection[str]) -> list[chart.Point]:
    return [] if key in flat else _points(rows, key)


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[chart.Point]:
    return [(row["round"], row[key]) for row in rows if row.get(key) is not None]


def _chart(
    name: str, title: str, series: Sequence[Series], form: chart.Form, *, height: int, zero: bool = False
) -> str:
    words = f"{title}: {'; '.join(_described(each, form) for each in series if each.points)}"
    return chart.line_chart(series, ident=f"chart-{name}", title=words, form=form, zero=zero, height=height)


def _described(series: Series, form: chart.Form) -> str:
    (first, before), (last, after) = series.points[0], series.points[-1]
    if first == last:
        return f"{series.name} {form(after)} at round {last:g}"
    return f"{series.name} from {form(before)} at round {first:g} to {form(after)} at round {last:g}"
