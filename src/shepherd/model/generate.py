"""Answers: several adapters in one pass, sequences side by side, through transformers' own generate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from shepherd.core import Adapter
from shepherd.errors import BaseError
from shepherd.model import layout, lora
from shepherd.model.base import Base

BATCH = 64  # sequences answered at once


def generate(
    base: Base,
    adapters: Sequence[Adapter | None],
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[list[int]]]:
    """For each adapter (None is the base alone), the new token ids of each prompt, without stop tokens.

    Args:
        prompts: token ids, as `data.template.prompt` makes them.
        max_new_tokens: at least 1; an answer ends there at the latest.
        stop: the token ids that end an answer.
        temperature: 0 is greedy; above, sampling with `top_p` and a seed (the same for every batch).

    Raises:
        BaseError: a prompt leaves no room for an answer in what the base can read, or temperature is
            negative or not finite.
    """
    require_temperature(temperature)
    if not prompts:
        return [[] for _ in adapters]
    max_new_tokens = room(base, max(len(prompt) for prompt in prompts), max_new_tokens)
    answers: list[list[list[int]]] = [[[] for _ in prompts] for _ in adapters]
    with seeded(base, seed):
        for places in _batches(prompts, max(1, BATCH // len(adapters))):
            batch = [prompts[i] for i in places]
            new = answer(base, adapters, batch, max_new_tokens, stop, temperature, top_p)
            for k, rows in enumerate(new):
                for i, row in zip(places, rows, strict=True):
                    answers[k][i] = row
    return answers


def require_temperature(temperature: float) -> None:
    """Raise BaseError unless it is a finite number from 0 up."""
    if not 0 <= temperature < math.inf:
        raise BaseError(f"temperature {temperature} is not a number from 0 up; 0 is greedy")


@contextmanager
def seeded(base: Base, seed: int) -> Iterator[None]:
    """Sample by this seed, and leave the global generators, which transformers samples from, as they were."""
    with torch.random.fork_rng([base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def room(base: Base, longest: int, wanted: int) -> int:
    """How many tokens an answer to a prompt of `longest` tokens may have, `wanted` at most.

    Raises:
        BaseError: there is no room for one.
    """
    left = wanted if base.reads is None else min(wanted, base.reads - longest)
    if left < 1:
        raise BaseError(
            f"a prompt has {longest} tokens and base {base.name} reads {base.reads}; shorten the instruction"
        )
    return left


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of prompts of about the same length, so that little is padded."""
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable").tolist()
    for start in range(0, len(order), size):
        yield order[start : start + size]


def answer(
    base: Base,
    adapters: Sequence[Adapter | None],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: Sequence[int],
    temperature: float,
    top_p: float,
    streamer: BaseStreamer | None = None,
) -> list[list[list[int]]]:
    """One batch of `generate`, from the global generators.

    `streamer.put` gets the padded prompts (K * n, width), and then each step's tokens (K * n,).
    """
    stacked = _stack(base, adapters)
    ids, mask = _left_padded(prompts, stop[0], base.device)
    width, copies = ids.shape[1], len(adapters)
    lora.hang(base.model, base.sites, stacked)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {}
    with torch.inference_mode(), layout.running(layout.sequences([len(prompts)] * copies)):
        out = base.model.generate(
            input_ids=ids.repeat(copies, 1),
            attention_mask=mask.repeat(copies, 1),
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop),
            pad_token_id=stop[0],
            streamer=streamer,
            **{"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **sampling},
        )
    rows = [until_stop(row, stop) for row in out[:, width:].tolist()]
    return [rows[k * len(prompts) : (k + 1) * len(prompts)] for k in range(copies)]


def _stack(base: Base, adapters: Sequence[Adapter | None]) -> Mapping[str, Tensor]:
    """The adapters as one stack; a zero adapter is the base alone."""
    zero = Adapter({name: np.zeros(shape) for name, shape in base.shapes.items()})
    return lora.stacked([adapter or zero for adapter in adapters], base.device)


def _left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """ids and mask, (n, width): prompts end at the right edge, where the answers begin."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def until_stop(row: list[int], stop: Sequence[int]) -> list[int]:
    """The ids before the first that ends an answer."""
    ends = [place for place, token in enumerate(row) if token in stop]
    return row[: ends[0]] if ends else row
