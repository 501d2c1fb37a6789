"""Tokenised examples: flat arrays, memory-mapped from disk, and counts of what tokenising did (law 9)."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shepherd.data.examples import Example
from shepherd.data.template import (
    Dropped,
    LossOn,
    Rendered,
    Template,
    Tokenizer,
    rendered,
    rendered_pairs,
)
from shepherd.errors import DataError
from shepherd.io import private
from shepherd.io.progress import many

ARRAYS = {"ids": np.int32, "loss_mask": np.bool_, "offsets": np.int64}
"""Data type of each array of `Tokens`."""
FILES = {"ids": "ids.npy", "loss_mask": "trained.npy", "offsets": "offsets.npy"}
"""File name of each array; run folders keep the older name of the loss mask."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Tokens:
    """Tokenised examples end to end; example i is `ids[offsets[i]:offsets[i + 1]]`.

    For n examples of N tokens in all: `ids` (N,) int32; `loss_mask` (N,) bool, true where a token is a target
    of the loss; `offsets` (n + 1,) int64.
    """

    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        """Counts only: tokens could be decoded back to text."""
        return f"<Tokens: {len(self):,} examples, {len(self.ids):,} tokens>"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each example, (n,)."""
        return np.diff(self.offsets)

    def example(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Token ids and loss mask of one example, as views."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[part], self.loss_mask[part]

    def take(self, indices: ArrayLike) -> Tokens:
        """A copy of the examples at `indices`, in that order."""
        pairs = [self.example(int(index)) for index in np.asarray(indices, dtype=np.int64)]
        return _joined(pairs)

    @staticmethod
    def pooled(parts: Sequence[Tokens]) -> Tokens:
        """The concatenation of `parts`."""
        lengths = np.concatenate([part.lengths for part in parts])
        return Tokens(
            ids=np.concatenate([part.ids for part in parts]),
            loss_mask=np.concatenate([part.loss_mask for part in parts]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
        )

    @staticmethod
    def interleaved(parts: Sequence[Tokens]) -> Tokens:
        """The first example of each part, then the second of each, and so on; a copy.

        Raises:
            DataError: the parts have different numbers of examples.
        """
        if len({len(part) for part in parts}) != 1:
            raise DataError(f"parts of {[len(part) for part in parts]} examples cannot be interleaved")
        return _joined([part.example(index) for index in range(len(parts[0])) for part in parts])

    def save(self, folder: str | Path) -> None:
        """Write the three arrays atomically; an older folder is replaced.

        Only one process may save to a folder at a time: leftovers of a killed one are removed here.
        """
        with _replaced_atomically(Path(folder)) as fresh:
            for name, file_name in FILES.items():
                with open(fresh / file_name, "wb", opener=private.owner_only) as file:
                    np.save(file, getattr(self, name))

    def split(self, sizes: Sequence[int]) -> list[Tokens]:
        """Cut into consecutive parts, as views.

        Args:
            sizes: how many examples each part has.

        Raises:
            DataError: a size is negative, or the sizes do not add up to the number of examples.
        """
        if min(sizes, default=0) < 0 or sum(sizes) != len(self):
            raise DataError(f"there are {len(self)} examples, but the parts have {sum(sizes)}")
        ends = np.cumsum([0, *sizes])
        pieces = [self.offsets[begin : end + 1] for begin, end in pairwise(ends)]
        return [
            Tokens(
                ids=self.ids[piece[0] : piece[-1]],
                loss_mask=self.loss_mask[piece[0] : piece[-1]],
                offsets=np.asarray(piece - piece[0]),
            )
            for piece in pieces
        ]


def save_together(folder: str | Path, parts: Sequence[Tokens]) -> None:
    """Save the concatenation of `parts` as one folder; `Tokens.split` undoes it.

    A folder for each part would be thousands of files, and each memory map keeps its file open, of which a
    process may have only a few hundred.
    """
    borders = np.cumsum([0, *(len(part.ids) for part in parts)], dtype=np.int64)
    offsets = [part.offsets[1:] + border for part, border in zip(parts, borders, strict=False)]
    pieces: dict[str, list[NDArray[Any]]] = {
        "ids": [part.ids for part in parts],
        "loss_mask": [part.loss_mask for part in parts],
        "offsets": [np.zeros(1, np.int64), *offsets],
    }
    with _replaced_atomically(Path(folder)) as fresh:
        for name, kind in ARRAYS.items():
            with open(fresh / FILES[name], "wb", opener=private.owner_only) as file:
                size = sum(map(len, pieces[name]))
                header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (size,)}
                np.lib.format.write_array_header_1_0(file, header)
                for piece in pieces[name]:
                    file.write(np.ascontiguousarray(piece, kind).data)


def typical_length(parts: Collection[Tokens]) -> int:
    """Tokens of the example in which a token is, on average: long examples count by their tokens.

    >>> ids = np.zeros(4, np.int32)  # examples of 1 and of 3 tokens
    >>> typical_length([Tokens(ids=ids, loss_mask=ids == 0, offsets=np.array([0, 1, 4]))])
    2
    """
    squares = sum(int(np.square(part.lengths).sum()) for part in parts)
    return squares // max(1, sum(len(part.ids) for part in parts))


@contextmanager
def _replaced_atomically(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder` on success and is removed on failure."""
    private.make(folder.parent)
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(mode=private.FOLDER)
        yield fresh
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def load(folder: str | Path) -> Tokens:
    """Memory-map a folder written by `Tokens.save`.

    Raises:
        DataError: an array is missing or unreadable, or the arrays do not fit together.
    """
    try:
        arrays = {name: _memory_mapped(Path(folder) / file_name) for name, file_name in FILES.items()}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"tokens in {folder} cannot be read ({error}); remove the folder") from error
    offsets, size = arrays["offsets"], len(arrays["ids"])
    fits = all(arrays[name].dtype == kind and arrays[name].ndim == 1 for name, kind in ARRAYS.items())
    ordered = (
        len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == size and bool((np.diff(offsets) >= 0).all())
    )
    if not (fits and ordered and len(arrays["loss_mask"]) == size):
        raise DataError(f"tokens in {folder} do not fit together; remove the folder")
    return Tokens(**arrays)


