"""A transform whose updates travel in other dtypes and other shapes, end to end."""

from __future__ import annotations

import numpy as np
import pytest

from shepherd.algorithms import fedavg
from shepherd.config import PartTable
from shepherd.core import Broadcast, ClientInfo, Context, Method, Seeded, Update, chain, shapes_of
from shepherd.plugins import aggregation, server_optimiser
from shepherd.rounds import loop
from shepherd.rounds.acceptance import check
from shepherd.silos.protocol import wire
from shepherd.transforms import clip
from tests.contracts.running import run
from tests.plugins import top_k
from tests.quadratic import Quadratic, drawn

CONTEXT = Context(layout=shapes_of(drawn(0)))


def sent(share: float) -> tuple[Update, Update, Update]:
    """A whole update, the coded one, and the one that the server makes of it."""
    whole = Update(round=0, delta=drawn(3), weight=2.0, clients=("c0",))
    transform = top_k.build(top_k.Config(share=share))
    coded = transform.on_client(whole, transform.public(transform.init(CONTEXT)), Seeded(0))
    message = wire.decode_reply(wire.encode_reply(coded))
    assert message == coded
    return whole, coded, transform.on_arrival(message, transform.init(CONTEXT))


def test_what_travels_is_smaller_and_comes_back_as_the_largest_entries() -> None:
    whole, coded, back = sent(0.25)
    assert {tensor.dtype for tensor in coded.delta.values()} == {np.dtype(np.uint32), np.dtype(np.float16)}
    assert coded.nbytes < 0.6 * whole.nbytes
    for name, tensor in whole.delta.items():
        kept = back.delta[name]
        count = -(-tensor.size // 4)
        assert np.count_nonzero(kept) == count
        assert set(np.argsort(-abs(tensor).ravel())[:count]) == set(np.flatnonzero(kept))
        np.testing.assert_allclose(kept[kept != 0], tensor[kept != 0], rtol=1e-3)


def test_a_run_whose_updates_are_all_sent_is_the_plain_run_but_for_rounding() -> None:
    def made(*transforms) -> Method:
        return Method(
            algorithm=fedavg.ALGORITHM,
            aggregation=aggregation(PartTable(name="mean")),
            server=server_optimiser(PartTable(name="sgd")),
            transform=chain(*transforms),
        )

    plain = made(clip.build(clip.Config(norm=0.5)))
    coding = made(clip.build(clip.Config(norm=0.5)), top_k.build(top_k.Config(share=1.0)))
    ends = []
    for method in (plain, coding):
        start = loop.start(method, drawn(0), CONTEXT)
        ends.append(run(method, Quadratic(method.algorithm, method.transform), start)[-1])
    for name, tensor in ends[0].adapter.items():
        np.testing.assert_allclose(ends[1].adapter[name], tensor, atol=2e-3)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_decoded_update_is_checked_like_any_other(share: float) -> None:
    _, _, back = sent(share)
    broadcast = Broadcast(round=0, adapter=drawn(0), seed=0)
    expected = fedavg.ALGORITHM.expects(broadcast, ClientInfo(name="c0", examples=1))
    assert check(back, expected, 0).delta == back.delta
