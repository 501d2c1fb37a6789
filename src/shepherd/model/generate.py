"""Generate answers with several adapters in one pass.

Rows that are finished leave the batch (`model.decode`) wherever the base allows it; any other base answers
through transformers' own generate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from shepherd.core import Adapter, seed_for
from shepherd.errors import BaseError
from shepherd.io.progress import stage
from shepherd.model import decode, lora, pass_plan
from shepherd.model.base import Base

MAX_BATCH_SEQUENCES = 128
MAX_BATCH_TOKENS = 2**16  # of prompts and answers together with padding, all of which the cache holds


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
    draws: Sequence[int] | None = None,
    until: Sequence[str] = (),
) -> list[list[list[int]]]:
    """The new token ids of each prompt for each adapter (None is the base alone), without stop tokens.

    An answer depends on its prompt, draw and seed, and not on the other prompts or their order. (Sums in
    another batch are rounded differently, so the choice between two tokens that are equally likely up to
    rounding may change.) Every adapter samples with the same draws.

    Args:
        prompts: token ids, as `data.template.prompt` makes them.
        max_new_tokens: most tokens of an answer, at least 1; fewer if the base cannot read as many.
        stop: the token ids that end an answer.
        temperature: 0 is greedy; above 0, answers are sampled.
        top_p: in (0, 1]; sampling leaves out the least likely tokens beyond this share.
        draws: a number for each prompt, 0 by default; another number gives another sample.
        until: texts that end an answer as well; an answer holds the one that ended it.

    Raises:
        BaseError: a prompt leaves no room for an answer in what the base can read, a number is out of its
            range, or the base cannot generate.
    """
    require_ranges(max_new_tokens, temperature, top_p)
    names = [
        f"prompt {n} of {len(prompts)}" if len(prompts) > 1 else "a prompt"
        for n in range(1, len(prompts) + 1)
    ]
    limits = [
        max_answer_tokens(base, len(p), max_new_tokens, name) for p, name in zip(prompts, names, strict=True)
    ]
    draws = draws or [0] * len(prompts)
    answers: list[list[list[int]]] = [[[] for _ in prompts] for _ in adapters]
    with stage(f"answering {len(prompts):,} prompts", len(prompts) * len(adapters)) as now:
        for arms in adapter_batches(base, len(adapters)):
            chosen = [adapters[k] for k in arms]
            for places in _batches(base, prompts, limits, len(arms)):
                batch, longest = [prompts[i] for i in places], limits[places[0]]
                seeds = [seed_of(seed, draws[i], prompts[i]) for i in places]
                sampler = Sampler(seeds, temperature, top_p, base.device) if temperature else None
                new = answer(base, chosen, batch, longest, stop, sampler, until=until)
                for k, rows in zip(arms, new, strict=True):
                    for i, row in zip(places, rows, strict=True):
                        answers[k][i] = row
                now.advance(len(places) * len(arms))
    return answers


def seed_of(seed: int, draw: int, prompt: Sequence[int]) -> int:
    """The seed of one draw of a prompt's answer."""
    return seed_for(seed, "answer", draw, *prompt)


class _Until(StoppingCriteria):  # type: ignore[misc]
    """Ends each answer that holds one of some texts; `width` tokens before it are the prompt."""

    def __init__(self, tokenizer: Any, width: int, texts: Sequence[str]) -> None:
        self.tokenizer, self.width, self.texts = tokenizer, width, texts

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """input_ids (adapters * prompts, length) -> whether each is at its end."""
        written = self.tokenizer.batch_decode(input_ids[:, self.width :], skip_special_tokens=True)
        ended = [any(text in each for text in self.texts) for each in written]
        return torch.tensor(ended, device=input_ids.device)


