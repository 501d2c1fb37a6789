"""The proof at load: decide by measurement whether a base can run packed, in batches only, or not at all.

It measures packing and not rounding: the base is copied in float32, whatever dtype it is loaded in, and
each token's states and each factor's gradient are compared with those of the examples alone. The copy of a
large base holds only the leading layers up to the last new kind of layer, and its long sliding windows and
attention chunks are shortened, so that short examples cross every border. A base in a low precision is then
measured in that precision too: there packing must add no more error than the precision itself.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from shepherd.errors import BaseError, ShepherdError
from shepherd.model import decode, lora, pass_plan
from shepherd.model.attention import PACKED, computing_as
from shepherd.model.base import Base, Proof, attention_impl, hidden_states, logits
from shepherd.model.decode import left_padded, read_prompts
from shepherd.model.packing_probe import SHARED_TOKENS, Probe, copy_network, label, longest_border, make_probe

EXAMPLE_CLIENTS = (0, 0, 1, 1)  # the client of each of the four examples
MIN_BASE_TOKENS = 6  # that a base must read: those of the shortest example
COMPARED = slice(1, None, 2)  # the positions whose states are compared
TOLERANCE = 1e-3  # relative difference of a token's states or a factor's gradient; rounding stays below it
MAX_ERROR_RATIO = 3.0  # of the error when packed to the error of the base's own low precision


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outputs:
    """The compared states, (M, width), and each factor's gradient of a sum over them, (2, ...)."""

    states: Tensor
    gradients: Mapping[str, Tensor]


_Run = Callable[[Probe], Tensor]  # -> states (M, width)


def verify_packing(base: Base, longest: int | None = None) -> Proof:
    """Find how a base must run so that each example gets the states and gradients that it gets alone.

    Args:
        longest: tokens of the longest example; None for any length. A window or chunk that none reaches is
            not tested.

    Raises:
        BaseError: it can run neither packed nor in batches, or the base itself does not run.
    """
    if base.max_length is not None and base.max_length < MIN_BASE_TOKENS:
        raise BaseError(
            f"{label(base)} reads at most {base.max_length} tokens, too few for a prompt and its answer; use"
            " another base"
        )
    exact, own = _alone_in_float32(base, longest)
    _require_causal(exact, own)
    _require_head(exact, TOLERANCE)
    rough = _in_own_dtype(base, exact, longest)
    allowed = 0.0 if rough is None else MAX_ERROR_RATIO * _error_of_the_dtype(base, rough, own)
    if rough is not None:
        _require_head(rough, allowed)
    why_unpacked = _why_not(_run_packed, exact, own, base.dtype, rough, allowed)
    if why_unpacked and (fault := _why_not(_run_batched, exact, own, base.dtype, rough, allowed)):
        raise BaseError(f"{label(base)} cannot be trained here: {fault}; use another base")
    if mute := _why_mute(base, exact):
        return Proof(unpacked=why_unpacked, pads=False, batches=False, mute=mute)
    pads = _answers_alike(exact, [exact.examples[-1], exact.examples[0]])
    batches = pads or _answers_alike(exact, [e[: len(exact.examples[-1])] for e in exact.examples[2:]])
    decodes = pads and _decodes_alike(exact, exact.examples[:2])
    return Proof(unpacked=why_unpacked, pads=pads, batches=batches, decodes=decodes)


# the probe -------------------------------------------------------------------------------------------------


def _alone_in_float32(base: Base, longest: int | None) -> tuple[Probe, _Outputs]:
    """The probe, with few layers and short windows if that runs, and what its examples give alone."""
    try:
        probe = make_probe(base, longest, slim=True)
        return probe, _outputs(_run_alone, probe)
    except BaseError:
        raise
    except Exception:  # the architecture's own code does not take a slice
        pass
    try:
        probe = make_probe(base, longest, slim=False)
        own = _outputs(_run_alone, probe)
    except BaseError:
        raise
    except Exception as error:  # any architecture may fail here, each in its own way
        raise BaseError(f"{label(base)} does not run: {_explain(error)}; use another base") from error
    return probe, own


