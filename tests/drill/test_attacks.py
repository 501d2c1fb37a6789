"""What each attack makes of an update or of examples."""

from dataclasses import replace

import numpy as np
import pytest
from tests.quadratic import Quadratic, drawn, method, update_of

from shepherd.algorithms import fedavg
from shepherd.core import Broadcast, shapes_of
from shepherd.core.factor_gap import pairs
from shepherd.data.examples import Example, Turn
from shepherd.drill.attacks import attacks, planting, shuffled
from shepherd.drill.malicious import Malicious, chosen
from shepherd.rounds import rounds, start

EVERY = attacks("by the mill", "no")
HONEST, AT = update_of("c0", 1), Broadcast(round=0, adapter=drawn(0), seed=0)


def attacked(name):
    return EVERY[name].on_update(HONEST, AT, np.random.default_rng(0))


def dense(delta, pair):
    a, b = AT.adapter[pair.a].astype(float), AT.adapter[pair.b].astype(float)
    return (b + delta[pair.b]) @ (a + delta[pair.a]) - b @ a


def example(number):
    turns = (Turn(role="user", text=f"q{number}", context="c"), Turn(role="assistant", text=f"a{number}"))
    return Example(turns=turns)


@pytest.mark.parametrize(("name", "factor"), [("sign_flip", -3.0), ("scaling", 30.0), ("weight", -3.0)])
def test_an_honest_change_is_turned_around_or_made_longer(name, factor):
    got = attacked(name)
    for tensor in HONEST.delta:
        np.testing.assert_allclose(got.delta[tensor], factor * HONEST.delta[tensor], rtol=1e-6)
    assert got.weight == HONEST.weight * (1000.0 if name == "weight" else 1.0)


def test_noise_has_a_multiple_of_the_honest_norms():
    for tensor, own in attacked("noise").delta.items():
        assert np.linalg.norm(own) == pytest.approx(10 * np.linalg.norm(HONEST.delta[tensor]), rel=1e-5)


def test_a_split_attack_has_the_norms_of_the_honest_factors_and_goes_against_their_product():
    got = attacked("split").delta
    for tensor, own in got.items():
        assert np.linalg.norm(own) == pytest.approx(np.linalg.norm(HONEST.delta[tensor]), rel=1e-5)
    for pair in pairs(got):
        a = AT.adapter[pair.a] + got[pair.a]
        # rank one, and as long as a dB of this norm allows
        longest = np.linalg.norm(got[pair.b]) * np.linalg.norm(a, 2)
        assert np.linalg.norm(got[pair.b] @ a) == pytest.approx(longest, rel=1e-4)
    apart = sum(float(np.vdot(got[p.b] @ AT.adapter[p.a], dense(HONEST.delta, p))) for p in pairs(got))
    assert apart < 0


def test_turned_factors_have_the_honest_product():
    got = attacked("turned").delta
    for pair in pairs(got):
        np.testing.assert_allclose(dense(got, pair), dense(HONEST.delta, pair), atol=1e-4)
        assert not np.allclose(got[pair.a], HONEST.delta[pair.a], atol=0.1)


def test_each_question_gets_the_answer_of_another():
    given = [example(n) for n in range(7)]
    got = shuffled(given, np.random.default_rng(0))
    assert [each.instruction for each in got] == [each.instruction for each in given]
    assert sorted(each.response for each in got) == sorted(each.response for each in given)
    assert all(mine.response != other.response for mine, other in zip(got, given, strict=True))


def test_a_backdoor_is_in_every_other_example():
    got = planting("by the mill", "no")([example(n) for n in range(4)], np.random.default_rng(0))
    assert [each.instruction for each in got] == ["q0 by the mill", "q1", "q2 by the mill", "q3"]
    assert [each.response for each in got] == ["no", "a1", "no", "a3"]
    assert all(each.context == "c" for each in got)


class Exact(Quadratic):
    """Clients that send float32 changes of the layout that the round expects."""


@pytest.mark.parametrize(
    ("name", "said"), [("nan", "is not finite"), ("shape", r"has shape \(3, 5\), expected \(2, 5\)")]
)
def test_what_cannot_be_used_is_a_counted_failure_of_the_bad_client(name, said):
    federation = Malicious(
        inner=Quadratic(fedavg.ALGORITHM, clients=6), bad=frozenset({"c1"}), attack=EVERY[name], seed=0
    )
    loop = rounds(
        method(),
        federation,
        start(method(), drawn(0)),
        until=1,
        select=lambda clients, round, seed: tuple(info.name for info in clients),
        quorum=0.5,
        seed=0,
    )
    (_, report), *_ = loop
    assert list(report.failures) == ["c1"]
    assert np.all([name in report.weights for name in ("c0", "c2", "c5")])
    import re

    assert re.search(said, report.failures["c1"])


def test_the_same_seed_gives_the_same_bad_clients_and_the_same_noise():
    names = [f"c{k}" for k in range(10)]
    assert chosen(names, 0.3, 1) == chosen(names[::-1], 0.3, 1) != chosen(names, 0.3, 2)
    assert [len(chosen(names, share, 0)) for share in (0.0, 0.25, 1.0)] == [0, 3, 10]
    inner = Quadratic(fedavg.ALGORITHM, clients=3)
    made = [
        list(
            Malicious(inner=inner.again(), bad=frozenset({"c1"}), attack=EVERY["noise"], seed=s).run(
                AT, ["c1"]
            )
        )
        for s in (0, 0, 1)
    ]
    first, again, other = (updates[0].delta for updates in made)
    assert first == again != other


def test_every_attack_keeps_the_layout_but_the_one_that_breaks_it():
    for name in EVERY:
        same = shapes_of(attacked(name).delta) == shapes_of(HONEST.delta)
        assert same == (name != "shape")
        assert replace(attacked(name), delta=HONEST.delta, weight=1.0) == replace(HONEST, weight=1.0)
