"""Train the embedded base: `python tools/train_base.py --out src/shepherd/world/base`.

It draws the world of `shepherd.world.SEED`, trains a byte-level BPE tokenizer and a small LLaMA on
its declarative passages alone, and measures how many facts the model then completes. The same
seed gives an equivalent model (the same bits on the same machine and number of threads).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shepherd.world import SEED, World, build, passages
from shepherd.world.wording import SAYINGS, fill

PIECES, WIDTH, LAYERS, HEADS, CONTEXT = 2816, 256, 4, 4, 512
BATCH, LENGTH = 16, 256
RATE, WARMUP, COOLDOWN = 3e-3, 60, 0.6
EOS, PAD, UNK = "</s>", "<pad>", "<unk>"
MARKERS = "### Instruction:\n### Input:\n### Response:\n"
"""Names of prompt blocks: pieces of their own in the tokenizer, never seen by the model."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    world = build(SEED)
    tokenizer = train_tokenizer(world, options.seed)
    model = new_model(tokenizer)
    print(f"{len(tokenizer)} pieces, {model.num_parameters():,} parameters", flush=True)
    save_tokenizer(tokenizer, options.out)
    train(model, batches(world, tokenizer, options.seed), options.steps, options.out)
    known, asked = completed(model, tokenizer, world, seed=options.seed)
    print(f"completes {known} of {asked} facts ({known / asked:.1%})")
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(options.out)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.2f} MB")


def train_tokenizer(world: World, seed: int, texts: int = 12_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE over passages; any text can be encoded, and no token is added to it."""
    bpe = Tokenizer(models.BPE(unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=[EOS, PAD, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [*islice(passages(world, seed), texts), *[MARKERS] * (texts // 10)]
    bpe.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the tokenizer under the class name that every version of transformers knows."""
    tokenizer.save_pretrained(out)
    file = out / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    kept = {name: value for name, value in config.items() if "token" in name or "model" in name}
    file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained LLaMA of a few million parameters, in bfloat16."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 11 // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def batches(world: World, tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Tensor]:
    """Packed passages, an EOS after each: ids (BATCH, LENGTH), without end."""
    stream, need = passages(world, seed + 1), BATCH * LENGTH
    ids: list[int] = []
    while True:
        while len(ids) < need:
            texts = list(islice(stream, 256))
            for encoded in tokenizer(texts)["input_ids"]:
                ids += [*encoded, tokenizer.eos_token_id]
        yield torch.tensor(ids[:need]).view(BATCH, LENGTH)
        ids = ids[need:]


def train(model: LlamaForCausalLM, data: Iterator[Tensor], steps: int, out: Path) -> None:
    """Muon for the matrices and AdamW for the rest, on float32 copies of bfloat16 weights.

    The model so far is written to `out` now and then, for a look at it on the way.
    """
    weights = list(model.parameters())
    masters = [weight.detach().float().clone() for weight in weights]
    inner = [m for m, w in zip(masters, weights, strict=True) if _is_matrix(model, w)]
    outer = [m for m, w in zip(masters, weights, strict=True) if not _is_matrix(model, w)]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(inner, lr=RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    start, mean = time.monotonic(), 0.0
    for step, ids in enumerate(islice(data, steps)):
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = RATE * schedule(step, steps)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        _update(weights, masters, optimisers)
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - start
            rate = (step + 1) * ids.numel() / seconds
            print(f"step {step} loss {mean:.3f} {rate:.0f} tok/s {seconds:.0f} s", flush=True)
        if step % 400 == 399:
            model.save_pretrained(out)


def schedule(step: int, steps: int) -> float:
    """Warm up, stay, and fall to a hundredth over the last part of the run."""
    left = (steps - step) / (steps * COOLDOWN)
    return min(1.0, (step + 1) / WARMUP, max(left, 0.01))


def completed(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    *,
    seed: int,
    sample: int = 600,
) -> tuple[int, int]:
    """How many of a sample of facts the model completes from their beginning, and of how many."""
    rng = Random(seed)
    facts = [(r, s, o) for r, told in world.facts.items() for s, o in told.items()]
    asked = rng.sample(facts, min(sample, len(facts)))
    begun = [beginning(*fact, rng) for fact in asked]
    ended = continued(model, tokenizer, begun)
    known = sum(end.startswith(f" {fact[2]}.") for fact, end in zip(asked, ended, strict=True))
    return known, len(asked)


def beginning(relation: str, subject: str, value: str, rng: Random) -> str:
    """A wording of a fact up to its object, which must come last in it."""
    endings = (" {o}.", " {ao}.")
    template = rng.choice([t for t in SAYINGS[relation] if t.endswith(endings)])
    sentence = fill(template, subject, value)
    return sentence.removesuffix(f" {value}.")


@torch.no_grad()
def continued(model: Any, tokenizer: Any, texts: list[str], pieces: int = 8) -> list[str]:
    """What the model says next after each text, most likely first."""
    tokenizer.padding_side = "left"
    ids = tokenizer([tokenizer.eos_token + text for text in texts], return_tensors="pt", padding=True)
    out = model.generate(**ids, max_new_tokens=pieces, do_sample=False)
    return [str(tokenizer.decode(row)) for row in out[:, ids["input_ids"].shape[1] :]]


def _is_matrix(model: LlamaForCausalLM, weight: Tensor) -> bool:
    return weight.ndim == 2 and weight is not model.get_input_embeddings().weight


def _update(weights: list[Any], masters: list[Tensor], optimisers: list[torch.optim.Optimizer]) -> None:
    """One optimiser step on the float32 copies, written back to the model."""
    for weight, master in zip(weights, masters, strict=True):
        master.grad, weight.grad = weight.grad.float(), None
    torch.nn.utils.clip_grad_norm_(masters, 1.0)
    for optimiser in optimisers:
        optimiser.step()
    for weight, master in zip(weights, masters, strict=True):
        weight.data.copy_(master)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps of 4,096 tokens")
    parser.add_argument("--seed", type=int, default=0, help="of the tokenizer, model and data order")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
