"""The encodings as transforms: what a client sends, what the server makes of it, and what is left."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quadratic import Quadratic, bits, chosen, drawn, method

from shepherd import plugins
from shepherd.algorithms import fed_sb, fedavg, rolora, scaffold
from shepherd.config import PartTable
from shepherd.core import (
    Adapter,
    Broadcast,
    Original,
    Payload,
    Seeded,
    Update,
    chain,
    shapes_of,
)
from shepherd.errors import SettingsError, UpdateRefused
from shepherd.rounds import rounds, start
from shepherd.silos.protocol import wire
from shepherd.transforms import clip, float16, gaussian, quantise, top_k

BROADCAST = Broadcast(round=0, adapter=drawn(0), seed=0)
SHAPES = st.sampled_from([(), (0,), (1,), (3,), (0, 4), (2, 5), (5, 13)])
LAYOUTS = st.dictionaries(st.sampled_from("abcd"), SHAPES, max_size=4)
SEEDS = st.integers(0, 2**32)
PARTS = {
    "float16": lambda: float16.build(float16.Config()),
    **{f"{b} bits": lambda b=b: quantise.build(quantise.Config(bits=b, block=8)) for b in (8, 4, 1)},
    **{
        f"{b} bits, feedback": lambda b=b: quantise.build(quantise.Config(bits=b, block=8, feedback=True))
        for b in (8, 4, 1)
    },
    "a tenth": lambda: top_k.build(top_k.Config(share=0.1, block=8)),
    "a half, feedback off": lambda: top_k.build(top_k.Config(share=0.5, block=8, feedback=False)),
    "all": lambda: top_k.build(top_k.Config(share=1.0, block=8, feedback=False)),
}
ENCODINGS = pytest.mark.parametrize("name", PARTS)
FEEDBACK = pytest.mark.parametrize("name", [name for name in PARTS if PARTS[name]().remember is not None])


def update_of(tensors, weight=2.0):
    return Update(round=0, clients=("c0",), weight=weight, delta=Adapter(tensors))


def normal(layout, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: scale * rng.standard_normal(shape) for name, shape in layout.items()}


def sent(transform, update, draws=0, memory=None):
    public = transform.public(transform.init(None))
    return transform.at_client(update, public, Seeded(draws), BROADCAST, memory or Payload())


def arrived(transform, update, layout):
    return transform.at_server(update, transform.init(None), Original(layout=layout))


@ENCODINGS
@settings(max_examples=20)
@given(layout=LAYOUTS, seed=SEEDS)
def test_any_layout_comes_back_through_the_wire(name, layout, seed):
    transform, whole = PARTS[name](), update_of(normal(layout, seed))
    coded, _ = sent(transform, whole)
    message = wire.decode_reply(wire.encode_reply(coded))
    assert message == coded
    back = arrived(transform, message, layout)
    assert shapes_of(back.delta) == layout
    assert {tensor.dtype for tensor in back.delta.values()} <= {np.dtype(np.float32)}
    assert (back.weight, back.clients, back.round) == (whole.weight, whole.clients, whole.round)


@ENCODINGS
@settings(max_examples=20)
@given(layout=LAYOUTS, seed=SEEDS)
def test_what_the_algorithm_sends_beside_the_change_is_left_alone(name, layout, seed):
    whole = replace(update_of(normal(layout, seed)), extra=Payload({"n": [1e3, 2.0]}))
    coded, _ = sent(PARTS[name](), whole)
    assert coded.extra is whole.extra


@pytest.mark.parametrize("count", [0, 1, 7, 8, 63, 64, 65, 1001])
@pytest.mark.parametrize("width", [8, 4, 1])
def test_the_bytes_are_those_of_the_codes_and_of_a_scale_for_each_block(count, width):
    transform = quantise.build(quantise.Config(bits=width, block=64))
    layout = {"a": (count,), "b": (3, 2), "c": ()}
    coded, _ = sent(transform, update_of(normal(layout, 0)))
    scales = math.ceil(count / 64) + 2
    assert coded.nbytes == math.ceil((count + 7) * width / 8) + 2 * scales


@pytest.mark.parametrize(("width", "most"), [(8, 1 / 3.8), (4, 1 / 7.4), (1, 1 / 25)])
def test_an_adapter_of_real_size_is_so_much_smaller(width, most):
    delta = normal({"a": (16, 576), "b": (576, 16)}, 0)
    whole = update_of(delta)
    assert sent(quantise.build(quantise.Config(bits=width)), whole)[0].nbytes < most * whole.nbytes
    assert sent(PARTS["float16"](), whole)[0].nbytes == whole.nbytes // 2


@pytest.mark.parametrize("name", ["8 bits", "4 bits", "1 bits", "all"])
def test_the_mean_of_many_draws_has_no_bias(name):
    """2,000 draws; each number's mean is within five of its own standard deviations."""
    transform, whole = PARTS[name](), update_of(normal({"a": (3, 7), "b": (5, 2)}, 1))
    layout = shapes_of(whole.delta)
    found = [arrived(transform, sent(transform, whole, seed)[0], layout).delta for seed in range(2000)]
    for tensor, due in whole.delta.items():
        each = np.array([one[tensor] for one in found], float)
        assert np.all(np.abs(each.mean(axis=0) - due) <= 5 * each.std(axis=0) / math.sqrt(2000) + 1e-6)
        assert each.std(axis=0).max() > 0


