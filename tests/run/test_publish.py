"""What is published of a run, and that nothing is without being asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors.numpy import load

from shepherd.errors import HubError
from shepherd.run import publish
from shepherd.ui.cli.main import main
from tests import runs
from tests.hub import Hub, made, serving

# how the hub's library uses httpx
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
BASE = ("--base", "org/base")


@pytest.fixture(scope="module")
def run(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.finished(llama_folder, tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a base whose tokenizer llama.cpp knows."""
    return runs.readable(tmp_path_factory.mktemp("readable"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with serving(Hub()) as found:
        monkeypatch.setenv("HF_TOKEN", found.token)
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found
        huggingface_hub.close_session()


def push(run: Path, *words: str) -> Any:
    return CliRunner().invoke(main, ["push", str(run), "me/adapter", *words])


def test_without_yes_it_is_said_what_would_be_sent_and_nothing_is(run: Path, hub: Hub) -> None:
    done = push(run, *BASE)
    assert done.exit_code == 2
    for line in (
        "repository: me/adapter (private, for your account or organisation)",
        "it is not there yet, and is made",
        "base: org/base",
        "  adapter_model.safetensors  ",
        "README.md holds the run file",
        "nothing was sent; add --yes",
    ):
        assert line in done.output
    assert hub.calls == ["GET /api/models/me/adapter"]
    assert not hub.repos


def test_without_a_token_it_is_said_that_the_hub_was_not_asked(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = "what would be deleted in it, is not known: "
    monkeypatch.delenv("HF_TOKEN")
    done = push(run, *BASE)
    assert f"{unknown}the environment variable HF_TOKEN is empty" in done.output
    assert not hub.calls
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert f"{unknown}the hub refused me/adapter (status 401" in push(run, *BASE).output
    assert "is made" not in push(run, *BASE).output


def test_an_adapter_is_published_in_one_private_commit_with_its_card(run: Path, hub: Hub) -> None:
    done = push(run, *BASE, "--yes")
    assert done.exit_code == 0, done.output
    assert f"published {hub.url}/me/adapter/commit/" in done.output
    repo = hub.repos["me/adapter"]
    assert repo["private"]
    whole = load((run / "adapter" / "adapter_model.safetensors").read_bytes())
    sent = load(repo["files"]["adapter_model.safetensors"])
    assert sent.keys() == whole.keys()
    assert all((sent[name] == whole[name]).all() for name in whole)
    assert json.loads(repo["files"]["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    card = ModelCard(repo["files"]["README.md"].decode())
    assert card.data.model_name == "run"
    assert [each.metric_type for each in card.data.eval_results] == ["loss"]
    texts = b"".join(content for name, content in repo["files"].items() if name.endswith((".json", ".md")))
    assert str(run).encode() not in texts
    assert str(Path.home()).encode() not in texts


def test_a_merged_model_needs_no_name_of_its_base(run: Path, hub: Hub) -> None:
    done = push(run, "--to", "merged", "--public", "--yes")
    assert done.exit_code == 0, done.output
    repo = hub.repos["me/adapter"]
    assert not repo["private"]
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= repo["files"].keys()
    assert ModelCard(repo["files"]["README.md"].decode()).data.library_name == "transformers"


def test_a_repository_with_files_is_not_written_over_unless_asked(run: Path, hub: Hub) -> None:
    hub.repos["me/adapter"] = made("mine.txt")
    for words in ((), ("--yes",)):
        done = push(run, *BASE, *words)
        assert done.exit_code == 2
        assert "holds 1 file already, mine.txt first; say --update" in done.output
    assert push(run, *BASE, "--yes", "--update").exit_code == 0
    assert {"mine.txt", "adapter_config.json"} <= hub.repos["me/adapter"]["files"].keys()


def test_an_update_deletes_what_an_earlier_publication_wrote_and_nothing_else(run: Path, hub: Hub) -> None:
    assert push(run, *BASE, "--yes").exit_code == 0
    repo = hub.repos["me/adapter"]
    earlier = set(repo["files"])
    theirs = made("model.gguf", "notes/README.md", "tokenizer.json")  # the last was ours, and they changed it
    repo["files"] |= theirs["files"]
    repo["titles"] |= theirs["titles"]
    said = push(run, "--to", "merged", "--update").output
    assert "it is there, with " in said
    assert "left there: model.gguf, notes/README.md\n" in said
    (line,) = [line for line in said.splitlines() if line.startswith("deleted, as of an earlier publication")]
    assert line.endswith(": adapter_config.json, adapter_model.safetensors")
    assert set(repo["files"]) == earlier | theirs["files"].keys()
    assert push(run, "--to", "merged", "--update", "--yes").exit_code == 0
    assert earlier - set(repo["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert {"model.safetensors", "config.json", *theirs["files"]} <= set(repo["files"])
    assert repo["files"]["model.gguf"] == b"mine"
    assert [call for call in hub.calls if "/commit/" in call] == [
        "POST /api/models/me/adapter/commit/main"
    ] * 2


def test_what_changes_between_description_and_commit_is_not_written_over(run: Path, hub: Hub) -> None:
    for change in (made("mine.txt"), made(private=False)):
        hub.repos.clear()
        with publish.prepared(run, "me/adapter", base="org/base", sends=True) as publication:
            hub.repos["me/adapter"] = change
            with pytest.raises(HubError, match="me/adapter was changed meanwhile, and nothing was sent"):
                publish.publish(publication)
        assert "adapter_config.json" not in hub.repos["me/adapter"]["files"]


def test_the_visibility_of_a_repository_is_said_and_never_changed(run: Path, hub: Hub) -> None:
    for private, words, says in (
        (False, (), "repository me/adapter is public; say --public"),
        (
            True,
            ("--public",),
            "repository me/adapter is private, and stays so; make it public in its settings",
        ),
    ):
        hub.repos["me/adapter"] = made(private=private)
        for more in ((), ("--yes",)):
            done = push(run, *BASE, *words, *more)
            assert (done.exit_code, says in done.output) == (2, True)
        assert hub.repos["me/adapter"] == made(private=private)
    hub.repos["me/adapter"] = made(private=False)
    done = push(run, *BASE, "--public", "--yes")
    assert "repository: me/adapter (public, for anybody to read)\nit is there, with 0 files\n" in done.output
    assert "adapter_config.json" in hub.repos["me/adapter"]["files"]


@pytest.mark.parametrize(
    ("to", "relation", "use"),
    [
        (
            "peft",
            "adapter",
            "vllm serve org/base --enable-lora --max-lora-rank 16 --lora-modules adapter=me/adapter",
        ),
        ("merged", "finetune", "vllm serve me/adapter"),
        (
            "gguf",
            "finetune",
            "hf download me/adapter --local-dir adapter && llama-server --model adapter/model.gguf --jinja",
        ),
        (
            "gguf-adapter",
            "adapter",
            "hf download me/adapter --local-dir adapter"
            " && llama-server --model BASE.gguf --lora adapter/adapter.gguf",
        ),
        (
            "ollama",
            "finetune",
            "hf download me/adapter --local-dir adapter"
            " && ollama create NAME -f adapter/Modelfile && ollama run NAME",
        ),
    ],
)
def test_the_card_names_base_and_repository_as_a_reader_finds_them(
    to: str, relation: str, use: str, readable: Path, hub: Hub
) -> None:
    done = push(readable, "--to", to, *BASE, "--yes")
    assert done.exit_code == 0, done.output
    assert f"\nto use it: {use}\n" in done.output
    card = ModelCard(hub.repos["me/adapter"]["files"]["README.md"].decode())
    assert (card.data.base_model, card.data.base_model_relation) == ("org/base", relation)
    assert f"```sh\n{use}\n```" in card.text
    assert "for `org/base`, instruction-tuned" in card.text
    assert "| base | `org/base` |" in card.text
    assert 'base = "org/base"' in card.text
    for gone in ("public name", "path/to/this/folder", "In this folder", str(readable.parent)):
        assert gone not in card.content
    if to == "peft":
        assert 'folder = "me/adapter"' in card.text
        assert "from_pretrained('org/base')" in card.text


@pytest.mark.parametrize("words", [("gguf-adapter",), ("ollama", "base=smollm2:135m")])
def test_an_adapter_in_any_form_needs_the_bases_public_name(
    words: tuple[str, ...], readable: Path, hub: Hub
) -> None:
    done = push(readable, "--yes", "--to", *words)
    assert (done.exit_code, "give its name there with --base OWNER/NAME" in done.output) == (2, True)
    assert not hub.calls


def test_a_file_that_names_the_folder_of_the_base_is_not_sent(readable: Path, hub: Hub) -> None:
    licence = readable.parent / "base" / "LICENSE"
    before = licence.read_text()
    licence.write_text(f"The weights of {licence.parent}.\n")
    try:
        done = push(readable, "--to", "merged", *BASE, "--yes")
    finally:
        licence.write_text(before)
    assert (done.exit_code, f"LICENSE would publish {licence.parent}, a" in done.output) == (2, True)
    assert not hub.repos


@pytest.mark.parametrize("base", ["gpt2", "./base", "a/b/c", "/models/llama"])
def test_a_public_name_that_is_none_is_refused(base: str, run: Path, hub: Hub) -> None:
    done = push(run, "--base", base, "--yes")
    assert (done.exit_code, f"'{base}' is no model of the hub" in done.output) == (2, True)
    assert not hub.calls


def test_an_adapter_over_a_folder_needs_the_bases_public_name(run: Path, hub: Hub) -> None:
    done = push(run, "--yes")
    assert done.exit_code == 2
    assert "is the folder" in done.output
    assert "--base OWNER/NAME, or publish base and adapter as one with --to merged" in done.output
    assert not hub.calls


def test_the_token_comes_from_the_environment_alone(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(hub.token)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN")
    done = push(run, *BASE, "--yes")
    assert (done.exit_code, "HF_TOKEN is empty; set it to an access token" in done.output) == (2, True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    done = push(run, *BASE, "--yes")
    assert "the hub refused me/adapter (status 401" in done.output
    assert "check that the token in HF_TOKEN may write there" in done.output
    assert "hf_wrong" not in done.output
    assert not hub.repos


def test_a_hub_that_is_out_of_order_is_one_sentence(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.broken = True
    done = push(run, *BASE, "--yes")
    assert (done.exit_code, "the hub refused me/adapter (status 500" in done.output) == (2, True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = push(run, *BASE, "--yes")
    assert (done.exit_code, "check the network, and try again" in done.output) == (2, True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "the hub was not reached" in push(run, *BASE, "--yes").output


@pytest.mark.parametrize("repo", ["adapter", "a/b/c", "./a", "me/rows.jsonl"])
def test_a_name_that_is_no_repository_is_refused(repo: str, run: Path, hub: Hub) -> None:
    done = CliRunner().invoke(main, ["push", str(run), repo, "--yes"])
    assert (done.exit_code, "is no repository of the hub; give it as OWNER/NAME" in done.output) == (2, True)
    assert not hub.calls


def test_a_failed_upload_says_that_a_new_repository_was_made(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise OSError("broken pipe")

    monkeypatch.setattr(publish.HfApi, "create_commit", failing)
    done = push(run, *BASE, "--yes")
    assert "broken pipe" in done.output
    assert "repository me/adapter was made for it, and is empty" in " ".join(done.output.split())
    assert hub.repos["me/adapter"]["files"] == {}
    again = push(run, *BASE, "--yes")
    assert "broken pipe" in again.output
    assert "was made for it" not in again.output
