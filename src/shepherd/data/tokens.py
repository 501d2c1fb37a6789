"""Examples tokenised once: flat arrays, memory-mapped from disk, and the counts of law 9."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shepherd.data.examples import Example
from shepherd.data.template import Dropped, LossOn, Rendered, Template, Tokenizer, render_all
from shepherd.errors import DataError
from shepherd.io import private
from shepherd.io.progress import many

ARRAYS = {"ids": np.int32, "trained": np.bool_, "offsets": np.int64}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Tokens:
    """n examples end to end; example i is `ids[offsets[i]:offsets[i + 1]]`.

    `ids` (N,) int32; `trained` (N,) bool, the targets of the loss; `offsets` (n + 1,) int64.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        """Counts, and no token, which could be read back as text."""
        return f"<Tokens: {len(self):,} examples, {len(self.ids):,} tokens>"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, (n,)."""
        return np.diff(self.offsets)

    def example(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The ids and the mask of one example, as views."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[part], self.trained[part]

    def take(self, indices: ArrayLike) -> Tokens:
        """The examples at `indices`, in that order, copied."""
        pairs = [self.example(int(index)) for index in np.asarray(indices, dtype=np.int64)]
        return _joined(pairs)

    @staticmethod
    def pooled(parts: Sequence[Tokens]) -> Tokens:
        """All the examples of `parts`, one part after another."""
        lengths = np.concatenate([part.lengths for part in parts])
        return Tokens(
            ids=np.concatenate([part.ids for part in parts]),
            trained=np.concatenate([part.trained for part in parts]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
        )

    def save(self, folder: str | Path) -> None:
        """Write the three arrays; the folder appears whole or not at all, and replaces an older one.

        One process at a time: what a killed one left half done is cleared away here.
        """
        with _replacing(Path(folder)) as fresh:
            for name in ARRAYS:
                with open(fresh / f"{name}.npy", "wb", opener=private.owner_only) as file:
                    np.save(file, getattr(self, name))

    def split(self, sizes: Sequence[int]) -> list[Tokens]:
        """The first examples, the next ones and so on, as views.

        Args:
            sizes: how many examples each part has.

        Raises:
            DataError: these are not as many as there are.
        """
        if min(sizes, default=0) < 0 or sum(sizes) != len(self):
            raise DataError(f"there are {len(self)} examples and not {sum(sizes)}")
        ends = np.cumsum([0, *sizes])
        pieces = [self.offsets[begin : end + 1] for begin, end in pairwise(ends)]
        return [
            Tokens(
                ids=self.ids[piece[0] : piece[-1]],
                trained=self.trained[piece[0] : piece[-1]],
                offsets=np.asarray(piece - piece[0]),
            )
            for piece in pieces
        ]


def save_together(folder: str | Path, parts: Sequence[Tokens]) -> None:
    """As `Tokens.save` of all of `parts`, one after another; `Tokens.split` is the way back.

    A folder for each part would be thousands of files, of which a process may have a few hundred open: a
    memory map keeps its file open.
    """
    borders = np.cumsum([0, *(len(part.ids) for part in parts)], dtype=np.int64)
    offsets = [part.offsets[1:] + border for part, border in zip(parts, borders, strict=False)]
    pieces: dict[str, list[NDArray[Any]]] = {
        "ids": [part.ids for part in parts],
        "trained": [part.trained for part in parts],
        "offsets": [np.zeros(1, np.int64), *offsets],
    }
    with _replacing(Path(folder)) as fresh:
        for name, kind in ARRAYS.items():
            with open(fresh / f"{name}.npy", "wb", opener=private.owner_only) as file:
                size = sum(map(len, pieces[name]))
                header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (size,)}
                np.lib.format.write_array_header_1_0(file, header)
                for piece in pieces[name]:
                    file.write(np.asarray(piece, kind).tobytes())


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of `folder` at the end, or goes without a trace."""
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
    """Memory-map what `Tokens.save` wrote.

    Raises:
        DataError: an array is missing, unreadable or does not fit the others.
    """
    try:
        arrays = {name: _mapped(Path(folder) / f"{name}.npy") for name in ARRAYS}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"tokens in {folder} cannot be read ({error}); remove the folder") from error
    offsets, size = arrays["offsets"], len(arrays["ids"])
    fits = all(arrays[name].dtype == kind and arrays[name].ndim == 1 for name, kind in ARRAYS.items())
    ordered = (
        len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == size and bool((np.diff(offsets) >= 0).all())
    )
    if not (fits and ordered and len(arrays["trained"]) == size):
        raise DataError(f"tokens in {folder} do not fit together; remove the folder")
    return Tokens(**arrays)


