"""Line charts and interval tracks as inline SVG: pure functions from numbers to markup.

Every x is a percentage and every y a pixel, so that a chart fits any width and its text keeps its size.
A series has a marker, a dash and a colour, and its name at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

Form = Callable[[float], str]
Point = tuple[float, float]
Estimate = Mapping[str, float | None]
STYLES = 6
"""Number of colours, dashes and markers; the stylesheet has as many classes s0, s1, ..."""
_DASHES = ("", "7 4", "2 3", "10 3 2 3", "5 5", "1 4")
_TOP_PX, _BOTTOM_PX = 12, 26  # around the plot: half a label above, the axis below
_LABEL_PX = 16  # from one series' name to the next
_MIN_SPAN = 1e-300  # a fifth of it is still a number above 0
_MARKER_PX = 26  # right of the plot, for the marker before a name
_MAX_MARKERS = 26
_MARKERS = (
    '<circle r="4"/>',
    '<rect x="-3.6" y="-3.6" width="7.2" height="7.2"/>',
    '<path d="M0-4.8 4.6 3.6H-4.6Z"/>',
    '<path d="M0-5 5 0 0 5-5 0Z"/>',
    '<path d="M0 4.8 4.6-3.6H-4.6Z"/>',
    '<path d="M-4-4 4 4M4-4-4 4" class="open"/>',
)


@dataclass(frozen=True, slots=True)
class Series:
    """A named line of (x, y) points, ordered by x."""

    name: str
    points: Sequence[Point]


def line_chart(
    series: Sequence[Series], *, ident: str, title: str, form: Form, zero: bool = False, height: int = 240
) -> str:
    """An SVG of lines by round; an empty string if there is no point.

    Args:
        ident: unique on the page.
        title: what the chart shows, in words, for screen readers.
        form: writes a value of y.
        zero: whether y begins at 0.
        height: in pixels; raised if the names of the series need more.
    """
    series = [each for each in series if each.points]
    if not series:
        return ""
    height = max(height, _TOP_PX + _BOTTOM_PX + _LABEL_PX * len(series))
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points] + [0.0] * zero
    y_ticks = ticks(min(ys), max(ys), 5)
    scale = _Scale(min(xs), max(xs), min(*ys, *y_ticks), max(*ys, *y_ticks), height)
    names = len(series) > 1
    drawn = [
        *(_gridline(tick, scale, form) for tick in y_ticks),
        *(_x_label(tick, scale) for tick in ticks(min(xs), max(xs), 6, whole=True)),
        *(_line(each, style, scale, form) for style, each in reversed(list(enumerate(series)))),
        *(_end_labels(series, scale) if names else ()),
    ]
    gutter = max(len(form(tick)) for tick in y_ticks)
    room = 0.6 * max(len(_short(each.name)) for each in series) if names else 0.0
    margins = (
        f"--room:calc({_MARKER_PX if names else 8}px + {room:.1f}em);--gutter:{0.6 * gutter + 0.9:.1f}em"
    )
    return (
        f'<svg class="chart" role="img" aria-labelledby="{escape(ident)}-t" height="{height}"'
        f' style="{margins}"><title id="{escape(ident)}-t">{escape(title)}</title>{"".join(drawn)}</svg>'
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps data to the drawing: x to percent, y to pixels."""

    left: float
    right: float
    low: float
    high: float
    height: int

    def x(self, value: float) -> float:
        return percent(value, self.left, self.right)

    def y(self, value: float) -> float:
        room = self.height - _TOP_PX - _BOTTOM_PX
        return _TOP_PX + room * (1 - percent(value, self.low, self.high) / 100)


def percent(value: float, low: float, high: float) -> float:
    """Position of `value` between `low` (0) and `high` (100), clipped to that range; 50 if the two are equal.

    >>> percent(3, 2, 4), percent(9, 2, 4), percent(1, 1, 1)
    (50.0, 100.0, 50.0)
    """
    return 50.0 if high <= low else min(100.0, max(0.0, 100 * (value - low) / (high - low)))


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """About `most` round numbers that span `low` to `high`; within that range if `whole`.

    >>> ticks(0.13, 0.87, 5), ticks(0, 20, 6, whole=True), ticks(3, 3, 5)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0, 5, 10, 15, 20], [3])
    """
    if high - low < _MIN_SPAN:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
    step = max(1, round(step)) if whole else step
    first, last = (
        (math.ceil(low / step), math.floor(high / step))
        if whole
        else (math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9))
    )
    return [_without_rounding_error(step * k, step) for k in range(first, last + 1)]


def _without_rounding_error(value: float, step: float) -> float:
    """`value` rounded to the digits of `step`: 0.6000000000000001 is 0.6."""
    return value if isinstance(value, int) else round(value, max(0, 1 - math.floor(math.log10(step))))


