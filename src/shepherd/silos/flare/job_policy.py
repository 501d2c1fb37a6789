"""Accept only jobs that `job.write` makes, at the server and at a site.

FLARE asks before it unpacks a job for a process of its own, so nothing of a foreign job is ever started. The
submitter finds the reason in the job's record; here it is a line in the log. FLARE's own refusals of commands
that a role may not give are logged too, since FLARE reports them to the sender only.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidator
from nvflare.fuel.sec.authz import AuthorizationService, AuthzContext
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE

from shepherd.run import checkpoint
from shepherd.silos.flare import job
from shepherd.silos.protocol import wire

_log = logging.getLogger("shepherd.door")
_STATE = re.compile(r"round-\d{1,9}")
_SIGNATURES = {NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE}
"""Files that FLARE adds to each folder of a submitted job, and has checked before."""
_MAX_NAME_CHARS = 80  # characters of a name that came from outside


class OurJob(AppValidator):  # type: ignore[misc]
    """FLARE validator that accepts only our own job files, with exactly our configuration."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        """The reason to refuse an application, or "", and no further information; called by FLARE."""
        fault = next(faults(Path(app_folder), self.kind), None)
        if fault is None:
            return "", {}
        sentence = (
            f"not a run of shepherd-fit {wire.version()}, since it {fault}; submit runs with"
            " `shepherd run --silos` of that version"
        )
        _log.warning("refused a job: %s", sentence)
        return sentence, {}


def faults(app: Path, kind: str) -> Iterator[str]:
    """Differences between an application and ours; `kind` is server or site."""
    name, _ = job.configuration(kind, job.MESSAGE_TIMEOUT_S)
    for path in sorted(_files(app) - {f"config/{name}"}):
        if kind != "server" or not _is_brought(path):
            yield f"brings {_short(path)}"
    try:
        config = json.loads((app / "config" / name).read_text(encoding="utf8"))
    except (OSError, ValueError):
        yield f"has no {name} that can be read"
        return
    _, expected = job.configuration(kind, _reply_timeout(config))
    for path in sorted(set(_classes(config)) - set(_classes(expected))):
        yield f"names {_short(path)}"
    if config != expected:
        yield f"has settings of its own in {name}"


def log_denials() -> None:
    """Log each right that FLARE denies in this process."""
    decide = AuthorizationService.authorize

    def authorize(asked: AuthzContext) -> tuple[bool, str]:
        granted, why = decide(asked)
        if not granted:
            who = f"{_short(asked.user.name)} ({_short(asked.user.role or 'no role')})"
            _log.warning("refused %s to %s: its role does not allow that", _short(asked.right), who)
        return granted, why

    AuthorizationService.authorize = staticmethod(authorize)


def _files(app: Path) -> set[str]:
    entries = (path for path in app.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(app).as_posix() for path in entries if path.name not in _SIGNATURES}


def _is_brought(path: str) -> bool:
    match path.split("/"):
        case ["config", job.PAYLOAD, job.ORDER]:
            return True
        case ["config", job.PAYLOAD, state, name]:
            return bool(_STATE.fullmatch(state)) and name in checkpoint.FILES
    return False


def _reply_timeout(config: Any) -> int:
    """The reply time-out, in which our jobs differ, if it is in our range; else the smallest."""
    found = config.get(job.ANSWER_KEY) if isinstance(config, dict) else None
    if type(found) is int and job.MESSAGE_TIMEOUT_S <= found <= job.MAX_REPLY_TIMEOUT_S:
        return int(found)
    return job.MESSAGE_TIMEOUT_S


def _classes(part: Any) -> Iterator[str]:
    """Names of all classes that a configuration would build."""
    if isinstance(part, dict):
        yield from (str(part[key]) for key in ("path", "name", "class_path") if key in part)
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from _classes(each)


def _short(text: object) -> str:
    return ascii(str(text)[:_MAX_NAME_CHARS])[1:-1]
