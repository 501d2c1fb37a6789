"""The job folder: what FLARE takes, and nothing that it would take for foreign code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nvflare")

from nvflare.apis.fl_constant import ConfigVarName
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from shepherd.core import Adapter, ServerState
from shepherd.errors import FolderError
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.silos.flare import job
from shepherd.silos.flare.controller import Rounds
from shepherd.silos.flare.executor import Door
from shepherd.silos.protocol import jobspec
from shepherd.silos.protocol.jobspec import JobSpec

ORDER = JobSpec(run="0" * 16, base="b", fingerprint="f", version="0", sites=("a", "b"), settings={"seed": 3})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = Checkpoint(state=ServerState(round=3, adapter=Adapter({"a": np.ones(2)})))
    return checkpoint.save(tmp_path / "checkpoints", made, keep=1)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_it_holds_configurations_the_order_and_the_state_and_no_code(tmp_path: Path, state: Path) -> None:
    made = job.write(tmp_path / "jobs", ORDER, state, 2)

    assert files(made) == [
        "meta.json",
        "server/config/config_fed_server.json",
        "server/config/shepherd/order.json",
        "server/config/shepherd/round-00003/SHA256SUMS",
        "server/config/shepherd/round-00003/state.json",
        "server/config/shepherd/round-00003/tensors.safetensors",
        "site/config/config_fed_client.json",
    ]
    assert jobspec.read((made / "server/config/shepherd/order.json").read_text()) == ORDER
    assert checkpoint.load(made / "server/config/shepherd/round-00003").state.round == 3


def test_nothing_of_the_run_goes_to_the_sites_with_the_job(tmp_path: Path, state: Path) -> None:
    made = job.write(tmp_path / "jobs", ORDER, state, 2)
    text = (made / "site/config/config_fed_client.json").read_text() + (made / "meta.json").read_text()
    assert json.loads((made / "meta.json").read_text())["deploy_map"] == {
        "server": ["server"],
        "site": ["a", "b"],
    }
    assert "seed" not in text


def test_flare_takes_it(tmp_path: Path, state: Path) -> None:
    made = job.write(tmp_path / "jobs", ORDER, state, 2)
    packed = zip_directory_to_bytes(str(made.parent), made.name)

    valid, error, meta = JobMetaValidator().validate(made.name, packed)

    assert (valid, error) == (True, "")
    assert not meta.get("byoc")


def test_it_names_classes_that_are_there() -> None:
    for path, kind in ((job.CONTROLLER, Rounds), (job.EXECUTOR, Door)):
        assert path == f"{kind.__module__}.{kind.__qualname__}"
    (workflow,) = job.configuration("server", 30)[1]["workflows"]
    (executor,) = job.configuration("site", 30)[1]["executors"]
    assert workflow["path"] == job.CONTROLLER
    assert executor["executor"]["path"] == job.EXECUTOR
    Rounds(**workflow["args"])
    Door(**executor["executor"]["args"])


def test_a_large_answer_is_given_the_time_of_a_slow_line(tmp_path: Path, state: Path) -> None:
    small = job.reply_timeout(state)
    with open(state / "more", "wb") as file:
        file.truncate(64_000_000)

    made = job.write(tmp_path / "jobs", ORDER, state, 2)

    assert small == 31  # 30 s, and a few kB
    assert job.reply_timeout(state) == pytest.approx(30 + 64e6 / 125e3, abs=2)
    config = json.loads((made / "site/config/config_fed_client.json").read_text())
    assert config["submit_task_result_timeout"] == job.reply_timeout(state)


def test_the_waits_have_the_names_that_flare_reads() -> None:
    piece = NumpyArrayDecomposer()._config_var_name(ConfigVarName.STREAMING_PER_REQUEST_TIMEOUT)
    site, server = (job.configuration(kind, 77)[1] for kind in ("site", "server"))
    assert site[ConfigVarName.SUBMIT_TASK_RESULT_TIMEOUT] == 77
    assert site[piece] == server[piece] == 60


def test_nobody_waits_longer_than_a_day(state: Path) -> None:
    with open(state / "more", "wb") as file:
        file.truncate(10**12)
    assert job.reply_timeout(state) == 24 * 3600


def test_the_next_one_takes_its_place_with_nothing_left_over(tmp_path: Path, state: Path) -> None:
    later = checkpoint.save(
        tmp_path / "later",
        Checkpoint(state=ServerState(round=4, adapter=Adapter({"a": np.ones(2)}))),
        keep=1,
    )
    first, second = (
        job.write(tmp_path / "jobs", ORDER, state, 2),
        job.write(tmp_path / "jobs", ORDER, later, 2),
    )
    assert first == second
    brought = (second / "server/config/shepherd").glob("round-*")
    assert [path.name for path in brought] == ["round-00004"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, state: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(FolderError, match="check the path"):
        job.write(tmp_path / "jobs", ORDER, state, 2)


def test_a_job_waits_for_the_quorum_of_a_round_and_for_two() -> None:
    def least(sites: int, cohort: int, quorum: float) -> int:
        names = tuple(f"s{k}" for k in range(sites))
        return job.quorum(replace(ORDER, sites=names, settings={"federation": {"quorum": quorum}}), cohort)

    assert least(10, 10, 0.55) == 6
    assert least(10, 5, 0.5) == 3
    assert least(10, 1, 1.0) == 2  # which every federation of two or more has
    assert least(1, 1, 1.0) == 1
