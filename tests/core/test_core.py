"""The values that travel."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.quadratic import drawn, update_of

from shepherd.core import (
    Adapter,
    Broadcast,
    Context,
    Draws,
    FromSystem,
    Mechanism,
    Payload,
    Sampling,
    Seeded,
    Spending,
    Transform,
    Update,
    chain,
    require_same_layout,
    seed_for,
)
from shepherd.errors import AdapterError, SettingsError


def test_an_adapter_is_a_sorted_read_only_float32_copy() -> None:
    mine = np.arange(6, dtype=np.float32).reshape(2, 3)
    adapter = Adapter({"b": mine, "a": [[1, 2]], "c": np.arange(4.0)[::2]})
    assert list(adapter) == ["a", "b", "c"]
    assert {tensor.dtype for tensor in adapter.values()} == {np.dtype(np.float32)}
    assert adapter["c"].tolist() == [0, 2]
    mine[:] = 9
    assert adapter["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="read-only"):
        adapter["a"][0, 0] = 5
    with pytest.raises(TypeError):
        adapter["a"] = np.zeros(1)  # type: ignore[index]


def test_a_view_of_somebody_elses_array_is_copied_too() -> None:
    whole = np.zeros((2, 3), np.float32)
    adapter = Adapter({"row": whole[1]})
    whole[:] = 1
    assert adapter["row"].tolist() == [0, 0, 0]


def test_adapters_are_equal_by_names_shapes_and_bits() -> None:
    assert drawn(0) == drawn(0) != drawn(1)
    assert Adapter({"a": np.zeros(2)}) != Adapter({"b": np.zeros(2)})
    assert Adapter({"a": np.zeros((1, 2))}) != Adapter({"a": np.zeros((2, 1))})
    assert Adapter({"a": [0.0]}) != Adapter({"a": [-0.0]})
    assert Adapter({"a": [np.nan]}) == Adapter({"a": [np.nan]})
    assert drawn(0) != dict(drawn(0))
    with pytest.raises(TypeError):
        hash(drawn(0))


def test_an_adapter_survives_pickling_and_stays_read_only() -> None:
    back = pickle.loads(pickle.dumps(drawn(0)))
    assert back == drawn(0)
    assert not any(tensor.flags.writeable for tensor in back.values())


def test_arithmetic_by_hand() -> None:
    a, b = Adapter({"x": [1, 2], "y": [3]}), Adapter({"x": [10, 20], "y": [30]})
    assert a.plus(b) == Adapter({"x": [11, 22], "y": [33]})
    assert a.plus(b, scale=-0.5) == Adapter({"x": [-4, -8], "y": [-12]})
    assert a.times(3) == Adapter({"x": [3, 6], "y": [9]})
    assert Adapter({"x": [3], "y": [[4.0]]}).norm() == 5.0
    assert Adapter({"x": [1e30]}).norm() == pytest.approx(1e30)  # float32 squares would overflow
    assert Adapter().norm() == 0.0
    assert (a.nbytes, repr(a)) == (12, "Adapter(2 tensors, 12 bytes)")


def test_layouts_that_differ_are_named() -> None:
    one = Adapter({"x": np.zeros((2, 3)), "y": np.zeros(1)})
    for other, message in (
        (Adapter({"x": np.zeros((2, 3))}), "tensor y is missing in here"),
        (Adapter({**one, "z": np.zeros(1)}), "tensor z is not expected in here"),
        (
            Adapter({"x": np.zeros((3, 2)), "y": np.zeros(1)}),
            r"tensor x in here has shape \(3, 2\), expected",
        ),
    ):
        with pytest.raises(AdapterError, match=message):
            require_same_layout(one, other, "here")
        with pytest.raises(AdapterError):
            one.plus(other)
    require_same_layout(one, one)


def test_bytes_are_those_of_the_tensors_that_travel() -> None:
    adapter, extra = Adapter({"x": np.zeros(5)}), Adapter({"n": np.zeros(2)})
    assert Broadcast(round=0, adapter=adapter, seed=0, extra=extra).nbytes == 28
    assert Update(round=0, delta=adapter, weight=1.0, clients=("c",), extra=extra).nbytes == 28


def noting(log: list[tuple[str, str, float]], name: str) -> Transform:
    """Adds 1 on the client and doubles on the server, and counts its server calls in its state."""

    def on_client(update: Update, state: dict[str, int], draws: Draws) -> Update:
        log.append(("client", name, draws.generator("x").random()))
        return update_of(update.client, 0, update.weight + 1)

    def on_server(update: Update, state: dict[str, int], draws: Draws) -> tuple[Update, dict[str, int]]:
        log.append(("server", name, draws.generator("x").random()))
        return update_of(update.client, 0, update.weight * 2), {"calls": state["calls"] + 1}

    return Transform(init=lambda context: {"calls": 0}, on_client=on_client, on_server=on_server)


def test_a_chain_goes_forth_on_the_client_and_back_on_the_server() -> None:
    log: list[tuple[str, str, float]] = []
    both = chain(noting(log, "first"), noting(log, "second"))
    states = both.init(Context())
    sent = both.on_client(update_of("c", 0, 1.0), states, Seeded(7))
    assert sent.weight == 3
    got, states = both.on_server(sent, states, Seeded(8))
    assert got.weight == 12
    assert states == ({"calls": 1}, {"calls": 1})
    assert [entry[:2] for entry in log] == [
        ("client", "first"), ("client", "second"), ("server", "second"), ("server", "first"),
    ]  # fmt: skip
    assert len({seed for _, _, seed in log}) == 4  # no two parts share their draws


def test_an_empty_chain_changes_nothing() -> None:
    update = update_of("c", 0)
    assert chain().on_client(update, (), Seeded(0)) is update
    assert chain().on_server(update, (), Seeded(0)) == (update, ())


PATHS = st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4)


@given(st.integers(0, 2**63), PATHS, PATHS)
def test_seeds_are_fixed_by_their_path_and_differ_by_it(seed: int, path: list, other: list) -> None:
    one, two = seed_for(seed, *path), seed_for(seed, *other)
    assert 0 <= one < 2**63
    assert one == seed_for(seed, *path)
    assert (one == two) == (path == other)


def test_seeds_are_the_same_on_every_machine_and_for_numpys_integers() -> None:
    assert seed_for(0, 3, "cohort") == 1559987163530243308
    assert seed_for(np.int64(0), np.int32(3), "cohort") == seed_for(0, 3, "cohort")
    assert seed_for(0, 1, 2) != seed_for(0, 12)
    assert seed_for(0, "1") != seed_for(0, 1)


def test_arrivals_go_back_through_a_chain_and_a_part_without_the_hook_lets_them_pass() -> None:
    log: list[tuple[str, str, float]] = []
    seen: list[tuple[str, object]] = []

    def hooked(name: str) -> Transform:
        def on_arrival(update: Update, state: object) -> Update:
            seen.append((name, state))
            return update_of(update.client, 0, update.weight + 1)

        return replace(noting(log, name), on_arrival=on_arrival)

    both = chain(hooked("first"), noting(log, "bare"), hooked("last"))
    assert both.on_arrival(update_of("c", 0, 1.0), ("a", "b", "c")).weight == 3
    assert seen == [("last", "c"), ("first", "a")]
    update = update_of("c", 0)
    assert chain().on_arrival(update, ()) is update


def test_a_payload_keeps_its_dtypes_and_its_bytes_are_those_that_travel() -> None:
    mine = np.array([1, -2, 3], np.int8)
    payload = Payload({"codes": mine, "scale": np.float16(0.5), "places": np.array([7], np.uint32)})
    mine[:] = 0
    assert payload["codes"].tolist() == [1, -2, 3]
    assert {name: tensor.dtype.str for name, tensor in payload.items()} == {
        "codes": "|i1", "places": "<u4", "scale": "<f2",
    }  # fmt: skip
    assert payload.nbytes == 3 + 4 + 2
    assert pickle.loads(pickle.dumps(payload)) == payload
    assert Payload({"x": np.float32([1])}) != Payload({"x": np.float64([1])})
    assert Adapter({"x": [1.0]}) == Payload({"x": np.float32([1.0])})  # an adapter is a payload
    with pytest.raises(ValueError, match="read-only"):
        payload["codes"][0] = 1
    with pytest.raises(AdapterError, match="tensor codes has dtype int8 and cannot be scaled"):
        payload.times(2.0)
    with pytest.raises(AdapterError, match="tensor x has dtype object"):
        Payload({"x": np.array([None])})


def test_draws_of_a_seed_come_again_and_those_of_the_system_do_not() -> None:
    def numbers(draws: Draws) -> list[float]:
        return list(draws.generator("noise", 1).random(3))

    assert numbers(Seeded(5)) == numbers(Seeded(5)) != numbers(Seeded(6))
    assert list(Seeded(5).generator("noise", 2).random(3)) != numbers(Seeded(5))
    assert numbers(FromSystem()) != numbers(FromSystem())


def spending(sampling: Sampling, rounds: int) -> Spending:
    return Spending(noise=2.0, sampling=sampling, steps=rounds)


def test_a_chain_spends_the_budget_of_its_one_mechanism_and_two_are_refused() -> None:
    noise = Transform(mechanism=Mechanism(spent=spending))
    assert chain(Transform(), noise).mechanism == noise.mechanism
    assert chain(Transform()).mechanism is None
    with pytest.raises(SettingsError, match="two transforms spend privacy budget"):
        chain(noise, noise)


def test_a_number_stays_a_number() -> None:
    assert Payload({"n": np.float32(3.0)})["n"].shape == ()
    assert Payload({"n": np.array(3)})["n"].shape == ()
