"""What becomes of older scores when some are measured again."""

from pathlib import Path
from typing import Any

from shepherd.run import score_file

WAY = {"limited": False, "of_documents": 10, "tasks": {}, "chat": False, "lm_eval": "0.4"}


def row(values: dict[str, float], **more: Any) -> dict[str, Any]:
    others = [arm for arm in values if arm != "base"]
    return {
        "name": "quiz.acc",
        "kind": "task",
        "task": "quiz",
        "documents": 10,
        "how": WAY,
        "arms": {arm: {"value": value} for arm, value in values.items()},
        "differences": {arm: {"value": values[arm] - values["base"]} for arm in others},
        "says": {arm: f"{arm} is better" for arm in others},
        "adapters": {arm: [f"digest of {arm}"] for arm in values},
        "by_adapter": {arm: [{"value": values[arm]}] for arm in others},
        **more,
    }


def test_arms_that_are_not_measured_again_keep_their_scores(tmp_path: Path) -> None:
    score_file.add(tmp_path, [row({"base": 0.5, "local": 0.6, "federated": 0.7})])
    score_file.add(tmp_path, [row({"base": 0.5, "federated": 0.8})])
    assert score_file.read(tmp_path) == [row({"base": 0.5, "local": 0.6, "federated": 0.8})]
    score_file.add(tmp_path, [row({"base": 0.5, "local": 0.1})])
    assert score_file.read(tmp_path) == [row({"base": 0.5, "local": 0.1, "federated": 0.8})]


def test_scores_of_another_measurement_are_not_joined(tmp_path: Path) -> None:
    score_file.add(tmp_path, [row({"base": 0.5, "local": 0.6})])
    newer = row({"base": 0.4, "federated": 0.8}, how={**WAY, "tasks": {"quiz": {"version": "3"}}})
    score_file.add(tmp_path, [newer])
    assert [each["arms"].keys() for each in score_file.read(tmp_path) if each["how"] == newer["how"]] == [
        {"base", "federated"}
    ]


def test_scores_of_an_adapter_that_was_replaced_are_dropped(tmp_path: Path) -> None:
    score_file.add(tmp_path, [row({"base": 0.5, "local": 0.6, "federated": 0.7})])
    other = row({"base": 0.5, "federated": 0.8})
    other["adapters"] = {"base": ["digest of base"], "federated": ["digest of another"]}
    score_file.add(tmp_path, [other])
    assert score_file.read(tmp_path) == [other]
