"""The export matrix: format by architecture, and how far the logits are from those of base and adapter.

A tiny random model of each architecture that is written as GGUF gets an adapter of two ranks,
rank-stabilised, and each format is read by a library that this project did not write: PEFT, transformers (its
own reader of GGUF as well), and llama.cpp through llama-cpp-python, where that is installed. The reference is
PEFT's. In one more row all have one rank, and the PEFT folder gives some modules an alpha of their own.

    python -m benchmarks.exports
    python -m benchmarks.exports --json exports.json
    python -m benchmarks.exports --base ~/models/SmolLM2-135M-Instruct    # also a base of your own
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import gguf_bases
from benchmarks.common import Figures, Table, parser, run
from shepherd.core import Adapter
from shepherd.data.template import Template
from shepherd.model import base as bases
from shepherd.model import files, gguf_export, lora, merging
from shepherd.model.base import Base
from shepherd.model.exporting import Trained
from shepherd.settings import AdapterTable, ModelTable

TOKENS = 24
PLAIN = AdapterTable(rank=4, alpha=8, rank_stabilised=True)
ALPHAS = {"layers.0.self_attn.q_proj": 3, "q_proj": 24, "k_proj": 2, "down_proj": 16}
"""Alphas of a PEFT folder's `alpha_pattern`; the first name that fits a module counts, the others have 8."""
WITHIN = {
    "merged, float32": 1e-4,
    "merged, bfloat16": 0.1,
    "GGUF, float32, in transformers": 1e-4,
    "GGUF, float32, in llama.cpp": 1e-3,  # its GELU is a table of float16
    "GGUF, q8_0, in llama.cpp": 0.1,
    "GGUF adapter on its base, in llama.cpp": 1e-3,
}
"""Format -> the largest difference of a logit that passes, relative to the largest logit."""


def main(options: Namespace) -> Figures:
    """Export and read back."""
    warnings.simplefilter("ignore")
    rows = []
    kinds = ("llama", "qwen2") if options.quick else tuple(gguf_bases.CONFIGS)
    with tempfile.TemporaryDirectory() as scratch:
        for place, kind in enumerate(kinds):
            folder = gguf_bases.save(gguf_bases.CONFIGS[kind], Path(scratch) / f"base-{place}")
            rows.append(_measured(kind, folder, Path(scratch) / f"{place}", 0.1, options.seed))
            if kind == "llama":
                out = Path(scratch) / f"{place}-alphas"
                rows.append(_measured(f"{kind}, alpha pattern", folder, out, 0.1, options.seed, ALPHAS))
        for place, folder in enumerate(options.base):
            rows.append(_measured(folder.name, folder, Path(scratch) / f"own-{place}", 0.02, options.seed))
    return {
        "rows": rows,
        "within": WITHIN,
        "llama_cpp": find_spec("llama_cpp") is not None,
        "passed": all(
            found is None or found <= WITHIN[name] for row in rows for name, found in row["formats"].items()
        ),
    }


