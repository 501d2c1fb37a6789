"""The judge's tables: the paper's printed pairs, sums by hand, win rates and what is said of them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from shepherd.errors import StatisticsError
from shepherd.evaluate.judged import fedit_table, preference_table
from shepherd.evaluate.verdicts import Preferred, Scored

# arXiv 2305.05644, as printed: the baseline's sum, Shepherd-7B's, and their ratio
PRINTED = {
    "Centralized": (142.2, 130.7, "0.919"),
    "LLaMA": (114.0, 131.7, "1.155"),
    "Local-1": (120.0, 131.0, "1.092"),
    "Local-2": (116.1, 129.0, "1.111"),
    "Local-3": (121.3, 131.8, "1.087"),
}


def scored(question: object, first: str, second: str, scores: tuple[float, float], repeat: int = 0) -> Scored:
    return Scored(
        question=str(question),
        category="all",
        first=first,
        second=second,
        repeat=repeat,
        score_first=scores[0],
        score_second=scores[1],
    )


def papers() -> list[Scored]:
    """Twenty questions rated three times, spread about means that make the printed sums."""
    rng = np.random.default_rng(0)
    rows = []
    for name, (baseline, shepherd, _) in PRINTED.items():
        spread = rng.uniform(-1, 1, size=(20, 3, 2))
        spread -= spread.mean(axis=(0, 1))
        means = np.array([baseline, shepherd]) / 20
        for place in np.ndindex(20, 3):
            first, second = means + spread[place]
            rows.append(scored(place[0], name, "Shepherd-7B", (first, second), place[1]))
    return rows


def test_the_papers_relative_scores_come_out_as_printed() -> None:
    table = fedit_table(papers())
    assert [row["first"] for row in table] == list(PRINTED)
    for row in table:
        baseline, shepherd, ratio = PRINTED[row["first"]]
        assert f"{row['relative']['value']:.3f}" == ratio
        assert ratio in row["says"]
        assert (row["second"], row["questions"], row["out_of"]) == ("Shepherd-7B", 20, 200)
        assert row["sum_first"]["value"] == pytest.approx(baseline)
        assert row["sum_second"]["value"] == pytest.approx(shepherd)
        for name in ("sum_first", "sum_second", "relative"):
            assert row[name]["low"] < row[name]["value"] < row[name]["high"]
    assert json.loads(json.dumps(table)) == table


def test_repeats_are_averaged_before_they_are_summed() -> None:
    rows = [
        scored("q1", "a", "b", (4, 8), 0),
        scored("q1", "a", "b", (6, 8), 1),
        scored("q2", "a", "b", (2, 5)),  # its other repeats could not be read
    ]
    (row,) = fedit_table(rows)
    assert (row["sum_first"]["value"], row["sum_second"]["value"], row["out_of"]) == (7, 13, 20)
    assert row["relative"]["value"] == pytest.approx(13 / 7)


def test_repeats_are_no_new_questions() -> None:
    once = [scored(q, "a", "b", (5 + q % 3, 6 - q % 4)) for q in range(30)]
    again = [scored(r.question, "a", "b", (r.score_first, r.score_second), t) for r in once for t in range(3)]
    assert fedit_table(once) == fedit_table(again)


def test_the_arm_against_which_all_are_held_stands_second() -> None:
    rows = [scored(q, "federated", "base", (8, 4)) for q in range(20)]
    rows += [scored(q, "local", "federated", (5, 6 + q % 2)) for q in range(20)]
    table = fedit_table(rows, "federated")
    assert [(row["first"], row["second"]) for row in table] == [("base", "federated"), ("local", "federated")]
    assert table[0]["relative"]["value"] == 2
    assert table[0]["says"] == (
        "The judge scores federated above base on these 20 questions, which are few: 160.0 "
        "against 80.0 of 200, relative score 2.000 "
        "(95%: 1.476 to 2.201; Holm p = 0.003)."
    )
    assert all(row["p_holm"] >= row["p"] for row in table)


def test_a_constant_lowest_score_is_no_share_of_all() -> None:
    (row,) = fedit_table([scored(q, "a", "b", (1, 2)) for q in range(5)])
    missed = 1 - 0.025 ** (1 / 5)  # of such questions, which may get 10 at most
    assert row["sum_first"] == {"value": 5, "low": 5, "high": pytest.approx(5 + 5 * missed * 9)}
    assert row["says"].startswith(
        "By the judge's scores, these 5 questions cannot tell b from a: 10.0 against 5.0"
    )


@pytest.mark.parametrize("bad", [0.5, 11, math.nan])
def test_scores_out_of_range_are_one_sentence(bad: float) -> None:
    with pytest.raises(StatisticsError, match=r"'q3'.*from 1 to 10"):
        fedit_table([scored("q3", "a", "b", (5, bad))])
    with pytest.raises(StatisticsError, match="no scores"):
        fedit_table([])


def preferred(question: object, first: str, second: str, result: float, category: str = "qa") -> Preferred:
    return Preferred(
        question=f"{question:>4}",
        category=category,
        first=first,
        second=second,
        result=result,
        length_first=100,
        length_second=100,
    )


def pair(first: str, second: str, wins: int, ties: int, losses: int) -> list[Preferred]:
    results = [1.0] * wins + [0.5] * ties + [0.0] * losses
    return [preferred(q, first, second, r, "ab"[q % 2]) for q, r in enumerate(results)]


def test_win_rates_by_hand() -> None:
    table = preference_table(pair("federated", "base", 60, 10, 10))
    (row,) = table["rows"]
    assert (row["win"], row["tie"], row["loss"], row["questions"]) == (60, 10, 10, 80)
    assert row["win_rate"]["value"] == 65 / 80
    half = 1.96 * np.std([1] * 60 + [0.5] * 10 + [0] * 10, ddof=1) / math.sqrt(80)
    assert row["win_rate"]["low"] == pytest.approx(65 / 80 - half, abs=0.01)
    assert row["win_rate"]["high"] == pytest.approx(65 / 80 + half, abs=0.01)
    assert row["length_controlled"]["value"] == pytest.approx(65.5 / 81)
    assert {name: one["value"] for name, one in row["category"].items()} == {"a": 65 / 80, "b": 65 / 80}
    assert row["p"] == row["p_holm"] < 0.001
    assert table["says"] == [row["says"]]
    assert row["says"].startswith(
        "The judge prefers federated to base on these 80 questions: "
        "federated wins 60, ties 10 and loses 10, win rate 81.2% (95%: 7"
    )
    assert row["says"].endswith("; p < 0.001).")
    strengths = [(one["arm"], one["strength"]["value"]) for one in table["strengths"]]
    assert [arm for arm, _ in strengths] == ["federated", "base"]
    assert strengths[0][1] - strengths[1][1] == pytest.approx(math.log(65.5 / 15.5))
    assert json.loads(json.dumps(table)) == table


def test_what_is_not_decided_says_how_many_would() -> None:
    (row,) = preference_table(pair("federated", "centralised", 43, 0, 37))["rows"]
    assert row["says"].startswith(
        "By the judge's preference, these 80 questions cannot tell federated from centralised: "
        "win rate 53.8% (95%: 4"
    )
    assert row["says"].endswith("; about 1,400 questions would settle a difference of this size.")
    assert row["questions_needed"] == pytest.approx(7.849 * 0.2486 / 0.0375**2, rel=0.05)


def test_the_loser_is_named_as_the_loser() -> None:
    (row,) = preference_table(pair("base", "federated", 2, 0, 30))["rows"]
    assert row["says"].startswith(
        "The judge prefers federated to base on these 32 questions: "
        "base wins 2, ties 0 and loses 30, win rate 6.2%"
    )


def test_pairs_are_joined_and_turned_towards_one_arm() -> None:
    rows = pair("base", "federated", 5, 5, 30)
    mixed = rows[:20] + [turned(row) for row in rows[20:]] + pair("federated", "local", 20, 10, 10)
    table = preference_table(mixed, "federated")
    assert [(row["first"], row["second"]) for row in table["rows"]] == [
        ("federated", "base"),
        ("federated", "local"),
    ]
    first = table["rows"][0]
    assert (first["win"], first["tie"], first["loss"], first["questions"]) == (30, 5, 5, 40)
    assert first["p_holm"] == 2 * first["p"]
    assert "Holm p" in first["says"]
    unturned = preference_table(mixed)["rows"]
    assert [row["first"] for row in unturned] == ["base", "federated"]
    assert unturned[0]["win_rate"]["value"] == 1 - first["win_rate"]["value"]


def turned(row: Preferred) -> Preferred:
    return preferred(row.question, row.second, row.first, 1 - row.result, row.category)


def test_always_won_keeps_the_exact_bound() -> None:
    (row,) = preference_table(pair("a", "b", 10, 0, 0))["rows"]
    assert row["win_rate"] == {"value": 1.0, "low": pytest.approx(0.025 ** (1 / 10)), "high": 1.0}
    assert row["p"] == 2 / 2**10


def test_arms_that_nothing_links_have_rows_but_no_strengths() -> None:
    table: dict[str, Any] = preference_table(pair("a", "b", 3, 0, 2) + pair("c", "d", 3, 0, 2))
    assert (len(table["rows"]), table["strengths"]) == (2, [])


def test_no_verdict_is_refused() -> None:
    with pytest.raises(StatisticsError, match="no verdicts"):
        preference_table([])
