"""The command: what it says, where, and with which exit code. The run behind it is a fake one."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shepherd.errors import AdapterError
from shepherd.overrides import read
from shepherd.run import folder
from shepherd.run.log import read_rows
from shepherd.settings import RunSettings
from shepherd.ui.cli import main as cli

RUN_FILE = '[model]\nbase = "tiny"\n[data]\nsource = "world"\n[federation]\nrounds = 3\n'
HEAVY = ("torch", "transformers", "peft", "datasets", "pydantic", "numpy", "rich", "matplotlib")


class FakeRun:
    """Three rounds that only write rows; `at` is called before each."""

    def __init__(self, settings: RunSettings, at: Callable[[int], None]) -> None:
        self.holder = folder.create(settings.output, settings)
        self.settings, self.at = settings, at
        self.folder, self.until = self.holder.path, settings.federation.rounds

    def rounds(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        self.holder.append({"round": 0, "heldout": {"loss": 3.0, "category": {"qa": 3.0}}})
        for number in range(1, self.until + 1):
            self.at(number)
            row = {
                "round": number,
                "cohort": ["a", "b"],
                "loss": 2.5,
                "heldout": {"loss": 3.0 - number / 4, "category": {"qa": 3.0 - number / 4}},
                "seconds": {"round": 1.0, "tuning": 0.5},
                "tokens": {"seen": 100, "trained": 40},
                "coverage": {"a": 1.0, "b": 0.5},
            }
            self.holder.append(row)
            yield SimpleNamespace(round=number), row

    def finish(self) -> dict[str, Any]:
        self.holder.write(folder.FINISHED, f'{{"round": {self.until}}}')
        return {"adapter": self.folder / "adapter", "answers": {"qa": (0.0, 0.5)}}

    def close(self) -> None:
        self.holder.close()


class FakeAnswerer:
    """Answers with what it was asked, and how."""

    def answers(self, prompts: Any, how: Any) -> Iterator[Any]:
        for prompt in prompts:
            text = f"{prompt.text} {prompt.context} {vars(how)}"
            yield SimpleNamespace(prompt=prompt, text=text, n=1, seed=how.seed, cut=False)


@pytest.fixture
def shepherd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Invoke the command in an empty folder with run.toml; `at(round)` happens before each round."""
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(RUN_FILE)

    def invoke(*words: str, at: Callable[[int], None] = lambda number: None) -> Result:
        fake = types.ModuleType("shepherd.run.opening")
        fake.open_run = lambda settings, consent: FakeRun(settings, at)  # type: ignore[attr-defined]
        asking = types.ModuleType("shepherd.run.answerer")
        asking.load_run = lambda folder, consent: FakeAnswerer()  # type: ignore[attr-defined]
        asking.Options = SimpleNamespace  # type: ignore[attr-defined]
        asking.require_options = lambda folder, how: None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "shepherd.run.opening", fake)
        monkeypatch.setitem(sys.modules, "shepherd.run.answerer", asking)
        return CliRunner().invoke(cli.main, words)

    return invoke


def test_run_trains_and_says_where_the_adapter_is(shepherd: Callable[..., Result]) -> None:
    result = shepherd("run", "run.toml", "federation.rounds=2", "output=runs/two")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "runs/two: fedavg on tiny, data world, rank 8"
    assert lines[1] == "before training held out 3.0000"
    assert lines[3].startswith("round 2/2 clients 2 loss 2.5000 held out 2.5000 200 tokens/s")
    assert "qa 0.0% 50.0% 3.0000 2.5000" in lines
    assert "Adapter: runs/two/adapter" in lines
    assert read("runs/two/run.toml").federation.rounds == 2


