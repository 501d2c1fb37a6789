"""Read and write adapters in PEFT's folder layout, strictly."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as bytes_of
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from shepherd.core import Adapter, require_shapes, shapes_of
from shepherd.errors import AdapterError, BaseError
from shepherd.io import lfs, paths, private
from shepherd.io.atomic import os_errors
from shepherd.model import fingerprint, lora
from shepherd.model.base import Base
from shepherd.model.lora import PEFT_PREFIX, layers, scaling
from shepherd.settings import AdapterTable

if TYPE_CHECKING:
    from peft import LoraConfig

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
CONFIG = "adapter_config.json"
WEIGHT_SUFFIX = ".weight"
BASE_KEY = "shepherd.base"  # of the safetensors metadata: the base's fingerprint
SUPPORTED_KEYS = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "target_parameters",
    # without effect on the logits
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "peft_version", "revision",
    "task_type",
}  # fmt: skip


def write(folder: Path, adapter: Adapter, base: Base) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, each whole or not at all.

    `peft.PeftModel.from_pretrained(model, folder)` reads them back. If the base can be built without its
    weights, what PEFT would load is checked.

    Raises:
        AdapterError: the adapter does not fit the base; or PEFT would load a different one, though the folder
            is written and `read` reads it.
        FolderError: the folder cannot be written.
    """
    found = _write_adapter(folder, adapter, base)
    if found.refused:
        raise AdapterError(
            f"adapter {folder} is written and can be used here, but {_refusal(base, found.refused)}"
        )
    if found.lost:
        raise AdapterError(
            f"adapter {folder} is written and can be used here, but PEFT {version('peft')} would leave out"
            f" or change {len(found.lost)} of its {len(adapter)} tensors, {found.lost[0]} first; set"
            f" {_loadable_targets(base, found.lost)} and train it again"
        )


def rehearse(base: Base) -> str:
    """Write an adapter of rank 1 and check that PEFT would load it, before anything is trained.

    Returns:
        A remark on the adapters of this base, as a sentence; mostly "".

    Raises:
        AdapterError: PEFT would load a different adapter from the trained one.
    """
    small = replace(base, adapter=base.adapter.model_copy(update={"rank": 1}))
    rng = np.random.default_rng(0)
    adapter = Adapter({name: rng.normal(size=shape) for name, shape in small.shapes.items()})
    with tempfile.TemporaryDirectory() as folder:
        found = _write_adapter(Path(folder), adapter, small)
    if found.refused:
        raise AdapterError(_refusal(base, found.refused))
    if found.lost:
        modules = sorted({name.rpartition(".lora_")[0].removeprefix(PEFT_PREFIX) for name in found.lost})
        raise AdapterError(
            f"PEFT {version('peft')} would not load the adapters of {len(modules)} modules of base"
            f" {base.name} ({base.model.config.model_type}) as they are trained, {modules[0]} first; set"
            f" {_loadable_targets(base, found.lost)}"
        )
    if found.unknown:
        return f"what PEFT would load of the adapter cannot be checked: {found.unknown}"
    if base.adapter.targets == "all-linear" and (names := lora.refused_by_peft(base.model)):
        kind = base.model.config.model_type
        return f'adapter.targets = "all-linear" leaves out {", ".join(names)}, which PEFT refuses for {kind}'
    if found.as_parameters:
        kinds = sorted({name.rpartition(".")[2] for name in found.as_parameters})
        return (
            f"the adapter names {len(found.as_parameters)} modules ({', '.join(kinds)}) as target_parameters,"
            " since PEFT would treat them as experts otherwise"
        ) + (", and a dropout of 0, the only one that PEFT allows there" if base.adapter.dropout else "")
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """How an adapter was written: modules named as parameters, and tensors that PEFT would lose."""

    as_parameters: tuple[str, ...] = ()
    lost: Sequence[str] = ()
    refused: str = ""
    """PEFT's reason for refusing the folder; "" if it loads it."""
    unknown: str = ""
    """Why this could not be checked; "" if it was."""


