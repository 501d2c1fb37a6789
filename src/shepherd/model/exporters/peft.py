"""A folder with the adapter, its configuration and the tokenizer, which PEFT loads onto the base."""

from __future__ import annotations

from pathlib import Path

from shepherd.config import Table
from shepherd.model.exporting import Exporter, Trained, command

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be."""


class Config(Table):
    """This exporter has no keys."""


def build(config: Config) -> Exporter:
    """Build the exporter."""

    def write(folder: Path, trained: Trained) -> None:
        from shepherd.model import files  # torch

        files.write(folder, trained.adapter, trained.base)
        files.write_tokenizer(folder, trained.base, trained.stop)

    def serve(folder: Path, trained: Trained) -> str:
        from shepherd.model import files, lora  # torch

        if any(target.parameter for target in trained.base.targets):
            return ""  # not verified for stacked experts
        ranks = lora.ranks(trained.base.targets, files.without_dead_ranks(trained.adapter, trained.base))
        room = next((size for size in VLLM_RANKS if size >= max(ranks.values())), None)
        if room is None:
            return ""
        name, revision = files.named(trained.base)
        pinned = ("--revision", revision) if revision else ()
        options = ("--enable-lora", "--max-lora-rank", room, "--lora-modules", f"adapter={folder}")
        return command("vllm", "serve", name, *pinned, *options)

    return Exporter(write=write, serve=serve, by_id=True)
