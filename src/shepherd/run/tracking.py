"""Experiment tracking with TensorBoard, Trackio, Weights & Biases or MLflow, through accelerate's trackers.

Trackers get settings and numbers about rounds, never a text of the data. Each round's numbers by client go
to them as a table named "clients", unless noise hides the clients.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import fmean
from typing import Any

from shepherd.consent import NOTHING, Consent
from shepherd.errors import SettingsError
from shepherd.io import private
from shepherd.io.atomic import disk_errors
from shepherd.run.folder import RunFolder
from shepherd.settings import RunSettings, TrackingTable
from shepherd.version import install
from shepherd.visible import shown_line

IDS = "tracking.json"
LOCAL = ("tensorboard",)
"""Trackers that write files into the run folder and send nothing."""
SERVICES = {
    "trackio": "Trackio, in this user's cache or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL lead",
    "wandb": "Weights & Biases, as the user who is logged in here",
    "mlflow": "the MLflow server that MLFLOW_TRACKING_URI names, or a folder mlruns here",
}
_BY_CLIENT = ("coverage", "cosines", "losses", "weights", "client", "leave_one_out", "projection")
_SKIPPED = ("round", "cohort", "failures", "carried")
_COLUMNS = {
    "weight": ("weights",),
    "loss": ("losses",),
    "held-out loss": ("heldout", "client"),
    "own model's held-out loss": ("personal", "client"),
    "coverage": ("coverage",),
    "cosine": ("cosines",),
    "contribution, leave one out": ("contribution", "leave_one_out"),
    "contribution, projection": ("contribution", "projection"),
}
"""Columns of the table of clients, with the place of their numbers in a row of the log."""


@dataclass(frozen=True, slots=True)
class ClientTable:
    """The numbers of one round by client; a cell is None where a client has no such number."""

    columns: tuple[str, ...]
    lines: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, slots=True)
class Trackers:
    """Trackers of a run by name, possibly none; see `start`."""

    parts: Mapping[str, Any] = field(default_factory=dict)

    def log(self, row: Mapping[str, Any]) -> None:
        """Send one finished round, under its number, to every tracker: its figures, then its clients."""
        table = client_table(row)
        for name, part in self.parts.items():
            part.log(flatten(row), step=row["round"])
            if table.lines:
                _TABLE_SENDERS[name](part, table, row["round"])

    def finish(self) -> None:
        """End every tracker."""
        for part in self.parts.values():
            part.finish()


def require(table: TrackingTable, consent: Consent = NOTHING) -> None:
    """Check that every tracker is installed and allowed, before anything is prepared.

    Raises:
        SettingsError: a package is missing, or a tracker calls a service and there is no consent to it.
    """
    _require_installed(table)
    for name in table.trackers:
        if name not in (*LOCAL, *consent.trackers):
            raise SettingsError(
                f"tracking.trackers asks to send this run's figures and settings to {SERVICES[name]}; nothing"
                f" was sent: give --allow-tracker {name} if you want that, or remove {name}"
            )


def _require_installed(table: TrackingTable) -> None:
    for name in table.trackers:
        if find_spec(name) is None:
            raise SettingsError(f"tracker {name} is not installed; run {install(name)}")


def start(settings: RunSettings, folder: RunFolder, rows: Sequence[Mapping[str, Any]] = ()) -> Trackers:
    """Start the trackers of a run, or continue those of a resumed run.

    Args:
        rows: log of a resumed run; a kill may have kept its last round from a tracker, which is sent now.

    Raises:
        SettingsError: a package is missing, or a service rejects the run.
    """
    if not settings.tracking.trackers:
        return Trackers()
    _require_installed(settings.tracking)
    from accelerate import PartialState

    PartialState()  # the trackers log, and accelerate's logger wants its state
    ids = _read_ids(folder)
    makers = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}
    parts: dict[str, Any] = {
        name: makers[name](settings, folder, ids, bool(rows)) for name in settings.tracking.trackers
    }
    for name, part in parts.items():
        _start_one(name, part, settings, rows, known=bool(rows) and name in (*LOCAL, *ids))
    for name in ("tensorboard", "wandb"):  # these write files that other users can read
        if (folder.path / name).is_dir():
            private.close(folder.path / name)
    if any(name not in LOCAL for name in settings.tracking.trackers):
        folder.write(IDS, json.dumps({**ids, **_ids_of(parts)}) + "\n")
    return Trackers(parts)


def flatten(row: Mapping[str, Any]) -> dict[str, float]:
    """Flatten a row of the log to scalars by path; values by client become mean, min and max.

    >>> flatten({"round": 2, "loss": 1.5, "cohort": ["a"], "losses": {"a": 1.0, "b": 3.0}})
    {'cohort': 1, 'failures': 0, 'loss': 1.5, 'losses/mean': 2.0, 'losses/min': 1.0, 'losses/max': 3.0}
    """
    hidden = "privacy" in row  # who took part
    counts = {} if hidden else {name: len(row.get(name, ())) for name in ("cohort", "failures")}
    counts |= {name: len(row[name]) for name in ("late", "dropped", "carried") if name in row}
    return {**counts, **dict(_scalars(row, ()))}


def client_table(row: Mapping[str, Any]) -> ClientTable:
    """The numbers of a row of the log by client, as a table; without lines if noise hides the clients.

    >>> client_table({"round": 2, "losses": {"a": 1.0}, "failures": {"b": "it gave no answer"}})
    ClientTable(columns=('client', 'loss', 'failed'), lines=(('a', 1.0, False), ('b', None, True)))
    """
    if "privacy" in row:
        return ClientTable((), ())
    found = {name: row.get(path[0]) for name, path in _COLUMNS.items()}
    for name, path in _COLUMNS.items():
        for key in path[1:]:
            found[name] = (found[name] or {}).get(key)
    by_client = {name: values for name, values in found.items() if isinstance(values, Mapping) and values}
    failed = row.get("failures", {})
    clients = dict.fromkeys([*(client for values in by_client.values() for client in values), *failed])
    return ClientTable(
        ("client", *by_client, "failed"),
        tuple(
            (client, *(values.get(client) for values in by_client.values()), client in failed)
            for client in clients
        ),
    )


def _scalars(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping) and path[-1:] and path[-1] in _BY_CLIENT:
        numbers = [x for x in value.values() if x is not None]
        summary = (("mean", fmean), ("min", min), ("max", max)) if numbers else ()
        yield from ((_path(*path, name), float(of(numbers))) for name, of in summary)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if path or key not in _SKIPPED:
                yield from _scalars(item, (*path, str(key)))
    elif isinstance(value, int | float):
        yield _path(*path), value


def _path(*parts: str) -> str:
    return "/".join(re.sub(r"[^\w\-. ]", "_", part) for part in parts)  # MLflow accepts nothing else


def _start_one(
    name: str, part: Any, settings: RunSettings, rows: Sequence[Mapping[str, Any]], *, known: bool
) -> None:
    """Start one tracker; `known` is whether it has seen this run before."""
    try:
        part.start()
        if not known:
            flat = dict(_settings(settings.model_dump(mode="json"), ()))
            part.store_init_configuration(flat)
        for row in _unsent(name, part, rows) if known else rows:
            Trackers({name: part}).log(row)
    except Exception as error:  # every service has its own errors
        raise SettingsError(f"tracker {name} cannot start ({error}); log in to it, or remove it") from error


def _unsent(name: str, part: Any, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Rows of a resumed run to send: all to a file, which is written again; to a service, the missing."""
    if name in LOCAL:
        return rows
    if name == "trackio":  # the next step is nowhere public
        return [row for row in rows if row["round"] >= getattr(part.tracker, "_next_step", 0)]
    if name == "wandb":  # offline, its first step is 0 again, and its service ignores the steps that it has
        return [row for row in rows if row["round"] >= getattr(part.tracker, "starting_step", 0)]
    from mlflow import MlflowClient

    # every row has one of these metrics
    known = [
        each
        for metric in ("cohort", "privacy/epsilon")
        for each in MlflowClient().get_metric_history(part.tracker.info.run_id, metric)
    ]
    last = max((each.step for each in known), default=-1)
    return [row for row in rows if row["round"] > last]


