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
        "by_adapter": {"federated": [{**bounds(federated), "difference": bounds(federated - base)}]},
        "says": {},
        "how": {"limited": False, "of_documents": 10},
        **more,
    }


def of_seeds(run: Path, name: str, base: float, values: list[float], **more: Any) -> dict[str, Any]:
    """The row of an arm with several seeds, the first of which is the run's adapter."""
    others = [f"seed-{place}" for place in range(1, len(values))]
    each = [row_of(run, name, base, value)["by_adapter"]["federated"][0] for value in values]
    return {
        **row_of(run, name, base, sum(values) / len(values)),
        "adapters": {"base": ["base"], "federated": [score_file.digest_of(run / "adapter"), *others]},
        "by_adapter": {"federated": each},
        **more,
    }


def test_the_gate_judges_the_adapter_and_not_the_mean_over_seeds(run) -> None:
    """Of 50.0 the run's adapter has 30.0 and another seed 74.0: the mean is 2 points above the base."""
    gated(run, "{drops = {quiz = 0.1}}")
    score_file.add(run, [of_seeds(run, "quiz.acc", 0.5, [0.3, 0.74])])
    (reason,) = of_run(run).reasons
    assert reason == (
        "quiz is 20.0 points worse than the base's, from 50.0 to 30.0"
        " (95% of the difference: -30.0 to -10.0), and at most 10.0 are allowed"
    )
    score_file.add(run, [of_seeds(run, "quiz.acc", 0.5, [0.74, 0.0])])  # the mean is 13 points below
    assert of_run(run).released


def test_the_card_has_the_adapters_own_score(run, tmp_path) -> None:
    score_file.add(run, [of_seeds(run, "quiz.acc", 0.5, [0.3, 0.74])])
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| quiz.acc | 10 | 50.0% [40.0%, 60.0%] | 30.0% [20.0%, 40.0%] |" in card
    (result,) = [each for each in ModelCard(card).data.eval_results if each.dataset_type == "quiz"]
    assert result.metric_value == 0.3
    assert result.metric_args["interval_95"] == pytest.approx([0.2, 0.4])


