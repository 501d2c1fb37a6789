import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.core import Adapter, Broadcast, Original, Payload, Seeded, Update, shapes_of
from shepherd.core.encoding import LARGEST_SCALE, low_bits
from shepherd.errors import UpdateRefused
from shepherd.transforms import top_k

LAYOUT = {"a": (8, 20), "b": (20, 8), "c": ()}
SEEDS = st.integers(0, 2**32)


def update_of(seed, layout=LAYOUT):
    rng = np.random.default_rng(seed)
    delta = {name: rng.standard_normal(shape) * (1 + k) for k, (name, shape) in enumerate(layout.items())}
    return Update(round=0, clients=("c0",), weight=1.0, delta=Adapter(delta))


def sent(update, memory=None, **keys):
    transform = top_k.build(top_k.Config(**keys))
    broadcast = Broadcast(round=0, adapter=Adapter(), seed=0)
    return transform.at_client(update, {}, Seeded(0), broadcast, memory or Payload())


def arrived(update, layout=LAYOUT, **keys):
    return top_k.build(top_k.Config(**keys)).at_server(update, {}, Original(layout=layout))


def row(delta):
    return np.concatenate([np.zeros(0), *(delta[name].ravel() for name in sorted(delta))])


@given(seed=SEEDS, share=st.floats(0.001, 1.0))
def test_the_largest_numbers_of_all_tensors_arrive_and_nothing_else(seed, share):
    whole = update_of(seed)
    back = arrived(sent(whole, share=share)[0], share=share)
    due, found = row(whole.delta), row(back.delta)
    count = math.ceil(share * len(due) - 1e-9)
    largest = np.argsort(-np.abs(due), kind="stable")[:count]  # an independent way, without ties here
    assert set(np.flatnonzero(found)) <= set(largest.tolist())
    step = 2 * np.abs(due).max() * (1 + 2**-7) / 254
    assert np.abs(found[largest] - due[largest]).max() <= step / 2 * (1 + 1e-5)


@given(seed=SEEDS, share=st.floats(0.001, 1.0), bits=st.sampled_from([1, 4, 8]))
def test_the_bytes_are_those_of_places_codes_and_scales(seed, share, bits):
    coded, _ = sent(update_of(seed), share=share, bits=bits)
    count = math.ceil(share * 321 - 1e-9)
    low = low_bits(321, count)
    places = top_k.largest(row(update_of(seed).delta), count)
    gaps = np.diff(places, prepend=-1) - 1
    heads = math.ceil(sum((int(gap) >> low) + 1 for gap in gaps) / 8)
    due = heads + math.ceil(count * low / 8) + math.ceil(count * bits / 8) + 2 * math.ceil(count / 64)
    assert coded.nbytes == sum(tensor.nbytes for tensor in coded.delta.values()) == due


def test_a_tenth_takes_a_twentieth_of_the_bytes_and_a_hundredth_a_hundredth():
    whole = update_of(0, {"a": (16, 576), "b": (576, 16)})
    assert whole.nbytes / sent(whole, share=0.1)[0].nbytes > 24
    assert whole.nbytes / sent(whole, share=0.01)[0].nbytes > 180


def test_of_equal_numbers_the_first_are_sent():
    whole = Update(round=0, clients=("c",), weight=1.0, delta=Adapter({"a": np.ones(10), "b": -np.ones(10)}))
    back = arrived(sent(whole, share=0.25)[0], {"a": (10,), "b": (10,)}, share=0.25)
    assert back.delta["a"].tolist() == [1.0] * 5 + [0.0] * 5
    assert not back.delta["b"].any()


def test_what_was_left_out_is_sent_as_soon_as_it_is_the_largest():
    """By hand: 3 and 2, one place a round. What is left of 2 is 4 in the second round, before the 3."""
    change = Update(round=0, clients=("c",), weight=1.0, delta=Adapter({"a": [3.0, 2.0]}))
    layout, memory, found = {"a": (2,)}, Payload(), []
    for _ in range(4):
        coded, memory = sent(change, memory, share=0.5)
        found.append(arrived(coded, layout, share=0.5).delta["a"].tolist())
    assert found == [[3.0, 0.0], [0.0, 4.0], [6.0, 0.0], [0.0, 4.0]]
    without = [arrived(sent(change, share=0.5, feedback=False)[0], layout, share=0.5).delta["a"].tolist()]
    assert without == [[3.0, 0.0]]


def tampered(coded, **arrays):
    return Update(round=0, clients=("c",), weight=1.0, delta=Payload({**coded.delta, **arrays}))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"places": np.full(200, 255, np.uint8)}, "places of its change are uint8 of shape"),
        ({"places": np.full(9, 255, np.uint8)}, "72 places, not 33"),
        ({"places": np.zeros(0, np.uint8)}, "0 places, not 33"),
        ({"codes": np.full(33, 255, np.uint8)}, "code 0 of its change is 255, and the largest is 254"),
        ({"codes": np.zeros(32, np.uint8)}, r"codes of its change are uint8 of shape \(32,\)"),
        ({"scales": np.array([0x7F80], np.uint16)}, "scale of block 0 of its change is inf"),
        ({"scales": np.array([0x8001], np.uint16)}, "which is negative"),
        ({"scales": np.array([0x7E00], np.uint16)}, f"at most {LARGEST_SCALE:g} is allowed"),
        ({"more": np.zeros(1, np.uint8)}, "not encoded as the transform top_k does it"),
    ],
)
def test_what_no_client_sends_is_refused_with_its_numbers(arrays, said):
    coded, _ = sent(update_of(0))
    with pytest.raises(UpdateRefused, match=said.replace("+", r"\+")):
        arrived(tampered(coded, **arrays))


@given(data=st.binary(max_size=16), seed=SEEDS)
def test_any_bytes_are_a_change_of_the_layout_or_are_refused(data, seed):
    coded, _ = sent(update_of(seed))
    try:
        back = arrived(tampered(coded, places=np.frombuffer(data, np.uint8)))
    except UpdateRefused:
        return
    assert shapes_of(back.delta) == LAYOUT
    assert np.isfinite(row(back.delta)).all()


def test_an_empty_change_and_one_of_a_single_number():
    for layout in ({}, {"a": (0, 3)}, {"a": ()}, {"a": (1,)}):
        whole = update_of(0, layout)
        coded, _ = sent(whole, share=0.01)
        back = arrived(coded, layout, share=0.01)
        assert shapes_of(back.delta) == layout
        assert row(back.delta).tolist() == pytest.approx(row(whole.delta).tolist(), rel=2**-7)
