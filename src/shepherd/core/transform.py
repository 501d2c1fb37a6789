"""Transform: something done to an update on its way, with a client half and a server half."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shepherd.core.messages import Broadcast, Context, Update
from shepherd.core.payload import Layout, Payload, under
from shepherd.core.randomness import Draws, Scoped
from shepherd.core.spending import Sampling, Spending
from shepherd.errors import SettingsError


def allow_any(update: Update, state: Any) -> None:
    """Accept any update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """What a transform that protects each client with noise spends, for the accountant."""

    spent: Callable[[Sampling, int], Spending]
    """`(how cohorts are drawn, rounds) -> what they spend`; raises SettingsError if it gives no guarantee for
    such a draw."""
    verify: Callable[[Update, Any], None] = allow_any
    """`(update, state)`: raises UpdateRefused unless what is about to be summed is of one client, weighs 1
    and is as short as the noise hides. Called last, after all parts have decoded or corrected the update."""
    honest: int = 0
    """Where each client adds its share of the noise: the fewest honest clients in a sum, whose shares are
    enough together; a round with fewer updates gives nothing. 0 where the server adds the noise."""
    apart: int = 1
    """How many rounds two visits of a client have to be apart for `spent` to count both, however cohorts are
    drawn: it takes `Turns` of this many rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """What the server knows of an update from before it was encoded."""

    layout: Layout
    """Names and shapes of its change."""
    norm: float = math.inf
    """Euclidean norm that a transform before the encoding bounded it by. What is decoded may be longer, by
    rounding, and has to be shortened to this."""


def no_state(context: Context) -> Any:
    """Start without a state."""
    return {}


def nothing_public(state: Any) -> Any:
    """Broadcast nothing of the state."""
    return {}


def as_sent(update: Update, public: Any, draws: Draws) -> Update:
    """Send the update unchanged."""
    return update


def as_arrived(update: Update, state: Any) -> Update:
    """Take the update unchanged."""
    return update


def as_aggregated(update: Update, state: Any, draws: Draws) -> tuple[Update, Any]:
    """Leave the aggregate and the state unchanged."""
    return update, state


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """Something done to an update on its way: at the client, on arrival, and on the aggregate.

    A state is a mapping from names to arrays, so that it can be broadcast and saved. Every default changes
    nothing.
    """

    init: Callable[[Context], Any] = no_state
    """The state before the first round."""
    public: Callable[[Any], Any] = nothing_public
    """The part of the state that the broadcast may carry."""
    on_client: Callable[[Update, Any, Draws], Update] = as_sent
    """Applied to a client's update before it is sent: `(update, public state, draws) -> update`."""
    relative: Callable[[Update, Any, Draws, Broadcast], Update] | None = None
    """In place of `on_client`, for a transform that must know the factors that the change is relative to:
    `(update, public state, draws, broadcast) -> update`. It gets the change as the client trained it, so it
    comes before every transform that bounds or encodes one."""
    remember: Callable[[Update, Any, Draws, Broadcast, Payload], tuple[Update, Payload]] | None = None
    """In place of `on_client`, for a transform whose client half keeps something until the client's next
    visit: `(update, public state, draws, broadcast, memory) -> (update, memory)`. The memory is empty before
    the first visit, and stays with the client."""
    on_arrival: Callable[[Update, Any], Update] = as_arrived
    """Applied to each update before it is checked and aggregated: decode it, or raise `UpdateRefused` if a
    promise is broken, such as a bound on its norm. A transform that comes later at the client and increases
    a norm that was bounded has to undo that in its own `on_arrival`, which is called first."""
    decode: Callable[[Update, Any, Original], Update] | None = None
    """In place of `on_arrival`, for a transform whose client half encodes the change, in any shapes and
    dtypes: `(update, state, original) -> update`, or raise `UpdateRefused`. It must be the last one at the
    client, since no other can read what it sends."""
    on_server: Callable[[Update, Any, Draws], tuple[Update, Any]] = as_aggregated
    """Applied to the aggregate before the server's adapter moves; also to zeros without clients, for an empty
    cohort."""
    mechanism: Mechanism | None = None
    """How it spends privacy budget; None if it protects nobody."""
    alters: bool = True
    """Whether what is aggregated may differ from what the algorithm made, as after clipping or rounding;
    False for one that cancels exactly."""
    needs_both_factors: bool = False
    """Whether an update must have A and B of each module, since what it does to one it does to the other."""
    needs_each: bool = False
    """Whether its server half reads each update by itself, which noise or a secure sum is to hide."""
    needs_same_tensors: bool = False
    """Whether each round must send the same tensors, since what it adds in one belongs to the others."""
    adds: Layout = field(default_factory=dict)
    """Tensors that the client half or `on_arrival` adds to `extra`, and that `on_server` takes out again."""
    counts: tuple[str, ...] = ()
    """Those of `adds` of which `on_server` gets the plain mean over all accepted updates, each with the same
    weight, whatever the aggregation chooses or weighs."""
    largest_code: int = 0
    """Largest absolute value of the whole numbers that it sends, each tensor as int64; 0 if it sends real
    numbers. Its `on_arrival` then decodes the update of one client or the sum of several."""
    largest_weight: float = math.inf
    """Largest weight that it sends; a heavier client counts as much as this."""
    norm: float = math.inf
    """Largest Euclidean norm that it lets pass, as it promises on arrival; infinite if it bounds none."""
    needs_equal_weights: bool = False
    """Whether it has every client count the same."""

    @property
    def checks(self) -> bool:
        """Whether it looks at each update on arrival."""
        return self.on_arrival is not as_arrived or self.decode is not None

    def at_client(
        self, update: Update, public: Any, draws: Draws, broadcast: Broadcast, memory: Payload
    ) -> tuple[Update, Payload]:
        """The update as the client sends it, and what the client keeps until its next visit.

        Args:
            memory: what it kept at its last visit; empty before the first one.
        """
        if self.remember is not None:
            return self.remember(update, public, draws, broadcast, memory)
        if self.relative is not None:
            return self.relative(update, public, draws, broadcast), memory
        return self.on_client(update, public, draws), memory

    def at_server(self, update: Update, state: Any, original: Original) -> Update:
        """The update that arrived, as it was before it was encoded; raises UpdateRefused if it cannot be."""
        if self.decode is not None:
            return self.decode(update, state, original)
        return self.on_arrival(update, state)


