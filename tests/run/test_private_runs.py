"""Whole runs whose noise hides clients: budget, ledger, what is kept from whom, and kills."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shepherd.errors import FolderError, SettingsError
from shepherd.model import files
from shepherd.overrides import dump, overridden, parse
from shepherd.privacy import accountant
from shepherd.privacy.guarantee import Guarantee
from shepherd.run import checkpoint, evaluation, ledger, privacy_plan
from shepherd.run import run as run_module
from shepherd.run.folder import RunFolder
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.run.tracking import client_table, flatten
from shepherd.settings import RunSettings
from shepherd.ui.cli.main import main
from shepherd.ui.report.gather import collect
from shepherd.ui.report.page import html
from shepherd.ui.terminal import figures
from tests import runs

NOISE, DELTA = 3.0, 1e-3
CLIENT = "client-"
"""Beginning of the name of each client of the split."""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


def asked(base: Path, source: Path, output: Path, name: str = "gaussian", **tables: Any) -> RunSettings:
    """Three rounds of half of four clients, with noise."""
    given = {
        "federation": {"weights": "equal"},
        "selection": {"name": "poisson", "share": 0.5},
        "privacy": {"delta": DELTA},
        "machine": {"workers": 1, "micro_batch_tokens": 512},
    }
    for key, table in tables.items():
        given[key] = {**given.get(key, {}), **table}
    made = runs.settings(base, source, output, **given)
    return parse({**made.model_dump(), "transforms": [{"name": name, "noise": NOISE}]})


@pytest.fixture
def table(llama_folder, source, tmp_path) -> RunSettings:
    return asked(llama_folder, source, tmp_path / "run")


@pytest.fixture(scope="module")
def done(llama_folder, source, tmp_path_factory) -> Path:
    """A finished run."""
    output = tmp_path_factory.mktemp("done") / "run"
    with open_run(asked(llama_folder, source, output)) as run:
        for _ in run.rounds():
            pass
        run.finish()
    return output


# --- what is reported


def test_a_row_has_no_number_of_a_cohort(done) -> None:
    first, *rows = read_rows(done)
    assert set(first) == {"round", "heldout"}
    for row in rows:
        assert set(row) == {"round", "learning_rate", "privacy", "heldout"}
        assert row["heldout"]["client"] == {}
        assert (row["heldout"]["worst_client"], row["heldout"]["spread"]) == (None, None)
    spent = [row["privacy"]["epsilon"] for row in rows]
    assert spent == sorted(spent)
    assert spent[0] > 0
    assert rows[-1]["privacy"]["delta"] == DELTA


def test_epsilon_is_the_accountants(done) -> None:
    from shepherd.core import Poisson, Spending

    due = accountant.epsilon([Spending(noise=NOISE, sampling=Poisson(chance=0.5), steps=3)], DELTA)
    assert read_rows(done)[-1]["privacy"]["epsilon"] == due
    kept = ledger.read(done)
    assert kept["epsilon"] == due
    assert (kept["unit"], kept["relation"], kept["clients"]) == ("client", "add or remove one", 4)
    assert (kept["begun"], kept["finished"], kept["noise"]) == (3, 3, NOISE)


def test_no_name_of_a_client_and_no_number_of_examples_is_on_what_leaves(done) -> None:
    card = (done / "adapter" / "README.md").read_text()
    shown = collect(done)
    page, report = html(shown), json.dumps(shown)
    for text in (card, page, report, (done / "rounds.jsonl").read_text(), json.dumps(ledger.read(done))):
        assert CLIENT not in text
    for word in ("training examples", "tokens trained", "bytes sent", "updates missed"):
        assert word not in card
    assert f"noise multiplier {NOISE:g}" in card
    assert "Whose privacy: each client's" in card
    assert "Epsilon spent" in page
    assert shown["privacy"]["epsilon"] == ledger.read(done)["epsilon"]
    assert (shown["holdings"], shown["clients"], shown["coverage"], shown["data"]) == ({}, [], {}, {})


def test_the_terminal_says_what_is_spent(done) -> None:
    rows = read_rows(done)
    line = figures.line(rows[-1], rows, 3)
    assert "round 3/3" in line
    assert Guarantee.of(rows[-1]["privacy"]).text("client") in line
    assert "clients" not in line


def test_trackers_get_no_count_of_a_cohort(done) -> None:
    found = flatten(read_rows(done)[-1])
    assert {"privacy/epsilon", "privacy/delta", "learning_rate", "heldout/loss"} <= set(found)
    assert not {name for name in found if name.startswith(("cohort", "failures", "heldout/client"))}
    assert client_table(read_rows(done)[-1]).lines == ()


def test_nothing_of_a_round_is_logged_but_its_scores(table, caplog) -> None:
    with caplog.at_level("DEBUG", logger="shepherd"), open_run(table) as run:
        caplog.clear()
        for _ in run.rounds():
            pass
    for record in caplog.records:
        assert CLIENT not in record.getMessage()
        assert "clients" not in record.getMessage()


def test_no_count_of_examples_is_logged_for_who_does_not_look_for_a_fault(table, done, caplog) -> None:
    with caplog.at_level("DEBUG", logger="shepherd"):
        open_run(overridden(table, ["data.duplicates=keep"])).close()
    shown = [each.getMessage() for each in caplog.records if each.levelname != "DEBUG"]
    assert not [each for each in shown if "to train on" in each or "duplicate" in each]
    assert any("examples to train on" in each.getMessage() for each in caplog.records)


def test_an_evaluation_does_not_tell_who_was_trained_on(done, source) -> None:
    found = evaluation.evaluate_run(done, source)
    told = [each for each in found.remarks if re.search("of the file (was|were|shares?) ", each)]
    assert not told
    assert any("noise hides what the run was trained on" in each for each in found.remarks)


def test_every_key_of_the_ledger_is_documented(done) -> None:
    page = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text("utf8")
    (section,) = re.findall(r"^## Where noise hides clients\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    documented = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert documented == set(ledger.read(done))
    assert (done / ledger.LEDGER).is_file()


@pytest.mark.parametrize("selection", ["poisson", "shuffled"])
def test_the_secret_is_for_its_owner_alone_and_deleted_with_the_last_round(table, selection) -> None:
    with open_run(overridden(table, [f"selection.name={selection}"])) as run:
        secret = run.folder / ledger.SECRET
        for _ in run.rounds():
            assert secret.stat().st_mode & 0o077 == 0
            assert len(secret.read_text()) == 64
        run.finish(answer=False)
    assert not secret.exists()
    with resume(run.folder) as again:  # three rounds are no whole epochs of two
        assert list(again.rounds()) == []
        again.finish(answer=False)
    assert not secret.exists()


@pytest.mark.parametrize("name", ["gaussian_adaptive", "gaussian_correlated"])
def test_the_other_mechanisms_run_to_their_end(llama_folder, source, tmp_path, name) -> None:
    selection = {"name": "round_robin", "share": 0.25} if name == "gaussian_correlated" else {}
    made = asked(llama_folder, source, tmp_path / "run", name, selection=selection)
    with open_run(made) as run:
        states = [state for state, _ in run.rounds()]
        run.finish()
    norms = {float(state.transforms[0].get("norm", 1.0)) for state in states}
    assert len(norms) == (3 if name == "gaussian_adaptive" else 1)


def test_two_runs_of_one_run_file_have_other_noise(table, done) -> None:
    with open_run(table) as run:
        for _ in run.rounds():
            pass
        run.finish()
    one, two = ((path / "adapter" / files.WEIGHTS).read_bytes() for path in (run.folder, done))
    assert one != two


# --- the budget


def test_a_run_that_would_spend_more_is_refused_with_the_noise_that_would_do(table, tmp_path) -> None:
    short = overridden(table, ["privacy.epsilon=0.2"])
    with pytest.raises(SettingsError, match=r"3 rounds would spend epsilon .* set noise = ") as found:
        open_run(short)
    assert not (tmp_path / "run").exists()
    noise = float(str(found.value).partition("set noise = ")[2].split()[0])
    enough = parse({**short.model_dump(), "transforms": [{"name": "gaussian", "noise": noise}]})
    open_run(enough).close()
    little = parse({**short.model_dump(), "transforms": [{"name": "gaussian", "noise": 0.97 * noise}]})
    with pytest.raises(SettingsError, match="would spend epsilon"):
        open_run(overridden(little, [f"output={tmp_path / 'other'}"]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["privacy.delta=0.25"], "not below 1 / 4"),
        (["federation.weights=size"], 'set federation.weights = "equal"'),
        (["federation.weights=examples"], 'set federation.weights = "equal"'),
        (["federation.weights=tokens"], 'set federation.weights = "equal"'),
        (["selection.name=size_weighted"], 'set [selection] name = "poisson"'),
        (["aggregation.name=product"], 'set [aggregation] name = "mean"'),
        (["aggregation.name=ridge"], 'set [aggregation] name = "mean"'),
        (["algorithm.name=scaffold", "tuning.optimiser.name=sgd"], "remove the transform"),
        (["algorithm.name=fednova", "tuning.optimiser.name=sgd"], "remove the transform"),
        (["evaluation.contribution=true"], "set evaluation.contribution = false"),
        (["adapter.ranks=[1, 2]", "aggregation.name=zero_padding"], 'set [aggregation] name = "mean"'),
        (["transforms=[{name='gaussian'}, {name='clip'}]"], "list gaussian last"),
        (["transforms=[{name='gaussian'}, {name='gaussian_adaptive'}]"], "remove one of them"),
        (["transforms=[{name='gaussian', noise=0.0}]"], "noise"),
        (["transforms=[{name='gaussian', noise=nan}]"], "noise"),
        (["transforms=[{name='gaussian', norm=inf}]"], "norm"),
        (["transforms=[{name='gaussian', norm=-1.0}]"], "norm"),
        (["transforms=[{name='gaussian_correlated'}]"], 'set [selection] name = "round_robin"'),
        (["transforms=[]", "privacy.epsilon=1.0"], "nothing of this one does"),
        (["split.clients=1"], "hides one of several clients"),
    ],
)
def test_what_voids_the_guarantee_is_refused_by_name_before_anything_is_written(
    table, tmp_path, changes, says
) -> None:
    made = overridden(table, changes)
    with pytest.raises(SettingsError) as found:
        open_run(made)
    assert says in str(found.value)
    assert not (tmp_path / "run").exists()


def test_the_packages_of_the_accountant_are_asked_for_before_anything_runs(table, monkeypatch) -> None:
    monkeypatch.setattr(accountant, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"\[privacy\]"):
        open_run(table)


def test_a_run_gets_no_more_rounds(done, tmp_path) -> None:
    path = Path(shutil.copytree(done, tmp_path / "run"))
    with pytest.raises(SettingsError, match=r"federation\.rounds cannot be raised"):
        resume(path, overrides=["federation.rounds=9"])


# --- kills


def weights_at(path: Path, round: int) -> bytes:
    return (path / "checkpoints" / f"round-{round:05d}" / checkpoint.TENSORS).read_bytes()


def stop(*args: object, **options: object) -> Any:
    raise KeyboardInterrupt


def test_a_round_is_saved_before_anything_of_it_is_scored_or_logged(table, monkeypatch) -> None:
    run = open_run(table)
    seen: list[tuple[str, int]] = []
    scored, appended = run_module.Run._scored, RunFolder.append

    def last() -> int:
        found = checkpoint.latest(run.folder / "checkpoints")
        return int(found.name.removeprefix("round-")) if found else 0

    def score(self: Any, state: Any) -> Any:
        seen.append(("scored", last() - state.round))
        return scored(self, state)

    def append(self: Any, row: Any) -> None:
        seen.append(("logged", last() - row["round"]))
        appended(self, row)

    monkeypatch.setattr(run_module.Run, "_scored", score)
    monkeypatch.setattr(RunFolder, "append", append)
    for _, row in run.rounds():
        seen.append(("yielded", last() - row["round"]))
    assert seen == [("scored", 0), ("logged", 0), ("yielded", 0)] * 3
    run.close()


@pytest.mark.parametrize("where", ["scoring", "logging"])
@pytest.mark.parametrize("same", [True, False], ids=["the same process", "another process"])
def test_a_stop_after_a_round_is_saved_redoes_no_noise_and_loses_no_score(
    table, monkeypatch, where, same
) -> None:
    run = open_run(table)
    next(run.rounds())
    with monkeypatch.context() as patched:
        if where == "scoring":
            patched.setattr(run_module.Run, "_scored", stop)
        else:
            patched.setattr(RunFolder, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            next(run.rounds())
    kept = weights_at(run.folder, 2)
    assert [row["round"] for row in read_rows(run.folder)] == [0, 1]
    if not same:
        run.close()
        run = resume(run.folder)
    with run:
        assert [row["round"] for _, row in run.rounds()] == [3]
        run.finish()
    assert weights_at(run.folder, 2) == kept
    rows = read_rows(run.folder)
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert all({"heldout", "privacy"} <= set(row) for row in rows[1:])
    kept_ledger = ledger.read(run.folder)
    assert (kept_ledger["begun"], kept_ledger["finished"]) == (3, 3)


def test_a_round_that_is_cut_off_gets_other_noise_and_is_counted_as_begun(table, monkeypatch) -> None:
    run = open_run(table)
    drawn: list[bytes] = []
    save = checkpoint.save

    def watched(place: Path, saved: Any, *, keep: int) -> Path:
        name = next(iter(saved.state.adapter))
        drawn.append(saved.state.adapter[name].tobytes())
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return save(place, saved, keep=keep)

    monkeypatch.setattr(checkpoint, "save", watched)
    with pytest.raises(KeyboardInterrupt):
        for _ in run.rounds():
            pass
    assert [row["round"] for row in read_rows(run.folder)] == [0, 1]
    run.close()
    with resume(run.folder) as again:
        for _ in again.rounds():
            pass
    assert drawn[1] != drawn[2]  # the second round, twice
    kept = ledger.read(run.folder)
    assert (kept["begun"], kept["finished"]) == (4, 3)
    assert kept["epsilon"] == read_rows(run.folder)[-1]["privacy"]["epsilon"]


DYING = """
import os, signal, sys
from shepherd import overrides
from shepherd.run import opening, run
honest = run.Run._scored
def scored(self, state):
    if state.round == 2: os.kill(os.getpid(), signal.SIGKILL)
    return honest(self, state)
