"""Plots of a run as matplotlib figures, from the numbers of its report.

    from shepherd import plots

    plots.loss("runs/fedit").savefig("loss.png")

Each takes a run folder, also of a run under way; arms that `shepherd compare` has trained in it are drawn
too. In a notebook, `%matplotlib inline` shows what a cell returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shepherd import drawing
from shepherd.errors import DataError
from shepherd.run.score_file import FEDERATED
from shepherd.ui.report.figures import FIGURES, points
from shepherd.ui.report.gather import OWN_ARM, OWN_MODEL, collect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bytes_moved", "clients", "fairness", "gap", "loss", "losses_by_client"]

_NATS = "nats a token"
_SPREAD = "spread over clients"
_COLUMNS = {OWN_ARM: "local", OWN_MODEL: "own model"}
"""How columns of the report's table by client are called beside arms."""


def loss(folder: str | Path) -> Figure:
    """Draw held-out and training loss over rounds, in nats a token, of the run and its compared arms.

    Raises:
        FolderError: there is no run in the folder, or a file of it is damaged.
        DataError: no round has a loss.
    """
    report = collect(folder)
    curves = report["curves"]
    held, trained = (
        {curve["name"]: points(curve["points"], key) for curve in curves} for key in ("heldout", "train")
    )
    return _lines(report, "Loss by round", [(f"held-out, {_NATS}", held), (f"training, {_NATS}", trained)])


def gap(folder: str | Path) -> Figure:
    """Draw the aggregation gap over rounds: how far averaging A and B is from averaging BA (law 10).

    Below it is the share of the exact mean that the result keeps, and how far the clients' updates are apart.

    Raises:
        FolderError: there is no run in the folder, or a file of it is damaged.
        DataError: no round has such a figure, as where noise hides the clients.
    """
    report = collect(folder)
    return _lines(report, "Aggregation gap by round", _panels(report, ("gap", "energy_kept", "spread")))


def fairness(folder: str | Path) -> Figure:
    """Draw the worst client's held-out loss and the spread over the clients, in nats a token, over rounds.

    Where clients keep a part of the model, that of their own models is drawn below.

    Raises:
        FolderError: there is no run in the folder, or a file of it is damaged.
        DataError: no round has such a figure, as where noise hides the clients.
    """
    report = collect(folder)
    title = "Held-out loss by client"
    (_, common), (_, own) = _panels(report, ("clients", "personal"))
    if not any([*common.values(), *own.values()]):
        raise DataError(_nothing(report, title, by_client=True))
    if any(common.values()):
        common = {"mean": points(report["rounds"], "heldout_loss"), **common}
    panels = [
        (label, series)
        for model, lines in (("", common), (", own models", own))
        for label, series in (
            (f"held-out loss{model}, {_NATS}", {name: at for name, at in lines.items() if name != _SPREAD}),
            (f"spread{model}, {_NATS}", {_SPREAD: lines[_SPREAD]}),
        )
    ]
    return _lines(report, title, panels)


def bytes_moved(folder: str | Path) -> Figure:
    """Draw the megabytes that went to the cohort and came back in each round.

    Raises:
        FolderError: there is no run in the folder, or a file of it is damaged.
        DataError: no round has such a figure, as where noise hides the clients.
    """
    report = collect(folder)
    moved = {
        name: [(x, y / 1e6) for x, y in points(report["rounds"], key)]
        for name, key in (("down", "bytes_down"), ("up", "bytes_up"))
    }
    return _lines(report, "Bytes by round", [("MB", moved)])


def clients(folder: str | Path) -> Figure:
    """Draw how many examples of each category each client holds, as a heat map.

    Raises:
        FolderError: there is no run in the folder, or a file of it is damaged.
        DataError: the folder does not say, as where noise hides the clients.
    """
    report = collect(folder)
    held = report["holdings"]
    if not held:
        raise DataError(_nothing(report, "Examples by client and category", by_client=True))
    names = sorted({name for mix in held.values() for name in mix})
    counts = np.array([[mix.get(name) or 0 for name in names] for mix in held.values()], dtype=np.int64)
    title = f"{counts.sum():,} examples, {len(held)} clients"
    return drawing.heat_map(list(held), names, counts, title=title, label="examples")


def losses_by_client(folder: str | Path) -> Figure:
    """Draw the held-out loss on data like each client's under every arm, in nats a token.

    A run that is not compared has its base and its last round; where clients keep a part of the model, each
    has a dot for its own. More clients than can be named are sorted, those with the highest loss on top.

    Raises:
        FolderError: there is no run in the folder, or a file of it is damaged.
        DataError: nothing is scored by client, as where noise hides the clients.
    """
    report = collect(folder)
    found = report["client_loss"]
    if not found["columns"]:
        raise DataError(_nothing(report, "Held-out loss by client", by_client=True))
    arms = {_COLUMNS.get(arm, arm): [row[arm] for row in found["rows"].values()] for arm in found["columns"]}
    by = next((name for name in (_COLUMNS[OWN_MODEL], FEDERATED) if name in arms), "")
    return drawing.dots(
        list(found["rows"]), arms, title="Held-out loss by client", label=_NATS, what="clients", by=by
    )


def _panels(report: dict[str, Any], names: Sequence[str]) -> list[drawing.Panel]:
    """A panel for each figure of the page, with the lines that have a point."""
    return [
        (
            each.title.removesuffix(" by round"),
            {label: points(report["rounds"], key) for label, key in each.series},
        )
        for each in FIGURES
        if each.name in names
    ]


def _lines(report: dict[str, Any], title: str, panels: Sequence[drawing.Panel]) -> Figure:
    drawn = [(label, {name: line for name, line in series.items() if line}) for label, series in panels]
    if not any(series for _, series in drawn):
        raise DataError(_nothing(report, title))
    return drawing.lines([panel for panel in drawn if panel[1]], f"{report['title']}: {title}")


def _nothing(report: dict[str, Any], what: str, *, by_client: bool = False) -> str:
    """Why a figure cannot be drawn.

    Args:
        by_client: whether it is made of what each client holds.
    """
    if report["hides"]["clients"]:
        why = "noise hides its clients"
    elif report["hides"]["examples"] and by_client:
        why = "noise hides its clients' examples"
    else:
        why = "nothing of it is recorded yet; see which figures a round has in rounds.jsonl"
    return f"{what} of the run {report['title']} cannot be drawn: {why}"
