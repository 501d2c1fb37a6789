"""A trainer without a base, for benchmarks of the way there and back: it answers at once.

    python -m benchmarks.silos_stub NAME HOME

It does all that a site's trainer does with a message but train: it reads it, looks whether it is finite,
answers with a change of the broadcast's shapes, keeps the answer on its disk, and writes the audit log. Under
[secure] the change is of whole numbers, and is sent under masks as any site does.
Each answer leaves a line in HOME/times.jsonl, in seconds of this machine's clock.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from time import time

import numpy as np

from benchmarks.masking import answered
from shepherd.core import Adapter, Broadcast, Payload, Update
from shepherd.machine import malloc
from shepherd.silos.protocol import ipc, wire
from shepherd.silos.protocol.wire import Ready, Request, Scores, SumRequest
from shepherd.silos.site import audit
from shepherd.silos.site.audit import Released
from shepherd.silos.site.secure_sums import SecureSums, is_secure, kit_signer
from shepherd.silos.site.site_settings import PolicyTable
from shepherd.silos.site.site_store import Store

TIMES = "times.jsonl"
STEP = 1e-3  # of a change, so that a mean over many rounds stays small


@dataclass(frozen=True, slots=True)
class Visit:
    """One answered request: when the server had it ready, when it came, when its answer left."""

    kind: str
    round: int
    sent: float
    came: float
    left: float
    bytes_in: int = 0
    bytes_out: int = 0


class Stub:
    """Answers as the trainer of a site would that needs no time to train."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home = name, home
        home.mkdir(parents=True, exist_ok=True)
        self.store = Store(home)
        policy = PolicyTable(transforms=("fixed_point",))
        self.sums = SecureSums(name, self.store, policy, lambda: kit_signer(home, policy))
        self._change = Adapter()

    def handle(self, message: bytes) -> bytes:
        """The reply to a request."""
        came = time()
        request = wire.decode_asked(message)
        if isinstance(request, SumRequest):
            reply = self._summed(request)
        else:
            audit.record(self.home / audit.FILE, audit.granted_event(request, datetime.now()))
            reply = self._reply(request)
            left = Released(bytes=len(reply), tensors=_tensors(reply))
            audit.record(self.home / audit.FILE, audit.answered_event(request, datetime.now(), left))
        self._note(Visit(request.kind, request.round, request.sent, came, time(), len(message), len(reply)))
        return reply

    def _summed(self, request: SumRequest) -> bytes:
        answer, sites = self.sums.answer(request)
        reply = wire.encode_reply(answer)
        left = Released(bytes=len(reply), masked=request.kind == "masked")
        audit.record(self.home / audit.FILE, audit.sum_event(request, datetime.now(), left, sites))
        return reply

    def _reply(self, request: Request) -> bytes:
        if request.broadcast is None:
            return wire.encode_reply(Ready(client=self.name, examples=100, version=wire.version()))
        if request.kind == "score":
            return wire.encode_reply(Scores(client=self.name, round=request.round, categories={}))
        kept = self.store.answered(request.run, request.id)
        update = kept.update if kept else self._trained(request, request.broadcast)
        if is_secure(request.settings):
            return wire.encode_reply(self.sums.trained(request, update))
        return wire.encode_reply(update)

    def _trained(self, request: Request, broadcast: Broadcast) -> Update:
        for name, tensor in broadcast.adapter.items():
            if not np.isfinite(tensor).all():
                raise ValueError(f"tensor {name} is not finite")
        update = Update(
            round=broadcast.round,
            clients=(self.name,),
            delta=self._sent(request, broadcast.adapter),
            weight=1.0,
            metrics={"loss": 1.0, "examples": 1.0, "tokens": 1.0, "trained_tokens": 1.0, "steps": 1.0},
        )
        kept = answered(request, broadcast.adapter, update, request.settings)
        self.store.save(request.run, kept)
        return update

    def _sent(self, request: Request, adapter: Adapter) -> Payload:
        change = self._changed(adapter)
        if not is_secure(request.settings):
            return change
        return Payload({name: np.rint(t / STEP).astype(np.int64) for name, t in change.items()})

    def _changed(self, adapter: Adapter) -> Adapter:
        """A change of the adapter's shapes, made once: the same in every round, another at every site."""
        if self._change.keys() != adapter.keys():
            rng = np.random.default_rng(list(self.name.encode()))
            self._change = Adapter(
                {name: STEP * rng.standard_normal(t.shape, np.float32) for name, t in adapter.items()}
            )
        return self._change

    def _note(self, visit: Visit) -> None:
        with open(self.home / TIMES, "a", encoding="utf8") as file:
            file.write(json.dumps(asdict(visit)) + "\n")


def _tensors(reply: bytes) -> int:
    read = wire.decode_reply(reply)  # as the trainer does, for its log
    return len(read.delta) if isinstance(read, Update) else 0


def visits(home: Path) -> list[Visit]:
    """What a stub has answered, in its order; without a line that a kill has cut."""
    try:
        lines = (home / TIMES).read_text(encoding="utf8").split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [Visit(**json.loads(line)) for line in lines]


def main(name: str, home: Path) -> None:
    """Serve until SIGTERM."""
    malloc.keep_pages()  # as a trainer does when it loads its base
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    ipc.serve(ipc.choose_address(home), Stub(name, home).handle, stopped=stopped)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
