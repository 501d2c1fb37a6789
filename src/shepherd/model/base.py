"""Load a frozen base with its tokenizer and adapted layers, and prove that it can be trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import cached_file, extract_commit_hash, find_adapter_config_file
from transformers.utils import logging as transformers_logging

from shepherd.consent import NOTHING, Consent
from shepherd.core import Adapter
from shepherd.errors import BaseError, DataError
from shepherd.io.progress import many
from shepherd.model import digest, final_mlp, fingerprint, lora, remote_code
from shepherd.model.attention import PACKED
from shepherd.settings import AdapterTable, ModelTable

log = logging.getLogger(__name__)
CAPS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
)  # Gemma 2, RecurrentGemma, xLSTM


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Result of `model.proof` when a base was loaded."""

    unpacked: str = ""
    """Why examples run as padded batches of one client; "" if they run packed."""
    pads: bool = True
    """Whether prompts of several lengths are answered in one batch as each is alone."""
    batches: bool = True
    """Whether prompts of one length are answered in one batch as each is alone."""
    mute: str = ""
    """Why the base cannot generate answers; "" if it can."""
    decodes: bool = False
    """Whether rows may leave a batch of answers under way; see `model.decode`."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Base:
    """A frozen causal language model whose target modules carry stacks of adapters."""

    model: Any
    tokenizer: Any
    table: ModelTable
    """Settings that it was loaded by, with the commit if it is from the hub."""
    name: str
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    adapter: AdapterTable
    targets: tuple[lora.Target, ...]
    attention: str
    proof: Proof = Proof()
    hub_name: str = ""
    """Its name on the hub, as a person gave it; "" says what it was loaded by."""

    def __repr__(self) -> str:
        """Name, class, dtype and device."""
        kind, dtype = type(self.model).__name__, str(self.dtype).removeprefix("torch.")
        return f"<Base {self.name}: {kind}, {dtype} on {self.device}, {len(self.targets)} targets>"

    @property
    def packed(self) -> bool:
        """Whether examples of several clients run packed in one pass; otherwise in batches of one client."""
        return not self.proof.unpacked

    @property
    def max_length(self) -> int | None:
        """Most tokens that the base can read, prompt and answer together; None if there is no limit.

        At most the length above which `longrope` and similar scalings use other factors for every example
        of a pass, so that one client's example never changes another's (law 1).
        """
        config = self.model.config.get_text_config()
        most = [own_max_length(config), _scaling_switch_at(config)]
        return min((bound for bound in most if bound), default=None)

    @property
    def why_no_more(self) -> str:
        """The reason for `max_length` in words; "" if it is the base's own limit."""
        switch = _scaling_switch_at(self.model.config.get_text_config())
        if switch is None or self.max_length != switch:
            return ""
        return " (above it the position scaling of one example would change that of others)"

    def require_reads(self, tokens: int, whose: str) -> None:
        """Raise DataError if an example of this many tokens is longer than the base can read.

        Args:
            whose: owner of the example for the message: a client, or the held-out examples.
        """
        most = self.max_length
        if most and tokens > most:
            raise DataError(
                f"{whose}: an example has {tokens} tokens and base {self.name} reads at most"
                f" {most}{self.why_no_more}; set data.max_tokens = {most}"
            )

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Names and shapes of this base's adapters."""
        return lora.shapes(self.targets, self.adapter.rank)

    @property
    def zero(self) -> Adapter:
        """An adapter of zeros, with which the base computes as if alone."""
        return Adapter({name: np.zeros(shape) for name, shape in self.shapes.items()})


def own_max_length(config: Any) -> int | None:
    """Most tokens that a base was made for, by its text part's configuration; None if it has no limit."""
    for key in ("max_position_embeddings", "max_seq_len"):  # the second is MPT's
        most = getattr(config, key, None)
        if most and most > 0:
            return int(most)
    return None


def _scaling_switch_at(config: Any) -> int | None:
    """Tokens up to which position scaling does not depend on the pass; None if it never does."""
    scalings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    each = [
        scalings,
        *(scaling for scaling in scalings.values() if isinstance(scaling, dict)),
    ]  # of each layer type
    bounds = [
        scaling.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or getattr(config, "max_position_embeddings", None)
        for scaling in each
        if _depends_on_length(scaling)
    ]
    if getattr(config, "use_dynamic_ntk", False):  # the base's own code, as in the first Qwen
        bounds.append(getattr(config, "seq_length", None))
    return min((int(bound) for bound in bounds if bound), default=None)


