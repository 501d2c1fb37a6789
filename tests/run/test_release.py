"""The release gate: what it is made of, what it refuses, and what is written all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

from shepherd.audit.auditing import Planted, audit_folder, audit_run_file
from shepherd.errors import FolderError, NotReleased, SettingsError
from shepherd.model import files
from shepherd.overrides import dump, overridden
from shepherd.run import folder, release, score_file
from shepherd.run.answerer import adapter_of
from shepherd.run.export import export
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.release import of_run, settled
from shepherd.run.resuming import resume
from shepherd.settings import RunSettings
from shepherd.ui.cli.main import main
from shepherd.ui.report.gather import collect
from shepherd.ui.report.page import html
from shepherd.ui.report.writing import write_audit
from tests import runs
from tests.model import bases


@pytest.fixture(scope="module")
def finished(llama_folder, tmp_path_factory) -> Path:
    return runs.finished(llama_folder, tmp_path_factory.mktemp("gated"))


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy whose gate a test may set."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def gated(run: Path, gate: str) -> None:
    settings = overridden(folder.read_settings(run), [f"evaluation.gate={gate}"])
    (run / folder.RUN_FILE).write_text(dump(settings))


def scored(run: Path, name: str, base: float, federated: float, **more: Any) -> None:
    score_file.add(run, [row_of(run, name, base, federated, **more)])


def row_of(run: Path, name: str, base: float, federated: float, **more: Any) -> dict[str, Any]:
    def bounds(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    return {
        "name": name,
        "label": name,
        "kind": "task",
        "task": name.partition(".")[0],
        "metric": "acc",
        "share": True,
        "lower_is_better": False,
        "documents": 10,
        "adapters": {"base": ["base"], "federated": [score_file.digest_of(run / "adapter")]},
        "arms": {"base": bounds(base), "federated": bounds(federated)},
        "differences": {"federated": {**bounds(federated - base), "p": 0.2, "p_holm": 0.2}},
        "says": {},
        **more,
    }


def test_what_is_no_number_passes_no_gate(run) -> None:
    """Not a number is above no threshold, and a base of infinite loss is worse than anything."""
    gated(run, "{drops = {quiz = 0.05}}")
    rows = json.dumps({"scores": [row_of(run, "quiz.acc", 0.5, 0.5)]})
    for wrong in ("NaN", "Infinity"):
        (run / score_file.FILE).write_text(rows.replace('"value": 0.5', f'"value": {wrong}'))
        (reason,) = of_run(run).reasons
        assert reason.startswith("quiz is no number for the base or for this adapter")


def test_without_a_gate_everything_is_released(run) -> None:
    assert of_run(run).row() == {"asked": False, "released": True, "reasons": []}
    assert of_run(run).sentence() == ""


def test_a_drop_beyond_the_threshold_is_a_reason(run) -> None:
    gated(run, "{drops = {quiz = 0.05, refusal = 0.1}}")
    scored(run, "quiz.acc", 0.5, 0.46)
    scored(run, "refusal", 0.9, 0.7)
    (reason,) = of_run(run).reasons
    assert reason == (
        "refusal is 20.0 points worse than the base's, from 90.0 to 70.0"
        " (95% of the difference: -30.0 to -10.0), and at most 10.0 are allowed"
    )
    gated(run, "{drops = {quiz = 0.03, refusal = 0.2001}}")
    (reason,) = of_run(run).reasons
    assert reason.startswith("quiz is 4.0 points worse")


def test_the_direction_of_a_score_counts(run) -> None:
    gated(run, "{drops = {bits = 0.1}}")
    for federated, released in ((1.3, False), (0.5, True)):
        scored(run, "bits.bits_per_byte", 1.0, federated, lower_is_better=True, share=False)
        assert of_run(run).released is released


def test_a_metric_can_be_named_and_a_task_is_its_first(run) -> None:
    scored(run, "quiz.acc", 0.5, 0.5)
    scored(run, "quiz.acc_norm", 0.5, 0.2)
    gated(run, "{drops = {quiz = 0.0}}")
    assert of_run(run).released
    gated(run, '{drops = {"quiz.acc_norm" = 0.0}}')
    assert not of_run(run).released


def test_refusals_by_keyword_are_not_taken_from_the_judge(run) -> None:
    """Whichever was measured first: both are of the task "refusal"."""
    gated(run, "{drops = {refusal = 0.02}}")
    scored(run, "refusal_judged", 0.9, 0.9, kind="refusal", task="refusal", asked="x")
    assert not of_run(run).released  # by keyword nothing was measured
    scored(run, "refusal", 0.9, 0.1, kind="refusal", task="refusal", asked="x")
    assert "refusal is 80.0 points worse" in str(of_run(run).sentence())


def test_refusals_of_other_prompts_are_dropped(run) -> None:
    for name in ("refusal", "refusal_judged"):
        scored(run, name, 0.9, 0.9, kind="refusal", task="refusal", asked="x")
    scored(run, "quiz.acc", 0.5, 0.5)
    scored(run, "refusal", 0.9, 0.1, kind="refusal", task="refusal", asked="y")
    assert [row["name"] for row in score_file.current(run)] == ["quiz.acc", "refusal"]


def test_the_held_out_loss_is_that_of_the_rounds(run) -> None:
    before, after = (row["heldout"]["loss"] for row in read_rows(run))
    rise = after - before
    gated(run, f"{{drops = {{loss = {max(0.0, rise) + 1e-6:.9f}}}}}")
    assert of_run(run).released
    log = run / "rounds.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[-1]["heldout"]["loss"] = before + 1.0
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    gated(run, "{drops = {loss = 0.5}}")
    (reason,) = of_run(run).reasons
    assert reason.startswith("loss is 1.000 worse than the base's")


def test_the_first_loss_of_a_run_that_began_with_an_adapter_is_not_the_bases(run) -> None:
    settings = overridden(folder.read_settings(run), ["adapter.start=before", "evaluation.gate.drops.loss=9"])
    (run / folder.RUN_FILE).write_text(dump(settings))
    (reason,) = of_run(run).reasons
    assert reason.startswith("loss is not measured for this adapter")
    assert "of a run that began with an adapter, run `shepherd compare`" in reason


def test_what_was_not_measured_of_this_adapter_is_a_reason(run) -> None:
    gated(run, "{drops = {quiz = 0.5, refusal = 0.5, right = 0.5}, audit = true}")
    said = of_run(run).reasons
    assert "quiz is not measured for this adapter: run `shepherd evaluate RUN_FOLDER --tasks quiz`" in said
    assert any("--harmful FILE" in reason for reason in said)
    assert any("shepherd compare" in reason for reason in said)
    assert any("there is no leak audit of this adapter" in reason for reason in said)
    scored(run, "quiz.acc", 0.5, 0.5, adapters={"base": ["base"], "federated": ["another"]})
    assert any(reason.startswith("quiz is not measured") for reason in of_run(run).reasons)


def test_a_comparison_is_read_where_its_scores_are_of_this_adapter(run) -> None:
    def arm(name: str, right: float) -> dict[str, Any]:
        return {"name": name, "measures": {"right": {"value": right, "low": right, "high": right}}}

    found = {"finished": True, "arms": [arm("base", 0.6), arm("federated", 0.5)], "differences": []}
    scores = run / "compare" / "seed-0" / "scores"
    scores.mkdir(parents=True)
    (run / "compare" / "comparison.json").write_text(json.dumps(found))
    gated(run, "{drops = {right = 0.05}}")
    for digest, said in ((score_file.digest_of(run / "adapter"), "10.0 points worse"), ("x", "not measured")):
        (scores / "federated.json").write_text(json.dumps({"questions": {"adapter": digest}}))
        (reason,) = of_run(run).reasons
        assert said in reason


def audit(run: Path, *, contradicted: bool = False, auc: float = 0.5) -> None:
    """An audit of the adapter of the run, with these figures."""
    (run / "audit").mkdir(exist_ok=True)
    scores = {"reference": {"auc": {"value": auc, "low": auc, "high": auc}}}
    found = {
        "adapter": score_file.digest_of(run / "adapter"),
        "contradicted": contradicted,
        "membership": {"released": {"scores": scores}},
    }
    (run / "audit" / "audit.json").write_text(json.dumps(found))


def test_a_leak_audit_that_fails_is_a_reason(run) -> None:
    gated(run, "{audit = true, membership = 0.6}")
    audit(run, auc=0.58)
    assert of_run(run).released
    audit(run, auc=0.7)
    assert "with AUC 0.700, and at most 0.600 is allowed" in of_run(run).reasons[0]
    audit(run, contradicted=True)
    assert of_run(run).reasons == ("the leak audit contradicts the epsilon that the run claims",)


def test_the_audit_is_read_as_it_is_written(run) -> None:
    """From a real audit's own values."""
    from shepherd.audit import auditing
    from shepherd.audit.estimate import attack
    from shepherd.audit.membership import REFERENCE, Membership
    from shepherd.audit.sections import RELEASED, Attacked

    told_apart = attack([3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 3.5, 1.5])  # 15 of 16 pairs the right way round
    found = Membership(scores={REFERENCE: told_apart}, clients={}, categories={})
    auditing.write(
        auditing.Audit(
            folder=run / "audit",
            title="run",
            settings=folder.read_settings(run),
            rounds=1,
            found=Attacked(membership={RELEASED: found}, remembered={}),
            adapter=score_file.digest_of(run / "adapter"),
        )
    )
    for most, released in ((0.94, True), (0.93, False)):
        gated(run, f"{{membership = {most}}}")
        assert of_run(run).released is released


