"""The architectures that are written as GGUF: their metadata, and what llama.cpp stores otherwise.

llama.cpp turns a head's halves pairwise in LLaMA and its family: it stores the rows of q and k so that
the two numbers of a pair are neighbours, where transformers keeps the first and the second half of a head
apart. With n heads of width w, row (h, half, i) becomes row (h, i, half):

    W.reshape(n, 2, w / 2, in).swapaxes(1, 2).reshape(n w, in)

The adapter's change B A is stored so if the rows of B are. Other architectures rotate halves, as transformers
does. Gemma stores 1 + w of its norms, and GPT-2 stores (out, in) where transformers has (in, out).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shepherd.errors import BaseError
from shepherd.model.gguf_file import Value

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How one model type of transformers is written."""

    name: str
    """Its name in `general.architecture`."""
    keys: Callable[[Any], Mapping[str, Value]]
    """Metadata from the configuration, by key without the name in front."""
    unfit: Callable[[Any], str]
    """Why llama.cpp would compute otherwise with this configuration; "" if it would not."""
    permuted: bool = False
    """Whether the rows of q and k are stored pairwise."""
    norm_shift: float = 0.0
    """What is added to each norm's weight."""
    transposed: bool = False
    """Whether linear modules hold (in, out)."""

    def rows(self, tensor: str, config: Any) -> Array | None:
        """Order in which the rows of a tensor are stored, (rows,); None for their own."""
        leaf = tensor.rsplit(".", 2)[-2]
        if not self.permuted or leaf not in ("q_proj", "k_proj"):
            return None
        heads = config.num_attention_heads if leaf == "q_proj" else config.num_key_value_heads
        width = _head(config)
        return np.arange(heads * width).reshape(heads, 2, width // 2).swapaxes(1, 2).reshape(-1)

    def stored(self, tensor: str, values: Array, config: Any) -> Array:
        """A tensor of transformers as GGUF has it."""
        rows = self.rows(tensor, config)
        if rows is not None:
            values = values[rows]
        if self.norm_shift and tensor.endswith("norm.weight"):
            values = values + np.float32(self.norm_shift)
        return values.T if self.flips(tensor) else values

    def flips(self, tensor: str) -> bool:
        """Whether a tensor is stored transposed."""
        return self.transposed and tensor.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def of(config: Any, name: str) -> Architecture:
    """The architecture of a base's configuration.

    Args:
        name: name of the base, for the message.

    Raises:
        BaseError: it is not verified, or llama.cpp would compute otherwise.
    """
    kind = config.model_type
    if kind not in VERIFIED:
        raise BaseError(
            f"base {name} is of type {kind}, which is not verified as GGUF (verified are"
            f" {', '.join(sorted(VERIFIED))}); export it --to merged, and convert that folder with"
            " llama.cpp's convert_hf_to_gguf.py"
        )
    found = VERIFIED[kind]
    if reason := found.unfit(config):
        raise BaseError(
            f"base {name} ({kind}) {reason}, with which llama.cpp would compute otherwise or is not verified"
            " to compute the same; export it --to merged"
        )
    return found


def rope_factors(config: Any) -> Array | None:
    """What each rotary frequency is divided by, (width / 2,); None if none is scaled."""
    rope = _rope(config)
    if rope["rope_type"] == "default":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    width = _head(config)
    plain = rope["rope_theta"] ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    return np.asarray(plain / scaled.double().numpy(), np.float32)


def _rope(config: Any) -> Mapping[str, Any]:
    """Rotary parameters of the layers that see everything."""
    rope: Mapping[str, Any] = config.rope_parameters
    whole: Mapping[str, Any] = rope.get("full_attention", rope)
    return whole


def _decoder(config: Any) -> dict[str, Value]:
    """Keys that every architecture with rotary positions has."""
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": _head(config),
        "attention.value_length": _head(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(_rope(config)["rope_theta"]),
        "rope.dimension_count": _head(config),
        "vocab_size": config.vocab_size,
    }


def _head(config: Any) -> int:
    """Width of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _gemma2(config: Any) -> dict[str, Value]:
    return {
        **_decoder(config),
        "attn_logit_softcapping": float(config.attn_logit_softcapping),
        "final_logit_softcapping": float(config.final_logit_softcapping),
        "attention.sliding_window": config.sliding_window,
    }


def _gemma3(config: Any) -> dict[str, Value]:
    return {**_decoder(config), "attention.sliding_window": config.sliding_window}


def _gpt2(config: Any) -> dict[str, Value]:
    return {
        "block_count": config.n_layer,
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        "vocab_size": config.vocab_size,
    }


def _unfit_llama(config: Any) -> str:
    if rope := _unknown_rope(config, "default", "llama3"):
        return rope
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return "has biases"
    if config.hidden_act != "silu":
        return f"has hidden_act = {config.hidden_act!r}"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        return f"has a sliding window of {window} tokens"
    return ""


def _unfit_qwen(config: Any) -> str:
    if rope := _unknown_rope(config, "default"):
        return rope
    if config.model_type == "qwen3" and config.attention_bias:
        return "has biases"
    if config.hidden_act != "silu":
        return f"has hidden_act = {config.hidden_act!r}"
    return "has layers with a sliding window" if "sliding_attention" in config.layer_types else ""


def _unfit_gemma2(config: Any) -> str:
    if not (config.attn_logit_softcapping and config.final_logit_softcapping):
        return "has no caps of its logits"
    return _unfit_gemma(config, every=2)


def _unfit_gemma3(config: Any) -> str:
    if config.attn_logit_softcapping or config.final_logit_softcapping:
        return "has caps of its logits"
    if config.use_bidirectional_attention:
        return "has attention in both directions"
    local = config.rope_parameters.get("sliding_attention", {})
    if (local.get("rope_type"), local.get("rope_theta")) != ("default", 10_000.0):
        return "scales the positions of its layers with a window"
    return _unfit_gemma(config, every=6)


def _unfit_gemma(config: Any, every: int) -> str:
    if rope := _unknown_rope(config, "default"):
        return rope
    if config.attention_bias:
        return "has biases"
    if config.hidden_activation != "gelu_pytorch_tanh":
        return f"has hidden_activation = {config.hidden_activation!r}"
    if config.query_pre_attn_scalar != config.head_dim:
        return f"scales its queries by {config.query_pre_attn_scalar}, not by the width of a head"
    for place, kind in enumerate(config.layer_types, 1):
        if (kind == "full_attention") != (place % every == 0):
            return f"has {kind} in layer {place}, where every {every}th sees everything"
    return ""


def _unfit_gpt2(config: Any) -> str:
    if config.activation_function != "gelu_new":
        return f"has activation_function = {config.activation_function!r}"
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        return "scales its attention by layer"
    return "adds cross-attention" if config.add_cross_attention else ""


def _unknown_rope(config: Any, *known: str) -> str:
    kind = _rope(config)["rope_type"]
    return "" if kind in known else f'has position scaling of type "{kind}"'


VERIFIED: Mapping[str, Architecture] = {
    "gemma2": Architecture(name="gemma2", keys=_gemma2, unfit=_unfit_gemma2, norm_shift=1.0),
    "gemma3_text": Architecture(name="gemma3", keys=_gemma3, unfit=_unfit_gemma3, norm_shift=1.0),
    "gpt2": Architecture(name="gpt2", keys=_gpt2, unfit=_unfit_gpt2, transposed=True),
    "llama": Architecture(name="llama", keys=_decoder, unfit=_unfit_llama, permuted=True),
    "mistral": Architecture(name="llama", keys=_decoder, unfit=_unfit_llama, permuted=True),
    "qwen2": Architecture(name="qwen2", keys=_decoder, unfit=_unfit_qwen),
    "qwen3": Architecture(name="qwen3", keys=_decoder, unfit=_unfit_qwen),
}
"""Model type of transformers -> how it is written. The tests compare the logits of each."""