# running a probe --------------------------------------------------------------------------------------


def _run_alone(probe: Probe) -> Tensor:
    parts = []
    for ids, owner in zip(probe.examples, EXAMPLE_CLIENTS, strict=True):
        with pass_plan.use_plan(pass_plan.padded(1, len(ids), owner)):
            parts.append(hidden_states(probe.base, ids.unsqueeze(0), None))
    return _line(parts)[COMPARED]


def _run_batched(probe: Probe) -> Tensor:
    parts: list[Tensor] = []
    for owner in (0, 1):
        own = [ids for ids, of in zip(probe.examples, EXAMPLE_CLIENTS, strict=True) if of == owner]
        width = max(map(len, own))
        rows = [torch.cat([ids, ids[-1:].expand(width - len(ids))]) for ids in own]
        with pass_plan.use_plan(pass_plan.padded(len(rows), width, owner)):
            states = hidden_states(probe.base, torch.stack(rows), None).unflatten(0, (len(rows), width))
        parts += [of_one[: len(ids)] for of_one, ids in zip(states, own, strict=True)]
    return _line(parts)[COMPARED]


def _line(parts: list[Tensor]) -> Tensor:
    """The states in the order of the packed batch, in which two examples share their prefix."""
    first, second, *others = parts
    return torch.cat([first, second[SHARED_TOKENS:], *others])


def _run_packed(probe: Probe) -> Tensor:
    first, second, *others = probe.examples
    stretches, after = (
        [first[:SHARED_TOKENS], first[SHARED_TOKENS:], second[SHARED_TOKENS:], *others],
        [-1, 0, 0, -1, -1],
    )
    lengths = [len(ids) for ids in stretches]
    border, end = sum(lengths[:3]), sum(lengths)
    segments = [
        pass_plan.Segment(adapter=0, start=0, stop=border),
        pass_plan.Segment(adapter=1, start=border, stop=end),
    ]
    device = probe.base.device
    read = torch.arange(end)[COMPARED].contiguous()
    plan = pass_plan.packed(lengths, segments, device, parents=after, output_positions=read)
    positions = torch.from_numpy(pass_plan.positions(lengths, after)).to(device)
    with pass_plan.use_plan(plan), attention_impl(probe.base, PACKED):
        return hidden_states(probe.base, torch.cat(stretches), positions)[COMPARED]


def _outputs(run: _Run, probe: Probe) -> _Outputs:
    """The states, and the gradients of their sum in random directions."""
    factors = {name: factor.clone().requires_grad_() for name, factor in probe.stack.items()}
    lora.bind_adapters(probe.base.model, probe.base.targets, factors)
    states = run(probe).float()
    directions = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(states.device)
    (states * directions).sum().backward()
    gradients = {
        name: torch.zeros_like(factor) if factor.grad is None else factor.grad
        for name, factor in factors.items()
    }
    return _Outputs(states=states.detach(), gradients=gradients)


# comparing -------------------------------------------------------------------------------------------------


def _why_not(
    run: _Run, exact: Probe, own: _Outputs, dtype: torch.dtype, rough: Probe | None, allowed: float
) -> str:
    """Why examples must not run this way; "" if they may. `allowed` is the error in the low dtype."""
    how = "packed" if run is _run_packed else "in a batch"
    try:
        with computing_as(dtype):
            found = _outputs(run, exact)
        low = None if rough is None else _outputs(run, rough)
    except Exception as error:  # any architecture may fail here, each in its own way
        return _explain(error)
    if not (difference := float(_difference(found.states, own.states).max())) <= TOLERANCE:
        return f"its examples get different states {how} than alone (relative difference {difference:.1e})"
    if not (difference := _gradient_difference(found.gradients, own.gradients)) <= TOLERANCE:
        return f"its examples get different gradients {how} than alone (relative difference {difference:.1e})"
    if low is not None and not (difference := float(_difference(low.states, own.states).median())) <= allowed:
        return (
            f"in {_short(dtype)} its examples get different states {how} than alone (relative difference"
            f" {difference:.1e})"
        )
    return ""