def test_ctrl_c_says_how_to_continue(shepherd: Callable[..., Result]) -> None:
    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    result = shepherd("run", "run.toml", at=interrupt)
    assert result.exit_code == 130
    assert result.stderr == "shepherd: stopped after round 1; continue with: shepherd resume runs/run\n"
    assert read_rows("runs/run")[-1]["round"] == 1
    folder.reopen("runs/run").close()  # the folder was given back


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AdapterError("tensor q is missing; use another"), "shepherd: tensor q is missing; use another\n"),
        (
            OSError(errno.ENOSPC, "No space", "/data/x"),
            "shepherd: the disk of /data/x is full; free some space",
        ),
    ],
)
def test_a_fault_that_can_be_fixed_is_one_line_without_traceback(
    shepherd: Callable[..., Result], error: Exception, message: str
) -> None:
    def fail(number: int) -> None:
        raise error

    result = shepherd("run", "run.toml", at=fail)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_an_unexpected_fault_keeps_its_traceback(shepherd: Callable[..., Result]) -> None:
    def fail(number: int) -> None:
        raise ZeroDivisionError

    assert isinstance(shepherd("run", "run.toml", at=fail).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "none.toml"), "run file none.toml cannot be read"),
        (("run", "run.toml", "federation.round=2"), "unknown key federation.round; known keys there are"),
        (("run", "run.toml", "rounds"), "override 'rounds' is not key=value"),
        (("data", "split", "run.toml", "tuning.batch_size=0"), "key tuning.batch_size"),
        (("new", "run.toml"), "run.toml exists"),
    ],
)
def test_bad_input_is_exit_code_2(
    shepherd: Callable[..., Result], words: tuple[str, ...], message: str
) -> None:
    result = shepherd(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("shepherd: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_with_a_run_is_refused_and_kept(shepherd: Callable[..., Result]) -> None:
    assert shepherd("run", "run.toml").exit_code == 0
    before = Path("runs/run/rounds.jsonl").read_bytes()
    result = shepherd("run", "run.toml")
    assert result.exit_code == 2
    assert "runs/run holds another run" in result.stderr
    assert Path("runs/run/rounds.jsonl").read_bytes() == before


def test_a_finished_run_says_so_and_is_not_made_again(shepherd: Callable[..., Result]) -> None:
    shepherd("run", "run.toml")
    result = shepherd("resume", "runs/run")
    assert result.exit_code == 0
    assert result.stdout == (
        "runs/run is already finished, after 3 rounds; its adapter is in runs/run/adapter\n"
    )


def test_resume_passes_on_more_rounds_and_refuses_other_changes(
    shepherd: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    shepherd("run", "run.toml")

    def asked(folder: Path, consent: Any, overrides: Any) -> None:
        raise AdapterError(f"asked for {overrides}")

    monkeypatch.setitem(sys.modules, "shepherd.run.resuming", SimpleNamespace(resume=asked))  # type: ignore[arg-type]
    result = CliRunner().invoke(cli.main, ("resume", "runs/run", "federation.rounds=4"))
    assert "asked for ('federation.rounds=4',)" in result.stderr
    refused = shepherd("resume", "runs/run", "tuning.learning_rate=0.5")
    assert refused.exit_code == 2
    assert "tuning.learning_rate=0.5 cannot be changed in runs/run" in refused.stderr


def test_new_writes_a_run_file_that_runs(shepherd: Callable[..., Result]) -> None:
    assert shepherd("new", "fresh.toml").stdout == "wrote fresh.toml; next: shepherd data check fresh.toml\n"
    assert shepherd("run", "fresh.toml", "federation.rounds=1").exit_code == 0


def test_generate_passes_on_what_it_was_asked(shepherd: Callable[..., Result]) -> None:
    shepherd("run", "run.toml")
    words = ("--context", "Ann, Bo", "--base", "--round", "2")
    result = shepherd("generate", "runs/run", "Name two.", *words)
    assert result.stdout.startswith("Name two. Ann, Bo {")
    for option in ("'base': True", "'max_new_tokens': None", "'round': 2", "'temperature': 0.0", "'n': 1"):
        assert option in result.stdout
    assert re.fullmatch(r"loaded tiny in \d+\.\d s\n", result.stderr)


def test_generate_answers_a_file_and_stdin_and_says_its_seed(shepherd: Callable[..., Result]) -> None:
    shepherd("run", "run.toml")
    Path("asked.txt").write_text("Name two.\nName three.\n")
    result = shepherd("generate", "runs/run", "--prompts", "asked.txt", "--temperature", "1", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["Name two.", "Name three."]
    seed = rows[0]["seed"]
    assert result.stderr.startswith(f"seed {seed}; --seed {seed} gives the same answers again\n")
    again = shepherd("generate", "runs/run", "--prompts", "asked.txt", "--temperature", "1", "--json")
    assert json.loads(again.stdout.splitlines()[0])["seed"] != seed
    given = CliRunner().invoke(cli.main, ["generate", "runs/run", "-"], input="Name four.\n")
    assert given.stdout.startswith("Name four.")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "give an INSTRUCTION, or --prompts FILE"),
        (("a", "--prompts", "x.txt"), "give an INSTRUCTION, or --prompts FILE"),
        (("-", "--context", "c"), "--context needs an INSTRUCTION"),
        (("a", "--n", "2"), "--n needs a --temperature above 0"),
        ((" ",), "the instruction is empty"),
        (("--prompts", "none.txt"), "none.txt cannot be read"),
        (("--prompts", "runs"), "runs cannot be read (Is a directory)"),
    ],
)
def test_generate_refuses_before_it_loads(
    shepherd: Callable[..., Result], words: tuple[str, ...], sentence: str
) -> None:
    shepherd("run", "run.toml")
    result = shepherd("generate", "runs/run", *words)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "load" not in result.stderr
    assert result.stdout == ""


def test_data_split_counts_and_draws(shepherd: Callable[..., Result]) -> None:
    Path("rows.jsonl").write_text(
        "".join(
            f'{{"instruction": "Say {n}", "response": "{n}", "category": "k{n % 2}"}}\n' for n in range(20)
        )
    )
    result = shepherd(
        "data", "split", "run.toml", "data.source=rows.jsonl", "split.clients=3", "--plot", "x.png"
    )
    assert result.exit_code == 0, result.output
    assert "18 examples to train on, 2 held out, 0 duplicates and 0 bad rows left out" in result.stdout
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")
    said = [[f"Say {n}", f"{n}", "Thanks!", "You are welcome."] for n in range(20)]
    turns = [[{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(c)] for c in said]
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    result = shepherd("data", "split", "run.toml", "data.source=chats.jsonl", "split.clients=3")
    assert "2 held-out examples share a question with examples that are trained on" in result.stdout
    Path("own.jsonl").write_text(
        "".join(f'{{"instruction": "Say {n}", "response": "{n}", "who": "c{n // 9}"}}\n' for n in range(19))
    )
    result = shepherd(
        "data", "split", "run.toml", "data.source=own.jsonl", "split.by=natural", "split.field=who"
    )
    assert "1 of 3 clients have nothing held out (c2)" in result.stdout


def python(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, **options)


def test_help_and_the_package_import_nothing_heavy() -> None:
    code = f"import sys, shepherd, shepherd.ui.cli.main; print([m for m in {HEAVY} if m in sys.modules])"
    assert python("-c", code).stdout == "[]\n"


def test_a_true_process_says_one_line_and_exits_with_2(tmp_path: Path) -> None:
    done = python("-m", "shepherd", "resume", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "shepherd: nowhere holds no run (run.toml is missing); name the folder of a run\n"


STAND_IN = (  # a job in the background would ignore Ctrl-C
    "import signal, sys, types, time; from shepherd.ui.cli.main import main\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "sys.modules['shepherd.run.opening'] = fake = types.ModuleType('opening')\n"
)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_true_signal_ends_with_a_sentence(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    (tmp_path / "run.toml").write_text(RUN_FILE)
    script = STAND_IN + (
        "def wait(*_, **__): print('ready', flush=True); time.sleep(30)\n"
        "fake.open_run = wait\n"
        "main(['run', 'run.toml'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, sent)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert said == "shepherd: stopped before the run began\n"


@pytest.mark.parametrize(
    "around",
    [
        'trap "" HUP; exec "$@"',  # as nohup
        'exec "$@" >&-',
        'exec "$@" >&- 2>&- <&-',
        'exec "$@" > /dev/null 2>&-',
    ],
)
def test_a_run_goes_on_without_terminal_and_streams(tmp_path: Path, around: str) -> None:
    (tmp_path / "run.toml").write_text(RUN_FILE)
    script = (
        "import os; from tests.ui.cli.test_main import FakeRun; from shepherd.ui.cli.main import start\n"
        + STAND_IN
        + (
            "hang_up = lambda number: os.kill(os.getpid(), signal.SIGHUP)\n"
            "ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN\n"
            "at = hang_up if ignored else lambda number: print(number)\n"
            "fake.open_run = lambda settings, consent: FakeRun(settings, at)\n"
            "sys.argv = ['shepherd', 'run', 'run.toml']; start()"
        )
    )
    done = subprocess.run(
        ["sh", "-c", around, "sh", sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert folder.is_finished(tmp_path / "runs" / "run")


def test_a_reader_that_goes_away_does_not_end_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN_FILE)
    script = (
        "from tests.ui.cli.test_main import FakeRun\n"
        + STAND_IN
        + (
            "fake.open_run = lambda settings, consent: FakeRun(settings, lambda number: time.sleep(0.2))\n"
            "main(['run', 'run.toml'])"
        )
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()  # as `head -1`
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 0
    assert folder.is_finished(tmp_path / "runs" / "run")


def test_the_public_names_are_sorted_and_there() -> None:
    import shepherd

    assert shepherd.__all__ == sorted(shepherd.__all__)
    assert shepherd.RunSettings is RunSettings
    assert set(shepherd.__all__) <= set(dir(shepherd))
    assert all(hasattr(shepherd, name) for name in shepherd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'sheep'"):
        shepherd.sheep  # noqa: B018


@pytest.mark.parametrize("words", [(), ("silos",), ("data",)])
def test_no_line_of_the_lists_of_commands_is_cut(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli.main, [*words, "--help"], terminal_width=80).output
    listed = shown.partition("Commands:\n")[2].splitlines()
    assert len(listed) > 1
    assert [line for line in listed if line.endswith("...") or line.startswith("     ")] == []
