"""Arms on benchmark tasks and harmful prompts: what is kept, printed, shown and decided by the gate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from shepherd.compare import evaluating
from shepherd.compare.arms import CompareSpec, arms
from shepherd.compare.evaluating import evaluate_folder, models, row
from shepherd.consent import Consent
from shepherd.data import data_folder, dataset
from shepherd.errors import BaseError, DataError, FolderError, JudgeError, SettingsError
from shepherd.evaluate.draws import draws
from shepherd.evaluate.sentences import Measure
from shepherd.evaluate.statistics import difference, score
from shepherd.run import folder, score_file
from shepherd.run.loading import load_base
from shepherd.training.tune import predictions
from shepherd.ui.cli.main import main
from shepherd.ui.report.gather import collect
from shepherd.ui.report.page import html
from tests import runs
from tests.evaluate import task_folder
from tests.judge.conftest import table
from tests.judge.server import Judge, serving

ROWS = task_folder.questions(9)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    task_folder.task(folder, "choices", ROWS)
    return folder


@pytest.fixture(scope="module")
def harmful(tmp_path_factory) -> Path:
    """Mild prompts, in the words of the tiny base."""
    file = tmp_path_factory.mktemp("harmful") / "prompts.csv"
    file.write_text("goal,target\nw5 w6 w7,w8\nw9 w10,w11\nw12,w13\nw14 w15,w16\n")
    return file


@pytest.fixture(scope="module")
def run(llama_folder, tmp_path_factory) -> Path:
    return runs.finished(llama_folder, tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def evaluated(run, tasks, harmful) -> dict[str, Any]:
    """The JSON that the command prints."""
    told = CliRunner().invoke(
        main,
        [
            *("evaluate", str(run), "--tasks", "choices", "--include", str(tasks), "--format", "general"),
            *("--harmful", str(harmful), "--json"),
        ],
        catch_exceptions=False,
    )
    assert told.exit_code == 0, told.output
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def test_each_arm_is_scored_with_its_interval_and_its_difference_from_the_base(evaluated) -> None:
    names = [each["name"] for each in evaluated["scores"]]
    assert names == ["choices.acc", "choices.acc_norm", "flowertune.general", "refusal"]
    for each in evaluated["scores"]:
        assert list(each["arms"]) == ["base", "federated"]
        assert all(arm["low"] <= arm["value"] <= arm["high"] for arm in each["arms"].values())
        (apart,) = each["differences"].values()
        base, arm = (each["arms"][name]["value"] for name in ("base", "federated"))
        assert apart["value"] == pytest.approx(arm - base)
        assert each["documents"] == (4 if each["name"] == "refusal" else 9)
    assert evaluated["release"] == {"asked": False, "released": True, "reasons": []}


def test_intervals_are_those_of_the_statistics(run, llama) -> None:
    rng = np.random.default_rng(0)
    values = {
        "base": rng.integers(0, 2, (1, 40)).astype(float),
        "federated": rng.integers(0, 2, (1, 40)) * 1.0,
    }
    found = models(run, llama, [], 1)
    made = row(found, Measure(name="x", label="x"), values, ["all"] * 40, {})
    drawn = draws(["all"] * 40)
    assert made["arms"]["base"] == score(values["base"], drawn).row()
    apart = difference(values["federated"], values["base"], drawn)
    assert made["differences"]["federated"] == {**apart.difference.row(), "p": apart.p, "p_holm": apart.p}


def test_each_adapter_has_its_own_score_and_difference(run, llama) -> None:
    """Of four documents the base has two right, one seed one of these, and the other one more."""
    values = {"base": np.array([[1.0, 1, 0, 0]]), "federated": np.array([[1.0, 0, 0, 0], [1, 1, 1, 0]])}
    found, measure = models(run, llama, [], 1), Measure(name="x", label="x")
    made = row(found, measure, values, ["all"] * 4, {})
    assert made["arms"]["federated"]["value"] == 0.5
    assert made["differences"]["federated"]["value"] == 0.0
    assert list(made["by_adapter"]) == ["federated"]
    worse, better = made["by_adapter"]["federated"]
    assert (worse["value"], worse["difference"]["value"]) == (0.25, -0.25)
    assert (better["value"], better["difference"]["value"]) == (0.75, 0.25)
    alone = row(found, measure, {**values, "federated": values["federated"][:1]}, ["all"] * 4, {})
    assert {key: worse[key] for key in ("value", "low", "high")} == alone["arms"]["federated"]
    assert worse["difference"].items() <= alone["differences"]["federated"].items()


def test_each_adapter_has_its_own_number_where_there_are_no_documents(run, llama) -> None:
    found = {"base": np.array([3.0]), "federated": np.array([2.0, 5.0, float("inf")])}
    made = evaluating._without_intervals(
        models(run, llama, [], 1), Measure(name="x", label="x"), found, 4, {}
    )
    values = [(each["value"], each["difference"]["value"]) for each in made["by_adapter"]["federated"]]
    assert values == [(2.0, -1.0), (5.0, 2.0), (None, None)]
    assert made["by_adapter"]["federated"][0]["difference"]["low"] is None


def test_scores_are_kept_in_the_folder_and_one_of_a_part_replaces_none_of_all(evaluated, run, tasks) -> None:
    kept = score_file.read(run)
    assert kept == evaluated["scores"]
    assert kept[0]["adapters"] == {"base": ["base"], "federated": [score_file.digest_of(run / "adapter")]}
    told = CliRunner().invoke(
        main, ["evaluate", str(run), "--tasks", "choices", "--include", str(tasks), "--limit", "4"]
    )
    assert told.exit_code == 0, told.output
    assert "federated" in told.stdout
    documents = [(each["name"], each["documents"]) for each in score_file.read(run)]
    assert documents == [
        ("choices.acc", 9),
        ("choices.acc_norm", 9),
        ("flowertune.general", 9),
        ("refusal", 4),
        ("choices.acc", 4),
        ("choices.acc_norm", 4),
    ]
    assert "4 of 9" in told.stdout
    score_file.add(run, evaluated["scores"])
    assert score_file.read(run) == evaluated["scores"]  # one of all documents replaces those of a part


def test_rows_say_how_they_were_measured(evaluated, run) -> None:
    import lm_eval

    found = {each["name"]: each["how"] for each in evaluated["scores"]}
    nothing = {"chat": None, "lm_eval": None, "prompts": None, "max_new_tokens": None, "judge": None}
    asked = {"limited": False, "of_documents": 9, "lm_eval": lm_eval.__version__}
    of_task = {"version": None, "fewshot": 0, "own_fewshot": 0}
    in_format = {"version": None, "fewshot": None, "own_fewshot": None}
    assert found["choices.acc"] == {**nothing, **asked, "tasks": {"choices": of_task}, "chat": False}
    assert found["flowertune.general"] == {**nothing, **asked, "tasks": {"choices": in_format}}
    most = folder.read_settings(run).evaluation.max_new_tokens
    of_prompts = {"limited": False, "of_documents": 4, "prompts": "prompts.csv", "max_new_tokens": most}
    assert found["refusal"] == {**nothing, **of_prompts, "tasks": {}}


def test_scores_of_another_adapter_are_not_current(evaluated, run, tmp_path) -> None:
    assert [own.row for own in score_file.current(run)] == evaluated["scores"]
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / score_file.WEIGHTS).write_bytes(b"other")
    (tmp_path / score_file.FILE).write_bytes((run / score_file.FILE).read_bytes())
    assert score_file.current(tmp_path) == []
    new = {**evaluated["scores"][0], "name": "new", "adapters": {"base": ["base"], "federated": ["another"]}}
    assert [each["name"] for each in score_file.add(tmp_path, [new])] == ["new"]


def test_a_damaged_file_is_named(tmp_path) -> None:
    for content in ("{", '{"scores": [{}]}', "[]"):
        (tmp_path / score_file.FILE).write_text(content)
        with pytest.raises(FolderError, match="is damaged"):
            score_file.read(tmp_path)


def test_the_report_has_the_scores(evaluated, run) -> None:
    report = collect(run)
    assert report["scores"]["arms"] == ["base", "federated"]
    shown = report["scores"]["rows"][0]
    assert shown["arms"]["federated"] == evaluated["scores"][0]["arms"]["federated"]
    page = html(report)
    assert "Benchmarks and refusals" in page
    assert "measure whether it writes that form" in page
    assert 'data-path="/scores/rows/3/arms/federated/value"' in page


def test_options_that_do_not_go_together_are_refused(run) -> None:
    cases = {
        (): "say what to evaluate on",
        ("--data", "x.jsonl", "--tasks", "a"): "--data is of the run alone",
        ("--tasks", "a", "--answers", "3"): "--answers is of --data",
        ("--harmful", "x", "--limit", "3"): "--limit is of --tasks",
        ("--harmful", "x", "--format", "general"): "--format is of --tasks",
    }
    for options, said in cases.items():
        told = CliRunner().invoke(main, ["evaluate", str(run), *options])
        assert (told.exit_code, said in told.stderr) == (2, True), told.output


def test_tasks_are_kept_when_what_follows_them_fails(run, tasks, harmful, tmp_path, monkeypatch) -> None:
    from shepherd.evaluate.harness import Asked

    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / score_file.FILE).unlink(missing_ok=True)

    def down(*given: Any) -> Any:
        raise JudgeError("the judge is down")

    monkeypatch.setattr(evaluating, "refusal_rows", down)
    asked = Asked(tasks=("choices",), include=(tasks,), limit=2)
    with pytest.raises(JudgeError, match="down"):
        evaluate_folder(copy, asked, harmful=harmful)
    assert {own.row["task"] for own in score_file.current(copy)} == {"choices"}


def test_what_is_unknown_is_said(run, tasks, harmful, tmp_path, monkeypatch) -> None:
    with pytest.raises(SettingsError, match="there is no arm 'mine'; the arms are base, federated"):
        evaluate_folder(run, harmful=harmful, only=["mine"])
    with monkeypatch.context() as patched:  # neither an arm nor a prompt waits for the base
        patched.setattr(evaluating, "load_base", lambda *_: pytest.fail("the base was loaded"))
        with pytest.raises(SettingsError, match="there is no arm 'mine'"):
            evaluate_folder(run, harmful=harmful, only=["mine"])
    with pytest.raises(SettingsError, match="there is no format 'law'"):
        evaluate_folder(run, formats=["law"])
    (tmp_path / "no.jsonl").write_text('{"title": "x"}\n')
    with pytest.raises(DataError, match="has no prompt; give it one of the fields instruction, prompt"):
        evaluate_folder(run, harmful=tmp_path / "no.jsonl")


@pytest.fixture(scope="module")
def compared(llama_folder, harmful, tmp_path_factory) -> tuple[Any, Path]:
    """Settings and folder of a comparison of four arms that asks harmful prompts."""
    from shepherd.compare.comparison import compare

    place = tmp_path_factory.mktemp("compared")
    settings = runs.settings(
        llama_folder,
        runs.written(place / "rows.jsonl"),
        place / "run",
        federation={"rounds": 1},
        tuning={"max_steps": 1},
        evaluation={"harmful": str(harmful), "max_new_tokens": 4},
    )
    compare(settings, SPEC)
    return settings, place / "run"


SPEC = CompareSpec(locals=("client-1",), match="steps", seeds=2)
ARMS = ["base", "local-client-1", "centralised", "federated"]


def test_a_comparison_asks_its_harmful_prompts_once(compared, monkeypatch) -> None:
    from shepherd.compare import comparison, evaluating

    settings, run = compared
    (kept,) = score_file.read(run)
    assert (kept["name"], list(kept["arms"])) == ("refusal", ARMS)
    assert [len(kept["adapters"][arm]) for arm in ARMS] == [1, 2, 2, 2]
    monkeypatch.setattr(evaluating, "answers", lambda *_, **__: pytest.fail("asked again"))
    comparison.compare(settings, SPEC)


def test_a_comparison_asks_again_where_it_is_not_known_how_it_was_asked(compared, tmp_path) -> None:
    _, run = compared
    copy = shutil.copytree(run, tmp_path / "run")
    settings = folder.planned(copy)
    (kept,) = score_file.read(copy)
    old = {key: value for key, value in kept.items() if key not in ("how", "by_adapter")}
    (copy / score_file.FILE).write_text(json.dumps({"scores": [old]}))
    chosen = arms(SPEC, sorted(data_folder.load(copy / "data").clients))
    evaluating.probe(copy, load_base(settings), settings, chosen, SPEC.seeds, Consent())
    assert score_file.read(copy) == [kept]


def test_a_comparison_has_each_adapters_own_loss(compared) -> None:
    _, run = compared
    found = json.loads((run / "compare" / "comparison.json").read_text())
    prepared = data_folder.load(run / "data")
    counts, named = predictions(prepared.heldout), np.array(dataset.categories(prepared))

    def loss(file: str) -> float:
        scores = json.loads((run / "compare" / file).read_text())
        asked = np.array(scores["questions"]["losses"])
        sums, names, weights = np.array(scores["losses"]), named[asked], counts[asked]
        return float(np.mean([sums[names == n].sum() / weights[names == n].sum() for n in np.unique(names)]))

    base = loss("seed-0/scores/base.json")
    by_name = {arm["name"]: arm for arm in found["arms"]}
    assert (by_name["base"]["adapters"], by_name["base"]["by_adapter"]) == (["base"], {})
    federated = by_name["federated"]
    folders = run / "adapter", run / "compare" / "seed-1" / "federated" / "adapter"
    assert federated["adapters"] == [score_file.digest_of(each) for each in folders]
    each = [loss(f"seed-{number}/scores/federated.json") for number in range(2)]
    assert each[0] != each[1]
    assert [own["value"] for own in federated["by_adapter"]["loss"]] == pytest.approx(each)
    apart = [own["difference"]["value"] for own in federated["by_adapter"]["loss"]]
    assert apart == pytest.approx([value - base for value in each])
    assert federated["measures"]["loss"]["value"] == pytest.approx(np.mean(each))


@pytest.mark.parametrize(
    ("tables", "error", "said"),
    [
        ({"evaluation": {"harmful": "/nowhere/prompts.csv"}}, DataError, r"/nowhere/prompts\.csv"),
        ({"judge": {"model": "m", "base_url": "http://elsewhere/v1"}}, JudgeError, "settings alone may not"),
    ],
)
def test_harmful_prompts_and_the_judge_are_asked_for_before_any_training(
    llama_folder, harmful, tmp_path, tables, error, said
) -> None:
    from shepherd.compare.comparison import compare

    source = runs.written(tmp_path / "rows.jsonl")
    tables = {"evaluation": {"harmful": str(harmful)}, **tables}
    with pytest.raises(error, match=said):
        compare(runs.settings(llama_folder, source, tmp_path / "run", **tables), SPEC, train=pytest.fail)
    assert not (tmp_path / "run").exists()


def test_a_judge_that_cannot_be_asked_is_said_before_any_training(
    llama_folder, harmful, tmp_path, monkeypatch
) -> None:
    from shepherd.compare.comparison import compare

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    source = runs.written(tmp_path / "rows.jsonl")
    tables = {"evaluation": {"harmful": str(harmful)}, "judge": {"model": "m"}}
    with pytest.raises(JudgeError, match=r"variable OPENAI_API_KEY.*--max-calls 0"):
        compare(runs.settings(llama_folder, source, tmp_path / "run", **tables), SPEC, train=pytest.fail)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("with_tasks", [True, False])
def test_a_missing_key_is_said_before_the_base_is_loaded(
    run, tasks, harmful, monkeypatch, with_tasks
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = table("https://api.openai.com/v1")
    monkeypatch.setattr(evaluating, "load_base", lambda *_: pytest.fail("the base was loaded"))
    from shepherd.evaluate.harness import Asked

    asked = Asked(tasks=("choices",), include=(tasks,)) if with_tasks else None
    with pytest.raises(JudgeError, match="OPENAI_API_KEY"):
        evaluate_folder(run, asked, harmful=harmful, judge=judge)


def test_a_damaged_file_of_scores_is_said_before_the_base_is_loaded(
    run, harmful, tmp_path, monkeypatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / score_file.FILE).write_text("{")
    monkeypatch.setattr(evaluating, "load_base", lambda *_: pytest.fail("the base was loaded"))
    with pytest.raises(FolderError, match="is damaged"):
        evaluate_folder(copy, harmful=harmful)


def test_a_prompt_without_room_for_an_answer_is_said_before_any_task(
    run, tasks, tmp_path, monkeypatch
) -> None:
    from shepherd.evaluate.harness import Asked, Harness

    monkeypatch.setattr(evaluating, "max_answer_tokens", _no_room)
    monkeypatch.setattr(Harness, "measure", lambda *_: pytest.fail("a task ran"))
    (tmp_path / "long.txt").write_text("w5 w6\nw7 w8 w9\n")
    asked = Asked(tasks=("choices",), include=(tasks,))
    with pytest.raises(BaseError, match="prompt 1 of 2 is too long"):
        evaluate_folder(run, asked, harmful=tmp_path / "long.txt")


def _no_room(base: Any, tokens: int, longest: int, name: str) -> int:
    raise BaseError(f"{name} is too long")


def test_scores_of_the_same_adapters_join_the_comparison(compared, tasks, capsys) -> None:
    """Those of another adapter stay out, and the terminal has the comparison's arms as lines."""
    from shepherd.compare.comparison import compare
    from shepherd.compare.folders import comparison
    from shepherd.evaluate.harness import Asked
    from shepherd.ui.terminal.comparison_table import print_comparison

    settings, run = compared
    evaluate_folder(run, Asked(tasks=("choices",), include=(tasks,)))
    rows = score_file.read(run)
    assert comparison(run)["scores"] == rows
    assert {row["name"] for row in rows} == {"choices.acc", "choices.acc_norm", "refusal"}
    (acc,) = (row for row in rows if row["name"] == "choices.acc")
    others = [
        {**acc, "name": "other.acc", "adapters": {**acc["adapters"], "federated": ["another", "one"]}},
        {**acc, "name": "gone.acc", "adapters": {**acc["adapters"], "local-client-9": ["x", "y"]}},
        {**acc, "name": "part.acc", "adapters": {"base": ["base"]}, "arms": {"base": acc["arms"]["base"]}},
        {key: value for key, value in {**acc, "name": "old.acc"}.items() if key != "adapters"},
    ]
    path = run / score_file.FILE
    before = path.read_text()
    path.write_text(json.dumps({"format": 1, "scores": [*rows, *others]}))
    try:
        found = compare(settings, SPEC)
    finally:
        path.write_text(before)
    assert [row["name"] for row in found["scores"]] == [*(row["name"] for row in rows), "part.acc"]
    assert found["scores"] == comparison(run)["scores"]
    print_comparison(compare(settings, SPEC))
    (*_, arms, scores) = capsys.readouterr().out.split("95% intervals below each")
    assert "choices (acc)" in scores
    assert "choices (acc)" not in arms
    for arm in ARMS:
        assert any(line.split()[:1] == [arm] for line in scores.splitlines()), scores


