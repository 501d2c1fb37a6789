"""One grouped product over all adapters against each adapter's own products."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shepherd.model import lora_layers, pass_plan
from shepherd.model.lora_layers import Rows, StackedLinear, grouped_takes
from shepherd.model.pass_plan import Segment

CPU, INPUTS, OUTPUTS, RANK = torch.device("cpu"), 16, 24, 8


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def plan_of(counts: list[int], order: list[int]) -> pass_plan.PassPlan:
    segments, start = [], 0
    for adapter, count in zip(order, counts, strict=True):
        segments.append(Segment(adapter=adapter, start=start, stop=start + count, dropout_seed=adapter))
        start += count
    return pass_plan.packed([start], segments, CPU, training=True, cuda=True)


def run(plan: pass_plan.PassPlan, grouped: bool, dropout: float, patch: pytest.MonkeyPatch) -> list[Tensor]:
    """The output of a layer and its gradients by x, A and B, where the one that comes is not contiguous."""
    patch.setattr(lora_layers, "grouped_takes", lambda *given: grouped)
    linear = nn.Linear(INPUTS, OUTPUTS).requires_grad_(False)
    with torch.no_grad():
        linear.weight.copy_(drawn(OUTPUTS, INPUTS, seed=9))
        linear.bias.zero_()
    layer = StackedLinear(linear, scale=0.5, dropout=dropout)
    x, a, b = (
        drawn(1, plan.size, INPUTS, seed=0),
        drawn(4, RANK, INPUTS, seed=1),
        drawn(4, OUTPUTS, RANK, seed=2),
    )
    layer.a, layer.b = a, b
    with pass_plan.use_plan(plan):
        y = layer(x)
    outer = drawn(1, OUTPUTS, plan.size, seed=3).detach().transpose(1, 2)
    return [y, *torch.autograd.grad((y * outer).sum(), (x, a, b))]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.permutations(range(4)),
    st.sampled_from([0.0, 0.5]),
)
def test_outputs_and_gradients_are_those_of_each_adapter(counts, order, dropout) -> None:
    plan = plan_of(counts, order[: len(counts)])
    assert plan.groups is not None
    with pytest.MonkeyPatch.context() as patch:
        ours, plain = (run(plan, grouped, dropout, patch) for grouped in (True, False))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_examples_that_are_kept_apart_get_their_rows_where_groups_are_taken(monkeypatch) -> None:
    """A grouped product has one gradient for each adapter, so none may run where examples have theirs."""
    monkeypatch.setattr(lora_layers, "grouped_takes", lambda *given: True)
    borders = [(0, 0, 3), (0, 3, 5), (1, 5, 9), (1, 9, 10)]  # adapter, start, stop of each example
    segments = [Segment(adapter=0, start=0, stop=5), Segment(adapter=1, start=5, stop=10)]
    examples = [Segment(adapter=e, start=start, stop=stop) for e, (_, start, stop) in enumerate(borders)]
    plan = pass_plan.packed([3, 2, 4, 1], segments, CPU, training=True, examples=examples, cuda=True)
    grouped = pass_plan.packed([10], segments, CPU, cuda=True).groups
    assert plan.groups is None
    assert grouped is not None
    x, a, b, outer = (
        drawn(10, INPUTS, seed=0),
        drawn(2, RANK, INPUTS, seed=1),
        drawn(2, OUTPUTS, RANK, seed=2),
        drawn(10, OUTPUTS, seed=3).detach(),
    )
    for asked in (plan, replace(plan, groups=grouped)):  # nor if a plan has groups all the same
        layer = StackedLinear(nn.Linear(INPUTS, OUTPUTS).requires_grad_(False), scale=0.5, dropout=0.0)
        layer.a, layer.b = a, b
        layer.rows = Rows(torch.zeros(4, RANK, INPUTS), torch.zeros(4, RANK, OUTPUTS))
        with pass_plan.use_plan(asked):
            (layer(x) * outer).sum().backward()
        for example, (adapter, start, stop) in enumerate(borders):
            own, wide = x[start:stop].detach(), outer[start:stop]
            by_a = 0.5 * b[adapter].detach().T @ wide.T @ own
            by_b = 0.5 * a[adapter].detach() @ own.T @ wide
            torch.testing.assert_close(layer.rows.a[example], by_a, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(layer.rows.b[example], by_b, rtol=1e-4, atol=1e-4)


def test_a_plan_of_examples_has_no_groups_at_the_read_positions_either() -> None:
    segments = [Segment(adapter=k, start=5 * k, stop=5 * k + 5) for k in range(2)]
    read = torch.tensor([1, 2, 7])
    plan = pass_plan.packed([5, 5], segments, CPU, output_positions=read, examples=segments, cuda=True)
    assert plan.read is not None
    assert plan.read.groups is None


def test_no_positions_are_no_group(monkeypatch) -> None:
    segments = [Segment(adapter=k, start=5 * k, stop=5 * k + 5) for k in range(2)]
    plan = pass_plan.packed([10], segments, CPU, output_positions=torch.tensor([], dtype=int), cuda=True)
    assert plan.read is not None
    assert plan.read.groups is None  # of which a kernel would start nothing
    y, *gradients = run(plan.read, True, 0.0, monkeypatch)
    assert y.shape == (1, 0, OUTPUTS)
    assert not any(gradient.any() for gradient in gradients)


def test_rows_of_one_adapter_are_one_group() -> None:
    groups = plan_of([2, 3, 4], [1, 1, 0]).groups
    assert groups is not None
    assert (groups.adapters.tolist(), groups.ends.tolist()) == ([1, 0], [5, 9])
    assert plan_of([2, 3, 4], [1, 0, 1]).groups is None  # its gradients would be added in no fixed order


def test_the_plan_of_the_read_positions_has_groups_of_its_own() -> None:
    segments = [Segment(adapter=k, start=5 * k, stop=5 * k + 5) for k in range(2)]
    plan = pass_plan.packed([10], segments, CPU, output_positions=torch.tensor([1, 2, 7]), cuda=True)
    assert plan.read is not None
    assert plan.read.groups.ends.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("x", "a", "b", "device", "expected"),
    [
        ((4, 16), (2, 8, 16), (2, 24, 8), "cuda", True),
        ((4, 16), (1, 8, 16), (1, 24, 8), "cuda", False),  # a plain product is enough
        ((4, 16), (2, 4, 16), (2, 24, 4), "cuda", False),  # rows of 8 bytes
        ((4, 12), (2, 8, 12), (2, 24, 8), "cuda", False),
        ((4, 16), (2, 8, 16), (2, 24, 8), "cpu", False),
    ],
)
def test_it_is_chosen_by_device_and_sizes(x, a, b, device, expected, monkeypatch) -> None:
    monkeypatch.setattr(lora_layers, "_has_grouped", lambda device_of_x: device == "cuda")
    tensors = (torch.zeros(x, dtype=torch.bfloat16), torch.zeros(a), torch.zeros(b))
    assert grouped_takes(*tensors) is expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), True), ((10, 3), True), ((12, 0), False)],
)
def test_it_is_chosen_where_the_kernel_waits_for_nothing(capability, expected, monkeypatch) -> None:
    """Other GPUs take PyTorch's own loop, which reads the ends of the groups on the host at each product."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    lora_layers._has_grouped.cache_clear()
    try:
        assert lora_layers._has_grouped(torch.device("cuda:0")) is expected
    finally:
        lora_layers._has_grouped.cache_clear()
