"""Bytes between server and site: every bit comes back, and whatever is wrong is a WireError."""

from __future__ import annotations

import ast
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load as tensors_from
from safetensors.numpy import save as bytes_of

import shepherd
from shepherd.core import Adapter, Broadcast, Failure, Payload, Update
from shepherd.errors import WireError
from shepherd.silos.protocol import schema, wire
from shepherd.silos.protocol.wire import (
    HEADER,
    Ready,
    Request,
    Scores,
    SumAnswer,
    SumRequest,
    Trained,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    request_id,
)

RUN = "0123456789abcdef"
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=12)
FLOATS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0))
ADAPTERS = st.dictionaries(NAMES, FLOATS, max_size=3).map(Adapter)
ARRAYS = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=2, min_side=0),
)
STATES = st.recursive(
    st.dictionaries(NAMES, ARRAYS, max_size=2),
    lambda inner: st.lists(inner, max_size=2).map(tuple) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
WHOLE = st.integers(0, 2**63 - 1)
NUMBERS = st.floats() | st.integers(-(2**40), 2**70)
BROADCASTS = st.builds(
    Broadcast,
    round=WHOLE,
    adapter=ADAPTERS,
    seed=WHOLE,
    transforms=st.lists(STATES, max_size=2).map(tuple),
    extra=ADAPTERS,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NAMES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=5,
)


def request(sent: Broadcast | None = None, **more: object) -> Request:
    given = {
        "kind": "train" if sent else "join",
        "run": RUN,
        "id": "0" * 64,
        "round": 3,
        "deadline": 60.0,
        "sent": 1.8e9,
        "version": "0.1.0",
        "cohort": 4,
        "base": "ab" * 32,
        "settings": {"seed": 0, "model": {"base": "tiny"}},
        "broadcast": sent,
    }
    return Request(**{**given, **more})


def some_broadcast() -> Broadcast:
    adapter = Adapter({"a.lora_A.weight": np.arange(6.0).reshape(2, 3), "a.lora_B.weight": np.ones((3, 2))})
    return Broadcast(round=3, adapter=adapter, seed=7, transforms=({"norm": np.float64(2)}, {}))


def some_update(**more: object) -> Update:
    given = {"round": 3, "delta": some_broadcast().adapter, "weight": 5.0, "clients": ("site-1",)}
    return Update(**{**given, "metrics": {"loss": 1.5, "examples": 5}, **more})


def same(ours: object, theirs: object) -> bool:
    """The same tree, shapes, dtypes and bits."""
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and list(ours) == list(theirs) and all(
            same(part, theirs[name]) for name, part in ours.items()
        )  # fmt: skip
    if isinstance(ours, tuple):
        return isinstance(theirs, tuple) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


@given(BROADCASTS, st.dictionaries(NAMES, JSON, max_size=3), st.sampled_from(["train", "score"]))
def test_a_request_comes_back_in_its_bits(sent, settings, kind) -> None:
    asked = request(sent, kind=kind, settings=settings)
    got = decode_request(encode_request(asked))
    assert replace(got, broadcast=None) == replace(asked, broadcast=None)
    assert (got.broadcast.round, got.broadcast.seed) == (sent.round, sent.seed)
    assert got.broadcast.adapter == sent.adapter
    assert got.broadcast.extra == sent.extra
    assert same(got.broadcast.transforms, sent.transforms)
    assert encode_request(got) == encode_request(asked)


@given(ADAPTERS, ADAPTERS, NUMBERS, st.dictionaries(NAMES, NUMBERS, max_size=3))
def test_an_update_comes_back_in_its_bits(delta, extra, weight, metrics) -> None:
    update = some_update(delta=delta, extra=extra, weight=weight, metrics=metrics)
    got = decode_reply(encode_reply(update))
    assert (got.delta, got.extra) == (delta, extra)  # NaN and -0 too
    known = {name: float(number) for name, number in metrics.items()}
    assert repr((got.weight, got.metrics)) == repr((float(weight), known))
    assert replace(got, weight=0.0, metrics={}) == replace(update, weight=0.0, metrics={})


@given(NAMES, WHOLE, st.dictionaries(NAMES, st.tuples(st.floats(allow_nan=False), WHOLE), max_size=3))
def test_every_other_reply_comes_back(name, count, categories) -> None:
    for reply in (
        Failure(client=name, reason=f"it failed {count} times"),
        Ready(client=name, examples=count, min_cohort=1 + count % 10**6, version="0.1.0"),
        Scores(client=name, round=count, categories=categories),
    ):
        assert decode_reply(encode_reply(reply)) == reply


def test_a_request_to_join_has_no_broadcast_and_the_others_have_one() -> None:
    joining = request()
    assert decode_request(encode_request(joining)) == joining
    for wrong in (request(kind="train"), request(some_broadcast(), kind="join")):
        with pytest.raises(WireError, match=f"a request to {wrong.kind} must "):
            decode_request(encode_request(wrong))


def test_numpys_scalars_travel_as_numbers() -> None:
    update = some_update(weight=np.float64(2.5), metrics={"loss": np.float32(0.5), "steps": np.int64(3)})
    got = decode_reply(encode_reply(update))
    assert (got.weight, got.metrics) == (2.5, {"loss": 0.5, "steps": 3})


def test_a_whole_number_comes_as_a_float_since_products_of_it_have_no_bound() -> None:
    update = decode_reply(encode_reply(some_update(weight=10**308, metrics={"loss": 10**308})))
    scores = decode_reply(encode_reply(Scores(client="a", round=0, categories={"qa": (10**308, 3)})))
    assert [type(number) for number in (update.weight, update.metrics["loss"])] == [float, float]
    assert type(scores.categories["qa"][0]) is float


@given(delta=st.dictionaries(NAMES, ARRAYS, max_size=3), extra=ADAPTERS)
def test_an_update_travels_as_its_bytes_and_a_header(delta, extra) -> None:
    """What the log of a round counts is what is on the network, whatever the dtypes, but for the header."""
    update = some_update(delta=Payload(delta), extra=extra)
    message = encode_reply(update)
    assert len(message) == 8 + int.from_bytes(message[:8], "little") + update.nbytes


def test_a_reply_names_no_more_than_a_log_has_room_for() -> None:
    many = {f"c{n}": (1.0, 1) for n in range(schema.MAX_REPLY_NAMES + 1)}
    few = dict(list(many.items())[:-1])
    assert decode_reply(encode_reply(Scores(client="a", round=0, categories=few))).categories == few
    with pytest.raises(WireError, match="has 1001 names, and the limit is 1000"):
        decode_reply(encode_reply(Scores(client="a", round=0, categories=many)))
    with pytest.raises(WireError, match="has 1001 names, and the limit is 1000"):
        decode_reply(encode_reply(some_update(metrics=dict.fromkeys(many, 1.0))))


def test_a_reason_goes_as_one_line_of_bounded_length() -> None:
    got = decode_reply(
        encode_reply(Failure(client="a", reason="one\ntwo\x1b[31m\u202ered\ud800" + "x" * 9000))
    )
    assert got.reason.startswith("one two [31m red x")
    assert len(got.reason) == schema.MAX_SENTENCE_CHARS


def test_the_arrays_that_come_in_are_not_copied_again() -> None:
    data = encode_reply(some_update())
    got = decode_reply(data)
    assert not any(tensor.flags.owndata for tensor in got.delta.values())
    assert not any(tensor.flags.writeable for tensor in got.delta.values())


# what is no message ----------------------------------------------------------------------------------------

REQUEST, UPDATE = encode_request(request(some_broadcast())), encode_reply(some_update())
VERSION = rb"\"version\": \""
READERS = {"request": (decode_request, REQUEST), "update": (decode_reply, UPDATE)}


@pytest.mark.parametrize("what", READERS)
def test_a_message_that_was_cut_anywhere_is_refused(what) -> None:
    read, data = READERS[what]
    for length in range(len(data)):
        with pytest.raises(WireError):
            read(data[:length])
    with pytest.raises(WireError):
        read(data + b"\0")


@pytest.mark.parametrize("what", READERS)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_another_value_and_never_another_error(what, at, bit) -> None:
    read, data = READERS[what]
    place = at % len(data)
    # which version wrote a message is not a part of what it says
    written = data.index(VERSION) + len(VERSION)
    assume(not written <= place < data.index(b'"', written) - 1)
    damaged = bytearray(data)
    damaged[place] ^= 1 << bit
    with suppress(WireError):
        assert read(bytes(damaged)) != read(data)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise) -> None:
    for read in (decode_request, decode_reply):
        with pytest.raises(WireError):
            read(noise)


