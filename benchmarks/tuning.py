"""Tuning throughput, side by side: this engine against the usual recipe (transformers' Trainer and PEFT).

All sides tune the same base for one round: the same clients, the same examples in the same optimiser
steps, the same AdamW. Each lives in a process of its own, so that neither's memory, allocator or caches
help or hinder another, and they take turns (a, b, c, a, b, c, ...). Tokenising is outside the clock.
Sides: `engine`; `recipe`, base in float32; `recipe bf16`, base in bfloat16 and bf16=True, which is left out
by default where the device emulates bfloat16: there a turn of it takes many minutes.

Tokens are the examples' own, never padding; a prefix that several examples share counts in each. The share
of the peak is the useful work (each example's own, by the formula in benchmarks/flops.py) by the best matrix
product that this machine did in that dtype, in the same run. The sides must agree: in the loss while tuning,
and in the held-out loss of the mean adapter they end with.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks import common, flops, large, setting
from benchmarks.common import Figures, Table
from benchmarks.engine import engine
from benchmarks.recipe import recipe
from benchmarks.sides import Make, sides
from benchmarks.work import Measured, Work
from shepherd.core import Adapter
from shepherd.data import dataset, pipeline
from shepherd.data.pack import pack
from shepherd.data.shared_prefix import group_by_prefix
from shepherd.data.tokens import Tokens
from shepherd.errors import SettingsError
from shepherd.evaluate.loss import stratified_subset
from shepherd.model import base as bases
from shepherd.model import lora
from shepherd.settings import RunSettings
from shepherd.training import score
from shepherd.training.tune import predictions

ALLOWED = 0.03  # relative difference of the sides' losses
ALIGNED = 0.8  # cosine of the changes: bfloat16 turns small AdamW steps a little, a mistake turns all
HELDOUT = 100  # examples
SCORED_AT_ONCE = 4096  # tokens
ENGINE, RECIPE, RECIPE_BF16 = "engine", "recipe", "recipe bf16"
SIDES: dict[str, Make] = {
    ENGINE: engine,
    "engine, 1 process": partial(engine, workers=1),
    "engine float32": partial(engine, dtype="float32"),
    RECIPE: partial(recipe, bfloat16=False),
    RECIPE_BF16: partial(recipe, bfloat16=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    _add_options(parser)
    options = parser.parse_args(arguments)
    if options.llama_1b and not (options.quick or torch.cuda.is_available()):
        parser.error("--llama-1b needs CUDA, and there is none here; leave it out for the small base")
    return common.run(options, measure, tables)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--on", choices=setting.SETTINGS, default="dolly", help="default dolly")
    parser.add_argument("--base", help="another base: a folder or a Hugging Face id (default: the setting's)")
    parser.add_argument("--llama-1b", action="store_true", help="LLaMA's 1B shape, random weights; CUDA only")
    parser.add_argument("--clients", type=int, default=10, help="in the round, at most 10 on dolly")
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps a visit (default 4)")
    parser.add_argument("--batch", type=int, default=16, help="examples a step (default 16)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side (default 3)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="the engine's"
    )
    parser.add_argument("--device", default="auto", help="default: CUDA where there is CUDA")
    parser.add_argument("--micro-batch-tokens", type=int, help="the engine's (default: it chooses)")
    parser.add_argument(
        "--stack-size", type=int, help="clients that the engine tunes at once (default: it chooses)"
    )
    parser.add_argument("--workers", type=int, help="the engine's processes (default: it chooses)")
    parser.add_argument("--heldout", type=int, default=HELDOUT, help=f"examples scored (default {HELDOUT})")
    parser.add_argument("--beside", type=int, default=0, help="busy processes beside the sides (default 0)")
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=tuple(SIDES),
        help="the engine and the recipe are always among them (default: both, and the recipe in bfloat16"
        " where the device multiplies that natively)",
    )


def measure(options: Namespace) -> Figures:
    if options.quick:
        options.clients, options.steps, options.batch, options.repeats = 2, 1, 2, 1
    with TemporaryDirectory() as scratch:
        settings = _settings(options, Path(scratch))
        clients, heldout = _data(options, settings)
        shape = flops.shape_of(settings.model.base, settings.adapter)
        fresh = lora.first(shape.targets, settings.adapter.rank, options.seed)
        work = Work(settings=settings, clients=clients, start=fresh)
        more = options.sides or _default_sides(settings.machine.device)
        chosen = [name for name in SIDES if name in {ENGINE, RECIPE, *more}]
        with common.busy(options.beside):
            turns = _turns(work, chosen, options.repeats)
        finals = {name: taken[-1].adapter for name, taken in turns.items()}
        losses = _heldout_losses(settings, {"start": fresh, **finals}, heldout)
    peaks = {dtype: _peak(dtype, settings, options.quick) for dtype in _dtypes(turns)}
    figures = _figures(work, turns, losses, flops.useful(shape, *_amounts(work)), peaks)
    return {**figures, "beside": options.beside}


def _settings(options: Namespace, scratch: Path) -> RunSettings:
    device = str(bases.pick_device(options.device))
    machine = {
        "device": device,
        "micro_batch_tokens": options.micro_batch_tokens or "auto",
        "stack_size": options.stack_size or "auto",
        "workers": options.workers or "auto",
        "threads": options.threads or "auto",
    }
    asked = {
        "seed": options.seed,
        "model": {"dtype": options.dtype},
        "federation": {"rounds": 1},
        "selection": {"share": 1.0},
        "tuning": {"max_steps": options.steps, "batch_size": options.batch},
        "machine": machine,
    }
    if options.llama_1b:
        own = {"model": {"base": str(large.write(scratch / "base", options.seed, _large(options)))}}
        return setting.parsed({"data": {"source": "none"}, **setting.merged(own, asked)})
    few = {"data": {"limit": 40}} if options.quick else {}
    split = {"split": {"clients": options.clients}} if options.on == "world" else {}
    base = {"model": {"base": options.base}} if options.base else {}
    return setting.placed(setting.settings(options.on, few, split, asked, base))


def _default_sides(device: str) -> Sequence[str]:
    if bases.pick_dtype("auto", torch.device(device)) == torch.bfloat16:
        return (RECIPE_BF16,)
    print(f"{RECIPE_BF16} is left out: this device emulates bfloat16")
    return ()


def _large(options: Namespace) -> Mapping[str, int]:
    return large.SMALL if options.quick else large.SHAPE


def _data(options: Namespace, settings: RunSettings) -> tuple[dict[str, Tokens], Tokens]:
    """The clients' examples, and held-out ones spread over the categories."""
    if options.llama_1b:
        size = options.steps * options.batch
        made = large.clients(options.clients + 1, size, _large(options), options.seed)
        *names, last = made
        return {name: made[name] for name in names}, made[last]
    ready = pipeline.prepare(settings, bases.load_tokenizer(settings.model))
    chosen = dict(list(ready.clients.items())[: options.clients])
    for name, data in chosen.items():
        if len(data) < options.steps * options.batch:
            raise SettingsError(
                f"client {name} has {len(data)} examples; give fewer --steps or a smaller --batch"
            )
    return chosen, ready.heldout.take(
        stratified_subset(dataset.categories(ready), 8 if options.quick else options.heldout)
    )


