"""Asking a run: with its final adapter, its last checkpoint's, and with the base alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import shepherd
from shepherd.data.prompts import prompt_of
from shepherd.errors import BaseError, CheckpointError, DataError, FolderError, TemplateError
from shepherd.model import files
from shepherd.run import answerer as asking
from shepherd.run import folder
from shepherd.run.answerer import Answerer, Options, adapter_of, generate, load_run
from shepherd.run.loading import load_base
from shepherd.run.opening import open_run
from shepherd.ui.cli.main import main
from tests import runs
from tests.model import bases


@pytest.fixture(scope="module")
def asked(llama_folder, tmp_path_factory) -> Path:
    """A run of one round that was stopped before its end: it has a checkpoint and no final adapter."""
    data = runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")
    output = tmp_path_factory.mktemp("asked") / "run"
    run = open_run(runs.settings(llama_folder, data, output, federation={"rounds": 1}))
    next(run.rounds())
    run.close()
    return output


@pytest.fixture(scope="module")
def answerer(asked) -> Answerer:
    return load_run(asked)


def test_a_run_answers_with_its_adapter_and_without(asked) -> None:
    tuned = generate(asked, "w5 w9", max_new_tokens=6)
    assert tuned == generate(asked, "w5 w9", max_new_tokens=6)
    assert isinstance(generate(asked, "w5 w9", max_new_tokens=6, base=True), str)


def test_the_final_adapter_is_the_last_checkpoints(asked, llama_folder, tmp_path) -> None:
    data = runs.written(tmp_path / "rows.jsonl")
    run = open_run(runs.settings(llama_folder, data, tmp_path / "run", federation={"rounds": 1}))
    next(run.rounds())
    run.finish()
    base = load_base(folder.read_settings(asked))
    assert adapter_of(tmp_path / "run", base) == adapter_of(asked, base)


def test_another_adapter_of_the_base_can_answer(asked, answerer, tmp_path) -> None:
    other = bases.random_adapter(answerer.base, 3)
    files.write(tmp_path / "other", other, answerer.base)
    own = Answerer(answerer.path, answerer.settings, answerer.base)
    own._adapters[None] = other
    expected = own.generate(["w5 w9", "w7"], max_new_tokens=6)
    assert answerer.generate(["w5 w9", "w7"], max_new_tokens=6, adapter=tmp_path / "other") == expected
    assert answerer.generate(["w5 w9", "w7"], max_new_tokens=6) != expected
    assert answerer.generate("w5 w9", adapter=asked) == answerer.generate("w5 w9")
    words = ["generate", str(asked), "w5 w9", "--max-new-tokens=6", f"--adapter={tmp_path / 'other'}"]
    assert CliRunner().invoke(main, words).stdout == f"{expected[0]}\n"


def test_an_empty_instruction_is_refused(asked) -> None:
    with pytest.raises(DataError, match="the instruction is empty"):
        generate(asked, " ")


def test_a_run_without_a_round_has_no_adapter_yet(llama_folder, tmp_path) -> None:
    data = runs.written(tmp_path / "rows.jsonl")
    open_run(runs.settings(llama_folder, data, tmp_path / "run")).close()
    with pytest.raises(FolderError, match="has finished no round yet"):
        generate(tmp_path / "run", "w5")
    assert isinstance(generate(tmp_path / "run", "w5", base=True, max_new_tokens=2), str)


def test_a_checkpoint_of_another_base_is_named(asked, tmp_path) -> None:
    other = bases.load(bases.save(bases.CONFIGS["llama"], tmp_path / "other", seed=1), rank=2, alpha=16)
    with pytest.raises(
        CheckpointError, match=r"round-00001 belongs to another base .*; put the old base back"
    ):
        adapter_of(asked, other)
    wider = bases.load(Path(load_base(folder.read_settings(asked)).name), rank=3, alpha=24)
    with pytest.raises(CheckpointError, match="belongs to another adapter: tensor"):
        adapter_of(asked, wider)


# --- many prompts, one load

MANY = ["w5 w9", "w30 w31 w32 w33 w34", {"instruction": "w5 w9", "context": "w7"}]


def test_many_prompts_are_answered_from_one_load_as_each_alone(asked, answerer, monkeypatch) -> None:
    loads = []
    load = asking.load_base
    monkeypatch.setattr(asking, "load_base", lambda *given: loads.append(1) or load(*given))
    found = shepherd.generate(asked, MANY, max_new_tokens=6)
    assert len(loads) == 1
    assert found == [
        answerer.generate("w5 w9", max_new_tokens=6),
        answerer.generate("w30 w31 w32 w33 w34", max_new_tokens=6),
        answerer.generate("w5 w9", "w7", max_new_tokens=6),
    ]
    assert len(loads) == 1
    assert answerer.generate([]) == []


def test_the_same_seed_gives_the_same_answers_and_no_seed_gives_new_ones(answerer, monkeypatch) -> None:
    def sampled(**options: object) -> list[tuple[str, int, int | None]]:
        found = answerer.answers(
            [prompt_of(each, answerer.settings.data) for each in MANY],
            Options(**{"n": 3, "temperature": 1.5, "max_new_tokens": 8, **options}),
        )
        return [(each.text, each.n, each.seed) for each in found]

    first = sampled()
    assert [n for _, n, _ in first] == [1, 2, 3] * 3
    assert len({text for text, _, _ in first}) >= 6
    seed = first[0][2]
    assert sampled(seed=seed) == first
    assert sampled() != first
    monkeypatch.setattr(asking, "CHUNK_ANSWERS", 2)  # given in the order of the prompts all the same
    assert sampled(seed=seed) == first


def test_answers_say_whether_they_were_cut(answerer) -> None:
    prompt = [prompt_of("w5 w9", answerer.settings.data)]
    (short,) = answerer.answers(prompt, Options(max_new_tokens=1))
    assert short.cut
    assert short.seed is None


def test_a_kept_round_answers_and_another_is_named(llama_folder, tmp_path) -> None:
    data = runs.written(tmp_path / "rows.jsonl")
    tables = {"federation": {"rounds": 3}, "checkpoints": {"keep": 2}}
    run = open_run(runs.settings(llama_folder, data, tmp_path / "run", **tables))
    states = {state.round: state.adapter for state, _ in run.rounds()}
    run.finish()
    kept = load_run(tmp_path / "run")
    assert kept.adapter(2) == states[2]
    assert kept.adapter(3) == kept.adapter() == states[3]
    assert isinstance(kept.generate("w5", round=2, max_new_tokens=2), str)
    with pytest.raises(
        FolderError, match=r"keeps no checkpoint of round 1 but of 2, 3; ask for one of these"
    ):
        kept.adapter(1)


@pytest.mark.parametrize(
    ("prompts", "options", "error", "sentence"),
    [
        (["w5", " "], {}, DataError, "prompt 2: the instruction is empty"),
        (["w5", "w6 " * 70], {}, BaseError, "prompt 2 has 7. tokens and base .* reads at most 64; shorten"),
        (["w5"], {"n": 2}, DataError, "2 answers to each prompt need a temperature above 0"),
        ("w5", {"n": 2, "temperature": 1.0}, DataError, "give the text in a list"),
        (["w5", "w6"], {"context": "w7"}, DataError, "a context goes with one instruction"),
        ("w5", {"temperature": -1.0}, BaseError, "0 is greedy"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(answerer, prompts, options, error, sentence) -> None:
    with pytest.raises(error, match=sentence):
        answerer.generate(prompts, **options)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"round": 9}, FolderError, "keeps no checkpoint of round 9"),
        ({"round": 1, "base": True}, DataError, "the untuned base has no round 1"),
        ({"adapter": "x", "base": True}, DataError, "x is neither the untuned base nor of a round"),
        ({"adapter": "x", "round": 1}, DataError, "x is neither the untuned base nor of a round"),
        ({"temperature": float("nan")}, BaseError, "temperature nan is not a number"),
        ({"top_p": 2.0}, BaseError, "top-p 2.0"),
        ({"n": 2}, DataError, "need a temperature above 0"),
    ],
)
def test_options_are_checked_before_the_base_is_loaded(asked, monkeypatch, options, error, sentence) -> None:
    monkeypatch.setattr(asking, "load_base", lambda *given: pytest.fail("the base is loaded"))
    with pytest.raises(error, match=sentence):
        generate(asked, "w5", **options)
    words = [
        f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")
        for key, value in options.items()
    ]
    result = CliRunner().invoke(main, ["generate", str(asked), "w5", *words])
    assert result.exit_code == 2


def test_the_prompt_is_named_once(answerer, monkeypatch) -> None:
    def refuse(*_) -> None:
        raise TemplateError("the prompt holds the special token </s>; take it out of the text")

    monkeypatch.setattr(asking, "prompt", refuse)
    with pytest.raises(TemplateError, match=r"^the prompt holds the special token"):
        answerer.generate("w5")
    with pytest.raises(TemplateError, match=r"^prompt 1 holds the special token"):
        answerer.generate(["w5"])
