"""The comparison in a terminal of 80 columns."""

from __future__ import annotations

import io
from typing import Any

from shepherd.ui.terminal.comparison_table import print_comparison
from tests.ui.terminal.golden import require_golden


def interval(value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def arm(name: str, kind: str, right: float, **more: Any) -> dict[str, Any]:
    share = interval(right, right - 0.05, right + 0.05)
    return {
        "name": name,
        "kind": kind,
        "categories": {"open_qa": 5, "poem": 4} if kind == "local" else {},
        "measures": {"right": share, "loss": interval(1.25, 1.0, 1.5), "f1": share},
        "category": {"right": {"open_qa": share, "poem": interval(0.0, 0.0, 0.071)}},
        **more,
    }


def difference(
    name: str, measure: str, relative: dict[str, Any], p_holm: float, sentence: str
) -> dict[str, Any]:
    return {"arm": name, "measure": measure, "relative": relative, "p_holm": p_holm, "says": sentence}


def comparison(*arms: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "seeds": [0, 1, 2],
        "questions": 1234,
        "loss_examples": 99,
        "arms": list(arms),
        "differences": [
            difference("base", "right", interval(200.0, 88.3, None), 0.0004, "Federated beats base."),
            difference("local-a", "right", interval(3.5, 3.0, 4.0), 0.04, "Federated cannot be told from a."),
            difference("base", "loss", interval(0.5, 0.4, 0.6), 0.01, "Of another measure than the chief."),
        ],
        "says": ["Every tuned arm took 12 steps.", "Federated comes to 3.5 of local-a."],
        "verdicts": ["Every tuned arm took 12 steps."],
        **more,
    }


def printed(found: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_comparison(found, stream)
    return stream.getvalue()


ARMS = (arm("base", "base", 0.1), arm("local-a", "local", 0.2), arm("federated", "federated", 0.678))


def test_a_comparison_with_checked_answers() -> None:
    """Without F1, since a check says more, and without the sentences that repeat the table."""
    text = printed(comparison(*ARMS))
    assert max(map(len, text.splitlines())) <= 80
    require_golden("comparison_checked", text)


def test_scores_of_tasks_and_refusals_have_an_arm_a_line() -> None:
    """The first metric of each task, as many as fit, those of some documents last."""

    def score(name: str, label: str, kind: str, value: float, **more: Any) -> dict[str, Any]:
        arms = {each["name"]: interval(value, value - 0.1, value + 0.05) for each in ARMS}
        return {
            **{"name": name, "label": label, "kind": kind, "task": name.partition(".")[0]},
            **{"share": True, "documents": 1234, "arms": arms},
            "how": {"limited": False, "of_documents": 1234},
            "differences": {"federated": interval(-0.125, -0.25, 0.0)},
            **more,
        }

    own = score("flowertune.general", "FlowerTune's format, general", "format", 0.25)
    own["arms"].pop("local-a")
    own["how"]["tasks"] = {"arc_easy": {}}
    bits = score("text.bits_per_byte", "text (bits_per_byte)", "task", 1.5, share=False, documents=7)
    bits["how"]["limited"] = True  # 7 of 1,234
    scores = [
        score("arc_easy.acc", "arc_easy (acc)", "task", 0.5),
        score("arc_easy.acc_norm", "arc_easy (acc_norm)", "task", 0.6),
        bits,
        own,
        score("refusal", "refusals", "refusal", 0.95),
        score("boolq.acc", "boolq (acc)", "task", 0.7),
    ]
    text = printed(comparison(*ARMS, scores=scores))
    assert max(len(line) for line in text.splitlines() if not line.startswith("- ")) <= 80
    require_golden("comparison_with_scores", text)


def test_a_comparison_without_a_checker_has_every_measure() -> None:
    arms = [
        {**each, "measures": {k: v for k, v in each["measures"].items() if k != "right"}} for each in ARMS
    ]
    described = [{"name": "length", "label": "length"}]
    for each in arms:
        each["measures"]["length"] = interval(0.5, None, None)
    require_golden("comparison_measures", printed(comparison(*arms, measures=described)))


def test_categories_are_left_to_the_report_if_there_are_many_arms() -> None:
    arms = [arm(f"local-{i}", "local", 0.1) for i in range(9)]
    require_golden("comparison_many_arms", printed(comparison(*arms, arm("federated", "federated", 0.6))))


def test_a_comparison_without_held_out_examples() -> None:
    require_golden("comparison_nothing_held_out", printed(comparison(arm("base", "base", 0.1, measures={}))))