def _depends_on_length(scaling: dict[str, Any]) -> bool:
    """Whether a position scaling depends on the longest example of the pass, as `longrope` and `dynamic` do.

    PhiMoE chooses `long_mscale` or `short_mscale` by it, whatever the type is. `yarn`, `llama3` and `linear`
    are the same at every length.
    """
    kind = str(scaling.get("rope_type", scaling.get("type")))
    return "longrope" in kind or "dynamic" in kind or any(str(key).startswith("long_") for key in scaling)


def load(
    model: ModelTable,
    adapter: AdapterTable,
    name: str = "",
    *,
    device: str = "auto",
    longest: int | None = None,
    proof: Proof | None = None,
    consent: Consent = NOTHING,
) -> Base:
    """Load `model.base`, a folder or a Hugging Face id, and put an adapted layer at every target.

    Args:
        name: name of the base in messages and adapter folders; by default `model.base`.
        device: device that it computes on; see `pick_device`.
        longest: tokens of the longest example that it will be trained on; None for any length. A sliding
            window that none reaches is not tested.
        proof: result of an earlier load of the same base, which is then not proven again.
        consent: whether code that comes with the base may run, if the table asks for it.

    Raises:
        BaseError: the base is missing or unreadable, lacks a target, cannot be trained here, has an adapter
            of its own, or asks to run code that nobody agreed to.
    """
    from shepherd.model.proof import verify_packing  # which imports Base

    model = _pin_revision(model)
    where = pick_device(device)
    dtype = pick_dtype(model.dtype, where)
    network = load_network(model, where, dtype, consent)
    tokenizer = load_tokenizer(model, consent)
    found = fingerprint.of_base(model.base, model.revision, network)
    base = assembled(
        network,
        tokenizer,
        model,
        adapter,
        name=name or model.base,
        fingerprint=found,
        device=where,
        dtype=dtype,
    )
    return replace(base, proof=verify_packing(base, longest) if proof is None else proof)