@FEEDBACK
@settings(max_examples=20)
@given(layout=LAYOUTS, seed=SEEDS)
def test_what_was_sent_and_what_is_left_are_all_changes_together(name, layout, seed):
    """Nothing is lost: over the rounds, sum of decoded + memory = sum of changes."""
    transform, memory = PARTS[name](), Payload()
    total = {tensor: np.zeros(shape) for tensor, shape in layout.items()}
    got = {tensor: np.zeros(shape) for tensor, shape in layout.items()}
    for round in range(4):
        whole = update_of(normal(layout, seed + round))
        coded, memory = sent(transform, whole, memory=memory)
        back = arrived(transform, coded, layout)
        for tensor in layout:
            total[tensor] += whole.delta[tensor]
            got[tensor] += back.delta[tensor]
    assert shapes_of(memory) == layout
    for tensor in layout:
        np.testing.assert_allclose(got[tensor] + memory[tensor], total[tensor], atol=1e-4)


@pytest.mark.parametrize("name", ["1 bits, feedback", "a tenth"])
def test_what_is_left_does_not_grow_without_end(name):
    """A contraction: with changes of one length, the memory stays below a few of them, over 200 visits."""
    transform, memory, layout = PARTS[name](), Payload(), {"a": (8, 16)}
    lengths = []
    for round in range(200):
        _, memory = sent(transform, update_of(normal(layout, round)), memory=memory)
        lengths.append(memory.norm())
    assert max(lengths[100:]) < 1.2 * max(lengths[:100])


@FEEDBACK
def test_tensors_that_a_round_does_not_send_wait_and_a_new_shape_starts_anew(name):
    transform = PARTS[name]()
    both = update_of(normal({"a": (3, 9), "b": (9, 3)}, 0))
    _, memory = sent(transform, both)
    _, after = sent(transform, update_of({"a": both.delta["a"]}), memory=memory)
    assert after["b"].tobytes() == memory["b"].tobytes()
    wide = update_of({"a": np.ones((4, 9), np.float32)})
    anew, kept = sent(transform, wide, memory=memory)
    assert anew == sent(transform, wide)[0]
    assert kept["a"].shape == (4, 9)


@FEEDBACK
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e13, 3e38])
def test_a_change_that_is_refused_leaves_nothing_with_the_client(name, bad):
    transform, layout = PARTS[name](), {"a": (3, 9)}
    _, memory = sent(transform, update_of(normal(layout, 0)))
    broken = normal(layout, 1)
    broken["a"][1, 2] = bad
    coded, after = sent(transform, update_of(broken), memory=memory)
    assert after == memory
    with pytest.raises(UpdateRefused, match="scale of block"):
        arrived(transform, coded, layout)


@ENCODINGS
def test_an_encoding_that_the_receiver_does_not_know_is_refused(name):
    transform, layout = PARTS[name](), {"a": (3, 9)}
    for other in PARTS:
        coded, _ = sent(PARTS[other](), update_of(normal(layout, 0)))
        if other.removesuffix(", feedback") == name.removesuffix(", feedback"):
            continue  # the codes of these differ in nothing
        with pytest.raises(UpdateRefused, match="apply the run file's transforms at the client"):
            arrived(transform, coded, layout)
    plain = update_of(normal(layout, 0))
    with pytest.raises(UpdateRefused, match="apply the run file's transforms at the client"):
        arrived(transform, plain, layout)


@ENCODINGS
def test_another_layout_than_the_server_expects_is_refused_or_fails_the_checks_after_it(name):
    transform = PARTS[name]()
    coded, _ = sent(transform, update_of(normal({"a": (3, 9)}, 0)))
    if name == "float16":  # its tensors keep their names and shapes, which are checked later
        assert shapes_of(arrived(transform, coded, {"a": (3, 90)}).delta) == {"a": (3, 9)}
    else:
        with pytest.raises(UpdateRefused, match="its change"):
            arrived(transform, coded, {"a": (3, 90)})


def test_float16_rounds_to_eleven_bits_and_says_what_is_too_large():
    whole = update_of(normal({"a": (9, 9)}, 0))
    coded, _ = sent(PARTS["float16"](), whole)
    back = arrived(PARTS["float16"](), coded, {"a": (9, 9)})
    assert np.all(np.abs(back.delta["a"] - whole.delta["a"]) <= 2**-11 * np.abs(whole.delta["a"]) + 3e-8)
    over, _ = sent(PARTS["float16"](), update_of({"a": np.array([7e4, 1.0])}))
    assert np.isinf(over.delta["a"]).tolist() == [True, False]  # refused by name: rounds.acceptance


NO_FEEDBACK = [name for name in PARTS if PARTS[name]().remember is None]