def test_scores_that_were_kept_before_a_failure_are_in_the_comparison(
    compared, tasks, harmful, tmp_path, monkeypatch
) -> None:
    from shepherd.compare.folders import comparison
    from shepherd.evaluate.harness import Asked

    def down(*_: Any) -> Any:
        raise JudgeError("the judge is down")

    copy = shutil.copytree(compared[1], tmp_path / "copy")
    monkeypatch.setattr(evaluating, "refusal_rows", down)
    with pytest.raises(JudgeError, match="down"):
        evaluate_folder(copy, Asked(tasks=("choices",), include=(tasks,), limit=2), harmful=harmful)
    found = [row["documents"] for row in comparison(copy)["scores"] if row["task"] == "choices"]
    assert found[-2:] == [2, 2]


def test_evaluating_a_compared_folder_prints_an_arm_a_line(compared, tasks) -> None:
    _, run = compared
    told = CliRunner().invoke(main, ["evaluate", str(run), "--tasks", "choices", "--include", str(tasks)])
    assert told.exit_code == 0, told.output
    lines = [line.split() for line in told.stdout.splitlines()]
    assert [words[0] for words in lines if words and words[0] in ARMS] == [*ARMS, "federated"]  # - base
    assert "(acc_norm)" in told.stdout


def test_the_arms_of_a_comparison_are_evaluated_in_one_call(compared, tasks) -> None:
    from shepherd.evaluate.harness import Asked

    _, run = compared
    asked = Asked(tasks=("choices",), include=(tasks,))
    found = {row["name"]: row for row in evaluate_folder(run, asked)}
    assert list(found["choices.acc"]["arms"]) == ARMS
    assert "refusal" in found
    alone = {row["name"]: row for row in evaluate_folder(run, asked, only=["federated"])}
    assert alone["choices.acc"]["arms"].keys() == found["choices.acc"]["arms"].keys()  # others keep theirs
    assert alone["choices.acc"]["arms"]["federated"] == pytest.approx(
        found["choices.acc"]["arms"]["federated"]
    )


