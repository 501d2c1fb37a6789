"""The judge over a comparison's arms, and over any two things that answer: on the real command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shepherd.compare.arms import CompareSpec
from shepherd.compare.comparison import compare
from shepherd.compare.judged_arms import judged
from shepherd.consent import Consent
from shepherd.errors import JudgeError
from shepherd.model import files
from shepherd.run.answerer import generate
from shepherd.run.opening import open_run
from shepherd.settings import JudgeTable
from shepherd.ui.chat import arms as chat_arms
from shepherd.ui.cli import main as cli
from tests import runs
from tests.judge.server import Judge, serving, shown
from tests.model import bases

KEY = "sk-test-never-written"


@pytest.fixture(scope="module")
def folder(llama_folder, tmp_path_factory) -> Path:
    """A finished comparison of base, one client, all data, and federated."""
    place = tmp_path_factory.mktemp("judged")
    settings = runs.settings(
        llama_folder,
        runs.written(place / "rows.jsonl"),
        place / "run",
        adapter={"dropout": 0.0},
        federation={"rounds": 1},
        tuning={"max_steps": 2},
        evaluation={"answers": 6, "max_new_tokens": 4},
    )
    compare(settings, CompareSpec(locals=("client-1",), match="steps"))
    return place / "run"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A home of the test's own, in which what nobody asked a place for is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run"))


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., Judge]]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ExitStack() as stack:
        yield lambda rule: stack.enter_context(serving(Judge(rule)))


def longer(prompt: str) -> str:
    """The longer answer is the better one, wherever it stands."""
    first, second = (len(text) for text in shown(prompt))
    return f"It says more.\nVERDICT: {'tie' if first == second else 'first' if first > second else 'second'}"


def shepherd(*words: object) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def test_every_arm_is_judged_against_the_federated_one_and_paid_for_once(copied, serve) -> None:
    server = serve(longer)
    table = JudgeTable(model="judge-1", base_url=server.url)
    said: list[str] = []
    consent = Consent(base_url=server.url)
    found = judged(copied, table, said.append, consent=consent)
    assert found == json.loads((copied / "compare" / "comparison.json").read_text())
    pairs = {(row["first"], row["second"]) for row in found["judge"]["rows"]}
    assert pairs == {("federated", arm) for arm in ("base", "local-client-1", "centralised")}
    assert found["judge"]["questions"] == 6
    calls = server.calls
    assert 0 < calls <= 3 * 6 * 2  # both orders; equal answers are a tie for nothing
    assert judged(copied, table, said.append, consent=consent)["judge"] == {**found["judge"]}
    assert server.calls == calls
    assert KEY not in "".join(p.read_text(errors="replace") for p in copied.rglob("*") if p.is_file())


def test_clients_that_differ_in_a_capital_alone_are_judged_apart(
    llama_folder, serve, tmp_path, monkeypatch
) -> None:
    """Their arms' files are found again, and told apart where a file system does not."""
    names = ["Ulm", "ulm", "\u4e2d" * 83]
    rows = [{**row, "who": names[place % 3]} for place, row in enumerate(runs.rows())]
    settings = runs.settings(
        llama_folder,
        runs.written(tmp_path / "rows.jsonl", rows),
        tmp_path / "run",
        split={"by": "natural", "field": "who"},
        federation={"rounds": 1},
        tuning={"max_steps": 1},
        evaluation={"answers": 4, "max_new_tokens": 4},
    )
    compare(settings, CompareSpec(match="steps"))
    server = serve(longer)
    table = JudgeTable(model="judge-1", base_url=server.url)
    consent = Consent(base_url=server.url)
    found = judged(tmp_path / "run", table, lambda line: None, consent=consent)
    pairs = {row["second"] for row in found["judge"]["rows"]}
    assert pairs == {"base", "centralised", *(f"local-{name}" for name in names)}
    assert {arm.client for arm in chat_arms.find(tmp_path / "run", settings)} == {None, *names}