def _memory_mapped(path: Path) -> NDArray[Any]:
    whole: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return whole


def _joined(pairs: Sequence[tuple[NDArray[np.int32], NDArray[np.bool_]]]) -> Tokens:
    ids = [np.zeros(0, np.int32), *(pair[0] for pair in pairs)]
    masks = [np.zeros(0, np.bool_), *(pair[1] for pair in pairs)]
    offsets = np.cumsum([0, *(len(pair[0]) for pair in pairs)], dtype=np.int64)
    return Tokens(ids=np.concatenate(ids), loss_mask=np.concatenate(masks), offsets=offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Numbers of examples and tokens kept, cut, dropped and masked; tokens are those of kept examples.

    `dropped` counts by reason, and `first` is the source of the first one of each reason. `cut_responses`
    were cut and have no end of turn; `marked` responses are masked because the data mark them as not to be
    trained.
    """

    examples: int
    kept: int
    cut: int
    dropped: Mapping[str, int]
    tokens: int
    trained: int
    cut_tokens: int
    first: Mapping[str, str] = field(default_factory=dict)
    cut_responses: int = 0
    marked: int = 0

    @property
    def masked(self) -> int:
        """Tokens that are not targets of the loss."""
        return self.tokens - self.trained

    @property
    def share_cut(self) -> float:
        """Share of the kept examples, in [0, 1], that were cut to fit."""
        return self.cut / self.kept if self.kept else 0.0

    @property
    def share_dropped(self) -> float:
        """Share of all the examples, in [0, 1], that were dropped."""
        return (self.examples - self.kept) / self.examples if self.examples else 0.0

    @property
    def share_masked(self) -> float:
        """Share of the tokens of kept examples, in [0, 1], that are not targets of the loss."""
        return self.masked / self.tokens if self.tokens else 0.0


KEPT = -1
"""Reason of an example that is kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Outcomes:
    """What rendering did with each of n examples.

    `columns` (n, 6) int32: tokens, trained tokens, tokens cut, whether the response was cut, responses that
    the data mark, and the place of the reason in `reasons` (`KEPT` for an example that is kept; the other
    columns of a dropped one are 0). `where` has the source of each dropped example by its place.
    """

    columns: NDArray[np.int32]
    reasons: tuple[str, ...]
    where: Mapping[int, str]

    @property
    def kept(self) -> NDArray[np.int64]:
        """Places of the examples that are kept, ascending."""
        return np.flatnonzero(self.columns[:, 5] == KEPT)

    def counts(self, places: NDArray[np.int64] | slice = slice(None)) -> Counts:
        """Counts of the examples at `places`, all by default."""
        chosen = self.columns[places]
        tokens, trained, cut, cut_responses, marked, reasons = chosen.T
        of = np.arange(len(self.columns))[places]
        gone, first, times = np.unique(reasons[reasons != KEPT], return_index=True, return_counts=True)
        dropped = of[reasons != KEPT]
        order = np.argsort(first)  # reasons as they came
        return Counts(
            examples=len(chosen),
            kept=int((reasons == KEPT).sum()),
            cut=int((cut > 0).sum()),
            dropped={self.reasons[gone[i]]: int(times[i]) for i in order},
            tokens=int(tokens.sum()),
            trained=int(trained.sum()),
            cut_tokens=int(cut.sum()),
            first={self.reasons[gone[i]]: self.where[int(dropped[first[i]])] for i in order},
            cut_responses=int(cut_responses.sum()),
            marked=int(marked.sum()),
        )


def outcomes(found: Iterable[Rendered | tuple[Rendered, Rendered] | Dropped]) -> Outcomes:
    """The outcomes of `rendered` or `rendered_pairs`, whose texts and tokens are not kept."""
    columns, reasons, where = array("i"), dict[str, int](), dict[int, str]()
    for place, each in enumerate(found):
        if isinstance(each, Dropped):
            columns.extend((0, 0, 0, 0, 0, reasons.setdefault(each.reason, len(reasons))))
            where[place] = each.where
            continue
        sides = each if isinstance(each, tuple) else (each,)
        trained = sum(int(np.count_nonzero(side.loss_mask)) for side in sides)
        columns.extend(
            (
                sum(len(side.ids) for side in sides),
                trained,
                sum(side.cut for side in sides),
                sum(side.cut_response for side in sides),
                sum(side.marked for side in sides),
                KEPT,
            )
        )
    table = np.frombuffer(columns, np.int32).reshape(-1, 6)
    return Outcomes(columns=table, reasons=tuple(reasons), where=where)


def response_remarks(*, kept: int, cut: int, marked: int) -> list[str]:
    """Sentences on responses that are cut or masked; empty if there are none.

    Args:
        kept: how many examples are kept.
        cut: how many of these have a last response that was cut.
        marked: how many responses the data mark as not to be trained.
    """
    found = []
    if cut:
        none = ", and none is whole, so the model learns no end of an answer" if cut == kept else ""
        found.append(
            f"{many(cut, 'response')} cut to fit, without an end of turn{none}; data.max_tokens sets"
            " how much fits"
        )
    if marked:
        found.append(f"{many(marked, 'response')} masked, as the data mark them")
    return found


def tokenise(
    examples: Iterable[Example],
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    loss_on: LossOn = "responses",
    drop_refused: bool = False,
) -> tuple[Tokens, Outcomes]:
    """Tokenise examples: the kept ones, and what became of each.

    The examples are taken one batch after another (see `template.rendered`), so that an iterator that makes
    them keeps the texts and tokens of few in memory as objects; the arrays grow by about five bytes a token.

    Raises:
        TemplateError: the template cannot render with this tokenizer, or refuses an example and
            `drop_refused` is not set.
    """
    found = rendered(
        examples, template, tokenizer, max_tokens=max_tokens, loss_on=loss_on, drop_refused=drop_refused
    )
    kept = _Growing()
    done = outcomes(kept.taking(found))
    return kept.whole(), done


def tokenise_pairs(
    examples: Iterable[Example],
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    drop_refused: bool = False,
) -> tuple[Tokens, Tokens, Outcomes]:
    """Tokenise pairs of answers: the better ones, the worse ones, and what became of each pair.

    The outcomes are of pairs, with the tokens of both answers, each with its prompt. Memory is as for
    `tokenise`.

    Raises:
        TemplateError: as `tokenise`.
    """
    found = rendered_pairs(examples, template, tokenizer, max_tokens=max_tokens, drop_refused=drop_refused)
    better, worse = _Growing(), _Growing()

    def taking() -> Iterator[tuple[Rendered, Rendered] | Dropped]:
        for each in found:
            if not isinstance(each, Dropped):
                better.add(each[0])
                worse.add(each[1])
            yield each

    done = outcomes(taking())
    return better.whole(), worse.whole(), done


class _Growing:
    """Tokens that grow by one example after another, as bytes and not as objects."""

    def __init__(self) -> None:
        self.ids, self.masks, self.lengths = bytearray(), bytearray(), array("q", [0])

    def add(self, each: Rendered) -> None:
        self.ids.extend(each.ids.tobytes())
        self.masks.extend(each.loss_mask.tobytes())
        self.lengths.append(len(each.ids))

    def taking(self, found: Iterable[Rendered | Dropped]) -> Iterator[Rendered | Dropped]:
        """The same outcomes, of which the kept ones are added as they pass."""
        for each in found:
            if isinstance(each, Rendered):
                self.add(each)
            yield each

    def whole(self) -> Tokens:
        return Tokens(
            ids=np.frombuffer(self.ids, np.int32),
            loss_mask=np.frombuffer(self.masks, np.bool_),
            offsets=np.cumsum(np.frombuffer(self.lengths, np.int64)),
        )
