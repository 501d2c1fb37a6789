"""lm-eval itself on local tasks, against its own model for transformers on the same base and PEFT adapter."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from tests.evaluate import task_folder
from tests.model import bases

from shepherd.consent import Consent
from shepherd.errors import DataError
from shepherd.evaluate import harness
from shepherd.evaluate.harness import Asked, opened
from shepherd.model import files

ROWS = task_folder.questions(14)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four tasks: choices, choices after examples, text to write, and running text."""
    place = tmp_path_factory.mktemp("tasks")
    task_folder.task(place, "choices", ROWS)
    shots = [{**row, "answer": 0} for row in task_folder.questions(5, seed=3)]
    task_folder.task(
        place,
        "shots",
        ROWS[:8],
        num_fewshot=2,
        fewshot_config={"sampler": "default", "samples": shots},
    )
    task_folder.task(
        place,
        "write",
        ROWS[:6],
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[answer]}}",
        generation_kwargs={"until": ["w7"], "max_gen_toks": 6},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    task_folder.task(
        place,
        "text",
        [{**row, "text": " ".join([row["question"], *row["choices"]])} for row in ROWS[:5]],
        output_type="loglikelihood_rolling",
        doc_to_choice=None,
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        ],
    )
    return place


@pytest.fixture(scope="module")
def adapter(llama) -> Any:
    return bases.random_adapter(llama, 5)


@pytest.fixture(scope="module")
def measured(llama, adapter, folder) -> dict[tuple[str, str], Any]:
    asked = Asked(tasks=("choices", "shots", "write", "text"), include=(folder,))
    found = opened(asked).measure(llama, [None, adapter], micro_batch=256)
    return {(each.task, each.metric): each for each in found}


