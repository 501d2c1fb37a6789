"""Ask a run: what its adapter, or its base alone, answers."""

from __future__ import annotations

from pathlib import Path

from shepherd import checkpoint, folder
from shepherd.core import Adapter
from shepherd.data.examples import Turn
from shepherd.data.template import Template, prompt, stop_ids
from shepherd.errors import DataError, FolderError
from shepherd.loading import load_base, load_checkpoint
from shepherd.model import files
from shepherd.model import generate as generation
from shepherd.model.base import Base


def generate(
    path: str | Path,
    instruction: str,
    context: str = "",
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    base: bool = False,
    seed: int = 0,
) -> str:
    """Answer with the adapter of a run: the final one, else the last checkpoint's; or with the base alone.

    Raises:
        FolderError: there is no run, or it has no adapter yet.
        DataError: there is no instruction.
    """
    path = Path(path)
    if not instruction.strip():
        raise DataError("the instruction is empty; write what is asked")
    settings = folder.read_settings(path)
    loaded = load_base(settings)
    adapter = None if base else adapter_of(path, loaded)
    template, tokenizer = Template.of(settings.data), loaded.tokenizer
    turns = (Turn(role="user", text=instruction, context=context),)
    ((answer,),) = generation.generate(
        loaded,
        [adapter],
        [prompt(turns, template, tokenizer)],
        max_new_tokens=max_new_tokens or settings.evaluation.max_new_tokens,
        stop=stop_ids(template, tokenizer),
        temperature=temperature,
        seed=seed,
    )
    return str(tokenizer.decode(answer, skip_special_tokens=True)).strip()


def adapter_of(path: Path, base: Base) -> Adapter:
    """The adapter of the run in `path`: the final one, else the last checkpoint's.

    Raises:
        FolderError: no round is finished yet.
        CheckpointError: the last checkpoint is damaged, or was made over another base.
        AdapterError: the adapter is unreadable, or was made for another base.
    """
    if (path / "adapter" / files.CONFIG).is_file():
        return files.read(path / "adapter", base)
    last = checkpoint.latest(path / "checkpoints")
    if last is None:
        raise FolderError(f"the run in {path} has finished no round yet; go on with `shepherd resume {path}`")
    return load_checkpoint(last, base).state.adapter
