"""Law 12: what a stranger's file wishes for does not happen, and happens once a person has said so."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner, Result

import shepherd
from shepherd.compare.arms import CompareSpec
from shepherd.compare.comparison import compare
from shepherd.consent import Consent
from shepherd.errors import BaseError, JudgeError, PluginError, SettingsError
from shepherd.judge.agreed import require_agreed
from shepherd.machine.executors import Processes
from shepherd.model import base as bases
from shepherd.model import remote_code
from shepherd.model.base import Base, Proof
from shepherd.overrides import dump
from shepherd.run import folder
from shepherd.settings import AdapterTable, JudgeTable, ModelTable, RunSettings
from shepherd.ui.chat.answering import open_chat
from shepherd.ui.cli import main as cli
from tests import runs
from tests.judge.server import Judge, serving

TRUSTED = Consent(remote_code=True)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What is there once foreign code has run."""
    return tmp_path / "PWNED"


@pytest.fixture
def evil(llama_folder: Path, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny base, with code that transformers would run to load its configuration, tokenizer and model."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = Path(shutil.copytree(llama_folder, tmp_path / "nice" / "base"))
    (made / "evil.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class EvilConfig(LlamaConfig): pass\n"
        "class EvilModel(LlamaForCausalLM): config_class = EvilConfig\n"
        "class EvilTokenizer(PreTrainedTokenizerFast): pass\n"
    )
    _add(made / "config.json", {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"})
    _add(made / "tokenizer_config.json", {"AutoTokenizer": [None, "evil.EvilTokenizer"]})
    return made


def _add(path: Path, auto_map: dict[str, object]) -> None:
    keys = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**keys, "auto_map": auto_map}))


def settings(base: Path, tmp_path: Path, **tables: dict[str, object]) -> RunSettings:
    small = {"federation": {"rounds": 1}, "tuning": {"max_steps": 1}, "evaluation": {"max_new_tokens": 4}}
    data = runs.written(tmp_path / "rows.jsonl")
    return runs.settings(base, data, tmp_path / "run", **{**small, **tables})


@pytest.fixture
def strange(tmp_path: Path, evil: Path, mark: Path) -> Path:
    """A finished run of somebody else: its run file names the base that brings code, and asks to run it."""
    with shepherd.open_run(settings(evil, tmp_path)) as run:
        for _ in run.rounds():
            pass
        run.finish()
    kept = folder.read_settings(tmp_path / "run")
    assert not mark.exists()
    model = kept.model.model_copy(update={"trust_remote_code": True})
    for name in (folder.RUN_FILE, folder.TRAINED_WITH):  # whoever edits one can edit both
        (tmp_path / "run" / name).write_text(dump(kept.model_copy(update={"model": model})))
    return tmp_path / "run"


@pytest.fixture
def strange_file(evil: Path, tmp_path: Path) -> Path:
    """A run file that asks to run the base's code."""
    model = {"base": str(evil), "trust_remote_code": True}
    path = tmp_path / "strange.toml"
    path.write_text(dump(settings(evil, tmp_path, model=model)))
    return path


def said(*words: object) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1  # one sentence
    for part in parts:
        assert part in result.stderr


# --- code that comes with a base


@pytest.mark.parametrize(
    "words", [("run",), ("compare",), ("data", "check"), ("run", "--allow-plugin", "evil")]
)
def test_a_run_file_runs_no_code(strange_file: Path, mark: Path, words: tuple[str, ...]) -> None:
    result = said(*words, strange_file)
    refused(result, "asks to run the code of folder", "(evil.py)", "give --trust-remote-code")
    assert not mark.exists()
    assert not Path("run").exists()


def test_a_run_folder_runs_no_code(strange: Path, mark: Path, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"id": "a", "question": "w5"}\n')
    (tmp_path / "answers.jsonl").write_text('{"question": "a", "answer": "w6"}\n')
    judge = (
        "judge",
        strange,
        tmp_path / "answers.jsonl",
        "--questions",
        questions,
        "--model",
        "m",
        "--key-env",
        "",
    )
    for words in (("generate", strange, "w5"), ("chat", strange), judge):
        refused(said(*words), "--trust-remote-code")
    (strange / "finished.json").unlink()
    refused(said("resume", strange), "--trust-remote-code")
    for ask in (shepherd.load_run, open_chat, shepherd.resume, lambda path: shepherd.generate(path, "w5")):
        with pytest.raises(BaseError, match="nothing of it ran"):
            ask(strange)
    assert not mark.exists()


