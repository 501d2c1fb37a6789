"""The metrics that a run file lists: by their names, in their order, and from outside by consent alone."""

from __future__ import annotations

import pytest

from shepherd.config import PartTable
from shepherd.data.examples import Example, Turn
from shepherd.errors import PluginError, SettingsError
from shepherd.evaluate.metric import metrics, scores
from shepherd.overrides import parse
from shepherd.settings import EvaluationTable


def tables(*names: str) -> list[PartTable]:
    return [PartTable(name=name) for name in names]


def test_the_usual_ones_are_the_default_and_an_answer_is_measured_by_each() -> None:
    found = metrics(EvaluationTable().metrics)
    turns = (Turn(role="user", text="What?"), Turn(role="assistant", text="the red fox"))
    assert scores(found, "red fox", Example(turns=turns)) == {
        "right": None,
        "exact": 1.0,
        "f1": 1.0,
        "rouge_l": pytest.approx(0.8),
    }


def test_a_run_file_lists_names_or_tables() -> None:
    settings = parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": "world"},
            "evaluation": {"metrics": ["rouge-l", {"name": "their.bleu", "n": 4}]},
        }
    )
    assert settings.evaluation.metrics == (PartTable(name="rouge_l"), PartTable(name="their.bleu", n=4))
    with pytest.raises(PluginError, match=r"metric 'their\.bleu' .* --allow-plugin their\.bleu"):
        metrics(settings.evaluation.metrics)


def test_a_name_is_there_once() -> None:
    with pytest.raises(SettingsError, match="has 'f1' twice"):
        metrics(tables("f1", "exact", "f1"))
    with pytest.raises(SettingsError, match=r"no metric called 'exactly'; .*did you mean 'exact'"):
        metrics(tables("exactly"))
    with pytest.raises(SettingsError, match="the metric 'f1': unknown key beta"):
        metrics([PartTable(name="f1", beta=2)])