def assembled(
    network: Any,
    tokenizer: Any,
    model: ModelTable,
    adapter: AdapterTable,
    *,
    name: str,
    fingerprint: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Base:
    """A base of a network that is there already, with an adapted layer at every target, and without a proof.

    Raises:
        BaseError: a target is missing, or cannot have an adapter.
    """
    network.requires_grad_(False).eval()
    targets = lora.attach(network, adapter)
    final_mlp.skip_unread_positions(network)
    return Base(
        model=network,
        tokenizer=tokenizer,
        table=model,
        name=name,
        fingerprint=fingerprint,
        device=device,
        dtype=dtype,
        adapter=adapter,
        targets=targets,
        attention=network.config._attn_implementation,
    )


def load_tokenizer(model: ModelTable, consent: Consent = NOTHING) -> Any:
    """The base's tokenizer, which must be a fast one.

    Raises:
        BaseError: it is missing or not fast, or the table asks to run code that nobody agreed to.
    """
    model = _pin_revision(model)
    trusted = remote_code.allowed(model, consent)
    _require_config(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.base, revision=model.revision, trust_remote_code=trusted
        )
    except remote_code.LOADING_ERRORS as error:
        remote_code.require_known(model, error)
        _require_folder(model, error)
        raise BaseError(
            f"base {model.base} has no readable tokenizer ({_first_line(error)}); add tokenizer.json"
        ) from error
    if not tokenizer.is_fast:
        raise BaseError(f"base {model.base} has only a slow tokenizer; convert it to tokenizer.json")
    return tokenizer


def _pin_revision(model: ModelTable) -> ModelTable:
    """The table with the commit that its revision names now, so that what is checked is what is loaded."""
    if Path(model.base).is_dir():
        return model
    try:
        found = _from_hub(model, digest.CONFIG_FILE)
    except (OSError, ValueError):  # no such repository, which loading reports
        return model
    return model.model_copy(update={"revision": extract_commit_hash(found, None) or model.revision})


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA if available, else Apple's MPS, else the processor.

    Raises:
        BaseError: the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BaseError(
            f'device "{name}" is not available here; set auto or cpu (machine.device in a run file,'
            " trainer.device in a target's, device in the plan.json of a run folder)"
        ) from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number type of this name; "auto" is bfloat16 if the device multiplies it natively, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    native = device.type == "cpu" and _cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _require_config(model: ModelTable) -> None:
    looks_local = Path(model.base).exists() or model.base.startswith((".", "/", "~"))
    if looks_local and not (Path(model.base) / "config.json").is_file():
        raise BaseError(f"base folder {model.base} has no config.json; give a model's folder or its id")
    if looks_local:
        digest.require_no_adapter(Path(model.base))
        digest.require_tokenizer(Path(model.base))


def _require_no_adapter(model: ModelTable) -> None:
    """Raise BaseError if transformers would also load a PEFT adapter, or the base that one names."""
    try:
        found = find_adapter_config_file(model.base, revision=model.revision)
    except (OSError, ValueError):  # no such repository, which loading reports
        return
    if found is not None:
        raise BaseError(f"base {model.base} {digest.HAS_ADAPTER}")


def _require_safetensors(model: ModelTable) -> None:
    """Raise BaseError unless the weights are the safetensors that the digest covers; no pickle is read.

    For a repository without them transformers would ask a service on another host to convert it.
    """
    if named := remote_code.configuration(model).get("transformers_weights"):
        raise BaseError(
            f"base {model.base} has transformers_weights = {json.dumps(named)} in its config.json, but a base"
            f" is loaded from {digest.WEIGHTS_FILE} only; remove the key and give the file that name"
        )
    if Path(model.base).is_dir():
        list(digest.weights(Path(model.base)))
        return
    try:
        if not _from_hub(model, digest.CONFIG_FILE):
            return
        whole = _from_hub(model, digest.WEIGHTS_FILE)
        index = None if whole else _from_hub(model, digest.INDEX_FILE)
    except (OSError, ValueError):  # no such repository, which loading reports
        return
    if index:
        digest.shards(Path(index))
    elif not whole:
        raise BaseError(
            f"base {model.base} has no safetensors on the hub, or none on this disk if the hub cannot be"
            f" reached; its weights may be a pickle, {digest.AS_SAFETENSORS}"
        )


def _from_hub(model: ModelTable, name: str) -> str | None:
    """Path of a file of a repository, downloaded once; None if the repository lacks it."""
    found: str | None = cached_file(
        model.base, name, revision=model.revision, _raise_exceptions_for_missing_entries=False
    )
    return found


def _require_folder(model: ModelTable, error: Exception) -> None:
    """Raise BaseError, unless `model.base` is a folder, saying that it is neither a folder nor an id."""
    if not Path(model.base).is_dir():
        raise BaseError(
            f"there is no folder {model.base} (searched next to the run file and in {Path.cwd()}), and as a"
            f" Hugging Face id it cannot be loaded ({_first_line(error)}); give a folder with config.json and"
            " safetensors, or an id that this machine can reach"
        ) from error


def load_network(
    model: ModelTable, device: torch.device, dtype: torch.dtype | Literal["auto"], consent: Consent
) -> Any:
    """The base's network as transformers loads it, after checking what would be loaded.

    Args:
        dtype: number type of the weights; "auto" keeps the one in which they are stored, unquantised.

    Raises:
        BaseError: as `load`, except for adapters and training.
    """
    trusted = remote_code.allowed(model, consent)
    _require_config(model)
    _require_no_adapter(model)
    _require_safetensors(model)
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}, "use_safetensors": True}
    if model.quantize != "none" and isinstance(dtype, torch.dtype):
        options["quantization_config"] = _quantisation(model, device, dtype)
    transformers_logging.disable_progress_bar()
    try:
        with _hide_load_report():
            network, report = AutoModelForCausalLM.from_pretrained(
                model.base,
                revision=model.revision,
                trust_remote_code=trusted,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # named below
                **options,
            )
    except (*remote_code.LOADING_ERRORS, RuntimeError, SafetensorError) as error:
        remote_code.require_known(model, error)
        _require_folder(model, error)
        raise BaseError(
            f"base {model.base} cannot be loaded ({_first_line(error)}); give a folder with config.json and"
            " safetensors"
        ) from error
    _require_complete(model, report)
    _without_cpu_layout(network)
    network.generation_config = GenerationConfig()  # without the base's own repetition penalty and such
    return network


def _require_complete(model: ModelTable, report: Mapping[str, Any]) -> None:
    """Raise BaseError if tensors are missing or misshapen; log those that the architecture lacks."""
    unfit = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if unfit:  # transformers initialises them at random
        raise BaseError(
            f"base {model.base} lacks {len(unfit)} of its tensors or has them in another shape,"
            f" {min(unfit)} first; download its files again"
        )
    if strange := report["unexpected_keys"]:
        log.info(
            "base %s has %s that its architecture lacks, %s first; they are ignored",
            model.base,
            many(len(strange), "tensor"),
            min(strange),
        )