class Sampler(LogitsProcessor):  # type: ignore[misc]
    """Sampling with a generator of its own for each sequence: keeps only the token that its draws pick.

    transformers draws all sequences of a batch from one global generator, so that an answer would depend on
    the others. Here the highest score after adding Gumbel noise is taken, which has the same distribution,
    and which rounding in another batch changes as rarely as greedy search: only if two scores are equal up to
    rounding.

    Args:
        seeds: one per prompt, the same for each adapter.
        temperature: above 0.
        top_p: in (0, 1].
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float, device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.temperature, self.top_p = temperature, top_p

    def pick(self, scores: Tensor, samples: Sequence[int]) -> Tensor:
        """scores (rows, vocabulary), and which of the seeds each row has -> tokens (rows,).

        Each seed that is among them advances by one draw, however many rows have it.
        """
        scores = (scores - scores.amax(-1, keepdim=True)).float() / self.temperature
        if self.top_p < 1:
            sizes, tokens = torch.softmax(scores, -1).sort(descending=True, stable=True)
            out = sizes.cumsum(-1) - sizes >= self.top_p  # by the sum of the likelier tokens
            scores = scores.masked_fill(torch.zeros_like(out).scatter(-1, tokens, out), -math.inf)
        used = sorted(set(samples))
        width, of = scores.shape[-1], {sample: place for place, sample in enumerate(used)}
        waits = torch.stack(
            [scores.new_empty(width).exponential_(generator=self.generators[sample]) for sample in used]
        )
        return (scores - waits.log()[[of[sample] for sample in samples]]).argmax(-1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (adapters * prompts, vocabulary) -> the same shape, all but the picked token at -inf."""
        samples = list(range(len(self.generators))) * (len(scores) // len(self.generators))
        picked = self.pick(scores, samples).unsqueeze(-1)
        return torch.full_like(scores, -math.inf, dtype=torch.float).scatter_(-1, picked, 0.0)


def require_ranges(max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Raise BaseError unless these numbers are in their ranges."""
    if max_new_tokens < 1:
        raise BaseError(f"the longest answer is {max_new_tokens} tokens; set at least 1")
    if not 0 <= temperature < math.inf:
        raise BaseError(f"temperature {temperature} is not a number of at least 0; 0 is greedy")
    if not 0 < top_p <= 1:
        raise BaseError(f"top-p {top_p} is not above 0 and at most 1; 1 leaves no token out")


def max_answer_tokens(base: Base, tokens: int, longest: int, name: str = "a prompt") -> int:
    """Most tokens of the answer to a prompt of `tokens` tokens, at most `longest`.

    Raises:
        BaseError: the prompt leaves no tokens for an answer; the message calls it by `name`.
    """
    left = longest if base.max_length is None else min(longest, base.max_length - tokens)
    if left < 1:
        raise BaseError(
            f"{name} has {tokens} tokens and base {base.name} reads at most {base.max_length};"
            " shorten the instruction"
        )
    return left


def adapter_batches(base: Base, count: int) -> list[list[int]]:
    """Groups of adapters that answer in one batch: all, or each alone if the base may mix rows (a router)."""
    meet = not (base.packed and base.proof.batches)
    return [[k] for k in range(count)] if meet else [list(range(count))]


def _batches(
    base: Base, prompts: Sequence[Sequence[int]], limits: Sequence[int], copies: int
) -> Iterator[list[int]]:
    """Indices of prompts for each batch: of similar length, to pad little, and with equal answer length.

    Prompts have the same length if padding changes the base's answers, and are alone if batches do.
    """
    most = MAX_BATCH_SEQUENCES if base.proof.batches else 1
    batch: list[int] = []
    # equal prompts follow each other
    order = sorted(range(len(prompts)), key=lambda i: (-limits[i], len(prompts[i]), list(prompts[i])))
    for i in order:
        full = (len(batch) + 1) * copies > most
        wide = (len(batch) + 1) * copies * (len(prompts[i]) + limits[i]) > MAX_BATCH_TOKENS
        first = batch[0] if batch else i
        other = limits[i] != limits[first] or (not base.proof.pads and len(prompts[i]) != len(prompts[first]))
        if batch and (full or wide or other):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def answer(
    base: Base,
    adapters: Sequence[Adapter | None],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: Sequence[int],
    sampler: Sampler | None = None,
    streamer: BaseStreamer | None = None,
    until: Sequence[str] = (),
) -> list[list[list[int]]]:
    """Answer one batch of `generate`; greedy without a sampler.

    `streamer.put` gets the padded prompts (K * n, width), and then each step's tokens (K * n,).

    Raises:
        BaseError: the base cannot generate.
    """
    if base.proof.mute:
        raise BaseError(
            f"base {base.name} cannot generate answers: {base.proof.mute}; use another base to generate"
        )
    copies, tuned = len(adapters), any(adapter is not None for adapter in adapters)
    stack = _stack(base, adapters)
    decodes = streamer is None and base.proof.decodes
    if decodes:
        stack = lora.for_answers(stack, lora.scaling(base.adapter), base.dtype)
    lora.bind_adapters(base.model, base.targets, stack)
    if decodes:
        with torch.inference_mode():
            return decode.decode(
                base,
                copies,
                prompts,
                max_new_tokens=max_new_tokens,
                stop=stop,
                choose=decode.greedy if sampler is None else sampler.pick,
                alone=not tuned,
                until=until,
            )
    ids, mask = decode.left_padded(prompts, stop[0], base.device)
    width = ids.shape[1]
    # without a plan the base runs alone
    laid_out = pass_plan.use_plan(pass_plan.sequences([len(prompts)] * copies)) if tuned else nullcontext()
    with torch.inference_mode(), laid_out:
        out = base.model.generate(
            input_ids=ids.repeat(copies, 1),
            attention_mask=mask.repeat(copies, 1),
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop),
            pad_token_id=stop[0],
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            logits_processor=[sampler] if sampler else [],
            streamer=streamer,
            stopping_criteria=[_Until(base.tokenizer, width, until)] if until else [],
        )
    rows = [until_stop(row, stop) for row in out[:, width:].tolist()]
    return [rows[k * len(prompts) : (k + 1) * len(prompts)] for k in range(copies)]


def _stack(base: Base, adapters: Sequence[Adapter | None]) -> Mapping[str, Tensor]:
    """The adapters as one stack; the base alone is an adapter of zeros."""
    zero = base.zero
    whole = lora.of_one_rank(base.targets, [adapter or zero for adapter in adapters])
    return lora.stacked(whole, base.device)


def until_stop(row: list[int], stop: Sequence[int]) -> list[int]:
    """The ids before the first stop token."""
    ends = [place for place, token in enumerate(row) if token in stop]
    return row[: ends[0]] if ends else row