def test_export_and_push_refuse_an_adapter_that_is_not_released(run, tmp_path) -> None:
    gated(run, "{drops = {quiz = 0.0}}")
    scored(run, "quiz.acc", 0.5, 0.4)
    for words in (
        ["export", str(run), "-o", str(tmp_path / "out")],
        ["push", str(run), "me/x", "--base", "o/b"],
    ):
        told = CliRunner().invoke(main, words)
        assert told.exit_code == 2
        assert "is not released: quiz is 10.0 points worse" in told.stderr
        assert "--unreleased" in told.stderr
    assert not (tmp_path / "out").exists()


def test_merge_refuses_a_run_that_is_not_released_or_says_so(run, finished, tmp_path) -> None:
    gated(run, "{drops = {quiz = 0.0}}")
    scored(run, "quiz.acc", 0.5, 0.4)
    words = ["merge", str(finished), str(run), "-o", str(tmp_path / "out")]
    for named in (run, run / "adapter"):
        told = CliRunner().invoke(main, ["merge", str(finished), str(named), "-o", str(tmp_path / "out")])
        assert told.exit_code == 2
        assert f"the adapter of {run} is not released: quiz is 10.0 points worse" in told.stderr
        assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(main, [*words, "--unreleased"])
    assert done.exit_code == 0, done.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"NOT RELEASED: {run.name}: quiz is 10.0 points worse" in card
    assert "exported all the same" in card


