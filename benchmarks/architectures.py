"""Every causal language model that transformers knows: does it tune here, and rightly?

A tiny random model of each type (`benchmarks/tiny.py`) is loaded as a run would load it. Where it is
accepted, the losses, the gradients of two clients and the greedy answers are compared with those of the plain
model, each example and prompt by itself, the adapters folded into its weights by PyTorch's parametrisations.

    python -m benchmarks.architectures                     # all of them, some minutes
    python -m benchmarks.architectures llama gpt_oss       # these
    python -m benchmarks.architectures --write             # and write benchmarks/architectures.json, the
                                                           # expected table, and docs/architectures.md from it
"""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
import textwrap
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from benchmarks import tiny
from benchmarks.common import ROOT, Figures, Table, parser, run
from shepherd.algorithms import fedavg
from shepherd.core import Adapter, Broadcast
from shepherd.data.tokens import Tokens
from shepherd.errors import BaseError
from shepherd.model import base as bases
from shepherd.model import generate, lora
from shepherd.model.base import Base
from shepherd.settings import AdapterTable, ModelTable, TuningTable
from shepherd.training import score, tune

EXPECTED = ROOT / "benchmarks" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"
LIMIT = 120  # seconds for one of them
OPENING = 20  # tokens that the examples of a client share
LENGTHS = ((12, 40, 33), (60, 90, 25))  # tokens of each client's examples
PROMPTS = (5, 12, 23)
LOSS_DIGITS = re.compile(r" \(relative difference [^)]*\)")  # which another machine may round otherwise
NAMED = re.compile(r"^base \S+ (\([^)]*\) )?")
ADAPTER = AdapterTable(rank=4, alpha=8.0)


PARTS = """
## Mixtures of experts

In transformers 5 the experts of a layer are stacked parameters and no linear modules, so "all-linear" reaches
the attention and shared experts only; the first lines of a run say what share of the weights that is. To tune
the experts too:

```toml
[adapter]
target_parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
dropout = 0.0
```

Names match by their end, as in PEFT's `LoraConfig.target_parameters`; they are the same in most
architectures (GraniteMoE: `block_sparse_moe.experts...`, Nemotron-H: `up_proj`). Each expert gets
factors of `adapter.rank`, so an adapter is larger by the number of experts and travels every round:
rank 8 over all experts of OLMoE-1B-7B is about 235 MB in float32. Architectures whose experts do
not follow transformers' interface (JetMoe, Llama 4, LongCat-Flash) are refused by name. Routers are
not adapted.

## Vision and audio

Where a multimodal checkpoint is loaded as a language model (Gemma 3 and 4, Fuyu, GOT-OCR2, MOSS,
Phi-4-multimodal), its encoders and projectors get no adapter, since text never reaches them; the first lines
of a run name them.
"""
HEAD = """# Architectures

Written by `python -m benchmarks.architectures --write`; `make test-architectures` holds it.

Every type of `AutoModelForCausalLM` in the transformers of `constraints.txt`, as a tiny random model of two
layers with windows and chunks of 16 tokens and examples of 12 to 90: losses, gradients of two clients beside
each other with shared prefixes, and greedy answers, against the plain model with each example by itself. A
real base is proven again when it is loaded (decision 16), so one that its configuration makes different is
refused or runs in batches then; a type that is not here is tried the same way.
"""
ABOUT = {
    "packed": "Examples of several clients run end to end in one pass: the fast way.",
    "unpacked": "One client's examples a pass, padded, by the model's own attention: right, and slower. Why:",
    "refused": "Not tuned here; `load` says why:",
    "not built": "No tiny model of it could be made or run here, so nothing is claimed:",
}
ANSWERS = "In one batch whatever the prompts' lengths, but for these:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one model type."""

    runs: str
    """packed, unpacked, refused, or not built: there is no tiny model of it here."""
    why: str = ""
    answers: str = ""
    """batched, one length (prompts of equal length share a batch), one by one, or none: it cannot."""
    losses: float = 0.0
    gradients: float = 0.0
    """The largest relative differences from the plain model."""
    untouched: int = 0
    """Targets that no adapter changes: the architecture reads their weights, or text never reaches them."""
    greedy: bool = True
    """Whether each answer in a batch is that of its prompt alone."""
    seconds: float = 0.0

    @property
    def expected(self) -> dict[str, str]:
        found = {key: value for key in ("runs", "answers", "why") if (value := getattr(self, key))}
        return {key: LOSS_DIGITS.sub("", value) for key, value in found.items()}

    @property
    def right(self) -> bool:
        return self.losses < 1e-4 and self.gradients < 5e-3 and self.greedy


