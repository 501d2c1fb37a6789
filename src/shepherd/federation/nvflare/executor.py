"""FLARE's side of a site: a door to the trainer, which is a process of its own.

FLARE ends everybody's job when a site's job process dies, so nothing that can die of memory or of the
data lives here: bytes go to the trainer's socket, and bytes come back.
"""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from shepherd.core import Failure
from shepherd.errors import ShepherdError
from shepherd.federation import local, wire
from shepherd.federation.nvflare import message

HOME = "shepherd"
"""The folder, in a kit, of all that is ours there."""
SPARE = 30.0
"""Seconds over a request's deadline: the trainer itself says that it was late."""


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
            answer = local.ask(local.address(home), asked, timeout=request.deadline + SPARE)
        except ShepherdError as error:
            self.log_error(fl_ctx, str(error))
            answer = wire.encode_reply(Failure(client=site, reason=str(error)))
        if abort_signal.triggered:
            return make_reply(ReturnCode.TASK_ABORTED)
        return FLModelUtils.to_shareable(message.wrapped(answer))
