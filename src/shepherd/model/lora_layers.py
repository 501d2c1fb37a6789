"""LoRA layers that hold a stack of adapters over one frozen base: row k of a batch belongs to adapter k.

`y = base(x) + scale * B_k A_k dropout(x)` for every token of the rows of adapter k (LoRA, arXiv
2106.09685), in linear modules and in each expert of a mixture whose matrices are stacked in one parameter.
One forward pass trains K clients, and their gradients are never mixed. Where a plan names its examples, the
gradient of each example is added to a row of its own instead, in `Rows`, so that it can be clipped by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shepherd.core import seed_for
from shepherd.errors import BaseError
from shepherd.model.pass_plan import Examples, Groups, PassPlan, Segment, active_plan, apart
from shepherd.model.transfer import to_device


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the gradient of each example of a pass is added: of A (E, r, in), of B transposed (E, r, out).

    None for a factor that is not trained.
    """

    a: Tensor | None
    b: Tensor | None


NO_ROWS = Rows(None, None)
GROUPED_MULTIPLE, MAX_GROUPS = 8, 1024
"""Of a rank and a width, so that rows of bfloat16 begin at 16 bytes; and of groups that a kernel takes."""
GROUPED_MAJORS = (9, 10)
"""Compute capabilities (Hopper, datacentre Blackwell) that have the kernel; on others PyTorch copies the ends
of the groups to the host at each product and multiplies group by group (ATen/native/GroupedMMUtils.h)."""


class StackedLinear(nn.Module):
    """A frozen linear module with a stack of K adapters: A (K, r, in), B (K, out, r), float32."""

    a: Tensor
    b: Tensor

    def __init__(self, base: nn.Module, *, scale: float, dropout: float, index: int = 0) -> None:
        super().__init__()
        self.base = base
        self.index = index
        self.scale = scale
        self.dropout = dropout
        self.rows = NO_ROWS

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):  # some architectures read their dtype
            return getattr(self.base, name)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out); the active plan says which tokens belong to which adapter."""
        plan = active_plan()
        if plan is None:
            return self.base(x)  # type: ignore[no-any-return]
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        segments = _in_tokens(plan, len(flat))
        if plan.answering:
            y = _answered(self.base(flat), flat, self.a, self.b, segments)
            return y.view(*x.shape[:-1], y.shape[-1])
        examples = _examples_in_tokens(plan, len(flat), flat.device)
        dropout = self.dropout if plan.training else 0.0
        keep = _dropout_mask(flat, examples.segments if examples else segments, dropout, self.index)
        groups = plan.groups if len(flat) == plan.size and plan.examples is None else None
        if groups is not None and grouped_takes(flat, self.a, self.b):
            added = grouped_lora(flat if keep is None else flat * keep, self.a, self.b, groups)
            return torch.add(self.base(flat), added, alpha=self.scale).view(*x.shape[:-1], added.shape[-1])
        passed, low = _Down.apply(flat, self.a, segments, keep, examples, self.rows.a)  # type: ignore[no-untyped-call]
        y = self.base(passed if flat.requires_grad else flat)  # flat, since it is added to in place
        y = _Up.apply(y, low, self.b, segments, self.scale, examples, self.rows.b)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], y.shape[-1])  # type: ignore[no-any-return]


def grouped_takes(x: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether one grouped product over all adapters is possible and worth it: bfloat16 on Hopper, K > 1."""
    sizes = a.shape[1], a.shape[2], b.shape[1]
    aligned = all(size % GROUPED_MULTIPLE == 0 for size in sizes)
    return aligned and 1 < len(a) <= MAX_GROUPS and x.dtype == torch.bfloat16 and _has_grouped(x.device)


@lru_cache(maxsize=8)
def _has_grouped(device: torch.device) -> bool:
    known = hasattr(torch.nn.functional, "grouped_mm")  # PyTorch 2.10
    return known and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in GROUPED_MAJORS


def grouped_lora(x: Tensor, a: Tensor, b: Tensor, groups: Groups) -> Tensor:
    """B_k A_k x of each token's adapter k, by one product for all A and one for all B: (tokens, out).

    x (tokens, in), a (K, r, in), b (K, out, r).
    """
    a, b = (factor.to(x.dtype).index_select(0, groups.adapters) for factor in (a, b))  # (G, ...)
    low = _Grouped.apply(x, a.transpose(1, 2), groups.ends)  # type: ignore[no-untyped-call]
    return _Grouped.apply(low, b.transpose(1, 2), groups.ends)  # type: ignore[no-any-return, no-untyped-call]