@pytest.fixture(scope="module")
def reference(llama, llama_folder, adapter, folder, tmp_path_factory) -> list[dict[str, Any]]:
    """What lm-eval's own model for transformers gives, on the base and on the base in PEFT."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    place = tmp_path_factory.mktemp("peft")
    files.write(place, adapter, llama)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where lm-eval looks for data files
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        for tuned in (False, True):
            model = AutoModelForCausalLM.from_pretrained(llama_folder)
            model = PeftModel.from_pretrained(model, place) if tuned else model
            model.eval()
            found.append(
                simple_evaluate(
                    HFLM(pretrained=model, tokenizer=llama.tokenizer, batch_size=4, device="cpu"),
                    tasks=["choices", "shots", "write", "text"],
                    task_manager=manager,
                    bootstrap_iters=0,
                )
            )
    return found


def test_scores_are_those_of_lm_evals_own_model_with_peft(measured, reference) -> None:
    for (task, metric), each in measured.items():
        theirs = [found["results"][task][f"{metric},none"] for found in reference]
        assert each.means == pytest.approx(theirs, rel=1e-4), (task, metric)
    assert {key[0] for key in measured} == {"choices", "shots", "write", "text"}
    assert measured["choices", "acc"].means[0] != measured["choices", "acc"].means[1]
    assert measured["text", "bits_per_byte"].means[0] != measured["text", "bits_per_byte"].means[1]


def test_each_documents_value_is_theirs(measured, reference) -> None:
    for metric in ("acc", "acc_norm"):
        theirs = [[row[metric] for row in found["samples"]["choices"]] for found in reference]
        np.testing.assert_array_equal(measured["choices", metric].values, theirs)
        assert measured["choices", metric].values.mean(1) == pytest.approx(measured["choices", metric].means)
    text = measured["text", "bits_per_byte"]
    assert text.weights is not None
    weighted = text.values @ text.weights / text.weights.sum()
    assert weighted == pytest.approx(text.means)
    assert measured["text", "word_perplexity"].values.shape == (2, 0)  # no mean over documents


def test_likelihoods_are_theirs(llama, adapter, folder, reference, monkeypatch) -> None:
    """Not only which choice wins: the log-likelihood of each."""
    harness = opened(Asked(tasks=("choices",), include=(folder,)))
    from shepherd.evaluate import harness as module

    kept = []
    real = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda **given: kept.append(real(**given)) or kept[-1])
    harness.measure(llama, [None, adapter], micro_batch=64)
    for mine, theirs in zip(kept, reference, strict=True):
        pairs = [
            [[each[0][0] for each in row["resps"]] for row in found["samples"]["choices"]]
            for found in (mine, theirs)
        ]
        np.testing.assert_allclose(*pairs, rtol=1e-4, atol=1e-4)


def test_written_answers_are_theirs(llama, adapter, folder, reference, monkeypatch) -> None:
    from shepherd.evaluate import harness as module

    kept = []
    real = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda **given: kept.append(real(**given)) or kept[-1])
    opened(Asked(tasks=("write",), include=(folder,))).measure(llama, [None, adapter], micro_batch=64)
    for mine, theirs in zip(kept, reference, strict=True):
        texts = [[row["resps"] for row in found["samples"]["write"]] for found in (mine, theirs)]
        assert texts[0] == texts[1]


def test_one_pass_scores_all_models(llama, adapter, folder, monkeypatch) -> None:
    from shepherd.evaluate import harness as module

    calls = []
    real = module.continuations
    monkeypatch.setattr(
        module,
        "continuations",
        lambda base, adapters, data, **options: (
            calls.append((len(adapters), len(data))) or real(base, adapters, data, **options)
        ),
    )
    asked = Asked(tasks=("shots",), include=(folder,))
    opened(asked).measure(llama, [None, adapter, bases.random_adapter(llama, 6)], micro_batch=256)
    assert calls == [(3, 24)]  # 8 questions of 3 choices, with the same examples for each model


def test_a_group_is_the_mean_of_its_tasks(llama, adapter, folder, measured) -> None:
    (folder / "both.yaml").write_text("group: both\ntask: [choices, shots]\n")
    (found, *_) = opened(Asked(tasks=("both",), include=(folder,))).measure(llama, [None, adapter], 256)
    apart = [measured[name, "acc"].means for name in ("choices", "shots")]
    assert found.task == "both"
    assert found.means == pytest.approx(np.mean(apart, axis=0))
    assert found.strata == ("choices",) * 14 + ("shots",) * 8


def test_a_group_without_a_common_metric_is_named(folder) -> None:
    (folder / "mix.yaml").write_text("group: mix\ntask: [choices, write]\n")
    with pytest.raises(DataError, match="group mix has no metric that all its tasks have"):
        opened(Asked(tasks=("mix",), include=(folder,)))  # before anything is evaluated


@pytest.mark.parametrize("order", ["[choices, lower]", "[lower, choices]"])
def test_a_group_whose_tasks_disagree_on_what_is_better_is_not_averaged(folder, order) -> None:
    metrics = [
        {"metric": metric, "aggregation": "mean", "higher_is_better": metric == "acc_norm"}
        for metric in ("acc", "acc_norm")
    ]
    task_folder.task(folder, "lower", task_folder.questions(3), metric_list=metrics)
    (folder / "torn.yaml").write_text(f"group: torn\ntask: {order}\n")
    said = "group torn has no one score by acc, which is better when it is higher in choices and when"
    with pytest.raises(DataError, match=said):
        opened(Asked(tasks=("torn",), include=(folder,)))
    apart = opened(Asked(tasks=("choices", "lower"), include=(folder,))).tasks
    assert list(apart) == ["choices", "lower"]


def test_a_limit_takes_the_first_documents(llama, folder, measured) -> None:
    (found, *_) = opened(Asked(tasks=("choices",), include=(folder,), limit=3)).measure(llama, [None], 256)
    np.testing.assert_array_equal(found.values, measured["choices", "acc"].values[:1, :3])


def test_how_tasks_are_asked(tmp_path) -> None:
    shots = {"sampler": "default", "samples": [{**row, "answer": 0} for row in ROWS[:5]]}
    keys = {"num_fewshot": 2, "fewshot_config": shots, "metadata": {"version": 1.5}}
    task_folder.task(tmp_path, "shots", ROWS[:8], **keys)
    task_folder.task(tmp_path, "none", ROWS[:3], num_fewshot=0)
    (tmp_path / "both.yaml").write_text("group: both\ntask: [shots, none]\n")

    def asked(name: str, **given: Any) -> Any:
        return opened(Asked(tasks=(name,), include=(tmp_path,), **given))

    own = asked("shots").how("shots")
    assert (own.limited, own.of_documents, own.chat, own.lm_eval) == (False, 8, False, lm_eval.__version__)
    assert own.tasks["shots"].model_dump() == {"version": "1.5", "fewshot": 2, "own_fewshot": 2}
    other = asked("both", limit=3, fewshot=4, chat=True).how("both")
    assert (other.limited, other.of_documents, other.chat) == (True, 11, True)
    fewshot = {name: (task.fewshot, task.own_fewshot) for name, task in other.tasks.items()}
    assert fewshot == {"shots": (4, 2), "none": (0, 0)}  # a task that says 0 keeps it
    assert not asked("shots", limit=8).how("shots").limited  # all that there are
    assert list(asked("both").how_choices().tasks) == ["shots", "none"]


OWN = Path(lm_eval.__file__).parent / "tasks"
LIKE = {
    "arc": (
        "arc/arc_easy.yaml",
        {"question": "w5 w6", "choices": {"text": ["w7", "w8 w9"], "label": ["A", "B"]}, "answerKey": "B"},
        "Question: w5 w6\nAnswer:",
    ),
    "boolq": (
        "super_glue/boolq/default.yaml",
        {"passage": "w5 w6", "question": "w7", "label": 1},
        "w5 w6\nQuestion: w7?\nAnswer:",
    ),
    "obqa": (
        "openbookqa/openbookqa.yaml",
        {"question_stem": "w5", "choices": {"text": ["w7", "w8"], "label": ["A", "B"]}, "answerKey": "B"},
        "w5",
    ),
}


@pytest.mark.parametrize("name", LIKE)
def test_a_users_own_files_of_arc_boolq_and_openbookqa_are_asked_as_lm_eval_does(
    llama, tmp_path, name
) -> None:
    """lm-eval's own task definitions, over local rows of the sets' own fields."""
    file, row, prompt = LIKE[name]
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    (tmp_path / "mine.yaml").write_text(
        f"include: {OWN / file}\ntask: mine\ndataset_path: json\ntraining_split: null\n"
        "validation_split: null\ntest_split: test\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
    )
    harness = opened(Asked(tasks=("mine",), include=(tmp_path,)))
    assert [(each.query, each.right) for each in harness.choices()] == [(prompt, 1)] * 2
    found = {each.metric: each for each in harness.measure(llama, [None], 256)}
    assert found["acc"].documents == 2


ATTACKS = {
    "function": ({"process_docs": "!function evil.py"}, "wants to run evil.py"),
    "nested": ({"metric_list": [{"metric": "!function evil.score"}]}, "wants to run evil.score"),
    "unsafe": ({"unsafe_code": True}, "key unsafe_code"),
    "remote": (
        {"dataset_kwargs": {"trust_remote_code": True, "data_files": {"test": "bad.jsonl"}}},
        "trust_remote",
    ),
    "class": ({"class": "os.system"}, "key class"),
    "prompt": ({"use_prompt": "promptsource:x"}, "key use_prompt"),
    "metric": ({"metric_list": [{"metric": "someone/evil"}]}, "the metric 'someone/evil'"),
    "hub": ({"dataset_path": "someone/data", "dataset_kwargs": None}, "--allow-hub"),
    "address": ({"dataset_kwargs": {"data_files": {"test": "https://x.example/a.json"}}}, "--allow-hub"),
    "pickle": ({"dataset_path": "pandas"}, "--allow-hub"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_task_file_cannot_run_code_or_call_a_host(tmp_path, monkeypatch, name) -> None:
    keys, said = ATTACKS[name]
    file = task_folder.task(tmp_path, "bad", ROWS[:2], **keys)
    file.write_text(file.read_text().replace("'!function ", "!function '"))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("called a host"))
    for tasks in (("bad",), (str(file),)):
        with pytest.raises(DataError, match="add --allow") as raised:
            opened(Asked(tasks=tasks, include=(tmp_path,)))
        assert said in str(raised.value)


def test_an_included_file_is_checked_too(tmp_path) -> None:
    (tmp_path / "parts.yaml").write_text("process_docs: !function evil.run\n")
    task_folder.task(tmp_path, "bad", ROWS[:2], include="parts.yaml")
    with pytest.raises(DataError, match=r"wants to run evil\.run"):
        opened(Asked(tasks=("bad",), include=(tmp_path,)))


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.mkdir('ran') }}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_cannot_reach_python(llama, tmp_path, monkeypatch, template) -> None:
    """In lm-eval's own environment both of these run."""
    from lm_eval.utils import apply_template

    monkeypatch.chdir(tmp_path)
    assert apply_template(template, {}) is not None
    shutil.rmtree(tmp_path / "ran", ignore_errors=True)
    task_folder.task(tmp_path, "bad", ROWS[:2], doc_to_text=template)
    with pytest.raises(DataError, match=r"SecurityError|UndefinedError"):
        opened(Asked(tasks=("bad",), include=(tmp_path,)))
    assert not (tmp_path / "ran").exists()


