"""A run's adapter for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from gguf import GGUFReader
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from shepherd.errors import BaseError, DataError, FolderError, HubError, PluginError, SettingsError
from shepherd.run import folder
from shepherd.run.export import export
from shepherd.ui.cli.main import main
from tests import runs


@pytest.fixture(scope="module")
def run(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.finished(llama_folder, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a base whose tokenizer llama.cpp knows, and whose folder has a licence."""
    return runs.readable(tmp_path_factory.mktemp("readable"))


def exported(run: Path, output: Path, *words: str) -> str:
    done = CliRunner().invoke(main, ["export", str(run), *words, "-o", str(output)])
    assert done.exit_code == 0, done.output
    return done.output


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 13)[None], use_cache=False).logits


def test_both_forms_are_the_model_that_was_trained(run: Path, llama_folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["export", str(run), "-o", str(tmp_path / "peft")])
    said = f"wrote {tmp_path / 'peft'}\nto use it: vllm serve {llama_folder} --enable-lora --max-lora-rank 8"
    assert (done.exit_code, done.output) == (
        0,
        f"{said} --lora-modules adapter={tmp_path / 'peft'}\n",
    )
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
    with pytest.raises(SettingsError, match="no exporter called 'onnx'; there are gguf, gguf_adapter, m"):
        export(run, tmp_path / "out", "onnx")
    with pytest.raises(
        SettingsError, match=r"the exporter 'peft': unknown key dtype; .*dtype is a key of gguf, .*merged"
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


def test_each_form_says_how_to_use_it_and_has_a_card(readable: Path, tmp_path: Path) -> None:
    for to, file, said in (
        ("peft", "adapter_model.safetensors", "--max-lora-rank 16 "),
        ("merged", "model.safetensors", "vllm serve "),
        ("gguf", "model.gguf", "llama-server --model "),
        ("gguf-adapter", "adapter.gguf", "llama-server --model BASE.gguf --lora "),
        ("ollama", "model.gguf", "ollama create NAME -f "),
    ):
        output = exported(readable, tmp_path / to, "--to", to)
        assert said in output
        assert (tmp_path / to / file).is_file()
        card = card_of(tmp_path / to)
        holds_base = to in ("merged", "gguf", "ollama")
        assert (tmp_path / to / "LICENSE").is_file() == holds_base
        assert card.data.library_name == {"peft": "peft", "merged": "transformers"}.get(to, "gguf")
        assert ("holds the weights of its base" in card.text) == holds_base
        assert ("\nA whole model: its base, and merged into it a LoRA adapter" in card.text) == holds_base
        assert ("PeftModel.from_pretrained" in card.text) == (to == "peft")
        assert str(tmp_path) not in card.content
        assert "## Training" in card.text
        assert "Prompts follow the template `plain`" in card.text


def test_the_public_name_of_the_base_is_in_all_that_is_written(readable: Path, tmp_path: Path) -> None:
    said = exported(readable, tmp_path / "peft", "--base", "org/base")
    served = "vllm serve org/base --enable-lora --max-lora-rank 16 --lora-modules adapter="
    assert f"to use it: {served}{tmp_path / 'peft'}\n" in said
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", None)
    card, own = card_of(tmp_path / "peft"), card_of(readable / "adapter")
    assert card.data.base_model == "org/base"
    assert f"In this folder:\n\n```sh\n{served}.\n```" in card.text
    assert card.data.eval_results == own.data.eval_results  # composed again, from what the run has kept
    for part in ("## Data", "## Scores on held-out examples", "## Versions"):
        assert card.text.split(part)[1].split("\n## ")[0] == own.text.split(part)[1].split("\n## ")[0]
    exported(readable, tmp_path / "gguf", "--base", "org/base", "--to", "gguf-adapter")
    fields = GGUFReader(tmp_path / "gguf" / "adapter.gguf").fields
    assert fields["general.base_model.0.repo_url"].contents() == "https://huggingface.co/org/base"
    assert "general.base_model.0.version" not in fields
    with pytest.raises(HubError, match=r"'/models/llama' is no model of the hub; give .* as OWNER/NAME"):
        export(readable, tmp_path / "no", base="/models/llama")


def test_a_card_that_is_composed_again_has_the_answers_and_versions_of_the_run(
    llama_folder: Path, tmp_path: Path
) -> None:
    run = runs.finished(llama_folder, tmp_path)
    (run / "finished.json").write_text(json.dumps({"round": 1, "answers": {"qa": [0.25, 0.5]}}))
    (run / "versions.json").write_text(json.dumps({"torch": "0.1"}))
    exported(run, tmp_path / "out", "--base", "org/base")
    text = card_of(tmp_path / "out").text
    assert "| qa | 25.0% | 50.0% |" in text
    assert text.split("## Versions")[1].count("\n| ") == 3
    assert "| torch | 0.1 |" in text


def test_ollama_reads_the_runs_template_and_stop(readable: Path, tmp_path: Path) -> None:
    exported(readable, tmp_path / "whole", "--to", "ollama", "dtype=q8_0")
    lines = (tmp_path / "whole" / "Modelfile").read_text()
    assert lines.startswith('FROM ./model.gguf\nTEMPLATE """')
    assert 'PARAMETER stop """</s>"""' in lines
    assert "{{ .Content }}" in lines
    kinds = {each.tensor_type.name for each in GGUFReader(tmp_path / "whole" / "model.gguf").tensors}
    assert "Q8_0" in kinds
    exported(readable, tmp_path / "alone", "--to", "ollama", "base=smollm2:135m")
    assert (
        (tmp_path / "alone" / "Modelfile")
        .read_text()
        .startswith("FROM smollm2:135m\nADAPTER ./adapter.gguf\n")
    )
    assert not (tmp_path / "alone" / "model.gguf").exists()
    assert not (tmp_path / "alone" / "LICENSE").exists()


def test_results_of_an_evaluation_are_in_the_card_with_their_intervals(run: Path, tmp_path: Path) -> None:
    data = runs.written(tmp_path / "test.jsonl", runs.rows(count=9, seed=3))
    found = CliRunner().invoke(main, ["evaluate", str(run), "--data", str(data), "--json"])
    assert found.exit_code == 0, found.output
    (tmp_path / "found.json").write_text(found.stdout)
    exported(run, tmp_path / "out", "--results", str(tmp_path / "found.json"))
    own, measured = card_of(tmp_path / "out").data.eval_results
    whole = json.loads(found.stdout)["measures"][0]
    assert (own.dataset_split, own.metric_type) == ("held-out", "loss")
    assert (measured.dataset_name, measured.metric_value) == ("test.jsonl", whole["run"]["value"])
    assert measured.metric_args["interval_95"] == [whole["run"]["low"], whole["run"]["high"]]
    assert measured.metric_args["examples"] == 9
    for other in ({"adapter": "0" * 64}, {}):
        result = {key: each for key, each in json.loads(found.stdout).items() if key != "adapter"} | other
        (tmp_path / "other.json").write_text(json.dumps(result))
        says = "is the result of another adapter" if other else "holds no result of an evaluation"
        with pytest.raises(DataError, match=rf"other\.json {says}"):
            export(run, tmp_path / "other", results=[tmp_path / "other.json"])
    number = json.loads(found.stdout)
    number["measures"][0]["run"]["value"] = float("nan")  # which Python's reader of JSON accepts
    for wrong in ("{}", json.dumps(number)):
        (tmp_path / "no.json").write_text(wrong)
        with pytest.raises(DataError, match=r"no\.json holds no result of an evaluation; write one with"):
            export(run, tmp_path / "other", results=[tmp_path / "no.json"])
    assert not (tmp_path / "other").exists()


def test_a_round_before_the_last_has_a_card_of_its_own(run: Path, tmp_path: Path) -> None:
    exported(run, tmp_path / "out", "--round", "1")
    card = card_of(tmp_path / "out")
    assert "in 1 round." in card.text
    assert "clients | 4, split by iid" in card.text


def test_a_base_that_is_gone_is_named(
    readable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = folder.read_settings(readable).model.base
    Path(base).rename(tmp_path / "away")
    try:
        with pytest.raises(BaseError, match=f"there is no folder {base}.*put the base there"):
            export(readable, tmp_path / "out", "gguf_adapter")
    finally:
        (tmp_path / "away").rename(base)
    assert not (tmp_path / "out").exists()


def test_a_base_that_llama_cpp_cannot_read_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(main, ["export", str(run), "--to", "gguf", "-o", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "its tokenizer is of type WordLevel, and only BPE is verified" in done.output
    assert not (tmp_path / "out").exists()
