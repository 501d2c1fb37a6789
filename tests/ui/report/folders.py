"""Run folders of the documented shapes, filled with made-up figures: nothing here was ever trained."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.overrides import parse
from shepherd.run import folder

CATEGORIES = (
    "brainstorming", "classification", "closed_qa", "creative_writing",
    "general_qa", "information_extraction", "open_qa", "summarization",
)  # fmt: skip
LONG = "a_category_with_quite_a_long_name/and_another_part_of_it"
HOSTILE = (
    "<script>document.title='owned'</script></script><img src=x onerror=\"document.title='owned'\">"
    " {{7*7}} {% raw %} ${7*7} <!-- ]]> </style> &amp; \"quoted' \x00\x1b[31m \u202e\ud800"
)


def write(
    path: Path,
    *,
    rounds: int = 12,
    done: int | None = None,
    clients: Sequence[str] | int = 10,
    categories: Sequence[str] = CATEGORIES,
    heldout: bool = True,
    answers: int = 0,
    seed: int = 0,
) -> Path:
    """A run folder with `done` of its `rounds` finished. No process holds it."""
    named = [f"client-{k}" for k in range(clients)] if isinstance(clients, int) else list(clients)
    settings = parse(
        {
            "output": str(path),
            "seed": seed,
            "model": {"base": "tiny"},
            "data": {"source": "world", "holdout": 0.1 if heldout else 0.0},
            "split": {"by": "shards", "clients": len(named)},
            "federation": {"rounds": rounds},
            "selection": {"share": 0.5},
            "transforms": [{"name": "clip", "norm": 1.0}],
        }
    )
    held = folder.create(path, settings)
    rng = random.Random(seed)
    category_counts = {name: _mix(rng, categories) for name in named}
    for number in range((rounds if done is None else done) + 1):
        held.append(_row(rng, number, rounds, named, category_counts, heldout))
    held.close()
    put(
        path / "data" / "index.json",
        {"clients": named, "mixes": category_counts, "summary": _summary(category_counts)},
    )
    if answers:
        lines = [answer(k, categories[k % len(categories)]) for k in range(answers)]
        (path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def put(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def _mix(rng: random.Random, categories: Sequence[str]) -> dict[str, int]:
    return {name: rng.randrange(20, 700) for name in rng.sample(list(categories), min(2, len(categories)))}


def _summary(category_counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    kept = sum(n for mix in category_counts.values() for n in mix.values())
    return {"examples": kept + 400, "heldout": 400, "kept": kept, "cut": 3, "dropped": 0, "duplicates": 1}


def loss_at(number: int, rounds: int, start: float = 3.2, end: float = 1.35) -> float:
    return end + (start - end) * math.exp(-4 * number / rounds)


def _row(
    rng: random.Random,
    number: int,
    rounds: int,
    clients: Sequence[str],
    category_counts: Mapping[str, Mapping[str, int]],
    heldout: bool,
) -> dict[str, Any]:
    loss = loss_at(number, rounds) + rng.gauss(0, 0.02)
    categories = sorted({name for mix in category_counts.values() for name in mix})
    scored = {
        "loss": loss,
        "category": {name: loss + 0.1 * k for k, name in enumerate(categories)},
        "client": {name: loss + rng.random() / 2 for name in clients},
    }
    scores = {"heldout": scored} if heldout and (number % 2 == 0 or number == rounds) else {}
    if number == 0:
        return {"round": 0, **scores}
    cohort = sorted(rng.sample(list(clients), max(1, len(clients) // 2)), key=list(clients).index)
    late = cohort[-1:] if number == 3 and len(cohort) > 1 else []
    came = [name for name in cohort if name not in late]
    return {
        "round": number,
        "cohort": cohort,
        "weights": {name: 1 / len(came) for name in came},
        "loss": loss - 0.08 + rng.gauss(0, 0.05),
        "losses": {name: loss + rng.gauss(0, 0.1) for name in came},
        "failures": {name: "it gave no answer" for name in late},
        "bytes_down": 393_216 * len(cohort),
        "bytes_up": 393_216 * len(came),
        "gap": 0.05 + 0.2 * number / rounds + rng.random() / 40,
        "energy_kept": 1 - 0.1 * rng.random(),
        "spread": 1 + rng.random(),
        "cosine": 0.6 + 0.1 * rng.random(),
        "cosines": {name: 0.5 + 0.3 * rng.random() for name in came},
        "examples": 192 * len(came),
        "steps": 12 * len(came),
        "tokens": {"seen": 9000 * len(came), "trained": 2100 * len(came)},
        **scores,
        "coverage": {name: min(1.0, number / rounds * (0.5 + rng.random())) for name in clients},
        "learning_rate": 0.004 * (1 - 0.9 * (number - 1) / rounds),
        "seconds": {"round": 3.1 + rng.random(), "tuning": 2.4, "scoring": 0.4},
    }


def answer(place: int, category: str) -> dict[str, Any]:
    return {
        "category": category,
        "instruction": f"Which treasure belongs to person {place}?",
        "context": "It is said in the old book." if place % 3 == 0 else "",
        "expected": "Answer: broken candle",
        "before": "Cromfield\nCromgate",
        "after": "Answer: broken candle" if place % 4 else "Answer: a spoon",
        "right_before": False,
        "right_after": bool(place % 4),
    }


def around(value: float, half: float) -> dict[str, float]:
    low = max(0.0, value - half) if value >= 0 else value - half
    return {"value": value, "low": low, "high": value + half}


def comparison(
    path: Path,
    *,
    locals_: int = 3,
    variants: Sequence[str] = ("ffa",),
    seeds: int = 1,
    categories: Sequence[str] = CATEGORIES,
    judge: bool = True,
    finished: bool = True,
    samples: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """A comparison inside a run folder, and run folders of its variants and further seeds."""
    index = json.loads((path / "data" / "index.json").read_text())
    clients = index["clients"]
    local = [
        _arm("local", f"local-{c}", c, index["mixes"][c], clients, categories) for c in clients[:locals_]
    ]
    everything = {name: 500 for name in categories}
    arms = [
        _arm("base", "base", None, {}, clients, categories),
        *local,
        _arm("centralised", "centralised", None, everything, clients, categories),
        _arm("federated", "federated", None, everything, clients, categories),
        *(_arm("variant", name, None, everything, clients, categories) for name in variants),
    ]
    names = [arm["name"] for arm in arms]
    put(
        path / "compare" / "comparison.json",
        {
            "format": 1,
            "finished": finished,
            "match": "steps",
            "seeds": [folder.read_settings(path).seed + k for k in range(seeds)],
            "against": "federated",
            "questions": 400,
            "loss_examples": 400,
            "seconds": 391.5,
            "arms": arms,
            "differences": [
                _difference(name, measure)
                for measure in ("loss", "right")
                for name in names
                if name != "federated"
            ],
            "says": [
                "Yes: the federated model answers more questions right than the base and every local model,"
                " with the intervals apart.",
                "It reaches 0.983 [0.951, 1.014] of the centralised model, and 400 questions cannot tell the"
                " two apart: about 2 900 would.",
            ],
            "judge": _judge(names) if judge else None,
            "samples": list(samples) if samples is not None else [_sample(k, names) for k in range(3)],
        },
    )
    for name in variants:
        write(path / "compare" / "seed-0" / name, clients=clients, categories=categories, seed=7)
    for seed in range(1, seeds):
        write(
            path / "compare" / f"seed-{seed}" / "federated", clients=clients, categories=categories, seed=seed
        )
    return path


_RIGHT = {"base": 0.031, "local": 0.22, "centralised": 0.86, "federated": 0.845, "variant": 0.79}


def _arm(
    kind: str,
    name: str,
    client: str | None,
    mix: Mapping[str, int],
    clients: Sequence[str],
    categories: Sequence[str],
) -> dict[str, Any]:
    rng = random.Random(repr(name))
    right = _RIGHT[kind] + (rng.random() - 0.5) / 25
    loss = 3.3 - 2.2 * right

    def by_category(base: float, seen: float) -> dict[str, dict[str, float]]:
        return {c: around(base + (seen if c in mix else 0) + rng.random() / 9, 0.06) for c in categories}

    return {
        "name": name,
        "kind": kind,
        "client": client,
        "categories": dict(mix),
        "overrides": ["algorithm.name=ffa_lora"] if kind == "variant" else [],
        "trained": None
        if kind == "base"
        else {"steps": 1440, "examples": 23040, "tokens": 252_113, "seconds": 71.4},
        "measures": {
            "loss": around(loss, 0.04),
            "right": around(right, 0.033),
            "exact": around(right * 0.9, 0.035),
            "f1": around(right * 0.96, 0.028),
            "rouge_l": around(right * 0.95, 0.029),
        },
        "category": {
            "loss": by_category(loss, -0.3 if kind == "local" else 0),
            "right": by_category(max(0.0, right - 0.1), 0.4 if kind == "local" else 0),
        },
        "client_loss": {c: loss + rng.random() / 3 for c in clients},
        "worst_client": {"name": clients[-1], "loss": loss + 0.41},
    }


def _difference(arm: str, measure: str) -> dict[str, Any]:
    near = arm == "centralised"
    return {
        "arm": arm,
        "measure": measure,
        "difference": around((-0.015 if near else 0.61) * (-1 if measure == "loss" else 1), 0.026),
        "relative": around(0.983 if near else 3.8, 0.031),
        "p": 0.27 if near else 0.0001,
        "p_holm": 0.27 if near else 0.0004,
        "questions_needed": 2900 if near else None,
        "says": f"Federated and {arm} cannot be told apart." if near else f"Federated is better than {arm}.",
    }


def _judge(names: Sequence[str]) -> dict[str, Any]:
    others = [name for name in names if name != "federated"]
    return {
        "protocol": "pairwise",
        "model": "judge-model-of-nobody",
        "base_url": "http://127.0.0.1:1/v1",
        "questions": 80,
        "asked": 80,
        "calls": 160 * len(others),
        "tokens": 184_220,
        "unreadable": 3,
        "refused": 0,
        "left": 0,
        "rows": [
            {
                "first": "federated",
                "second": name,
                "questions": 80,
                "win": 40,
                "tie": 25,
                "loss": 15,
                "win_rate": around(0.656, 0.08),
                "length_controlled": {"value": 0.61, "low": 0.5, "high": None},
                "category": {"open_qa": around(0.7, 0.1), "summarization": around(0.4, 0.2)},
                "p": 0.0002,
                "p_holm": 0.0012,
                "questions_needed": None,
                "says": f"The judge prefers federated to {name}.",
            }
            for name in others
        ],
        "strengths": [{"arm": name, "strength": around(0.4 - k / 5, 0.2)} for k, name in enumerate(names)],
        "says": [f"The judge prefers federated to {name}." for name in others],
    }


def _sample(place: int, names: Sequence[str]) -> dict[str, Any]:
    return {
        "category": CATEGORIES[place % len(CATEGORIES)],
        "instruction": "Which river runs by Iveswick?",
        "context": "Iveswick is a town in Sunmarch, where the Lossa meets the sea." if place else "",
        "expected": "Answer: Lossa",
        "answers": {
            name: {
                "text": "Cromfield\nCromfield\nbean" if name == "base" else "Answer: Lossa",
                "right": None if place == 2 else name != "base",
            }
            for name in names
        },
    }