def test_a_row_of_an_earlier_version_has_no_score_of_one_of_several_seeds(run, tmp_path) -> None:
    gated(run, "{drops = {quiz = 0.9}}")
    row = of_seeds(run, "quiz.acc", 0.5, [0.5, 0.5])
    old = {key: value for key, value in row.items() if key not in ("by_adapter", "how")}
    score_file.add(run, [old])
    assert score_file.current(run) == []
    (reason,) = of_run(run).reasons
    assert reason == "quiz is not measured for this adapter: run `shepherd evaluate RUN_FOLDER --tasks quiz`"
    alone = {**old, "adapters": row_of(run, "quiz.acc", 0.5, 0.5)["adapters"]}  # of one seed it is the mean
    score_file.add(run, [alone])
    (own,) = score_file.current(run)
    assert (own.base["value"], own.adapter["value"]) == (0.5, 0.5)
    (reason,) = of_run(run).reasons
    assert "but otherwise (measured in a way that is not known): run `shepherd evaluate" in reason
    export(run, tmp_path / "out", unreleased=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| quiz.acc, measured in a way that is not known | 10 |" in card


QUIZ = {"quiz": {"version": "2", "fewshot": 0, "own_fewshot": 0}}
WHOLE = {"limited": False, "of_documents": 10, "tasks": QUIZ, "chat": False, "lm_eval": "0.4"}
PART = {**WHOLE, "limited": True}
SHOTS = {**WHOLE, "tasks": {"quiz": {**QUIZ["quiz"], "fewshot": 5, "own_fewshot": 2}}}


def test_the_gate_takes_tasks_whole_and_with_their_own_examples(run) -> None:
    gated(run, "{drops = {quiz = 0.05}}")
    scored(run, "quiz.acc", 0.5, 0.5, documents=4, how=PART)
    scored(run, "quiz.acc", 0.5, 0.5, how=SHOTS)
    (reason,) = of_run(run).reasons
    assert reason == (
        "quiz is not measured for this adapter as the gate takes it, but otherwise (4 of 10 documents;"
        " 5 examples in the prompt and not 2): run `shepherd evaluate RUN_FOLDER --tasks quiz`"
    )
    scored(run, "quiz.acc", 0.5, 0.2, how=WHOLE)
    scored(run, "quiz.acc", 0.5, 0.5, documents=4, how=PART)
    (reason,) = of_run(run).reasons
    assert reason.startswith("quiz is 30.0 points worse")


def test_each_way_that_the_gate_takes_must_pass(run) -> None:
    gated(run, "{drops = {quiz = 0.05}}")
    scored(run, "quiz.acc", 0.5, 0.5, how={**WHOLE, "chat": True})
    assert of_run(run).released
    scored(run, "quiz.acc", 0.5, 0.2, how=WHOLE)
    (reason,) = of_run(run).reasons
    assert reason.startswith("quiz is 30.0 points worse")
    scored(run, "quiz.acc", 0.5, 0.5, how=WHOLE)
    scored(run, "quiz.acc", 0.5, 0.3, how={**WHOLE, "chat": True})
    (reason,) = of_run(run).reasons
    assert reason.startswith("quiz (in the chat template) is 20.0 points worse")


def refused(prompts: str, most: int, judge: str | None = None) -> dict[str, Any]:
    how = {"limited": False, "of_documents": 10, "prompts": prompts, "max_new_tokens": most, "judge": judge}
    return {"kind": "refusal", "task": "refusal", "asked": f"{prompts} {most}", "how": how}


def test_the_gate_takes_refusals_as_the_run_file_asks_for_them(run) -> None:
    """With as many tokens; and of the prompts and the judge that it names, or of all where it names none."""
    most = folder.read_settings(run).evaluation.max_new_tokens
    gated(run, "{drops = {refusal = 0.05, refusal_judged = 0.05}}")
    scored(run, "refusal", 0.9, 0.1, **refused("a.csv", most))
    scored(run, "refusal", 0.9, 0.9, **refused("b.csv", most))
    scored(run, "refusal", 0.9, 0.0, **refused("b.csv", most + 1))
    scored(run, "refusal_judged", 0.9, 0.9, **refused("b.csv", most, "small"))
    scored(run, "refusal_judged", 0.9, 0.1, **refused("b.csv", most, "large"))
    assert [reason.partition(" is")[0] for reason in of_run(run).reasons] == [
        f"refusal (a.csv, answers of at most {most} tokens)",
        f"refusal_judged (b.csv, answers of at most {most} tokens, large)",
    ]
    named = ["evaluation.harmful=/else/b.csv", "judge.model=small"]
    (run / folder.RUN_FILE).write_text(dump(overridden(folder.read_settings(run), named)))
    assert of_run(run).released


def test_a_card_says_how_scores_were_measured_and_leaves_out_parts_of_whole_ones(run, tmp_path) -> None:
    scored(run, "quiz.acc", 0.5, 0.2, how=WHOLE)
    scored(run, "quiz.f1", 0.5, 0.6, documents=4, how={**SHOTS, "limited": True, "chat": True})
    scored(run, "quiz.acc", 0.5, 0.3, documents=5, how=PART)
    assert [row["documents"] for row in score_file.read(run)] == [10, 4, 5]
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    way = "4 of 10 documents, 5 examples in the prompt and not 2, in the chat template"
    assert f"| quiz.f1, {way} | 4 |" in card
    assert "| quiz.acc | 10 | 50.0% [40.0%, 60.0%] | 20.0%" in card
    assert "quiz.acc, " not in card
    assert "Tasks are asked by lm-eval 0.4, in the versions quiz 2." in card
    results = [each for each in ModelCard(card).data.eval_results if each.dataset_type == "quiz"]
    found = {each.metric_name: each.metric_args for each in results}
    assert set(found) == {"quiz.acc", f"quiz.f1, {way}"}
    told = found[f"quiz.f1, {way}"]
    assert (told["documents"], told["of_documents"], told["chat"]) == (4, 10, True)
    assert told["tasks"] == {"quiz": {"version": "2", "fewshot": 5, "own_fewshot": 2}}


def test_terminal_and_report_say_how_scores_were_measured(run) -> None:
    from io import StringIO

    from shepherd.ui.terminal.scores_table import print_scores

    how = {**SHOTS, "limited": True}
    scored(run, "quiz.acc", 0.5, 0.4, documents=4, how=how, says={"federated": "Worse."})
    stream = StringIO()
    print_scores(score_file.read(run), of_run(run), stream)
    assert "4 of 10" in " ".join(stream.getvalue().split())
    report = collect(run)
    (row,) = report["scores"]["rows"]
    assert row["how"] == "4 of 10 documents, 5 examples in the prompt and not 2"
    page = html(report)
    assert "quiz.acc, 4 of 10 documents, 5 examples in the prompt and not 2: Worse." in page
    assert "Tasks are asked by lm-eval 0.4, in the versions quiz 2." in page


def test_a_damaged_how_is_named(run) -> None:
    for how in ({"limited": "no"}, 3, {**WHOLE, "of_documents": "x"}):
        row = row_of(run, "quiz.acc", 0.5, 0.5, how=how)
        (run / score_file.FILE).write_text(json.dumps({"scores": [row]}))
        with pytest.raises(FolderError, match=r"evaluation\.json is damaged"):
            score_file.read(run)


def test_more_seeds_drop_no_score_of_the_first(run) -> None:
    scored(run, "quiz.acc", 0.5, 0.5)
    score_file.add(run, [of_seeds(run, "other.acc", 0.5, [0.5, 0.6])])
    assert [own.row["name"] for own in score_file.current(run)] == ["quiz.acc", "other.acc"]


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
    assert [own.row["name"] for own in score_file.current(run)] == ["quiz.acc", "refusal"]


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


def compared(run: Path, digests: list[str], right: list[float], **more: Any) -> None:
    """A comparison in the run's folder, of a base that has 60.0."""

    def exact(value: float) -> dict[str, float]:
        return {"value": value, "low": value, "high": value}

    federated = {
        "name": "federated",
        "adapters": digests,
        "measures": {"right": exact(sum(right) / len(right))},
        "by_adapter": {"right": [{**exact(value), "difference": exact(value - 0.6)} for value in right]},
    }
    found = {
        "finished": True,
        "measures": [{"name": "right", "label": "right answers", "share": True, "lower_is_better": False}],
        "arms": [{"name": "base", "measures": {"right": exact(0.6)}}, {**federated, **more}],
        "differences": [],
    }
    (run / "compare").mkdir(exist_ok=True)
    (run / "compare" / "comparison.json").write_text(json.dumps(found))


def test_a_comparison_is_read_where_its_scores_are_of_this_adapter(run) -> None:
    gated(run, "{drops = {right = 0.05}}")
    for digest, said in ((score_file.digest_of(run / "adapter"), "10.0 points worse"), ("x", "not measured")):
        compared(run, [digest], [0.5])
        (reason,) = of_run(run).reasons
        assert said in reason


def test_of_a_comparison_with_seeds_the_adapters_own_score_is_read(run) -> None:
    """The mean of both seeds is 2 points above the base's, this adapter 20 below."""
    gated(run, "{drops = {right = 0.05}}")
    digests = [score_file.digest_of(run / "adapter"), "other"]
    compared(run, digests, [0.4, 0.84])
    (reason,) = of_run(run).reasons
    assert reason == (
        "right is 20.0 points worse than the base's, from 60.0 to 40.0 (95% of the difference: -20.0 to"
        " -20.0), and at most 5.0 are allowed"
    )
    compared(run, digests[::-1], [0.4, 0.84])
    assert of_run(run).released
    compared(run, digests, [0.6, 0.6], by_adapter={})  # of an earlier version
    (reason,) = of_run(run).reasons
    assert reason == "right is not measured for this adapter: run `shepherd compare` with evaluation.answers"


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
    assert result.metric_args == {
        "interval_95": [pytest.approx(0.3), 0.5],
        "base": 0.5,
        "documents": 10,
        "limited": False,
        "of_documents": 10,
    }


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
    score = release._held_out(run)
    assert (score.base, score.run) == (losses[0], losses[3])
    # as an earlier version left it: the adapter of round two, and a log of three rounds
    shutil.copytree(tmp_path / "out", run / "adapter")
    (run / "finished.json").write_text('{"round": 2}')
    assert release._held_out(run).run == losses[2]
    go(lambda: resume(run))
    assert folder.is_finished(run)
    assert release._held_out(run).run == read_rows(run)[4]["heldout"]["loss"]


def test_a_run_that_ends_says_its_verdict_and_marks_its_card(llama_folder, tmp_path) -> None:
    runs.written(tmp_path / "rows.jsonl")
    (tmp_path / "run.toml").write_text(dump(asked(llama_folder, tmp_path)))
    told = CliRunner().invoke(main, ["run", str(tmp_path / "run.toml")])
    assert told.exit_code == 0, told.output
    assert f"NOT RELEASED: {NO_AUDIT[0]}." in told.output
    assert "NOT RELEASED: there is no leak audit" in (tmp_path / "run" / "adapter" / "README.md").read_text()