def _difference(found: Tensor, expected: Tensor) -> Tensor:
    """Relative difference of each token's states, (M,)."""
    sizes = expected.norm(dim=-1)
    difference: Tensor = (found - expected).norm(dim=-1) / sizes.clamp(min=1e-3 * float(sizes.mean()))
    return difference


def _gradient_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest relative difference of the gradient of a factor of one adapter."""
    sizes = {name: gradient.flatten(1).norm(dim=1) for name, gradient in expected.items()}  # (2,) each
    floor = 1e-3 * max(float(size.max()) for size in sizes.values())
    each = [
        (found[name] - gradient).flatten(1).norm(dim=1) / sizes[name].clamp(min=floor)
        for name, gradient in expected.items()
    ]
    return float(torch.stack(each).max())


def _require_causal(probe: Probe, own: _Outputs) -> None:
    """Raise BaseError unless the first example's states stay the same when its end is removed."""
    lora.bind_adapters(probe.base.model, probe.base.targets, probe.stack)
    ids = probe.examples[0][: len(probe.examples[0]) // 2]
    with torch.no_grad(), pass_plan.use_plan(pass_plan.padded(1, len(ids), 0)):
        states = hidden_states(probe.base, ids.unsqueeze(0), None)[COMPARED]
    if not (difference := float(_difference(states, own.states[: len(states)]).max())) <= TOLERANCE:
        raise BaseError(
            f"{label(probe.base)} cannot be trained here: a token's states depend on the tokens after it"
            f" (relative difference {difference:.1e}); use a causal language model"
        )


def _require_head(probe: Probe, allowed: float) -> None:
    """Raise BaseError unless `logits` gives the base's own logits within `allowed`."""
    ids = probe.examples[-1].unsqueeze(0)
    try:
        with torch.no_grad(), pass_plan.use_plan(pass_plan.padded(1, ids.shape[1], 0)):
            ours = logits(probe.base, hidden_states(probe.base, ids, None))
            own = probe.base.model(input_ids=ids, use_cache=False).logits[0]
        difference = float(_difference(ours.float(), own.float()).max())
    except Exception as error:  # any architecture may fail here, each in its own way
        raise BaseError(
            f"{label(probe.base)} cannot be trained in {_short(probe.base.dtype)}: {_explain(error)};"
            " use another base"
        ) from error
    if not difference <= allowed:
        raise BaseError(
            f"{label(probe.base)} computes its logits in a way that is not supported (relative difference"
            f" {difference:.1e}); use another base"
        )


def _in_own_dtype(base: Base, exact: Probe, longest: int | None) -> Probe | None:
    """The probe in the precision that the base will run in; None if that is float32."""
    if base.dtype == torch.float32:
        return None
    if all(weight.is_floating_point() for weight in base.model.parameters()):
        network = copy_network(base.model, None, exact.layers)  # the same weights
        longest_border(network, longest or math.inf, shorten=exact.slim)
    else:  # quantised: the random modules of the copy
        network = copy_network(exact.base.model, base.dtype)
    return replace(exact, base=replace(exact.base, model=network, dtype=base.dtype))


def _error_of_the_dtype(base: Base, rough: Probe, own: _Outputs) -> float:
    """Relative difference of the base's states in its dtype and in float32, median over the tokens.

    Raises:
        BaseError: the states overflow, of the probe or of the whole base.
    """
    try:
        states = _outputs(_run_alone, rough).states
        ids = rough.examples[0]
        zero = lora.stacked([base.zero], base.device)
        lora.bind_adapters(base.model, base.targets, zero)
        with torch.no_grad(), pass_plan.use_plan(pass_plan.padded(1, len(ids), 0)):
            whole = hidden_states(base, ids.unsqueeze(0), None)
    except Exception as error:
        raise BaseError(
            f"{label(base)} does not run in {_short(base.dtype)}: {_explain(error)}; set another model.dtype"
        ) from error
    if not (states.isfinite().all() and whole.isfinite().all()):
        raise BaseError(
            f'{label(base)} overflows {_short(base.dtype)}; set model.dtype = "bfloat16" or "float32"'
        )
    return max(float(_difference(states, own.states).median()), torch.finfo(base.dtype).eps)


def _why_mute(base: Base, exact: Probe) -> str:
    """Why the base cannot answer a single prompt; "" if it can. Only a failure of the whole base counts."""
    whole = replace(exact, base=base, stack=lora.stacked([base.zero], base.device))
    said = ""
    for probe in (exact, whole):
        lora.bind_adapters(probe.base.model, probe.base.targets, probe.stack)
        try:
            _scores(probe, [probe.examples[-1].tolist()])
        except Exception as error:  # any architecture may fail here, each in its own way
            said = _explain(error)
        else:
            return ""
    return said


def _answers_alike(probe: Probe, examples: list[Tensor]) -> bool:
    """Whether these prompts, padded on the left, are answered in one batch as each is alone."""
    lora.bind_adapters(probe.base.model, probe.base.targets, probe.stack)
    prompts = [ids.tolist() for ids in examples]
    try:
        difference = [_scores(probe, [prompt]) for prompt in prompts]
        together = _scores(probe, prompts)
    except Exception:  # then prompts are not padded
        return False
    return bool(_difference(together, torch.cat(difference)).max() <= TOLERANCE)


def _decodes_alike(probe: Probe, examples: list[Tensor]) -> bool:
    """Whether rows that are repeated and leave get the logits of transformers' own generate, alone.

    Args:
        examples: two that begin alike, of different lengths.
    """
    if not decode.is_possible(probe.base):
        return False
    base, prompts = probe.base, [ids.tolist() for ids in examples]
    lora.bind_adapters(base.model, base.targets, probe.stack)
    try:
        alone = [_scores(probe, [prompt])[0] for prompt in prompts]  # (3, vocabulary) each
        stack = lora.for_answers(probe.stack, lora.scaling(base.adapter), base.dtype)
        lora.bind_adapters(base.model, base.targets, stack)
        which, found, expected = [0, 1], [], []
        with torch.no_grad():
            rows, scores = read_prompts(base, 1, prompts, min_prefix=1)
            for step, kept in enumerate([[1, 0, 1], [0, 2], []]):
                found.append(scores)
                expected.append(torch.stack([alone[prompt][step] for prompt in which]))
                if kept:
                    rows.take(kept)
                    which, tokens = [which[row] for row in kept], scores.argmax(-1)[kept].unsqueeze(1)
                    scores = rows.read(tokens, torch.ones_like(tokens))
    except Exception:  # any architecture may fail here, each in its own way
        return False
    return bool(_difference(torch.cat(found), torch.cat(expected)).max() <= TOLERANCE)


def _scores(probe: Probe, prompts: list[list[int]]) -> Tensor:
    """Logits of the first three tokens of each answer, (n, 3, vocabulary)."""
    ids, mask = left_padded(prompts, 0, probe.base.device)
    with torch.no_grad(), pass_plan.use_plan(pass_plan.sequences([len(prompts)])):
        out = probe.base.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    scores: Tensor = torch.stack(out.logits, 1).float()
    return scores


# words -----------------------------------------------------------------------------------------------------


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _explain(error: Exception) -> str:
    """An error in words, with the function of the architecture's code that raised it."""
    if isinstance(error, ShepherdError):
        return str(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "modeling_" in f.filename]
    place = f" at {Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else ""
    first = (str(error).strip().splitlines() or [""])[0][:150]
    if "NoneType" in first and isinstance(error, (TypeError, AttributeError)):
        return f"its own code reads an attention mask or a cache, which is not there{place} ({first})"
    return f"its own code stops{place} ({type(error).__name__}: {first})"
