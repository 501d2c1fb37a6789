"""Jobs and commands that an administrator of the federation must not get through."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shepherd import world
from shepherd.core import Adapter, ServerState
from shepherd.errors import SilosError
from shepherd.model.digest import digest
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.silos.flare import job as jobs
from shepherd.silos.flare.session import Session, session
from shepherd.silos.protocol.jobspec import JobSpec
from shepherd.version import version
from tests.silos import scene as scenes
from tests.silos.scene import Scene, until
from tests.silos.strangers import Attempt, Tried, tried

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")

class Evil:
    def __init__(self, **given):
        pass
"""


def no_right_to_submit(role: str, name: str) -> Callable[[Scene, int], Tried]:
    """An administrator of this role submits a run that would be in order."""

    def case(scene: Scene, tries: int) -> Tried:
        folder = _job(scene)

        def attempt() -> tuple[bool, str]:
            try:
                with session(scene.admin(name), 60.0) as server:
                    server.submit(folder)
            except SilosError as error:
                return False, str(error)
            return True, ""

        line = rf"refused submit_job to {name}@\S+ \({role}\)"
        return tried(scene, f"an administrator with the role {role}", tries, attempt, line)

    return case


def code_at_server(scene: Scene, tries: int) -> Tried:
    folder = _with_code(scene, "server")
    line = r"refused a job: .* brings custom/evil\.py"
    return tried(scene, "code for the server", tries, _submitting(scene, folder), line)


def code_at_site(scene: Scene, tries: int) -> Tried:
    folder = _with_code(scene, "site")
    line = r"refused a job: .* brings custom/evil\.py"
    return tried(scene, "code for a site", tries, _submitting(scene, folder), line, end="site-2")


def class_at_server(scene: Scene, tries: int) -> Tried:
    given = {"args": ["touch", str(scene.markers / "class-server")]}
    folder = _configured(scene, "server", ["workflows", 0], {"path": "subprocess.Popen", "args": given})
    line = r"refused a job: .* names subprocess\.Popen"
    return tried(scene, "a foreign class at the server", tries, _submitting(scene, folder), line)


def class_at_site(scene: Scene, tries: int) -> Tried:
    given = {"args": ["touch", str(scene.markers / "class-site")]}
    executor = {"path": "subprocess.Popen", "args": given}
    folder = _configured(scene, "site", ["executors", 0], {"executor": executor})
    line = r"refused a job: .* names subprocess\.Popen"
    return tried(scene, "a foreign class at a site", tries, _submitting(scene, folder), line, end="site-2")


def flares_class_at_server(scene: Scene, tries: int) -> Tried:
    theirs = "nvflare.app_common.workflows.fedavg.FedAvg"
    folder = _configured(scene, "server", ["workflows", 0], {"path": theirs})
    line = r"refused a job: .* names nvflare\.app_common\.workflows\.fedavg"
    return tried(scene, "a class of FLARE's at the server", tries, _submitting(scene, folder), line)


def flares_class_at_site(scene: Scene, tries: int) -> Tried:
    theirs = "nvflare.app_common.np.np_trainer.NPTrainer"
    folder = _configured(scene, "site", ["executors", 0], {"executor": {"path": theirs, "args": {}}})
    line = r"refused a job: .* names nvflare\.app_common\.np"
    case = "a class of FLARE's at a site"
    return tried(scene, case, tries, _submitting(scene, folder), line, end="site-2")


def _job(scene: Scene) -> Path:
    """A job like the coordinator's, for site-2."""
    order = JobSpec(
        run=secrets.token_hex(8),
        base=digest(world.base_path()),
        fingerprint="none",
        version=version(),
        sites=("site-2",),
        settings=scenes.settings(scene.scratch / "unused").model_dump(mode="json", exclude_none=True),
    )
    notes: dict[str, Any] = {"positions": {}, "row": None, "base": "none"}
    state = Checkpoint(state=ServerState(round=0, adapter=Adapter()), notes=notes)
    given = checkpoint.save(scene.scratch / "states" / order.run, state, keep=1)
    return jobs.write(scene.scratch / "jobs", order, given, cohort=1)


def _with_code(scene: Scene, kind: str) -> Path:
    """A job that brings code, and names the class in it."""
    folder = _job(scene)
    (folder / kind / "custom").mkdir()
    code = CODE.format(marker=str(scene.markers / f"code-{kind}"))
    (folder / kind / "custom" / "evil.py").write_text(code)
    evil = {"path": "evil.Evil", "args": {}}
    given: tuple[str, dict[str, Any]] = ("executors", {"executor": evil})
    if kind == "server":
        given = ("workflows", evil)
    return _changed(folder, kind, [given[0], 0], given[1])


def _configured(scene: Scene, kind: str, place: list[str | int], given: dict[str, Any]) -> Path:
    return _changed(_job(scene), kind, place, given)


def _changed(folder: Path, kind: str, place: list[str | int], given: dict[str, Any]) -> Path:
    file = folder / kind / "config" / jobs.configuration(kind, jobs.MESSAGE_TIMEOUT_S)[0]
    table = json.loads(file.read_text())
    part = table
    for key in place:
        part = part[key]
    part.update(given)
    file.write_text(json.dumps(table))
    return folder


def _submitting(scene: Scene, folder: Path) -> Attempt:
    """Submit the job as a project_admin, and wait for its end: did it run, and what does its record say?"""

    def attempt() -> tuple[bool, str]:
        with session(scene.admin("admin"), 60.0) as server:
            job = server.submit(folder)
            until(lambda: server.status(job).startswith("FINISHED"), 60)
            status = server.status(job)
            server.abort(job)
            return status != "FINISHED:FAILED_TO_RUN", _deployment(server, job)

    return attempt


def _deployment(server: Session, job: str) -> str:
    """What FLARE tells the one who submitted a job of how it was handed out."""
    told = server._flare.get_job_meta(job)["job_deploy_detail"]
    return next((line for line in told if "OK" not in line), "")
