"""Every row that a GPU must show, in one run of at most eight minutes: engine and usual recipe, in turns.

Bases of LLaMA's 1B and 7B shapes with random weights, in bfloat16 and in 4 bits; examples as long as Dolly's
and 32 to a step, as in FedIT (arXiv 2305.05644). Each case builds one base for both sides, warms each up, and
lets them take turns in this process: the engine with stacks of several sizes, and transformers' Trainer with
PEFT on padded batches (benchmarks/recipe.py). Time is measured to the end of a round, the memory is the
device's highest of a side, and the share of the peak is the useful work by formula (benchmarks/flops.py) by
the fastest matrix product of this device in bfloat16. At the end of its case the base of 1B is proven as at
any load.

What is known is written after every turn, so nothing is lost where the time ends. A side or a case that
fails, for want of memory or otherwise, is a row that says so, and the others are measured; the exit code is
then 1.

    python -m benchmarks.gpu [--json gpu.json]          # on a GPU; without one it says so and does nothing
    python -m benchmarks.gpu --rehearse                 # tiny shapes on the processor: that the script works
"""

from __future__ import annotations

import gc
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DataCollatorForSeq2Seq

from benchmarks import common, flops, large, recipe, setting
from benchmarks.common import Figures, Missing, Table
from benchmarks.work import Measured, Work
from shepherd.algorithms import fedavg
from shepherd.core import Adapter, Broadcast
from shepherd.machine import memory
from shepherd.model import lora
from shepherd.model.base import Base, assembled
from shepherd.model.proof import verify_packing
from shepherd.training import tune

LIMIT_S, REPEATS, PROOF_S = 480, 3, 20
WRITTEN = Path("gpu.json")
"""Where the figures of a GPU go if no file is named: they may not be had again."""
RECIPE, ENGINE = "recipe", "engine, stack of {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One base, and the rounds that both sides tune on it."""

    name: str
    shape: Mapping[str, int]
    stacks: Sequence[int]
    clients: int
    seconds: float
    """About how long its slowest side is allowed to take: it is not begun with less time left."""
    four_bits: bool = False
    batch: int = 32


CASES = (
    Case(name="1B bfloat16", shape=large.SHAPE, stacks=(1, 4, 16), clients=16, seconds=60),
    Case(name="7B bfloat16", shape=large.SHAPE_7B, stacks=(1, 4), clients=4, seconds=60),
    Case(name="7B 4 bits", shape=large.SHAPE_7B, stacks=(1, 4), clients=4, seconds=60, four_bits=True),
    Case(name="1B 4 bits", shape=large.SHAPE, stacks=(4,), clients=4, seconds=30, four_bits=True),
)
SMALL = {**large.SMALL, "vocab_size": 256}
REHEARSED = (
    Case(name="tiny", shape=SMALL, stacks=(1, 2), clients=2, seconds=1, batch=2),
    Case(name="tiny 4 bits", shape=SMALL, stacks=(1,), clients=1, seconds=1, batch=2, four_bits=True),
)


def main(arguments: Sequence[str] | None = None) -> int:
    return common.run(parsed(arguments), measure, tables)


def parsed(arguments: Sequence[str] | None) -> Namespace:
    """The options; on a GPU the figures are always written."""
    parser = common.parser(__doc__)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the processor")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help=f"seconds in all (default {LIMIT_S})")
    asked = parser.parse_args(arguments)
    asked.rehearse = asked.rehearse or asked.quick
    if not asked.rehearse:
        asked.json = asked.json or WRITTEN
    return asked


def measure(options: Namespace) -> Figures:
    if not (options.rehearse or torch.cuda.is_available()):
        raise Missing("a GPU that PyTorch can use (--rehearse runs tiny shapes on the processor)")
    rehearsed = options.rehearse
    device, ends = torch.device("cpu" if rehearsed else "cuda:0"), perf_counter() + options.limit
    dtype = torch.float32 if rehearsed else torch.bfloat16
    sizes = (64,) if rehearsed else (4096, 8192, 16384)
    figures: Figures = {
        "device": "cpu" if rehearsed else torch.cuda.get_device_name(device),
        "peak_tflops": flops.peak(dtype, device, sizes, 0.01 if rehearsed else 1.0) / 1e12,
        "cases": {},
    }
    for case in REHEARSED if rehearsed else CASES:
        found: Figures = {"sides": {}}
        figures["cases"][case.name] = found
        if ends - perf_counter() < case.seconds:
            found["skipped"] = "no time was left"
        elif case.four_bits and find_spec("bitsandbytes") is None:
            found["skipped"] = "bitsandbytes is not installed"
        else:
            _free(device)  # the case before
            with _noted(found):
                _measure(case, device, dtype, figures, options, ends)
        _save(figures, options)
    return {**figures, "passed": all(_is_whole(each) for each in figures["cases"].values())}


@contextmanager
def _noted(found: Figures) -> Iterator[None]:
    """Whatever fails inside is written down, and what comes after it goes on: time on a GPU is scarce."""
    try:
        yield
    except Exception as error:
        found["failed"] = " ".join(f"{type(error).__name__}: {error}".split())