def test_the_card_says_that_it_was_exported_all_the_same(run, tmp_path) -> None:
    gated(run, "{drops = {quiz = 0.0}}")
    scored(run, "quiz.acc", 0.5, 0.4)
    export(run, tmp_path / "out", unreleased=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Release" in card
    assert "NOT RELEASED: quiz is 10.0 points worse" in card
    assert "exported all the same" in card
    assert "| quiz.acc | 10 | 50.0% [40.0%, 60.0%] | 40.0% [30.0%, 50.0%] |" in card
    (result,) = [each for each in ModelCard(card).data.eval_results if each.dataset_type == "quiz"]
    assert (result.metric_type, result.metric_value) == ("acc", 0.4)
    assert result.metric_args == {"interval_95": [pytest.approx(0.3), 0.5], "base": 0.5}


def test_a_released_adapter_is_exported_and_its_card_says_so(run, tmp_path) -> None:
    gated(run, "{drops = {quiz = 0.2}}")
    scored(run, "quiz.acc", 0.5, 0.4)
    export(run, tmp_path / "out")
    assert "Released: the adapter passes every condition" in (tmp_path / "out" / "README.md").read_text()


def test_a_gate_is_of_the_final_adapter_alone(run, tmp_path) -> None:
    gated(run, "{drops = {quiz = 0.2}}")
    scored(run, "quiz.acc", 0.5, 0.5)
    with pytest.raises(NotReleased, match="of the final adapter, not of that of round 1"):
        export(run, tmp_path / "out", round=1)


def test_terminal_and_report_say_it(run, tmp_path) -> None:
    from io import StringIO

    from shepherd.ui.terminal.scores_table import print_scores

    gated(run, "{drops = {quiz = 0.0}}")
    scored(run, "quiz.acc", 0.5, 0.4)
    stream = StringIO()
    print_scores(score_file.read(run), of_run(run), stream)
    assert "NOT RELEASED: quiz is 10.0 points worse" in stream.getvalue()
    assert "\n- " not in stream.getvalue()  # what repeats the table is for the report
    report = collect(run)
    assert report["release"]["released"] is False
    assert "<strong>Not released.</strong> quiz is 10.0 points worse" in html(report)
    gated(run, "{drops = {quiz = 0.5}}")
    assert "<strong>Released.</strong>" in html(collect(run))


def test_a_damaged_audit_is_named_and_impossible_gates_are_refused(run) -> None:
    gated(run, "{audit = true}")
    (run / "audit").mkdir()
    (run / "audit" / "audit.json").write_text("{")
    with pytest.raises(FolderError, match=r"audit\.json cannot be read"):
        of_run(run)
    for gate in ("{drops = {loss = -1.0}}", "{audit = 1}", "{membership = 0.2}", "{drop = {loss = 1.0}}"):
        with pytest.raises(SettingsError, match=r"evaluation\.gate"):
            gated(run, gate)


def test_the_runs_own_card_is_marked_once_and_follows_the_verdict(run) -> None:
    card = run / "adapter" / "README.md"
    before = card.read_text()
    settled(run)
    assert card.read_text() == before  # without a gate
    gated(run, "{drops = {quiz = 0.0}}")
    scored(run, "quiz.acc", 0.5, 0.4)
    for _ in range(2):
        settled(run)
    marked = card.read_text()
    assert marked.count("## Release") == 1
    assert "NOT RELEASED: quiz is 10.0 points worse" in marked
    gated(run, "{drops = {quiz = 0.2}}")
    settled(run)
    assert "NOT RELEASED" not in card.read_text()
    assert "Released: the adapter passes" in card.read_text()
    assert card.read_text().replace(marked_part(card.read_text()), "") == before


def marked_part(card: str) -> str:
    begin = card.index("## Release")
    return card[begin : card.index("## ", begin + 3)]


def test_the_adapters_file_has_one_name() -> None:
    assert score_file.WEIGHTS == files.WEIGHTS


# --- of real audits and runs: whose audit, whose loss


@pytest.fixture(scope="module")
def audited(llama_folder, tmp_path_factory) -> Path:
    """A folder with a run of two rounds and a gate, its audit, and an audit of its run file."""
    place = tmp_path_factory.mktemp("audited")
    write_audit(audit_folder(trained(asked(llama_folder, place))))
    (place / "run" / "audit").rename(place / "audit-of-the-folder")
    planted = Planted(count=20, copies=(1,))
    found = audit_run_file(asked(llama_folder, place), place / "run-audit", train=go, planted=planted)
    write_audit(found)
    (place / "run-audit").rename(place / "audit-of-the-file")
    return place


def asked(base: Path, place: Path, **tables: Any) -> RunSettings:
    usual = {
        "adapter": {"dropout": 0.0},
        "data": {"holdout": 0.4},
        "federation": {"rounds": 2},
        "evaluation": {"gate": {"audit": True}},
        **tables,
    }
    source = place / "rows.jsonl"
    return runs.settings(base, source if source.exists() else runs.written(source), place / "run", **usual)


def go(opening: Any) -> None:
    with opening() as run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)


