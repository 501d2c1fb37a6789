"""Generation: tokens a second of several adapters' answers, against PEFT with one adapter after another.

Each side answers the same prompts with the same adapters, in turns, in this process and in the same dtype.
PEFT's answers are made as its users make them: transformers' `generate` on all prompts in one batch, padded
on the left, after `set_adapter`. Only the tokens of answers count, and none after an answer's end. Greedy,
except where each prompt has several samples.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.algorithms import fedavg
from shepherd.core import Adapter, Broadcast
from shepherd.data import pipeline
from shepherd.data.template import Template, stop_ids
from shepherd.data.tokens import Tokens
from shepherd.machine import malloc
from shepherd.model import answer, files, lora
from shepherd.model import base as bases
from shepherd.model import generate as generation
from shepherd.model.base import Base
from shepherd.settings import RunSettings
from shepherd.training.tune import Job, Visit, tune

TARGET = 3.0  # times PEFT's tokens a second
SHARED = "You answer questions of the visitors of a small museum of natural history, who are of every age. "
CASES = {
    "one prompt, eight adapters": (1, 8, 1, 0),
    "16 prompts, eight adapters": (16, 8, 1, 0),
    "16 prompts, one adapter": (16, 1, 1, 0),
    "16 prompts with a beginning of 200 tokens, eight adapters": (16, 8, 1, 200),
    "four prompts, eight samples of each, two adapters": (4, 2, 8, 0),
}
"""Name -> prompts, adapters, samples of each prompt, tokens that all prompts begin with."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--on", choices=("dolly", "smollm2"), default="dolly", help="default dolly: novella-8m"
    )
    parser.add_argument("--turns", type=int, default=5, help="default 5")
    parser.add_argument("--steps", type=int, default=12, help="steps that each adapter is tuned (default 12)")
    parser.add_argument("--only", default="", help="the cases whose names hold this text (default: all)")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer (default 64)")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    settings = setting.settings(options.on, {"data": {"limit": 40 if options.quick else 400}})
    turns, steps, longest = (1, 1, 8) if options.quick else (options.turns, options.steps, options.tokens)
    malloc.keep_pages()  # as in `shepherd`; it serves both sides
    base = bases.load(settings.model, settings.adapter)
    prepared = pipeline.prepare(settings, base.tokenizer)
    count = 2 if options.quick else max(case[1] for case in CASES.values())
    adapters = _tuned(base, settings, list(prepared.clients.values())[:count], steps)
    asked = [
        answer.prompt_ids(base, settings.data, example.turns[:-1]) for example in prepared.heldout_examples
    ]
    stop = stop_ids(Template.of(settings.data), base.tokenizer)
    with TemporaryDirectory() as scratch:
        model = _in_peft(base, adapters, Path(scratch))
        cases = {}
        for name, case in ((name, case) for name, case in CASES.items() if options.only in name):
            cases[name] = _case(base, adapters, model, asked, stop, longest, turns, *case)
            print(f"{name}: {cases[name]['ratio']:.2f} times", flush=True)
    return {
        "base": base.name,
        "dtype": str(base.dtype).removeprefix("torch."),
        "decodes": base.proof.decodes,
        "cases": cases,
        "target": TARGET,
    }


def _tuned(base: Base, settings: RunSettings, clients: Sequence[Tokens], steps: int) -> list[Adapter]:
    """An adapter of each client, after some steps: answers of different lengths."""
    start, rng = lora.first(base.targets, base.adapter.rank, 0), np.random.default_rng(0)
    visits = [
        Visit(client=str(k), data=data, batches=[rng.integers(len(data), size=8) for _ in range(steps)])
        for k, data in enumerate(clients)
    ]
    job = Job(
        broadcast=Broadcast(round=0, adapter=start, seed=0),
        algorithm=fedavg.ALGORITHM,
        visits=visits,
        tuning=settings.tuning,
        learning_rate=3e-3,
        micro_batch_tokens=1024,
    )
    return [start.plus(each.delta) for each in tune(base, job)]


