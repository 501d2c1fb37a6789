"""Comparisons with noise: what it hides is in none of them, and what each arm spends is said and added up."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shepherd.compare import comparison
from shepherd.compare.arms import CompareSpec
from shepherd.compare.comparison import compare
from shepherd.compare.privacy import Trained, said, spent
from shepherd.compare.runs import compare_runs
from shepherd.compare.training import totals
from shepherd.consent import NOTHING
from shepherd.errors import FolderError, SettingsError
from shepherd.io.phrases import epsilon_text
from shepherd.overrides import overridden
from shepherd.privacy import required
from shepherd.privacy.guarantee import Guarantee, composed
from shepherd.run import ledger, privacy_plan
from shepherd.run.folder import planned
from shepherd.run.lineage import Training
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.settings import RunSettings
from shepherd.ui.chat import arms as chat
from shepherd.ui.report import collect, gather, page
from shepherd.ui.terminal.comparison_table import print_comparison
from tests import runs
from tests.ui.report.test_page import Outline

EXAMPLES = "privacy.examples.norm=1.0 privacy.examples.noise=2.0"
CLIENTS = 'privacy.delta=1e-3 selection.name="poisson" transforms=[{name="gaussian",norm=0.1,noise=2.0}]'
HIDING = {
    "clients": CLIENTS,
    "examples": EXAMPLES,
    "both": f"{CLIENTS} {EXAMPLES}",
    "summed": 'selection={name="all"} secure={} transforms=[{name="fixed_point"}]',
}
NOISY = ("clients", "examples", "both")
UNKNOWN = {"steps": None, "examples": None, "tokens": None}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


def table(base: Path, source: Path, output: Path, overrides: str = "") -> RunSettings:
    settings = runs.settings(
        base,
        source,
        output,
        federation={"rounds": 2, "weights": "equal", "max_share": 1.0},
        tuning={"max_steps": 1},
        evaluation={"answers": 2, "max_new_tokens": 2},
    )
    return overridden(settings, overrides.split())


@pytest.fixture(scope="module")
def trained(llama_folder: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    for name, overrides in {"plain": "", **HIDING}.items():
        with open_run(table(llama_folder, source, place / name, overrides)) as run:
            for _ in run.rounds():
                pass
            run.finish(answer=False)
    return {name: place / name for name in ("plain", *HIDING)}


@pytest.fixture(scope="module")
def made(llama_folder: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A plain run with a variant of each kind of noise, as the program's own advice has it, twice."""
    run = tmp_path_factory.mktemp("compared") / "run"
    variants = tuple(f"{name}: {HIDING[name]}" for name in ("clients", "examples"))
    spec = CompareSpec(locals=("client-1",), variants=variants, match="steps", seeds=2)
    return run, compare(table(llama_folder, source, run), spec)


def arms_of(found: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each for each in found["arms"]}


# --- what a run tells


def test_what_a_run_hides_is_no_number(trained: dict[str, Path]) -> None:
    for name in HIDING:
        found = totals(trained[name])
        assert (found.steps, found.examples, found.tokens) == (None, None, None), name
    assert totals(trained["clients"]).seconds is None
    plain = totals(trained["plain"])
    rows = read_rows(trained["plain"])[1:]
    assert plain.examples == sum(row["examples"] for row in rows) > 0
    assert plain.steps == 2
    with pytest.raises(SettingsError, match="does not say how much it trained"):
        totals(trained["clients"]).matched("steps")


def test_what_a_run_spent_is_that_of_its_last_round(trained: dict[str, Path]) -> None:
    last = {name: read_rows(path)[-1] for name, path in trained.items()}
    told = {name: {key: each.row() for key, each in spent(path).items()} for name, path in trained.items()}
    assert told["clients"] == {"privacy": last["clients"]["privacy"]}
    assert told["examples"] == {"example_privacy": last["examples"]["example_privacy"]}
    assert told["both"]["privacy"] == last["both"]["privacy"]
    assert spent(trained["plain"]) == spent(trained["summed"]) == {}
    assert last["clients"]["privacy"]["epsilon"] > 0.01


