import numpy as np
import pytest
from tests.quadratic import Quadratic, chosen, drawn, method

from shepherd.aggregations import mean, ridge
from shepherd.algorithms import fed_sb
from shepherd.core import Aggregation, Context, Transform, Update
from shepherd.core.cores import bases_of, grown, shrunk
from shepherd.core.factor_gap import pairs
from shepherd.errors import SettingsError
from shepherd.rounds import rounds, start
from shepherd.server_optimisers import fedsvd
from shepherd.transforms import fedrot

ALGORITHM = fed_sb.build(fed_sb.Config())


class Noted(Quadratic):
    """Keeps the updates of the last round."""

    def run(self, broadcast, cohort):
        self.sent = list(super().run(broadcast, cohort))
        return iter(self.sent)


def run(federation, until=4, **parts):
    asked = method(ALGORITHM, **parts)
    state = start(asked, drawn(0), Context(rank=2))
    return [
        (state, None),
        *rounds(
            asked,
            federation,
            state,
            until=until,
            select=chosen("all"),
            quorum=1.0,
            seed=0,
            context=Context(rank=2),
        ),
    ]


def test_a_change_in_the_columns_of_b_survives_both_ways():
    adapter = drawn(0)
    bases = bases_of(ALGORITHM, adapter, 1)
    rng = np.random.default_rng(0)
    delta = {n: adapter[n] @ rng.normal(size=(2, 2)) for n in bases}
    update = Update(round=1, clients=("c",), delta=shrunk(bases, delta), weight=1.0)
    for name, tensor in grown(bases, update).delta.items():
        np.testing.assert_allclose(tensor, delta[name], rtol=1e-4, atol=1e-5)
    for name, q in bases.items():
        np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=1e-12)
        np.testing.assert_allclose(q @ (q.T @ adapter[name]), adapter[name], atol=1e-6)
    whole = Update(round=0, clients=("c",), delta=adapter, weight=1.0)
    assert grown(bases_of(ALGORITHM, adapter, 0), whole) is whole


def test_after_the_first_round_cores_alone_travel_and_the_averaging_is_exact():
    federation = Noted(ALGORITHM)
    seen = run(federation, until=1)
    assert seen[1][1].bytes_up == 4 * drawn(0).nbytes
    for number in (2, 3):
        federation = Noted(ALGORITHM)
        seen = run(federation, until=number)
        (before, _), (after, report) = seen[-2:]
        assert report.bytes_up == 4 * 2 * (2 * 2) * 4  # clients, modules, numbers of a core, bytes
        assert report.figures["gap"] == 0.0
        assert report.figures["energy_kept"] == pytest.approx(1.0)
        weights = [update.weight for update in federation.sent]
        bases = bases_of(ALGORITHM, before.adapter, before.round)
        for pair in pairs(before.adapter):
            assert after.adapter[pair.a].tobytes() == before.adapter[pair.a].tobytes()
            local = [before.adapter[pair.b] + grown(bases, u).delta[pair.b] for u in federation.sent]
            due = np.average([b @ before.adapter[pair.a] for b in local], axis=0, weights=weights)
            got = after.adapter[pair.b] @ after.adapter[pair.a]
            np.testing.assert_allclose(got, due, rtol=1e-4, atol=1e-5)


def test_the_columns_of_b_stay_also_where_the_factors_are_written_anew():
    for parts in ({}, {"server": fedsvd.build(fedsvd.Config())}):
        states = [state for state, _ in run(Quadratic(ALGORITHM), **parts)]
        for name in (n for n in drawn(0) if "lora_B" in n):
            q = np.linalg.qr(states[1].adapter[name].astype(float))[0]
            last = states[-1].adapter[name]
            np.testing.assert_allclose(q @ (q.T @ last), last, atol=1e-5)
            assert np.abs(last - states[1].adapter[name]).max() > 1e-3


def test_what_the_server_does_to_the_aggregate_is_done_to_the_core():
    """Noise on the sum is on few numbers."""
    shapes = []

    def on_server(update, state, draws):
        shapes.append({tensor.shape for tensor in update.delta.values()})
        return update, state

    noting = Transform(on_server=on_server)
    run(Quadratic(ALGORITHM, noting), until=2, transform=noting)
    assert shapes[1] == {(2, 2)}


@pytest.mark.parametrize(
    "parts",
    [
        {"aggregation": ridge.build(ridge.Config())},
        {"aggregation": Aggregation(combine=mean.mean, is_mean=False, keeps_basis=False)},
        {"transform": fedrot.build(fedrot.Config())},
    ],
)
def test_what_reads_whole_factors_is_refused(parts):
    with pytest.raises(SettingsError, match=r"only a mean combines|sends only one of them"):
        method(ALGORITHM, **parts)