@pytest.mark.parametrize("name", NO_FEEDBACK)
@settings(max_examples=20)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), norm=st.floats(1e-3, 1e3))
def test_after_a_clip_what_is_decoded_is_within_its_norm(name, seed, scale, norm):
    """Rounding makes a change longer; it is shortened again, so the clip does not refuse it."""
    both = chain(clip.build(clip.Config(norm=norm)), PARTS[name]())
    whole = update_of(normal({"a": (3, 9), "b": (4, 2)}, seed, scale))
    coded, _ = sent(both, whole)
    back = arrived(both, coded, shapes_of(whole.delta))
    assert back.delta.norm() <= norm * (1 + 1e-6)


def test_a_client_that_does_not_clip_is_bounded_all_the_same():
    long = sent(PARTS["8 bits"](), update_of({"a": np.full((3, 9), 100.0)}))[0]
    both = chain(clip.build(clip.Config(norm=1.0)), PARTS["8 bits"]())
    assert arrived(both, long, {"a": (3, 9)}).delta.norm() == pytest.approx(1.0, rel=1e-5)


def run(transform, federation=None, until=6, algorithm=fedavg.ALGORITHM):
    asked = method(algorithm, transform=transform)
    loop = rounds(
        asked,
        federation or Quadratic(algorithm, transform),
        start(asked, drawn(0)),
        until=until,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
    )
    return list(loop)


@pytest.mark.parametrize("name", ["float16", "8 bits", "4 bits", "a half, feedback off", "a tenth"])
@pytest.mark.parametrize("algorithm", [fedavg.ALGORITHM, rolora.build(rolora.Config())])
def test_it_trains_and_the_log_counts_the_bytes_that_left(name, algorithm):
    travelled: list[int] = []

    class Counted(Quadratic):
        def run(self, broadcast, cohort):
            for update in super().run(broadcast, cohort):
                message = wire.encode_reply(update)
                travelled.append(len(message) - 8 - int.from_bytes(message[:8], "little"))  # its header
                yield update

    federation = Counted(algorithm, PARTS[name]())
    done = run(federation.transform, federation, algorithm=algorithm)
    assert not any(report.failures for _, report in done)
    assert federation.distance(done[-1][0].adapter) < federation.distance(drawn(0))
    assert sum(report.bytes_up for _, report in done) == sum(travelled)


def test_each_clients_memory_is_its_own_and_the_servers_state_has_none():
    """Clients in one pass give the bits of clients one by one, and c0 the bits that it has alone."""
    transform = PARTS["a tenth"]()
    one, three = (Quadratic(fedavg.ALGORITHM, transform, clients=3, stack=k) for k in (1, 3))
    ends = [run(transform, federation)[-1][0] for federation in (one, three)]
    assert bits(ends[0].adapter) == bits(ends[1].adapter)
    assert one.memories == three.memories
    assert all(set(memory) == {f"transform {name}" for name in drawn(0)} for memory in one.memories.values())
    assert len({memory.norm() for memory in one.memories.values()}) == 3


# what is not sound together ---------------------------------------------------------------------------------


@ENCODINGS
def test_an_encoding_is_the_last_and_not_beside_noise(name):
    part = PARTS[name]()
    noise = gaussian.build(gaussian.Config())
    for order in ((part, noise), (noise, part)):
        with pytest.raises(
            SettingsError, match=r"encodes updates, which .* has to bound and hide as numbers"
        ):
            chain(*order)
    with pytest.raises(SettingsError, match=r"encodes updates, and .* comes after it and cannot read them"):
        chain(part, clip.build(clip.Config()))


@FEEDBACK
def test_feedback_is_refused_after_a_bound_and_where_factors_are_written_anew(name):
    part = PARTS[name]()
    with pytest.raises(SettingsError, match=r"makes it longer than 'number 1' allows; set feedback = false"):
        chain(clip.build(clip.Config()), part)
    with pytest.raises(SettingsError, match=r"set feedback = false for it, or set \[algorithm\] name"):
        method(fed_sb.build(fed_sb.Config()), transform=part)
    for kind, other in ((plugins.SERVER, "fedsvd"), (plugins.AGGREGATION, "flora")):
        key = "server" if kind is plugins.SERVER else "aggregation"
        with pytest.raises(SettingsError, match="set feedback = false"):
            method(transform=part, **{key: plugins.built(kind, PartTable(name=other))})


@ENCODINGS
def test_an_algorithm_that_needs_the_exact_change_is_refused(name):
    with pytest.raises(SettingsError, match="gets what the clients sent"):
        method(scaffold.build(scaffold.Config()), transform=PARTS[name]())


def test_the_message_has_the_names_of_the_run_file():
    tables = [PartTable(name="clip"), PartTable(name="top_k")]
    with pytest.raises(SettingsError, match=r"'top_k' adds to a change .* longer than 'clip' allows"):
        plugins.transform(tables)
    with pytest.raises(SettingsError, match="'quantise' encodes updates, and 'clip' comes after it"):
        plugins.transform([PartTable(name="quantise"), PartTable(name="clip")])