# --- finished runs


@pytest.mark.parametrize("first", ["plain", *HIDING])
def test_finished_runs_are_compared_whatever_they_hide(trained: dict[str, Path], first: str) -> None:
    names = [first, *(name for name in trained if name != first)]
    found = compare_runs([trained[name] for name in names], ["evaluation.answers=2"])
    arms = arms_of(found)
    assert list(arms) == names
    for name, arm in arms.items():
        assert arm["measures"]["loss"]["value"] > 0
        if name in HIDING:
            assert UNKNOWN.items() <= arm["trained"].items()
        assert bool(arm["privacy"]) == (name in ("clients", "both"))
        if name in NOISY:
            assert any(f"{name} spent epsilon" in each for each in found["verdicts"])
    assert arms["plain"]["trained"]["examples"] > 0
    assert not any("saw 0" in each or " 0 examples" in each for each in found["says"])
    assert not any("unequal amounts" in each for each in found["says"])
    assert any("adds up" in each for each in found["verdicts"])
    json.dumps(found, allow_nan=False)
    stream = io.StringIO()
    print_comparison(found, stream)
    report = gather.collect_runs([trained[name] for name in names], found)
    text = Outline(page.html(report)).tagged("main")[0]["text"]
    for shown in (stream.getvalue(), text):
        assert Guarantee.of(arms["clients"]["privacy"]).text("client") in " ".join(shown.split())


