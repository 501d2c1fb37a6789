"""What aggregating costs the server: seconds and peak memory, by the number of updates.

    python -m benchmarks.aggregating [--rules mean zero_padding] [--counts 10 100 1000 10000]
                                     [--product-rules product side] [--cohorts 5 20 50]

First the rules that stream, over updates of 4 MB, which are made one at a time as the rule asks for them;
making them is not in the seconds. Memory must not grow with the number of updates. For the mean also how
much it moves a second, as a share of what the machine copies just before and after: of each number it reads
4 bytes and reads and writes a sum of 8, and copying counts reading and writing, too. Both are of processor
time, which other work on the machine disturbs less. The sums of 4 MB of numbers fit into a large cache, so it
is measured on the adapter of a base of seven billion parameters as well (72 MB).

Then the rules that sum products, for one layer of a base of seven billion parameters (LLaMA: rank 8 at q, k,
v, gate, up and down), times its 32 layers. They hold all updates of a round.

Each cell is a process of its own; its memory is the most that it held over what it held before it began.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np

from benchmarks import common
from benchmarks.common import Figures, Table
from shepherd import aggregations, plugins
from shepherd.config import PartTable
from shepherd.core import Adapter, Aggregation, Context, Layout, ServerState, Update, padded
from shepherd.machine import memory

RANK, LAYERS = 8, 32
SMALL = {f"m{k}": (1024, 1024) for k in range(64)}
"""Matrices (in, out) whose factors of rank 8 are 4 MB."""
LAYER = {
    "q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096),
    "gate": (4096, 11008), "up": (4096, 11008), "down": (11008, 4096),
}  # fmt: skip
LARGE = {f"{layer}.{name}": sizes for layer in range(LAYERS) for name, sizes in LAYER.items()}
TINY = {"q": (16, 16)}
BYTES_MOVED = 4 + 2 * 8  # of each number: it is read, and its sum is read and written
COPIED, COPIES = 64 * 2**20, 8  # bytes, more than a cache holds; before a cell and again after it
TARGET = 0.5  # of what the machine copies
MAX_GROWTH = 2.0  # updates of memory that a rule that streams may need more of at the largest count
POOL = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One rule over some updates."""

    rule: str
    matrices: dict[str, tuple[int, int]]
    count: int
    seed: int


def main(arguments: Sequence[str] | None = None) -> int:
    streaming = [name for name in plugins.names(aggregations) if _built(name).streams]
    rest = [each for each in plugins.names(aggregations) if each not in streaming]
    product = [name for name in rest if not _built(name).needs_root]  # there is no server with examples
    parser = common.parser(__doc__)
    parser.add_argument("--rules", nargs="*", default=streaming, help="rules that stream (default: all)")
    parser.add_argument("--counts", nargs="+", type=int, default=(10, 100, 1000, 10000), help="updates")
    parser.add_argument("--product-rules", nargs="*", default=product, help="others (default: all)")
    parser.add_argument("--cohorts", nargs="+", type=int, default=(5, 20, 50), help="their updates")
    return common.run(parser.parse_args(arguments), measure, tables)


def _built(name: str) -> Aggregation:
    return plugins.aggregation(PartTable(name=name))


def measure(options: Namespace) -> Figures:
    threads = str(memory.threads())
    os.environ |= {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}  # of the cells' numpy
    counts, cohorts = sorted(options.counts), sorted(options.cohorts)
    small, large, layer = SMALL, LARGE, LAYER
    if options.quick:
        counts, cohorts, small, large, layer = [3, 6], [5], TINY, TINY, TINY
    streaming = [_apart(Cell(rule, small, count, options.seed)) for rule in options.rules for count in counts]
    seven = [_apart(Cell("mean", large, count, options.seed)) for count in counts[:3]]
    product = [
        _apart(Cell(rule, layer, count, options.seed)) for rule in options.product_rules for count in cohorts
    ]
    means = [cell for cell in (*streaming, *seven) if cell["rule"] == "mean"]
    for cell in means:
        moved = cell["numbers"] * cell["count"] * BYTES_MOVED / cell["cpu_seconds"]
        cell["share_of_copy"] = moved / cell["copied_per_second"]
    largest = {cell["numbers"]: cell["share_of_copy"] for cell in means}  # the first updates touch new memory
    growth = _growth(streaming)
    return {
        "copied_per_second": median(cell["copied_per_second"] for cell in (*streaming, *seven)),
        "streaming": [*streaming, *seven],
        "product": product,
        "layers": LAYERS,
        "growth": growth,
        "passed": options.quick
        or (min(largest.values(), default=1.0) >= TARGET and max(growth.values(), default=0.0) <= MAX_GROWTH),
    }


def _growth(cells: Sequence[Figures]) -> dict[str, float]:
    """How many updates of memory each rule needs more of for its most updates than for its fewest."""
    found: dict[str, list[Figures]] = {}
    for cell in cells:
        if cell["peak_bytes"] is not None:
            found.setdefault(cell["rule"], []).append(cell)
    return {
        rule: (own[-1]["peak_bytes"] - own[0]["peak_bytes"]) / own[0]["update_bytes"]
        for rule, own in found.items()
    }


