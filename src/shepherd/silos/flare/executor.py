"""FLARE's side of a site: a door to the trainer, which is a process of its own.

FLARE ends everybody's job when a site's job process dies, so nothing that can die of memory or of the
data lives here: bytes go to the trainer's socket, and bytes come back.
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
"""The folder, in a kit, of all that is ours there."""
RESTART_S = 120.0
"""How long a trainer may take to be started and to load its libraries."""
POLL_S = 0.1
SPARE_S = 30.0
"""Over a request's deadline: the trainer itself says that it was late."""


class Door(Executor):  # type: ignore[misc]
    """Passes requests on to the trainer of this site, and its answers back."""

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """One request. Always answers: what goes wrong is a Failure with one sentence."""
        site = fl_ctx.get_identity_name()
        home = Path(fl_ctx.get_engine().get_workspace().get_root_dir()) / HOME
        try:
            asked = message.unwrapped(FLModelUtils.from_shareable(shareable))
            request = wire.decode_request(asked)
            answer = _answer(home, asked, request.deadline, abort_signal)
        except Exception as error:
            # our own errors may name a path, and others' anything: both stay here, the latter unsaid
            told = str(error) if isinstance(error, ShepherdError) else type(error).__name__
            self.log_error(fl_ctx, told)
            answer = wire.encode_reply(Failure(client=site, reason=_reason(error)))
        if abort_signal.triggered:
            return make_reply(ReturnCode.TASK_ABORTED)
        return FLModelUtils.to_shareable(message.wrapped(answer))


def _reason(error: Exception) -> str:
    """What the server is told."""
    match error:
        case NotListening():
            return "its trainer does not run; its owner starts it with `shepherd silos site`"
        case LocalError():
            return "its trainer died at work, and is started again; its log says why"
        case WireError():
            return "it cannot read the request; install the server's version there"
        case _:
            return "something went wrong there; its log says what"


def _answer(home: Path, asked: bytes, deadline: float, abort_signal: Signal) -> bytes:
    """The trainer's answer. One that is being started again is waited for; one that dies at work is not."""
    ends = time.monotonic() + min(deadline, RESTART_S)
    while True:
        try:
            return ipc.ask(ipc.address(home), asked, timeout=deadline + SPARE_S)
        except NotListening:
            if time.monotonic() > ends or abort_signal.triggered:
                raise
            time.sleep(POLL_S)
