"""The arms that a run folder holds, and what is said of each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from shepherd.errors import FolderError
from shepherd.run import folder
from shepherd.ui.chat.arms import Arm, find


def arms(path: Path) -> dict[str, Arm]:
    return {arm.name: arm for arm in find(path, folder.read_settings(path))}


@pytest.fixture
def copy(compared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compared, tmp_path / "run"))


def test_arms_stand_in_the_order_of_their_reading(compared: Path, llama_folder: Path) -> None:
    found = arms(compared)
    assert list(found) == ["base", "local-client-1", "local-client-3", "federated", "centralised", "ffa"]
    assert [arm.client for arm in found.values()] == [None, "client-1", "client-3", None, None, None]
    assert found["base"].path is None
    assert found["federated"].path == compared
    assert found["ffa"].path == compared / "compare" / "seed-0" / "ffa"


def test_each_says_what_it_was_trained_on(compared: Path, llama_folder: Path) -> None:
    says = {name: arm.says for name, arm in arms(compared).items()}
    assert says["base"] == f"{llama_folder.name}, not tuned"
    assert says["local-client-1"] == "client-1 alone: 9 examples of qa and poem"  # as the comparison says
    assert says["local-client-3"].startswith("client-3 alone: 7 examples of ")  # as the run's data say
    kinds = "30 examples of list, qa and poem"
    assert says["federated"] == f"4 clients, {kinds}; fedavg, 2 rounds"
    assert says["centralised"] == f"everybody's data in one place: {kinds}"
    assert says["ffa"] == "federated with algorithm.name=ffa_lora"


def test_a_run_alone_has_two_arms(copy: Path) -> None:
    shutil.rmtree(copy / "compare")
    shutil.rmtree(copy / "adapter")
    found = arms(copy)
    assert list(found) == ["base", "federated"]
    assert found["federated"].says.endswith("fedavg, 2 of 2 rounds")  # it is not finished


def test_without_its_data_and_its_comparison_a_run_still_has_its_arms(copy: Path) -> None:
    shutil.rmtree(copy / "data")
    (copy / "compare" / "comparison.json").write_text("{")
    assert {name: arm.says for name, arm in arms(copy).items() if name != "base"} == {
        "local-client-1": "client-1 alone",
        "local-client-3": "client-3 alone",
        "federated": "fedavg, 2 rounds",
        "centralised": "everybody's data in one place",
        "ffa": "a federated variant",
    }


def test_many_kinds_are_counted(copy: Path) -> None:
    text = (copy / "data" / "index.json").read_text()
    for client in range(4):
        more = ", ".join(f'"kind-{n}": {9 - n}' for n in range(5))
        text = text.replace(f'"client-{client}": {{', f'"client-{client}": {{ {more}, ')
    (copy / "data" / "index.json").write_text(text)
    says = arms(copy)["federated"].says
    assert says.startswith("4 clients, 170 examples of kind-0, kind-1, kind-2 and 5 more kinds; ")


def test_a_client_may_be_called_anything(copy: Path) -> None:
    name = "Köln/Ost <b>"
    (copy / "compare" / "seed-0" / "local-client-1").rename(
        copy / "compare" / "seed-0" / f"local-{quote(name, '')}"
    )
    text = (copy / "data" / "index.json").read_text()
    (copy / "data" / "index.json").write_text(text.replace('"client-1"', json.dumps(name)))
    found = arms(copy)[f"local-{name}"]
    assert found.client == name
    assert found.says.startswith(f"{name} alone: ")


def test_a_run_without_a_round_is_refused(bare: Path) -> None:
    with pytest.raises(FolderError, match="has finished no round yet; continue it with `shepherd resume"):
        arms(bare)