def names() -> list[str]:
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def look(kind: str, **more: Any) -> Outcome:
    """Build it, load it, and compare it with the plain model; `more` goes into its configuration."""
    begun = perf_counter()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        try:
            with _limit(LIMIT):
                tiny.save(tiny.config(kind, **more), Path(folder))
        except Exception as error:
            return Outcome(runs="not built", why=_first(error))
        try:
            with _limit(LIMIT):
                table = ModelTable(base=folder, dtype="float32")
                base = bases.load(table, ADAPTER, name=kind, device="cpu")
                found = _compared(base, folder)
        except BaseError as error:
            found = Outcome(runs="refused", why=NAMED.sub("", str(error)))
        except _LateError:
            found = Outcome(runs="not built", why=f"takes over {LIMIT} seconds here")
    return Outcome(**{**asdict(found), "seconds": perf_counter() - begun})


def _compared(base: Base, folder: str) -> Outcome:
    data = [_tokens(seed, lengths) for seed, lengths in enumerate(LENGTHS)]
    pooled = Tokens.pooled(data)
    reached = _reached(base, data)
    adapters = [_adapter(base, seed, reached) for seed in (1, 2)]
    losses = score.losses(base, adapters, pooled, micro_batch=4096)
    gradients = _gradients(base, adapters[0], data)
    plain = [_Plain(folder, base, adapter) for adapter in adapters]
    own = np.array([[float(one.loss(pooled, i).detach()) for i in range(len(pooled))] for one in plain])
    own_gradients = [plain[0].gradients(one) for one in data]
    answers, greedy = _answers(base, adapters, plain)
    return Outcome(
        runs="packed" if base.packed else "unpacked",
        why=base.proof.unpacked,
        answers=answers,
        losses=float((np.abs(losses - own) / np.abs(own)).max()),
        gradients=max(
            _apart(ours, theirs, reached) for ours, theirs in zip(gradients, own_gradients, strict=True)
        ),
        untouched=len(base.shapes) // 2 - len(reached) // 2,
        greedy=greedy,
    )


def _reached(base: Base, data: Sequence[Tokens]) -> set[str]:
    """The factors of targets that training changes at all; B stays zero in the others."""
    every = set(base.shapes)
    gradients = _gradients(base, _adapter(base, 0, every), data)
    names_a = {name for name in every if ".lora_A." in name and any(one[name].any() for one in gradients)}
    return names_a | {name.replace(".lora_A.", ".lora_B.") for name in names_a}


def _adapter(base: Base, seed: int, reached: set[str]) -> Adapter:
    rng = np.random.default_rng(seed)
    first = lora.fresh(base.targets, base.adapter.rank, seed)
    return Adapter(
        {
            name: rng.normal(0, 0.1, a.shape) if ".lora_B." in name and name in reached else a
            for name, a in first.items()
        }
    )


