"""What each attack makes of an update or of examples."""

import re
from dataclasses import replace

import numpy as np
import pytest
from tests.quadratic import Quadratic, drawn, method, update_of
from tests.quadratic import chosen as chosen_by

from shepherd import plugins
from shepherd.algorithms import fedavg
from shepherd.config import PartTable
from shepherd.core import Broadcast, Context, Original, shapes_of
from shepherd.core.factor_gap import pairs
from shepherd.data.examples import Example, Turn
from shepherd.drill.attacks import as_held, attacks, planting, shuffled
from shepherd.drill.malicious import Malicious, chosen, corrupted
from shepherd.rounds import rounds, start
from shepherd.rounds.weights import Allowed

EVERY = attacks("by the mill", "no")
HONEST, AT = update_of("c0", 1), Broadcast(round=0, adapter=drawn(0), seed=0)


def attacked(name):
    """What a bad client sends, without transforms; its visit allows a weight of 7."""
    return EVERY[name].on_sent(EVERY[name].on_update(HONEST, AT, np.random.default_rng(0)), 7.0)


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
    assert got.weight == (7.0 if name == "weight" else HONEST.weight)


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


def attacking(name, tables=(), bad=("c1",), seed=0, weight=None):
    """Six clients of which some are bad, with the transforms of a run file; and these."""
    transform = plugins.transform([PartTable(**table) for table in tables])
    corrupt = corrupted(transform, frozenset(bad), EVERY[name], seed)
    inner = Quadratic(fedavg.ALGORITHM, corrupt, clients=6)

    def allow(info):
        return Allowed(least=1.0, most=10.0 * info.examples)

    return Malicious(inner=inner, bad=frozenset(bad), attack=EVERY[name], allow=allow), transform, allow


def one_round(federation, transform, allow):
    asked = method(transform=transform)
    ((state, report),) = rounds(
        asked,
        federation,
        start(asked, drawn(0), Context(clients=6)),
        until=1,
        select=chosen_by("all"),
        quorum=0.5,
        seed=0,
        allow=allow,
        max_share=1.0,
    )
    return state, report


@pytest.mark.parametrize(
    ("name", "said"), [("nan", "is not finite"), ("shape", r"has shape \(3, 5\), expected \(2, 5\)")]
)
def test_what_cannot_be_used_is_a_counted_failure_of_the_bad_client(name, said):
    _, report = one_round(*attacking(name))
    assert list(report.failures) == ["c1"]
    assert np.all([each in report.weights for each in ("c0", "c2", "c5")])
    assert re.search(said, report.failures["c1"])


CLIP = {"name": "clip", "norm": 0.5}
ENCODED = [
    [CLIP],
    [{"name": "norm_bound"}, CLIP],
    [{"name": "quantise", "bits": 4, "feedback": False}],
    [{"name": "quantise", "bits": 1}],
    [{"name": "top_k", "share": 0.3}],
    [CLIP, {"name": "top_k", "share": 0.3, "feedback": False}],
    [{"name": "float16"}],
]


@pytest.mark.parametrize("tables", ENCODED, ids=lambda tables: "+".join(each["name"] for each in tables))
@pytest.mark.parametrize("name", [each for each in EVERY if EVERY[each].on_examples is as_held])
def test_a_bad_client_applies_the_transforms_to_what_the_attack_makes(name, tables):
    """So an attack on the change is no failure, and moves the mean as far as the transforms let it."""
    federation, transform, allow = attacking(name, tables)
    state, report = one_round(federation, transform, allow)
    honest, _ = one_round(*attacking("none", tables))
    if name in ("nan", "shape"):
        assert list(report.failures) == ["c1"]
        return
    assert report.failures == {}
    moved = state.adapter.plus(honest.adapter, -1.0).norm()
    cut = name == "scaling" and CLIP in tables  # to the same length in the same direction
    assert (moved > 1e-3) == (name != "none" and not cut)
    if CLIP in tables and name != "weight":
        assert moved <= 2 * CLIP["norm"] * 2 / 21 + 1e-6  # c1 has two of 21 examples
    assert report.weights["c1"] == (20.0 if name == "weight" else 2.0)


def test_what_travels_is_the_encoded_attack():
    """Top-k of the flipped change, as one makes it by hand."""
    federation, transform, _ = attacking("sign_flip", [{"name": "top_k", "share": 0.3, "feedback": False}])
    at = replace(AT, transforms=transform.public(transform.init(Context())))
    (sent,) = federation.run(at, ["c1"])
    (honest,) = Quadratic(fedavg.ALGORITHM, clients=6).run(AT, ["c1"])
    got = transform.at_server(sent, transform.init(Context()), Original(layout=shapes_of(honest.delta)))
    sizes = np.sort(np.abs(np.concatenate([change.ravel() for change in honest.delta.values()])))
    least = sizes[-round(0.3 * len(sizes))]
    for tensor, change in honest.delta.items():
        due = np.where(np.abs(change) >= least, -3.0 * change, 0.0)
        np.testing.assert_allclose(got.delta[tensor], due, atol=0.02)


def test_the_same_seed_gives_the_same_bad_clients_and_the_same_noise():
    names = [f"c{k}" for k in range(10)]
    assert chosen(names, 0.3, 1) == chosen(names[::-1], 0.3, 1) != chosen(names, 0.3, 2)
    assert [len(chosen(names, share, 0)) for share in (0.0, 0.25, 1.0)] == [0, 3, 10]
    made = [list(attacking("noise", seed=seed)[0].run(AT, ["c1"])) for seed in (0, 0, 1)]
    first, again, other = (updates[0].delta for updates in made)
    assert first == again != other


def test_every_attack_keeps_the_layout_but_the_one_that_breaks_it():
    for name in EVERY:
        same = shapes_of(attacked(name).delta) == shapes_of(HONEST.delta)
        assert same == (name != "shape")
        assert replace(attacked(name), delta=HONEST.delta, weight=1.0) == replace(HONEST, weight=1.0)
