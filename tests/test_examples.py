"""Every run file that is shipped loads, and builds its algorithm and transforms."""

from pathlib import Path

import pytest

from shepherd import plugins
from shepherd.overrides import dump, parse, read

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_loads(path: Path) -> None:
    settings = read(path)
    plugins.algorithm(settings.algorithm)
    plugins.transform(settings.transforms)
    assert settings.output == f"runs/{path.stem}"


def test_the_papers_settings_are_the_papers() -> None:
    """The figures of arXiv 2305.05644, and the adapter's size that it prints: 17.9 million."""
    by_name = {path.stem: read(path) for path in EXAMPLES}
    hundred, ten = by_name["fedit"], by_name["fedit-ten"]
    assert (hundred.split.own["clients"], hundred.federation.rounds) == (100, 20)
    assert plugins.selection(hundred).share == 0.05
    assert (hundred.tuning.batch_size, hundred.tuning.learning_rate, hundred.tuning.epochs) == (32, 1.5e-4, 1)
    widths = {"q_proj": 2 * 4096, "k_proj": 2 * 4096, "v_proj": 2 * 4096}
    widths |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), 4096 + 11008)
    rank, targets = hundred.adapter.rank, hundred.adapter.targets
    assert 32 * rank * sum(widths[name] for name in targets) == 17_891_328
    same = ("seed", "model", "adapter", "data", "tuning", "algorithm")
    assert all(getattr(ten, name) == getattr(hundred, name) for name in same)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_resolved_file_reads_back(path: Path, tmp_path: Path) -> None:
    settings = read(path)
    (tmp_path / "run.toml").write_text(dump(settings))
    assert read(tmp_path / "run.toml") == settings == parse(settings.model_dump())
