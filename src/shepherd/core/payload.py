"""Payloads: read-only arrays by name, which may travel between clients and server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shepherd.errors import AdapterError

Layout = Mapping[str, tuple[int, ...]]
"""The shape of each tensor, by name."""


class Payload(Mapping[str, NDArray[Any]]):
    """Arrays by name, of any fixed-width dtype (int8 codes, packed bits, indices, float32); read-only.

    The arrays are copies where the caller's were writable, so that nothing outside can change a payload.

    >>> codes = Payload({"q.lora_A.weight": np.array([[1, -2]], dtype=np.int8)})
    >>> codes["q.lora_A.weight"].dtype, codes.nbytes
    (dtype('int8'), 2)

    Raises:
        AdapterError: an array's elements have no fixed width.
    """

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[str, ArrayLike] = {}) -> None:
        self._tensors = {name: self._convert(name, tensors[name]) for name in sorted(tensors)}

    @staticmethod
    def _convert(name: str, tensor: ArrayLike) -> NDArray[Any]:
        array = np.asarray(tensor)
        if array.dtype.hasobject or array.dtype.kind not in "biufc":
            raise AdapterError(f"tensor {name} has dtype {array.dtype}; send numbers of a fixed-width dtype")
        return frozen(tensor, array.dtype)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        """Same names, dtypes, shapes and bits."""
        if not isinstance(other, Payload):
            return NotImplemented
        return list(self) == list(other) and all(
            (t.dtype, t.shape, t.tobytes()) == (other[n].dtype, other[n].shape, other[n].tobytes())
            for n, t in self.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tensors, {self.nbytes} bytes)"

    def __reduce__(self) -> tuple[Any, ...]:  # pickling an array drops its read-only flag
        return type(self), (dict(self._tensors),)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, as they are sent."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def norm(self) -> float:
        """The Euclidean norm over all tensors jointly, summed in float64.

        Not by BLAS, whose threads, where several processes share the cores, wait for each other.
        """
        wide = (t.astype(np.float64).ravel() for t in self._tensors.values())
        return float(np.sqrt(sum(float(np.einsum("i,i", x, x)) for x in wide)))

    def times(self, scale: float) -> Self:
        """Return scale * self, in each tensor's own dtype.

        Raises:
            AdapterError: a tensor holds no floating-point numbers.
        """
        for name, tensor in self._tensors.items():
            if tensor.dtype.kind != "f":
                raise AdapterError(
                    f"tensor {name} has dtype {tensor.dtype} and cannot be scaled; decode it first"
                )
        return type(self)({n: t.dtype.type(scale) * t for n, t in self._tensors.items()})


def frozen(tensor: ArrayLike, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The tensor as a contiguous read-only array; copied unless nothing else can write to it."""
    given = np.asarray(tensor)
    array = np.asarray(given, dtype=dtype, order="C")  # `ascontiguousarray` would give a number a dimension
    if array.flags.writeable and (array is given or array.base is not None):
        array = array.copy()
    array.flags.writeable = False
    return array


def under(prefix: str, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The tensors whose names begin with a prefix, by the rest of their names.

    >>> sorted(under("0 ", {"0 w": np.zeros(1), "1 w": np.zeros(2)}))
    ['w']
    """
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of some tensors."""
    return {name: tuple(np.shape(tensor)) for name, tensor in tensors.items()}


def not_finite(tensors: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """The names of the tensors with a number that is not finite."""
    return (name for name, tensor in tensors.items() if not np.isfinite(tensor).all())


def require_same_layout(expected: Mapping[str, Any], got: Mapping[str, Any], what: str = "") -> None:
    """Raise AdapterError, naming the tensor, unless both have the same names and shapes."""
    require_shapes(shapes_of(expected), shapes_of(got), what)


def require_shapes(expected: Layout, got: Layout, what: str = "") -> None:
    """Raise AdapterError, naming the tensor, unless `got` is exactly what is expected."""
    where = f" in {what}" if what else ""
    for name, shape in expected.items():
        if name not in got:
            raise AdapterError(f"tensor {name} is missing{where}; use an adapter of this run's base")
        if got[name] != shape:
            raise AdapterError(
                f"tensor {name}{where} has shape {got[name]}, expected {shape}; use the same rank and base"
            )
    for name in got:
        if name not in expected:
            raise AdapterError(f"tensor {name} is not expected{where}; use the same target modules")
