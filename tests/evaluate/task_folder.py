"""Small task files of lm-eval with local data, in the words of the tiny bases' tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml


def words(rng: np.random.Generator, low: int, high: int) -> str:
    return " ".join(f"w{n}" for n in rng.integers(4, 61, rng.integers(low, high)))


def questions(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with three choices of unequal length."""
    rng = np.random.default_rng(seed)
    return [
        {
            "question": words(rng, 2, 9),
            "choices": [words(rng, 1, 5) for _ in range(3)],
            "answer": int(rng.integers(3)),
        }
        for _ in range(count)
    ]


def task(folder: Path, name: str, rows: list[dict[str, Any]], **keys: Any) -> Path:
    """Write a multiple-choice task, as those of ARC and OpenBookQA are, with its data beside it."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "choices",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        **keys,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return file