run.Run._scored = scored
for _ in opening.open_run(overrides.read(sys.argv[1])).rounds(): pass
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_after_a_kill_the_saved_round_is_not_made_anew(table, tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(dump(table))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    life = subprocess.run([sys.executable, "-c", DYING, str(path)], env=env, timeout=300)
    assert life.returncode == -9
    kept = weights_at(tmp_path / "run", 2)
    secret = (tmp_path / "run" / ledger.SECRET).read_text()
    with resume(tmp_path / "run") as run:
        assert [row["round"] for _, row in run.rounds()] == [3]
    assert weights_at(tmp_path / "run", 2) == kept
    assert (tmp_path / "run" / ledger.SECRET).read_text() == secret  # an epoch's cohorts go on
    assert [row["round"] for row in read_rows(tmp_path / "run")] == [0, 1, 2, 3]


def test_an_epoch_that_has_begun_is_not_drawn_a_second_time(table) -> None:
    """A client could then be in two rounds of it, which the account of one in each epoch does not cover."""
    with open_run(overridden(table, ["selection.name=shuffled"])) as run:
        next(run.rounds())
    (run.folder / ledger.SECRET).unlink()
    with resume(run.folder) as again, pytest.raises(FolderError, match=r"secret is missing.* restore it"):
        next(again.rounds())
    assert not (run.folder / ledger.SECRET).exists()


def test_a_begun_run_keeps_the_delta_of_its_clients(llama_folder, source, tmp_path, monkeypatch) -> None:
    """The default was larger once, within a budget that today's is not."""
    table = asked(llama_folder, source, tmp_path / "run", privacy={"delta": None, "epsilon": 0.6})
    with monkeypatch.context() as once:
        once.setattr(accountant, "MAX_DELTA", 1.0)
        with open_run(table) as run:
            next(run.rounds())
    with resume(run.folder) as again:
        assert [row["round"] for _, row in again.rounds()] == [2, 3]
    spent = [row["privacy"] for row in read_rows(run.folder)[1:]]
    assert {each["delta"] for each in spent} == {4**-1.1}
    assert spent[-1]["epsilon"] <= 0.6
    with pytest.raises(SettingsError, match=r"privacy\.epsilon allows 0\.6"):
        open_run(overridden(table, [f"output={tmp_path / 'today'}"]))


# --- rounds that were released, and are lost


def lose(path: Path, last: int) -> None:
    shutil.rmtree(path / "checkpoints" / f"round-{last:05d}")


def trained_on(path: Path) -> None:
    with resume(path) as run:
        for _ in run.rounds():
            pass


def epsilon_of(steps: int, chance: float = 0.5) -> float:
    from shepherd.core import Poisson, Spending

    return accountant.epsilon([Spending(noise=NOISE, sampling=Poisson(chance=chance), steps=steps)], DELTA)


def test_a_released_round_that_is_made_again_counts_as_often_as_it_is_made(table, caplog) -> None:
    with open_run(table) as run:
        for _ in run.rounds():
            pass
    secrets = [(run.folder / ledger.SECRET).read_text()]
    for times in (1, 2):
        lose(run.folder, 3)
        trained_on(run.folder)
        kept, last = ledger.read(run.folder), read_rows(run.folder)[-1]
        assert (kept["finished"], kept["again"], last["privacy"]["again"]) == (3, times, times)
        assert kept["epsilon"] == last["privacy"]["epsilon"] == epsilon_of(3 + times)
        secrets.append((run.folder / ledger.SECRET).read_text())
    assert len({*secrets}) == 3  # a second sum over the same cohort would say more than the account does
    assert "round 3 was released before" in caplog.text
    shown = collect(run.folder)
    assert "Counted besides: 2 rounds" in html(shown)
    assert "rounds began" in html(shown)
    # of an epoch that is drawn again, more rounds are counted besides than were made again
    epoch = {**shown["privacy"], "begun": 6, "finished": 5, "again": 10}
    assert "rounds began" in html({**shown, "privacy": epoch})
    assert "rounds began" not in html({**shown, "privacy": {**epoch, "begun": 5}})


def test_what_was_lost_is_counted_also_if_the_next_process_dies_at_once(table) -> None:
    with open_run(table) as run:
        for _ in run.rounds():
            pass
    lose(run.folder, 3)
    resume(run.folder).close()
    kept = ledger.read(run.folder)
    assert (kept["finished"], kept["again"], kept["epsilon"]) == (2, 1, epsilon_of(3))
    assert [row["round"] for row in read_rows(run.folder)] == [0, 1, 2]
    trained_on(run.folder)
    assert ledger.read(run.folder)["epsilon"] == epsilon_of(4)


def test_a_round_that_only_the_log_knows_was_released_as_well(done, tmp_path) -> None:
    path = Path(shutil.copytree(done, tmp_path / "run"))
    kept = ledger.read(path)
    (path / ledger.LEDGER).write_text(json.dumps({**kept, "finished": 2}))
    lose(path, 3)
    trained_on(path)
    assert ledger.read(path)["again"] == 1


def test_a_budget_that_the_lost_rounds_have_spent_ends_the_run_and_changes_nothing(table) -> None:
    with open_run(overridden(table, [f"privacy.epsilon={epsilon_of(3) + 1e-3}"])) as run:
        for _ in run.rounds():
            pass
    lose(run.folder, 3)
    files = {name: (run.folder / name).read_bytes() for name in (ledger.LEDGER, ledger.SECRET)}
    rows = read_rows(run.folder)
    with pytest.raises(SettingsError, match=r"round 3 was released before.*privacy\.epsilon allows"):
        resume(run.folder)
    assert {name: (run.folder / name).read_bytes() for name in files} == files
    assert read_rows(run.folder) == rows


def test_a_run_whose_ledger_is_gone_does_not_go_on(done, tmp_path) -> None:
    path = Path(shutil.copytree(done, tmp_path / "run"))
    (path / ledger.LEDGER).unlink()
    with pytest.raises(FolderError, match=r"privacy\.json is missing.* restore it"):
        resume(path)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"again": "none"}'])
