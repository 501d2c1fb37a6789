import numpy as np
import pytest
from tests.quadratic import Quadratic, bits, chosen, drawn, method

from shepherd.algorithms import rolora
from shepherd.core.factor_gap import pairs
from shepherd.rounds import rounds, start

ALGORITHM = rolora.build(rolora.Config())


class Noted(Quadratic):
    """Keeps the updates of the last round."""

    def run(self, broadcast, cohort):
        self.sent = list(super().run(broadcast, cohort))
        return iter(self.sent)


def run(federation, adapter, until=4):
    return rounds(
        method(ALGORITHM),
        federation,
        start(method(ALGORITHM), adapter),
        until=until,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
    )


def test_b_moves_in_the_first_round_and_then_the_factors_take_turns():
    before = bits(drawn(0))
    for number, (state, _) in enumerate(run(Quadratic(ALGORITHM), drawn(0))):
        now = bits(state.adapter)
        still = ".lora_B." if number % 2 else ".lora_A."
        assert all((now[name] == before[name]) == (still in name) for name in now)
        before = now


def test_the_product_of_the_result_is_the_mean_of_the_clients_products():
    federation, before = Noted(ALGORITHM), drawn(0)
    for state, report in run(federation, before):
        weights = np.array([update.weight for update in federation.sent])
        for pair in pairs(before):
            products = [
                (before[pair.b] + u.delta.get(pair.b, 0.0)) @ (before[pair.a] + u.delta.get(pair.a, 0.0))
                for u in federation.sent
            ]
            due = np.average(products, axis=0, weights=weights)
            np.testing.assert_allclose(
                state.adapter[pair.b] @ state.adapter[pair.a], due, rtol=1e-4, atol=1e-5
            )
        assert report.figures["gap"] == 0.0
        before = state.adapter


def test_a_client_sends_the_factor_of_the_round_alone():
    adapter = drawn(0)
    sizes = {
        part: sum(t.nbytes for n, t in adapter.items() if part in n) for part in (".lora_A.", ".lora_B.")
    }
    sent = [report.bytes_up for _, report in run(Quadratic(ALGORITHM), adapter)]
    assert sent == [4 * sizes[".lora_B."], 4 * sizes[".lora_A."]] * 2


@pytest.mark.parametrize("round", range(4))
def test_every_tensor_that_is_no_factor_is_trained_in_each_round(round):
    assert ALGORITHM.leaves("norm.weight", round)
