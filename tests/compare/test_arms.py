"""Which arms there are, and which are refused."""

from __future__ import annotations

import pytest

from shepherd.compare.arms import CompareSpec, arms, variant
from shepherd.errors import SettingsError

CLIENTS = ["ann", "bob", "cay"]


def names(asked: CompareSpec) -> list[str]:
    return [arm.name for arm in arms(asked, CLIENTS)]


def test_all_clients_tune_alone_unless_some_are_named() -> None:
    asked = CompareSpec(match="steps")
    assert names(asked) == ["base", "local-ann", "local-bob", "local-cay", "centralised", "federated"]
    one = CompareSpec(locals=("cay", "cay"), match="examples")
    assert names(one) == ["base", "local-cay", "centralised", "federated"]
    assert names(CompareSpec(locals=(), match="steps")) == ["base", "centralised", "federated"]


def test_how_long_arms_train_and_the_centralised_one_both_ways_by_default() -> None:
    ways = {
        match: {arm.name: arm.match for arm in arms(CompareSpec(locals=("ann",), match=match), CLIENTS)}  # type: ignore[arg-type]
        for match in ("both", "steps", "examples")
    }
    assert CompareSpec().match == "both"
    names = ["base", "local-ann", "centralised", "centralised-steps", "federated"]
    assert list(ways["both"]) == names
    assert [ways["both"][name] for name in names[1:4]] == ["steps", "examples", "steps"]
    for match in ("steps", "examples"):
        assert ways[match]["local-ann"] == ways[match]["centralised"] == match


def test_variants_stand_last_with_their_overrides() -> None:
    found = arms(CompareSpec(locals=(), variants=("ffa: algorithm.name=ffa_lora  tuning.epochs=2",)), CLIENTS)
    assert (found[-1].name, found[-1].kind) == ("ffa", "variant")
    assert found[-1].overrides == ("algorithm.name=ffa_lora", "tuning.epochs=2")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            CompareSpec(locals=("dan",)),
            "local arm 'dan' is not a client of this run; its clients are ann, bob, cay",
        ),
        (CompareSpec(variants=("a: algorithm.name=x", "a: algorithm.name=y")), "two arms are called 'a'"),
        (CompareSpec(variants=("base: algorithm.name=x",)), "two arms are called 'base'"),
    ],
)
def test_what_cannot_be_is_one_sentence(asked: CompareSpec, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        arms(asked, CLIENTS)


@pytest.mark.parametrize("text", ["ffa", "ffa:", ": a.b=1", "a/b: a.b=1", "local-x: a.b=1", "..: a.b=1"])
def test_a_variant_that_cannot_be_read_says_how_to_write_it(text: str) -> None:
    with pytest.raises(SettingsError, match=r'write "ffa: algorithm\.name=ffa_lora"'):
        variant(text)


@pytest.mark.parametrize("key", ["seed", "output", "data.limit", "model.base", "adapter.rank", "split.by"])
def test_a_variant_keeps_questions_base_and_data(key: str) -> None:
    with pytest.raises(SettingsError, match=f"arm 'v' changes {key}, but arms share data, base"):
        variant(f"v: {key}=1")