def test_a_damaged_ledger_is_refused(done, tmp_path, content) -> None:
    path = Path(shutil.copytree(done, tmp_path / "run"))
    (path / ledger.LEDGER).write_text(content)
    with pytest.raises(FolderError, match=r"privacy\.json is damaged"):
        resume(path)


# --- noise that shows nothing


def test_noise_for_which_there_is_no_epsilon_is_refused_before_anything_is_written(table, tmp_path) -> None:
    little = parse({**table.model_dump(), "transforms": [{"name": "gaussian", "noise": 1e-9}]})
    with pytest.raises(SettingsError, match=r"can show no epsilon.* raise noise"):
        open_run(little)
    assert not (tmp_path / "run").exists()


# --- the plan


def planned(clients: int, cohort: int, rounds: int, noise: float) -> RunSettings:
    return parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": "no-such-file.jsonl"},  # it is not read
            "split": {"by": "iid", "clients": clients},
            "federation": {"rounds": rounds, "weights": "equal"},
            "selection": {"name": "poisson", "share": cohort / clients},
            "transforms": [{"name": "gaussian", "noise": noise}],
            "privacy": {"delta": clients**-1.1},
        }
    )


@pytest.mark.parametrize(
    ("clients", "cohort", "rounds", "noise", "value"),
    [(1_000, 50, 100, 1.0, 2.40), (10_000, 500, 100, 1.0, 3.13), (100_000, 1_000, 200, 0.7, 3.12)],
)
def test_the_plan_has_the_published_epsilon(clients, cohort, rounds, noise, value) -> None:
    found = privacy_plan.plan(planned(clients, cohort, rounds, noise)).clients
    assert found.epsilon == pytest.approx(value, rel=0.01)
    assert found.delta == pytest.approx(clients**-1.1)


