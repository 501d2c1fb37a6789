"""What every command prints when data, a model, a server or a judge write to the terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tomli_w
import torch
from click.testing import CliRunner

from shepherd import world
from shepherd.data.prompts import prompt_of
from shepherd.io import progress
from shepherd.io.progress import stage
from shepherd.overrides import parse
from shepherd.run import folder
from shepherd.run.answerer import Answer
from shepherd.settings import DataTable
from shepherd.ui.cli import main as cli
from shepherd.ui.terminal import answers, summary, verdict_table
from shepherd.ui.terminal.running import display, plain_lines
from shepherd.visible import shown, shown_line

EVIL = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202ecod.exe\u200b [red]x[/] [/]"
ACTING = "\x1b\x07\r\x9b\u202e\u200b"


def require_plain(text: str) -> None:
    assert not set(ACTING) & set(text), ascii(text)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data whose texts, categories and clients are hostile; the base is the embedded one."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "instruction": f"Say {n} {EVIL}",
            "response": f"{n} {EVIL}",
            "category": f"{EVIL}{n % 2}",
            "who": f"{EVIL}c{n % 3}",
        }
        for n in range(30)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "run.toml"
    path.write_text(
        '[model]\nbase = "tiny"\n[data]\nsource = "rows.jsonl"\n[split]\nby = "natural"\nfield = "who"\n'
    )
    return path


def said(*words: str) -> str:
    result = CliRunner().invoke(cli.main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


def test_the_data_before_any_training(run_file: Path) -> None:
    for words in (("data", "check", str(run_file)), ("data", "split", str(run_file))):
        text = said(*words)
        require_plain(text)
        assert shown(EVIL)[:8] in text.replace("\n", "")


def test_what_is_found_by_new_and_the_run_file_it_writes(run_file: Path, tmp_path: Path) -> None:
    rows = [{f"instruction{EVIL}": "Say it", "response": "it", EVIL: n} for n in range(30)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    column = f"instruction{EVIL}"
    text = said("new", "new.toml", "--data", "odd.jsonl", "--instruction", column)
    require_plain(text)
    if Path("new.toml").exists():
        require_plain(Path("new.toml").read_text())


@pytest.mark.parametrize(
    "line",
    [
        '{"instruction": "a", "response": "\\u001b[2J\\r\\u009b"',
        json.dumps({EVIL: "a"}),
        json.dumps({"instruction": {EVIL: 1}, "response": "b"}),
        json.dumps({"messages": [{"role": EVIL, "content": "a"}]}),
        json.dumps({"messages": [{"role": EVIL}]}),
    ],
)
def test_errors_that_quote_the_data(run_file: Path, line: str) -> None:
    Path("rows.jsonl").write_text(line + "\n")
    for command in ("check", "split"):
        require_plain(said("data", command, str(run_file)))


def test_errors_that_quote_a_run_file(run_file: Path) -> None:
    escaped = EVIL.encode("unicode_escape").decode().replace("\\x", "\\u00")
    for table in (f'[algorithm]\nname = "{escaped}"\n', f'[tuning]\n"{escaped}" = 1\n'):
        run_file.write_text(f'[model]\nbase = "tiny"\n[data]\nsource = "world"\n{table}')
        text = said("run", str(run_file))
        assert "shepherd: " in text
        require_plain(text)


def test_answers_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = prompt_of(f"Who? {EVIL}", DataTable(source="world"))
    found = [Answer(prompt=prompt, text=f"Ann\n{EVIL}", n=n, seed=4, cut=False) for n in (1, 2)]
    for several, as_json in ((False, False), (True, False), (True, True)):
        answers.print_answers(found, several=several, as_json=as_json)
        text = capsys.readouterr().out
        require_plain(text)
        if as_json:
            assert json.loads(text.splitlines()[0])["answer"] == f"Ann\n{EVIL}"
    with answers.timed(f"loaded {EVIL}"):
        pass
    require_plain(capsys.readouterr().err)


ROW: dict[str, Any] = {
    "round": 1,
    "cohort": [EVIL],
    "loss": 2.5,
    "heldout": {"loss": 2.0, "category": {EVIL: 2.0}},
    "seconds": {"round": 1.0, "tuning": 0.5},
    "tokens": {"seen": 100, "trained": 40},
    "coverage": {EVIL: 1.0},
    "failures": {f"{EVIL}\nround 9/9": f"{EVIL}\nround 9/9"},
    "late": [EVIL],
    "dropped": [EVIL],
    "carried": {EVIL: 1},
}


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_under_way_and_its_end(terminal: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal() if terminal else io.StringIO()
    with display(stream) as seen:
        seen.begin(f"run {EVIL}", 3, [])
        seen.echo(f"the server said {EVIL}\nround 9/9")
        logging.getLogger("shepherd.silos").info("site %s is there", EVIL)
        with stage(f"reading {EVIL}"):
            pass
        seen.row(ROW)
    text = stream.getvalue()
    for own in ("\x1b[?25l", "\x1b[?25h", "\x1b[1A", "\x1b[2K", "\r"):  # how rich draws again
        text = text.replace(own, "")
    styles = "".join(ACTING) if not terminal else "".join(set(ACTING) - {"\x1b"})
    assert not set(styles) & set(text), ascii(text)
    assert "\x1b[2J" not in text
    assert "\x1b]" not in text  # no title, no link
    assert not [line for line in text.splitlines() if line.startswith("round 9/9")]
    end = io.StringIO()
    summary.print_summary(tmp_path, [ROW], {"adapter": tmp_path, "answers": {EVIL: (0.0, 0.5)}}, end)
    require_plain(end.getvalue())


def test_what_a_judge_is_called_and_says() -> None:
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    row = {"first": EVIL, "second": EVIL, "win": 1, "tie": 0, "loss": 2}
    stream = io.StringIO()
    verdict_table.print_verdicts(
        {
            "protocol": "pairwise",
            "model": EVIL,
            "questions": 3,
            "calls": 1,
            "tokens": 2,
            "unreadable": 0,
            "rows": [{**row, "win_rate": interval, "length_controlled": interval}],
            "strengths": [{"arm": EVIL, "strength": interval}] * 3,
            "says": [EVIL],
        },
        stream,
    )
    require_plain(stream.getvalue())
    with plain_lines(said_to := io.StringIO()) as seen:
        seen.echo(f"the endpoint says {EVIL}")
    require_plain(said_to.getvalue())


def test_a_folder_of_a_model_and_of_data_before_a_real_terminal(tmp_path: Path) -> None:
    """What transformers prints by itself of a base's files, and what a file of the data is called."""
    base = Path(shutil.copytree(world.base_path(), tmp_path / f"base{EVIL}".replace("/", "")))
    keys = json.loads((base / "config.json").read_text())
    keys["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, EVIL: 1}
    keys |= {"num_labels": 3, "id2label": {"0": EVIL}}
    (base / "config.json").write_text(json.dumps(keys))
    weights = safetensors.torch.load_file(base / "model.safetensors")
    weights[f"more{EVIL}"] = torch.zeros(2)
    safetensors.torch.save_file(weights, base / "model.safetensors", {"format": "pt"})
    (tmp_path / "data").mkdir()
    for name in ("a", "b", "test"):
        rows = ({"instruction": f"Say {n} {name}", "response": str(n), "category": EVIL} for n in range(9))
        path = tmp_path / "data" / f"{name}{EVIL}.jsonl".replace("/", "")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {
        "output": "run",
        "model": {"base": str(base)},
        "data": {"source": "data", "max_tokens": 128},
        "split": {"by": "ready-made"},
        "federation": {"rounds": 1},
        "tuning": {"max_steps": 1, "batch_size": 1},
        "machine": {"device": "cpu", "threads": 1},
        "evaluation": {"examples": 2, "max_new_tokens": 2},
    }
    (tmp_path / "run.toml").write_text(tomli_w.dumps(tables))
    for words in (("run", "run.toml"), ("report", "run")):
        done = subprocess.run(
            [sys.executable, "-m", "shepherd", *words],
            cwd=tmp_path,
            capture_output=True,
            encoding="utf8",
            env={**os.environ, "COLUMNS": "400"},
        )
        assert done.returncode == 0, done.stderr
        require_plain(done.stdout + done.stderr)
        if words[0] == "run":
            assert "rope_parameters" in done.stderr  # transformers' own words
            assert "1 tensor that its architecture lacks, more\\x1b[2J" in done.stdout
            assert "LOAD REPORT" not in done.stderr  # with styles of its own among the names
            assert "test\\x1b[2J" in done.stdout
    for path in sorted((tmp_path / "run").rglob("*")):
        if path.suffix in (".json", ".jsonl", ".toml", ".md", ".html") and path.name != "tokenizer.json":
            require_plain(path.read_text(encoding="utf8"))


def test_a_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    with stage(f"reading {EVIL}", 3) as now:
        assert now.bar.desc.removesuffix(": ") == f"reading {shown_line(EVIL)}"
    capfd.readouterr()


def _status() -> str:
    pytest.importorskip("nvflare")
    from shepherd.silos.coordinator.admin import Status
    from shepherd.ui.terminal.federation_tables import print_status

    stream = io.StringIO()
    print_status(Status(server="fed.example:8002", sites={EVIL: EVIL}, runs={EVIL: EVIL}), stream)
    return stream.getvalue()


def _news(tmp_path: Path) -> str:
    """What the coordinator says of a server's news."""
    pytest.importorskip("nvflare")
    from shepherd.silos.coordinator.coordinate import SilosRun
    from shepherd.silos.coordinator.job_follower import StatusUpdate

    with plain_lines(stream := io.StringIO()) as seen:
        going = SilosRun.__new__(SilosRun)
        going.echo = seen.echo
        going._show(StatusUpdate(job="j", said=[EVIL, f"fine\n{EVIL}"]))
    return stream.getvalue()


@pytest.mark.parametrize("words", [lambda path: _status(), _news])
def test_what_a_server_says(words: Callable[[Path], str], tmp_path: Path) -> None:
    text = words(tmp_path)
    require_plain(text)
    assert "\\x1b[2J" in text.replace("\n", "")


def test_an_error_that_a_server_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shepherd.errors import FederationError
    from shepherd.ui.report import writing

    folder.create(tmp_path / "run", parse({"model": {"base": "tiny"}, "data": {"source": "world"}})).close()

    def refuse(path: Path) -> Path:
        raise FederationError(EVIL)

    monkeypatch.setattr(writing, "collect", refuse)
    text = said("report", str(tmp_path / "run"))
    assert text.startswith("shepherd: ")
    require_plain(text)
