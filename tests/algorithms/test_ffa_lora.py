from tests.quadratic import Quadratic, bits, chosen, drawn, method

from shepherd.algorithms import ffa_lora
from shepherd.rounds import rounds, start

ALGORITHM = ffa_lora.build(ffa_lora.Config())


def run(adapter):
    return rounds(
        method(ALGORITHM),
        Quadratic(ALGORITHM),
        start(method(ALGORITHM), adapter),
        until=3,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
    )


def test_a_never_changes_and_b_does():
    first = drawn(0)
    for state, _ in run(first):
        now, then = bits(state.adapter), bits(first)
        assert all((now[name] == then[name]) == (".lora_A." in name) for name in first)


def test_only_b_travels_up_and_the_averaging_is_exact():
    adapter = drawn(0)
    b_bytes = sum(tensor.nbytes for name, tensor in adapter.items() if ".lora_B." in name)
    for _, report in run(adapter):
        assert report.bytes_up == 4 * b_bytes
        assert report.bytes_down == 4 * adapter.nbytes
        assert report.figures["gap"] == 0.0
