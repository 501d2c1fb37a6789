"""What holds for every method that averages exactly, or repairs the mean: one client, order and faults."""

import numpy as np
import pytest
from tests.quadratic import Quadratic, chosen, drawn, method

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.core import Context, chain
from shepherd.core.factor_gap import pairs
from shepherd.rounds import rounds, start

METHODS = {
    "fedavg": {},
    "ffa_lora": {"algorithm": "ffa_lora"},
    "ffa_lora, fedsvd": {"algorithm": "ffa_lora", "server": "fedsvd"},
    "fedavg, fedsvd": {"server": "fedsvd"},
    "rolora": {"algorithm": "rolora"},
    "rolora, fedsvd": {"algorithm": "rolora", "server": "fedsvd"},
    "fedrot": {"transform": "fedrot"},
    "fedrot, ridge": {"transform": "fedrot", "aggregation": "ridge"},
    "ridge": {"aggregation": "ridge"},
    "fed_sb": {"algorithm": "fed_sb"},
    "fed_sb, fedsvd": {"algorithm": "fed_sb", "server": "fedsvd"},
}
BUILD = {
    "algorithm": plugins.algorithm,
    "aggregation": plugins.aggregation,
    "server": plugins.server_optimiser,
    "transform": lambda table: plugins.transform([table]),
}
ROUNDS = 3
pytestmark = pytest.mark.parametrize("name", METHODS)


class Locals(Quadratic):
    """Keeps the products of the clients' models, as they were before anything was done to the updates."""

    def __init__(self, algorithm, transform, clients, *, order=1, sick=()):
        super().__init__(algorithm, transform, clients)
        self.order, self.sick, self.products = order, sick, []

    def run(self, broadcast, cohort):
        return super().run(broadcast, cohort[:: self.order])

    def _sent(self, broadcast, client, start, local):
        whole = {**broadcast.adapter, **local}
        self.products.append({pair.a: whole[pair.b] @ whole[pair.a] for pair in pairs(broadcast.adapter)})
        if client in self.sick:
            local = {n: tensor * np.nan for n, tensor in local.items()}
        return super()._sent(broadcast, client, start, local)


def built(name):
    return {kind: BUILD[kind](PartTable(name=part)) for kind, part in METHODS[name].items()}


def run(name, clients, **how):
    parts = built(name)
    asked = method(**parts)
    federation = Locals(asked.algorithm, parts.get("transform", chain()), clients, **how)
    loop = rounds(
        asked,
        federation,
        start(asked, drawn(0), Context(rank=2)),
        until=ROUNDS,
        select=chosen("all"),
        quorum=0.5,
        seed=0,
        context=Context(rank=2),
    )
    return [(state, report, federation.products[-1]) for state, report in loop]


def products(adapter):
    return {pair.a: adapter[pair.b] @ adapter[pair.a] for pair in pairs(adapter)}


def test_of_one_client_its_own_product_comes_back(name):
    for state, report, local in run(name, clients=1):
        for tensor, product in products(state.adapter).items():
            np.testing.assert_allclose(product, local[tensor], rtol=1e-4, atol=1e-4)
        assert report.figures["spread"] == pytest.approx(0.0, abs=1e-6)
        assert report.figures["energy_kept"] == pytest.approx(1.0, abs=1e-6)
        assert report.figures["cosine"] == pytest.approx(1.0, abs=1e-6)


def test_the_order_of_the_clients_changes_the_rounding_alone(name):
    for (one, seen, _), (other, again, _) in zip(run(name, 4), run(name, 4, order=-1), strict=True):
        for tensor, product in products(one.adapter).items():
            np.testing.assert_allclose(products(other.adapter)[tensor], product, rtol=1e-4, atol=1e-4)
        assert again.figures == pytest.approx(seen.figures, rel=1e-4, abs=1e-5)
        assert again.cosines == pytest.approx(seen.cosines, rel=1e-4, abs=1e-5)


def test_a_client_whose_numbers_are_not_finite_is_a_counted_failure(name):
    for state, report, _ in run(name, 4, sick=("c2",)):
        assert list(report.failures) == ["c2"]
        assert "is not finite" in report.failures["c2"]
        assert set(report.cosines) == {"c0", "c1", "c3"}
        assert all(np.isfinite(tensor).all() for tensor in state.adapter.values())
