"""How many rounds count besides, where released rounds are lost and made again: against every case."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import pytest

from shepherd.core import Mechanism, Sampling, Spending
from shepherd.core.spending import FixedSize, Poisson, Shuffled, Turns
from shepherd.privacy.client_level import ClientPrivacy

MOST = 7
"""Rounds of a run."""


def privacy(sampling: Sampling) -> ClientPrivacy:
    def spent(sampling: Sampling, rounds: int) -> Spending:
        return Spending(noise=1.0, sampling=sampling, steps=rounds)

    return ClientPrivacy(
        mechanism=Mechanism(spent=spent), sampling=sampling, clients=10, rounds=MOST, delta=1e-3
    )


@pytest.mark.parametrize("sampling", [Poisson(chance=0.5), FixedSize(size=5, of=10), Turns(every=1)])
def test_a_round_that_is_drawn_apart_from_others_counts_once_for_each_time(sampling) -> None:
    for finished, released in product(range(MOST), repeat=2):
        assert privacy(sampling).redone(finished, released) == max(0, released - finished)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_each_draw_of_an_epoch_that_was_begun_counts_as_an_epoch(steps) -> None:
    """The rounds of an epoch that are made again have another draw than those of it that were released."""
    for released in range(1, MOST + 1):
        for finished in range(released):
            first = {number // steps for number in range(released)}
            second = {number // steps for number in range(finished, MOST)}
            found = MOST + privacy(Shuffled(steps=steps)).redone(finished, released)
            assert math.ceil(found / steps) == len(first) + len(second)
    assert privacy(Shuffled(steps=steps)).redone(3, 3) == 0


def test_the_cases_of_the_docstring() -> None:
    drawings = (Poisson(chance=0.5), FixedSize(size=5, of=10), Shuffled(steps=5), Turns(every=2))
    assert [privacy(sampling).redone(4, 7) for sampling in drawings] == [3, 3, 10, 4]


def turns(every: int) -> Iterator[tuple[int, ...]]:
    """All ways in which a client may take part in rounds, in at most one of `every` in a row."""
    for asked in product([0, 1], repeat=MOST):
        if all(sum(asked[at : at + every]) <= 1 for at in range(MOST)):
            yield asked


@pytest.mark.parametrize("every", [1, 2, 3, 4])
def test_who_takes_turns_is_never_in_more_sums_than_are_counted(every) -> None:
    """Nor in more with noise over `every` rounds, which carries a contribution into those that follow."""
    for released in range(1, MOST + 1):
        for finished in range(released):
            counted = math.ceil((MOST + privacy(Turns(every=every)).redone(finished, released)) / every)
            most = 0
            for asked in turns(every):
                reach = [sum(asked[max(0, at - every + 1) : at + 1]) for at in range(MOST)]
                touched = {
                    at - back
                    for at in range(finished, released)
                    if reach[at]
                    for back in range(every)
                    if at >= back and asked[at - back]
                }
                most = max(most, sum(asked) + len(touched))
            assert most <= counted