def _write_adapter(folder: Path, adapter: Adapter, base: Base) -> _Found:
    lora.require_fits(base.targets, adapter, "the adapter to write")
    adapter = without_dead_ranks(adapter, base)
    metadata = {"format": "pt", BASE_KEY: base.fingerprint}
    with replacing(folder) as scratch:
        (scratch / WEIGHTS).write_bytes(_sort_metadata(bytes_of(dict(adapter), metadata)))
        return _write_loadable_config(scratch, adapter, base)


def without_dead_ranks(adapter: Adapter, base: Base) -> Adapter:
    """The adapter without its last ranks above the base's, as far as their product is zero."""
    kept = {}
    for target in base.targets:
        a = adapter[target.name_a].reshape(target.experts, -1, target.inputs)  # (E, r, in)
        b = adapter[target.name_b].reshape(target.outputs, -1, target.experts)  # (out, r, E)
        live = np.any(np.any(a, axis=2) & np.any(b, axis=0).T, axis=0)  # (r,)
        last = int(np.flatnonzero(live).max(initial=-1)) + 1
        kept[target.name_a] = min(a.shape[1], max(last, base.adapter.rank))
    return lora.at_ranks(base.targets, adapter, kept)


def _write_loadable_config(folder: Path, adapter: Adapter, base: Base) -> _Found:
    """Write a configuration with which PEFT loads every tensor; the usual one if it does."""
    from shepherd.model import peft_loading

    ranks = lora.ranks(base.targets, adapter)
    _write_config(folder, config_of(base, ranks=ranks))
    try:
        lost, refused = peft_loading.lost(folder, adapter, base)
        if not lost:
            return _Found()
        hit = [s for s in base.targets if s.name_a in lost or s.name_b in lost]
        modules = tuple(target.module for target in hit if not target.parameter)
        _write_config(folder, config_of(base, as_parameters=modules, ranks=ranks))
        lost, again = peft_loading.lost(folder, adapter, base)
        return _Found(as_parameters=modules, lost=lost, refused=again and (refused or again))
    except BaseError as error:
        return _Found(unknown=str(error))


def _refusal(base: Base, reason: str) -> str:
    return (
        f"PEFT {version('peft')} does not load adapters of these targets of base {base.name}"
        f" ({base.model.config.model_type}): {reason.rstrip('.')}; change adapter.targets"
    )


def _write_config(folder: Path, config: LoraConfig) -> None:
    """Write the configuration as PEFT does, but with sets sorted: PEFT's order changes from run to run."""
    keys = {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
    }
    (folder / CONFIG).write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n", encoding="utf8")


def _loadable_targets(base: Base, lost: Sequence[str]) -> str:
    """The line of the run file that leaves out the targets of these lost tensors."""
    gone = [s.module for s in base.targets if s.name_a in lost or s.name_b in lost]
    kept = [s.module for s in base.targets if s.module not in gone]
    names = sorted({_unique_suffix(module, gone) for module in kept})
    return (
        f"adapter.targets = {json.dumps(names)}"
        if names
        else "another base, since none of its modules is left"
    )


def _unique_suffix(module: str, others: Sequence[str]) -> str:
    """The shortest end of a module's name that is not the end of another's."""
    parts = module.split(".")
    ends = (".".join(parts[i:]) for i in reversed(range(len(parts))))
    return next(end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others))


def write_tokenizer(folder: Path, base: Base, stop: Sequence[int]) -> None:
    """Write the tokenizer with its chat template, and `generation_config.json` with the stop tokens.

    `AutoTokenizer.from_pretrained(folder)` and `GenerationConfig.from_pretrained(folder)` read them back.

    Raises:
        FolderError: the folder cannot be written.
    """
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.backend_tokenizer.no_padding()  # settings of the last batch are not part of the tokenizer
    tokenizer.backend_tokenizer.no_truncation()
    eos = tokenizer.eos_token_id
    generation = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(stop),
        pad_token_id=eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    with replacing(folder) as scratch:
        tokenizer.save_pretrained(scratch)
        _make_portable(scratch / "tokenizer_config.json")
        generation.save_pretrained(scratch)