class _Grouped(torch.autograd.Function):
    """x (tokens, in) by matrices (G, in, out), each group of tokens by its own: (tokens, out).

    A function of its own since the kernel refuses gradients that are not contiguous.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrices, ends)
        return F.grouped_mm(x.contiguous(), matrices, offs=ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, matrices, ends = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_x = grad_matrices = None
        if ctx.needs_input_grad[0]:
            grad_x = F.grouped_mm(grad, matrices.transpose(1, 2), offs=ends)
        if ctx.needs_input_grad[1]:
            grad_matrices = F.grouped_mm(x.contiguous().T, grad, offs=ends)
        return grad_x, grad_matrices, None


class StackedExperts(nn.Module):
    """Frozen experts, some of whose stacked parameters carry a stack of K adapters, float32.

    `factors` holds, by parameter, A (K, E r, in) and B (K, out, r E), laid out as in PEFT's `ParamWrapper`:
    the rows of A are expert by expert, the columns of B rank by rank. The change of expert e for adapter k
    is scale * B_ke A_ke, which is never computed as a matrix.
    """

    factors: dict[str, tuple[Tensor, Tensor]]

    def __init__(self, base: nn.Module, *, scale: float) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.factors = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # the block around the experts may read their attributes
            return getattr(super().__getattr__("base"), name)

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """(tokens, width), each token's experts and their weights (tokens, choices) -> (tokens, width)."""
        plan = active_plan()
        if plan is None:
            return self.base(hidden, chosen, weights)  # type: ignore[no-any-return]
        if plan.examples and self.factors:
            raise BaseError(
                "the gradients of single examples are not known in the stacked matrices of experts; set"
                " adapter.target_parameters = [], or remove [privacy.examples]"
            )
        base: Any = self.base
        tokens, choices = chosen.shape
        routed = _route(chosen, _in_tokens(plan, tokens), base.num_experts, plan.answering)
        x = hidden.unsqueeze(1).expand(-1, choices, -1).reshape(tokens * choices, hidden.shape[-1])
        x = x.index_select(0, routed.pairs)  # each pair once, so that gradients are summed in a fixed order
        x = self._product(x, "gate_up_proj" if base.has_gate else "up_proj", routed)
        x = base._apply_gate(x) if base.has_gate else base.act_fn(x)
        x = self._product(x, "down_proj", routed)
        if getattr(base, "has_post_expert_norm", False):
            x = base.post_expert_norm(x)
        x = x * weights.reshape(-1, 1).index_select(0, routed.pairs)
        y = x.new_zeros(tokens * choices, x.shape[1]).index_copy(0, routed.pairs, x)
        return y.view(tokens, choices, y.shape[-1]).sum(1).to(hidden.dtype)

    def _product(self, x: Tensor, name: str, routed: _Routed) -> Tensor:
        """(pairs, in) -> (pairs, out), by the matrix of each pair's expert and the factors of its adapter."""
        stack: Tensor = getattr(self.base, name)  # (E, out, in), or (E, in, out) where transposed
        matrices = stack if self.base.is_transposed else stack.transpose(1, 2)
        if name not in self.factors:
            return self._frozen(x, matrices, name, routed)
        a, b = self.factors[name]
        experts = len(stack)
        a = a.reshape(len(a) * experts, -1, a.shape[2])  # (K E, r, in)
        b = b.unflatten(2, (-1, experts)).permute(0, 3, 1, 2).flatten(0, 1)  # (K E, out, r)
        passed, low = _Down.apply(x, a, routed.segments, None, None, None)  # type: ignore[no-untyped-call]
        y = self._frozen(passed if x.requires_grad else x, matrices, name, routed)
        scale = 1.0 if routed.answering else self.scale
        return _Up.apply(y, low, b, routed.segments, scale, None, None)  # type: ignore[no-any-return, no-untyped-call]

    def _frozen(self, x: Tensor, matrices: Tensor, name: str, routed: _Routed) -> Tensor:
        parts = zip(x.split(routed.counts), matrices, strict=True)
        y = torch.cat([part @ matrix for part, matrix in parts])  # an expert without tokens gives no row
        if self.base.has_bias:
            y = y + getattr(self.base, f"{name}_bias").index_select(0, routed.experts)
        return y