def test_the_plan_finds_the_noise_and_says_what_it_means() -> None:
    found = privacy_plan.plan(planned(1_000, 50, 100, 1.0), epsilon=2.4)
    assert found.clients.noise == pytest.approx(1.0, rel=0.01)
    said = " ".join(found.sentences())
    for part in ("Whose privacy", "Neighbouring data", "Who is trusted", "Population: 1,000", "Sampling"):
        assert part in said
    again = privacy_plan.plan(planned(1_000, 50, 100, found.clients.noise))
    assert again.clients.epsilon <= 2.4


def test_the_plan_counts_clients_in_the_data_where_the_run_file_does_not(tmp_path) -> None:
    rows = [{**row, "author": f"a{i % 5}"} for i, row in enumerate(runs.rows())]
    source = runs.written(tmp_path / "rows.jsonl", rows)
    made = overridden(
        planned(1_000, 500, 3, 5.0),
        [f"data.source={source}", "split={by='natural', field='author'}", "data.holdout=0.0"],
    )
    assert "Population: 5 clients" in " ".join(privacy_plan.plan(made).sentences())
    assert "Population: 80 clients" in " ".join(privacy_plan.plan(made, clients=80).sentences())


def test_the_clients_of_a_run_over_sites_are_its_sites() -> None:
    found = privacy_plan.plan(overridden(planned(1_000, 500, 3, 5.0), ['silos.sites=["a", "b", "c"]']))
    assert "Population: 3 clients" in " ".join(found.sentences())


def test_the_command(tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(dump(planned(1_000, 50, 100, 1.0)))
    found = CliRunner().invoke(main, ["privacy", "plan", str(path), "privacy.epsilon=2.0"])
    assert found.exit_code == 1, found.output
    assert "100 rounds with noise = 1 in the transform gaussian would spend epsilon 2.40" in found.output
    assert "That is above the 2 that privacy.epsilon allows." in found.output
    found = CliRunner().invoke(main, ["privacy", "plan", str(path), "transforms=[]"])
    assert found.exit_code == 2
    assert "nothing of this run adds noise" in found.output
    found = CliRunner().invoke(main, ["privacy", "plan", str(path), "--epsilon", "nan"])
    assert (found.exit_code, "target epsilon is nan" in found.output) == (2, True)


# --- a comparison


def test_a_comparison_by_equal_examples_is_refused_before_any_training(table, tmp_path) -> None:
    from shepherd.compare.arms import CompareSpec
    from shepherd.compare.comparison import compare

    with pytest.raises(SettingsError, match="which its noise hides"):
        compare(table, CompareSpec())
    assert not (tmp_path / "run").exists()
