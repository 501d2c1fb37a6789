"""Trackers get numbers under stable names, and a missing package is named."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shepherd.errors import SettingsError
from shepherd.overrides import parse
from shepherd.run import folder, tracking
from shepherd.settings import RunSettings

ROW = {
    "round": 3,
    "cohort": ["a", "b"],
    "weights": {"a": 0.75, "b": 0.25},
    "loss": 2.5,
    "losses": {"a": 2.0, "b": 3.0},
    "failures": {"c": "loss is not finite"},
    "late": ["d", "e"],
    "carried": {"f": 3},
    "heldout": {"loss": 2.25, "category": {"open:qa": 2.0}, "client": {"a": 1.0, "b": 4.0}},
    "seconds": {"round": 4.5},
    "gap": None,
}
COLUMNS = ("client", "weight", "loss", "held-out loss", "failed")
LINES = (("a", 0.75, 2.0, 1.0, False), ("b", 0.25, 3.0, 4.0, False), ("c", None, None, None, True))


def asking(*trackers: str) -> RunSettings:
    table = {"trackers": list(trackers), "project": "sheep"}
    return parse({"model": {"base": "tiny"}, "data": {"source": "world"}, "tracking": table})


def test_a_row_becomes_scalars() -> None:
    assert tracking.flatten(ROW) == {
        "cohort": 2,
        "failures": 1,
        "late": 2,
        "carried": 1,
        "weights/mean": 0.5,
        "weights/min": 0.25,
        "weights/max": 0.75,
        "loss": 2.5,
        "losses/mean": 2.5,
        "losses/min": 2.0,
        "losses/max": 3.0,
        "heldout/loss": 2.25,
        "heldout/category/open_qa": 2.0,
        "heldout/client/mean": 2.5,
        "heldout/client/min": 1.0,
        "heldout/client/max": 4.0,
        "seconds/round": 4.5,
    }


def test_a_row_becomes_a_table_of_its_clients() -> None:
    assert tracking.client_table(ROW) == tracking.ClientTable(COLUMNS, LINES)
    assert tracking.client_table({"round": 0, "heldout": {"loss": 2.0}}).lines == ()


def test_where_noise_hides_the_clients_there_is_no_table() -> None:
    row = {**ROW, "privacy": {"epsilon": 1.0, "delta": 1e-5}}
    assert tracking.client_table(row) == tracking.ClientTable((), ())


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"mlflow is not installed; run .*pip install .*\[mlflow\]"):
        tracking.require(asking("mlflow").tracking)


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    made = folder.create(tmp_path, asking())
    before = sorted(p.name for p in tmp_path.iterdir())
    trackers = tracking.start(asking(), made)
    trackers.log(ROW)
    trackers.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the extra [tensorboard]")
def test_tensorboard_reads_back_each_round_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = asking("tensorboard")
    made = folder.create(tmp_path, settings)
    rows = [{"round": number, "loss": 3.0 - number} for number in range(3)]
    first = tracking.start(settings, made)
    for row in (*rows[:2], {"round": 2, "loss": 9.0}):  # the last round came to nothing and was run again
        first.log(row)
    first.finish()
    again = tracking.start(settings, made, rows)
    again.log({"round": 3, "loss": 0.25})
    again.finish()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.25)]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the extra [tensorboard]")
def test_rounds_that_a_kill_kept_from_the_tracker_are_there_after_the_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = asking("tensorboard")
    made = folder.create(tmp_path, settings)
    tracking.start(settings, made).log({"round": 0, "loss": 3.0})  # neither flushed nor finished
    rows = [{"round": number, "loss": 3.0 - number} for number in range(3)]  # in the run's own log
    tracking.start(settings, made, rows).finish()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(0, 3.0), (1, 2.0), (2, 1.0)]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the extra [tensorboard]")
def test_tensorboard_has_the_clients_as_text(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = folder.create(tmp_path, asking("tensorboard"))
    first = tracking.start(asking("tensorboard"), made)
    first.log({**ROW, "losses": {"a": 2.0, "b|\x1b[31m": 3.0}})
    first.finish()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = found.Tensors("clients/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert event.step == 3
    assert lines[0] == "| client | weight | loss | held-out loss | failed |"
    assert lines[2] == "| a | 0.75 | 2.0 | 1.0 | False |"
    assert lines[4] == r"| b\|\x1b[31m |  | 3.0 |  | False |"


@pytest.fixture
def trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What Trackio keeps, in a folder of the test; no variable leads it to a server."""
    storage = pytest.importorskip("trackio.sqlite_storage", reason="the extra [trackio]")
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    return storage.SQLiteStorage