def _in_peft(base: Base, adapters: Sequence[Adapter], folder: Path) -> Any:
    network = AutoModelForCausalLM.from_pretrained(base.table.base, dtype=base.dtype)
    network.generation_config = GenerationConfig()
    model: Any = None
    for k, adapter in enumerate(adapters):
        files.write(folder / str(k), adapter, base)
        if model is None:
            model = peft.PeftModel.from_pretrained(network, folder / str(k), adapter_name=str(k))
        else:
            model.load_adapter(folder / str(k), str(k))
    return model.eval()


def _case(
    base: Base,
    adapters: Sequence[Adapter],
    model: Any,
    asked: Sequence[Sequence[int]],
    stop: Sequence[int],
    longest: int,
    turns: int,
    prompts: int,
    arms: int,
    samples: int,
    beginning: int,
) -> Figures:
    shared = base.tokenizer(SHARED * 40)["input_ids"][:beginning]
    chosen = [[*shared, *ids] for ids in asked[:prompts] for _ in range(samples)]
    draws = list(range(samples)) * prompts
    heat = 1.0 if samples > 1 else 0.0

    def ours() -> list[list[list[int]]]:
        return generation.generate(
            base,
            adapters[:arms],
            chosen,
            max_new_tokens=longest,
            stop=stop,
            temperature=heat,
            draws=draws,
        )

    def theirs() -> list[list[list[int]]]:
        ids, mask = _padded(chosen, base)
        found = []
        for k in range(len(adapters[:arms])):
            model.set_adapter(str(k))
            with torch.inference_mode():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=longest,
                    do_sample=heat > 0,
                    **({"top_k": 0} if heat else {}),
                    eos_token_id=list(stop),
                    pad_token_id=stop[0],
                )
            found.append([generation.until_stop(row, stop) for row in out[:, ids.shape[1] :].tolist()])
        return found

    sides = {"shepherd": ours, "peft": theirs}
    answers = {name: side() for name, side in sides.items()}  # also warms up
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            wall, used = _speed(side)
            speeds[name].append(wall)
            processor[name].append(used)
    flat = {name: [row for arm in found for row in arm] for name, found in answers.items()}
    same = [a == b for a, b in zip(flat["shepherd"], flat["peft"], strict=True)]
    lengths = [len(row) for row in flat["shepherd"]]
    return {
        "tokens_per_second": speeds,
        "ratio": median(speeds["shepherd"]) / median(speeds["peft"]),
        "ratios": [a / b for a, b in zip(speeds["shepherd"], speeds["peft"], strict=True)],
        "processor_ratio": median(processor["shepherd"]) / median(processor["peft"]),
        "tokens_per_processor_second": processor,
        "same_answers": None if heat else sum(same) / len(same),
        "answer_tokens": [min(lengths), median(lengths), max(lengths)],
    }


def _padded(prompts: Sequence[Sequence[int]], base: Base) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(base.device), mask.to(base.device)


def _speed(side: Callable[[], list[list[list[int]]]]) -> tuple[float, float]:
    """Tokens of the answers in a second, and in a second of processor time, which other work leaves alone."""
    began, used = perf_counter(), process_time()
    found = side()
    tokens = sum(len(row) for arm in found for row in arm)
    return tokens / (perf_counter() - began), tokens / (process_time() - used)


def tables(figures: Figures) -> Sequence[Table]:
    rows = []
    for name, case in figures["cases"].items():
        ours, theirs = (case["tokens_per_second"][side] for side in ("shepherd", "peft"))
        rows.append(
            (
                name,
                _spread(theirs),
                _spread(ours),
                f"{case['ratio']:.2f} ({min(case['ratios']):.2f} to {max(case['ratios']):.2f})",
                f"{case['processor_ratio']:.2f}",
                common.share(case["same_answers"]),
                " / ".join(f"{value:g}" for value in case["answer_tokens"]),
            )
        )
    title = f"Answers of {Path(figures['base']).name} in {figures['dtype']}, tokens a second"
    columns = (
        "",
        "PEFT",
        "Shepherd",
        "times",
        "by processor time",
        "same answers",
        "tokens (least/median/most)",
    )
    return [Table(title, columns, rows, notes=[f"median (least to most); aim: {figures['target']:g} times"])]


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


if __name__ == "__main__":
    sys.exit(main())