def _free(device: torch.device) -> None:
    """Give back what nothing refers to any more; bases and their layers refer to each other."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _measure(
    case: Case, device: torch.device, dtype: torch.dtype, figures: Figures, options: Namespace, ends: float
) -> None:
    """Measure one case into `figures`, turn by turn."""
    found, began = figures["cases"][case.name], perf_counter()
    work = _work(case, device, options.seed)
    bases = _base(case, device, dtype, work, options.seed), _peft(case, device, dtype, work, options.seed)
    resting = _held(device)
    sides = _sides(case, device, work, *bases)
    useful = flops.useful(
        _shape(bases[0]), np.concatenate(work.lengths()), sum(map(sum, map(work.trained, work.clients)))
    )
    found.update(tokens=work.tokens, useful_tflop=useful / 1e12, built_s=perf_counter() - began)
    for name, side in sides.items():  # the first of each warms up
        own = found["sides"].setdefault(name, {"seconds": []})
        _free(device)
        with _noted(own):
            _turn(own, side, device, resting, counted=False)
        _save(figures, options)
    for _ in range(1 if device.type == "cpu" else REPEATS):
        for name, side in sides.items():
            own = found["sides"][name]
            if "failed" in own or ends - perf_counter() < own["warm_up_s"]:
                continue
            with _noted(own):
                _turn(own, side, device, resting, counted=True)
                seconds = median(own["seconds"])
                own["tokens_per_second"] = work.tokens / seconds
                own["share_of_peak"] = useful / seconds / 1e12 / figures["peak_tflops"]
            _save(figures, options)
    if case is CASES[0] and ends - perf_counter() >= PROOF_S:
        _free(device)
        found["proof"] = {}
        with _noted(found["proof"]):
            found["proof"]["said"] = str(verify_packing(bases[0], large.MOST_TOKENS))


def _turn(found: Figures, side: Any, device: torch.device, resting: int, *, counted: bool) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    began = perf_counter()
    measured: Measured = side()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = perf_counter() - began
    found["loss"] = measured.loss
    if measured.micro_batch_tokens:
        found["micro_batch_tokens"] = measured.micro_batch_tokens
    if not counted:
        found["warm_up_s"] = seconds
        return
    found["seconds"].append(seconds)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    # both sides' weights are there; one's own are half of them
    found["peak_gib"] = max(found.get("peak_gib", 0.0), (peak - resting / 2) / 2**30 if peak else 0.0)


def _work(case: Case, device: torch.device, seed: int) -> Work:
    tables = {
        "seed": seed,
        "model": {"base": case.name},
        "adapter": {"rank": 8, "alpha": 16},
        "data": {"source": "none"},
        "federation": {},
        "tuning": {"max_steps": 1, "batch_size": case.batch, "learning_rate": 3e-4},
        "machine": {"device": str(device)},
    }
    made = large.clients(case.clients, case.batch, case.shape, seed)
    return Work(settings=setting.parsed(tables), clients=made, start=Adapter({}))


def _base(case: Case, device: torch.device, dtype: torch.dtype, work: Work, seed: int) -> Base:
    """The engine's base; built and not loaded, since 13 GB would go to the disk and back."""
    network = _network(case, device, dtype, seed)
    return assembled(
        network,
        large.tokenizer(),
        work.settings.model,
        work.settings.adapter,
        name=case.name,
        fingerprint="",
        device=device,
        dtype=dtype,
    )


def _peft(case: Case, device: torch.device, dtype: torch.dtype, work: Work, seed: int) -> Any:
    return recipe.adapted(_network(case, device, dtype, seed), work.settings.adapter)


def _network(case: Case, device: torch.device, dtype: torch.dtype, seed: int) -> Any:
    network = large.network(seed, case.shape, device, dtype).requires_grad_(False).eval()
    if case.four_bits:
        _quantise(network, dtype)
    return network


