import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.core import Payload
from shepherd.core.encoding import (
    LARGEST_SCALE,
    STEPS,
    blocks,
    dequantised,
    flattened,
    packed,
    places_coded,
    places_read,
    quantised,
    rebuilt,
    require_parts,
    size_of,
    unpacked,
)
from shepherd.errors import UpdateRefused

SHAPES = st.sampled_from([(), (0,), (1,), (3,), (0, 4), (2, 5), (1, 1, 7)])
LAYOUTS = st.dictionaries(st.sampled_from("abcde"), SHAPES)
BITS = st.sampled_from(sorted(STEPS))
SEEDS = st.integers(0, 2**32)


def row_of(seed, size, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


@given(LAYOUTS, SEEDS)
def test_a_row_of_numbers_is_the_tensors_by_name_and_back(layout, seed):
    tensors = {name: row_of(seed + k, shape) for k, (name, shape) in enumerate(layout.items())}
    row = flattened(tensors)
    assert row.dtype == np.float32
    assert row.tolist() == [x for name in sorted(tensors) for x in tensors[name].ravel().tolist()]
    again = rebuilt(row, dict(reversed(layout.items())))
    assert {name: t.shape for name, t in again.items()} == layout
    assert all(again[name].tobytes() == tensors[name].tobytes() for name in tensors)


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 30)), st.integers(1, 9))
def test_no_block_is_empty_too_long_or_of_two_tensors(sizes, length):
    owners = [name for name in sorted(sizes) for _ in range(sizes[name])]
    starts = blocks(sizes, length).tolist()
    parts = [owners[a:b] for a, b in zip(starts, [*starts[1:], len(owners)], strict=False)]
    assert [name for part in parts for name in part] == owners
    assert all(0 < len(part) <= length and len(set(part)) == 1 for part in parts)
    assert len(starts) == sum(math.ceil(size / length) for size in sizes.values())


@given(st.lists(st.integers(0, 255), max_size=40), BITS)
def test_packed_codes_are_the_binary_digits_in_a_row(codes, bits):
    codes = [code % 2**bits for code in codes]
    digits = "".join(format(code, f"0{bits}b") for code in codes)
    digits += "0" * (-len(digits) % 8)
    data = packed(np.array(codes, np.uint8), bits)
    assert data.tobytes() == bytes(int(digits[k : k + 8], 2) for k in range(0, len(digits), 8))
    assert unpacked(data, len(codes), bits, "codes").tolist() == codes