def _turns(work: Work, names: Sequence[str], repeats: int) -> dict[str, list[Measured]]:
    """Warm up, then take turns."""
    steps = work.settings.tuning.max_steps
    assert steps is not None
    taken: dict[str, list[Measured]] = {name: [] for name in names}
    with sides({name: SIDES[name] for name in names}, work) as turns:
        for turn in turns.values():
            turn(1)
        for _ in range(repeats):
            for name, turn in turns.items():
                taken[name].append(turn(steps))
                print(f"{name}: {taken[name][-1].seconds:.2f} s", flush=True)
    return taken


def _heldout_losses(
    settings: RunSettings, adapters: Mapping[str, Adapter], heldout: Tokens
) -> dict[str, float]:
    """Nats a trained token, all in the engine's own dtype."""
    base = bases.load(settings.model, settings.adapter, device=settings.machine.device)
    sums = score.losses(base, list(adapters.values()), heldout, micro_batch=SCORED_AT_ONCE)
    means = sums.sum(axis=1) / predictions(heldout).sum()
    return dict(zip(adapters, means.tolist(), strict=True))


def _dtypes(turns: Mapping[str, Sequence[Measured]]) -> set[str]:
    return {taken[0].dtype for taken in turns.values()}


def _peak(dtype: str, settings: RunSettings, quick: bool) -> float:
    device = torch.device(settings.machine.device)
    sizes = (4096, 8192, 16384) if device.type == "cuda" else (512, 1024, 2048, 4096)
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    return flops.peak(kind, device, (64,), 0.01) if quick else flops.peak(kind, device, sizes)


