"""Decoding in batches whose rows come and go: a row is read once, repeated, and leaves when it is finished.

transformers' own generate keeps every row until the last one is finished, and reads a prompt again for each
sample of its answer. Here the rows of several adapters decode together (row k of the batch belongs to
adapter k), what all prompts begin with is read once an adapter, and a prompt with several samples once.
Keys and values are written where they stay: transformers' cache copies all of them at each token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import groupby, takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from shepherd.model import pass_plan
from shepherd.model.base import Base
from shepherd.model.pass_plan import MAX_PADDING_RATIO, PassPlan, Segment

MIN_PREFIX_TOKENS = 8
"""Shortest common beginning of prompts that is worth a pass of its own."""
MIN_PASS_TOKENS = 512
"""Fewest tokens of a pass over prompts, where there are as many; fewer make its products slow."""
MOST_IDLE = 1 / 8
"""Share of a batch's rows that may be finished and still compute, since leaving copies the others."""
SPARE_TOKENS = 64
"""Room behind keys and values that are copied to a larger place."""
Choose = Callable[[Tensor, Sequence[int]], Tensor]
"""Pick each row's next token: logits (R, vocabulary) float32, and the sample that each row is -> (R,)."""


def greedy(scores: Tensor, samples: Sequence[int]) -> Tensor:
    """The likeliest token of each row."""
    return scores.argmax(-1)