@given(st.integers(0, 400), st.integers(0, 400), SEEDS)
def test_places_come_back_and_take_what_a_rice_code_takes(size, count, seed):
    count = min(size, count)
    places = np.sort(np.random.default_rng(seed).choice(size, count, replace=False))
    heads, rests = places_coded(places, size)
    assert places_read(heads, rests, size, count).tolist() == places.tolist()
    gaps = np.diff(places, prepend=-1) - 1
    sizes = [  # of every Rice code there is, counted digit by digit
        sum(-(-sum(part) // 8) for part in ([(gap >> r) + 1 for gap in gaps], [r] * count)) for r in range(10)
    ]
    assert heads.nbytes + rests.nbytes in sizes
    assert heads.nbytes + rests.nbytes <= 1.25 * min(sizes) + 3  # the best one for these gaps


@pytest.mark.parametrize(("share", "most"), [(0.1, 4.85), (0.01, 8.45)])
def test_places_at_random_take_little_more_than_their_entropy(share, most):
    size = 200_000
    places = np.flatnonzero(np.random.default_rng(0).random(size) < share)
    bits = 8 * sum(part.nbytes for part in places_coded(places, size)) / len(places)
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) / share
    assert entropy <= bits <= most <= 1.05 * entropy


def coded_places():
    return places_coded(np.array([0, 3, 4, 9]), 10)


@pytest.mark.parametrize(
    ("heads", "rests", "size", "count", "said"),
    [
        (*coded_places(), 9, 4, "a number at place 9 of 9"),
        (*coded_places(), 10, 3, "4 places, not 3"),
        (coded_places()[0], np.zeros(0, np.uint8), 10, 5, "4 places, not 5"),
        (coded_places()[0].astype(np.int8), coded_places()[1], 10, 4, "are int8 of shape"),
        (np.append(coded_places()[0], np.uint8(0)), coded_places()[1], 10, 4, "4 places, not 4|at most"),
        (np.zeros(10**6, np.uint8), coded_places()[1], 10, 4, r"of at most \(2,\)"),
        (coded_places()[0], np.zeros(9, np.uint8), 10, 4, r"rests of its change are uint8 of shape \(9,\)"),
    ],
)
def test_places_that_cannot_be_are_refused_with_their_numbers(heads, rests, size, count, said):
    with pytest.raises(UpdateRefused, match=said):
        places_read(heads, rests, size, count)


@given(st.lists(st.integers(0, 255), max_size=12), st.integers(0, 20), SEEDS)
def test_any_bytes_are_places_in_order_or_are_refused(data, count, seed):
    size = 24
    rests = np.random.default_rng(seed).integers(0, 256, -(-count // 8) if count else 0, dtype=np.uint8)
    try:
        places = places_read(np.array(data, np.uint8), rests, size, count).tolist()
    except UpdateRefused:
        return
    assert len(places) == count
    assert places == sorted(set(places))
    assert all(0 <= place < size for place in places)


@given(st.integers(0, 70), BITS, st.integers(1, 20), st.floats(1e-30, 1e9), SEEDS, st.booleans())
def test_a_number_moves_by_less_than_a_step_of_its_block(size, bits, length, scale, seed, random):
    row = row_of(seed, size, scale)
    starts = blocks({"a": size}, length)
    rng = np.random.default_rng(seed) if random else None
    codes, scales = quantised(row, starts, bits, rng)
    assert (codes.nbytes, scales.nbytes) == (-(-size * bits // 8), 2 * -(-size // length))
    found = dequantised(codes, scales, starts, size, bits)
    for k in range(0, size, length):
        block, got = row[k : k + length].astype(float), found[k : k + length]
        largest = np.abs(block).max()
        if random or bits > 1:
            step = 2 * largest * (1 + 2**-7) / STEPS[bits]  # the scale is rounded up to a bfloat16
            assert np.abs(block - got).max() <= step * (1 if random else 0.5) * (1 + 1e-5)
        else:
            assert set(np.sign(got)) <= {-1.0, 1.0}
            assert np.abs(got).max() == pytest.approx(np.abs(block).mean(), rel=2**-8)
            assert np.sum((block - got) ** 2) <= np.sum(block**2)  # what is left out does not grow


@pytest.mark.parametrize("bits", sorted(STEPS))
def test_rounding_at_random_has_no_bias(bits):
    """The mean of 4,000 roundings, against five of its own standard deviations, block by block."""
    row = row_of(1, 24)
    row[5] = 0.0
    starts, rng = blocks({"a": 24}, 8), np.random.default_rng(7)
    found = np.array(
        [dequantised(*quantised(row, starts, bits, rng), starts, 24, bits) for _ in range(4000)], float
    )
    deviation = found.std(axis=0) / math.sqrt(4000)
    assert np.all(np.abs(found.mean(axis=0) - row) <= 5 * deviation + 1e-6)
    if bits > 1:
        assert not found[:, 5].any()  # a level at zero


def test_nearest_codes_by_hand():
    """Scale 1, steps of 1/7: 0.5 is 3.5 steps, 0.3 is 2.1."""
    row, starts = np.array([1.0, -0.5, 0.3], np.float32), np.array([0])
    codes, scales = quantised(row, starts, 4, None)
    assert scales.tolist() == [0x3F80]  # 1 as a bfloat16
    assert codes.tolist() == [14 << 4 | 4, 9 << 4]  # 7 + 7, 7 - 3.5 to even, 7 + 2
    assert dequantised(codes, scales, starts, 3, 4) == pytest.approx([1.0, -3 / 7, 2 / 7])


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("bits", sorted(STEPS))
@pytest.mark.parametrize("random", [True, False])
def test_a_number_that_is_not_finite_or_absurd_is_refused_at_the_server(bad, bits, random):
    row, starts = np.array([1.0, bad, 2.0, 3.0], np.float32), np.array([0, 2])
    codes, scales = quantised(row, starts, bits, np.random.default_rng(0) if random else None)
    with pytest.raises(
        UpdateRefused, match=r"scale of block 0 .* (is (nan|inf), which is not finite|allowed)"
    ):
        dequantised(codes, scales, starts, 4, bits)


def bfloat16(number):
    return np.array([number], np.float32).view(np.uint32) >> 16


@pytest.mark.parametrize(
    ("codes", "scales", "said"),
    [
        ([0xF0], bfloat16(1.0), "code 0 of its change is 15, and the largest is 14"),
        ([0x0E, 0x01], bfloat16(1.0), "go on after number 3"),
        ([0, 0], bfloat16(-1.0), "scale of block 0 .* is -1, which is negative"),
        ([0, 0], bfloat16(np.nan), "scale of block 0 .* is nan, which is not finite"),
        ([0, 0], bfloat16(2 * LARGEST_SCALE), r"scale of block 0 .* at most 1e\+12 is allowed"),
        ([0, 0, 0], bfloat16(1.0), r"codes of its change are uint8 of shape \(3,\)"),
        ([0, 0], np.zeros(2, np.uint16), r"scales of its change are uint16 of shape \(2,\)"),
    ],
)
def test_codes_and_scales_that_cannot_be_are_refused_with_their_numbers(codes, scales, said):
    size = 1 if len(codes) == 1 else 3
    codes = np.array([codes[0]] if size == 1 else codes, np.uint8)
    with pytest.raises(UpdateRefused, match=said):
        dequantised(codes, scales.astype(np.uint16), np.array([0]), size, 4)


def test_arrays_of_another_dtype_or_name_are_refused():
    with pytest.raises(UpdateRefused, match="scales of its change are float32"):
        dequantised(np.zeros(1, np.uint8), np.zeros(1, np.float32), np.array([0]), 1, 8)
    with pytest.raises(UpdateRefused, match="codes of its change are int64"):
        dequantised(np.zeros(1, np.int64), np.zeros(1, np.uint16), np.array([0]), 1, 8)
    with pytest.raises(UpdateRefused, match=r"as the transform top_k does it \(w, not places, codes\)"):
        require_parts(Payload({"w": [1.0]}), ("places", "codes"), "top_k")


def test_the_size_of_a_shape():
    assert [size_of(shape) for shape in ((), (0, 9), (3, 4))] == [1, 0, 12]