def _make_portable(path: Path) -> None:
    """Remove how a tokenizer was loaded here from its configuration, and name a class of every version."""
    keys = json.loads(path.read_text(encoding="utf8"))
    keys = {key: value for key, value in keys.items() if key not in ("is_local", "local_files_only")}
    if keys.get("tokenizer_class") == "TokenizersBackend":  # only in transformers 5
        keys["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n", encoding="utf8")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files then replace those of the same names in `folder`, each atomically."""
    with os_errors(f"adapter folder {folder} cannot be written", "free disk space or check its permissions"):
        private.make(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
            yield Path(scratch)
            for path in sorted(Path(scratch).rglob("*")):
                place = folder / path.relative_to(scratch)
                if path.is_dir():
                    place.mkdir(mode=private.FOLDER, exist_ok=True)
                else:
                    path.chmod(private.FILE)
                    os.replace(path, place)


def _sort_metadata(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted, since the library's order changes from run to run.

    The format is eight bytes with the header's length, the header as JSON, the tensors.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def config_of(
    base: Base, as_parameters: Collection[str] = (), ranks: Mapping[str, int] | None = None
) -> LoraConfig:
    """The PEFT configuration with which an adapter gives the same logits.

    Modules in `as_parameters` are named by their weights: PEFT rewrites the names of modules that it treats
    as experts, but not those of parameters. The tensors are the same.

    Args:
        ranks: name of A -> rank of each target, where it may be another than the base's. The scale of every
            product stays the base's, so alpha grows with the rank.
    """
    from peft import LoraConfig  # takes seconds, which answering does not need

    table = base.adapter
    by_module = {target.module: (ranks or {}).get(target.name_a, table.rank) for target in base.targets}
    usual = Counter(by_module.values()).most_common(1)[0][0] if by_module else table.rank
    others = {module: rank for module, rank in by_module.items() if rank != usual}
    bases = [layer.base for _, layer in layers(base.model, base.targets)]
    name, revision = named(base)
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
        revision=revision,
        inference_mode=True,
        r=usual,
        lora_alpha=_alpha(table, usual),
        rank_pattern=others,
        alpha_pattern={module: _alpha(table, rank) for module, rank in others.items()},
        lora_dropout=0.0 if as_parameters else table.dropout,
        use_rslora=table.rank_stabilised,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in bases),
        target_modules=[s.module for s in base.targets if not s.parameter and s.module not in as_parameters],
        target_parameters=_named_parameters(base, as_parameters) or None,
    )


def _alpha(table: AdapterTable, rank: int) -> int | float:
    """The alpha with which factors of this rank are scaled as those of the table's rank."""
    alpha = table.alpha
    if rank != table.rank:
        alpha = lora.scaling(table) * (math.sqrt(rank) if table.rank_stabilised else rank)
    return int(alpha) if alpha.is_integer() else alpha


def _named_parameters(base: Base, modules: Collection[str]) -> list[str]:
    """Names of the stacked experts' parameters and of the weights of `modules`."""
    stacked = [f"{target.module}.{target.parameter}" for target in base.targets if target.parameter]
    return sorted([*stacked, *(f"{module}{WEIGHT_SUFFIX}" for module in modules)])


def named(base: Base) -> tuple[str, str | None]:
    """What others load the base by: a Hugging Face id and the commit, or a folder's absolute path."""
    source = base.model.config._name_or_path or base.name
    if os.path.isdir(source):
        source = os.path.abspath(source)
    return paths.for_others(source, base.table.revision, base.hub_name)


