"""Load a frozen base with its tokenizer and adapted layers, and prove that it can be trained packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.utils import logging as transformers_logging

from shepherd.core import Adapter
from shepherd.errors import BaseError, ShepherdError
from shepherd.model import fingerprint, last, layout, lora
from shepherd.model.attention import PACKED
from shepherd.settings import AdapterTable, ModelTable

PROBED = (0, 0, 1)  # whose the examples are that a base is proven on
SHARED = 4  # tokens that the first two of them begin with
READ = slice(1, None, 2)  # the places whose states are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A frozen causal language model whose target modules carry stacks of adapters."""

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    adapter: AdapterTable
    sites: tuple[lora.Site, ...]
    attention: str

    @property
    def reads(self) -> int | None:
        """Tokens that the base can read, prompt and answer together; None where there is no such bound."""
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(most) if most else None

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Names and shapes of this base's adapters."""
        return lora.shapes(self.sites, self.adapter.rank)

    @property
    def zero(self) -> Adapter:
        """The adapter that changes nothing: the base alone, where an adapter is wanted."""
        return Adapter({name: np.zeros(shape) for name, shape in self.shapes.items()})


def load(model: ModelTable, adapter: AdapterTable, name: str = "") -> Base:
    """Load `model.base`, a folder or a Hugging Face id, and put an adapted layer at every target.

    `name` is what messages and adapter folders call it, where that is not `model.base`.

    Raises:
        BaseError: the base is missing or unreadable, lacks a target, or cannot be trained packed.
    """
    device = pick_device(model.device)
    dtype = pick_dtype(model.dtype, device)
    network = _load_model(model, device, dtype)
    tokenizer = load_tokenizer(model)
    network.requires_grad_(False).eval()
    found = fingerprint.of_base(model.base, model.revision, network)
    sites = lora.attach(network, adapter)
    last.read_only_there(network)
    base = Base(
        model=network,
        tokenizer=tokenizer,
        name=name or model.base,
        fingerprint=found,
        device=device,
        dtype=dtype,
        adapter=adapter,
        sites=sites,
        attention=network.config._attn_implementation,
    )
    prove(base)
    return base


