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

from shepherd.ui.cli.main import main
from tests import runs
from tests.hub import Hub, serving

# how the hub's library uses httpx
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
BASE = ("--base", "org/base")


@pytest.fixture(scope="module")
def run(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.finished(llama_folder, tmp_path_factory.mktemp("published"))


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
        "base: org/base",
        "  adapter_model.safetensors  ",
        "README.md holds the run file",
        "nothing was sent; add --yes",
    ):
        assert line in done.output
    assert not hub.calls


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
    hub.repos["me/adapter"] = {"private": True, "files": {"mine.txt": b""}, "message": ""}
    done = push(run, *BASE, "--yes")
    assert done.exit_code == 2
    assert "holds 1 file already, mine.txt first; say --update" in done.output
    assert push(run, *BASE, "--yes", "--update").exit_code == 0
    assert {"mine.txt", "adapter_config.json"} <= hub.repos["me/adapter"]["files"].keys()


def test_what_is_public_already_has_to_be_said(run: Path, hub: Hub) -> None:
    hub.repos["me/adapter"] = {"private": False, "files": {}, "message": ""}
    done = push(run, *BASE, "--yes")
    assert (done.exit_code, "is public; say --public" in done.output) == (2, True)
    assert not hub.repos["me/adapter"]["files"]


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
