"""What is done to an update on its way, with a client half and a server half."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shepherd.core.messages import Context, Update
from shepherd.core.randomness import Draws, Scoped
from shepherd.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """What a transform that spends privacy budget promises, for the accountant."""

    sensitivity: float
    """The most that one client can change the sum that is released, in its Euclidean norm."""
    noise: float
    """The standard deviation of the Gaussian noise on that sum, as a multiple of the sensitivity."""
    sampling: float
    """The chance of each client to be in a round, in (0, 1]."""


def no_state(context: Context) -> Any:
    """A transform that remembers nothing."""
    return {}


def nothing_public(state: Any) -> Any:
    """A transform whose clients need to know nothing of its state."""
    return {}


def as_sent(update: Update, public: Any, draws: Draws) -> Update:
    """A client that sends its update as it is."""
    return update


def as_arrived(update: Update, state: Any) -> Update:
    """A server that takes an update as it came."""
    return update


def as_aggregated(update: Update, state: Any, draws: Draws) -> tuple[Update, Any]:
    """A server that leaves the aggregate and the state as they are."""
    return update, state


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """Something done to an update on its way: on the client, on arrival, and on the aggregate.

    A state is a mapping from names to arrays, so that it can be broadcast and saved. Each default does
    nothing.
    """

    init: Callable[[Context], Any] = no_state
    """The state before the first round."""
    public: Callable[[Any], Any] = nothing_public
    """The part of the state that the broadcast may carry."""
    on_client: Callable[[Update, Any, Draws], Update] = as_sent
    """What the client sends: `(update, public state, draws) -> update`."""
    on_arrival: Callable[[Update, Any], Update] = as_arrived
    """Each update before it is checked and aggregated: decode it, or raise `UpdateRefused` where a promise
    is broken, such as a bound on its length. A transform that comes later on the client and lengthens what
    was bounded has to undo that in its own `on_arrival`, which is called first."""
    on_server: Callable[[Update, Any, Draws], tuple[Update, Any]] = as_aggregated
    """The aggregate before the server moves, of an empty cohort too: `clients` is empty and all is zero."""
    mechanism: Mechanism | None = None
    """What it costs in privacy; None where it protects nobody."""


def chain(*transforms: Transform) -> Transform:
    """Apply in order on the client, in reverse on the server; the state is the tuple of states.

    Each part gets draws of its own, so two noises in one chain never share theirs.

    Raises:
        SettingsError: two of them spend privacy budget, which no accountant here adds up.
    """
    spending = [part.mechanism for part in transforms if part.mechanism is not None]
    if len(spending) > 1:
        raise SettingsError("two transforms spend privacy budget; keep one of them")

    def init(context: Context) -> Any:
        return tuple(part.init(context) for part in transforms)

    def public(states: Any) -> Any:
        return tuple(part.public(state) for part, state in zip(transforms, states, strict=True))

    def on_client(update: Update, states: Any, draws: Draws) -> Update:
        for place, (part, state) in enumerate(zip(transforms, states, strict=True)):
            update = part.on_client(update, state, Scoped(draws, (place,)))
        return update

    def on_arrival(update: Update, states: Any) -> Update:
        for part, state in reversed(list(zip(transforms, states, strict=True))):
            update = part.on_arrival(update, state)
        return update

    def on_server(update: Update, states: Any, draws: Draws) -> tuple[Update, Any]:
        after = list(states)
        for place in reversed(range(len(transforms))):
            update, after[place] = transforms[place].on_server(update, states[place], Scoped(draws, (place,)))
        return update, tuple(after)

    return Transform(
        init=init,
        public=public,
        on_client=on_client,
        on_arrival=on_arrival,
        on_server=on_server,
        mechanism=spending[0] if spending else None,
    )