def _settings(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str | float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _settings(item, (*path, key))
    elif value is not None:
        yield _path(*path), value if isinstance(value, str | int | float) else json.dumps(value)


def _tensorboard(settings: RunSettings, folder: RunFolder, ids: Mapping[str, str], again: bool) -> Any:
    from accelerate.tracking import TensorBoardTracker

    purge = {"purge_step": 0} if again else {}  # else rounds that are sent again would be drawn twice
    return TensorBoardTracker("tensorboard", str(folder.path), **purge)


def _trackio(settings: RunSettings, folder: RunFolder, ids: Mapping[str, str], again: bool) -> Any:
    from accelerate.tracking import TrackioTracker

    # a run is resumed by its name, and folders of one name are not one run
    name = ids.get("trackio") or f"{folder.path.name}-{secrets.token_hex(4)}"
    return TrackioTracker(
        settings.tracking.project,
        name=name,
        resume="must" if "trackio" in ids else "never",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )


def _wandb(settings: RunSettings, folder: RunFolder, ids: Mapping[str, str], again: bool) -> Any:
    from accelerate.tracking import WandBTracker

    same = {"id": ids["wandb"], "resume": "must"} if "wandb" in ids else {}
    # it would also send what the process prints
    options = {"name": folder.path.name, "dir": str(folder.path), "settings": {"console": "off"}}
    return WandBTracker(settings.tracking.project, **options, **same)


def _mlflow(settings: RunSettings, folder: RunFolder, ids: Mapping[str, str], again: bool) -> Any:
    from accelerate.tracking import MLflowTracker

    return MLflowTracker(settings.tracking.project, run_name=folder.path.name, run_id=ids.get("mlflow"))


def _send_text(part: Any, table: ClientTable, round: int) -> None:
    """The table as Markdown, since TensorBoard has text and no tables."""
    lines = [table.columns, ("---",) * len(table.columns), *table.lines]
    cells = [
        ["" if cell is None else shown_line(str(cell)).replace("|", "\\|") for cell in line] for line in lines
    ]
    part.log({"clients": "\n".join(f"| {' | '.join(line)} |" for line in cells)}, step=round)


def _send_trackio(part: Any, table: ClientTable, round: int) -> None:
    from trackio import Table

    part.log({"clients": Table(columns=list(table.columns), data=[list(x) for x in table.lines])}, step=round)


def _send_wandb(part: Any, table: ClientTable, round: int) -> None:
    part.log_table("clients", columns=list(table.columns), data=[list(x) for x in table.lines], step=round)


def _send_mlflow(part: Any, table: ClientTable, round: int) -> None:
    """Append to the run's one table, whose lines begin with the round."""
    from mlflow import MlflowClient

    columns = {name: [line[k] for line in table.lines] for k, name in enumerate(table.columns)}
    data = {"round": [round] * len(table.lines), **columns}
    MlflowClient().log_table(part.tracker.info.run_id, data, "clients.json")


_TABLE_SENDERS = {
    "tensorboard": _send_text,
    "trackio": _send_trackio,
    "wandb": _send_wandb,
    "mlflow": _send_mlflow,
}


def _read_ids(folder: RunFolder) -> dict[str, str]:
    """Ids of the run at the services, from when it was started."""
    with disk_errors(folder.path):
        path = folder.path / IDS
        return dict(json.loads(path.read_text(encoding="utf8"))) if path.exists() else {}


def _ids_of(parts: Mapping[str, Any]) -> dict[str, str]:
    ways = {
        "trackio": lambda run: run.name,
        "wandb": lambda run: run.id,
        "mlflow": lambda run: run.info.run_id,
    }
    return {name: str(ways[name](part.tracker)) for name, part in parts.items() if name in ways}
