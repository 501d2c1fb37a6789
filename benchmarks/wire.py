"""Encoding and decoding of messages between server and sites, against safetensors on the same tensors.

    python -m benchmarks.wire [--turns 9]

An update and a request to train, of the adapter of a base of seven billion parameters (LLaMA: rank 8 at q,
k, v, gate, up and down, 72 MB in float32), in this process and on one thread. The sides take turns; speeds
are bytes of the tensors by medians of processor time. The aim is 1 GB/s, or what safetensors does. `copy` is
one copy of the tensors, the floor of anything that returns bytes of its own.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from benchmarks import common
from benchmarks.aggregating import LARGE, TINY, drawn, layout
from benchmarks.common import Figures, Table
from shepherd.core import Broadcast, Update
from shepherd.silos.protocol import wire

AIM = 1e9
"""Bytes a second of processor time."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--turns", type=int, default=9, help="turns of each side (default 9)")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    rng = np.random.default_rng(options.seed)
    adapter = drawn(layout(TINY if options.quick else LARGE), rng, 1e-3)
    tensors = dict(adapter)
    update = Update(round=0, clients=("clinic",), weight=100.0, delta=adapter)
    request = _request(Broadcast(round=0, adapter=adapter, seed=0))
    reply, asked, plain = wire.encode_reply(update), wire.encode_request(request), save(tensors)
    _require_same(wire.decode_reply(reply), adapter)
    sides: dict[str, Callable[[], object]] = {
        "copy": lambda: {name: tensor.copy() for name, tensor in tensors.items()},
        "safetensors, encode": lambda: save(tensors),
        "update, encode": lambda: wire.encode_reply(update),
        "request, encode": lambda: wire.encode_request(request),
        "safetensors, decode": lambda: load(plain),
        "update, decode": lambda: wire.decode_reply(reply),
        "request, decode": lambda: wire.decode_request(asked),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(2 if options.quick else options.turns):
        for name, do in sides.items():
            began = process_time()
            do()
            taken[name].append(process_time() - began)
    size = sum(tensor.nbytes for tensor in tensors.values())
    cases = {name: _speeds(each, size) for name, each in taken.items()}
    aims = {name: min(AIM, cases[_peer(name)]["median"]) for name in cases if _peer(name)}
    return {
        "bytes": size,
        "message_bytes": len(reply),
        "speeds": cases,
        "passed": options.quick or all(cases[name]["most"] >= aim for name, aim in aims.items()),
    }


def _peer(name: str) -> str:
    """The side that does the same without a message around it; "" for a side that is itself one."""
    what, _, doing = name.partition(", ")
    return f"safetensors, {doing}" if what in ("update", "request") else ""


def _speeds(seconds: Sequence[float], size: int) -> Mapping[str, float]:
    return {
        "median": size / max(median(seconds), 1e-9),
        "least": size / max(*seconds, 1e-9),
        "most": size / max(min(seconds), 1e-9),
    }


def _request(broadcast: Broadcast) -> wire.Request:
    return wire.Request(
        kind="train",
        run="0" * 16,
        id="0" * 64,
        round=0,
        deadline=60.0,
        sent=1.8e9,
        version=wire.version(),
        cohort=3,
        base="0" * 64,
        settings={},
        broadcast=broadcast,
    )


def _require_same(found: object, adapter: Mapping[str, Any]) -> None:
    assert isinstance(found, Update)
    assert all(np.array_equal(found.delta[name], tensor) for name, tensor in adapter.items())


def tables(figures: Figures) -> Sequence[Table]:
    rows = []
    for name, speed in figures["speeds"].items():
        peer = figures["speeds"].get(_peer(name))
        rows.append(
            (
                name,
                f"{speed['median'] / 1e9:.2f}",
                f"{speed['least'] / 1e9:.2f} to {speed['most'] / 1e9:.2f}",
                f"{speed['median'] / peer['median']:.2f}" if peer else "",
            )
        )
    notes = (
        f"{figures['bytes'] / 1e6:,.1f} MB of tensors, {figures['message_bytes'] / 1e6:,.1f} MB as a message",
    )
    return [Table("On the wire", ("side", "GB/s", "least to most", "of safetensors"), rows, notes)]


if __name__ == "__main__":
    sys.exit(main())
