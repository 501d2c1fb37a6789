"""Nested mappings and tuples of arrays, converted to a JSON shape and a flat table of arrays and back.

Checkpoints and messages store states in this form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tree = Any
"""Nested mappings and tuples whose leaves are arrays, or None in place of one."""
Path = tuple[str | int, ...]


def flattened(value: Tree, tensors: dict[str, NDArray[Any]], path: Path = ()) -> Any:
    """The shape of a tree, with lists for tuples and None for arrays; the arrays are added to `tensors`.

    >>> tensors = {}
    >>> flattened({"a": (np.zeros(2), {})}, tensors), list(tensors)
    ({'a': [None, {}]}, ['["a", 0]'])
    """
    if isinstance(value, Mapping):
        return {name: flattened(part, tensors, (*path, name)) for name, part in value.items()}
    if isinstance(value, tuple):
        return [flattened(part, tensors, (*path, index)) for index, part in enumerate(value)]
    tensors[json.dumps(path)] = np.asarray(value, order="C")
    return None


def rebuilt(shape: Any, tensors: dict[str, NDArray[Any]], path: Path = ()) -> Tree:
    """The tree of this shape; its arrays are removed from `tensors`, so the rest does not belong to it.

    Raises:
        KeyError: an array is missing; its argument is the array's name in `tensors`.
    """
    if isinstance(shape, dict):
        return {name: rebuilt(part, tensors, (*path, name)) for name, part in shape.items()}
    if isinstance(shape, list):
        return tuple(rebuilt(part, tensors, (*path, index)) for index, part in enumerate(shape))
    name = json.dumps(path)
    if shape is not None:
        raise KeyError(name)
    return tensors.pop(name)