def chain(*transforms: Transform) -> Transform:
    """Combine transforms: applied in order at the client, in reverse at the server; states form a tuple.

    Each transform gets its own draws, so two kinds of noise in one chain are independent.

    Raises:
        SettingsError: two of them spend privacy budget, which is not supported; one that alters updates comes
            after it; one that checks updates comes before one that adds tensors to them; one that must know
            the broadcast comes after one that need not; one that sends whole numbers is not the last, or
            allows more than one before it; or one is refused by `require_readable`.
    """
    _require_order(transforms)
    spending = [index for index, part in enumerate(transforms) if part.mechanism is not None]
    knows = [part.relative is not None for part in transforms]

    def init(context: Context) -> Any:
        return tuple(part.init(context) for part in transforms)

    def public(states: Any) -> Any:
        return tuple(part.public(state) for part, state in zip(transforms, states, strict=True))

    def on_client(update: Update, states: Any, draws: Draws) -> Update:
        for index, (part, state) in enumerate(zip(transforms, states, strict=True)):
            update = part.on_client(update, state, Scoped(draws, (index,)))
        return update

    def relative(update: Update, states: Any, draws: Draws, broadcast: Broadcast) -> Update:
        return remember(update, states, draws, broadcast, Payload())[0]

    def remember(
        update: Update, states: Any, draws: Draws, broadcast: Broadcast, memory: Payload
    ) -> tuple[Update, Payload]:
        kept: dict[str, Any] = {}
        for index, (part, state) in enumerate(zip(transforms, states, strict=True)):
            own = Payload(under(f"{index} ", memory))
            update, own = part.at_client(update, state, Scoped(draws, (index,)), broadcast, own)
            kept |= {f"{index} {name}": tensor for name, tensor in own.items()}
        return update, Payload(kept)

    def on_arrival(update: Update, states: Any) -> Update:
        for part, state in reversed(list(zip(transforms, states, strict=True))):
            update = part.on_arrival(update, state)
        return update

    def decode(update: Update, states: Any, original: Original) -> Update:
        for index, part in reversed(list(enumerate(transforms))):
            bound = min((before.norm for before in transforms[:index]), default=math.inf)
            known = replace(original, norm=min(original.norm, bound))
            update = part.at_server(update, states[index], known)
        return update

    def on_server(update: Update, states: Any, draws: Draws) -> tuple[Update, Any]:
        after = list(states)
        for index in reversed(range(len(transforms))):
            update, after[index] = transforms[index].on_server(update, states[index], Scoped(draws, (index,)))
        return update, tuple(after)

    return Transform(
        init=init,
        public=public,
        on_client=on_client,
        relative=relative if any(knows) else None,
        remember=remember if any(part.remember is not None for part in transforms) else None,
        on_arrival=on_arrival,
        decode=decode if any(part.decode is not None for part in transforms) else None,
        on_server=on_server,
        mechanism=_of_part(transforms[spending[0]].mechanism, spending[0]) if spending else None,
        alters=any(part.alters for part in transforms),
        needs_both_factors=any(part.needs_both_factors for part in transforms),
        needs_each=any(part.needs_each for part in transforms),
        needs_same_tensors=any(part.needs_same_tensors for part in transforms),
        adds={name: shape for part in transforms for name, shape in part.adds.items()},
        counts=tuple(name for part in transforms for name in part.counts),
        largest_code=transforms[-1].largest_code if transforms else 0,
        largest_weight=min((part.largest_weight for part in transforms), default=math.inf),
        norm=min((part.norm for part in transforms), default=math.inf),
        needs_equal_weights=any(part.needs_equal_weights for part in transforms),
    )