def read(folder: str | Path, base: Base) -> Adapter:
    """Read an adapter that was made for this base; its rank may be another than the base's.

    Where PEFT's configuration gives some modules an alpha of their own, their B is multiplied by its share of
    the others' alpha, so that all have one scale.

    Raises:
        AdapterError: a file is missing or unreadable, a tensor is missing, extra or misshapen, the scaling
            differs, or the adapter belongs to another base.
    """
    folder = Path(folder)
    config, keys = read_config(folder), _read_json(folder)
    ranks, alphas = keys.get("rank_pattern") or {}, keys.get("alpha_pattern") or {}
    found = scaling(config)
    if abs(found - scaling(base.adapter)) > 1e-9:
        raise AdapterError(
            f"adapter {folder} scales by {found:g}, this run by"
            f" {scaling(base.adapter):g}; use its alpha and rank"
        )
    tensors, metadata = _tensors(folder / WEIGHTS)
    expected: dict[str, tuple[int, ...]] = {}
    for target in base.targets:
        rank = _own(ranks, target, config.rank)
        expected |= lora.shapes([target], rank)
    require_shapes(expected, shapes_of(tensors), f"adapter {folder}")
    made_for = metadata.get(BASE_KEY, base.fingerprint)
    if not fingerprint.is_of(made_for, base):
        raise AdapterError(
            f"adapter {folder} was made for another base ({made_for}) than {base.name}"
            f" ({base.fingerprint}); load it with its own base"
        )
    for target in base.targets if not ranks else ():  # with a rank of its own, alpha keeps the scale
        share = np.float32(_own(alphas, target, config.alpha) / config.alpha)
        if share != 1:
            tensors[target.name_b] = tensors[target.name_b] * share
    return Adapter(tensors)


def _own(pattern: Mapping[str, Any], target: lora.Target, otherwise: Any) -> Any:
    """What a pattern of PEFT's configuration says of a target: its first name that fits."""
    return next((each for name, each in pattern.items() if lora.matches(target.module, name)), otherwise)


def base_of(folder: Path) -> str:
    """What the configuration of an adapter calls its base; "" if it does not say.

    Raises:
        AdapterError: the configuration is missing or unreadable.
    """
    return str(_read_json(folder).get("base_model_name_or_path") or "")


def tensor_names(folder: Path) -> frozenset[str]:
    """Names of the tensors of the adapter in a folder.

    Raises:
        AdapterError: its weights are missing, unreadable or a pickle.
    """
    with _opened(folder / WEIGHTS) as file:
        return frozenset(file.keys())


def require_safetensors(folder: Path) -> None:
    """Raise AdapterError unless a folder holds the weights of an adapter as safetensors."""
    if (folder / WEIGHTS).is_file():
        return
    if (folder / PICKLE).is_file():
        raise AdapterError(
            f"adapter {folder} holds its weights as a pickle, {PICKLE}, which can run code when it is read;"
            " where you trust it, load it in PEFT and write it as safetensors with save_pretrained(FOLDER)"
        )
    raise AdapterError(f"{folder} holds no adapter: {WEIGHTS} is missing; name a folder of PEFT, or of a run")


def read_config(folder: Path) -> AdapterTable:
    """The `[adapter]` table that corresponds to a PEFT folder's configuration.

    Raises:
        AdapterError: it is not a LoRA folder, or uses a variant that is not supported.
    """
    config = _read_json(folder)
    refused = [key for key, value in config.items() if not _is_supported(key, value, config)]
    if config.get("peft_type") != "LORA" or refused:
        key = refused[0] if config.get("peft_type") == "LORA" else "peft_type"
        raise AdapterError(
            f"adapter {folder} has {key} = {json.dumps(config.get(key))}, which is not"
            " supported; give a plain LoRA folder"
        )
    try:
        targets = config["target_modules"]
        return AdapterTable(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            rank_stabilised=config.get("use_rslora", False),
            targets=targets if targets == "all-linear" else _names(targets, _linear_parameters(config)),
            target_parameters=tuple(
                name for name in _target_parameters(config) if not name.endswith(WEIGHT_SUFFIX)
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            f"the {CONFIG} of adapter {folder} lacks a usable r, lora_alpha or target_modules; fix it"
        ) from error


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / CONFIG).read_text(encoding="utf8")))
    except (OSError, ValueError, TypeError) as error:
        if fault := lfs.fault(folder / CONFIG):
            raise AdapterError(f"adapter {folder}: {fault}") from error
        raise AdapterError(f"adapter {folder} has no readable {CONFIG}; give a PEFT LoRA folder") from error