def load_tokenizer(model: ModelTable) -> Any:
    """The base's tokenizer; it must be a fast one, and have an end-of-sequence token.

    Raises:
        BaseError: there is none, or it is not fast.
    """
    _require_config(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.base, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BaseError(
            f"base {model.base} has no readable tokenizer ({_first_line(error)}); add tokenizer.json"
        ) from error
    if not tokenizer.is_fast:
        raise BaseError(f"base {model.base} has only a slow tokenizer; convert it to tokenizer.json")
    return tokenizer


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is CUDA, then Apple's MPS, then the processor."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BaseError(f"model.device {name!r} is not to be had here; write auto or cpu") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it natively, else float32."""
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


def _load_model(model: ModelTable, device: torch.device, dtype: torch.dtype) -> Any:
    _require_config(model)
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if model.quantize != "none":
        options["quantization_config"] = _quantisation(model, device, dtype)
    transformers_logging.disable_progress_bar()
    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            model.base,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below
            **options,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise BaseError(
            f"base {model.base} cannot be loaded ({_first_line(error)}); give a folder with config.json"
            " and safetensors, or a Hugging Face id that this machine can reach"
        ) from error
    unfit = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if unfit:  # transformers fills them up at random
        raise BaseError(
            f"base {model.base} lacks {len(unfit)} of its tensors or has them in another shape,"
            f" {min(unfit)} first; get its files again"
        )
    network.generation_config = GenerationConfig()  # a repetition penalty of the base's is not ours
    return network


def _quantisation(model: ModelTable, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
    if device.type != "cuda":
        raise BaseError(f'model.quantize = "{model.quantize}" needs CUDA; write "none" on {device.type}')
    if model.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def attending(base: Base, how: str) -> Iterator[None]:
    """Run the base with another attention function, and put its own back."""
    before = base.model.config._attn_implementation
    base.model.set_attn_implementation(how)
    if base.model.config._attn_implementation != how:
        raise BaseError(
            f"base {base.name} ({base.model.config.model_type}) does not take an attention function of"
            " ours; use an architecture that follows transformers' attention interface"
        )
    try:
        yield
    finally:
        base.model.set_attn_implementation(before)


def hidden_states(base: Base, ids: Tensor, positions: Tensor) -> Tensor:
    """The last hidden states of a packed line: ids (N,), positions (N,) -> (N, width)."""
    output = base.model.base_model(
        input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False
    )
    states: Tensor = output.last_hidden_state
    return states[0]


def logits(base: Base, hidden: Tensor) -> Tensor:
    """(M, width) -> (M, vocabulary) as the model itself would: its head, then its own scaling or cap."""
    scores: Tensor = base.model.get_output_embeddings()(hidden)
    config = base.model.config.get_text_config()
    if scale := getattr(base.model, "logit_scale", None):  # Cohere
        scores = scores * scale
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        scores = scores / divisor
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        scores = cap * torch.tanh(scores / cap)
    return scores


def prove(base: Base) -> None:
    """Compare packed logits with the model's own, each example alone, under two random adapters.

    Two of the examples share an opening, and it goes backward once, too. So an architecture that packing
    would get wrong is refused when it is loaded, not trained wrongly.

    Raises:
        BaseError: the two differ, or the architecture cannot run packed at all.
    """
    examples, adapters = _probe_examples(base), [_probe_adapter(base, seed) for seed in range(2)]
    try:
        apart = [_alone(base, ids, adapters[k]) for ids, k in zip(examples, PROBED, strict=True)]
        together = _packed(base, examples, adapters)
    except ShepherdError:
        raise
    except Exception as error:  # any architecture may fail here, each in its own way
        raise BaseError(
            f"base {base.name} ({base.model.config.model_type}) cannot be trained packed"
            f" ({type(error).__name__}: {_first_line(error)}); use another architecture"
        ) from error
    expected = torch.cat([apart[0], apart[1][SHARED:], apart[2]])[READ]
    error_share = float((together - expected).norm() / expected.norm())
    allowed = 1e-3 if base.dtype == torch.float32 else 5e-2
    if not error_share <= allowed:
        raise BaseError(
            f"base {base.name} ({base.model.config.model_type}) gives other logits when examples are"
            f" packed (relative difference {error_share:.1e}); it cannot be trained here"
        )


def _probe_examples(base: Base) -> list[Tensor]:
    """Three; the second begins as the first does."""
    rng = np.random.default_rng(0)
    size = base.model.config.get_text_config().vocab_size
    first, second, third = (torch.from_numpy(rng.integers(0, size, n)).to(base.device) for n in (9, 7, 5))
    return [first, torch.cat([first[:SHARED], second[SHARED:]]), third]


def _probe_adapter(base: Base, seed: int) -> Adapter:
    rng = np.random.default_rng(seed)
    return Adapter({name: rng.normal(0, 0.05, shape) for name, shape in base.shapes.items()})


def _alone(base: Base, ids: Tensor, adapter: Adapter) -> Tensor:
    lora.hang(base.model, base.sites, lora.stacked([adapter], base.device))
    with torch.no_grad(), layout.running(layout.sequences([1])):
        return base.model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].float()  # type: ignore[no-any-return]


def _packed(base: Base, examples: Sequence[Tensor], adapters: Sequence[Adapter]) -> Tensor:
    """Every second of: the first example's logits, the second's after the shared opening, the third's."""
    first, second, third = examples
    stretches, after = [first[:SHARED], first[SHARED:], second[SHARED:], third], [-1, 0, 0, -1]
    lengths = [len(ids) for ids in stretches]
    stacked = lora.stacked(adapters, base.device)
    lora.hang(base.model, base.sites, {name: factor.requires_grad_() for name, factor in stacked.items()})
    border, end = sum(lengths[:3]), sum(lengths)
    segments = [
        layout.Segment(adapter=0, start=0, stop=border),
        layout.Segment(adapter=1, start=border, stop=end),
    ]
    read = torch.arange(end, device=base.device)[READ].contiguous()
    plan = layout.packed(lengths, segments, base.device, after=after, read=read)
    positions = torch.from_numpy(layout.positions(lengths, after)).to(base.device)
    with layout.running(plan), attending(base, PACKED):
        scores = logits(base, hidden_states(base, torch.cat(stretches), positions)[read]).float()
        scores.square().mean().backward()
    return scores.detach()