def _mapped(path: Path) -> NDArray[Any]:
    whole: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return whole


def _joined(pairs: Sequence[tuple[NDArray[np.int32], NDArray[np.bool_]]]) -> Tokens:
    ids = [np.zeros(0, np.int32), *(pair[0] for pair in pairs)]
    trained = [np.zeros(0, np.bool_), *(pair[1] for pair in pairs)]
    offsets = np.cumsum([0, *(len(pair[0]) for pair in pairs)], dtype=np.int64)
    return Tokens(ids=np.concatenate(ids), trained=np.concatenate(trained), offsets=offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of some examples; tokens are those of kept examples.

    `dropped` counts by reason, and `first` is where the first one of each reason comes from. `cut_responses`
    were cut and have no end; `marked` responses are masked since the data mark them as not to be trained.
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
        """Tokens that are read and not trained."""
        return self.tokens - self.trained

    @property
    def share_cut(self) -> float:
        """Of the kept examples, those that lost tokens to fit."""
        return self.cut / self.kept if self.kept else 0.0

    @property
    def share_dropped(self) -> float:
        """Of all the examples, those that are left out."""
        return (self.examples - self.kept) / self.examples if self.examples else 0.0

    @property
    def share_masked(self) -> float:
        """Of the tokens of kept examples, those that are not trained."""
        return self.masked / self.tokens if self.tokens else 0.0


def count(outcomes: Iterable[Rendered | Dropped]) -> Counts:
    """Counts over what `render_all` gave."""
    outcomes = list(outcomes)
    kept = [outcome for outcome in outcomes if isinstance(outcome, Rendered)]
    dropped = [outcome for outcome in outcomes if isinstance(outcome, Dropped)]
    return Counts(
        examples=len(outcomes),
        kept=len(kept),
        cut=sum(outcome.cut > 0 for outcome in kept),
        dropped=dict(Counter(outcome.reason for outcome in dropped)),
        tokens=sum(len(outcome.ids) for outcome in kept),
        trained=sum(int(outcome.trained.sum()) for outcome in kept),
        cut_tokens=sum(outcome.cut for outcome in kept),
        first={outcome.reason: outcome.where for outcome in reversed(dropped)},
        cut_responses=sum(outcome.cut_response for outcome in kept),
        marked=sum(outcome.marked for outcome in kept),
    )


def response_remarks(*, kept: int, cut: int, marked: int) -> list[str]:
    """What is to be said of responses that are not trained as they are, if anything.

    Args:
        kept: examples.
        cut: of these, those whose last response was cut.
        marked: responses that the data mark as not to be trained.
    """
    found = []
    if cut:
        none = ", and none is whole, so no end of an answer is learned" if cut == kept else ""
        found.append(
            f"{many(cut, 'response')} cut to fit, without an end of turn{none}; data.max_tokens sets"
            " how much fits"
        )
    if marked:
        found.append(f"{many(marked, 'response')} masked, as the data mark them")
    return found


def tokenise(
    examples: Sequence[Example],
    template: Template,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    loss_on: LossOn = "responses",
    drop_refused: bool = False,
) -> tuple[Tokens, NDArray[np.int64], Counts]:
    """The kept examples as tokens, their indices in `examples` (ascending), and the counts.

    Raises:
        TemplateError: the template cannot render with this tokenizer, or refuses an example and
            `drop_refused` is not set.
    """
    outcomes = render_all(
        examples, template, tokenizer, max_tokens=max_tokens, loss_on=loss_on, drop_refused=drop_refused
    )
    kept = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Rendered)]
    pairs = [(o.ids, o.trained) for o in outcomes if isinstance(o, Rendered)]
    return _joined(pairs), np.array(kept, dtype=np.int64), count(outcomes)