def _tokens(seed: int, lengths: Sequence[int]) -> Tokens:
    """Examples of which those that are long enough begin alike; what comes after is trained, mostly."""
    rng = np.random.default_rng(seed)
    opening = rng.integers(4, tiny.VOCABULARY, OPENING)
    ids = [
        np.concatenate([opening * (n > OPENING), rng.integers(4, tiny.VOCABULARY, n)])[-n:].astype(np.int32)
        for n in lengths
    ]
    ids = [
        np.concatenate([opening, one[OPENING:]]).astype(np.int32) if len(one) > OPENING else one
        for one in ids
    ]
    trained = [np.arange(len(one)) >= len(one) // 3 for one in ids]
    return Tokens(
        ids=np.concatenate(ids), loss_mask=np.concatenate(trained), offsets=np.cumsum([0, *map(len, ids)])
    )


def _gradients(base: Base, adapter: Adapter, data: Sequence[Tokens]) -> list[dict[str, Tensor]]:
    """Gradients of each client's mean loss by the adapter, as in one step of tuning."""
    caught: dict[str, Tensor] = {}

    def catch(name: str, grad: Tensor, *_: Any) -> Tensor:
        caught[name] = grad.clone()
        return grad

    algorithm = replace(fedavg.ALGORITHM, correct=catch)
    visits = [
        tune.Visit(client=f"client-{k}", data=one, batches=[np.arange(len(one))])
        for k, one in enumerate(data)
    ]
    broadcast = Broadcast(round=0, adapter=adapter, seed=0)
    job = tune.Job(
        broadcast=broadcast,
        algorithm=algorithm,
        visits=visits,
        tuning=TuningTable(),
        learning_rate=0.0,
        micro_batch_tokens=4096,
    )
    tune.tune(base, job)
    return [{name: grad[k] for name, grad in caught.items()} for k in range(len(data))]


class _Folded(nn.Module):
    """weight + scale * B A, turned for transformers' Conv1D."""

    def __init__(self, a: Tensor, b: Tensor, turned: bool) -> None:
        super().__init__()
        self.a, self.b, self.turned = nn.Parameter(a), nn.Parameter(b), turned

    def forward(self, weight: Tensor) -> Tensor:
        product = lora.scaling(ADAPTER) * (self.b @ self.a)
        return weight + (product.T if self.turned else product)


class _Plain:
    """The model as transformers loads it, an adapter folded into its weights; nothing of the engine."""

    def __init__(self, folder: str, base: Base, adapter: Adapter) -> None:
        self.network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.network.requires_grad_(False)
        self.network.generation_config = transformers.GenerationConfig()
        self.factors: dict[str, nn.Parameter] = {}
        for target in base.targets:
            module = self.network.get_submodule(target.module)
            a, b = (torch.from_numpy(np.array(adapter[name])) for name in (target.name_a, target.name_b))
            folded = _Folded(a, b, turned=isinstance(module, Conv1D))
            parametrize.register_parametrization(module, "weight", folded)
            self.factors |= {target.name_a: folded.a, target.name_b: folded.b}

    def loss(self, data: Tokens, i: int) -> Tensor:
        """Summed over the trained tokens of one example."""
        ids, trained = (torch.from_numpy(np.array(part)) for part in data.example(i))
        scores = self.network(input_ids=ids[None].long(), use_cache=False).logits[0].float()
        wanted = trained[1:]
        return F.cross_entropy(scores[:-1][wanted], ids[1:][wanted].long(), reduction="sum")

    def gradients(self, data: Tokens) -> dict[str, Tensor]:
        for factor in self.factors.values():
            factor.grad = None
        for i in range(len(data)):
            (self.loss(data, i) / int(tune.predictions(data).sum())).backward()
        return {
            name: torch.zeros_like(factor) if factor.grad is None else factor.grad
            for name, factor in self.factors.items()
        }

    def answer(self, prompt: Sequence[int]) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = self.network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=6,
                do_sample=False,
                pad_token_id=2,
                eos_token_id=1,
            )
        return generate.until_stop(out[0, len(prompt) :].tolist(), [1])


def _answers(base: Base, adapters: Sequence[Adapter], plain: Sequence[_Plain]) -> tuple[str, bool]:
    """How answers are made, and whether those of two adapters in batches are each prompt's alone."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(4, tiny.VOCABULARY, n).tolist() for n in (*PROMPTS, PROMPTS[0])]
    try:
        own = [[one.answer(prompt) for prompt in prompts] for one in plain]
    except Exception as error:
        return f"none ({_first(error)})", True
    ours = generate.generate(base, adapters, prompts, max_new_tokens=6, stop=[1])
    how = "batched" if base.proof.pads else "one length" if base.proof.batches else "one by one"
    return how, ours == own


def _apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], names: set[str]) -> float:
    """The largest difference of a factor's gradient, relative to its size or a hundredth of the largest."""
    floor = 1e-2 * max(float(theirs[n].norm()) for n in names)
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=floor)) for n in names)


