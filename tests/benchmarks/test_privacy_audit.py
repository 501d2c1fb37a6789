"""The benchmark of the audit: its arms, its broken mechanisms, and its table."""

import json
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import broken_mechanisms, privacy_audit
from shepherd.audit import auditing
from shepherd.core import Adapter, Context, Mechanism, Scoped, Seeded, Spending, Transform, Update

SHAPE = {"w": (40, 5)}


def noisy():
    """A mechanism that halves what it gets and adds noise."""
    return Transform(
        on_client=lambda update, public, draws: replace(update, delta=update.delta.plus(update.delta, -0.5)),
        on_server=lambda update, state, draws: (
            replace(
                update,
                delta=Adapter(
                    {
                        name: (mean + draws.generator("noise").standard_normal(mean.shape)).astype(np.float32)
                        for name, mean in update.delta.items()
                    }
                ),
            ),
            state,
        ),
        mechanism=Mechanism(spent=lambda how, count: Spending(noise=1.0, sampling=how, steps=count)),
    )


def aggregate(number=3):
    delta = Adapter({name: np.ones(shape, np.float32) for name, shape in SHAPE.items()})
    return Update(round=number, delta=delta, weight=1.0, clients=("a",))


def test_without_noise_the_aggregate_is_as_it_was():
    done, _ = broken_mechanisms.without_noise(noisy()).on_server(aggregate(), {}, Seeded(4))
    assert (done.delta["w"] == 1.0).all()


def test_without_a_clip_a_client_sends_all_of_its_change():
    broken = broken_mechanisms.without_clip(noisy())
    update = replace(aggregate(), metrics={"loss": 1.0}, weight=7.0)
    sent = broken.on_client(update, {}, Seeded(0))
    assert (sent.delta["w"] == 1.0).all()
    assert (sent.weight, sent.metrics) == (1.0, {})
    assert broken.mechanism.spent is not None
    with pytest.raises(ValueError, match="without a claim"):
        broken_mechanisms.without_clip(Transform())


def test_public_noise_is_taken_out_again():
    broken, total = broken_mechanisms.from_public_seed(noisy()), Adapter({"w": np.zeros(SHAPE["w"])})
    for number in range(3):
        done, _ = broken.on_server(aggregate(number), {}, Scoped(Seeded(9), (number, "noise")))
        total = total.plus(done.delta)
    assert total["w"].std() > 1.0
    bared = broken_mechanisms.without_public_noise(noisy(), total, range(3), Context())
    np.testing.assert_allclose(bared["w"], 3.0, atol=1e-5)


def test_an_arm_that_must_be_caught_and_is_not_fails():
    rows = [
        {
            "arm": "no noise", "claim": 1.0, "one_run": 0.5, "gaussian": 1.2, "ceiling": 3.5,
            "exposure": {"rare tokens": {"value": 2.0, "low": 1.0, "high": 3.0}},
            "most_exposure": {"rare tokens": 4.0},
            "canary_auc": {"rare tokens": {"value": 0.7, "low": 0.6, "high": 0.8}},
            "member_auc": None, "heldout": None, "contradicted": False, "must_be_caught": True,
        }
    ]  # fmt: skip
    (table,) = privacy_audit.tables({"rows": rows, "delta": 1e-3})
    assert table.rows[0][-1] == "no (must be)"
    assert len(table.rows[0]) == len(table.columns)
    assert [arm.name for arm in privacy_audit.ARMS if arm.must_be_caught] == [
        "no noise",
        "no clip",
        "public seed",
    ]


@pytest.mark.slow
def test_an_arm_is_audited_and_read_again(tmp_path):
    options = Namespace(on="world", seed=0, threads=1, quick=True, canaries=20, norm=5.0, more=[])
    (plain,) = [arm for arm in privacy_audit.ARMS if arm.name == "plain"]
    first = privacy_audit._row(plain, options, tmp_path / "plain")
    assert first["claim"] is None
    assert first["ceiling"] >= first["one_run"] >= 0.0
    again = privacy_audit._row(plain, options, tmp_path / "plain")
    assert again == first
    assert json.loads((tmp_path / "plain" / auditing.JSON).read_text())["claim"] is None
