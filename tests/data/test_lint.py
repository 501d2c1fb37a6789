"""What `shepherd data check` shows: samples whose masks can be read, and counts that add up."""

import pytest

from shepherd.data.examples import Example, Turn
from shepherd.data.lint import report, spans
from shepherd.data.template import Template, render


def one(number, category):
    user = Turn(role="user", text=f"Name [bird] {number}.", context="[/] text " * (20 * (number % 2)))
    turns = (user, Turn(role="assistant", text="A heron [bold]é[/bold] \\"))
    return Example(turns=turns, category=category, where=f"f.jsonl, line {number}")


EXAMPLES = [one(number, "ab"[number % 2]) for number in range(10)]
CLIENTS = {"client-0": [0, 1, 2], "client-1": [3, 4, 5, 6, 7, 8, 9]}


@pytest.fixture
def found(neox):
    return report(EXAMPLES, Template("plain"), neox, max_tokens=100, clients=CLIENTS, samples=2, seed=1)


def test_samples_are_seeded_and_of_each_category(found, neox):
    assert [sample.category for sample in found.samples] == ["a", "a", "b", "b"]
    again = report(EXAMPLES, Template("plain"), neox, max_tokens=100, samples=2, seed=1)
    other = report(EXAMPLES, Template("plain"), neox, max_tokens=100, samples=2, seed=2)
    assert found.samples == again.samples != other.samples


def test_counts_add_up(found):
    for groups in (found.by_category, found.by_client):
        for name in ("examples", "kept", "cut", "tokens", "trained", "cut_tokens"):
            assert sum(getattr(c, name) for c in groups.values()) == getattr(found.counts, name)
    assert found.by_category["a"].cut == 0 < found.by_category["b"].cut


def test_spans_join_to_the_text_and_split_at_the_mask(neox, llama2):
    for tokenizer in (neox, llama2):
        rendered = render(EXAMPLES[0], Template("vicuna"), tokenizer, max_tokens=200)
        pieces = spans(rendered, tokenizer)
        assert [trained for _, trained in pieces] == [False, True]
        assert pieces[0][0].endswith("USER: Name [bird] 0. ASSISTANT:")
        assert pieces[1][0].startswith(" A heron [bold]é[/bold] \\")
        assert pieces[1][0].endswith(tokenizer.eos_token)


def test_what_is_dropped_is_said(neox):
    found = report(EXAMPLES, Template("plain"), neox, max_tokens=8)
    assert found.samples == ()
    assert found.counts.dropped == {"its prompt leaves no room for a response": 10}


def test_reprs_hold_no_text(found):
    assert repr(found) == "<Report: 10 examples, 4 samples>"
    assert "heron" not in repr(found.samples[0]).lower()
