"""State file of a run over silos: its administrator's kit, its job specification and its last job.

runs/NAME/silos.json   kit, job specification ("order") and id of the last job
runs/NAME/silos.stop   exists from when a person stops the run until it is resumed
"""

from __future__ import annotations

import json
from pathlib import Path

from shepherd.errors import FederationError, FolderError, SilosError
from shepherd.io.atomic import write_atomic
from shepherd.run import folder
from shepherd.run.log import read_rows
from shepherd.silos.protocol import jobspec
from shepherd.silos.protocol.jobspec import JobSpec
from shepherd.visible import shown_line

STOP_FILE = "silos.stop"


def text(kit: Path, order: JobSpec, job: str | None) -> str:
    """The content of silos.json; `read_state` reads it."""
    kept = {"kit": str(kit.absolute()), "job": job, "order": json.loads(order.text())}
    return json.dumps(kept, indent=1) + "\n"


def read_state(path: Path) -> tuple[Path, JobSpec, str | None]:
    """Read silos.json: the administrator's kit, the job specification, and the id of the last job.

    Raises:
        FolderError: the file cannot be read.
    """
    try:
        kept = json.loads((path / folder.SILOS).read_text(encoding="utf8"))
        return Path(kept["kit"]), jobspec.read(json.dumps(kept["order"])), kept["job"]
    except (OSError, ValueError, KeyError, TypeError, FederationError) as error:
        raise FolderError(f"{path / folder.SILOS} cannot be read ({error}); start the run again") from error


def kit_and_job(path: str | Path, kit: str | Path | None = None) -> tuple[Path, str | None]:
    """The administrator's kit that a run over silos continues with, and the id of its last job.

    Args:
        kit: a kit to use instead of the recorded one.

    Raises:
        FolderError: the folder does not hold a run over silos.
        SilosError: the kit has moved, or is inside the run folder and was not named by `kit`.
    """
    if not folder.is_over_silos(path):
        raise FolderError(f"{path} does not hold a run over silos; name the folder of one")
    kept, _, job = read_state(Path(path))
    if kit is None:
        _require_own(kept, Path(path))
    require_kit(Path(kit or kept), path)
    return Path(kit or kept), job


def _require_own(kit: Path, path: Path) -> None:
    """Refuse a kit inside the run folder: a folder from somebody else must not choose the server (law 12)."""
    if not kit.is_absolute() or kit.resolve().is_relative_to(path.resolve()):
        raise SilosError(
            f"{path / folder.SILOS} names a kit inside the run folder itself ({shown_line(kit)}), whose"
            " server would be contacted; if it is yours, name it with --silos ADMIN_KIT"
        )


def require_kit(kit: Path, path: str | Path) -> None:
    """Raise SilosError if the kit of the run in `path` has moved."""
    if not kit.is_dir():
        raise SilosError(
            f"{kit}, the kit of the run in {path}, does not exist; name the kit with --silos ADMIN_KIT"
        )


def mark_stopped(path: str | Path) -> None:
    """Have the process that follows the run stop it."""
    write_atomic(Path(path) / STOP_FILE, "")


def is_finished(path: str | Path) -> bool:
    """Whether the run's last round is in its folder, of those that it has or asks the server for."""
    rows, asked = read_rows(path), read_state(Path(path))[1].federation.rounds
    return bool(rows) and rows[-1]["round"] >= max(asked, folder.read_settings(path).federation.rounds)
