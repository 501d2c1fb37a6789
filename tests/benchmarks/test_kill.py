"""What the kill test would see go wrong; the kills themselves are in test_runs."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import kill
from shepherd.core import Adapter, ServerState
from shepherd.overrides import parse
from shepherd.run import checkpoint, folder
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.log import read_rows

SETTINGS = parse({"model": {"base": "tiny"}, "data": {"source": "world"}, "federation": {"rounds": 2}})


def _save(path: Path, round: int) -> None:
    state = ServerState(round=round, adapter=Adapter({"a": np.ones((1, 2))}))
    saved = Checkpoint(state=state, notes={"row": {"round": round}})
    checkpoint.save(path / "checkpoints", saved, keep=9)


def _ended(
    path: Path, weight: float = 1.0, seconds: float = 1.0, losses: tuple[float, ...] = (3, 2)
) -> kill.Trial:
    held = folder.create(path, SETTINGS)
    for round, loss in enumerate(losses, 1):
        held.append({"round": round, "loss": loss, "seconds": {"round": seconds}})
    (path / "adapter").mkdir()
    save_file({"a": np.full((1, 2), weight, np.float32)}, path / "adapter" / kill.WEIGHTS)
    held.close()
    return kill.Trial(path, path / "run.toml")


def test_the_phase_is_read_from_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    begun = f"{path}: fedavg on tiny"
    assert kill._phase(path, False, "") == "before its run file"
    held = folder.create(path, SETTINGS)
    assert kill._phase(path, False, "loading tiny") == "preparing"
    assert kill._phase(path, True, "loading tiny") == "loading, to resume"
    assert kill._phase(path, False, begun) == "scoring the base"
    held.append({"round": 0})
    assert kill._phase(path, False, begun) == "tuning"
    (path / "checkpoints" / f"{checkpoint.UNFINISHED}round-00001").mkdir(parents=True)
    assert kill._phase(path, False, begun) == "saving"
    _save(path, 1)
    assert kill._phase(path, False, begun) == "between checkpoint and log"
    held.append({"round": 1})
    assert kill._phase(path, True, begun) == "tuning"
    _save(path, 2)
    held.append({"round": 2})
    assert kill._phase(path, True, begun) == "finishing"
    held.close()


def test_what_a_kill_finds_finished_is_in_the_log_or_in_the_checkpoint(tmp_path: Path) -> None:
    held = folder.create(tmp_path / "run", SETTINGS)
    held.append({"round": 0})
    _save(tmp_path / "run", 1)
    held.close()
    assert kill._finished_rounds(tmp_path / "run") == [{"round": 0}, {"round": 1}]


def test_a_run_in_other_seconds_is_equal(tmp_path: Path) -> None:
    whole, trial = _ended(tmp_path / "whole"), _ended(tmp_path / "trial", seconds=2.0)
    trial.found = read_rows(trial.path)[:1]
    assert kill._compare_with(trial, whole) == {"bits": True, "log": True, "losses": True, "lost": 0}


def test_other_bits_other_losses_and_a_round_run_again_are_seen(tmp_path: Path) -> None:
    whole = _ended(tmp_path / "whole")
    trial = _ended(
        tmp_path / "trial", weight=float(np.nextafter(np.float32(1), np.float32(2))), losses=(3, 2.5)
    )
    trial.found = [{"round": 1, "loss": 3, "seconds": {"round": 9.0}}]  # it took other seconds before
    assert kill._compare_with(trial, whole) == {"bits": False, "log": True, "losses": False, "lost": 1}


def test_a_round_that_is_missing_from_the_log_is_seen(tmp_path: Path) -> None:
    whole, trial = _ended(tmp_path / "whole"), _ended(tmp_path / "trial", losses=(3,))
    assert not kill._compare_with(trial, whole)["log"]


def test_a_process_that_fails_is_no_kill(tmp_path: Path) -> None:
    trial = kill.Trial(tmp_path / "run", tmp_path / "missing.toml")
    with pytest.raises(RuntimeError, match=r"missing\.toml"):
        kill._run_process(trial, None)


def test_moments_are_drawn_with_the_seed_over_the_life() -> None:
    plan = kill.moments(20, 30.0, seed=5)
    assert plan == kill.moments(20, 30.0, seed=5) != kill.moments(20, 30.0, seed=6)
    free = [moment.seconds for moment in plan if not moment.save]
    assert len(free) == 15
    assert min(free) < 10 < 20 < max(free) < 30
    assert {moment.save for moment in plan} == {0, 1, 2, 3}