@dataclass(frozen=True, slots=True, kw_only=True)
class _Routed:
    """Pairs of a token and one of its experts, sorted by expert and then by segment."""

    pairs: Tensor  # (P,) which of the (tokens * choices)
    experts: Tensor  # (P,)
    counts: list[int]  # (E,) pairs of each expert
    segments: tuple[Segment, ...]  # of the pairs; adapter k at expert e counts as adapter k E + e
    answering: bool  # as in the plan


def _route(chosen: Tensor, segments: Sequence[Segment], experts: int, answering: bool) -> _Routed:
    """Sort the choices by expert and segment; those without an expert (numbers of E or more) are left out."""
    stops = torch.tensor([s.stop for s in segments], device=chosen.device)
    tokens = torch.arange(len(chosen), device=chosen.device)
    owners = torch.searchsorted(stops, tokens, right=True)  # (tokens,) the segment of each
    key = (chosen * len(segments) + owners.unsqueeze(1)).reshape(-1)
    pairs = key.argsort(stable=True)
    counts = key.bincount(minlength=experts * len(segments))[: experts * len(segments)].tolist()
    found, start = [], 0
    for index, count in enumerate(counts):
        expert, owner = divmod(index, len(segments))
        if count:
            adapter = segments[owner].adapter * experts + expert
            found.append(Segment(adapter=adapter, start=start, stop=start + count))
        start += count
    pairs = pairs[:start]
    each = [sum(counts[e : e + len(segments)]) for e in range(0, len(counts), len(segments))]
    return _Routed(
        pairs=pairs,
        experts=chosen.reshape(-1).index_select(0, pairs),
        counts=each,
        segments=tuple(found),
        answering=answering,
    )


def _answered(y: Tensor, x: Tensor, a: Tensor, b: Tensor, segments: Sequence[Segment]) -> Tensor:
    """y (tokens, out) + B_k A_k x, in place and without a gradient; the scale is in B.

    One product for all adapters (`bmm`) is slower on a processor in bfloat16, at any number of tokens.
    """
    a, b = a.to(x.dtype), b.to(y.dtype)
    for s in segments:
        low = x[s.start : s.stop] @ a[s.adapter].T
        y[s.start : s.stop].addmm_(low, b[s.adapter].T)
    return y


def _in_tokens(plan: PassPlan, tokens: int) -> tuple[Segment, ...]:
    if tokens == plan.size:
        return plan.segments
    if len(plan.segments) == 1:  # all tokens are one client's, whatever a router chose
        return (replace(plan.segments[0], start=0, stop=tokens),)
    each, left = divmod(tokens, plan.size)
    if left:
        raise BaseError(
            "this base routes tokens between its layers (a mixture of experts?), so the clients' rows cannot"
            " be separated there; set other adapter.targets, such as the attention's"
        )
    return tuple(Segment(adapter=s.adapter, start=s.start * each, stop=s.stop * each) for s in plan.segments)


def _examples_in_tokens(plan: PassPlan, tokens: int, device: torch.device) -> Examples | None:
    if plan.examples is None or tokens == plan.size:
        return plan.examples
    each, left = divmod(tokens, plan.size)
    if left:
        raise BaseError(
            "this base routes tokens between its layers (a mixture of experts?), so the gradients of single"
            " examples are not known there; set other adapter.targets, such as the attention's, or remove"
            " [privacy.examples]"
        )
    scaled = [replace(s, start=s.start * each, stop=s.stop * each) for s in plan.examples.segments]
    return to_device(apart(_in_tokens(plan, tokens), scaled), device)


def _dropout_mask(x: Tensor, segments: Sequence[Segment], p: float, index: int) -> Tensor | None:
    """Mask (tokens, in) of 0 or 1 / (1 - p), drawn from each row's and layer's own seed (law 1)."""
    if p == 0.0:
        return None
    mask = torch.empty_like(x)
    for segment in segments:
        generator = torch.Generator(x.device).manual_seed(seed_for(segment.dropout_seed, index))
        mask[segment.start : segment.stop].bernoulli_(1 - p, generator=generator)
    return mask.div_(1 - p)


