"""The usual recipe: transformers' Trainer on a PEFT model, padded batches, one client after another.

Written as people write it who tune federated adapters with these libraries: for every client of a round
the global adapter is put into the one PEFT model, a Trainer is made, it trains, and the client's adapter
is taken out; then the mean. What is in its favour here: the examples are tokenised once, in memory, and
each step's examples are the engine's, so that no time goes into sampling.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from benchmarks.work import Measured, Work, device_bytes
from shepherd.core import Adapter
from shepherd.data.tokens import Tokens
from shepherd.machine import memory
from shepherd.model.base import load_tokenizer
from shepherd.settings import AdapterTable, ModelTable
from shepherd.training.optimisers import adamw

MASKED = -100


def recipe(work: Work, *, bfloat16: bool) -> Callable[[Work], Measured]:
    """Load the base: in float32, or in bfloat16 with the Trainer's `bf16=True`."""
    transformers_logging.disable_progress_bar()
    memory.use_threads(work.settings.machine.threads)
    device = torch.device(work.settings.machine.device)
    tokenizer = load_tokenizer(work.settings.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    model = _model(work, torch.bfloat16 if bfloat16 else torch.float32).to(device)
    examples = {name: rows(data) for name, data in work.clients.items()}

    return lambda asked: one_round(model, asked, examples, collator, device, bfloat16=bfloat16)


def one_round(
    model: Any,
    asked: Work,
    examples: Mapping[str, list[dict[str, list[int]]]],
    collator: DataCollatorForSeq2Seq,
    device: torch.device,
    *,
    bfloat16: bool,
) -> Measured:
    """Every client of `asked` in turn on a PEFT model; `examples` are its clients', as `rows` gives them."""
    taken = {name: [examples[name][i] for step in asked.steps(name) for i in step] for name in asked.clients}
    start = {name: torch.from_numpy(tensor.copy()) for name, tensor in asked.start.items()}
    with TemporaryDirectory() as scratch:
        arguments = _arguments(asked, device, bfloat16, scratch)
        began = perf_counter()
        mean, losses = _round(model, start, taken, arguments, collator)
        seconds = perf_counter() - began
    return Measured(
        seconds=seconds,
        adapter=Adapter({name: tensor.float().numpy() for name, tensor in mean.items()}),
        loss=_mean_loss(asked, losses),
        peak_bytes=device_bytes(device),
        dtype="bfloat16" if bfloat16 else "float32",
    )


def _model(work: Work, dtype: torch.dtype) -> Any:
    table: ModelTable = work.settings.model
    adapter = work.settings.adapter
    base = AutoModelForCausalLM.from_pretrained(table.base, revision=table.revision, dtype=dtype)
    return adapted(base, adapter)


def adapted(base: Any, adapter: AdapterTable) -> Any:
    """The PEFT model of a base with these adapters."""
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rank_stabilised,
        target_modules=adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers the old way
        return get_peft_model(base, lora)


def rows(data: Tokens) -> list[dict[str, list[int]]]:
    """Examples as a Trainer takes them: the labels repeat the ids, masked where nothing is trained."""
    pairs = (data.example(index) for index in range(len(data)))
    return [
        {
            "input_ids": ids.tolist(),
            "attention_mask": [1] * len(ids),
            "labels": [int(i) if t else MASKED for i, t in zip(ids, trained, strict=True)],
        }
        for ids, trained in pairs
    ]


def _arguments(work: Work, device: torch.device, bfloat16: bool, scratch: str) -> TrainingArguments:
    """AdamW, clipping and rate as the engine's; a loss is logged each step, and nothing is saved."""
    tuning = work.settings.tuning
    adam = adamw.Config.model_validate(tuning.optimiser.model_extra or {})
    return TrainingArguments(
        output_dir=str(Path(scratch) / "trainer"),
        per_device_train_batch_size=tuning.batch_size,
        num_train_epochs=1,
        learning_rate=tuning.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=adam.weight_decay,
        adam_beta1=adam.betas[0],
        adam_beta2=adam.betas[1],
        max_grad_norm=tuning.clip_norm,
        train_sampling_strategy="sequential",
        bf16=bfloat16,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _round(
    model: Any,
    start: Mapping[str, Tensor],
    clients: Mapping[str, list[dict[str, list[int]]]],
    arguments: TrainingArguments,
    collator: DataCollatorForSeq2Seq,
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Every client in turn, then their mean weighted by examples; and each client's loss at each step."""
    mean = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    losses: dict[str, list[float]] = {}
    total = sum(len(examples) for examples in clients.values())
    for client, examples in clients.items():
        set_peft_model_state_dict(model, start)
        trainer = Trainer(model=model, args=arguments, train_dataset=examples, data_collator=collator)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        local = get_peft_model_state_dict(model)
        for name in mean:
            mean[name] += local[name].detach().to("cpu", torch.float32) * (len(examples) / total)
        losses[client] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return mean, losses


def _mean_loss(work: Work, losses: Mapping[str, list[float]]) -> float:
    """The mean over all trained tokens, from the means over those of each step."""
    counts = {client: work.trained(client) for client in losses}
    sums = (loss * n for client in losses for loss, n in zip(losses[client], counts[client], strict=True))
    return sum(sums) / sum(sum(each) for each in counts.values())