def is_possible(base: Base) -> bool:
    """Whether rows of this base can leave a batch: all that it keeps of a row is its keys and values."""
    arguments = inspect.signature(base.model.forward).parameters
    if not {"position_ids", "attention_mask", "past_key_values", "logits_to_keep"} <= arguments.keys():
        return False
    layers = DynamicCache(config=base.model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class _InPlace(DynamicLayer):  # type: ignore[misc]
    """Keys and values with room behind them, into which those of the next tokens are written."""

    keys: Tensor
    values: Tensor
    place: tuple[Tensor, Tensor] | None = None
    """(R, heads, most tokens, size) each; `keys` and `values` are its beginning."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values, (R, heads, n, size) each; returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        size = held + key_states.shape[2]
        if self.place is None or self.place[0].shape[2] < size:
            self.place = (_with_room(key_states, size), _with_room(value_states, size))
            if held:
                for place, own in zip(self.place, (self.keys, self.values), strict=True):
                    place[:, :, :held] = own
        for place, new in zip(self.place, (key_states, value_states), strict=True):
            place[:, :, held:size] = new
        self.keys, self.values = (place[:, :, :size] for place in self.place)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in a place of their own."""
        super().batch_select_indices(indices)
        self.place = None


def _with_room(states: Tensor, tokens: int) -> Tensor:
    return states.new_empty(*states.shape[:2], tokens + SPARE_TOKENS, states.shape[3])


@dataclass(slots=True, kw_only=True)
class Rows:
    """A batch under way: R rows, sorted by adapter."""

    base: Base
    owners: list[int]
    """The adapter of each row, (R,); of those that are bound to the base, by `lora.for_answers`."""
    alone: bool = False
    """Whether no adapter is bound, so that the base runs by itself."""
    mask: Tensor = field(init=False)
    """(R, tokens so far); 0 where a row is padded."""
    cache: DynamicCache = field(init=False)

    def __post_init__(self) -> None:
        self.mask = torch.zeros((len(self.owners), 0), dtype=torch.long, device=self.base.device)
        self.cache = DynamicCache(config=self.base.model.config)
        self.cache.layers = [_InPlace() if type(each) is DynamicLayer else each for each in self.cache.layers]

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Read more tokens of each row, (R, n), padded on the left; returns the logits after them, (R, V)."""
        self.mask = torch.cat([self.mask, mask], 1)
        positions = (self.mask.cumsum(1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        # an index and not a count, whose slice has PyTorch copy the head's weight once for each row; filled
        # there, since a copy of it to a GPU would wait
        last = ids.new_full((1,), ids.shape[1] - 1)
        with nullcontext() if self.alone else pass_plan.use_plan(_plan(self.owners)):
            out = self.base.model(
                input_ids=ids,
                attention_mask=self.mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=last,
            )
        scores: Tensor = out.logits[:, -1].float()
        return scores

    def taken(self, rows: Sequence[int]) -> Rows:
        """A batch of its own with these rows; one may be there several times."""
        other = copy(self)
        other.cache = copy(self.cache)
        other.cache.layers = [copy(layer) for layer in self.cache.layers]  # which replace their tensors
        other.take(rows)
        return other

    def take(self, rows: Sequence[int]) -> None:
        """Continue with these rows; one may be there several times."""
        index = torch.tensor(rows, device=self.base.device)
        self.cache.batch_select_indices(index)
        self.mask = self.mask.index_select(0, index)
        self.owners = [self.owners[row] for row in rows]


def _plan(owners: Sequence[int]) -> PassPlan:
    segments, start = [], 0
    for adapter, rows in groupby(owners):
        stop = start + len(list(rows))
        segments.append(Segment(adapter=adapter, start=start, stop=stop))
        start = stop
    return PassPlan(segments=tuple(segments), size=start, answering=True)


def decode(
    base: Base,
    adapters: int,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    choose: Choose = greedy,
    alone: bool = False,
    until: Sequence[str] = (),
) -> list[list[list[int]]]:
    """The new token ids of each adapter's answer to each prompt, without stop tokens.

    Args:
        adapters: how many are bound to the base, by `lora.for_answers`.
        prompts: at least one; equal ones that follow each other are read once.
        max_new_tokens: most tokens of an answer.
        stop: the token ids that end an answer.
        choose: picks the tokens; the sample of a row is the index of its prompt.
        alone: whether no adapter is bound, and the base runs by itself.
        until: texts that end an answer as well; an answer holds the one that ended it.
    """
    distinct = [list(prompt) for prompt, _ in groupby(prompts, key=list)]
    rows, scores = read_prompts(base, adapters, distinct, alone=alone)
    which = [number for number, (_, same) in enumerate(groupby(prompts, key=list)) for _ in same]
    samples = list(range(len(prompts))) * adapters
    if len(distinct) < len(prompts):
        again = [k * len(distinct) + number for k in range(adapters) for number in which]
        rows.take(again)
        scores = scores[again]
    answers: list[list[int]] = [[] for _ in samples]
    going = list(range(len(samples)))  # of the rows, which answer each is
    left = going  # places of the rows that are not finished
    for step in range(max_new_tokens):
        tokens = choose(scores, [samples[row] for row in going])
        chosen = tokens.tolist()  # all that the host reads: it waits for a GPU
        left = [place for place in left if chosen[place] not in stop]
        for place in left:
            answers[going[place]].append(chosen[place])
        if until:
            texts = base.tokenizer.batch_decode([answers[going[p]] for p in left], skip_special_tokens=True)
            left = [p for p, text in zip(left, texts, strict=True) if not any(end in text for end in until)]
        if not left or step == max_new_tokens - 1:
            break
        if len(left) < (1 - MOST_IDLE) * len(going):
            rows.take(left)
            going, tokens = [going[place] for place in left], tokens[left]
            left = list(range(len(going)))
        scores = rows.read(tokens.unsqueeze(1), rows.mask.new_ones(len(going), 1))
    return [answers[k * len(prompts) : (k + 1) * len(prompts)] for k in range(adapters)]


def read_prompts(
    base: Base,
    adapters: int,
    prompts: Sequence[Sequence[int]],
    *,
    alone: bool = False,
    min_prefix: int = MIN_PREFIX_TOKENS,
) -> tuple[Rows, Tensor]:
    """Read each prompt once for each adapter: rows with those of adapter 0 first, and their logits.

    What all prompts begin with is read once for each adapter, and prompts of other lengths in other passes,
    so that little is padded. A base with windows reads them in one pass instead: it counts padding between
    two tokens as distance, and keeps no more than a window of them.
    """
    first = Rows(base=base, owners=list(range(adapters)), alone=alone)
    if any(type(layer) is not _InPlace for layer in first.cache.layers):
        first.owners = [k for k in range(adapters) for _ in prompts]
        first.mask = first.mask.new_zeros(len(first.owners), 0)
        return first, first.read(*left_padded(list(prompts) * adapters, 0, base.device))
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    shared = min(len(list(alike)), min(map(len, prompts)) - 1)  # each has a token of its own to be read
    shared = shared if len(prompts) > 1 and shared >= min_prefix else 0
    if shared:
        first.read(*left_padded([prompts[0][:shared]] * adapters, 0, base.device))
    parts, scores, order = [], [], []
    for numbers in _buckets([len(prompt) - shared for prompt in prompts], adapters):
        part = first.taken([k for k in range(adapters) for _ in numbers])
        own = [prompts[number][shared:] for number in numbers]
        scores.append(part.read(*left_padded(own * adapters, 0, base.device)))
        parts.append(part)
        order += [k * len(prompts) + number for k in range(adapters) for number in numbers]
    if order == list(range(len(order))) and len(parts) == 1:
        return parts[0], scores[0]
    return _joined(parts, order), torch.cat(scores)[_inverse(order)]


def _buckets(lengths: Sequence[int], copies: int) -> list[list[int]]:
    """Numbers of prompts of similar length, shortest first; each of `copies` rows."""
    found: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        last = found[-1] if found else []
        padded = (len(last) + 1) * lengths[number]
        real = sum(lengths[i] for i in last) + lengths[number]
        small = copies * real < MIN_PASS_TOKENS
        if last and (small or padded <= MAX_PADDING_RATIO * real):
            last.append(number)
        else:
            found.append([number])
    return found


def _joined(parts: Sequence[Rows], order: Sequence[int]) -> Rows:
    """The rows of several batches as one, padded on the left; `order` is the place of each."""
    width = max(part.mask.shape[1] for part in parts)
    owners = [owner for part in parts for owner in part.owners]
    whole = replace(parts[0], owners=[owners[row] for row in _inverse(order)])
    places = torch.tensor(order, device=whole.mask.device)
    whole.mask = _side_by_side([part.mask for part in parts], places, width)
    for number in range(len(whole.cache.layers)):
        layers = [part.cache.layers[number] for part in parts]
        if layers[0].get_seq_length():
            keys, values = (
                _side_by_side([tensor.transpose(1, 2) for tensor in own], places, width).transpose(1, 2)
                for own in ([each.keys for each in layers], [each.values for each in layers])
            )
            whole.cache.update(keys, values, number)
    return whole


def _side_by_side(tensors: Sequence[Tensor], places: Tensor, width: int) -> Tensor:
    """(n, tokens, ...) each -> (R, width, ...), row by row at its place, and 0 before its tokens."""
    whole = tensors[0].new_zeros(len(places), width, *tensors[0].shape[2:])
    for tensor, own in zip(tensors, places.split([len(tensor) for tensor in tensors]), strict=True):
        whole[own, width - tensor.shape[1] :] = tensor
    return whole


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (n, width), padded on the left: prompts end where the answers begin."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
