"""Sums in one process: the ring, who is missing, and rounds that differ from plain ones by rounding alone."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.running import same
from tests.quadratic import Quadratic, bits, chosen, drawn, method
from tests.rounds.test_loop import Scripted

from shepherd.algorithms import fedavg
from shepherd.core import Broadcast, Failure, Payload, Update, chain
from shepherd.errors import QuorumNotMet
from shepherd.federation.summed import Summed
from shepherd.rounds import report_row, rounds, start
from shepherd.run.checkpoint import Checkpoint, load, save
from shepherd.transforms import fixed_point
from shepherd.transforms.fixed_point import levels

BROADCAST = Broadcast(round=3, adapter=drawn(0), seed=0)
NAMES = tuple(f"c{k}" for k in range(4))


def coded(client, values, dtype=np.int64):
    codes = np.asarray(values, dtype)
    delta, extra = Payload({"x": codes}), Payload({"w": codes[:1]})
    return Update(round=3, clients=(client,), delta=delta, extra=extra, weight=1.0, metrics={"loss": 1.0})


def answers(*given, ring_bits=32):
    summed = Summed(
        federation=Scripted(lambda broadcast, cohort: iter(given), clients=4), ring_bits=ring_bits
    )
    return list(summed.run(BROADCAST, NAMES))


@given(
    ring_bits=st.sampled_from([32, 64]),
    codes=st.lists(st.lists(st.integers(-(2**29), 2**29), min_size=3, max_size=3), min_size=4, max_size=4),
)
def test_it_is_the_sum_of_whole_numbers_and_tells_nothing_else(ring_bits, codes):
    updates = [coded(name, each) for name, each in zip(NAMES, codes, strict=True)]
    (merged,) = answers(*updates, ring_bits=ring_bits)
    total = np.sum(np.array(codes, object), axis=0)
    wrapped = [(int(value) + 2**31) % 2**32 - 2**31 if ring_bits == 32 else value for value in total]
    assert merged.delta["x"].tolist() == wrapped
    assert merged.extra["w"].tolist() == wrapped[:1]
    assert merged.delta["x"].dtype == np.int64
    assert (merged.clients, merged.weight, dict(merged.metrics), merged.round) == (NAMES, 4.0, {}, 3)


def test_who_fails_or_sends_something_else_is_not_in_the_sum():
    failure = Failure(client="c0", reason="it is away")
    found = answers(failure, *(coded(name, [1, 2]) for name in NAMES[1:]))
    assert found[0] == failure
    assert found[1].clients == NAMES[1:]
    for wrong, why in (
        (coded("c3", [1.0, 2.0], np.float32), "not made of whole numbers"),
        (coded("c3", [1, 2, 3]), "other shapes"),
    ):
        *failures, merged = answers(*(coded(name, [1, 2]) for name in NAMES[:3]), wrong)
        assert [each.client for each in failures] == ["c3"]
        assert why in failures[0].reason
        assert merged.delta["x"].tolist() == [3, 6]


def test_a_sum_of_too_few_is_not_opened():
    found = answers(coded("c0", [1]), coded("c1", [1]), Failure(client="c2", reason="it is away"))
    assert sorted(each.client for each in found) == ["c0", "c1", "c2"]
    assert all(isinstance(each, Failure) for each in found)
    assert "opened with 3 or more" in found[1].reason


# --- rounds


def run(part, *, summed, until=3, state=None, algorithm=fedavg.ALGORITHM, ring_bits=32, clients=None):
    federation = clients or Quadratic(algorithm, part)
    loop = rounds(
        method(algorithm, transform=part),
        Summed(federation=federation, ring_bits=ring_bits) if summed else federation,
        state or start(method(algorithm, transform=part), drawn(0)),
        until=until,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
    )
    return list(loop)


@pytest.mark.parametrize("keys", [{}, {"largest_weight": 4.0}])
@pytest.mark.parametrize("ring_bits", [32, 64])
def test_summed_rounds_differ_from_single_ones_by_float_rounding_and_from_plain_ones_by_steps(
    keys, ring_bits
):
    part = fixed_point.build(fixed_point.Config(norm=100.0, bits=28, **keys))
    merged = run(part, summed=True, ring_bits=ring_bits)[-1][0].adapter
    single = run(part, summed=False)[-1][0].adapter
    plain = chain() if keys else replace(chain(), on_client=lambda u, p, d: replace(u, weight=1.0))
    uncoded = run(plain, summed=False)[-1][0].adapter
    assert max(np.abs(single[n] - t).max() for n, t in merged.items()) < 3e-6
    assert max(np.abs(uncoded[n] - t).max() for n, t in merged.items()) < 3 * 4 * 100 / levels(28) + 3e-6


def test_the_report_names_who_is_in_the_sum_and_has_no_number_of_anyone():
    part = fixed_point.build(fixed_point.Config(largest_weight=4.0, norm=100.0, bits=28))
    ((_, report),) = run(part, summed=True, until=1)
    row = report_row(report)
    assert row["summed"] == list(NAMES)
    assert (row["weights"], row["losses"], row["loss"], row["failures"]) == ({}, {}, None, {})
    assert not {"gap", "cosine", "cosines", "spread"} & row.keys()
    numbers = sum(t.size for t in drawn(0).values()) + 1
    assert row["bytes_up"] == 4 * numbers * 4
    ((_, alone),) = run(part, summed=False, until=1)
    assert "summed" not in report_row(alone)
    assert set(report_row(alone)["weights"]) == set(NAMES)
    assert report_row(alone)["gap"] is not None


def test_a_sum_that_is_refused_is_a_failure_of_each_of_its_clients():
    part = fixed_point.build(fixed_point.Config(norm=100.0))
    other = fixed_point.build(fixed_point.Config(norm=1.0, bits=8))
    federation = Quadratic(fedavg.ALGORITHM, part)
    with pytest.raises(QuorumNotMet) as refusal:
        run(other, summed=True, until=1, clients=federation)
    for name in NAMES:
        assert f"{name}: tensor layers.0" in str(refusal.value)
    assert "beyond +-508" in str(refusal.value)


@pytest.mark.parametrize("at", [1, 2])
def test_resumed_at_any_round_the_bits_are_the_same(at, tmp_path):
    part = fixed_point.build(fixed_point.Config(norm=100.0, largest_weight=4.0))
    straight = run(part, summed=True)[-1][0]
    path = save(tmp_path, Checkpoint(state=run(part, summed=True, until=at)[-1][0]), keep=1)
    resumed = run(part, summed=True, state=load(path).state)[-1][0]
    assert bits(resumed.adapter) == bits(straight.adapter)
    assert same(resumed, straight)


def test_the_order_of_answers_changes_no_bit():
    part = fixed_point.build(fixed_point.Config(norm=100.0))

    class Backwards(Quadratic):
        def run(self, broadcast, cohort):
            return super().run(broadcast, cohort[::-1])

    one = run(part, summed=True)[-1][0].adapter
    other = run(part, summed=True, clients=Backwards(fedavg.ALGORITHM, part))[-1][0].adapter
    assert bits(one) == bits(other)


def test_one_update_is_alive_at_a_time():
    """Law 5: none of them is when the next one is made."""
    made, alive = [], []

    def given(broadcast, cohort):
        for name in cohort:
            alive.append(sum(ref() is not None for ref in made))
            update = coded(name, np.arange(5))
            made.append(weakref.ref(update.delta["x"]))
            yield update
            del update

    list(Summed(federation=Scripted(given, clients=4), ring_bits=32).run(BROADCAST, NAMES))
    assert alive == [0] * 4
