"""The plan: how this machine runs what was asked, chosen once when a run is opened and kept in its folder.

What the run file leaves open ("auto", a branch of a hub, no day) is decided by measuring or by the date, so a
resumed run takes it from the plan instead of deciding again: another choice would change bits (law 3).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from shepherd.config import Day, PositiveInt
from shepherd.errors import FolderError
from shepherd.io.atomic import disk_fault
from shepherd.settings import MachineTable, RunSettings

PLAN = "plan.json"
"""Name of the file in a run folder; folders of earlier versions keep the choices in the run file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was chosen for a run on this machine."""

    dtype: Literal["float32", "bfloat16", "float16"]
    """Number type of the frozen base."""
    device: str
    """Device of the base, such as "cpu" or "cuda:0"."""
    threads: PositiveInt
    """Processor threads, of all worker processes together."""
    workers: PositiveInt
    """Processes, or actors on Ray, that tune at the same time."""
    stack_size: PositiveInt
    """Clients tuned in one pass."""
    micro_batch_tokens: PositiveInt
    """Tokens in one forward pass."""
    commit: str | None
    """Commit on the hub that `model.revision` named then; None for a base on this disk."""
    date: Day
    """Date that the chat template prints as today's; "" if it prints none."""

    def over(self, settings: RunSettings) -> RunSettings:
        """The settings with everything that they left open filled in from this plan."""
        chosen = {name: value for name, value in asdict(self).items() if name in MachineTable.model_fields}
        model = {"dtype": self.dtype, "revision": self.commit or settings.model.revision}
        return settings.model_copy(
            update={
                "machine": settings.machine.model_copy(update=chosen),
                "model": settings.model.model_copy(update=model),
                "data": settings.data.model_copy(update={"date": self.date}),
            }
        )

    def text(self) -> str:
        """The plan as JSON, as kept in a run folder."""
        return json.dumps(asdict(self), indent=2) + "\n"


_SCHEMA = TypeAdapter(Plan)


def read(path: str | Path) -> Plan | None:
    """The plan of a run folder; None for a folder of an earlier version, whose run file holds the choices.

    Raises:
        FolderError: the plan is damaged.
    """
    file = Path(path) / PLAN
    try:
        return _SCHEMA.validate_json(file.read_bytes(), strict=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FolderError(disk_fault(Path(path), error)) from error
    except ValidationError as error:
        raise FolderError(f"{file} is damaged ({_first_fault(error)}); {_RECOVERY}") from error


_RECOVERY = (
    "restore it from a copy, since other choices would change the run's bits, or start the run again with\
 output=ANOTHER_FOLDER"
)


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    key = ".".join(map(str, fault["loc"]))
    return f"{key}: {fault['msg'].lower()}" if key else "it is not JSON"