def test_other_questions_are_answered_by_every_arm_once(copied, serve, tmp_path, monkeypatch) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"id": "a", "question": "w5 w6"}\n{"id": "b", "question": "w7 w8 w9"}\n')
    server = serve(longer)
    table = JudgeTable(model="judge-1", base_url=server.url, questions=str(questions))
    consent = Consent(base_url=server.url)
    judged(copied, table, lambda text: None, consent=consent)
    (kept,) = (copied / "compare" / "answers").iterdir()
    assert {path.name for path in kept.iterdir()} == {
        f"{arm}.jsonl" for arm in ("base", "local-client-1", "centralised", "federated")
    }
    rows = [json.loads(line) for line in (kept / "federated.jsonl").read_text().splitlines()]
    assert rows[0]["answer"] == generate(copied, "w5 w6")
    monkeypatch.setattr("shepherd.compare.judged_arms.load_base", None)  # nothing is answered again
    judged(copied, table, lambda text: None, consent=consent)


def answers(path: Path, *texts: str) -> Path:
    rows = [{"question": str(i), "answer": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"id": str(i), "question": f"Q{i}?"}) + "\n" for i in range(count)))
    return path


def test_two_answers_files_on_the_command_line(serve, tmp_path, home) -> None:
    server = serve(longer)
    one, two = (
        answers(tmp_path / "one.jsonl", "a", "b", "long"),
        answers(tmp_path / "two.jsonl", "aa", "bb", "c"),
    )
    words = ("judge", one, two, "--questions", asked(tmp_path / "q.jsonl", 3), "--model", "j", "--base-url")
    result = shepherd(*words, server.url)
    assert result.exit_code == 0, result.output
    assert "one" in result.output
    assert server.calls == 6
    assert shepherd(*words, server.url).exit_code == 0
    assert server.calls == 6
    # nothing appears next to the files
    assert {each.name for each in tmp_path.iterdir()} == {"one.jsonl", "two.jsonl", "q.jsonl", home.name}
    kept = home / "shepherd" / "verdicts"
    assert f"verdicts are kept in {kept}" in " ".join(result.output.split())
    assert (kept / "verdicts.jsonl").is_file()
    assert shepherd(*words, server.url, "--verdicts", tmp_path / "here").exit_code == 0
    assert server.calls == 12
    assert (tmp_path / "here" / "verdicts.jsonl").is_file()


def test_two_adapters_are_judged_from_one_base(copied, serve, tmp_path) -> None:
    server = serve(longer)
    seed = copied / "compare" / "seed-0"
    result = shepherd(
        "judge",
        seed / "centralised",
        copied,
        "--questions",
        "heldout",
        "--model",
        "j",
        "--base-url",
        server.url,
    )
    assert result.exit_code == 0, result.output
    assert server.calls > 0


def test_two_runs_of_another_rank_and_base_each_answer_with_their_own(copied, serve, tmp_path) -> None:
    gpt2 = bases.save(bases.CONFIGS["gpt2"], tmp_path / "gpt2")
    source = runs.written(tmp_path / "rows.jsonl")
    table = {"adapter": {"rank": 3}, "federation": {"rounds": 1}, "tuning": {"max_steps": 1}}
    with open_run(runs.settings(gpt2, source, tmp_path / "other", **table)) as run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)
    server = serve(longer)
    words = ("judge", copied, tmp_path / "other", "--questions", "heldout", "--model", "j", "limit=4")
    result = shepherd(*words, "--base-url", server.url)
    assert result.exit_code == 0, result.output
    assert server.calls > 0


def test_what_was_paid_for_stays_when_the_judge_talks_nonsense(copied, serve) -> None:
    server = serve(lambda prompt: "I like both.")
    table = JudgeTable(model="judge-1", base_url=server.url, limit=3)  # fewer requests than end it early
    consent = Consent(base_url=server.url)
    with pytest.raises(JudgeError):
        judged(copied, table, lambda text: None, consent=consent)
    calls = server.calls
    assert calls > 0
    with pytest.raises(JudgeError):
        judged(copied, table, lambda text: None, consent=consent)
    assert server.calls == calls