def _quantise(network: nn.Module, dtype: torch.dtype) -> None:
    """Every linear module but the head in 4 bits, as transformers loads a base with `quantize = "4bit"`."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    head = network.get_output_embeddings()  # type: ignore[operator]
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            made = Linear4bit(
                module.in_features,
                module.out_features,
                False,
                dtype,
                True,
                "nf4",
                device=torch.device("meta"),
            )
            weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4", module=made)
            made.weight = weight.to(module.weight.device)
            made.support_avx512bf16_for_cpu = False  # as in model/base.py
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, made.eval())


def _sides(case: Case, device: torch.device, work: Work, base: Base, peft: Any) -> dict[str, Any]:
    start = lora.fresh(base.targets, base.adapter.rank, 0)
    asked = Work(settings=work.settings, clients=work.clients, start=start)
    examples = {name: recipe.rows(data) for name, data in asked.clients.items()}
    collator = DataCollatorForSeq2Seq(base.tokenizer, padding=True)
    bfloat16 = base.dtype == torch.bfloat16
    sides: dict[str, Any] = {
        RECIPE: lambda: recipe.one_round(peft, asked, examples, collator, device, bfloat16=bfloat16)
    }
    pass_tokens = cache(partial(_pass_tokens, base, asked))  # measured once a size, while it warms up
    for size in case.stacks:
        sides[ENGINE.format(size)] = lambda size=size: _engine_round(base, asked, size, pass_tokens(size))
    return sides


def _pass_tokens(base: Base, work: Work, size: int) -> int:
    """Tokens of a pass as a run would choose them, by the memory that is free."""
    return memory.sizes(
        base,
        clients=len(work.clients),
        step_tokens=work.tokens / len(work.clients),
        all_tokens=work.tokens,
        micro_batch=memory.micro_batch(base),
        workers=1,
        stack_size=size,
    ).micro_batch_tokens


def _engine_round(base: Base, work: Work, size: int, pass_tokens: int) -> Measured:
    """Every client, `size` at a time; the mean of what they changed."""
    names, results = list(work.clients), []
    for first in range(0, len(names), size):
        visits = [
            tune.Visit(client=name, data=work.clients[name], batches=work.steps(name))
            for name in names[first : first + size]
        ]
        job = tune.Job(
            broadcast=Broadcast(round=0, adapter=work.start, seed=0),
            algorithm=fedavg.ALGORITHM,
            visits=visits,
            tuning=work.settings.tuning,
            learning_rate=work.settings.tuning.learning_rate,
            micro_batch_tokens=pass_tokens,
        )
        results += tune.tune(base, job)
    reports = [result.report for result in results]
    trained = sum(report.trained_tokens for report in reports)
    mean = work.start
    for result in results:
        mean = mean.plus(result.delta, 1 / len(results))
    return Measured(
        seconds=0.0,
        adapter=mean,
        loss=sum(report.loss * report.trained_tokens for report in reports) / trained,
        dtype=str(base.dtype),
        micro_batch_tokens=pass_tokens,
    )


def _shape(base: Base) -> flops.Shape:
    config = base.model.config
    return flops.Shape(
        linear=sum(target.inputs * target.outputs for target in base.targets),
        adapter=sum(base.adapter.rank * (target.inputs + target.outputs) for target in base.targets),
        head=config.vocab_size * config.hidden_size,
        attention=config.num_hidden_layers * config.hidden_size,
        targets=base.targets,
    )


def _held(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _is_whole(case: Figures) -> bool:
    """Whether nothing of a case failed, and all its sides lost the same while tuning, within 3 %."""
    sides = list(case["sides"].values())
    losses = [side["loss"] for side in sides if "loss" in side]
    failed = any("failed" in each for each in (case, case.get("proof", {}), *sides))
    return not failed and (not losses or max(losses) <= 1.03 * min(losses))


def _save(figures: Figures, options: Namespace) -> None:
    if options.json:
        written = {**common.circumstances(options), "figures": figures, "partial": True}
        unfinished = options.json.with_suffix(".part")  # the file is whole at any moment
        unfinished.write_text(json.dumps(written, indent=1, default=str) + "\n", encoding="utf8")
        unfinished.replace(options.json)


def tables(figures: Figures) -> list[Table]:
    rows, notes = [], []
    for case, found in figures["cases"].items():
        if "skipped" in found:
            notes.append(f"{case} was skipped: {found['skipped']}")
        if "failed" in found:
            notes.append(f"{case} failed: {found['failed']}")
        theirs = found["sides"].get(RECIPE, {}).get("seconds", [])
        for name, side in found["sides"].items():
            own = side["seconds"]
            if "failed" in side:
                notes.append(f"{case}: {name} failed: {side['failed']}")
                if not own:
                    rows.append((f"{case}: {name}", "failed", "", "", "", ""))
            elif not own:
                notes.append(f"{case}, {name}: no time was left for a turn")
            if not own:
                continue
            paired = [other / mine for mine, other in zip(own, theirs, strict=False)]
            ratio = (
                f"{median(theirs) / median(own):.2f} ({min(paired):.2f}-{max(paired):.2f})" if paired else ""
            )
            rows.append(
                (
                    f"{case}: {name}",
                    f"{median(own):.2f}",
                    common.count(side["tokens_per_second"]),
                    common.share(side["share_of_peak"]),
                    f"{side['peak_gib']:.1f}",
                    "" if name == RECIPE else ratio,
                )
            )
        if "said" in found.get("proof", {}):
            notes.append(f"{case}: {found['proof']['said']}")
        if "failed" in found.get("proof", {}):
            notes.append(f"{case}: the proof failed: {found['proof']['failed']}")
    title = f"{figures['device']}: tuning, {figures['peak_tflops']:,.1f} TFLOP/s in a matrix product"
    columns = ("base: side", "seconds", "tokens/s", "of peak", "GiB", "times the recipe's speed")
    return [Table(title, columns, rows, notes)]


if __name__ == "__main__":
    sys.exit(main())
