"""Which arms there are, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from shepherd.compare.arms import CompareSpec, arms, variant
from shepherd.compare.folders import arm_folder, local_names, scores_file
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


def test_two_variants_that_one_folder_would_hold_are_refused() -> None:
    asked = CompareSpec(locals=(), variants=("ffa: algorithm.name=x", "FFA: algorithm.name=y"))
    with pytest.raises(SettingsError, match="two arms are called 'FFA'"):
        arms(asked, CLIENTS)


def test_a_client_may_be_named_in_another_unicode_form() -> None:
    """macOS hands file names out decomposed, and a keyboard types them composed."""
    composed, decomposed = "Stra\u00dfe M\u00fcnchen", "Stra\u00dfe Mu\u0308nchen"
    for there, typed in ((composed, decomposed), (decomposed, composed)):
        found = arms(CompareSpec(locals=(typed, there)), ["ann", there])
        assert [arm.client for arm in found if arm.kind == "local"] == [there]
    both = arms(CompareSpec(locals=(composed, decomposed)), [composed, decomposed])
    assert [arm.client for arm in both if arm.kind == "local"] == [composed, decomposed]


NAMES = [
    *("Ulm", "ulm", "ULM", "Berlin", "a/b", "..", ".", "~", "A~B", "50%", "CON"),
    *("M\u00fcnchen", "Mu\u0308nchen", "m\u00fcnchen", "\u00c9", "\u00e9", "e\u0301"),
    *(
        "\u4e2d" * 83,
        "\u4e2d" * 82 + "\u6587",
        "\U0001f411" * 62,
        "x" * 250,
        "X" * 250,
        "y" * 5000,
        "z" * 249 + "\n",
    ),
]


def test_every_client_has_a_folder_of_its_own_on_every_file_system(tmp_path: Path) -> None:
    """Also where small and capital letters, or Unicode forms, are not told apart."""
    local = [arm for arm in arms(CompareSpec(), NAMES) if arm.kind == "local"]
    assert [arm.client for arm in local] == NAMES
    paths = [arm_folder(tmp_path, 0, arm) for arm in local] + [scores_file(tmp_path, 0, arm) for arm in local]
    assert len({str(path).lower() for path in paths}) == len(paths)
    for path in paths:
        assert path.name.isascii()
        assert len(path.name) < 230  # something may be put before and after it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()


def test_a_folder_leads_back_to_its_clients_arm(tmp_path: Path) -> None:
    local = [arm for arm in arms(CompareSpec(), NAMES) if arm.kind == "local"]
    names = local_names(NAMES)
    assert [names[arm_folder(tmp_path, 0, arm).name] for arm in local] == [arm.name for arm in local]


def test_a_usual_name_is_its_folders(tmp_path: Path) -> None:
    """And a comparison that was begun before goes on there."""
    for name, folder in (
        ("Berlin", "local-Berlin"),
        ("\u00e9", "local-%C3%A9"),
        ("x" * 100, "local-" + "x" * 100),
    ):
        (arm,) = [arm for arm in arms(CompareSpec(locals=(name,)), [name, "ann"]) if arm.kind == "local"]
        assert arm_folder(tmp_path, 0, arm).name == folder


def test_twenty_thousand_clients_are_looked_up_at_once() -> None:
    """One by one in a list, this took a minute."""
    many = [f"client-{number}" for number in range(20_000)]
    assert len(arms(CompareSpec(match="steps"), many)) == 20_003
    assert len(arms(CompareSpec(match="steps", locals=tuple(many)), many)) == 20_003


@pytest.mark.parametrize("text", ["ffa", "ffa:", ": a.b=1", "a/b: a.b=1", "local-x: a.b=1", "..: a.b=1"])
def test_a_variant_that_cannot_be_read_says_how_to_write_it(text: str) -> None:
    with pytest.raises(SettingsError, match=r'write "ffa: algorithm\.name=ffa_lora"'):
        variant(text)


@pytest.mark.parametrize("key", ["seed", "output", "data.limit", "model.base", "adapter.rank", "split.by"])
def test_a_variant_keeps_questions_base_and_data(key: str) -> None:
    with pytest.raises(SettingsError, match=f"arm 'v' changes {key}, but arms share data, base"):
        variant(f"v: {key}=1")
