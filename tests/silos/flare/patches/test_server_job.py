"""An update that cannot be read does not end the process; FLARE's own class for messages is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nvflare")

from nvflare.fuel.f3.cellnet import cell
from nvflare.fuel.f3.cellnet.defs import CellChannel
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.private.fed.server.server_commands import ServerCommandNames

from shepherd.silos.flare.patches.server_job import outlive_updates


class Exited(BaseException):
    """The process would have ended."""


def receive() -> None:
    """What a server's job process does with an update that it cannot decode."""
    headers = {
        StreamHeaderKey.CHANNEL: CellChannel.SERVER_COMMAND,
        StreamHeaderKey.TOPIC: ServerCommandNames.SUBMIT_UPDATE,
        StreamHeaderKey.PAYLOAD_ENCODING: "fobs",
    }
    future: Any = SimpleNamespace(headers=headers, result=lambda: b"no message")
    asked: Any = SimpleNamespace(
        decode_pass_through_channels=set(),
        decode_pass_through_topics=set(),
        get_fobs_context=lambda props: dict(props),
    )
    adapter = cell.Adapter(lambda request: None, SimpleNamespace(fqcn="server.job"), asked)
    adapter.call(future)


def test_the_process_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def exited(code: int) -> None:
        raise Exited

    monkeypatch.setattr(cell.os, "_exit", exited)
    monkeypatch.setattr(cell, "_is_server_job_cell", cell._is_server_job_cell)  # put back afterwards
    with pytest.raises(Exited):  # else this is for nothing, and may be taken out
        receive()

    outlive_updates()

    with pytest.raises(Exception, match=r".+"):
        receive()
