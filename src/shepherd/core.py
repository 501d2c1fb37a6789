"""The values that travel, and the two kinds of part that act on them. numpy only.

An `Update` is a weighted mean of client changes and is closed under merging: one client's, a
worker's, or a secure sum. `delta` is always local - broadcast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shepherd.errors import AdapterError

Array = NDArray[np.float32]


class Adapter(Mapping[str, Array]):
    """LoRA factors by PEFT name: `(r, in)` for A, `(out, r)` for B; float32; read-only.

    Names are PEFT's state-dict keys without the adapter's own name, for example
    `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. The arrays are copies where the
    caller's were writable, so that nothing outside can change an adapter.

    >>> a = Adapter({"q.lora_A.weight": [[1, 2]], "q.lora_B.weight": [[0], [0]]})
    >>> a["q.lora_A.weight"].dtype, len(a), a.nbytes
    (dtype('float32'), 2, 16)
    """

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[str, ArrayLike] = {}) -> None:
        self._tensors = {name: _frozen(tensors[name]) for name in sorted(tensors)}

    def __getitem__(self, name: str) -> Array:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        """Same names, shapes and bits."""
        if not isinstance(other, Adapter):
            return NotImplemented
        return list(self) == list(other) and all(
            t.shape == other[n].shape and t.tobytes() == other[n].tobytes() for n, t in self.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Adapter({len(self)} tensors, {self.nbytes} bytes)"

    def __reduce__(self) -> tuple[Any, ...]:  # pickling an array drops its read-only flag
        return Adapter, (dict(self._tensors),)

    @property
    def nbytes(self) -> int:
        """Bytes of all the tensors, as they travel (float32)."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def norm(self) -> float:
        """The Euclidean norm over all tensors jointly, summed in float64.

        Not by BLAS, whose threads, where several processes share the cores, wait for each other.
        """
        wide = (t.astype(np.float64).ravel() for t in self._tensors.values())
        return float(np.sqrt(sum(float(np.einsum("i,i", x, x)) for x in wide)))

    def plus(self, other: Mapping[str, ArrayLike], scale: float = 1.0) -> Adapter:
        """self + scale * other, name by name.

        Raises:
            AdapterError: the names or shapes of the two differ.
        """
        require_same_layout(self, other)
        return Adapter({n: t + np.float32(scale) * other[n] for n, t in self.items()})  # type: ignore[operator]

    def times(self, scale: float) -> Adapter:
        """scale * self."""
        return Adapter({name: np.float32(scale) * tensor for name, tensor in self.items()})


def _frozen(tensor: ArrayLike) -> Array:
    given = np.asarray(tensor)
    array = np.ascontiguousarray(given, dtype=np.float32)
    if array.flags.writeable and (array is given or array.base is not None):
        array = array.copy()
    array.flags.writeable = False
    return array


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of some tensors."""
    return {name: tuple(np.shape(tensor)) for name, tensor in tensors.items()}


def not_finite(tensors: Mapping[str, Array]) -> Iterator[str]:
    """The names of the tensors with a number that is not finite."""
    return (name for name, tensor in tensors.items() if not np.isfinite(tensor).all())


def require_same_layout(expected: Mapping[str, Any], got: Mapping[str, Any], what: str = "") -> None:
    """Raise AdapterError, naming the tensor, unless both have the same names and shapes."""
    require_shapes(shapes_of(expected), shapes_of(got), what)


def require_shapes(
    expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]], what: str = ""
) -> None:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """What the server sends; the same for the whole cohort."""

    round: int
    adapter: Adapter
    seed: int
    transforms: Any = ()
    extra: Adapter = field(default_factory=Adapter)

    @property
    def nbytes(self) -> int:
        """Bytes that one client receives."""
        return self.adapter.nbytes + self.extra.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A weighted mean of client changes. `delta` = local - broadcast; `weight` >= 0; `count` clients."""

    round: int
    delta: Adapter
    weight: float
    count: int = 1
    client: str = ""
    extra: Adapter = field(default_factory=Adapter)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that the client sends."""
        return self.delta.nbytes + self.extra.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A client that gave no usable update, and why (one sentence, no data of the client)."""

    client: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientInfo:
    """What the server may know of a client: its name and how many examples it holds."""

    name: str
    examples: int
    min_cohort: int = 1
    """Usable updates that a mean must be made of, or this client's part in it is not let out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """All that the server remembers between rounds; saving it is the checkpoint."""

    round: int
    adapter: Adapter
    memory: Mapping[str, Adapter] = field(default_factory=dict)
    transforms: Any = ()


class Algorithm(NamedTuple):
    """Both halves of a federated method; make variants with `._replace(...)`.

    `correct` runs inside the trainer on stacked tensors with a leading client axis (K, ...) and must be
    plain arithmetic: `broadcast.adapter[name]` has no client axis there and broadcasts over it, and
    `memory[name]` has one.
    """

    init: Callable[[Adapter], ServerState]
    broadcast: Callable[[ServerState, int], Broadcast]
    trainable: Callable[[str, int], bool]
    correct: Callable[[str, Any, Any, Broadcast, Mapping[str, Any]], Any]
    remember: Callable[[Adapter, Broadcast, Adapter, int], tuple[Adapter, Adapter]]
    aggregate: Callable[[ServerState, Iterable[Update]], Update]
    apply: Callable[[ServerState, Update], ServerState]


def as_it_came(update: Update, state: Any) -> Update:
    """The hook of a transform that has nothing to do on arrival."""
    return update


class Transform(NamedTuple):
    """Something done to an update on its way: on the client, and undone or completed on the server.

    A state is a mapping from names to arrays, so that it can be broadcast and saved. `on_arrival` sees each
    update before it is averaged, to decode it, or to raise `UpdateRefused` where a promise is broken, such as
    a bound on its length. A transform that comes later on the client and lengthens what was bounded has to
    undo that in its own `on_arrival`, which is called first.
    """

    init: Callable[[], Any]
    on_client: Callable[[Update, Any, int], Update]
    on_server: Callable[[Update, Any, int], tuple[Update, Any]]
    on_arrival: Callable[[Update, Any], Update] = as_it_came


def chain(*transforms: Transform) -> Transform:
    """Apply in order on the client, in reverse on the server; the state is the tuple of states.

    Each part gets a seed of its own, so two noises in one chain never share their draws.
    """

    def on_client(update: Update, states: Any, seed: int) -> Update:
        for place, (part, state) in enumerate(zip(transforms, states, strict=True)):
            update = part.on_client(update, state, seed_for(seed, place))
        return update

    def on_server(update: Update, states: Any, seed: int) -> tuple[Update, Any]:
        after = list(states)
        for place in reversed(range(len(transforms))):
            part = transforms[place]
            update, after[place] = part.on_server(update, states[place], seed_for(seed, place))
        return update, tuple(after)

    def on_arrival(update: Update, states: Any) -> Update:
        for part, state in reversed(list(zip(transforms, states, strict=True))):
            update = part.on_arrival(update, state)
        return update

    arrive = on_arrival if transforms else as_it_came  # as for a part that has no such hook
    return Transform(lambda: tuple(part.init() for part in transforms), on_client, on_server, arrive)


class Federation(Protocol):
    """Clients behind one method. `run` is lazy: updates come one by one, as they are ready."""

    def clients(self) -> Sequence[ClientInfo]:
        """The clients that can be asked now, in a fixed order."""

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Ask each client of the cohort; yield what each answers."""


def seed_for(seed: int, *path: int | str) -> int:
    """A seed in [0, 2**63) for one purpose, independent of every other path from the same seed.

    >>> seed_for(0, 3, "cohort") == seed_for(0, 3, "cohort") != seed_for(0, 3, "noise")
    True
    """
    # numpy's integers print otherwise
    plain = (part if isinstance(part, str) else int(part) for part in path)
    text = repr((int(seed), *plain)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