def _is_supported(key: str, value: Any, config: Mapping[str, Any]) -> bool:
    """Whether a key of PEFT's configuration is supported or has no effect; others must be empty."""
    match key:
        case "init_lora_weights":  # others change the base's own weights
            return value in (True, False, None, "gaussian", "orthogonal")
        case "rank_pattern" | "alpha_pattern":
            everywhere = config.get("r" if key == "rank_pattern" else "lora_alpha")
            same = isinstance(value, dict) and all(each == everywhere for each in value.values())
            return same or not value or _scale_alike(config) or _scales_alone(config)
        case _:
            return key in SUPPORTED_KEYS or not value or value == _defaults().get(key)


def _scale_alike(config: Mapping[str, Any]) -> bool:
    """Whether modules of other ranks are named in full and scaled as all others are."""
    ranks, alphas = config.get("rank_pattern"), config.get("alpha_pattern")
    if not (isinstance(ranks, dict) and isinstance(alphas, dict) and ranks.keys() == alphas.keys()):
        return False
    try:
        each = [AdapterTable(rank=config["r"], alpha=config["lora_alpha"])]
        each += [AdapterTable(rank=ranks[name], alpha=alphas[name]) for name in ranks]
    except (KeyError, ValueError):
        return False
    stabilised = bool(config.get("use_rslora"))
    scales = [scaling(table.model_copy(update={"rank_stabilised": stabilised})) for table in each]
    return all(abs(scale - scales[0]) < 1e-9 for scale in scales) and all(
        re.fullmatch(r"[\w.-]+", name) for name in ranks
    )


def _scales_alone(config: Mapping[str, Any]) -> bool:
    """Whether some modules have another alpha, and nothing else of their own."""
    alphas = config.get("alpha_pattern")
    if config.get("rank_pattern") or config.get("target_parameters") or not isinstance(alphas, dict):
        return False
    return all(
        re.fullmatch(r"[\w.-]+", name)
        and isinstance(alpha, int | float)
        and not isinstance(alpha, bool)
        and 0 < alpha < math.inf
        for name, alpha in alphas.items()
    )


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    """The defaults of PEFT's configuration."""
    from peft import LoraConfig

    return dict(LoraConfig().to_dict())


def _linear_parameters(config: Mapping[str, Any]) -> list[str]:
    """Names of the linear modules that the configuration names by their weights."""
    return [
        name.removesuffix(WEIGHT_SUFFIX)
        for name in _target_parameters(config)
        if name.endswith(WEIGHT_SUFFIX)
    ]


def _target_parameters(config: Mapping[str, Any]) -> list[str]:
    return sorted(map(str, config.get("target_parameters") or ()))


def _names(targets: str | list[str] | None, others: Sequence[str]) -> tuple[str, ...]:
    """PEFT's list of names and `others`; or its pattern alone, which matches no target's name."""
    return (targets,) if isinstance(targets, str) else tuple(sorted({*(targets or ()), *others}))


def _tensors(path: Path) -> tuple[dict[str, Any], Mapping[str, str]]:
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file() and (path.parent / PICKLE).is_file():
        require_safetensors(path.parent)
    try:
        with safe_open(path, framework="pt") as file:  # torch reads bfloat16, numpy does not
            yield file
    except (OSError, SafetensorError) as error:
        if fault := lfs.fault(path):
            raise AdapterError(f"adapter {path.parent}: {fault}") from error
        raise AdapterError(
            f"adapter file {path} cannot be read ({error}); restore it, since it is missing or truncated"
        ) from error