def trained(settings: RunSettings) -> Path:
    go(lambda: open_run(settings))
    return Path(settings.output)


NO_AUDIT = ("there is no leak audit of this adapter: run `shepherd audit RUN_FOLDER`",)


def test_an_audit_of_the_folder_counts_for_the_adapter_that_it_attacked(
    audited, llama_folder, tmp_path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(audited / "run", run)
    assert of_run(run).reasons == NO_AUDIT
    shutil.copytree(audited / "audit-of-the-folder", run / "audit")
    assert of_run(run).released
    # another run with as many rounds, in the same place
    shutil.rmtree(run)
    trained(asked(llama_folder, tmp_path, tuning={"learning_rate": 0.02}))
    shutil.copytree(audited / "audit-of-the-folder", run / "audit")
    assert of_run(run).reasons == NO_AUDIT


def test_an_audit_of_the_run_file_counts_for_its_settings_and_its_data(
    audited, llama_folder, tmp_path
) -> None:
    """The folder of the audit outlives the run; one with other settings or data is not what was audited."""
    run = tmp_path / "run"
    shutil.copytree(audited / "audit-of-the-file", tmp_path / "run-audit")
    shutil.copytree(audited / "run", run)
    assert of_run(run).released
    shutil.rmtree(run)
    trained(asked(llama_folder, tmp_path, tuning={"learning_rate": 0.02}))
    assert of_run(run).reasons == NO_AUDIT
    shutil.rmtree(run)
    same = {"source": str(audited / "rows.jsonl"), "holdout": 0.4}
    trained(asked(llama_folder, tmp_path, data=same))
    assert of_run(run).released
    shutil.rmtree(run)
    before = (audited / "rows.jsonl").read_bytes()
    runs.written(audited / "rows.jsonl", runs.rows(seed=1))
    trained(asked(llama_folder, tmp_path, data=same))
    (audited / "rows.jsonl").write_bytes(before)
    assert of_run(run).reasons == NO_AUDIT


def test_a_claimed_epsilon_asks_for_an_audit_with_canaries(audited, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(audited / "run", run)
    shutil.copytree(audited / "audit-of-the-folder", run / "audit")
    row = {**read_rows(run)[-1], "round": 3, "example_privacy": {"epsilon": 1.0, "delta": 0.01}}
    with open(run / "rounds.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    (reason,) = of_run(run).reasons
    assert "claims an epsilon, which only an audit with canaries tests" in reason
    shutil.copytree(audited / "audit-of-the-file", tmp_path / "run-audit")
    assert of_run(run).released


def test_the_loss_is_that_of_the_adapter_that_is_given(llama_folder, tmp_path) -> None:
    """Two rounds, then an extension to four that is stopped after one of them."""
    run = trained(asked(llama_folder, tmp_path, evaluation={"gate": {"drops": {"loss": 0.0}}}))
    base = bases.load(llama_folder, rank=2, alpha=16)
    second = adapter_of(run, base)
    with resume(run, overrides=["federation.rounds=4"]) as longer:
        assert not (run / "adapter").exists()
        assert not folder.is_finished(run)
        assert adapter_of(run, base) == second  # of the checkpoint
        next(longer.rounds())
    losses = [row["heldout"]["loss"] for row in read_rows(run)]
    third = adapter_of(run, base)
    assert third != second
    export(run, tmp_path / "out", unreleased=True)
    assert files.read(tmp_path / "out", base) == third
    score = release._score(run, "loss")
    assert (score.base, score.run) == (losses[0], losses[3])
    # as an earlier version left it: the adapter of round two, and a log of three rounds
    shutil.copytree(tmp_path / "out", run / "adapter")
    (run / "finished.json").write_text('{"round": 2}')
    assert release._score(run, "loss").run == losses[2]
    go(lambda: resume(run))
    assert folder.is_finished(run)
    assert release._score(run, "loss").run == read_rows(run)[4]["heldout"]["loss"]


def test_a_run_that_ends_says_its_verdict_and_marks_its_card(llama_folder, tmp_path) -> None:
    runs.written(tmp_path / "rows.jsonl")
    (tmp_path / "run.toml").write_text(dump(asked(llama_folder, tmp_path)))
    told = CliRunner().invoke(main, ["run", str(tmp_path / "run.toml")])
    assert told.exit_code == 0, told.output
    assert f"NOT RELEASED: {NO_AUDIT[0]}." in told.output
    assert "NOT RELEASED: there is no leak audit" in (tmp_path / "run" / "adapter" / "README.md").read_text()