def test_a_person_can_agree_to_a_files_own_code(llama, tmp_path, monkeypatch) -> None:
    file = task_folder.task(tmp_path, "coded", ROWS[:4], process_docs="!function own.half")
    file.write_text(file.read_text().replace("'!function own.half'", "!function 'own.half'"))
    (tmp_path / "own.py").write_text("def half(docs):\n    return docs.select(range(2))\n")
    monkeypatch.chdir(tmp_path)
    found = opened(Asked(tasks=("coded",), include=(tmp_path,)), Consent(task_code=True))
    assert found.measure(llama, [None], 256)[0].documents == 2


def test_what_cannot_be_read_is_said(llama, tmp_path) -> None:
    task_folder.task(tmp_path, "gap", ROWS[:2], doc_to_text="{{missing}}")
    cases = {
        ("arc_easy",): "no task file here is called 'arc_easy'",
        ("gap",): "UndefinedError",
        (str(tmp_path / "none.yaml"),): "cannot be read",
        ("gap", "gap"): "asked for twice|UndefinedError",
        (): "no task is named",
    }
    for tasks, said in cases.items():
        with pytest.raises(DataError, match=said):
            opened(Asked(tasks=tasks, include=(tmp_path,)))
    with pytest.raises(DataError, match="there is no folder"):
        opened(Asked(tasks=("gap",), include=(tmp_path / "none",)))


