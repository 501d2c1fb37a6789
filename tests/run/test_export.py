"""A run's adapter for other programs."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from shepherd.errors import FolderError, PluginError, SettingsError
from shepherd.run import folder
from shepherd.run.export import export
from shepherd.run.opening import open_run
from shepherd.ui.cli.main import main
from tests import runs


@pytest.fixture(scope="module")
def run(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "run"
    source = runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")
    with open_run(runs.settings(llama_folder, source, output, federation={"rounds": 1})) as opened:
        for _ in opened.rounds():
            pass
        opened.finish(answer=False)
    return output


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 13)[None], use_cache=False).logits


def test_both_forms_are_the_model_that_was_trained(run: Path, llama_folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["export", str(run), "-o", str(tmp_path / "peft")])
    assert (done.exit_code, done.output) == (0, f"wrote {tmp_path / 'peft'}\n")
    done = CliRunner().invoke(
        main, ["export", str(run), "dtype=float32", "--to", "merged", "-o", str(tmp_path / "whole")]
    )
    assert done.exit_code == 0, done.output
    base = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    alone = logits(base)
    adapted = logits(peft.PeftModel.from_pretrained(base, tmp_path / "peft"))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    torch.testing.assert_close(logits(whole), adapted, atol=1e-4, rtol=1e-4)
    assert not torch.equal(adapted, alone)


def test_what_cannot_be_written_is_refused_before_the_base_is_loaded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shepherd.run.export.load_base", None)
    with pytest.raises(SettingsError, match="no exporter called 'gguf'; there are merged, peft"):
        export(run, tmp_path / "out", "gguf")
    with pytest.raises(
        SettingsError, match=r"the exporter 'peft': unknown key dtype; .*dtype is a key of merged"
    ):
        export(run, tmp_path / "out", "peft", ["dtype=float16"])
    with pytest.raises(PluginError, match=r"--allow-plugin their\.gguf"):
        export(run, tmp_path / "out", "their.gguf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(FolderError, match="full"):
        export(run, tmp_path / "full")
    with pytest.raises(FolderError):
        export(tmp_path / "nowhere", tmp_path / "out")
    assert folder.is_run(run)
