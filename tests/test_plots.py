"""The plots draw the numbers of the run's own log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shepherd import plots
from shepherd.errors import DataError, FolderError
from shepherd.run.log import read_rows
from tests.ui.report import folders

Line = list[tuple[float, float]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.write(tmp_path_factory.mktemp("runs") / "flock", rounds=6, clients=4)


def drawn(axes: Any) -> dict[str, Line]:
    """The lines of one panel by their labels."""
    return {line.get_label(): [tuple(xy) for xy in line.get_xydata().tolist()] for line in axes.get_lines()}


def logged(run: Path, *keys: str) -> Line:
    """A figure by round, read off the log itself."""
    found = []
    for row in read_rows(run):
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found.append((row["round"], value))
    return found


def test_the_losses_are_those_of_the_log(run: Path) -> None:
    held, trained = plots.loss(run).axes
    assert drawn(held) == {"federated": logged(run, "heldout", "loss")}
    assert drawn(trained) == {"federated": logged(run, "loss")}
    assert len(logged(run, "loss")) == 6


def test_arms_of_a_comparison_are_lines_of_their_own(tmp_path: Path) -> None:
    run = folders.write(tmp_path / "run", rounds=4, clients=3)
    inner = folders.write(run / "compare" / "seed-0" / "fedprox", rounds=4, clients=3, seed=1)
    held, trained = plots.loss(run).axes
    assert drawn(held)["fedprox"] == logged(inner, "heldout", "loss")
    assert drawn(trained) == {"federated": logged(run, "loss"), "fedprox": logged(inner, "loss")}


def test_gap_bytes_and_fairness_are_those_of_the_log(run: Path) -> None:
    gap, energy, spread = plots.gap(run).axes
    assert list(drawn(gap).values()) == [logged(run, "gap")]
    assert list(drawn(energy).values()) == [logged(run, "energy_kept")]
    assert list(drawn(spread).values()) == [logged(run, "spread")]
    (moved,) = plots.bytes_moved(run).axes
    assert drawn(moved) == {
        "down": [(x, y / 1e6) for x, y in logged(run, "bytes_down")],
        "up": [(x, y / 1e6) for x, y in logged(run, "bytes_up")],
    }


def test_fairness_has_the_worst_client_and_the_spread(tmp_path: Path) -> None:
    run = folders.write(tmp_path / "run", rounds=2, clients=3)
    rows = read_rows(run)
    for place, row in enumerate(rows):
        if "heldout" in row:
            row["heldout"] |= {"worst_client": 4.0 + place, "spread": 0.5 + place}
    (run / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses, spread = plots.fairness(run).axes
    assert drawn(losses) == {"mean": logged(run, "heldout", "loss"), "worst client": [(0, 4.0), (2, 6.0)]}
    assert list(drawn(spread).values()) == [[(0, 0.5), (2, 2.5)]]


@pytest.mark.parametrize("common", [True, False], ids=["with common", "own alone"])
def test_fairness_has_the_clients_own_models(tmp_path: Path, common: bool) -> None:
    """As `local_adapter` records them: the common model may say nothing by client."""
    run = folders.write(tmp_path / "run", rounds=2, clients=3)
    rows = read_rows(run)
    for place, row in enumerate(rows):
        if "heldout" in row:
            row["personal"] = {"loss": 1.0 + place, "worst_client": 2.0 + place, "spread": 0.25 + place}
            row["heldout"] |= {"worst_client": 4.0, "spread": 0.5} if common else {}
    (run / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    *shared, losses, spread = plots.fairness(run).axes
    assert len(shared) == 2 * common
    assert drawn(losses) == {
        "mean of the clients": [(0, 1.0), (2, 3.0)],
        "worst client": [(0, 2.0), (2, 4.0)],
    }
    assert list(drawn(spread).values()) == [[(0, 0.25), (2, 2.25)]]
    assert losses.get_ylabel() == "held-out loss, own models, nats a token"


def test_the_loss_of_each_client_by_its_own_model_needs_no_comparison(tmp_path: Path) -> None:
    run = folders.write(tmp_path / "run", rounds=2, clients=["a", "b"])
    rows = read_rows(run)
    for row in rows[1:]:
        row["personal"] = {"loss": 1.0, "client": {"a": 1.0 + row["round"], "b": None}}
    (run / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (axes,) = plots.losses_by_client(run).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["base", "federated", "own model"]
    assert axes.get_lines()[2].get_xydata().tolist() == [[3.0, 0.0]]
    by_client = rows[-1]["heldout"]["client"]
    assert axes.get_lines()[1].get_xdata().tolist() == [by_client["a"], by_client["b"]]


def test_clients_by_category_are_those_of_the_data(run: Path) -> None:
    mixes = json.loads((run / "data" / "index.json").read_text())["mixes"]
    axes = plots.clients(run).axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    counts = [[mix.get(name, 0) for name in names] for mix in mixes.values()]
    assert axes.images[0].get_array().tolist() == counts
    assert [label.get_text().split("  ")[0] for label in axes.get_yticklabels()] == list(mixes)


def test_the_loss_of_each_client_is_that_of_the_comparison(tmp_path: Path) -> None:
    run = folders.write(tmp_path / "run", rounds=2, clients=["a", "b"])
    arms = [
        {"name": "base", "kind": "base", "client_loss": {"a": 3.0, "b": 4.0}},
        {"name": "local-a", "kind": "local", "client": "a", "client_loss": {"a": 2.0, "b": 9.0}},
        {"name": "federated", "kind": "federated", "client_loss": {"a": 1.0, "b": 2.5}},
    ]
    folders.put(run / "compare" / "comparison.json", {"format": 1, "arms": arms})
    (axes,) = plots.losses_by_client(run).axes
    assert drawn(axes) == {
        "local": [(2.0, 0)],
        "base": [(3.0, 0), (4.0, 1)],
        "federated": [(1.0, 0), (2.5, 1)],
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_what_is_not_recorded_is_said(tmp_path: Path) -> None:
    run = folders.write(tmp_path / "run", rounds=2, done=-1, clients=2, heldout=False)
    for draw in (plots.loss, plots.gap, plots.bytes_moved, plots.fairness):
        with pytest.raises(DataError, match="of the run run cannot be drawn: nothing of it is recorded yet"):
            draw(run)
    with pytest.raises(FolderError):
        plots.loss(tmp_path / "nothing")


def test_a_private_run_shows_no_client(tmp_path: Path) -> None:
    run = folders.write(tmp_path / "run", rounds=2, clients=2)
    spent = {"epsilon": 1.0, "delta": 1e-5, "noise": 1.0, "rounds": 2, "begun": 2, "finished": 2, "says": []}
    folders.put(run / "privacy.json", {"unit": "client", "clients": 2, **spent})
    with pytest.raises(DataError, match="noise hides its clients"):
        plots.clients(run)
