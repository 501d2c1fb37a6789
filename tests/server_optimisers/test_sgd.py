import pytest

from shepherd.config import validated
from shepherd.core import Adapter, ServerState, Update
from shepherd.errors import SettingsError
from shepherd.server_optimisers import sgd


def moved(rate):
    state = ServerState(round=0, adapter=Adapter({"a": [1.0], "b": [2.0]}))
    update = Update(round=0, delta=Adapter({"b": [0.5]}), weight=1.0, clients=("c",))
    after = sgd.build(sgd.Config(learning_rate=rate)).apply(state, update)
    return {name: tensor.tolist() for name, tensor in after.adapter.items()}


@pytest.mark.parametrize(("rate", "b"), [(1.0, 2.5), (0.5, 2.25), (2.0, 3.0)])
def test_it_moves_what_travelled_and_nothing_else(rate, b):
    assert moved(rate) == {"a": [1.0], "b": [b]}


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), True])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(SettingsError, match="learning_rate"):
        validated(sgd.Config, {"learning_rate": rate}, "the server optimiser")