def spread(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the targets, in the same order, at least `gap` apart and inside [low, high].

    >>> spread([10, 11, 50], 16, 0, 60)
    [10, 26, 50]
    >>> spread([58, 59], 16, 0, 60)
    [44, 60]
    """
    order = sorted(range(len(targets)), key=lambda k: targets[k])
    placed = dict.fromkeys(order, 0.0)
    edge = low
    for k in order:
        placed[k] = edge = max(targets[k], edge)
        edge += gap
    edge = high
    for k in reversed(order):
        placed[k] = min(placed[k], edge)
        edge = placed[k] - gap
    return [placed[k] for k in range(len(targets))]


def _gridline(tick: float, scale: _Scale, form: Form) -> str:
    y = scale.y(tick)
    return (
        f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="-8" y="{y:.1f}" dy="4" text-anchor="end">{escape(form(tick))}</text>'
    )


def _x_label(tick: float, scale: _Scale) -> str:
    return (
        f'<text class="tick" x="{scale.x(tick):.2f}%" y="{scale.height - 6}" text-anchor="middle">'
        f"{tick:g}</text>"
    )


def _line(series: Series, style: int, scale: _Scale, form: Form) -> str:
    at = [(scale.x(x), scale.y(y)) for x, y in series.points]
    path = " ".join(f"{10 * x:.1f},{y:.1f}" for x, y in at)
    # the only part in units of a viewBox, since a polyline takes no percentages
    line = (
        f'<svg viewBox="0 0 1000 {scale.height}" width="100%" height="{scale.height}"'
        f' preserveAspectRatio="none"><polyline points="{path}" stroke-dasharray="{_dash(style)}"'
        ' vector-effect="non-scaling-stroke"/></svg>'
    )
    every = math.ceil(len(at) / _MAX_MARKERS)
    marks = [
        _mark(style, f"{x:.2f}%", y, f"{series.name}, round {point[0]:g}: {form(point[1])}")
        for k, ((x, y), point) in enumerate(zip(at, series.points, strict=True))
        if (len(at) - 1 - k) % every == 0
    ]
    return f'<g class="s{style % STYLES}">{line}{"".join(marks)}</g>'


def _dash(style: int) -> str:
    """The dash of a style; a colour that is used again has another dash."""
    return _DASHES[(style + style // STYLES) % len(_DASHES)]


def _mark(style: int, x: str, y: float, title: str = "", dx: float = 0) -> str:
    marker = _MARKERS[style % len(_MARKERS)]
    shape = f"<title>{escape(title)}</title>{marker}" if title else marker
    return f'<svg class="mark" x="{x}" y="{y:.1f}"><g transform="translate({dx:g} 0)">{shape}</g></svg>'


def _end_labels(series: Sequence[Series], scale: _Scale) -> list[str]:
    targets = [scale.y(each.points[-1][1]) for each in series]
    ys = spread(targets, _LABEL_PX, _TOP_PX, scale.height - _BOTTOM_PX)
    return [
        f'<g class="s{style % STYLES}">{_mark(style, "100%", y, dx=14)}'
        f'<text class="name" x="100%" dx="24" y="{y:.1f}" dy="4">{escape(_short(each.name))}</text></g>'
        for style, (each, y) in enumerate(zip(series, ys, strict=True))
    ]


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def track(estimate: Estimate, scale: tuple[float, float], *, kind: str, reference: float | None) -> str:
    """A dot with its interval on a common scale, 0 to 100% of the width; hidden from screen readers.

    Args:
        estimate: `value`, `low` and `high`; an end that is None goes to the end of the scale.
        scale: the values at 0 and at 100%.
        kind: the kind of the arm, a class of the stylesheet, which decides the marker.
        reference: value of the arm that the others are compared with, drawn as a thin line; or None.
    """
    value, low, high = (estimate.get(key) for key in ("value", "low", "high"))
    at = percent(value or 0.0, *scale)
    whisker = "" if low is None and high is None else _whisker(low, high, scale)
    line = "" if reference is None else _vertical(percent(reference, *scale), -2, 26, "reference")
    return (
        f'<svg class="track {escape(kind)}" height="24" aria-hidden="true" focusable="false">{line}{whisker}'
        f'<svg class="mark" x="{at:.2f}%" y="12">{_MARKERS[_KIND_MARKERS.get(kind, 0)]}</svg></svg>'
    )


def _whisker(low: float | None, high: float | None, scale: tuple[float, float]) -> str:
    left = 0.0 if low is None else percent(low, *scale)
    right = 100.0 if high is None else percent(high, *scale)
    caps = _vertical(left, 8, 16) * (low is not None) + _vertical(right, 8, 16) * (high is not None)
    return f'<line x1="{left:.2f}%" x2="{right:.2f}%" y1="12" y2="12"/>{caps}'


def _vertical(x: float, top: int, bottom: int, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<line{named} x1="{x:.2f}%" x2="{x:.2f}%" y1="{top}" y2="{bottom}"/>'


_KIND_MARKERS = {"base": 0, "local": 1, "centralised": 3, "federated": 0, "variant": 2}


def arm_mark(kind: str) -> str:
    """The marker of an arm's kind, to put before the arm's name."""
    marker = _MARKERS[_KIND_MARKERS.get(kind, 0)]
    return (
        f'<svg class="track {escape(kind)} key" width="12" height="12" aria-hidden="true" focusable="false">'
        f'<svg class="mark" x="6" y="6">{marker}</svg></svg>'
    )
