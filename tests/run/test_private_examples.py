"""Whole runs whose examples are protected: what is reported, refused, and counted after a kill."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest

import shepherd
from shepherd.compare.privacy import spent as spent_by_arm
from shepherd.errors import FolderError, SettingsError
from shepherd.io.phrases import epsilon_text
from shepherd.overrides import dump, overridden, parse
from shepherd.privacy import accountant
from shepherd.privacy.example_level import ExampleAccount
from shepherd.privacy.guarantee import Guarantee
from shepherd.run import card as card_module
from shepherd.run import claims, evaluation, ledger, lineage, privacy_plan
from shepherd.run.folder import RunFolder, read_settings
from shepherd.run.log import read_rows
from shepherd.run.tracking import client_table, flatten
from shepherd.settings import RunSettings
from shepherd.ui.report.gather import collect
from shepherd.ui.report.page import html
from shepherd.ui.terminal import figures
from tests import runs

PRIVATE = {
    "privacy": {"examples": {"norm": 1.0, "noise": 2.0}},
    "federation": {"rounds": 3, "weights": "equal"},
    "selection": {"share": 1.0},
    "tuning": {"max_steps": 4, "batch_size": 4},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


def settings(llama_folder: Path, source: Path, output: Path, **tables: object) -> RunSettings:
    merged = {name: {**PRIVATE.get(name, {}), **tables.get(name, {})} for name in {*PRIVATE, *tables}}
    return runs.settings(llama_folder, source, output, **merged)


@pytest.fixture(scope="module")
def made(llama_folder, source, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "run"
    with shepherd.open_run(settings(llama_folder, source, path)) as run:
        list(run.rounds())
        sizes = {name: len(data) for name, data in run.prepared.clients.items()}
        run.finish()
    return path, sizes


def test_every_round_reports_what_the_most_exposed_client_has_spent(made) -> None:
    path, sizes = made
    rows = read_rows(path)
    for row in rows[1:]:
        steps = 4 * row["round"]
        delta = 1e-5
        each = [
            accountant.epsilon(
                [
                    accountant.Spending(
                        noise=2.0, sampling=accountant.Poisson(chance=min(1.0, 4 / size)), steps=steps
                    )
                ],
                delta,
            )
            for size in sizes.values()
        ]
        assert row["example_privacy"]["epsilon"] == pytest.approx(max(each), rel=1e-3)
        assert row["example_privacy"]["delta"] == pytest.approx(delta)
    assert "example_privacy" not in rows[0]


def test_nothing_of_a_visit_is_reported_that_no_noise_hides(made) -> None:
    path, _ = made
    for row in read_rows(path)[1:]:
        assert row["loss"] is None
        assert row["losses"] == {}
        assert (row["examples"], row["steps"], row["tokens"]) == (0, 0, {"seen": 0, "trained": 0})


def test_the_log_says_what_is_planned_and_no_loss(llama_folder, source, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, logger="shepherd")
    with shepherd.open_run(settings(llama_folder, source, tmp_path / "run", data={"holdout": 0.0})) as run:
        list(run.rounds())
    said = [record.getMessage() for record in caplog.records]
    assert any("3 visits of a client would spend epsilon" in line for line in said)
    assert not any("loss" in line for line in said)


def test_a_run_that_plans_too_much_writes_nothing(llama_folder, source, tmp_path) -> None:
    table = settings(llama_folder, source, tmp_path / "run", privacy={"epsilon": 0.5})
    with pytest.raises(SettingsError, match=r"above privacy\.epsilon = 0\.5"):
        shepherd.open_run(table)
    assert not (tmp_path / "run").exists()


def test_a_run_with_the_noise_that_its_plan_found_refuses_no_visit(llama_folder, source, tmp_path) -> None:
    """Chance asks some of four clients in more than half of ten rounds, and each visit is counted."""
    table = settings(
        llama_folder,
        source,
        tmp_path / "run",
        privacy={"epsilon": 3.0},
        federation={"rounds": 10},
        selection={"name": "uniform", "share": 0.5},
        tuning={"max_steps": 1},
        data={"holdout": 0.0},
    )
    noise = privacy_plan.plan(table, epsilon=3.0).examples.noise
    table = overridden(table, [f"privacy.examples.noise={noise}"])
    with shepherd.open_run(table) as run:
        rows = [row for _, row in run.rounds()]
        account, made = run.account, run.simulation.steps_made()
    assert account.planned == made
    assert max(made.values()) > 5
    assert not any(row["failures"] for row in rows)
    assert rows[-1]["example_privacy"]["epsilon"] == account.planned_epsilon
    assert account.planned_epsilon == privacy_plan.plan(table).examples.epsilon
    assert 2.95 < account.planned_epsilon <= 3.0


def test_what_was_saved_is_spent_and_a_resumed_run_counts_on(llama_folder, source, tmp_path, made) -> None:
    with shepherd.open_run(settings(llama_folder, source, tmp_path / "run")) as run:
        next(run.rounds())
    with shepherd.resume(tmp_path / "run") as run:
        rows = [row for _, row in run.rounds()]
    whole = [row["example_privacy"] for row in read_rows(made[0])[1:]]
    assert [row["example_privacy"] for row in rows] == whole[1:]


def test_more_rounds_are_checked_against_the_budget_again(llama_folder, source, tmp_path, made) -> None:
    spent = read_rows(made[0])[-1]["example_privacy"]["epsilon"]
    table = settings(llama_folder, source, tmp_path / "run", privacy={"epsilon": spent + 0.01})
    with shepherd.open_run(table) as run:
        list(run.rounds())
    with pytest.raises(SettingsError, match="4 visits of each client would spend"):
        shepherd.resume(tmp_path / "run", overrides=["federation.rounds=4"])


def test_the_report_page_says_what_is_spent_for_each_example(made) -> None:
    path, _ = made
    shown, last = collect(path), read_rows(path)[-1]["example_privacy"]
    says = ledger.read(path, ledger.OF_EXAMPLES)["says"]
    assert shown["example_privacy"] == {**last, "budget": None, "norm": 1.0, "noise": 2.0, "says": says}
    assert len(says) == 5
    assert shown["rounds"][-1]["example_epsilon"] == last["epsilon"]
    page = " ".join(re.sub("<[^>]*>", "", html(shown)).split())
    spent = Guarantee.of(last).text("example").replace("e-", "e−")
    assert f"E{spent[1:]} is spent, at the client that has spent most." in page
    assert "Epsilon spent by round" in html(shown)


def test_a_line_of_a_round_that_names_no_client_has_both_budgets() -> None:
    row = {
        "round": 2,
        "privacy": {"epsilon": 1.5, "delta": 1e-3},
        "example_privacy": {"epsilon": 2.5, "delta": 1e-4},
    }
    assert figures.line(row, [row], 4) == (
        "round 2/4  epsilon 2.5 at delta 0.0001 for each example  epsilon 1.5 at delta 0.001 for each client"
    )


# --- both levels


def test_with_noise_of_both_levels_each_client_counts_as_asked_in_every_round(
    llama_folder, source, tmp_path
) -> None:
    made = settings(llama_folder, source, tmp_path / "run", selection={"name": "poisson", "share": 0.5})
    made = parse({**made.model_dump(), "transforms": [{"name": "gaussian", "noise": 3.0}]})
    with shepherd.open_run(made) as run:
        assert set(run.account.planned.values()) == {3}
        sizes = {len(data) for data in run.prepared.clients.values()}
        rows = [row for _, row in run.rounds()]
        run.finish(answer=False)
    for row in rows:
        each = [run.account.epsilon(size, 4 * row["round"]) for size in sizes]
        assert row["example_privacy"] == {"epsilon": max(each), "delta": run.account.delta}
        assert set(row) == {"round", "learning_rate", "privacy", "example_privacy", "heldout"}
    both = [rows[-1][level]["epsilon"] for level in ("privacy", "example_privacy")]
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert all(f"Spent: epsilon {epsilon_text(epsilon)} at delta" in card for epsilon in both)
    line = figures.line(rows[-1], rows, 3)
    assert all(f"epsilon {epsilon_text(epsilon)} at delta" in line for epsilon in both)
    kept = [ledger.read(tmp_path / "run", name) for name in (ledger.LEDGER, ledger.OF_EXAMPLES)]
    assert [each["epsilon"] for each in kept] == both


# --- rounds that were released, and are lost


def lose(path: Path, last: int) -> None:
    shutil.rmtree(path / "checkpoints" / f"round-{last:05d}")


def test_the_steps_of_a_released_round_that_is_made_again_count_twice(
    llama_folder, source, tmp_path, made
) -> None:
    path = tmp_path / "run"
    with shepherd.open_run(settings(llama_folder, source, path)) as run:
        list(run.rounds())
    for again in (1, 2):
        lose(path, 3)
        shepherd.resume(path).close()  # and the process dies
        with shepherd.resume(path) as run:
            list(run.rounds())
        due = max(run.account.epsilon(size, 4 * (3 + again)) for size in made[1].values())
        last = read_rows(path)[-1]["example_privacy"]
        assert last == {"epsilon": due, "delta": run.account.delta, "again": again}
        kept = ledger.read(path, ledger.OF_EXAMPLES)
        assert (kept["epsilon"], kept["again"], kept["finished"]) == (due, again, 3)


def test_a_run_goes_on_at_the_delta_at_which_it_was_counted(llama_folder, source, tmp_path) -> None:
    """Also where it was begun with another default."""
    path = tmp_path / "run"
    with shepherd.open_run(settings(llama_folder, source, path)) as run:
        next(run.rounds())
    file = path / ledger.OF_EXAMPLES
    file.write_text(json.dumps({**json.loads(file.read_text()), "delta": 5e-4}))
    with shepherd.resume(path) as run:
        assert run.account.delta == 5e-4
        assert read_settings(path).privacy.delta is None


def test_a_budget_that_lost_rounds_have_spent_ends_the_run(llama_folder, source, tmp_path, made) -> None:
    path, spent = tmp_path / "run", read_rows(made[0])[-1]["example_privacy"]["epsilon"]
    with shepherd.open_run(settings(llama_folder, source, path, privacy={"epsilon": spent + 0.01})) as run:
        list(run.rounds())
    lose(path, 3)
    rows = read_rows(path)
    with pytest.raises(SettingsError, match=r"round 3 was released before.*privacy\.epsilon allows"):
        shepherd.resume(path)
    assert read_rows(path) == rows


def whole(path: Path) -> dict[str, bytes]:
    """Each file of a run folder but those of its lock."""
    files = (each for each in path.rglob("*") if each.is_file() and each.suffix != ".lock")
    return {str(each.relative_to(path)): each.read_bytes() for each in files if each.stat().st_size}


def test_rounds_that_are_counted_besides_count_when_a_run_gets_more_rounds(
    llama_folder, source, tmp_path, made
) -> None:
    path, spent = tmp_path / "run", read_rows(made[0])[-1]["example_privacy"]["epsilon"]
    table = settings(llama_folder, source, path, privacy={"epsilon": spent + 0.01}, federation={"rounds": 2})
    with shepherd.open_run(table) as run:
        list(run.rounds())
    lose(path, 2)
    with shepherd.resume(path) as run:
        list(run.rounds())  # with the round that was made again, as much as three
        run.finish(answer=False)
    before = whole(path)
    with pytest.raises(SettingsError, match=r"with 1 round made again.*privacy\.epsilon allows"):
        shepherd.resume(path, overrides=["federation.rounds=3"])
    assert whole(path) == before


@pytest.mark.parametrize("fault", ["budget", "ledger", "log", "tracker"])
def test_a_resume_that_is_refused_leaves_a_finished_run_as_it_was(
    llama_folder, source, tmp_path, made, monkeypatch, fault
) -> None:
    path, spent = tmp_path / "run", read_rows(made[0])[-1]["example_privacy"]["epsilon"]
    limit = {"epsilon": spent + (0.01 if fault == "budget" else 1.0)}
    with shepherd.open_run(settings(llama_folder, source, path, privacy=limit)) as run:
        list(run.rounds())
        run.finish(answer=False)
    if fault == "ledger":
        (path / ledger.OF_EXAMPLES).write_text("{")
    elif fault == "log":
        (path / "rounds.jsonl").write_text("{}\n")
    elif fault == "tracker":

        def refuse(*given: object) -> None:
            raise SettingsError("the service rejects the run")

        monkeypatch.setattr("shepherd.run.tracking.start", refuse)
    before = whole(path)
    with pytest.raises(shepherd.ShepherdError):
        shepherd.resume(path, overrides=["federation.rounds=4"])
    assert whole(path) == before
    assert "adapter/README.md" in before


def test_a_run_whose_ledger_of_examples_is_gone_does_not_go_on(llama_folder, source, tmp_path) -> None:
    path = tmp_path / "run"
    with shepherd.open_run(settings(llama_folder, source, path)) as run:
        list(run.rounds())
    lose(path, 3)
    (path / "rounds.jsonl").unlink()
    (path / ledger.OF_EXAMPLES).unlink()
    with pytest.raises(FolderError, match=r"example-privacy\.json is missing.* restore it"):
        shepherd.resume(path)


def test_a_round_that_only_its_checkpoint_knows_to_be_counted_besides_stays_counted(
    llama_folder, source, tmp_path
) -> None:
    path = tmp_path / "run"
    with shepherd.open_run(settings(llama_folder, source, path)) as run:
        list(run.rounds())
    lose(path, 3)
    with shepherd.resume(path) as run:
        list(run.rounds())
    (path / "rounds.jsonl").unlink()
    kept = ledger.read(path, ledger.OF_EXAMPLES)
    (path / ledger.OF_EXAMPLES).write_text(json.dumps({**kept, "again": 0}))
    shepherd.resume(path).close()
    assert ledger.read(path, ledger.OF_EXAMPLES)["again"] == 1


def test_all_that_shows_what_is_spent_says_what_lost_rounds_have_spent(
    llama_folder, source, tmp_path, made
) -> None:
    path, due = tmp_path / "run", read_rows(made[0])[-1]["example_privacy"]
    with shepherd.open_run(settings(llama_folder, source, path)) as run:
        list(run.rounds())
    lose(path, 3)
    shepherd.resume(path).close()  # two rounds, and one that was released
    assert read_rows(path)[-1]["example_privacy"]["epsilon"] < due["epsilon"]
    kept = ledger.read(path, ledger.OF_EXAMPLES)
    assert (kept["finished"], kept["again"], kept["last_lost"]) == (2, 1, 3)
    assert {key: kept[key] for key in due} == due
    assert spent_by_arm(path)["example_privacy"].row() == due
    assert collect(path)["example_privacy"]["epsilon"] == due["epsilon"]
    said = Guarantee.of(due).text("example")
    assert lineage.of_run(path)[-1].spent == said
    text = card_module.text(
        read_settings(path),
        rows=read_rows(path),
        answers={},
        data={},
        clients={},
        of_examples=kept,
        before=[lineage.Training(run="first", data="other")],
    )
    assert text.count(said) == 2


@pytest.mark.parametrize("dies", ["log", "examples"])
def test_a_loss_is_counted_once_at_both_levels_whenever_a_process_dies(
    llama_folder, source, tmp_path, monkeypatch, dies
) -> None:
    path = tmp_path / "run"
    made = settings(llama_folder, source, path, selection={"name": "poisson", "share": 0.5})
    made = parse({**made.model_dump(), "transforms": [{"name": "gaussian", "noise": 3.0}]})
    with shepherd.open_run(made) as run:
        list(run.rounds())
    lose(path, 3)

    def stop(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        with monkeypatch.context() as patched:
            patched.setattr(
                *((RunFolder, "reconcile") if dies == "log" else (ledger, "write_examples")), stop
            )
            with pytest.raises(KeyboardInterrupt):
                shepherd.resume(path)
    shepherd.resume(path).close()
    assert [each["again"] for each in claims.spent(path, read_rows(path)).values()] == [1, 1]


def test_a_loss_that_one_level_has_no_budget_for_is_counted_at_none(llama_folder, source, tmp_path) -> None:
    path = tmp_path / "run"
    made = settings(llama_folder, source, path, selection={"name": "poisson", "share": 0.5})
    made = parse({**made.model_dump(), "transforms": [{"name": "gaussian", "noise": 20.0}]})
    with shepherd.open_run(made) as run:
        list(run.rounds())
        limit = run.account.planned_epsilon + 0.01
    for name in ("run.toml", "trained-with.toml"):
        (path / name).write_text(dump(overridden(read_settings(path), [f"privacy.epsilon={limit}"])))
    lose(path, 3)
    before = whole(path)
    with pytest.raises(SettingsError, match=r"round 3 was released before.*privacy\.epsilon allows"):
        shepherd.resume(path)
    assert whole(path) == before


def test_every_key_of_the_ledger_of_examples_is_documented(made) -> None:
    page = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text("utf8")
    (section,) = re.findall(r"^## Where noise hides examples\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    documented = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert documented == set(ledger.read(made[0], ledger.OF_EXAMPLES))


# --- noise that shows nothing


def test_noise_for_which_there_is_no_epsilon_is_refused_before_anything_is_written(
    llama_folder, source, tmp_path
) -> None:
    examples = {"norm": 1.0, "noise": 0.0005}
    little = settings(llama_folder, source, tmp_path / "run", privacy={"examples": examples})
    with pytest.raises(SettingsError, match=r"can show no epsilon.*raise privacy\.examples\.noise"):
        shepherd.open_run(little)
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_earlier_version_with_such_noise_is_finished(
    llama_folder, source, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(ExampleAccount, "require_bounded", lambda self: None)
    examples = {"norm": 1.0, "noise": 0.0005}
    little = settings(llama_folder, source, tmp_path / "run", privacy={"examples": examples})
    with shepherd.open_run(little) as run:
        rows = [row for _, row in run.rounds()]
        run.finish(answer=False)
    assert "Spent: epsilon unbounded at delta" in (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "epsilon unbounded" in figures.line(read_rows(run.folder)[-1], rows, 3)
    assert json.loads((run.folder / ledger.OF_EXAMPLES).read_text())["epsilon"] is None
    assert "Epsilon unbounded at delta" in html(collect(run.folder))


def test_noise_for_which_there_is_no_epsilon_is_refused_when_a_run_goes_on(
    llama_folder, source, tmp_path, monkeypatch
) -> None:
    examples = {"norm": 1.0, "noise": 0.0005}
    little = settings(llama_folder, source, tmp_path / "run", privacy={"examples": examples})
    with monkeypatch.context() as unasked:
        unasked.setattr(ExampleAccount, "require_bounded", lambda self: None)
        with shepherd.open_run(little) as run:
            next(iter(run.rounds()))
    with pytest.raises(SettingsError, match=r"can show no epsilon.*raise privacy\.examples\.noise"):
        shepherd.resume(tmp_path / "run")


# --- what is shown of the data


def told(path: Path) -> dict[str, object]:
    """All that a run publishes and that a change of its training data could change."""
    kept = collect(path)
    card = (path / "adapter" / "README.md").read_text()
    rows = [
        {
            "keys": sorted(row),
            "client": row["heldout"]["client"],
            "worst": (row["heldout"]["worst_client"], row["heldout"]["spread"]),
            "trackers": (client_table(row).columns, sorted(flatten(row))),
        }
        for row in read_rows(path)
    ]
    return {
        "rows": rows,
        "data table": re.findall(r"^## Data\n\n(.*?)^## ", card, re.MULTILINE | re.DOTALL),
        "training": re.findall(r"^\| ([a-z ,]+) \|", card, re.MULTILINE),
        "report": {key: kept[key] for key in ("data", "holdings", "held", "categories", "planned")},
        "files": sorted(file.name for file in path.iterdir()),
    }


def test_another_example_in_place_of_one_changes_nothing_exact(llama_folder, source, tmp_path) -> None:
    """Another category, another length, a cut answer: of all this, the noisy adapter may tell something."""
    texts = runs.rows()
    texts[20] = {**texts[20], "category": "poem", "response": " ".join(["w7"] * 60)}
    kinds = {"evaluation": {"data": str(runs.written(tmp_path / "held.jsonl", runs.rows(9, seed=5)))}}
    found = []
    for place, given in (("one", source), ("two", runs.written(tmp_path / "rows.jsonl", texts))):
        with shepherd.open_run(settings(llama_folder, given, tmp_path / place / "run", **kinds)) as run:
            summary = run.prepared.summary
            list(run.rounds())
            run.finish(answer=False)
        found.append((summary, told(run.folder)))
    (one, shown), (two, other) = found
    assert one != two  # there is something to tell
    assert all("held-out loss" not in row["trackers"][0] for row in shown["rows"])
    assert one["kept"] == two["kept"]  # which is public
    assert shown == other
    assert shown["report"]["data"] == {"kept": one["kept"]}
    assert "tokens trained" not in shown["training"]
    assert f"{one['kept']}, from" in shown["data table"][0]
    assert not {"expected.json", "measured.json"} & set(shown["files"])


def test_nothing_that_clients_hold_is_logged(llama_folder, source, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, logger="shepherd")
    with shepherd.open_run(settings(llama_folder, source, tmp_path / "run")) as run:
        next(run.rounds())
    with shepherd.resume(run.folder) as run:
        list(run.rounds())
    told = ("to train on", "tokens/s", "of memory")
    assert not [each for each in caplog.messages if any(part in each for part in told)]


def test_an_evaluation_does_not_tell_what_was_trained_on(made, source) -> None:
    found = evaluation.evaluate_run(made[0], source)
    assert not [each for each in found.remarks if re.search("of the file (was|were|shares?) ", each)]
    assert any("noise hides what the run was trained on" in each for each in found.remarks)


def test_the_card_says_who_is_trusted_and_what_a_training_before_claims(made) -> None:
    path, _ = made
    card = (path / "adapter" / "README.md").read_text()
    for part in ("each example.", "Whose privacy", "Neighbouring data", "Who is trusted", "Sampling"):
        assert part in card
    before = [lineage.Training(run="first", data="other")]
    text = card_module.text(
        read_settings(path),
        rows=read_rows(path),
        answers={},
        data={},
        clients={},
        of_examples=ledger.read(path, ledger.OF_EXAMPLES),
        start={"file": "first", "sha256": "0"},
        before=before,
    )
    assert "A training before it claims no privacy" in text
    assert "what that tuning spent is not counted here" in text