def test_a_key_is_asked_for_before_anything_is_answered_or_trained(
    copied, llama_folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for work in ("shepherd.compare.judged_arms.load_base", "shepherd.compare.comparison.train_run"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("it worked before it asked for the key"))
    questions = asked(tmp_path / "q.jsonl", 2)
    new = ("compare", copied / "run.toml", f"output={tmp_path / 'new'}", "judge.model=j")
    centralised = copied / "compare" / "seed-0" / "centralised"
    cases = {
        ("judge", centralised, copied, "--questions", questions, "--model", "j"): "variable OPENAI_API_KEY",
        new: "variable OPENAI_API_KEY",
        (*new, "--key-env", "MINE"): "variable MINE",
        (*new, "judge.questions=none.jsonl", "--max-calls", "0"): "none.jsonl",
        (*new, "evaluation.answers=0", "--max-calls", "0"): "none is answered; set evaluation.answers",
    }
    for words, said in cases.items():
        result = shepherd(*words)
        assert (result.exit_code, said in result.stderr) == (2, True), (words, result.output)
    with pytest.raises(JudgeError, match="OPENAI_API_KEY"):
        judged(copied, JudgeTable(model="j", questions=str(questions)), lambda _: None)


def test_what_was_judged_needs_no_key_again(copied, serve, monkeypatch) -> None:
    server = serve(longer)
    centralised = copied / "compare" / "seed-0" / "centralised"
    same = (f"output={copied}", "--local", "client-1", "--match", "steps")
    every = [
        ("judge", centralised, copied, "--questions", "heldout", "--model", "j", "--base-url", server.url),
        ("compare", copied / "run.toml", *same, "judge.model=j", "--base-url", server.url),
    ]
    first = [shepherd(*words) for words in every]
    assert [each.exit_code for each in first] == [0, 0], [each.output for each in first]
    calls = server.calls
    monkeypatch.delenv("OPENAI_API_KEY")
    again = [shepherd(*words) for words in every]
    assert [each.exit_code for each in again] == [0, 0], [each.output for each in again]
    assert server.calls == calls


def test_an_answers_file_that_lacks_a_question_is_said_before_the_other_answers(
    copied, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("shepherd.compare.judged_arms.load_base", lambda *_: pytest.fail("it answered"))
    file, questions = answers(tmp_path / "one.jsonl", "a"), asked(tmp_path / "q.jsonl", 2)
    result = shepherd("judge", file, copied, "--questions", questions, "--model", "j", "--key-env", "")
    assert result.exit_code == 2
    assert "has no answer to question 1" in result.stderr


def test_bad_input_is_one_sentence_and_exit_code_2(copied, llama_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    one, two = answers(tmp_path / "one.jsonl", "a"), answers(tmp_path / "two.jsonl", "b")
    questions, empty = asked(tmp_path / "q.jsonl", 1), tmp_path / "empty.jsonl"
    empty.write_text("")
    other = bases.save(bases.CONFIGS["llama"], tmp_path / "other", seed=7)
    base, foreign = bases.load(other, rank=2, alpha=16), tmp_path / "foreign"
    files.write(foreign, bases.random_adapter(base, 1), base)
    judge = ("--model", "j", "--base-url", "http://127.0.0.1:9/v1")
    keyless = (*judge, "--key-env", "")
    cases = {
        ("judge", one, two, "--questions", questions, *judge): "OPENAI_API_KEY",
        ("judge", one, two, "--questions", empty, *judge): "empty.jsonl",
        ("judge", one, tmp_path / "none", "--questions", questions, *judge): "does not exist; give",
        ("judge", one, two, *judge): "give --questions FILE",
        ("judge", one, two, "--questions", questions): "model",
        ("judge", foreign, copied, "--questions", questions, *keyless): "was made for another base",
        ("judge", one, two, "--questions", questions, "protocol=guess", *judge): "judge's settings",
        ("chat", tmp_path / "none"): "run",
        ("report", tmp_path): "run",
        ("watch", tmp_path): "run",
        ("compare", tmp_path / "none.toml"): "cannot be read",
        ("compare", copied / "run.toml", "--arm", "ffa"): "write",
        ("compare", copied / "run.toml", "--local", "nobody"): "nobody",
    }
    for words, said in cases.items():
        result = shepherd(*words)
        assert result.exit_code == 2, (words, result.output, result.exception)
        assert result.stderr.startswith("shepherd: "), result.stderr
        assert said in result.stderr, (words, result.stderr)
        assert "Traceback" not in result.output
