"""FLARE's side of a site: passes requests to the trainer, which is a process of its own.

FLARE ends the job of all sites when one site's job process dies, so nothing that may fail for lack of memory
or because of the data runs here: bytes go to the trainer's socket, and bytes come back.
"""

from __future__ import annotations

import time
from pathlib import Path

from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from shepherd.core import Failure
from shepherd.errors import LocalError, NotListening, ShepherdError, WireError
from shepherd.silos.flare import message
from shepherd.silos.protocol import ipc, wire

HOME = "shepherd"
"""Folder of Shepherd's own files in a kit."""
RESTART_S = 120.0
"""How long a trainer may take to start and to load its libraries."""
POLL_S = 0.1
SPARE_S = 30.0
"""Extra time after a request's deadline, since the trainer itself reports that it was late."""


class Door(Executor):  # type: ignore[misc]
    """FLARE executor that passes requests to this site's trainer, and its answers back."""

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Answer one request; an error becomes a Failure with one sentence."""
        site = fl_ctx.get_identity_name()
        home = Path(fl_ctx.get_engine().get_workspace().get_root_dir()) / HOME
        try:
            asked = message.unwrapped(FLModelUtils.from_shareable(shareable))
            request = wire.decode_asked(asked)
            answer = _answer(home, asked, request.deadline, abort_signal)
        except Exception as error:
            # stays at the site: our own errors may name a path; other errors may say anything, so only their
            # class
            logged = str(error) if isinstance(error, ShepherdError) else type(error).__name__
            self.log_error(fl_ctx, logged)
            answer = wire.encode_reply(Failure(client=site, reason=_reason(error)))
        if abort_signal.triggered:
            return make_reply(ReturnCode.TASK_ABORTED)
        return FLModelUtils.to_shareable(message.wrapped(answer))


def _reason(error: Exception) -> str:
    """The reason that is reported to the server."""
    match error:
        case NotListening():
            return "its trainer is not running; its owner starts it with `shepherd silos site`"
        case LocalError():
            return "its trainer died while working and is being restarted; its log says why"
        case WireError():
            return "it cannot read the request; install the server's version there"
        case _:
            return "an unexpected error happened there; its log says which"


def _answer(home: Path, asked: bytes, deadline: float, abort_signal: Signal) -> bytes:
    """The trainer's answer; waits for one that is restarting, but not for one that dies while working."""
    ends = time.monotonic() + min(deadline, RESTART_S)
    while True:
        try:
            return ipc.ask(ipc.address(home), asked, timeout=deadline + SPARE_S)
        except NotListening:
            if time.monotonic() > ends or abort_signal.triggered:
                raise
            time.sleep(POLL_S)