def edited(
    data: bytes, change: dict[tuple[str, ...], object], tensors: dict[str, object] | None = None
) -> bytes:
    """The message with keys of its header changed (None as the value removes one), or other tensors."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][HEADER])
    for (*parents, last), value in change.items():
        table = head
        for name in parents:
            table = table[name]
        if value is None:
            del table[last]
        else:
            table[last] = value
    kept = {**tensors_from(data), **(tensors or {})}
    present = {name: tensor for name, tensor in kept.items() if tensor is not None}
    text = json.dumps(head).replace(f'"{DEEP}"', DEEP)
    return bytes_of(present, metadata={HEADER: text})


A = '["adapter", "a.lora_A.weight"]'
D = '["delta", "a.lora_A.weight"]'
DEEP = "[" * 10**5 + "]" * 10**5


@pytest.mark.parametrize(
    ("what", "change", "said"),
    [
        ("request", {("plain", "kind"): "train-it"}, "key kind of the message is not join, train or score"),
        ("request", {("plain", "kind"): ["train"]}, "key kind"),
        ("request", {("plain", "run"): "../../etc/passwd"}, "key run of the message is not 16 hex digits"),
        ("request", {("plain", "run"): RUN.upper()}, "16 hex digits"),
        ("request", {("plain", "id"): 5}, "64 hex digits"),
        ("request", {("plain", "base"): "ab" * 31}, "64 hex digits"),
        ("request", {("plain", "round"): -1}, "key round of the message is not a whole number"),
        ("request", {("plain", "round"): True}, "not a whole number"),
        ("request", {("plain", "round"): 2**63}, "not a whole number"),
        ("request", {("plain", "cohort"): 3.0}, "not a whole number"),
        ("request", {("plain", "deadline"): 0}, "not a positive number of seconds"),
        ("request", {("plain", "deadline"): float("inf")}, "not a positive number of seconds"),
        ("request", {("plain", "deadline"): 1e10}, "more than a week"),
        ("request", {("plain", "sent"): float("nan")}, "sent of the message is not a Unix time in seconds"),
        ("request", {("plain", "sent"): 4.2e9}, "sent of the message is not a Unix time in seconds"),
        ("request", {("plain", "sent"): 1e308}, "sent of the message is not a Unix time in seconds"),
        ("request", {("plain", "sent"): -1.0}, "sent of the message is not a Unix time in seconds"),
        ("request", {("plain", "deadline"): float("nan")}, "not a positive number of seconds"),
        ("request", {("plain", "cohort"): 10**6 + 1}, "not a whole number from 0 to 1000000"),
        ("request", {("plain", "sent"): "now"}, "key sent of the message is not a number"),
        ("request", {("plain", "settings"): []}, "key settings of the message is not a table"),
        ("request", {("plain", "settings"): {"seed": "\ud800"}}, "cannot be read"),
        ("request", {("plain", "hook"): "x"}, "key 'hook' is not expected"),
        ("request", {("plain", "settings"): None}, "key settings is missing"),
        ("request", {("plain", "broadcast", "seed"): None}, "key seed is missing"),
        ("request", {("plain", "broadcast", "seed"): 1.5}, "not a whole number"),
        ("request", {("plain", "broadcast"): [1]}, "is not a table|cannot be read"),
        ("request", {("plain",): "x"}, "cannot be read"),
        ("request", {("version",): 3}, "cannot be read"),
        ("request", {("version",): "0.1\n0.2"}, "cannot be read"),
        ("request", {("extra",): 1}, "key 'extra' is not expected in the header"),
        ("request", {("what",): "update"}, "not a request but 'update'"),
        ("request", {("format",): True}, "format True"),
        ("request", {("tensors", "extra"): None}, "key extra is missing"),
        ("request", {("tensors", "more"): {}}, "key 'more' is not expected"),
        ("request", {("tensors", "transforms"): {}}, "tensor .* is not listed"),
        ("request", {("tensors", "extra"): DEEP}, "cannot be read"),
        ("request", {("tensors", "adapter", "b"): 5}, "is missing from the message"),
        ("update", {("plain", "weight"): "5"}, "key weight of the message is not a number"),
        ("update", {("plain", "weight"): True}, "not a number"),
        ("update", {("plain", "weight"): 10**400}, "cannot be read"),
        ("update", {("plain", "clients"): ["a\nb"]}, "not one line of at most 200 characters"),
        ("update", {("plain", "clients"): []}, "not a list of 1 to 1000 names"),
        ("update", {("plain", "clients"): "site-1"}, "not a list of 1 to 1000 names"),
        ("update", {("plain", "clients"): ["a" * 201]}, "not one line of at most 200 characters"),
        ("update", {("plain", "metrics"): {"loss": "1"}}, "key metrics of the message is not a number"),
        ("update", {("plain", "metrics"): {"x" * 201: 1}}, "not one line of at most 200"),
        ("update", {("plain", "metrics"): [1]}, "key metrics of the message is not a table"),
        ("update", {("what",): "request"}, "not a reply but 'request'"),
        ("update", {("what",): "failure"}, "is not expected"),
        ("update", {("tensors", "delta"): []}, "is not listed"),
        ("update", {("tensors", "delta", "a.lora_A.weight"): None}, "is not listed"),
    ],
)  # fmt: skip
def test_a_header_with_anything_out_of_place_is_refused(what, change, said) -> None:
    read, data = READERS[what]
    with pytest.raises(WireError, match=said):
        read(edited(data, change))


@pytest.mark.parametrize(
    ("what", "tensors", "said"),
    [
        ("request", {A: np.ones((2, 3))}, "tensor a.lora_A.weight is not float32"),
        ("update", {D: None}, "is missing from the message"),
        ("request", {A: None}, "is missing from the message"),
        ("request", {'["adapter", "b"]': np.ones(1, np.float32)}, "is not listed in the message's header"),
        ("update", {"stowaway": np.ones(1, np.float32)}, "tensor stowaway is not listed"),
    ],
)  # fmt: skip
def test_a_tensor_out_of_place_is_refused_by_name(what, tensors, said) -> None:
    read, data = READERS[what]
    with pytest.raises(WireError, match=said):
        read(edited(data, {}, tensors))


NASTY = ["two\nlines", "a\x1b[2Jb", "\u202eback", "x" * 201, "x" * 10**6]


@pytest.mark.parametrize("name", NASTY, ids=["lines", "escape", "turned", "long", "huge"])
@pytest.mark.parametrize("place", ["adapter", "extra", "transforms", "delta", "nowhere"])
def test_a_tensors_name_is_a_short_line_and_else_not_repeated(name, place) -> None:
    one = {name: np.ones(2, np.float32)}
    match place:
        case "adapter" | "extra":
            data, read = (
                encode_request(request(replace(some_broadcast(), **{place: Adapter(one)}))),
                "request",
            )
        case "transforms":
            data, read = (
                encode_request(request(replace(some_broadcast(), transforms=({"a": one},)))),
                "request",
            )
        case "delta":
            data, read = encode_reply(some_update(delta=Adapter(one))), "update"
        case _:
            data, read = edited(UPDATE, {}, one), "update"
    with pytest.raises(WireError) as caught:
        READERS[read][0](data)
    told = str(caught.value)
    assert told == schema.sentence(told)
    assert len(told) < 400


def test_nested_tensors_are_no_adapter() -> None:
    data = edited(
        UPDATE, {("tensors", "extra"): {"x": {"y": None}}}, {'["extra", "x", "y"]': np.ones(1, "f4")}
    )
    with pytest.raises(WireError, match="x is a table of tensors"):
        decode_reply(data)


def test_a_key_that_stands_twice_is_refused() -> None:
    size = int.from_bytes(UPDATE[:8], "little")
    text = json.loads(UPDATE[8 : 8 + size])["__metadata__"][HEADER]
    twice = text.replace('"weight": 5.0', '"weight": 5.0, "weight": 6.0')
    assert twice != text
    with pytest.raises(WireError, match="is repeated"):
        decode_reply(bytes_of(tensors_from(UPDATE), metadata={HEADER: twice}))


def test_another_format_is_told_with_both_versions(monkeypatch) -> None:
    monkeypatch.setattr(wire, "version", lambda: "0.1.3")
    old = edited(encode_request(request(version="0.9.1")), {("format",): 2})
    with pytest.raises(
        WireError, match=r"format 2 of shepherd-fit 0\.9\.1, and shepherd-fit 0\.1\.3 here reads"
    ):
        decode_request(old)


def test_too_long_a_reply_is_refused_unread() -> None:
    assert decode_reply(UPDATE, max_bytes=len(UPDATE)) == some_update()
    with pytest.raises(WireError, match=f"has {len(UPDATE)} bytes, and the limit is {len(UPDATE) - 1}"):
        decode_reply(UPDATE, max_bytes=len(UPDATE) - 1)


def test_too_long_a_header_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(wire, "MAX_HEADER_BYTES", 100)
    with pytest.raises(WireError, match="header has"):
        decode_reply(UPDATE)


def test_a_plain_safetensors_file_is_no_message() -> None:
    for data in (bytes_of({"a": np.ones(2, np.float32)}), bytes_of({}, metadata={"shepherd": "5"})):
        with pytest.raises(WireError, match="cannot be read"):
            decode_reply(data)


# what the same question is ---------------------------------------------------------------------------------


def test_a_question_has_one_name_and_every_other_question_another() -> None:
    sent = some_broadcast()
    bits = {name: tensor.copy() for name, tensor in sent.adapter.items()}
    bits["a.lora_A.weight"][0, 0] = -0.0  # equal as a number, not as bits
    turned = {**sent.adapter, "a.lora_A.weight": sent.adapter["a.lora_A.weight"].reshape(3, 2)}
    asked = request(sent)
    others = [
        *(
            request_id(replace(asked, **change))
            for change in (
                {"run": "f" * 16},
                {"kind": "score"},
                {"round": 4},
                {"kind": "join", "broadcast": None},
                {"base": "cd" * 32},
                {"settings": {"seed": 1, "model": {"base": "tiny"}}},
            )
        ),
        *(
            request_id(replace(asked, broadcast=replace(sent, **change)))
            for change in (
                {"round": 4},
                {"seed": 8},
                {"adapter": Adapter(bits)},
                {"adapter": Adapter(turned)},
                {"extra": sent.adapter},
                {"transforms": ({"norm": np.float32(2)}, {})},
                {"transforms": ({}, {"norm": np.float64(2)})},
            )
        ),
    ]
    mine = request_id(asked)
    assert len({mine, *others}) == 1 + len(others)
    assert mine == request_id(decode_request(encode_request(asked)))
    assert mine == "1b3425b13ff136a7c85c39834402421489fa6e1aea98cfdca0c4347e3434c5f0"


@pytest.mark.parametrize(
    "change",
    [{"id": "1" * 64}, {"deadline": 5.0}, {"sent": 1.9e9}, {"version": "0.1.1"}, {"cohort": 9}],
    ids=lambda change: next(iter(change)),
)
def test_who_asks_again_at_another_time_asks_the_same(change: dict[str, Any]) -> None:
    """Another job goes on with an open round: a site that has answered it gives the answer that it kept."""
    asked = request(some_broadcast())
    assert request_id(replace(asked, **change)) == request_id(asked)


@given(BROADCASTS, st.dictionaries(NAMES, JSON, max_size=3))
def test_a_question_has_the_same_name_at_both_ends(sent: Broadcast, settings: dict[str, Any]) -> None:
    asked = request(sent, settings=settings)
    assert request_id(decode_request(encode_request(asked))) == request_id(asked)


def test_nothing_that_travels_or_is_kept_can_run() -> None:
    package = Path(shepherd.__file__).parent
    unsafe = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    for folder in ("federation", "silos"):
        for path in (package / folder).rglob("*.py"):
            tree = ast.walk(ast.parse(path.read_text()))
            names = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
            tree = ast.walk(ast.parse(path.read_text()))
            names |= {str(node.module) for node in tree if isinstance(node, ast.ImportFrom)}
            assert names.isdisjoint(unsafe), path


def test_codes_and_indices_travel_in_their_own_dtype() -> None:
    coded = Payload(
        {"a": np.array([[1, -2]], np.int8), "at": np.array([7], np.uint32), "s": np.float16([0.5])}
    )
    back = decode_reply(encode_reply(some_update(delta=coded, extra=coded)))
    assert isinstance(back, Update)
    assert (back.delta, back.extra) == (coded, coded)
    assert len(encode_reply(some_update(delta=coded))) < len(encode_reply(some_update()))


# secure sums -----------------------------------------------------------------------------------------------


def sum_request(**more: object) -> SumRequest:
    given = {
        "kind": "shares",
        "run": RUN,
        "id": "0" * 64,
        "round": 3,
        "attempt": "f" * 32,
        "members": ("a", "b", "c"),
        "length": 7,
        "ring_bits": 32,
        "deadline": 60.0,
        "sent": 1.8e9,
        "version": "0.1.0",
        "content": b"roster",
    }
    return SumRequest(**{**given, **more})


@given(
    st.sampled_from(schema.PHASES),
    st.binary(max_size=40),
    st.lists(NAMES, min_size=1, max_size=4).map(tuple),
    st.integers(1, schema.MAX_CODES),
    st.sampled_from([32, 64]),
)
def test_a_phase_of_a_sum_comes_back(kind, content, members, length, ring_bits) -> None:
    asked = sum_request(kind=kind, content=content, members=members, length=length, ring_bits=ring_bits)
    assert wire.decode_asked(wire.encode_sum_request(asked)) == asked
    answer = SumAnswer(client="a", round=length, kind=kind, attempt="0" * 32, content=content)
    assert decode_reply(encode_reply(answer)) == answer
    trained = Trained(client="a", round=3, length=length)
    assert decode_reply(encode_reply(trained)) == trained


def test_a_request_is_told_from_a_phase_of_a_sum() -> None:
    asked = request(some_broadcast())
    assert isinstance(wire.decode_asked(encode_request(asked)), Request)
    with pytest.raises(WireError, match="the message is not a request but 'sum'"):
        decode_request(wire.encode_sum_request(sum_request()))
    with pytest.raises(WireError, match="the message is not a sum but 'request'"):
        wire.decode_sum_request(encode_request(asked))
    with pytest.raises(WireError):
        wire.decode_asked(b"\x00" * 30)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"kind": "train"}, "kind"),
        ({"run": "x"}, "run"),
        ({"attempt": "f" * 31}, "attempt"),
        ({"members": ()}, "members"),
        ({"members": ("a\n",)}, "members"),
        ({"members": tuple(map(str, range(1001)))}, "members"),
        ({"length": 0}, "length"),
        ({"length": 2**30 + 1}, "length"),
        ({"ring_bits": 33}, "ring_bits"),
        ({"ring_bits": 32.0}, "ring_bits"),
        ({"deadline": 0.0}, "deadline"),
        ({"round": -1}, "round"),
    ],
)
def test_a_phase_that_cannot_be_is_refused(changed: dict[str, Any], key: str) -> None:
    with pytest.raises(WireError, match=f"key {key} of the message"):
        wire.decode_asked(wire.encode_sum_request(sum_request(**changed)))


@pytest.mark.parametrize(
    "content", [np.zeros(3, np.int8), np.zeros((1, 3), np.uint8), {"x": np.zeros(1)}, None]
)
def test_content_that_is_no_row_of_bytes_is_refused(content: Any) -> None:
    plain = {name: getattr(sum_request(), name) for name in schema.SUM_REQUEST}
    parts = {} if content is None else {"content": content}
    with pytest.raises(WireError):
        wire.decode_asked(wire._message_bytes("sum", plain, parts))
