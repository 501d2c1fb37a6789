"""The norm bound at the running median: what is clipped, and how the bound follows."""

from dataclasses import replace

import numpy as np
import pytest
from tests.quadratic import Quadratic, chosen, drawn, method, update_of

from shepherd import plugins
from shepherd.algorithms import fedavg
from shepherd.config import PartTable
from shepherd.core import Context, Seeded, chain
from shepherd.errors import SettingsError
from shepherd.rounds import rounds, start
from shepherd.transforms import clip, gaussian, norm_bound
from shepherd.transforms.norm_bound import EDGES, WITHIN, median


def built(**keys):
    return norm_bound.build(norm_bound.Config(**keys))


def of_norm(length, client="c0"):
    update = update_of(client, 3)
    return replace(update, delta=update.delta.times(length / update.delta.norm()))


class OfNorms(Quadratic):
    """Clients whose updates have these norms in every round."""

    def __init__(self, norms, transform, weights=()):
        super().__init__(fedavg.ALGORITHM, transform, clients=len(norms))
        self.norms, self.weights = norms, weights or [1.0] * len(norms)

    def run(self, broadcast, cohort):
        for update, length, weight in zip(
            super().run(broadcast, cohort), self.norms, self.weights, strict=True
        ):
            change = drawn(77).plus(drawn(500 + int(update.client[1:])), 0.1)
            yield replace(update, delta=change.times(length / change.norm()), weight=weight)


def bound_after(norms, rounds_=1, aggregation="mean", weights=(), keys=None, **own):
    """The bound after rounds whose updates have these norms, through an aggregation."""
    part = built(**own)
    asked = method(
        transform=part, aggregation=plugins.aggregation(PartTable(name=aggregation, **(keys or {})))
    )
    loop = rounds(
        asked,
        OfNorms(norms, part, weights),
        start(asked, drawn(0), Context()),
        until=rounds_,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
        max_share=1.0,
        root=lambda broadcast: drawn(77),
    )
    *_, (state, report) = loop
    assert not report.failures
    return float(state.transforms["bound"])


RULES = [
    ("mean", {}),
    ("coordinate_median", {}),
    ("trimmed_mean", {"trim": 0.3}),
    ("krum", {"bad": 2}),
    ("krum", {"bad": 2, "keep": 3}),
    ("geometric_median", {}),
    ("fltrust", {}),
]


@pytest.mark.parametrize(("aggregation", "keys"), RULES, ids=str)
@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 1.0, 1.0, 1e6, 1.0, 1e6)])
def test_the_bound_is_the_median_norm_whatever_the_rule_chooses_or_weighs(aggregation, keys, weights):
    norms = [0.5, 1.0, 2.0, 2.1, 40.0, 1.9, 1e6]
    got = bound_after(norms, aggregation=aggregation, keys=keys, weights=weights)
    assert 2.0 <= got <= 2.0 * 10 ** (1 / 24)


@pytest.mark.parametrize(("aggregation", "keys"), RULES, ids=str)
def test_some_clients_that_send_next_to_nothing_do_not_freeze_a_run(aggregation, keys):
    norms = [1e-6] * 4 + [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    assert bound_after(norms, rounds_=4, aggregation=aggregation, keys=keys) >= 1.0


def test_less_than_half_of_bad_clients_do_not_move_it_beyond_honest_norms():
    assert bound_after([1.0, 1.1, 1.2, 1e9, 1e9]) < 1.4
    assert bound_after([1.0, 1.1, 1.2, 1e-7, 1e-7], rounds_=3) > 0.9


def test_longer_updates_are_made_as_short_as_the_bound_and_others_stay():
    part = built(first=2.0)
    state = part.init(Context())
    long, short = part.on_arrival(of_norm(7.0), state), part.on_arrival(of_norm(1.5), state)
    assert long.delta.norm() == pytest.approx(2.0, rel=1e-6)
    assert short.delta == of_norm(1.5).delta
    # the norm that counts is the one before
    np.testing.assert_array_equal(long.extra[WITHIN], (of_norm(7.0).delta.norm() <= EDGES).astype(np.float32))


def test_without_a_first_bound_the_first_round_is_not_bounded():
    part = built()
    assert part.on_arrival(of_norm(1e6), part.init(Context())).delta == of_norm(1e6).delta


def test_the_running_median_forgets_by_its_memory():
    part = built(memory=0.9)
    state, server = part.init(Context()), start(method(), drawn(0))
    combine = plugins.aggregation(PartTable(name="mean")).combine
    bounds = []
    for length in (1.0, *[5.0] * 8):
        arrived = [part.on_arrival(of_norm(length, f"c{k}"), state) for k in range(3)]
        _, state = part.on_server(combine(server, iter(arrived), Context()), state, Seeded(0))
        bounds.append(float(state["bound"]))
    assert max(bounds[:6]) < 1.2  # 0.9 ** 6 is above a half
    assert bounds[-1] > 4.9


def test_a_norm_above_every_edge_is_no_bound():
    assert median(np.zeros(len(EDGES))) == np.inf


def test_a_scaled_update_moves_a_round_no_further_than_an_honest_one():
    bound = built(first=0.5)
    asked = method(transform=bound)

    class Scaled(Quadratic):
        def run(self, broadcast, cohort):
            for update in super().run(broadcast, cohort):
                big = update.client == "c0"
                yield replace(update, delta=update.delta.times(1e4)) if big else update

    loop = rounds(
        asked,
        Scaled(fedavg.ALGORITHM, bound, clients=5),
        start(asked, drawn(0)),
        until=5,
        select=lambda clients, round, seed: tuple(info.name for info in clients),
        quorum=1.0,
        seed=0,
    )
    before = drawn(0)
    for state, report in loop:
        assert not report.failures
        assert state.adapter.plus(before, -1.0).norm() < 2.0
        before = state.adapter


def test_it_is_refused_beside_noise_and_before_a_clip_that_would_count_its_tensor():
    hidden = chain(built(), gaussian.build(gaussian.Config()))
    with pytest.raises(SettingsError, match="reads single updates at the server, and hides them with noise"):
        method(transform=hidden)
    chain(built(), clip.build(clip.Config()))
    with pytest.raises(SettingsError, match="adds tensors"):
        chain(clip.build(clip.Config()), built())
    with pytest.raises(SettingsError, match="list norm_bound before clip under"):
        plugins.transform([PartTable(name="clip"), PartTable(name="norm_bound")])
    plugins.transform([PartTable(name="norm_bound"), PartTable(name="clip")])


def test_two_of_them_are_refused_since_only_one_could_read_its_tensor():
    with pytest.raises(SettingsError, match=r"'norm_bound' adds to one .*; keep one under"):
        plugins.transform([PartTable(name="norm_bound"), PartTable(name="norm_bound", factor=2.0)])