def test_trackio_has_each_round_and_its_clients_once_after_a_resume(tmp_path: Path, trackio: Any) -> None:
    made = folder.create(tmp_path / "flock", asking("trackio"))
    rows = [{**ROW, "round": number, "loss": 3.0 - number} for number in range(4)]
    first = tracking.start(asking("trackio"), made)
    for row in rows[:2]:
        first.log(row)
    first.finish()
    again = tracking.start(asking("trackio"), made, rows[:3])  # a kill kept the third from it
    again.log(rows[3])
    again.finish()
    name = json.loads((made.path / "tracking.json").read_text())["trackio"]
    kept = trackio.get_logs("sheep", name)
    assert [(each["step"], each["loss"]) for each in kept if "loss" in each] == [
        (0, 3.0), (1, 2.0), (2, 1.0), (3, 0.0)
    ]  # fmt: skip
    tables = {each["step"]: each["clients"]["_value"] for each in kept if "clients" in each}
    assert list(tables) == [0, 1, 2, 3]
    assert tables[3] == [dict(zip(COLUMNS, line, strict=True)) for line in LINES]


@pytest.mark.slow
def test_weights_and_biases_itself_has_the_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra [wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = folder.create(tmp_path / "flock", asking("wandb"))
    first = tracking.start(asking("wandb"), made)
    first.log(ROW)
    first.finish()
    (path,) = made.path.glob("wandb/offline-run-*/files/media/table/clients_3_*.table.json")
    kept = json.loads(path.read_text())
    assert kept == {"columns": list(COLUMNS), "data": [list(line) for line in LINES]}


class FakeService:
    """Stands in for accelerate's WandBTracker; keeps what it is told."""

    said: list[Any] = []  # noqa: RUF012  (one list for all, emptied by the test)
    filed = 0
    """The next step of the run at the service, which it has as its first once it is resumed."""

    def __init__(self, project: str, **options: Any) -> None:
        self.said.append((project, options))
        self.tracker = SimpleNamespace(id="run-77", starting_step=self.filed)

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.said.append(values["tuning/batch_size"])

    def log(self, values: dict[str, float], step: int) -> None:
        self.said.append((step, values["loss"]))

    def log_table(self, name: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        self.said.append((step, name, columns, data))


def test_a_resumed_run_goes_on_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import tracking as theirs

    FakeService.said.clear()
    monkeypatch.setattr(theirs, "WandBTracker", FakeService)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    settings = asking("wandb")
    made = folder.create(tmp_path / "flock", settings)
    tracking.start(settings, made).log(ROW)
    monkeypatch.setattr(FakeService, "filed", 3)
    tracking.start(settings, made, [{"round": 2, "loss": 3.0}, ROW])
    options = {"name": "flock", "dir": str(made.path), "settings": {"console": "off"}}
    again = {**options, "id": "run-77", "resume": "must"}
    clients = (3, "clients", list(COLUMNS), [list(line) for line in LINES])
    first, second = FakeService.said[:4], FakeService.said[4:]
    assert first == [("sheep", options), 32, (3, 2.5), clients]
    assert second == [("sheep", again), (3, 2.5), clients]
    assert json.loads((made.path / "tracking.json").read_text()) == {"wandb": "run-77"}


@pytest.mark.parametrize("filed", [0, 2, 4])
def test_wandb_gets_every_row_that_its_service_lacks(tmp_path: Path, monkeypatch, filed: int) -> None:
    """A kill may have kept more than the last from it."""
    from accelerate import tracking as theirs

    FakeService.said.clear()
    monkeypatch.setattr(theirs, "WandBTracker", FakeService)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    made = folder.create(tmp_path / "flock", asking("wandb"))
    tracking.start(asking("wandb"), made)
    monkeypatch.setattr(FakeService, "filed", filed)
    FakeService.said.clear()
    tracking.start(asking("wandb"), made, [{"round": number, "loss": 3.0} for number in range(4)])
    assert FakeService.said[1:] == [(number, 3.0) for number in range(filed, 4)]


def test_contributions_are_summed_up_and_not_a_figure_for_each_client() -> None:
    shares = {"a": 1.0, "b": 3.0}
    found = tracking.flatten({"round": 1, "contribution": {"leave_one_out": shares, "projection": shares}})
    for name in ("leave_one_out", "projection"):
        assert {key: found[f"contribution/{name}/{key}"] for key in ("mean", "min", "max")} == {
            "mean": 2.0,
            "min": 1.0,
            "max": 3.0,
        }
    assert not [key for key in found if key.endswith(("/a", "/b"))]


@pytest.mark.parametrize("filed", [2, 3])
def test_mlflow_gets_what_it_lacks_and_nothing_twice(tmp_path: Path, monkeypatch, filed: int) -> None:
    """MLflow keeps two values of one step; `filed` is the last round that it had before the kill."""
    from accelerate import tracking as theirs

    class Fake(FakeService):
        def __init__(self, project: str, **options: Any) -> None:
            self.tracker = SimpleNamespace(info=SimpleNamespace(run_id="run-77"))

        def log(self, values: dict[str, float], step: int) -> None:
            said.append(step)

    said: list[int] = []
    past = SimpleNamespace(get_metric_history=lambda run, key: [SimpleNamespace(step=n) for n in said])
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: past))  # type: ignore[misc]
    monkeypatch.setattr(theirs, "MLflowTracker", Fake)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    settings = asking("mlflow")
    made = folder.create(tmp_path / "flock", settings)
    FakeService.said.clear()
    rows = [{"round": number, "loss": 3.0} for number in range(4)]
    first = tracking.start(settings, made)
    for row in rows[: filed + 1]:
        first.log(row)
    tracking.start(settings, made, rows)
    assert said == [0, 1, 2, 3]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="the extra [mlflow]")
@pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes")  # of pandas to MLflow
@pytest.mark.parametrize("filed", [2, 3])
def test_mlflow_itself_has_each_round_once(tmp_path: Path, monkeypatch, filed: int) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "kept").as_uri())
    settings = asking("mlflow")
    made = folder.create(tmp_path / "flock", settings)
    rows = [{**ROW, "round": number, "loss": 3.0 - number} for number in range(4)]
    first = tracking.start(settings, made)
    for row in rows[: filed + 1]:
        first.log(row)
    first.finish()
    tracking.start(settings, made, rows).finish()
    run = json.loads((made.path / "tracking.json").read_text())["mlflow"]
    history = mlflow.MlflowClient().get_metric_history(run, "loss")
    assert [(each.step, each.value) for each in history] == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.0)]
    (path,) = (tmp_path / "kept").glob(f"*/{run}/artifacts/clients.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["round", *COLUMNS]
    assert table["data"] == [[number, *line] for number in range(4) for line in LINES]


def test_a_tracker_that_a_resumed_run_did_not_have_gets_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import tracking as theirs

    FakeService.said.clear()
    monkeypatch.setattr(theirs, "WandBTracker", FakeService)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    made = folder.create(tmp_path / "flock", asking())
    tracking.start(asking("wandb"), made, [{"round": 2, "loss": 3.0}, ROW])
    assert FakeService.said[1:-1] == [32, (2, 3.0), (3, 2.5)]


def test_a_service_that_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import tracking as theirs

    def refuse(self: FakeService) -> None:
        raise RuntimeError("no API key")

    monkeypatch.setattr(theirs, "WandBTracker", FakeService)
    monkeypatch.setattr(FakeService, "start", refuse)
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    made = folder.create(tmp_path, asking("wandb"))
    with pytest.raises(SettingsError, match=r"wandb cannot start \(no API key\); log in"):
        tracking.start(asking("wandb"), made)
