"""The same adapters and examples in PEFT, padded, as most people train: the reference of these tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from shepherd.core import Adapter
from shepherd.data.tokens import Tokens
from shepherd.model import files
from shepherd.model.base import Base


def in_peft(base: Base, adapter: Adapter, folder: Path) -> peft.PeftModel:
    files.write(folder, adapter, base)
    model = AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, folder, is_trainable=True).eval()


def padded(data: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """ids, labels and mask, (n, width), padded on the right."""
    width = int(data.lengths.max())
    ids = torch.zeros(len(data), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for i in range(len(data)):
        example, trained = data.example(i)
        n = len(example)
        ids[i, :n] = torch.from_numpy(example.astype(np.int64))
        labels[i, :n] = torch.where(torch.from_numpy(np.array(trained)), ids[i, :n], -100)
        mask[i, :n] = 1
    return ids, labels, mask


def peft_loss(model: peft.PeftModel, data: Tokens) -> Tensor:
    """The mean over the trained tokens."""
    ids, labels, mask = padded(data)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))


def peft_gradients(model: peft.PeftModel) -> dict[str, np.ndarray]:
    return {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