def test_a_choice_without_a_token_and_a_long_one_are_said(llama, tmp_path) -> None:
    rows = [{"question": "w5", "choices": ["w6 " * 70, "w7"], "answer": 0}]
    task_folder.task(tmp_path, "long", rows)
    with pytest.raises(DataError, match="a choice of 70 tokens, and the base reads 64"):
        opened(Asked(tasks=("long",), include=(tmp_path,))).measure(llama, [None], 256)


def test_a_long_context_loses_its_beginning(llama, tmp_path) -> None:
    short = [{"question": "w5 " * 62, "choices": ["w6", "w7"], "answer": 0}]
    task_folder.task(tmp_path, "fits", [{**short[0], "question": "w5 " * 63}])
    task_folder.task(tmp_path, "cut", [{**short[0], "question": "w9 w8 " + "w5 " * 63}])
    found = opened(Asked(tasks=("fits", "cut"), include=(tmp_path,))).measure(llama, [None], 256)
    assert found[0].means[0] == found[2].means[0]


@pytest.mark.parametrize("sampled", [True, False])
def test_a_task_that_repeats_a_prompt_gets_as_many_samples(llama, tmp_path, monkeypatch, sampled) -> None:
    """Each repeat is a sample of its own, the same for every model; without sampling there is one answer."""
    how = {"do_sample": True, "temperature": 1.0} if sampled else {"do_sample": False}
    task_folder.task(
        tmp_path,
        "write",
        ROWS[:2],
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[answer]}}",
        generation_kwargs={"max_gen_toks": 8, "until": ["\n\n"], **how},
        repeats=4,
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    seen: list[list[str]] = []
    write = harness._Model.generate_until

    def kept(self, requests, **options):
        seen.append(write(self, requests, **options))
        return seen[-1]

    monkeypatch.setattr(harness._Model, "generate_until", kept)
    opened(Asked(tasks=("write",), include=(tmp_path,))).measure(llama, [None, None], micro_batch=256)
    one, other = seen
    assert one == other
    assert len(one) == 8
    assert len(set(one)) == (8 if sampled else 2)
    seen.clear()
    opened(Asked(tasks=("write",), include=(tmp_path,))).measure(llama, [None], micro_batch=256)
    assert seen == [one]  # the samples are those of their numbers