def _apart(cell: Cell) -> Figures:
    """Measure one cell in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (cell,))


def _measure(cell: Cell) -> Figures:
    aggregation = _built(cell.rule)
    shapes = layout(cell.matrices)
    rng = np.random.default_rng(cell.seed)
    broadcast = padded(drawn(shapes, rng, 0.02), aggregation.side_rank)
    state = ServerState(round=0, adapter=broadcast)
    made = Made([dict(drawn(shapes, rng, 1e-3)) for _ in range(min(POOL, cell.count))], cell.count)
    copies = _copies()
    before = _reset_peak()
    began, began_cpu = perf_counter(), process_time()
    aggregation.combine(state, iter(made), Context(rank=RANK))
    cpu_seconds = process_time() - began_cpu - made.cpu_seconds
    seconds = perf_counter() - began - made.seconds
    held = _peak_bytes()
    return {
        "rule": cell.rule,
        "count": cell.count,
        "numbers": sum(int(np.prod(shape)) for shape in shapes.values()),
        "update_bytes": 4 * sum(int(np.prod(shape)) for shape in shapes.values()),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "copied_per_second": median([*copies, *_copies()]),
        "peak_bytes": None if before is None or held is None else held - before,
    }


class Made:
    """Updates that are made one at a time, and the seconds that making them took."""

    def __init__(self, pool: Sequence[dict[str, np.ndarray]], count: int) -> None:
        self.pool, self.count = pool, count
        self.seconds = self.cpu_seconds = 0.0

    def __iter__(self) -> Iterator[Update]:
        for k in range(self.count):
            began, began_cpu = perf_counter(), process_time()
            delta = Adapter({name: tensor.copy() for name, tensor in self.pool[k % len(self.pool)].items()})
            update = Update(round=0, clients=(f"c{k}",), weight=float(1 + k % 7), delta=delta)
            del delta
            self.seconds += perf_counter() - began
            self.cpu_seconds += process_time() - began_cpu
            yield update
            del update


def layout(matrices: dict[str, tuple[int, int]]) -> Layout:
    """Shapes of the factors of rank 8 at matrices of these sizes (in, out)."""
    a = {f"{name}.lora_A.weight": (RANK, width) for name, (width, _) in matrices.items()}
    return {**a, **{f"{name}.lora_B.weight": (out, RANK) for name, (_, out) in matrices.items()}}


def drawn(shapes: Layout, rng: np.random.Generator, size: float) -> Adapter:
    """Normal numbers of this standard deviation in every tensor."""
    return Adapter(
        {name: size * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    )


def _copies() -> list[float]:
    """Bytes read and written in a second of processor time by each of some copies of memory."""
    one = np.ones(COPIED // 8)
    two = np.zeros_like(one)
    found = []
    for _ in range(COPIES):
        began = process_time()
        np.copyto(two, one)
        found.append(2 * one.nbytes / (process_time() - began))
    return found


def _reset_peak() -> int | None:
    """Measure this process's peak from now on; the bytes held now, or None if the system does not say."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf8")
        return _status("VmRSS")
    return None


def _peak_bytes() -> int | None:
    return _status("VmHWM")


def _status(key: str) -> int | None:
    with suppress(OSError):
        text = Path("/proc/self/status").read_text(encoding="utf8")
        if found := re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE):
            return int(found[1]) * 1024
    return None


def tables(figures: Figures) -> list[Table]:
    rows = [
        (
            f"{cell['rule']}, {cell['update_bytes'] / 1e6:.1f} MB",
            common.count(cell["count"]),
            f"{cell['seconds']:.2f}",
            f"{1e3 * cell['seconds'] / cell['count']:.2f}",
            _megabytes(cell),
            common.share(cell.get("share_of_copy")),
        )
        for cell in figures["streaming"]
    ]
    copied = f"this machine copies {figures['copied_per_second'] / 1e9:.1f} GB/s, read and written"
    growth = ", ".join(f"{rule} {by:+.1f}" for rule, by in figures["growth"].items())
    first = Table(
        "Rules that stream",
        ("rule, update", "updates", "seconds", "ms an update", "peak MB", "of copying"),
        rows,
        (copied, f"memory from the fewest to the most updates, in updates: {growth}"),
    )
    layers = figures["layers"]
    whole = [
        (
            cell["rule"],
            str(cell["count"]),
            f"{cell['seconds']:.2f}",
            f"{layers * cell['seconds']:.0f}",
            _megabytes(cell),
        )
        for cell in figures["product"]
    ]
    columns = ("rule", "updates", "seconds a layer", f"seconds, {layers} layers", "peak MB, one layer")
    return [first, Table("Rules that sum products, 7B shapes, rank 8", columns, whole)]


def _megabytes(cell: Figures) -> str:
    return "" if cell["peak_bytes"] is None else f"{cell['peak_bytes'] / 1e6:.0f}"


if __name__ == "__main__":
    sys.exit(main())
