"""What every file of `shepherd/transforms` keeps to. A new file is tested without touching this one."""

from dataclasses import replace

import numpy as np
import pytest
from tests.contracts.running import again
from tests.quadratic import Quadratic, bits, chosen, drawn, method, update_of

from shepherd import plugins, transforms
from shepherd.algorithms import fedavg
from shepherd.config import PartTable
from shepherd.core import Adapter, Broadcast, Context, Original, Payload, Seeded, shapes_of
from shepherd.rounds import rounds, start

AVG = fedavg.ALGORITHM
CONTEXT = Context(clients=4, share=1.0, rounds=4)
BROADCAST = Broadcast(round=0, adapter=drawn(0), seed=0)
pytestmark = pytest.mark.parametrize("name", plugins.names(transforms))


def built(name):
    return plugins.transform([PartTable(name=name)])


def run(transform, state=None, federation=None, *, until=4):
    loop = rounds(
        method(transform=transform),
        federation or Quadratic(AVG, transform),
        state or start(method(transform=transform), drawn(0), CONTEXT),
        until=until,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
        secret=0,
        noise=Seeded(0),
    )
    return [state for state, _ in loop]


def numbers(state):
    """A transform's state as plain values."""
    return [{key: np.asarray(value).tolist() for key, value in part.items()} for part in state.transforms]


def there_and_back(transform, update):
    """What a client sends, and what the server makes of it."""
    state, original = transform.init(CONTEXT), Original(layout=shapes_of(update.delta))
    sent, _ = transform.at_client(update, transform.public(state), Seeded(0), BROADCAST, Payload())
    back, _ = transform.on_server(transform.at_server(sent, state, original), state, Seeded(0))
    return sent, back


def test_the_same_seed_gives_the_same_bits(name):
    one, two = (run(built(name))[-1] for _ in range(2))
    assert bits(one.adapter) == bits(two.adapter)
    assert numbers(one) == numbers(two)


@pytest.mark.parametrize("at", range(1, 4))
def test_resumed_at_any_round_the_bits_are_the_same(name, at, tmp_path):
    transform = built(name)
    clients = Quadratic(AVG, transform)
    straight, stopped = run(transform)[-1], run(transform, federation=clients, until=at)[-1]
    resumed = run(built(name), *again(stopped, clients, tmp_path))[-1]
    assert bits(resumed.adapter) == bits(straight.adapter)
    assert numbers(resumed) == numbers(straight)


def test_a_zero_update_passes(name):
    transform = built(name)
    zero = replace(update_of("c0", 0), delta=drawn(0).times(0.0))
    back = there_and_back(transform, zero)[1]
    assert all(np.isfinite(tensor).all() for tensor in back.delta.values())
    assert {n: t.shape for n, t in back.delta.items()} == {n: t.shape for n, t in zero.delta.items()}


def test_nothing_is_mutated_and_the_client_keeps_its_name_and_round(name):
    transform = built(name)
    update = replace(update_of("c0", 0, weight=3.0, round=2), extra=Adapter({"c": [1e3]}))
    then = bits(update.delta), bits(update.extra)
    sent, _ = there_and_back(transform, update)
    assert (bits(update.delta), bits(update.extra)) == then
    assert (sent.clients, sent.round) == (("c0",), 2)
    assert not any(tensor.flags.writeable for tensor in sent.delta.values())