class _Down(torch.autograd.Function):
    """x (tokens, in) -> x itself for the base, and A_k dropout(x), (r, n) per segment, end to end.

    The base's gradient by x passes through here, and the stack's is added to it in place. The low-rank side
    is (r, n), because products with a transposed tall matrix are slow on a processor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        segments: tuple[Segment, ...],
        keep: Tensor | None,
        examples: Examples | None,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        a = a.to(x.dtype)
        dropped = x if keep is None else x * keep
        low = x.new_empty(x.shape[0] * a.shape[1])
        for s, part in _segment_parts(low, segments, a.shape[1]):
            torch.mm(a[s.adapter], dropped[s.start : s.stop].T, out=part)
        ctx.save_for_backward(x, a, keep)
        ctx.segments, ctx.examples, ctx.rows = segments, examples, rows
        return x, low

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_low = grads
        x, a, keep = ctx.saved_tensors
        grad_a = None
        if ctx.needs_input_grad[1] and not ctx.examples:
            grad_a = torch.zeros(a.shape, device=x.device)
        elif ctx.needs_input_grad[1]:
            _add_by_example(ctx.rows, grad_low, ctx.segments, ctx.examples, x if keep is None else x * keep)
        for s, part in _segment_parts(grad_low, ctx.segments, a.shape[1]):
            rows = slice(s.start, s.stop)
            if grad_a is not None:
                grad_a[s.adapter] += part @ (x[rows] if keep is None else x[rows] * keep[rows])  # (r, in)
            if grad_x is not None and keep is None:
                grad_x[rows].addmm_(part.T, a[s.adapter])
            elif grad_x is not None:
                grad_x[rows] += (part.T @ a[s.adapter]) * keep[rows]
        return grad_x, grad_a, None, None, None, None


class _Up(torch.autograd.Function):
    """y (tokens, out) + scale * B_k low, in place, one product per segment; `low` is from `_Down`."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        low: Tensor,
        b: Tensor,
        segments: tuple[Segment, ...],
        scale: float,
        examples: Examples | None,
        rows: Tensor | None,
    ) -> Tensor:
        ctx.mark_dirty(y)
        b = (b * scale).to(y.dtype)
        for s, part in _segment_parts(low, segments, b.shape[2]):
            y[s.start : s.stop].addmm_(part.T, b[s.adapter].T)
        ctx.save_for_backward(low, b)
        ctx.segments, ctx.scale, ctx.examples, ctx.rows = segments, scale, examples, rows
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # (tokens, out)
        low, b = ctx.saved_tensors
        grad_low = torch.empty_like(low)
        grad_b = None
        if ctx.needs_input_grad[2] and not ctx.examples:
            grad_b = torch.zeros(b.shape, device=b.device)
        elif ctx.needs_input_grad[2]:
            _add_by_example(ctx.rows, low, ctx.segments, ctx.examples, grad, ctx.scale)
        parts = zip(
            _segment_parts(low, ctx.segments, b.shape[2]),
            _segment_parts(grad_low, ctx.segments, b.shape[2]),
            strict=True,
        )
        for (s, part), (_, grad_part) in parts:
            rows = grad[s.start : s.stop]
            torch.mm(b[s.adapter].T, rows.T, out=grad_part)
            if grad_b is not None:
                grad_b[s.adapter] += (part @ rows).T
        grad_b = None if grad_b is None else grad_b.mul_(ctx.scale)
        return grad, grad_low, grad_b, None, None, None, None


def _add_by_example(
    rows: Tensor,
    low: Tensor,
    segments: Sequence[Segment],
    examples: Examples,
    wide: Tensor,
    scale: float = 1.0,
) -> None:
    """Add scale * low_e wide_e of each example e to its row: (r, n) by (n, width) -> (r, width).

    One product for each bucket of examples: many small ones are slow on every device.
    """
    parts = [part for _, part in _segment_parts(low, segments, rows.shape[1])]
    for bucket in examples.buckets:
        count, _, width = bucket.real.shape
        narrow = parts[bucket.segment].index_select(1, bucket.within).view(-1, count, width)
        narrow = narrow.transpose(0, 1) * bucket.real.to(narrow.dtype)  # (n, r, width)
        own = wide.index_select(0, bucket.tokens).view(count, width, -1)
        rows.index_add_(0, bucket.rows, torch.bmm(narrow, own).to(rows.dtype), alpha=scale)


def _segment_parts(low: Tensor, segments: Sequence[Segment], rank: int) -> Iterator[tuple[Segment, Tensor]]:
    """Each segment's (r, n) in the flat (r * tokens,)."""
    for s in segments:
        yield s, low[rank * s.start : rank * s.stop].view(rank, s.stop - s.start)