def _amounts(work: Work) -> tuple[Any, int]:
    return np.concatenate(work.lengths()), sum(sum(work.trained(name)) for name in work.clients)


def shared(work: Work, micro_batch: int) -> float:
    """Share of the tokens that the engine need not compute: prefixes that examples of a row share."""
    saved = 0
    for name, data in work.clients.items():
        for step in work.steps(name):
            for members in pack(data.lengths[step].tolist(), micro_batch):
                saved += sum(
                    group.saved for group in group_by_prefix([data.example(int(step[i]))[0] for i in members])
                )
    return saved / work.tokens


def _figures(
    work: Work,
    turns: Mapping[str, Sequence[Measured]],
    losses: Mapping[str, float],
    useful: int,
    peaks: Mapping[str, float],
) -> Figures:
    lengths, trained = _amounts(work)
    amounts = {"examples": len(lengths), "tokens": work.tokens, "trained_tokens": trained}
    padded = sum(int(batch.max()) * len(batch) for batch in work.lengths())
    reference = turns[RECIPE][-1].adapter.plus(work.start, -1.0)
    found: dict[str, Figures] = {}
    for name, taken in turns.items():
        middle = median(each.seconds for each in taken)
        found[name] = {
            "dtype": taken[0].dtype,
            "seconds": [each.seconds for each in taken],
            **{f"{what}_per_second": amount / middle for what, amount in amounts.items()},
            "useful_gflops": useful / middle / 1e9,
            "share_of_peak": useful / middle / peaks[taken[0].dtype],
            "peak_bytes": max(each.peak_bytes for each in taken),
            "workers": taken[0].workers,
            "clients_at_once": taken[0].clients_at_once,
            "micro_batch_tokens": taken[0].micro_batch_tokens,
            "loss": taken[-1].loss,
            "heldout_loss": losses[name],
            "cosine_to_recipe": cosine(taken[-1].adapter.plus(work.start, -1.0), reference),
        }
    tuning = work.settings.tuning
    return {
        "base": Path(work.settings.model.base).name,
        "device": work.settings.machine.device,
        "work": {
            "clients": len(work.clients),
            "steps": tuning.max_steps,
            "batch": tuning.batch_size,
            **amounts,
            "padding": 1 - amounts["tokens"] / padded,
            "shared": shared(work, turns[ENGINE][0].micro_batch_tokens or work.tokens),
            "useful_flops": useful,
        },
        "heldout_loss_before": losses["start"],
        "sides": found,
        "peak_gflops": {dtype: value / 1e9 for dtype, value in peaks.items()},
        "ratios": ratios({name: each["seconds"] for name, each in found.items()}),
        "passed": agree(list(found.values())),
    }


def ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """For each recipe, how many times as fast the engine is: of the medians; least and most, turn by turn.

    >>> ratios({"engine": [1.0, 2.0, 2.0], "recipe": [8.0, 10.0, 12.0]})
    {'recipe': {'of_medians': 5.0, 'least': 5.0, 'most': 8.0}}
    """
    own = seconds[ENGINE]
    found = {}
    for name, theirs in seconds.items():
        if name != ENGINE:
            paired = [other / mine for mine, other in zip(own, theirs, strict=True)]
            found[name] = {
                "of_medians": median(theirs) / median(own),
                "least": min(paired),
                "most": max(paired),
            }
    return found


def cosine(one: Adapter, other: Adapter) -> float:
    """Cosine similarity of two changes, over all tensors together."""
    product = sum(float(np.vdot(one[name], other[name])) for name in one)
    return product / (one.norm() * other.norm())


def agree(found: Sequence[Mapping[str, float]]) -> bool:
    """Whether all sides lost the same while tuning and on held-out examples, and moved the same way."""
    spreads = ([each[key] for each in found] for key in ("loss", "heldout_loss"))
    near = all(max(values) <= (1 + ALLOWED) * min(values) for values in spreads)
    return near and min(each["cosine_to_recipe"] for each in found) >= ALIGNED


def tables(figures: Figures) -> list[Table]:
    return [_speeds(figures), _agreement(figures)]


def _speeds(figures: Figures) -> Table:
    rows = [
        (
            name,
            side["dtype"],
            f"{median(side['seconds']):.2f}",
            f"{side['examples_per_second']:.1f}",
            common.count(side["tokens_per_second"]),
            common.count(side["trained_tokens_per_second"]),
            f"{side['useful_gflops']:.1f}",
            common.share(side["share_of_peak"]),
            f"{side['peak_bytes'] / 2**30:.2f}",
            _ratio(figures["ratios"].get(name)),
        )
        for name, side in figures["sides"].items()
    ]
    columns = (
        *("side", "dtype", "seconds", "examples/s", "tokens/s", "trained/s", "GFLOP/s", "of peak", "GiB"),
        "engine is faster by",
    )
    work = figures["work"]
    beside = f", {figures['beside']} busy processes beside" if figures["beside"] else ""
    title = (
        f"{figures['base']} on {figures['device']}: {work['clients']} clients, {work['steps']} steps of"
        f" {work['batch']} examples{beside}"
    )
    peaks = ", ".join(f"{dtype} {value:,.0f} GFLOP/s" for dtype, value in figures["peak_gflops"].items())
    best = min(each["of_medians"] for each in figures["ratios"].values())
    notes = (
        f"{work['examples']} examples, {work['tokens']:,} tokens, {work['trained_tokens']:,} trained;"
        f" padding is {work['padding']:.0%} of the recipe's batches",
        f"{work['shared']:.1%} of the tokens are in shared prefixes, which the engine computes once",
        f"measured matrix-product peak: {peaks}",
        f"against the usual recipe {figures['ratios']['recipe']['of_medians']:.1f} times as fast,"
        f" against the better one {best:.1f} times",
    )
    return Table(title, columns, rows, notes)


def _ratio(ratio: Mapping[str, float] | None) -> str:
    return f"{ratio['of_medians']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})" if ratio else ""


def _agreement(figures: Figures) -> Table:
    rows = [
        (name, f"{side['loss']:.4f}", f"{side['heldout_loss']:.4f}", f"{side['cosine_to_recipe']:.4f}")
        for name, side in figures["sides"].items()
    ]
    before = f"held-out loss before: {figures['heldout_loss_before']:.4f}"
    verdict = "agree" if figures["passed"] else "DISAGREE"
    columns = ("side", "loss while tuning", "held-out loss after", "cosine to the recipe's change")
    return Table("Do the sides learn the same?", columns, rows, (before, f"the sides {verdict}"))


if __name__ == "__main__":
    sys.exit(main())
