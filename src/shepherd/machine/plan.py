"""How this machine runs what was asked: chosen once, when a run is opened, and kept beside its run file.

What the run file leaves open ("auto", a branch of a hub, no day) is decided by measuring or by the day, so a
resumed run takes it from the plan and does not decide again: another choice would change bits (law 3).
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
"""The file of a run folder; folders of earlier versions have what was chosen in the run file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was chosen for a run on this machine."""

    dtype: Literal["float32", "bfloat16", "float16"]
    """The frozen base's number type."""
    device: str
    """Where it computes, such as "cpu" or "cuda:0"."""
    threads: PositiveInt
    """Processor threads, of all worker processes together."""
    workers: PositiveInt
    """Processes that tune side by side."""
    stack_size: PositiveInt
    """Clients tuned in one pass."""
    micro_batch_tokens: PositiveInt
    """Tokens in one forward pass."""
    commit: str | None
    """The hub's commit that `model.revision` was then; None for a base on this disk."""
    date: Day
    """The day that the chat template prints as today's; "" where it prints none."""

    def over(self, settings: RunSettings) -> RunSettings:
        """The settings with everything that they left open filled in."""
        machine = {name: getattr(self, name) for name in MachineTable.model_fields}
        model = {"dtype": self.dtype, "revision": self.commit or settings.model.revision}
        return settings.model_copy(
            update={
                "machine": MachineTable(**machine),
                "model": settings.model.model_copy(update=model),
                "data": settings.data.model_copy(update={"date": self.date}),
            }
        )

    def text(self) -> str:
        """JSON, as it is kept in a run folder."""
        return json.dumps(asdict(self), indent=2) + "\n"


_KIND = TypeAdapter(Plan)


def read(path: str | Path) -> Plan | None:
    """The plan of a run folder; None in a folder of an earlier version, whose run file holds what was chosen.

    Raises:
        FolderError: the plan is damaged.
    """
    file = Path(path) / PLAN
    try:
        return _KIND.validate_json(file.read_bytes(), strict=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FolderError(disk_fault(Path(path), error)) from error
    except ValidationError as error:
        raise FolderError(f"{file} is damaged ({_first(error)}); {_MEND}") from error


_MEND = (
    "put it back from a copy, since other choices would change the run's bits, or start the run again with\
 output=ANOTHER_FOLDER"
)


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    key = ".".join(map(str, fault["loc"]))
    return f"{key}: {fault['msg'].lower()}" if key else "it is not JSON"
