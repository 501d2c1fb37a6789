"""docs/run-folder.md names every file of a real run and every key of its JSON, and none besides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shepherd.compare.arms import CompareSpec
from shepherd.compare.comparison import compare
from shepherd.overrides import parse
from shepherd.run.opening import open_run
from shepherd.ui.report import write
from tests.docs.schema import keys

PAGE = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text(encoding="utf8")
WHOLE = {
    "checkpoints/round-NNNNN/state.json": ("tree", "notes.row", "notes.positions", "notes.memories"),
    "compare/comparison.json": ("scores",),
    "compare/seed-N/ARM/tuned.json": ("asked", "beside"),
    "compare/seed-N/scores/ARM.json": ("metrics",),
    "data/heldout.jsonl": ("check",),
    "report.json": ("settings", "versions"),
    "versions.json": ("",),
}
"""Keys whose own keys are not for this page."""
SETTINGS: Mapping[str, Any] = {
    "model": {"base": "tiny", "dtype": "float32"},
    "adapter": {"rank": 2},
    "data": {"source": "world", "template": "alpaca-short", "limit": 4, "holdout": 0.5},
    "split": {"clients": 2},
    "federation": {"rounds": 1},
    "tuning": {"max_steps": 1, "batch_size": 2},
    "machine": {"device": "cpu", "threads": 1, "workers": 1},
    "evaluation": {"examples": 8, "answers": 8, "max_new_tokens": 4, "contribution": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with held-out answers, a comparison with a variant, and a report."""
    path = tmp_path_factory.mktemp("documented") / "run"
    prompts = path.parent / "prompts.txt"
    prompts.write_text("Say what you must not.\n")
    evaluation = {**SETTINGS["evaluation"], "harmful": str(prompts)}
    settings = parse({**SETTINGS, "evaluation": evaluation, "output": str(path)})
    with open_run(settings) as run:
        list(run.rounds())
        run.finish()
    compare(
        settings, CompareSpec(locals=("client-0",), variants=("prox: algorithm.name=fedprox",), match="both")
    )
    write(path)
    return path


def sections() -> dict[str, list[str]]:
    """What the first column of each table names, by the section's title."""
    found = {}
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        found[title.strip("`")] = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    return found


def fits(pattern: str, path: str) -> bool:
    """Whether a documented name means this path: words in capitals stand for any name.

    >>> fits("losses.CLIENT", "losses.client-0"), fits("round-NNNNN/a.json", "round-00012/a.json")
    (True, True)
    """
    words = re.split(r"(N+|[A-Z_]{3,})(?![A-Za-z0-9])", pattern) if pattern != "SHA256SUMS" else [pattern]
    parts = (r"[^/]+" if i % 2 else re.escape(word) for i, word in enumerate(words))
    return re.fullmatch("".join(parts), path) is not None


def files(folder: Path) -> Iterator[str]:
    """Each file's path, but for those of the run folders of a comparison's variants."""
    inner = {path.parent for path in folder.glob("compare/seed-*/*/run.toml")}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not inner & set(path.parents):
            yield path.relative_to(folder).as_posix()


def test_every_file_is_documented(folder: Path) -> None:
    documented = sections()["Files"]
    found = list(files(folder))
    assert [path for path in found if not any(fits(each, path) for each in documented)] == []
    assert [each for each in documented if not any(fits(each, path) for path in found)] == []


def test_the_run_folders_of_a_comparison_have_the_same_files(folder: Path) -> None:
    documented = sections()["Files"]
    variant = folder / "compare" / "seed-0" / "prox"
    assert (variant / "run.toml").is_file()
    assert [path for path in files(variant) if not any(fits(each, path) for each in documented)] == []


DESCRIBED = [title for title in sections() if re.search(r"\.jsonl?$", title)]


@pytest.mark.parametrize("title", DESCRIBED)
def test_every_key_is_documented(folder: Path, title: str) -> None:
    documented = sections()[title]
    found = {
        key
        for path in files(folder)
        if fits(title, path)
        for value in values(folder / path)
        for key in keys(value, (), WHOLE.get(title, ()))
    }
    assert found
    missing = [key for key in found if not any(fits(each, key) for each in documented)]
    empty = {key for key in missing if any(each.startswith((f"{key}.", f"{key}[]")) for each in documented)}
    assert sorted(set(missing) - empty) == []  # an empty table shows none of its keys
    stale = [each for each in documented if not any(fits(each, key) for key in found)]
    assert [each for each in stale if not each.startswith(tuple(f"{key}." for key in empty))] == []


def test_every_json_file_is_described(folder: Path) -> None:
    """But those whose form is another project's."""
    others = ("adapter/", "compare/seed-0/local-client-0/adapter_config.json", "versions.json")
    plain = [path for path in files(folder) if path.endswith((".json", ".jsonl"))]
    left = [path for path in plain if not any(fits(title, path) for title in DESCRIBED)]
    assert [path for path in left if not path.startswith(others) and "adapter_config" not in path] == []


def values(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
