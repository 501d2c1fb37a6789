"""A GPU that is not there: real code of the trainer on tensors without values, as if on `cuda:0`.

With a CUDA build of PyTorch, `FakeTensorMode` follows shapes, dtypes and devices of every operation without a
driver. What would go wrong on a GPU raises: operands on two devices, a value that the processor would have to
wait for (`float`, `item`, `tolist`, `if`), and shapes that only the values know (a boolean mask, `nonzero`).
Three things it does not see are added here: copies between host and device are counted, and one that waits
raises; a copy back to the host raises; and the backward pass, whose engine needs a driver, is walked node by
node through the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from shepherd.model import attention, lora_layers
from shepherd.model.base import Base

GPU = torch.device("cuda:0")
AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)
CUDA_BUILD = torch.backends.cuda.is_built()
WHY_SKIPPED = "needs a CUDA build of PyTorch, with or without a GPU: make rehearse-gpu"


class HostReadError(Exception):
    """Values would be copied from the GPU to the host, which waits for all work before."""


class WaitingCopyError(Exception):
    """Values would be copied to the GPU from memory that is not pinned, which waits for the copy."""


@dataclass
class Copies(TorchDispatchMode):
    """Counts copies to the GPU; refuses those from it, and, where `strict`, those that wait.

    With `answers_reads`, a value that the host reads is 0 or False, and the reads are counted.
    """

    strict: bool = False
    answers_reads: bool = False
    count: int = 0
    reads: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if (
            func.namespace == "aten" and func._can_decompose()
        ):  # in inference mode an operation made of others arrives whole
            with self:
                return func.decompose(*args, **options)
        source, target = _copied(func, args, options)
        if func is torch.ops.aten._local_scalar_dense.default and self.answers_reads:
            self.reads += 1
            return False if args[0].dtype == torch.bool else 0
        if (source, target) == ("cuda", "cpu"):
            raise HostReadError(f"{func}: a copy from the GPU")
        if (source, target) == ("cpu", "cuda"):
            self._to_gpu(waits=not (options.get("non_blocking") or args[2:3] == (True,)))
        return func(*args, **options)

    def tensor(self, data: Any, *, device: Any = None, **options: Any) -> Tensor:
        """Stands in for `torch.tensor`, which otherwise keeps a small constant and so needs the driver."""
        if device is None or torch.device(device).type == "cpu":
            return _tensor(data, **options)
        with unset_fake_temporarily():
            made = _tensor(data, **options)
        self._to_gpu(waits=True)
        return torch.empty(made.shape, dtype=made.dtype, device=device)

    def _to_gpu(self, *, waits: bool) -> None:
        self.count += 1
        if self.strict and waits:
            raise WaitingCopyError("a copy to the GPU from memory that is not pinned")


_CpuGenerator, _tensor = torch.Generator, torch.tensor


def _copied(func: Any, args: Sequence[Any], options: dict[str, Any]) -> tuple[str, str]:
    """Device types that an operation copies values from and to; equal if it copies nothing."""
    name = func.overloadpacket
    if name is torch.ops.aten._to_copy:
        own = args[0].device.type
        return own, torch.device(options.get("device") or own).type
    if name is torch.ops.aten.copy_ and args[1].ndim + args[1].numel() > 1:
        return args[1].device.type, args[0].device.type
    return "", ""


@dataclass
class FakeGPU:
    """What a test needs to know of the rehearsal around it."""

    copies: Copies = field(default_factory=Copies)
    leaves: int = 0
    """Gradients that leaves got, over all backward passes."""


@contextlib.contextmanager
def fake_gpu(capability: tuple[int, int] = HOPPER) -> Iterator[FakeGPU]:
    """Inside, new tensors on `cuda:0` have no values, and `backward` and `autograd.grad` are walked."""
    here = FakeGPU()
    with (
        _forgotten(),
        FakeTensorMode(allow_non_fake_inputs=True),
        here.copies,
        mock.patch.object(torch.Tensor, "backward", lambda loss: _backward(here, loss)),
        mock.patch.object(torch.autograd, "grad", _grad),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, device=None: tensor),
        mock.patch("torch.Generator", return_value=_CpuGenerator()),
        mock.patch("torch.tensor", here.copies.tensor),
        mock.patch("torch.cuda.get_device_capability", return_value=capability),
    ):
        yield here


@contextlib.contextmanager
def _forgotten() -> Iterator[None]:
    """What is remembered of a device is asked anew inside, and again after it."""
    remembered = (lora_layers._has_grouped, attention._has_flash)
    for each in remembered:
        each.cache_clear()
    try:
        yield
    finally:
        for each in remembered:
            each.cache_clear()


def on_gpu(base: Base, dtype: torch.dtype = torch.bfloat16) -> Base:
    """The base with every weight and buffer replaced by one without values on the GPU; in place."""
    for module in base.model.modules():
        for name, weight in module.named_parameters(recurse=False):
            kind = dtype if weight.is_floating_point() else weight.dtype
            fake = nn.Parameter(torch.empty(weight.shape, dtype=kind, device=GPU), requires_grad=False)
            module._parameters[name] = fake
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU)
    return replace(base, device=GPU, dtype=dtype)


# the backward pass ------------------------------------------------------------------------------------------


def _backward(here: FakeGPU, loss: Tensor) -> None:
    """`loss.backward()`: adds to the `grad` of every leaf."""
    start = torch.ones_like(loss)
    for leaf, found in _walk([(loss, start)]).items():
        _add_to(leaf, found)
        here.leaves += 1


def _grad(outputs: Tensor, inputs: Tensor, grad_outputs: Tensor) -> tuple[Tensor]:
    """`torch.autograd.grad` of one output by one leaf."""
    return (_walk([(outputs, grad_outputs)])[inputs],)


def _add_to(leaf: Tensor, found: Tensor) -> None:
    if found.shape != leaf.shape or found.dtype != leaf.dtype or found.device != leaf.device:
        raise AssertionError(f"a gradient {found} for a leaf {leaf}")
    if leaf.grad is None:
        leaf.grad = found
    else:
        leaf.grad.add_(found)


def _walk(starts: Sequence[tuple[Tensor, Tensor]]) -> dict[Tensor, Tensor]:
    """Gradients of all leaves: each node of the graph is called once all of its consumers were."""
    waiting: dict[Any, int] = {}  # calls of consumers that are still to come
    roots = [tensor.grad_fn for tensor, _ in starts]
    todo, seen = list(roots), set(roots)
    while todo:
        for other, _ in todo.pop().next_functions:
            if other is not None:
                waiting[other] = waiting.get(other, 0) + 1
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
    arrived: dict[Any, dict[int, Tensor]] = {
        tensor.grad_fn: {tensor.output_nr: start} for tensor, start in starts
    }
    leaves: dict[Tensor, Tensor] = {}
    ready = [node for node in roots if not waiting.get(node)]
    while ready:
        node = ready.pop()
        inputs = arrived.pop(node, {})
        if hasattr(node, "variable"):  # a leaf
            if inputs:
                leaves[node.variable] = inputs[0]
            continue
        outputs = _call(node, inputs)
        for (other, number), gradient in zip(node.next_functions, outputs, strict=False):
            if other is None:
                continue
            if gradient is not None:
                gradient = _as_expected(gradient, other._input_metadata[number])
                place = arrived.setdefault(other, {})
                place[number] = place[number] + gradient if number in place else gradient
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    return leaves


def _as_expected(gradient: Tensor, output: Any) -> Tensor:
    """The gradient in the dtype and shape of the output that it is of, as the engine makes it."""
    if gradient.device != output.device:
        raise AssertionError(f"a gradient on {gradient.device} of an output on {output.device}")
    return gradient.sum_to_size(tuple(output.shape)).to(output.dtype)


def _call(node: Any, inputs: dict[int, Tensor]) -> Sequence[Tensor | None]:
    """The gradients that one node gives for those that arrived at its outputs."""
    if not inputs:
        return [None] * len(node.next_functions)
    call: Callable[..., Any] = (
        node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
    )
    arguments = [inputs.get(number) for number in range(len(node._input_metadata))]
    with torch.no_grad():
        found = call(*arguments)
    return found if isinstance(found, tuple) else (found,)