def test_new_runs_no_code_and_asks_for_it_once_it_is_allowed(evil: Path, mark: Path, tmp_path: Path) -> None:
    words = ("new", tmp_path / "new.toml", "--base", evil)
    said(*words)
    assert not mark.exists()
    (tmp_path / "new.toml").unlink(missing_ok=True)
    result = said(*words, "--trust-remote-code")
    assert result.exit_code == 0, result.output
    assert mark.exists()
    assert "\ntrust_remote_code = true\n" in (tmp_path / "new.toml").read_text()


def test_an_adapter_folder_runs_no_code(strange: Path, evil: Path, mark: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(strange / "adapter", tmp_path / "sent"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": str(evil), "auto_mapping": {"parent_library": "evil"}}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"id": "a", "question": "w5"}\n')
    (tmp_path / "answers.jsonl").write_text('{"question": "a", "answer": "w6"}\n')
    said(
        "judge",
        adapter,
        tmp_path / "answers.jsonl",
        "--questions",
        questions,
        "--model",
        "m",
        "--key-env",
        "",
    )
    assert not mark.exists()


def test_what_a_person_has_read_runs(
    strange: Path, strange_file: Path, mark: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = said("generate", strange, "w5", "--trust-remote-code")
    assert result.exit_code == 0, result.output
    assert mark.exists()
    assert f"the code of folder {strange.parent}/nice/base (evil.py) runs here" in result.output
    mark.unlink()
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    assert said("data", "check", strange_file, "--trust-remote-code").exit_code == 0
    assert mark.exists()
    assert shepherd.load_run(strange, consent=TRUSTED).generate("w5") == result.stdout.strip()


def test_a_worker_has_the_consent_of_its_parent_and_no_other(llama: Base, evil: Path, mark: Path) -> None:
    model = ModelTable(base=str(evil), trust_remote_code=True, dtype="float32")
    with pytest.raises(BaseError, match="--trust-remote-code"):
        bases.load(model, AdapterTable(rank=2), proof=Proof())
    assert Processes(1, 1, llama, TRUSTED)._begin[-1] == TRUSTED
    assert not mark.exists()


def test_whose_code_it_is_is_named_also_where_it_lies_elsewhere(evil: Path) -> None:
    _add(evil / "config.json", {"AutoConfig": "owner/elsewhere--configuration.Config"})
    folder = ModelTable(base=str(evil), trust_remote_code=True)
    assert remote_code.whose(folder).endswith("(evil.py), and of the Hugging Face repository owner/elsewhere")
    hub = ModelTable(base="owner/name", revision="v2", trust_remote_code=True)
    assert remote_code.whose(hub) == "the code of the Hugging Face repository owner/name at v2"


# --- addresses and variables where a file is meant


@pytest.fixture
def host() -> Iterator[tuple[str, list[str]]]:
    """An address of this machine, and who has asked it."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                with suppress(TimeoutError):
                    server.accept()[0].close()
                    asked.append("somebody")

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", asked
        over.set()
        thread.join()


ADDRESSES = [
    *("http://{host}/x.jsonl", "https://{host}/x.parquet", "hf://datasets/owner/name/x.jsonl"),
    *("s3://bucket/x.jsonl", "zip://x.jsonl::http://{host}/x.zip", "simplecache::http://{host}/x.jsonl"),
    *("file://{host}/x.jsonl", "//{host}/x.jsonl", "$SECRET", "${SECRET}/x.jsonl", "%SECRET%", "~$SECRET"),
]


@pytest.mark.parametrize("written", ADDRESSES)
def test_an_address_is_no_file_and_no_variable_is_put_in(
    llama_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: tuple[str, list[str]],
    written: str,
) -> None:
    monkeypatch.setenv("SECRET", str(llama_folder))
    text = written.format(host=host[0]) if "{host}" in written else written
    data = str(runs.written(tmp_path / "rows.jsonl"))
    for base, source in ((text, data), (str(llama_folder), text)):
        tables = {"output": "run", "model": {"base": base}, "data": {"source": source}}
        path = tmp_path / "strange.toml"
        path.write_text(tomli_w.dumps(tables))
        result = said("data", "check", path)
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1
        assert str(llama_folder) not in result.stderr
        kept = tmp_path / "kept"
        folder.create(kept, shepherd.parse({"model": {"base": "tiny"}, "data": {"source": "world"}})).close()
        (kept / "run.toml").write_text(tomli_w.dumps({**tables, "output": str(kept)}))
        refused(said("resume", kept))  # whose paths stay as they are written
        shutil.rmtree(kept)
    result = said("generate", "none", "--prompts", text)
    assert result.exit_code == 2
    assert host[1] == []


# --- plug-ins


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: Path) -> Iterator[str]:
    """A module outside the package that says when it is imported; an algorithm and a transform at once."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    (tmp_path / "theirs" / "plug.py").write_text(
        "from pydantic import BaseModel\nfrom shepherd.algorithms import fedavg\n"
        "class Config(BaseModel): pass\ndef build(config): return fedavg.ALGORITHM\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "theirs.plug"
    for name in [name for name in sys.modules if name.startswith("theirs")]:
        del sys.modules[name]


@pytest.mark.parametrize("table", ["algorithm", "transforms"])
def test_a_run_file_imports_nothing(
    llama_folder: Path, tmp_path: Path, module: str, mark: Path, table: str
) -> None:
    named = {"name": module}
    asked = settings(llama_folder, tmp_path)
    asked = RunSettings.model_validate(
        {**asked.model_dump(), table: [named] if table == "transforms" else named}
    )
    path = tmp_path / "strange.toml"
    path.write_text(dump(asked))
    for words in (("run", path), ("compare", path), ("run", path, "--allow-plugin", "theirs.other")):
        refused(said(*words), f"'{module}' is a module from outside", f"--allow-plugin {module}")
    with pytest.raises(PluginError, match="was not imported"):
        shepherd.open_run(asked)
    assert not mark.exists()
    assert not (tmp_path / "run").exists()


def test_a_run_folder_imports_nothing_and_an_arm_neither(
    llama_folder: Path, tmp_path: Path, module: str, mark: Path
) -> None:
    asked = settings(llama_folder, tmp_path)
    shepherd.open_run(asked).close()
    kept = folder.read_settings(tmp_path / "run")
    algorithm = kept.algorithm.model_copy(update={"name": module})
    for name in (folder.RUN_FILE, folder.TRAINED_WITH):
        (tmp_path / "run" / name).write_text(dump(kept.model_copy(update={"algorithm": algorithm})))
    refused(said("resume", tmp_path / "run"), "--allow-plugin")
    with pytest.raises(PluginError):
        compare(asked, CompareSpec(variants=(f"mine: algorithm.name={module}",)))
    assert not mark.exists()
    with shepherd.resume(tmp_path / "run", consent=Consent(plugins=frozenset({module}))) as run:
        assert len(list(run.rounds())) == 1
    assert mark.exists()


# --- the judge


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-usual-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sk-a-secret-of-mine")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Judge(lambda prompt: "VERDICT: tie")) as found:
        yield found


def judging(tmp_path: Path, judge: dict[str, str]) -> tuple[object, ...]:
    """The command that judges two files of answers by the judge of a run folder beside them."""
    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "Q?"}\n')
    run = tmp_path / "strange"
    table = {"model": {"base": "tiny"}, "data": {"source": "world"}, "judge": {"model": "m", **judge}}
    folder.create(run, shepherd.parse(table)).close()
    for name, text in (("one", "x"), ("two", "y")):
        (run / f"{name}.jsonl").write_text(json.dumps({"question": "a", "answer": text}) + "\n")
    return ("judge", run / "one.jsonl", run / "two.jsonl", "--questions", tmp_path / "q.jsonl")


def test_a_run_folder_names_no_host(tmp_path: Path, server: Judge) -> None:
    words = judging(tmp_path, {"base_url": server.url})
    key = "with the key in OPENAI_API_KEY"
    refused(said(*words), server.url, key, "nothing was sent", f"--base-url {server.url}")
    other = said(*words, "--base-url", "http://127.0.0.1:1/v1", "--key-env", "", "retries=0")
    assert "http://127.0.0.1:1/v1 cannot be reached" in other.output
    assert server.calls == 0
    result = said(*words, "--base-url", server.url)
    assert result.exit_code == 0, result.output
    assert server.calls == 2


def test_a_run_folder_names_no_variable_that_is_sent(tmp_path: Path, server: Judge) -> None:
    words = judging(tmp_path, {"base_url": server.url, "key_env": "AWS_SECRET_ACCESS_KEY"})
    refused(said(*words), "AWS_SECRET_ACCESS_KEY", "--key-env AWS_SECRET_ACCESS_KEY")
    refused(said(*words, "--base-url", server.url), "--key-env AWS_SECRET_ACCESS_KEY")
    assert server.calls == 0
    assert said(*words, "--base-url", server.url, "--key-env", "").exit_code == 0
    assert server.calls == 2


@pytest.mark.parametrize(
    ("table", "consent", "parts"),
    [
        ({}, {}, None),
        ({"base_url": "https://api.openai.com/v1/"}, {}, None),
        ({"key_env": ""}, {}, None),
        ({"base_url": "https://evil.example/v1"}, {}, ["https://evil.example/v1", "OPENAI_API_KEY"]),
        ({"base_url": "https://evil.example/v1", "key_env": ""}, {}, ["--base-url https://evil.example/v1"]),
        ({"base_url": "http://evil.example/v1"}, {}, ["unencrypted"]),
        ({"base_url": "http://127.0.0.1:8000/v1"}, {}, ["http://127.0.0.1:8000/v1, with the key"]),
        ({"base_url": "http://127.0.0.1:8000/v1"}, {"base_url": "http://127.0.0.1:8000/v1/"}, None),
        ({"base_url": "https://a.example"}, {"base_url": "https://b.example"}, ["https://a.example"]),
        ({"key_env": "HF_TOKEN"}, {}, ["with the key in HF_TOKEN", "--key-env HF_TOKEN"]),
        ({"key_env": "HF_TOKEN"}, {"key_env": "HF_TOKEN"}, None),
        ({"key_env": "HF_TOKEN"}, {"key_env": "OTHER"}, ["--key-env HF_TOKEN"]),
        ({"base_url": "http://[::1]:1/v1", "key_env": ""}, {"base_url": "http://[::1]:1/v1"}, None),
    ],
)
def test_what_has_to_be_agreed_to(
    table: dict[str, str], consent: dict[str, str], parts: list[str] | None
) -> None:
    judge = JudgeTable.model_validate({"model": "m", **table})
    if parts is None:
        require_agreed(judge, Consent(**consent))  # type: ignore[arg-type]
        return
    with pytest.raises(JudgeError, match="nothing was sent") as fault:
        require_agreed(judge, Consent(**consent))  # type: ignore[arg-type]
    for part in parts:
        assert part in str(fault.value)


def test_compare_says_so_before_it_trains(llama_folder: Path, tmp_path: Path, server: Judge) -> None:
    asked = settings(llama_folder, tmp_path, judge={"model": "m", "base_url": server.url})
    path = tmp_path / "strange.toml"
    path.write_text(dump(asked))
    refused(said("compare", path), server.url, "nothing was sent")
    assert not (tmp_path / "run").exists()


# --- trackers


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_run_file_sends_no_figures(
    llama_folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shepherd.run import tracking

    monkeypatch.setattr(tracking, "find_spec", lambda package: True)
    asked = settings(llama_folder, tmp_path, tracking={"trackers": [name]})
    with pytest.raises(SettingsError, match=f"nothing was sent: give --allow-tracker {name}"):
        shepherd.open_run(asked)
    tracking.require(asked.tracking, Consent(trackers=frozenset({name})))
    assert not (tmp_path / "run").exists()


def test_the_commands_have_the_options() -> None:
    def options(*words: str) -> set[str]:
        command: Any = cli.main
        for word in words:
            command = command.commands[word]
        return {text for parameter in command.params for text in parameter.opts}

    for name in ("run", "resume", "compare", "generate", "chat", "judge", "data check", "new", "silos demo"):
        assert "--trust-remote-code" in options(*name.split())
    for words in (("run",), ("resume",), ("compare",), ("silos", "demo")):
        assert {"--allow-plugin", "--allow-tracker"} <= options(*words)
    for words in (("compare",), ("judge",)):
        assert {"--base-url", "--key-env"} <= options(*words)
