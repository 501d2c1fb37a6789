"""Which client holds which examples: the plug-ins of `data/splits`, and what each of them must keep to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shepherd import plugins
from shepherd.data import splits
from shepherd.errors import DataError
from shepherd.plugins import Kind
from shepherd.settings import SplitTable

if TYPE_CHECKING:  # which reads rows as a split says
    from shepherd.data.examples import Example

Indices = NDArray[np.int64]
Parts = Mapping[str, Sequence[int]]
"""Client name -> indices of its examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A rule that gives each example to one client.

    `deal(examples, seed)` is pure: the seed alone decides, and no global random generator is read. It gives
    the clients in the order in which they are shown.

    Raises:
        DataError: from `deal`, where a client would be empty or an example lacks what the split goes by.
    """

    deal: Callable[[Sequence[Example], int], Parts]
    client_field: str = ""
    """Field of a row that names its client, read into `Example.client`; "" where rows name none."""
    label_field: str = ""
    """Field of a row that the split goes by, read into `Example.label`; "" where it reads none."""
    by_file: bool = False
    """Whether the data are a folder in which each file is a client."""


SPLIT = Kind(name="split", folder=splits, type=Split, chosen_by="[split] by")


def rule(table: SplitTable, allowed: Collection[str] = ()) -> Split:
    """The rule that `[split]` names; arguments and errors as for `plugins.built`."""
    made: Split = plugins.built(SPLIT, table, allowed)
    return made


def split(examples: Sequence[Example], rule: Split, seed: int) -> dict[str, Indices]:
    """Client name -> indices of its examples, ascending: disjoint, none empty, all covered.

    Raises:
        DataError: there is no example, a client would be empty, or the examples lack what the split goes by;
            names the client or the key, and what to change.
    """
    if not examples:
        raise DataError("there is no example to split; check data.source and data.limit")
    dealt = rule.deal(examples, seed)
    found = {name: np.array(sorted(part), dtype=np.int64) for name, part in dealt.items()}
    for name, part in found.items():
        if not len(part):
            raise DataError(f"the split leaves client {name} empty; lower split.clients or use more data")
    if not np.array_equal(np.sort(np.concatenate(list(found.values()))), np.arange(len(examples))):
        raise DataError("the split lost or repeated an example; set split.by to another split")
    return found
