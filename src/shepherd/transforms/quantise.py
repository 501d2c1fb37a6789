"""Send each number of a change in 8, 4 or 1 bits, rounded at random without a bias.

    s  =  max |x| over a block,    x  ->  s (2 c / L - 1),    c = 0 ... L

with L = 254, 14 or 1 for 8, 4 or 1 bits, so that 8 and 4 bits have a level at zero.
A number between two levels becomes one of them at random, so that its expectation is the number; it moves by
less than the step 2 s / L. This is QSGD's rounding (Alistarh et al., arXiv 1610.02132) with the largest size
of a block as its scale. A block is `block` numbers in a row of one tensor, or its last ones, and its scale
is sent as a bfloat16, rounded up. Blocks are short because a step is as long as the largest number in its
block asks for: one scale for a tensor or for a row of it costs more in error than it saves in bytes
(docs/decisions/0055-encodings.md has the numbers).

An update of n numbers in b blocks travels as ceil(n bits / 8) + 2 b bytes. What the algorithm sends beside
the change travels as it is. The broadcast stays in full precision.

With `feedback`, numbers become the nearest level, and a client adds what rounding left out to its next
change (error feedback, Karimireddy et al., arXiv 1901.09847); with one bit the scale is then the mean size.
Only a client that returns makes up for its rounding in that way. One bit without feedback is for large
cohorts: its noise is several times as large as the change of one client.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Strict

from shepherd.config import Table
from shepherd.core import Adapter, Broadcast, Draws, Layout, Original, Payload, Transform, Update, shapes_of
from shepherd.core.encoding import (
    Flat,
    blocks,
    dequantised,
    flattened,
    quantised,
    rebuilt,
    require_parts,
    size_of,
)
from shepherd.errors import UpdateRefused
from shepherd.transforms.clip import clipped

NAME = "quantise"
CODES, SCALES = "codes", "scales"
Bits = Literal[1, 4, 8]
Block = Annotated[int, Strict(), Field(ge=8, le=2**20)]
Write = Callable[[Flat, Layout, np.random.Generator | None], Payload]
"""`(numbers of a change, their layout, randomness) -> what is sent`; the nearest codes without randomness."""
Read = Callable[[Payload, Layout], Flat]
"""`(what was sent, the layout of the change) -> its numbers`; raises UpdateRefused if it cannot be read."""


class Config(Table):
    bits: Bits = 8
    """Bits of one number: 8, 4 or 1."""
    block: Block = 64
    """Numbers that share a scale of 16 bits."""
    feedback: bool = False
    """Whether a client adds what rounding left out to its next change, for clients that are asked again."""


def build(config: Config) -> Transform:
    """Build both halves: encode at the client, decode on arrival."""

    def starts(layout: Layout) -> NDArray[np.int64]:
        return blocks({name: size_of(shape) for name, shape in layout.items()}, config.block)

    def write(row: Flat, layout: Layout, rng: np.random.Generator | None) -> Payload:
        codes, scales = quantised(row, starts(layout), config.bits, rng)
        return Payload({CODES: codes, SCALES: scales})

    def read(sent: Payload, layout: Layout) -> Flat:
        require_parts(sent, (CODES, SCALES), NAME)
        size = sum(map(size_of, layout.values()))
        return dequantised(sent[CODES], sent[SCALES], starts(layout), size, config.bits)

    return encoding(write, read, feedback=config.feedback)


def encoding(write: Write, read: Read, *, feedback: bool) -> Transform:
    """A transform that encodes changes; with `feedback`, clients add what it left out to their next one.

    What was left out of tensors that a round does not send waits for one that does; what was left out of a
    tensor that has another shape now is dropped. A change that cannot be read again leaves nothing behind.
    """

    def on_client(update: Update, public: Any, draws: Draws) -> Update:
        row, layout = flattened(update.delta), shapes_of(update.delta)
        return replace(update, delta=write(row, layout, draws.generator("rounding")))

    def remember(
        update: Update, public: Any, draws: Draws, broadcast: Broadcast, memory: Payload
    ) -> tuple[Update, Payload]:
        layout = shapes_of(update.delta)
        left = {
            name: memory[name] for name in layout if name in memory and memory[name].shape == layout[name]
        }
        row = flattened({name: t + left.get(name, np.float32(0)) for name, t in update.delta.items()})
        sent = write(row, layout, None)
        with suppress(UpdateRefused):
            memory = Payload({**memory, **rebuilt(row - read(sent, layout), layout)})
        return replace(update, delta=sent), memory

    def decode(update: Update, state: Any, original: Original) -> Update:
        row = read(update.delta, original.layout)
        found = replace(update, delta=Adapter(rebuilt(row, original.layout)))
        return clipped(found, original.norm) if original.norm < math.inf else found

    if feedback:
        return Transform(remember=remember, decode=decode)
    return Transform(on_client=on_client, decode=decode)
