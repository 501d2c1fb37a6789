"""Two distributions: all of the code with what a server needs, and the trainer on top of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shepherd.version import DISTRIBUTION, install, version
from tests.serving import normal

ROOT = Path(__file__).parent.parent
NOT_HERE = "is not installed: this installation can only run the server of a federation"


def project(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf8"))["project"]
    return table


CORE, WHOLE = project(ROOT), project(ROOT / "packaging" / "shepherd-fit")
SERVER, FLARE = CORE["dependencies"], CORE["optional-dependencies"]["silos"]


def served(python: str | Path, folder: Path, distributions: Sequence[str] = ()) -> str:
    """What tests.serving prints; it has to end well."""
    hiding = ["--as-if-installed", *distributions] if distributions else []
    environment = dict(os.environ)
    if not distributions:  # what was installed there is tried, and not this source
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, "-W", "error::ImportWarning", "-m", "tests.serving", folder, *hiding],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_code_is_of_the_distribution_that_holds_it() -> None:
    assert CORE["name"] == DISTRIBUTION
    assert version() == CORE["version"]


def test_the_whole_trainer_asks_for_the_code_of_its_own_version() -> None:
    def core(extra: str) -> list[str]:
        return [f"{CORE['name']}[{extra}]=={CORE['version']}"]

    assert (WHOLE["name"], WHOLE["version"]) == ("shepherd-fit", CORE["version"])
    for key in ("classifiers", "description", "keywords", "license", "requires-python", "urls"):
        assert WHOLE.get(key) == CORE.get(key), key
    assert WHOLE["dependencies"] == core("train")
    extras = CORE["optional-dependencies"].keys() - {"train", "dev"}
    assert WHOLE["optional-dependencies"] == {extra: core(extra) for extra in extras}


class Installed:
    """A distribution, as pip records where it came from."""

    def __init__(self, origin: object) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize("activated", [True, False])
@pytest.mark.parametrize("kind", ["checkout", "editable", "wheel", "index", "gone", "path"])
def test_an_extra_is_installed_from_where_the_package_came_from(
    kind: str, activated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    place = tmp_path / "a check out"
    place.mkdir()
    wheel = place / "shepherd.whl"
    wheel.touch()
    there, missing = {"url": place.as_uri()}, {"url": (tmp_path / "gone").as_uri(), "dir_info": {}}
    origin, expected = {
        "checkout": ({**there, "dir_info": {}}, f"'{place}[chat]'"),
        "editable": ({**there, "dir_info": {"editable": True}}, f"-e '{place}[chat]'"),
        "wheel": ({"url": wheel.as_uri(), "archive_info": {}}, f"'{wheel}[chat]'"),
        "index": (None, "'shepherd-fit-core[chat]'"),
        "gone": (missing, "'shepherd-fit-core[chat]'"),
        "path": (None, f"-e '{ROOT}[chat]'"),  # not installed: the source is on PYTHONPATH
    }[kind]

    def distribution(name: str) -> Installed:
        if kind == "path":
            raise metadata.PackageNotFoundError(name)
        return Installed(origin)

    monkeypatch.setattr(metadata, "distribution", distribution)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env" / "bin" / "python"))
    bin_ = tmp_path / "my env" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "pip").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(bin_) if activated else "/usr/bin")
    pip = "pip" if activated else f"'{bin_ / 'python'}' -m pip"
    assert install("chat") == f"{pip} install {expected}"
    words = shlex.split(install("chat"))
    assert words[words.index("install") - 1] == "pip"


def test_no_message_names_an_extra_by_hand() -> None:
    by_hand = re.compile(r"install ['\"]?(shepherd|\.)")
    for file in (ROOT / "src").rglob("*.py"):
        assert not by_hand.search(file.read_text(encoding="utf8")), file


def test_the_workflow_tests_each_python_that_is_claimed() -> None:
    claimed = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(CORE["classifiers"]))
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf8")
    assert f"python: {json.dumps(claimed)}" in workflow


def test_each_command_of_a_workflow_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf8"), re.MULTILINE))
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = workflow.read_text(encoding="utf8")
        named = re.findall(r"run: make ([a-z-]+)", text)
        for group in re.findall(r"target: (?:\[(.*)\]|([a-z-]+)\b)", text):
            named += ",".join(group).strip(",").split(", ")
        assert set(named) <= targets, workflow.name


@pytest.mark.parametrize("required", [SERVER, [*SERVER, *FLARE]], ids=["alone", "over FLARE"])
def test_a_server_goes_through_its_rounds_with_nothing_of_the_trainer(
    required: list[str], tmp_path: Path
) -> None:
    said = served(sys.executable, tmp_path, [normal(name) for name in required])
    assert NOT_HERE in said
    assert "shepherd run ended with 2" in said
    assert (tmp_path / "federation" / "server").is_dir() == (required != SERVER)


@pytest.mark.slow
def test_a_server_goes_through_its_rounds_in_an_environment_of_its_own(tmp_path: Path) -> None:
    def run(*words: str | Path) -> str:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = tmp_path.glob("*.whl")
    for extras, folder in (("", tmp_path / "alone"), ("[silos]", tmp_path / "flare")):
        run(python, "-m", "pip", "install", "-c", ROOT / "constraints.txt", f"{wheel}{extras}")
        installed = {normal(line) for line in run(python, "-m", "pip", "freeze").splitlines()}
        assert not installed & {"torch", "transformers", "peft", "datasets", "accelerate", "scipy"}
        run(python, "-m", "pip", "check")
        folder.mkdir()
        said = served(python, folder)
        assert NOT_HERE in said
        assert (folder / "federation" / "server").is_dir() == bool(extras)