def _require_order(transforms: Sequence[Transform]) -> None:
    """Raise SettingsError unless these transforms can follow one another, as `chain` says."""
    require_readable(transforms, [f"number {place}" for place in range(1, len(transforms) + 1)])
    spending = [index for index, part in enumerate(transforms) if part.mechanism is not None]
    if len(spending) > 1:
        raise SettingsError("two transforms spend privacy budget; keep only one of them")
    if spending and any(part.alters for part in transforms[spending[0] + 1 :]):
        raise SettingsError(
            "a transform that alters updates comes after one that spends privacy budget, and would change the"
            " sum that the noise is made for; list the one that adds noise last under [[transforms]]"
        )
    for index, part in enumerate(transforms):
        if part.adds and any(other.checks for other in transforms[:index]):
            raise SettingsError(
                "a transform that checks or decodes updates comes before one that adds tensors to them, which"
                " it would take for a part of the change; remove the first under [[transforms]]"
            )
    if any(part.largest_code for part in transforms[:-1]):
        raise SettingsError(
            "a transform comes after one that sends whole numbers, which nothing may alter; list the one that"
            " sends them last under [[transforms]]"
        )
    if transforms and transforms[-1].largest_code and any(p.norm < transforms[-1].norm for p in transforms):
        raise SettingsError(
            "a transform that sends whole numbers allows longer updates than one before it, whose bound their"
            " rounding may exceed; give both the same norm, or remove the first under [[transforms]]"
        )
    knows = [part.relative is not None for part in transforms]
    if knows != sorted(knows, reverse=True):
        raise SettingsError(
            "a transform that reads the change as it was trained, such as fedrot, comes after one that bounds"
            " or encodes it; list it first under [[transforms]]"
        )


def require_readable(transforms: Sequence[Transform], names: Sequence[str]) -> None:
    """Raise SettingsError unless each transform can read what those before it make of an update.

    Args:
        names: what each is called, for messages.
    """
    named = list(zip(names, transforms, strict=True))
    noisy = [name for name, part in named if part.mechanism is not None]
    for place, (name, part) in enumerate(named):
        if part.decode is not None and noisy:
            raise SettingsError(
                f"the transform {name!r} encodes updates, which {noisy[0]!r} has to bound and hide as"
                f" numbers; remove {name} under [[transforms]], or {noisy[0]}"
            )
        if part.decode is not None and place + 1 < len(transforms):
            after = names[place + 1]
            raise SettingsError(
                f"the transform {name!r} encodes updates, and {after!r} comes after it and cannot read them;"
                f" list {name} last under [[transforms]], or remove {after} if it encodes updates, too"
            )
        bounding = [other for other, each in named[:place] if each.norm < math.inf]
        if part.remember is not None and bounding:
            raise SettingsError(
                f"the transform {name!r} adds to a change what earlier rounds left out, which makes it longer"
                f" than {bounding[0]!r} allows; set feedback = false for {name}, or remove {bounding[0]}"
            )


def _of_part(mechanism: Mechanism | None, index: int) -> Mechanism | None:
    """The mechanism of a chain whose part at `index` has this one."""
    if mechanism is None or mechanism.verify is allow_any:
        return mechanism
    verify = mechanism.verify
    return replace(mechanism, verify=lambda update, states: verify(update, states[index]))