def _first(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:100]}"


@contextmanager
def _quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)


class _LateError(BaseException):
    """The limit is over; nothing on the way takes it for a fault of the architecture."""


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise _LateError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("kinds", nargs="*", metavar="TYPE", help="model types (default: all)")
    options.add_argument("--write", action="store_true", help="write the expected table and its page again")
    return run(options.parse_args(), measure, tables)


def measure(options: Namespace) -> Figures:
    kinds = options.kinds or (["llama", "mamba", "bert"] if options.quick else names())
    found = {}
    for kind in kinds:
        found[kind] = look(kind)
        if options.write:  # one by one, so that nothing is lost
            expected = dict(sorted((read_expected() | {kind: found[kind].expected}).items()))
            EXPECTED.write_text(json.dumps(expected, indent=1) + "\n", encoding="utf8")
            PAGE.write_text(page(expected), encoding="utf8")
        print(f"{kind:28s} {found[kind].runs:10s} {found[kind].why[:120]}", file=sys.stderr, flush=True)
    return {
        "outcomes": {kind: asdict(outcome) for kind, outcome in found.items()},
        "passed": all(outcome.right for outcome in found.values()),
    }


def read_expected() -> dict[str, dict[str, str]]:
    """The expected outcome of each model type."""
    found: dict[str, dict[str, str]] = (
        json.loads(EXPECTED.read_text(encoding="utf8")) if EXPECTED.exists() else {}
    )
    return found


def tables(figures: Figures) -> list[Table]:
    outcomes: dict[str, dict[str, Any]] = figures["outcomes"]
    rows = [
        (
            kind,
            one["runs"],
            one["answers"].partition(" (")[0],
            f"{one['losses']:.0e}",
            f"{one['gradients']:.0e}",
            "yes" if one["greedy"] else "NO",
            f"{one['seconds']:.1f}",
            one["why"][:60],
        )
        for kind, one in outcomes.items()
    ]
    columns = ("type", "runs", "answers", "losses apart", "gradients apart", "greedy alike", "seconds", "why")
    counts = Counter(one["runs"] for one in outcomes.values())
    note = ", ".join(f"{number} {runs}" for runs, number in counts.most_common())
    return [Table("Architectures", columns, rows, (note,))]


def page(expected: Mapping[str, Mapping[str, str]]) -> str:
    """docs/architectures.md: which model types tune here, and how."""
    groups: dict[str, list[str]] = {runs: [] for runs in ABOUT}
    for kind, one in sorted(expected.items()):
        groups[one["runs"]].append(kind)
    counts = ", ".join(f"{len(kinds)} {runs}" for runs, kinds in groups.items())
    parts = [f"{HEAD}\nOf {len(expected)} types: {counts}.\n"]
    for runs, kinds in groups.items():
        parts.append(f"\n## {runs.capitalize()}\n\n{ABOUT[runs]}\n\n")
        if runs == "packed":
            parts.append(textwrap.fill(", ".join(kinds), 110, break_on_hyphens=False) + "\n")
            continue
        parts.append("| type | why |\n|---|---|\n")
        parts += [f"| {kind} | {expected[kind].get('why', '').replace('|', '/')} |\n" for kind in kinds]
    parts.append(f"\n## Answers\n\n{ANSWERS}\n\n| type | answers |\n|---|---|\n")
    parts += [
        f"| {kind} | {how} |\n"
        for kind, one in sorted(expected.items())
        if (how := one.get("answers", "batched")) != "batched"
    ]
    return "".join([*parts, PARTS])


if __name__ == "__main__":
    sys.exit(main())
