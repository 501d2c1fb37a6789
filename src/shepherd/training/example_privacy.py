"""Differential privacy for each example of a client: DP-SGD (Abadi et al., arXiv 1607.00133) in the trainer.

    g  =  (sum over the batch of g_e min(1, C / |g_e|)  +  N(0, (z C)^2))  /  (expected size of the batch)

g_e is the gradient of one example over all trained tensors together, C the clipping norm and z the noise
multiplier. The examples of a pass get one row of gradients each, which is clipped and added to the sum of the
example's client, so a step never holds more rows than its largest pass.

The loss of an example is weighted as if it were the only one of its step. With supervised tuning that is the
mean over its own trained tokens: a mean over the step's tokens would make each example's gradient depend on
the others, and a sum would give long answers all the weight that clipping leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shepherd.core import Draws, FromSystem
from shepherd.errors import SettingsError
from shepherd.model import lora
from shepherd.model.base import Base
from shepherd.training.local import require_separate
from shepherd.training.objective import Objective
from shepherd.training.packed_batch import Row
from shepherd.training.stack import Stack

MIN_NORM, MAX_NORM = 1e-6, 1e9
"""Norms that float32 can clip to: the squares of very small values are 0 in it, so that what is longer than a
smaller norm may look as if it were not."""
BLOCK = 256
"""Values whose squares are added up at once; each addition in float32 rounds by 2^-24 at most."""
MARGIN = 1 - 2**-14
"""Factor of the norm that is clipped to, so that no rounding leaves a row longer than the norm. `lengths` has
up to four levels of blocks for 4 * 10^9 values, each of which is off by 2^-17 at most."""
MAX_ROW_BYTES = 2**30
"""Most memory for the gradients of single examples; a pass takes fewer examples if they would need more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamplePrivacy:
    """How the examples of each client are protected.

    Raises:
        SettingsError: the noise is not finite or not above 0, or the norm is not in what can be clipped to.
    """

    norm: float
    """Norm that the gradient of each example is clipped to."""
    noise: float
    """Noise multiplier: the standard deviation of a step's noise, as a multiple of `norm`."""
    draws: Draws = field(default_factory=FromSystem)
    """Randomness of the noise. Only tests give another: anyone who can repeat the noise can remove it."""

    def __post_init__(self) -> None:
        # both are false for NaN, too
        if not 0.0 < self.noise < math.inf:
            raise SettingsError(
                f"privacy.examples.noise is {self.noise}; give a finite number above 0, or remove"
                " [privacy.examples]"
            )
        if not MIN_NORM <= self.norm <= MAX_NORM:
            raise SettingsError(
                f"privacy.examples.norm is {self.norm}; give a number between {MIN_NORM:g} and {MAX_NORM:g},"
                " or remove [privacy.examples]"
            )


def require_possible(base: Base, objective: Objective) -> None:
    """Raise SettingsError if the gradient of a single example is not known, or an example is not one unit."""
    require_separate(objective)
    for target in base.targets:
        if target.parameter:
            raise SettingsError(
                f"{target.module}.{target.parameter} of base {base.name} stacks the matrices of experts,"
                " where the gradient of a single example is not known; set adapter.target_parameters = [], or"
                " remove [privacy.examples]"
            )


