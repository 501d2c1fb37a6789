from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.quadratic import bits, drawn, update_of

from shepherd.config import validated
from shepherd.core import Adapter, Seeded, Update
from shepherd.errors import SettingsError, UpdateRefused
from shepherd.transforms import clip


def clipped(update, norm):
    transform = clip.build(clip.Config(norm=norm))
    return transform.on_client(update, {}, Seeded(0))


def length(update):
    """Over delta and extra together, in float64, by another way than the transform's."""
    parts = [t.astype(float).ravel() for t in (*update.delta.values(), *update.extra.values())]
    return float(np.linalg.norm(np.concatenate(parts)))


def test_delta_and_extra_share_one_norm():
    update = Update(
        round=0, weight=5.0, clients=("c",), delta=Adapter({"w": [3.0]}), extra=Adapter({"c": [4.0]})
    )
    short = clipped(update, 1.0)
    assert short.delta["w"] == pytest.approx(0.6, rel=1e-6)
    assert short.extra["c"] == pytest.approx(0.8, rel=1e-6)
    assert short.weight == 5.0


@given(st.integers(0, 2**32), st.floats(1e-6, 1e6), st.floats(1e-3, 1e3))
def test_never_longer_than_norm_and_twice_is_once(seed, scale, norm):
    update = replace(update_of("c", seed), delta=drawn(seed, scale=scale), extra=drawn(seed + 1))
    once = clipped(update, norm)
    assert length(once) <= norm
    assert length(once) == pytest.approx(min(norm, length(update)), rel=1e-6)
    twice = clipped(once, norm)
    assert bits(twice.delta) == bits(once.delta)
    assert bits(twice.extra) == bits(once.extra)


def test_a_short_update_and_a_zero_update_pass():
    update = update_of("c", 0)
    assert clipped(update, 1e3) is update
    zero = replace(update, delta=update.delta.times(0.0))
    assert clipped(zero, 1.0) is zero


def test_what_is_not_finite_is_left_for_the_server_to_refuse():
    update = replace(update_of("c", 0), delta=Adapter({"w": [np.inf, 1.0]}))
    assert clipped(update, 1.0) is update


def test_the_server_undoes_nothing():
    transform, update = clip.build(clip.Config(norm=0.1)), update_of("c", 0)
    assert transform.on_server(update, {}, Seeded(3)) == (update, {})


@pytest.mark.parametrize("norm", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_norm_is_refused(norm):
    with pytest.raises(SettingsError, match="norm"):
        validated(clip.Config, {"norm": norm}, "the transform")


@given(st.integers(0, 2**32), st.floats(1e-3, 1e3), st.floats(0.5, 2.0))
def test_on_arrival_what_is_longer_is_refused_and_what_was_clipped_is_not(seed, norm, times):
    transform, update = (
        clip.build(clip.Config(norm=norm)),
        replace(update_of("c", seed), extra=drawn(seed + 1)),
    )
    sent = clipped(replace(update, delta=update.delta.times(1e4)), norm)
    assert transform.on_arrival(sent, {}) is sent
    other = replace(sent, delta=sent.delta.times(times), extra=sent.extra.times(times))
    if length(other) > norm * 1.001:
        with pytest.raises(UpdateRefused, match="clip it at the client"):
            transform.on_arrival(other, {})
    elif length(other) <= norm:
        assert transform.on_arrival(other, {}) is other


def test_a_length_that_is_no_number_is_refused_on_arrival():
    update = replace(update_of("c", 0), delta=Adapter({"w": [np.nan]}))
    with pytest.raises(UpdateRefused, match="norm nan"):
        clip.build(clip.Config()).on_arrival(update, {})