def _measured(
    kind: str, folder: Path, out: Path, size: float, seed: int, alphas: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """One row: a base with random factors of this standard deviation, in each format.

    Args:
        alphas: what some modules have as alpha in the PEFT folder that the adapter is read from; then all
            have one rank.
    """
    base = bases.load(ModelTable(base=str(folder), dtype="float32"), PLAIN, device="cpu")
    out.mkdir()
    files.write(out / "peft", _adapter(base, size, seed, more_ranks=not alphas), base)
    if alphas:
        config = json.loads((out / "peft" / files.CONFIG).read_text())
        (out / "peft" / files.CONFIG).write_text(json.dumps({**config, "alpha_pattern": alphas}))
    adapter = files.read(out / "peft", base)
    stop, template = [base.tokenizer.eos_token_id], Template("alpaca")
    trained = Trained(base=base, adapter=adapter, stop=stop, template=template)
    alone = Trained(base=base, adapter=base.zero, stop=stop, template=template)
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, base.model.config.get_text_config().vocab_size, TOKENS).tolist()
    expected = _in_peft(base, out / "peft", ids)
    largest = float(expected.abs().max())
    gguf_export.write_model(out / "model.gguf", trained, "float32")
    gguf_export.write_model(out / "small.gguf", trained, "q8_0")
    gguf_export.write_model(out / "base.gguf", alone, "float32")
    gguf_export.write_adapter(out / "adapter.gguf", trained, "float32")
    readers: dict[str, Callable[[], Tensor | None]] = {
        "merged, float32": lambda: _merged(trained, out / "whole", "float32", ids),
        "merged, bfloat16": lambda: _merged(trained, out / "half", "bfloat16", ids),
        "GGUF, float32, in transformers": lambda: _in_transformers(base, out, ids),
        "GGUF, float32, in llama.cpp": lambda: _in_llama_cpp(out / "model.gguf", None, ids),
        "GGUF, q8_0, in llama.cpp": lambda: _in_llama_cpp(out / "small.gguf", None, ids),
        "GGUF adapter on its base, in llama.cpp": lambda: _in_llama_cpp(
            out / "base.gguf", out / "adapter.gguf", ids
        ),
    }
    found = {name: read() for name, read in readers.items()}
    files.write(out / "zero", base.zero, base)
    unmerged = _in_peft(base, out / "zero", ids)
    return {
        "architecture": kind,
        "largest_logit": largest,
        "adapter_moves": float((expected - unmerged).abs().max()) / largest,
        "formats": {
            name: None if logits is None else float((logits - expected).abs().max()) / largest
            for name, logits in found.items()
        },
    }


def _adapter(base: Base, size: float, seed: int, *, more_ranks: bool) -> Adapter:
    """Random factors; with more ranks, every third target has some."""
    rng = np.random.default_rng(seed)
    ranks = {
        target.name_a: PLAIN.rank + 2 * (more_ranks and place % 3 == 0)
        for place, target in enumerate(base.targets)
    }
    wide = lora.at_ranks(base.targets, base.zero, ranks)
    return Adapter({name: rng.normal(0, size, values.shape) for name, values in wide.items()})


def _logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    return found


def _in_peft(base: Base, folder: Path, ids: list[int]) -> Tensor:
    from peft import PeftModel

    network = AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32)
    return _logits(PeftModel.from_pretrained(network, folder), ids)


def _merged(trained: Trained, folder: Path, dtype: merging.Number, ids: list[int]) -> Tensor:
    merging.write(folder, trained, dtype=dtype, shard_bytes=5 * 10**9)
    return _logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), ids)


def _in_transformers(base: Base, folder: Path, ids: list[int]) -> Tensor:
    config = AutoConfig.from_pretrained(base.name)  # of which the reader takes a part from the file
    own = {} if config.model_type == "mistral" else {"config": config}  # read as llama, which it equals
    network = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32, **own)
    return _logits(network, ids)


def _in_llama_cpp(model: Path, adapter: Path | None, ids: list[int]) -> Tensor | None:
    if find_spec("llama_cpp") is None:
        return None
    import llama_cpp

    with_adapter = {"lora_path": str(adapter)} if adapter else {}
    sizes: dict[str, Any] = {"n_ctx": 64, "logits_all": True, "verbose": False, "n_threads": 1}
    sizes |= {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # else keys are float16
    network = llama_cpp.Llama(str(model), **sizes, **with_adapter)
    network.eval(ids)
    found = torch.tensor(np.array(network.scores[: len(ids)]))
    network.close()
    return found


def tables(figures: Figures) -> list[Table]:
    """The matrix."""

    def cells() -> Iterator[list[str]]:
        for row in figures["rows"]:
            numbers = ["-" if found is None else f"{found:.1e}" for found in row["formats"].values()]
            yield [row["architecture"], f"{row['adapter_moves']:.2f}", *numbers]

    notes = ["largest difference of a logit from PEFT's, over the largest logit"]
    if not figures["llama_cpp"]:
        notes.append("llama-cpp-python is not installed: its columns are empty")
    return [
        Table(
            "Exports: format by architecture",
            ("architecture", "adapter moves", *figures["within"]),
            list(cells()),
            notes,
        )
    ]


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--base", type=Path, action="append", default=[], help="a base's folder; repeatable")
    sys.exit(run(made.parse_args(), main, tables))
