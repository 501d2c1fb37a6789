"""What a run over silos keeps in its folder of the server that it goes on at.

runs/NAME/silos.json   the kit, what was ordered, and the last job
runs/NAME/silos.stop   there once a person has stopped the run, until it is resumed
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

STOP = "silos.stop"


def text(kit: Path, order: JobSpec, job: str | None) -> str:
    """What silos.json says; `recorded` reads it back."""
    kept = {"kit": str(kit.absolute()), "job": job, "order": json.loads(order.text())}
    return json.dumps(kept, indent=1) + "\n"


def recorded(path: Path) -> tuple[Path, JobSpec, str | None]:
    """The administrator's kit, the order, and the last job.

    Raises:
        FolderError: it cannot be read.
    """
    try:
        kept = json.loads((path / folder.SILOS).read_text(encoding="utf8"))
        return Path(kept["kit"]), jobspec.read(json.dumps(kept["order"])), kept["job"]
    except (OSError, ValueError, KeyError, TypeError, FederationError) as error:
        raise FolderError(f"{path / folder.SILOS} cannot be read ({error}); start the run again") from error


def under_way(path: str | Path, kit: str | Path | None = None) -> tuple[Path, str | None]:
    """The administrator's kit that a run over silos goes on with, and its last job.

    Args:
        kit: to go on with instead.

    Raises:
        FolderError: the run in the folder is not over silos.
        SilosError: the kit has moved, or lies in the run folder and is not named by `kit`.
    """
    if not folder.is_over_silos(path):
        raise FolderError(f"{path} holds no run over silos; name the folder of one")
    kept, _, job = recorded(Path(path))
    if kit is None:
        _require_own(kept, Path(path))
    require_kit(Path(kit or kept), path)
    return Path(kit or kept), job


def _require_own(kit: Path, path: Path) -> None:
    """A folder from somebody else brings no kit: its server would be called (law 12)."""
    if not kit.is_absolute() or kit.resolve().is_relative_to(path.resolve()):
        raise SilosError(
            f"{path / folder.SILOS} names a kit that lies in the run folder itself ({shown_line(kit)}), whose"
            " server would be called; if it is yours, name it with --silos ADMIN_KIT"
        )


def require_kit(kit: Path, path: str | Path) -> None:
    """Raise SilosError where the kit that the run in `path` goes on with has moved."""
    if not kit.is_dir():
        raise SilosError(
            f"{kit}, the kit that the run in {path} goes on with, is not there; name it with"
            " --silos ADMIN_KIT"
        )


def mark_stopped(path: str | Path) -> None:
    """Tell whoever follows the run that a person wants it to end."""
    write_atomic(Path(path) / STOP, "")


def is_finished(path: str | Path) -> bool:
    """Whether the run's last round is in its folder."""
    rows = read_rows(path)
    return bool(rows) and rows[-1]["round"] >= folder.read_settings(path).federation.rounds