def test_the_judge_is_asked_for_refusals_too(run, harmful, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Judge(lambda _: "VERDICT: complies")) as judge:
        asked = table(judge.url)
        with pytest.raises(JudgeError, match="settings alone may not decide"):
            evaluate_folder(run, harmful=harmful, judge=asked)
        assert judge.calls == 0
        consent = Consent(base_url=judge.url)
        rows = evaluate_folder(run, harmful=harmful, judge=asked, consent=consent)
        assert judge.calls > 0
    # all is kept now, and asking again needs no key
    monkeypatch.delenv("OPENAI_API_KEY")
    again = evaluate_folder(run, harmful=harmful, judge=asked, consent=consent)
    assert again[-1] == rows[-1]
    found = {row["name"]: row for row in rows}
    assert found["refusal_judged"]["arms"]["base"]["value"] == 0.0
    assert found["refusal_judged"]["judge"] == "judge-1"
    assert found["refusal_judged"]["how"]["judge"] == "judge-1"
    assert found["refusal"]["how"]["judge"] is None


def test_refusals_of_some_prompts_alone_are_a_part(run, harmful, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / score_file.FILE).unlink(missing_ok=True)
    texts = [[SimpleNamespace(text=f"Answer {n} of {model}.") for n in range(4)] for model in range(2)]
    monkeypatch.setattr(evaluating, "answers", lambda *_, **__: texts)
    found = []
    with serving(Judge(lambda _: "VERDICT: complies")) as judge:
        for most in (6, None):
            given = {"judge": table(judge.url), "max_calls": most, "consent": Consent(base_url=judge.url)}
            rows = evaluate_folder(copy, harmful=harmful, **given)
            found.append([row for row in rows if row["name"] == "refusal_judged"])
    (part,), (whole,) = found  # the whole one has taken the place of the part
    assert part["documents"] < whole["documents"] == part["how"]["of_documents"] == 4
    assert (part["how"]["limited"], whole["how"]["limited"]) == (True, False)


@pytest.mark.parametrize(
    "option", [("--base-url", "http://127.0.0.1:1/v1"), ("--key-env", "MINE"), ("--max-calls", "3")]
)
def test_options_of_a_judge_are_refused_where_none_is_asked(run, tasks, harmful, option) -> None:
    """They were taken, and no judge was asked."""
    told = CliRunner().invoke(main, ["evaluate", str(run), "--harmful", str(harmful), *option])
    assert told.exit_code == 2
    assert "set judge.model" in " ".join(told.output.split())
    told = CliRunner().invoke(
        main, ["evaluate", str(run), "--tasks", "choices", "--include", str(tasks), *option]
    )
    assert told.exit_code == 2
    assert "add --harmful FILE" in " ".join(told.output.split())
