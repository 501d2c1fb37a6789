from dataclasses import replace

import numpy as np
from tests.quadratic import Quadratic, drawn

from shepherd.algorithms import local_adapter
from shepherd.core import Broadcast, ClientInfo, Payload, Step, shapes_of

ALGORITHM = local_adapter.build(local_adapter.Config(rank=3, penalty=0.5))
BROADCAST = Broadcast(round=0, adapter=drawn(0), seed=0)
A, B = "layers.0.q_proj.lora_A.weight", "layers.0.q_proj.lora_B.weight"


def test_the_first_visit_starts_from_the_servers_model_with_live_ranks_beside_it():
    start = ALGORITHM.start(BROADCAST, Payload(), ClientInfo(name="a", examples=1))
    assert (start[A].shape, start[B].shape) == ((5, 5), (3, 5))
    np.testing.assert_array_equal(start[B] @ start[A], BROADCAST.adapter[B] @ BROADCAST.adapter[A])
    assert np.linalg.matrix_rank(start[A][2:]) == 3
    other = ALGORITHM.start(BROADCAST, Payload(), ClientInfo(name="b", examples=1))
    assert not np.array_equal(start[A], other[A])


def test_the_runs_seed_decides_the_first_own_ranks():
    """Through the seed that a broadcast has, which is that of the run and the round (laws 2 and 3)."""
    me = ClientInfo(name="a", examples=1)
    starts = [ALGORITHM.start(replace(BROADCAST, seed=seed), Payload(), me) for seed in (1, 1, 2)]
    assert starts[0] == starts[1]
    assert not np.array_equal(starts[0][A][2:], starts[2][A][2:])
    np.testing.assert_array_equal(starts[0][A][:2], starts[2][A][:2])


def test_the_penalty_pulls_a_clients_own_ranks_alone():
    start = ALGORITHM.start(BROADCAST, Payload(), ClientInfo(name="a", examples=1))
    for name in (A, B):
        param = np.stack([start[name], 2 * start[name]])  # (K, ...)
        grad = np.ones_like(param)
        got = ALGORITHM.correct(name, grad, param, BROADCAST, {}, Step(index=0, rates=None))
        due = grad + 0.5 * param
        rank = BROADCAST.adapter[name].shape["lora_B" in name]
        common = (slice(None), slice(rank)) if "lora_A" in name else (..., slice(rank))
        due[common] = 1.0
        np.testing.assert_allclose(got, due)


def test_the_own_ranks_stay_and_the_next_visit_has_them():
    federation = Quadratic(ALGORITHM, clients=2)
    first, _ = federation.run(BROADCAST, ["c0", "c1"])
    assert shapes_of(first.delta) == shapes_of(BROADCAST.adapter)
    kept = federation.memories["c0"]
    assert (kept[A].shape, kept[B].shape) == ((3, 5), (3, 3))
    again = ALGORITHM.start(BROADCAST, kept, ClientInfo(name="c0", examples=1))
    np.testing.assert_array_equal(again[A][2:], kept[A])
    np.testing.assert_array_equal(again[B][:, 2:], kept[B])