@contextmanager
def _hide_load_report() -> Iterator[None]:
    """Hide transformers' table of tensors, whose facts are reported here without terminal escapes."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_not_load_report)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_load_report)


def _is_not_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in str(record.msg)


def _quantisation(model: ModelTable, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
    if device.type not in ("cuda", "cpu"):
        raise BaseError(
            f'model.quantize = "{model.quantize}" needs CUDA or a processor; write "none" on {device.type}'
        )
    if find_spec("bitsandbytes") is None:
        raise BaseError(
            f'model.quantize = "{model.quantize}" needs bitsandbytes; install the extra [quantize], or write'
            ' "none"'
        )
    if model.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def quantise(network: Any, model: ModelTable, device: torch.device, dtype: torch.dtype) -> None:
    """Quantise the linear modules of an unquantised network in place, as loading by this table would.

    On the meta device the weights get the shapes and the number types of quantised ones.

    Raises:
        BaseError: this device cannot compute with such weights, or bitsandbytes is missing.
    """
    if model.quantize == "none":
        return
    before = dict(network.named_modules())
    AutoHfQuantizer.from_config(_quantisation(model, device, dtype)).preprocess_model(
        network, device_map=None
    )
    for name, module in network.named_modules():
        if module is before[name] or not isinstance(module, nn.Linear):
            continue
        whole, empty = before[name].weight.data, module.weight
        packed: Any = type(empty)
        if isinstance(before[name], Conv1D):
            whole = whole.T.contiguous()
        if whole.is_meta:
            four = model.quantize == "4bit"
            shape, kind = ((-(-whole.numel() // 2), 1), torch.uint8) if four else (whole.shape, torch.int8)
            module.weight = nn.Parameter(torch.empty(shape, dtype=kind, device="meta"), requires_grad=False)
        else:
            module.weight = packed(whole, requires_grad=False, **empty.__dict__).to(whole.device)
        module.bias = before[name].bias
    _without_cpu_layout(network)


def _without_cpu_layout(network: Any) -> None:
    """Keep bitsandbytes from laying weights out, in a pass without gradients, for a kernel that has none."""
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(":")


@contextmanager
def attention_impl(base: Base, how: str) -> Iterator[None]:
    """Run the base with another attention function, and restore its own afterwards.

    Raises:
        BaseError: the base's attention cannot be replaced.
    """
    configs = {id(c): c for m in base.model.modules() if (c := getattr(m, "config", None)) is not None}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        base.model.set_attn_implementation(how)
        if base.model.config._attn_implementation != how:
            raise BaseError("its attention is code of its own and cannot be replaced")
        yield
    finally:
        for config, own in before:  # from the whole to its parts, which may have their own each
            config._attn_implementation = own


def tuning_attention(base: Base) -> AbstractContextManager[None]:
    """Run tuning and scoring with packed attention, or with the base's own if it cannot be packed."""
    return attention_impl(base, PACKED) if base.packed else nullcontext()


def hidden_states(base: Base, ids: Tensor, positions: Tensor | None) -> Tensor:
    """The last hidden states, (N, width), of a packed batch or a padded one.

    A packed batch has ids (N,) and positions (N,). A padded one has ids (n, tokens), padded on the right, and
    no positions: the model counts them. It needs no mask, since padding comes after every token that is read.
    """
    places = {} if positions is None else {"position_ids": positions.unsqueeze(0)}
    rows = ids if positions is None else ids.unsqueeze(0)
    body = base.model.base_model
    if body is base.model:  # Llama 4 names a part of a larger model that this one is not
        body = base.model.model
    output = body(input_ids=rows, use_cache=False, **places)
    states: Tensor = output.last_hidden_state
    return states.flatten(0, 1)


def logits(base: Base, hidden: Tensor) -> Tensor:
    """Logits (M, vocabulary) of hidden states (M, width), with the model's own scaling or cap."""
    config = base.model.config.get_text_config()
    if divisor := getattr(config, "logits_mup_width_multiplier", None):  # Inkling
        hidden = hidden / divisor
    head = base.model.get_output_embeddings()
    if head.weight.is_floating_point():  # the last norm of Mamba and others gives float32 whatever the dtype
        hidden = hidden.to(head.weight.dtype)
    scores: Tensor = head(hidden)
    if scale := getattr(base.model, "logit_scale", None):  # Cohere
        scores = scores * scale
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        scores = scores / divisor
    if cap := next((c for name in CAPS if (c := getattr(config, name, None))), None):
        scores = cap * torch.tanh(scores / cap)
    return scores