@pytest.mark.parametrize(
    ("name", "file"), [("clients", ledger.LEDGER), ("examples", ledger.OF_EXAMPLES), ("both", ledger.LEDGER)]
)
def test_a_run_whose_ledger_is_gone_is_compared_with_none(
    trained: dict[str, Path], tmp_path: Path, name: str, file: str
) -> None:
    shutil.copytree(trained[name], tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    with pytest.raises(FolderError, match=f"{file} is missing"):
        compare_runs([trained["plain"], tmp_path / "run"])


# --- variants of one run


def test_variants_with_noise_are_trained_and_tell_nothing_that_it_hides(made: tuple[Path, Any]) -> None:
    run, found = made
    arms = arms_of(found)
    for name in ("clients", "examples"):
        arm = arms[name]
        assert UNKNOWN.items() <= arm["trained"].items()
        # these are made of what each client holds of each category
        assert [arm[key] for key in ("client_loss", "worst_client", "categories")] == [{}, None, {}]
        assert arm["measures"]["loss"]["low"] < arm["measures"]["loss"]["high"]
    for name in ("base", "local-client-1", "centralised", "federated"):
        assert arms[name]["privacy"] is arms[name]["example_privacy"] is None
        assert set(arms[name]["client_loss"]) == {f"client-{k}" for k in range(4)}
    first = run / "compare" / "seed-0"
    assert arms["clients"]["privacy"] == read_rows(first / "clients")[-1]["privacy"]
    assert arms["examples"]["example_privacy"] == read_rows(first / "examples")[-1]["example_privacy"]
    assert "clients and examples do not tell how many." in found["says"][0]
    assert not any(" 0 examples" in each or "saw 0" in each for each in found["says"])


def test_what_arms_on_the_same_clients_spend_is_added_up(made: tuple[Path, Any]) -> None:
    run, found = made
    once = arms_of(found)["clients"]["privacy"]
    verdicts = " ".join(found["verdicts"])
    assert f"clients spent {Guarantee.of(once).text('client')}" in verdicts
    assert "in each of its 2 trainings" in verdicts
    both = [read_rows(run / "compare" / f"seed-{n}" / "clients")[-1]["privacy"] for n in (0, 1)]
    epsilon, delta = (sum(each[key] for each in both) for key in ("epsilon", "delta"))
    assert f"adds up: {Guarantee(epsilon, delta).text('client')}" in verdicts
    assert "local-client-1, centralised and federated add no noise" in verdicts


def test_the_page_the_terminal_and_the_chat_show_them(made: tuple[Path, Any]) -> None:
    run, found = made
    once = arms_of(found)["clients"]["privacy"]
    stream = io.StringIO()
    print_comparison(found, stream)
    assert f"epsilon {epsilon_text(once['epsilon'])}" in stream.getvalue()
    report = collect(run)
    arms = {each["name"]: each for each in report["arms"]}
    assert arms["clients"]["privacy"] == once
    assert arms["federated"]["privacy"] is None
    assert set(report["client_loss"]["columns"]).isdisjoint({"clients", "examples"})
    outline = Outline(page.html(report))
    assert outline.wrong == []
    text = " ".join(outline.tagged("main")[0]["text"].split())
    assert f"{Guarantee.of(once).text('client')}" in text
    said_of = {arm.name: arm.says for arm in chat.find(run, planned(run))}
    assert Guarantee.of(once).text("client") in said_of["clients"]
    assert "for each example" in said_of["examples"]
    assert "client-1 alone: " in said_of["local-client-1"]


@pytest.mark.parametrize("name", NOISY)
def test_the_pages_of_a_run_with_noise_have_no_number_that_it_hides(
    trained: dict[str, Path], name: str
) -> None:
    path = trained[name]
    (arm,) = [each for each in chat.find(path, planned(path)) if each.name == "federated"]
    assert not [kind for kind in runs.CATEGORIES if f"of {kind}" in arm.says or f", {kind}" in arm.says]
    assert ("example" in arm.says.partition("epsilon")[0]) == (name == "examples")  # how many, and no more
    report = collect(path)
    hidden = ("examples", "steps", "tokens")
    assert [report["totals"][key] for key in hidden] == [None] * 3
    (trained_,) = [each["trained"] for each in report["arms"] if each["kind"] == "federated"]
    assert [trained_[key] for key in hidden] == [None] * 3
    html = page.html(report)
    assert Outline(html).wrong == []
    assert "examples trained on" not in html


# --- sums


def test_epsilons_and_deltas_are_added_up_by_unit() -> None:
    one = Trained(spent={"privacy": Guarantee(1.0, 1e-5), "example_privacy": Guarantee(0.5, 1e-4)})
    two, plain = Trained(spent={"privacy": Guarantee(2.5, 2e-5)}), Trained(spent={})
    text = " ".join(said({"one": [one], "two": [two], "plain": [plain]}))
    assert "one spent epsilon 1 at delta 1e-05 for each client" in text
    assert "and epsilon 0.5 at delta 0.0001 for each example" in text
    assert "adds up: epsilon 3.5 at delta 3e-05 for each client" in text
    assert text.count("for each example") == 1
    assert "plain adds no noise" in text
    assert said({"plain": [plain], "other": [plain]}) == []
    alone = said({"one": [two]})
    assert not any("adds up" in each for each in alone)


def test_an_epsilon_without_bound_makes_the_sum_one() -> None:
    none, some = (Trained(spent={"example_privacy": Guarantee(each, 1e-5)}) for each in (None, 1.0))
    text = " ".join(said({"one": [none], "two": [some]}))
    assert "one spent epsilon unbounded at delta 1e-05 for each example" in text
    assert "adds up: epsilon unbounded at delta 2e-05 for each example" in text


def test_trainings_of_an_arm_that_spent_unequal_amounts_are_said_apart() -> None:
    """As where one of them has made a released round again."""
    one, two = (Trained(spent={"privacy": Guarantee(each, 1e-5)}) for each in (1.0, 1.5))
    assert said({"arm": [one, two]})[0] == (
        "arm spent, in its 2 trainings one after another: epsilon 1 at delta 1e-05 for each client; epsilon"
        " 1.5 at delta 1e-05 for each client."
    )
    assert said({"arm": [one, one]})[0].endswith(", in each of its 2 trainings.")


# --- what the arms began with


def before(name: str, adapter: str, epsilon: float | None = None) -> Training:
    if epsilon is None:
        return Training(run=name, data="rows.jsonl", adapter=adapter)
    row = {"epsilon": epsilon, "delta": 1e-5}
    spent = f"epsilon {epsilon} at delta 1e-05 for each client"
    return Training(run=name, data="rows.jsonl", adapter=adapter, spent=spent, guarantees={"privacy": row})


def private(epsilon: float, adapter: str = "", *earlier: Training) -> Trained:
    return Trained(spent={"privacy": Guarantee(epsilon, 1e-5)}, before=earlier, adapter=adapter)


def test_each_start_is_added_once() -> None:
    start, next_ = before("start", "aaa", 4.0), before("next", "bbb", 0.25)
    arms = {"one": [private(1.0, "c", start)], "two": [private(2.0, "d", start, next_)]}
    text = " ".join(said(arms))
    assert text.count("Before, start spent epsilon 4 at delta 1e-05 for each client.") == 1
    assert "Before, next spent epsilon 0.25" in text
    assert "adds up: epsilon 7.25 at delta 4e-05 for each client" in text


def test_two_starts_whose_records_are_alike_are_two() -> None:
    arms = {"one": [private(1.0, "c", before("cl", "aaa", 4.0))]}
    arms |= {"two": [private(2.0, "d", before("cl", "bbb", 4.0))]}
    assert "adds up: epsilon 11 at delta 4e-05 for each client" in " ".join(said(arms))


def test_a_start_that_is_an_arm_itself_is_not_added_again() -> None:
    arms = {"cl": [private(4.0, "aaa")], "then": [private(1.0, "b", before("cl", "aaa", 4.0))]}
    text = " ".join(said(arms))
    assert "Before" not in text
    assert "adds up: epsilon 5 at delta 2e-05 for each client" in text


def test_one_arm_and_its_start_are_a_sum_too() -> None:
    text = " ".join(said({"one": [private(1.0, "c", before("start", "aaa", 4.0))]}))
    assert "adds up: epsilon 5 at delta 2e-05 for each client" in text


def test_an_arm_with_noise_on_a_start_without_is_said_to_protect_the_rest_alone() -> None:
    text = " ".join(said({"one": [private(1.0, "c", before("plain", "aaa"))], "two": [private(1.0, "d")]}))
    assert "one began with an adapter whose training claims no privacy" in text
    unknown = Trained(spent={"privacy": Guarantee(1.0, 1e-5)}, unknown_start=True)
    assert "one began with an adapter that was tuned before: what that" in " ".join(said({"one": [unknown]}))
    assert "began with" not in " ".join(said({"one": [private(1.0, "c")]}))


def test_runs_that_began_with_the_same_adapter_are_added_up_with_it(
    llama_folder: Path, source: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    paths = []
    for name in ("one", "two"):
        asked = table(llama_folder, source, tmp_path / name, CLIENTS)
        with open_run(overridden(asked, [f"adapter.start={trained['clients']}"])) as run:
            for _ in run.rounds():
                pass
            run.finish(answer=False)
        paths.append(tmp_path / name)
    verdicts = " ".join(compare_runs(paths, ["evaluation.answers=2"])["verdicts"])
    once = spent(trained["clients"])["privacy"]
    parts = [once, *(spent(path)["privacy"] for path in paths)]
    assert f"Before, clients spent {once.text('client')}." in verdicts
    assert f"adds up: {composed(parts).text('client')}" in verdicts
    # beside the run itself it is counted once
    verdicts = " ".join(compare_runs([trained["clients"], paths[0]], ["evaluation.answers=2"])["verdicts"])
    assert f"adds up: {composed(parts[:2]).text('client')}" in verdicts


# --- what is asked


@pytest.mark.parametrize(
    ("variant", "sentence"),
    [
        (CLIENTS.replace("poisson", "power_of_choice"), "power_of_choice"),
        (f"{CLIENTS} federation.weights=examples", "federation.weights"),
        (f"{CLIENTS} privacy.epsilon=0.1", "privacy.epsilon allows 0.1"),
        (CLIENTS.replace("noise=2.0", "noise=1e-9"), "can show no epsilon"),
        (f"{EXAMPLES} federation.weights=examples", "federation.weights"),
        (f"{EXAMPLES} privacy.epsilon=0.001", "above privacy.epsilon = 0.001"),
        (EXAMPLES.replace("noise=2.0", "noise=0.0001"), "can show no epsilon"),
        (f"{EXAMPLES} privacy.delta=0.5", "delta is 0.5, and client"),
        (f"{EXAMPLES} tuning.objective.name=dpo", "protects single examples"),
    ],
    ids=[
        "selection",
        "weights",
        "budget",
        "no epsilon",
        "weights of examples",
        "budget of examples",
        "no epsilon of examples",
        "delta of examples",
        "pairs of examples",
    ],
)
def test_a_variant_whose_noise_is_refused_costs_no_training(
    llama_folder: Path, source: Path, tmp_path: Path, variant: str, sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        compare(
            table(llama_folder, source, tmp_path / "run"),
            CompareSpec(locals=(), variants=(f"private: {variant}",)),
            train=lambda opened: pytest.fail("something was trained"),
        )
    assert not (tmp_path / "run").exists()


def test_a_variant_that_is_trained_is_not_asked_again(
    llama_folder: Path, source: Path, made: tuple[Path, Any]
) -> None:
    """It keeps the delta at which it began, at which its budget is enough; a new one has today's."""
    run, _ = made
    asked = table(llama_folder, source, run)
    for name in ("clients", "examples"):
        text = f"{HIDING[name]} privacy.epsilon=0.001"
        spec = CompareSpec(locals=(), variants=(f"{name}: {text}",), seeds=2)
        comparison._require_data(asked, spec, NOTHING)
        with pytest.raises(SettingsError, match=r"privacy\.epsilon"):
            comparison._require_data(asked, replace(spec, variants=(f"new: {text}",)), NOTHING)


def test_a_variant_is_asked_for_each_seed_which_decides_whom_its_rounds_ask(
    llama_folder: Path, source: Path, tmp_path: Path
) -> None:
    """In four rounds of one client each, some seeds ask one of them more often than the first seed does."""
    asked = overridden(table(llama_folder, source, tmp_path / "run"), ["federation.rounds=4"])
    variant = "private: privacy.examples.norm=1.0 privacy.examples.noise=2.0 selection.share=0.25"

    def epsilon(seed: int) -> float:
        private = overridden(asked, [*variant.split()[1:], f"seed={seed}"])
        sizes = privacy_plan.example_counts(asked)
        account = required.require_private(private, sizes)[1]
        assert account is not None
        return account.planned_epsilon

    first, *others = (epsilon(seed) for seed in range(4))
    assert max(others) > first * 1.01
    budget = f" privacy.epsilon={first * 1.005!r}"
    spec = CompareSpec(locals=(), variants=(variant + budget,), seeds=4)
    with pytest.raises(SettingsError, match=r"above privacy\.epsilon"):
        compare(asked, spec, train=lambda opened: pytest.fail("something was trained"))


@pytest.mark.parametrize("name", NOISY)
def test_the_advice_of_a_refusal_can_be_followed(
    llama_folder: Path, source: Path, tmp_path: Path, name: str
) -> None:
    asked = table(llama_folder, source, tmp_path / "run", HIDING[name])
    with pytest.raises(SettingsError) as refused:
        compare(asked, CompareSpec(locals=()))
    assert not (tmp_path / "run").exists()
    if name == "examples":
        advice = str(refused.value).rpartition('"private: ')[2].removesuffix('"')
        assert advice
        plain = table(llama_folder, source, tmp_path / "run")
        assert overridden(plain, advice.split()).privacy.examples is not None
