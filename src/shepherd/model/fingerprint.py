"""The fingerprint of a base: 16 hex digits that identify it, computed from its files.

It covers the configuration as transformers parses it, without defaults and keys that do not change any logit,
and the name, the shape and up to 64 values of each stored tensor, evenly spaced and rounded to bfloat16. A
head that is a copy of the embedding is left out, since not every format stores it. So it is the same

- in whatever dtype or quantisation the base is loaded, and wherever its folder is;
- whether the base is stored whole or in shards;
- whether the configuration is as its author wrote it or as transformers completes it when it saves a base;
- for a base saved as float32 and the same one saved as bfloat16 (but not as float16, which rounds twice).

Only the sampled values are read: a few bytes per tensor, whatever the size of the base. A version of
transformers that parses a configuration differently, as version 4 does with rope, may give another one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from shepherd.errors import BaseError
from shepherd.model import digest
from shepherd.model.lora import Target

if TYPE_CHECKING:
    from shepherd.model.base import Base

SAMPLED_VALUES = 64  # of each tensor
NO_LOGIT = re.compile(
    r"_.*|transformers_version|dtype|torch_dtype|use_cache|architectures|initializer_(range|factor)"
    r"|.*dropout.*|.*pdrop|id2label|label2id"
)
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def of_base(name: str, revision: str | None, network: nn.Module) -> str:
    """The fingerprint of a base that was loaded by this name, a folder or a Hugging Face id.

    If its weights are in no file that `digest` covers, it is computed from the loaded tensors.
    """
    try:
        return of_folder(digest.folder_of(name, revision))
    except BaseError:
        return of_tensors(network)


def of_folder(folder: str | Path) -> str:
    """The fingerprint of the base in a folder.

    Raises:
        BaseError: the folder holds no configuration or no weights, or a file cannot be read.
    """
    folder = Path(folder)
    stored = [name for name in digest.weights(folder) if not name.endswith(".json")]
    try:
        config = json.loads((folder / digest.CONFIG_FILE).read_text(encoding="utf8"))
        lines = _without_copies(
            config, dict(line for name in stored for line in _tensor_lines(folder / name))
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise BaseError(
            f"a file of base folder {folder} cannot be read ({error}); download its files again"
        ) from error
    found = hashlib.sha256(json.dumps(_relevant_config(config), sort_keys=True).encode())
    for name in sorted(lines):
        found.update(name.encode() + lines[name])
    return found.hexdigest()[:16]


def _relevant_config(config: dict[str, Any]) -> Any:
    """A configuration, completed by its class, without defaults and keys that change no logit."""
    try:
        kind = CONFIG_MAPPING[config["model_type"]]
        parsed, usual = (_as_json(one.to_dict()) for one in (kind.from_dict(config), kind()))
    except Exception:  # of code that comes with the base, or of a class that refuses it
        return _non_defaults(config, {})
    return {**_non_defaults(parsed, usual), "model_type": config["model_type"]}


def _as_json(config: dict[str, Any]) -> Any:
    return json.loads(json.dumps(config, default=str))


def _non_defaults(config: Any, usual: Any) -> Any:
    """The values of a configuration, nested ones included, that differ from its class's defaults."""
    if not isinstance(config, dict):
        return config
    usual = usual if isinstance(usual, dict) else {}
    return {
        key: _non_defaults(value, usual.get(key))
        for key, value in config.items()
        if not NO_LOGIT.fullmatch(key) and (key not in usual or value != usual[key])
    }


def _without_copies(config: dict[str, Any], lines: dict[str, bytes]) -> dict[str, bytes]:
    """The tensors without those that the base's class ties to another and that are equal to it."""
    counts = Counter(lines.values())
    try:
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[config["model_type"]]]
        tied = list(kind._tied_weights_keys or ())  # patterns
    except Exception:  # of code that comes with the base
        return lines
    return {
        name: line
        for name, line in lines.items()
        if counts[line] == 1 or not any(re.fullmatch(key, name) for key in tied)
    }


def _tensor_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each tensor's name, and its shape with its sampled values as bytes."""
    for name, shape, sample in _samples(path):
        if isinstance(sample, Tensor):
            sample = sample.float().bfloat16().view(torch.int16).numpy().tobytes()
        yield name, f" {shape} ".encode() + sample


def _samples(path: Path) -> Iterator[tuple[str, list[int], Tensor | bytes]]:
    """Each tensor's name, shape and sampled values, read one by one: mapped memory would read whole pages."""
    with open(path, "rb", buffering=0) as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
        for name, about in header.items():
            if name == "__metadata__":
                continue
            begin, end = about["data_offsets"]
            count = math.prod(about["shape"])
            width = (end - begin) // max(count, 1) or 1  # bytes; some dtypes pack several values into one
            sample = bytearray()
            for i in _places(min(count, end - begin)):
                file.seek(start + begin + i * width)
                sample += file.read(width)
            kind = FLOATS.get(about["dtype"])
            yield (
                name,
                about["shape"],
                torch.frombuffer(sample, dtype=kind) if kind and sample else bytes(sample),
            )


def _places(count: int) -> range:
    return range(0, count, max(1, count // SAMPLED_VALUES))


def is_of(recorded: str, base: Base) -> bool:
    """Whether a recorded fingerprint is this base's, in today's form or the earlier one."""
    return recorded == base.fingerprint or recorded == of_tensors(base.model, base.targets)


def of_tensors(network: nn.Module, targets: Sequence[Target] = ()) -> str:
    """The earlier form of a fingerprint: from the loaded vectors and embeddings, rounded to bfloat16.

    It differs if the base is loaded as float16, and is the same for two bases that differ in their linear
    modules only. `targets` are the modules with an adapted layer, whose names are replaced by the original
    ones.
    """
    adapted = {f"{target.module}.base": target.module for target in targets}
    named = []
    for name, tensor in network.named_parameters():
        parent, _, leaf = name.rpartition(".")
        named.append((f"{adapted[parent]}.{leaf}" if parent in adapted else name, tensor))
    found = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        if tensor.ndim == 2 and "embed" not in name:
            continue
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLED_VALUES)].to("cpu", torch.float32).to(torch.bfloat16)
        found.update(f"{name} {tuple(tensor.shape)} ".encode() + sample.float().numpy().tobytes())
    return found.hexdigest()[:16]