def fewest_tokens(values_per_row: int, micro_batch_tokens: int) -> int:
    """How many tokens an example counts at least, so that the rows of a pass fit in `MAX_ROW_BYTES`."""
    rows = max(1, MAX_ROW_BYTES // (4 * max(1, values_per_row)))
    return math.ceil(micro_batch_tokens / rows)


@dataclass(slots=True, kw_only=True)
class ClippedSums:
    """The clipped gradients of a step, added up for each client of a stack; one flat row of P values each.

    A row holds the trained tensors in the order of the stack, each B transposed.
    """

    privacy: ExamplePrivacy
    adapters: Stack
    sums: Tensor
    """(K, P)"""
    rows: Tensor
    """(E, P) of the largest pass so far."""

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The tensors of flat rows: name -> (n, r, in), or for a B (n, r, out)."""
        found, start = {}, 0
        for name, tensor in self.adapters.tensors.items():
            height, width = _row_shape(name, tensor)
            found[name] = flat[:, start : start + height * width].view(len(flat), height, width)
            start += height * width
        return found

    @contextmanager
    def collecting(self, base: Base, rows: Sequence[Row]) -> Iterator[None]:
        """Collect the gradients of one pass inside the `with`, and add them to the sums after it."""
        count = sum(len(row.examples) for row in rows)
        if len(self.rows) < count:
            self.rows = self.sums.new_empty(count, self.sums.shape[1])
        own = self.rows[:count].zero_()
        lora.bind_rows(base.model, base.targets, self.views(own))
        try:
            yield
        finally:
            lora.bind_rows(base.model, base.targets, {})
        start = 0
        for row in rows:  # of one client each, so no client's numbers reach another's
            stop = start + len(row.examples)
            self._add(row.client, own[start:stop])
            start = stop

    def _add(self, client: int, gradients: Tensor) -> None:
        views = self.views(gradients)
        for name, mask in self.adapters.masks.items():
            kept = mask[client] if _is_a(name) else mask[client].T
            views[name].mul_(kept)
        norms = lengths(gradients)
        finite = norms.isfinite()
        # what overflows has no bound, so it counts as nothing; to ask first would wait for a GPU
        if gradients.device.type != "cpu" or not finite.all():
            gradients.masked_fill_(~finite.unsqueeze(1), 0.0)
        self.sums[client] += scales(norms, self.privacy.norm) @ gradients

    def release(self, clients: Mapping[int, tuple[str, float]], step: int) -> None:
        """Write each client's noisy mean to the gradients of the stack, and begin the next step's sums.

        Args:
            clients: index in the stack -> name and expected size of a batch, for those that make this step.
        """
        privacy = self.privacy
        deviation = privacy.noise * privacy.norm
        for k, (name, expected) in clients.items():
            noise = privacy.draws.generator("example noise", name, step)
            drawn = torch.from_numpy(noise.normal(0.0, deviation, self.sums.shape[1])).to(self.sums)
            self.sums[k].add_(drawn).div_(expected)
        for name, own in self.views(self.sums).items():
            self.adapters.grad(name).copy_(own if _is_a(name) else own.transpose(1, 2))
        self.sums.zero_()


def begin(privacy: ExamplePrivacy, adapters: Stack) -> ClippedSums:
    """No gradients yet, for the clients of a stack."""
    count = len(next(iter(adapters.tensors.values())))
    sums = adapters.values.new_zeros(count, adapters.values.numel() // count)
    return ClippedSums(privacy=privacy, adapters=adapters, sums=sums, rows=sums[:0])


def lengths(rows: Tensor) -> Tensor:
    """The Euclidean norm of each row, (E, P) -> (E,), to 2^-15; not finite where a value is not.

    In blocks, whatever the order in which a device adds: one sum in float32 over millions of values can be
    short by a per cent, since each square is then a few units in its last place.
    """
    while rows.shape[1] > BLOCK:
        whole = rows.shape[1] // BLOCK * BLOCK
        blocks = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, BLOCK)), dim=2)
        rest = torch.linalg.vector_norm(rows[:, whole:], dim=1, keepdim=True)
        rows = torch.cat((blocks, rest), dim=1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def scales(norms: Tensor, norm: float) -> Tensor:
    """What rows of these lengths, (E,), are multiplied by to be `norm` long at most; 0 if not finite."""
    return torch.where(norms.isfinite(), (MARGIN * norm / norms).clamp(max=1.0), torch.zeros_like(norms))


def _is_a(name: str) -> bool:
    return ".lora_A." in name


def _row_shape(name: str, tensor: Tensor) -> tuple[int, int]:
    """(r, in) of an A (K, r, in), (r, out) of a B (K, out, r)."""
    _, first, second = tensor.shape
    return (first, second) if _is_a(name) else (second, first)
