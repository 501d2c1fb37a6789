"""One arm against the others: rows as they stand in the file, and what they come to."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from shepherd.errors import StatisticsError
from shepherd.evaluate.against import against, summaries, summary
from shepherd.evaluate.draws import draws
from shepherd.evaluate.metrics.right import MEASURE as RIGHT
from shepherd.evaluate.sentences import LOSS
from shepherd.evaluate.statistics import difference, holm

NAMES = [f"c{place % 8}" for place in range(400)]


def arms(seeds: int = 1) -> dict[str, NDArray[np.bool_]]:
    """Right answers: federated at 0.67, with what it is to be told from and what not."""
    rng = np.random.default_rng(0)
    hard = rng.random((seeds, 400))
    return {
        "base": hard[0] < 0.01,
        "local-ann": hard < 0.4,
        "centralised": hard + rng.choice([-0.1, 0.1], size=(seeds, 400)) < 0.67,
        "federated": hard < 0.67,
        "larger": hard < 0.8,
    }


def test_rows_are_the_differences_with_holm_over_them() -> None:
    drawn, given = draws(NAMES), arms()
    rows = against("federated", given, drawn, RIGHT)
    assert [row.arm for row in rows] == ["base", "local-ann", "centralised", "larger"]
    alone = {arm: difference(given["federated"], given[arm], drawn) for arm in given if arm != "federated"}
    corrected = holm({arm: one.p for arm, one in alone.items()})
    for row in rows:
        assert row.compared == alone[row.arm]
        assert row.p_holm == corrected[row.arm]
    assert [row.outcome for row in rows] == [1, 1, 0, -1]
    first = json.loads(json.dumps(rows[0].row()))
    assert list(first) == [
        "arm",
        "measure",
        "difference",
        "relative",
        "p",
        "p_holm",
        "questions_needed",
        "says",
    ]
    assert (first["arm"], first["measure"], first["says"]) == ("base", "right", rows[0].says)
    assert first["difference"]["value"] == pytest.approx(given["federated"].mean() - given["base"].mean())
    assert "Holm p" in rows[0].says


def test_the_order_of_arms_changes_nothing() -> None:
    drawn, given = draws(NAMES, seeds=2), arms(2)
    rows = {row.arm: row for row in against("federated", given, drawn, RIGHT)}
    turned = against("federated", dict(reversed(given.items())), drawn, RIGHT)
    assert {row.arm: row for row in turned} == rows


def test_one_other_arm_needs_no_correction() -> None:
    given = {arm: values for arm, values in arms().items() if arm in ("base", "federated")}
    (row,) = against("federated", given, draws(NAMES), RIGHT)
    assert row.compared.p == row.p_holm
    assert "Holm" not in row.says


def test_a_lower_loss_is_better() -> None:
    losses = {arm: 2.0 - values for arm, values in arms().items()}
    rows = against("federated", losses, draws(NAMES), LOSS, weights=np.arange(1, 401))
    assert [row.outcome for row in rows] == [1, 1, 0, -1]
    assert rows[0].says.startswith("federated has a lower loss on held-out responses than base: 1.")
    assert summary(rows)[1].endswith(" in held-out loss, where lower is better.")


def test_summaries_have_the_chief_measure_first_and_their_verdict_first() -> None:
    by_loss = against("federated", {arm: 2.0 - x for arm, x in arms().items()}, draws(NAMES), LOSS)
    by_right = against("federated", arms(), draws(NAMES), RIGHT)
    options = {"chief": RIGHT.name, "references": ["centralised"]}
    found = summaries([*by_loss, *by_right], **options, amounts="they saw unequal amounts")
    assert found == [
        summary(by_right, amounts="they saw unequal amounts"),
        summary(by_loss),
    ]
    assert found[0][0].startswith("By right answers")
    assert "unequal" in found[0][0]
    assert summaries([], **options) == []


def test_what_it_comes_to() -> None:
    one = summary(against("federated", arms(), draws(NAMES), RIGHT))
    assert one[0] == (
        "By right answers, in this one training, federated beats base and local-ann, is beaten by larger, "
        "and cannot be told from centralised."
    )
    assert one[1].startswith("federated comes to 0.98")
    assert " of centralised (95%: 0.9" in one[1]
    assert one[2] == (
        "The intervals cover the choice of these 400 questions, not the luck of training, "
        "which one seed cannot show."
    )
    three = summary(against("federated", arms(3), draws(NAMES, seeds=3), RIGHT))
    assert three[2] == (
        "The intervals cover the choice of these 400 questions over 3 seeds, and the luck of training "
        "as these seeds show it."
    )
    assert summary([]) == []


def test_a_headline_says_what_it_rests_on() -> None:
    few = {arm: values[:, :12] if values.ndim > 1 else values[:12] for arm, values in arms(2).items()}
    rows = against("federated", few, draws(NAMES[:12], seeds=2), RIGHT)
    assert summary(rows)[0].startswith("By right answers, on only 12 questions, federated ")
    one = {arm: values[-1:] for arm, values in few.items() if arm != "base"} | {"base": few["base"]}
    said = summary(against("federated", one, draws(NAMES[:12]), RIGHT), amounts="they saw unequal amounts: x")
    assert said[0].startswith("By right answers, in this one training and on only 12 questions, federated ")
    assert said[0].endswith("; they saw unequal amounts: x.")
    many = summary(against("federated", arms(3), draws(NAMES, seeds=3), RIGHT))
    assert many[0].startswith("By right answers, federated ")


def test_a_reference_near_nothing_has_no_relative_score() -> None:
    given = {**arms(), "base": np.arange(400) == 0}
    rows = against("federated", given, draws(NAMES), RIGHT)
    assert (
        summary(rows, references=["base"])[1]
        == "base scores too close to 0 for a relative score of federated."
    )
    assert len(summary(rows, references=["nobody"])) == 2


def test_an_arm_without_scores_is_named() -> None:
    with pytest.raises(StatisticsError, match="no scores of federated"):
        against("federated", {"base": np.ones(400)}, draws(NAMES), RIGHT)
