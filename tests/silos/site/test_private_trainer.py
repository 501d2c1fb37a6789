"""A site under noise: it spends before it trains, and halts when its own budget is spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from shepherd.core import Failure, Update
from shepherd.core.spending import Poisson
from shepherd.errors import FolderError, SettingsError
from shepherd.privacy import accountant, example_level
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Ready, Scores, Trained
from shepherd.silos.site import audit, privacy_ledger, redaction, released
from shepherd.silos.site.trainer import Trainer
from shepherd.training import tune
from tests.silos.site.trained import RUN, TABLES, ask, broadcast, reason, request, tables

PRIVATE = tables(
    privacy={"examples": {"norm": 0.5, "noise": 2.0}},
    federation={"rounds": 4, "weights": "equal"},
    tuning={"batch_size": 4, "learning_rate": 0.01, "max_steps": 3},
)
LIMITED = {"require_privacy": ("example",), "max_epsilon": 4.0}


@pytest.fixture
def asked(llama_folder) -> Callable[..., wire.Request]:
    return lambda *words, **more: request(llama_folder, *words, **{"settings": PRIVATE, **more})


def entries(trainer: Trainer) -> list[privacy_ledger.Entry]:
    return privacy_ledger.read(privacy_ledger.ledger_of(trainer.home, trainer.settings.data))


def limit_for(visits: int, examples: int) -> float:
    """An epsilon that allows this many visits of `PRIVATE`, and no more."""
    account = example_level.ExampleAccount(noise=2.0, batch_size=4, delta=1e-5)
    return (account.epsilon(examples, 3 * visits) + account.epsilon(examples, 3 * visits + 3)) / 2


def held(trainer: Trainer, asked: Any) -> int:
    reply = ask(trainer, asked())
    assert isinstance(reply, Ready), reply
    return reply.examples


def test_a_visit_is_entered_before_it_begins_and_releases_no_number(born, asked, shaped, monkeypatch) -> None:
    trainer = born()
    before: list[int] = []
    honest = tune.tune

    def watched(base, job, watch):
        before.append(len(entries(trainer)))
        assert job.privacy is not None
        assert (job.privacy.norm, job.privacy.noise) == (0.5, 2.0)
        return honest(base, job, watch)

    monkeypatch.setattr(tune, "tune", watched)
    first = asked(broadcast(shaped, 0))
    answer = ask(trainer, first)
    assert isinstance(answer, Update)
    assert (dict(answer.metrics), answer.weight) == ({}, 1.0)
    assert answer.delta.norm() > 0
    size = held(trainer, asked)
    (entry,) = entries(trainer)
    assert (entry.run, entry.round, entry.id, entry.unit) == (RUN, 0, first.id, "example")
    assert (entry.spent.noise, entry.spent.steps) == (2.0, 3)
    assert entry.spent.sampling == Poisson(chance=4 / size)
    ask(trainer, asked(broadcast(shaped, 1)))
    assert before == [1, 2]
    # the same answer again is the same noise
    assert ask(trainer, first) == answer
    assert len(entries(trainer)) == 2
    assert ask(trainer, asked(broadcast(shaped, 2))).metrics == {}


def test_what_was_drawn_is_in_no_file_and_not_by_the_sites_seed(born, asked, shaped, monkeypatch) -> None:
    """The order seed of these tests is known; batches and noise must not follow from it."""
    drawn: list[list[list[int]]] = []
    honest = tune.tune

    def watched(base, job, watch):
        drawn.append([batch.tolist() for batch in job.visits[0].batches])
        return honest(base, job, watch)

    monkeypatch.setattr(tune, "tune", watched)
    trainer = born()
    sent = broadcast(shaped)
    answers = [ask(trainer, asked(sent, run=f"{number:016x}")) for number in range(3)]
    assert drawn[0] != drawn[1] or drawn[1] != drawn[2]
    assert len({float(answer.delta.norm()) for answer in answers}) == 3
    granted = [event for event in audit.events(trainer.home / audit.FILE) if event.what == "granted"]
    assert {(event.asked["steps"], event.asked["examples"]) for event in granted} == {(3, 12)}


def test_a_visit_that_is_killed_has_spent_all_the_same(born, asked, shaped, monkeypatch) -> None:
    trainer = born()

    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(tune, "tune", killed)
    reason(ask(trainer, asked(broadcast(shaped))))
    monkeypatch.undo()
    assert len(entries(born())) == 1
    assert isinstance(ask(born(), asked(broadcast(shaped))), Update)
    assert len(entries(born())) == 2


@pytest.mark.parametrize(
    ("changed", "policy", "why"),
    [
        ({"tuning": {"objective": {"name": "dpo"}}}, {"objectives": ["sft", "dpo"]}, "2 examples together"),
        (
            {"algorithm": {"name": "tests.silos.site.idle"}},
            {"algorithms": ["tests.silos.site.idle"]},
            redaction.VISIT,
        ),
    ],
)
def test_a_visit_that_is_refused_spends_nothing(born, asked, shaped, changed, policy, why) -> None:
    """Whatever tuning refuses it refuses before the entry."""
    trainer = born(**policy)
    for number in range(2):
        sent = asked(broadcast(shaped, number), settings={**PRIVATE, **changed})
        assert why in reason(ask(trainer, sent))
    assert entries(trainer) == []


def test_a_site_halts_when_its_budget_is_spent_whatever_is_asked(born, asked, shaped, monkeypatch) -> None:
    size = held(born(), asked)
    limited = {**LIMITED, "max_epsilon": limit_for(2, size)}
    for number in range(2):  # of two runs, by two processes
        answer = ask(born(**limited), asked(broadcast(shaped), run=f"{number:016x}"))
        assert isinstance(answer, Update)
    monkeypatch.setattr(tune, "tune", lambda *_: pytest.fail("trained beyond the budget"))
    trainer = born(**limited)
    other = {**PRIVATE, "adapter": {"rank": 2, "dropout": 0.0}}
    for more in (
        {"run": "2" * 16},
        {"run": "3" * 16, "settings": other},
    ):
        said = reason(ask(trainer, asked(broadcast(shaped), **more)))
        assert said.startswith(
            f"policy max_epsilon = {limited['max_epsilon']} of site-1 refuses a visit after"
        )
        assert "its privacy budget is spent" in said
    again = asked(broadcast(shaped, 1), run="0".zfill(16))
    assert "max_epsilon" in reason(ask(trainer, again))
    assert "max_epsilon" in reason(ask(trainer, asked(run="4" * 16)))  # to join
    assert len(entries(trainer)) == 2
    # a smaller visit may still fit
    monkeypatch.undo()
    little = {**PRIVATE, "privacy": {"examples": {"norm": 0.5, "noise": 50.0}}}
    answer = ask(trainer, asked(broadcast(shaped), settings=little, run="5" * 16))
    assert isinstance(answer, Update)


def test_a_site_that_requires_privacy_runs_nothing_else(born, asked, shaped) -> None:
    trainer = born(**LIMITED)
    plain = {"settings": TABLES}
    for more in (
        asked(**plain),
        asked(broadcast(shaped), **plain),
        asked(broadcast(shaped), "score", **plain),
    ):
        assert "require_privacy" in reason(ask(trainer, more))
    assert "to score, which no noise hides" in reason(ask(trainer, asked(broadcast(shaped), "score")))
    assert entries(trainer) == []
    assert isinstance(ask(trainer, asked(broadcast(shaped))), Update)


def test_a_kept_answer_of_a_time_without_privacy_leaves_no_more(born, asked, shaped) -> None:
    plain = asked(broadcast(shaped), settings=TABLES)
    assert ask(born(), plain).metrics
    assert "require_privacy" in reason(ask(born(**LIMITED), plain))


def test_a_ledger_that_cannot_be_read_stops_the_site(born, asked, shaped, monkeypatch) -> None:
    trainer = born()
    ask(trainer, asked(broadcast(shaped)))
    path = privacy_ledger.ledger_of(trainer.home, trainer.settings.data).path
    path.write_text("nonsense\n" + path.read_text())
    monkeypatch.setattr(tune, "tune", lambda *_: pytest.fail("trained without a ledger"))
    reason(ask(trainer, asked(broadcast(shaped, 1))))


def test_a_ledger_that_is_lost_closes_the_site(born, asked, shaped, monkeypatch) -> None:
    trainer = born(**LIMITED)
    assert isinstance(ask(trainer, asked(broadcast(shaped))), Update)
    path = privacy_ledger.ledger_of(trainer.home, trainer.settings.data).path
    kept = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(tune, "tune", lambda *_: pytest.fail("trained without a ledger"))
    assert reason(ask(trainer, asked(broadcast(shaped, 1)))) == redaction.FOLDER  # the path stays here
    assert reason(ask(trainer, asked(run="2" * 16))) == redaction.FOLDER
    with pytest.raises(FolderError, match="is missing") as caught:
        born(**LIMITED)
    assert str(path) in str(caught.value)
    monkeypatch.undo()
    path.write_bytes(kept)
    assert isinstance(ask(born(**LIMITED), asked(broadcast(shaped, 1))), Update)
    assert len(entries(trainer)) == 2


def test_an_audit_log_that_is_lost_closes_the_site(born, asked, shaped, monkeypatch) -> None:
    """Whatever the month's budget counts, a site without that log does not know."""
    trainer = born()
    assert isinstance(ask(trainer, asked(broadcast(shaped))), Update)
    (path,) = trainer.home.glob("audit-*.jsonl")
    kept = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(tune, "tune", lambda *_: pytest.fail("trained without an audit log"))
    assert reason(ask(trainer, asked(broadcast(shaped, 1)))) == redaction.FOLDER
    assert reason(ask(trainer, asked(run="2" * 16))) == redaction.FOLDER
    with pytest.raises(FolderError, match="is missing"):
        born()
    monkeypatch.undo()
    path.write_bytes(kept)
    assert isinstance(ask(born(), asked(broadcast(shaped, 1))), Update)


def test_what_an_earlier_version_entered_is_counted_when_the_site_starts(born, asked, shaped) -> None:
    trainer = born()
    ask(trainer, asked(broadcast(shaped)))
    path = privacy_ledger.ledger_of(trainer.home, trainer.settings.data).path
    shutil.rmtree(trainer.home / "runs" / "privacy")  # as it was before anything was counted
    born(**LIMITED)
    path.unlink()
    with pytest.raises(FolderError, match="is missing"):
        born(**LIMITED)


def test_without_the_accountant_a_site_says_so_before_anything_runs(born, asked, shaped, monkeypatch) -> None:
    monkeypatch.setattr(accountant, "find_spec", lambda name: None)
    monkeypatch.setattr(tune, "tune", lambda *_: pytest.fail("trained without an accountant"))
    with pytest.raises(SettingsError, match=r"\[privacy\]"):
        born(**LIMITED)
    assert "lacks the extra [privacy]" in reason(ask(born(), asked(broadcast(shaped))))
    assert "lacks the extra [privacy]" in reason(ask(born(), asked()))


def test_a_delta_that_would_publish_an_example_is_refused(born, asked, shaped) -> None:
    said = reason(ask(born(**LIMITED, delta=0.2), asked(broadcast(shaped))))
    assert "delta is 0.2, and this site has" in said


@pytest.mark.parametrize("value", [0.0, -1.0, "nan"])
@pytest.mark.parametrize("key", ["norm", "noise"])
def test_a_request_with_a_number_that_protects_nobody_is_refused(born, asked, shaped, key, value) -> None:
    bad = {**PRIVATE, "privacy": {"examples": {"norm": 0.5, "noise": 2.0, key: value}}}
    said = reason(ask(born(), asked(broadcast(shaped), settings=bad)))
    assert f"privacy.examples.{key}" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_request_with_a_number_that_is_none_never_trains(born, asked, shaped, monkeypatch, value) -> None:
    monkeypatch.setattr(tune, "tune", lambda *_: pytest.fail("trained"))
    bad = {**PRIVATE, "privacy": {"examples": {"norm": 0.5, "noise": value}}}
    try:
        message = wire.encode_request(asked(broadcast(shaped), settings=bad))
    except ValueError:
        return  # it cannot even be sent
    reason(wire.decode_reply(born().handle(message)))


def test_the_privacy_of_the_site_as_a_client_has_its_budget_too(born, asked, shaped) -> None:
    noisy = "tests.silos.site.noisy"
    run = {
        **tables(federation={"rounds": 4, "weights": "equal"}),
        "transforms": [{"name": noisy, "noise": 4.0}],
    }
    spent = accountant.epsilon([accountant.Spending(noise=4.0, sampling=Poisson(chance=1.0), steps=2)], 1e-5)
    policy = {"require_privacy": ("client",), "max_epsilon": spent * 1.05, "transforms": ("clip", noisy)}
    sent = [replace(broadcast(shaped, number), transforms=({},)) for number in range(3)]
    for number in range(2):
        answer = ask(born(**policy), asked(sent[number], settings=run))
        assert isinstance(answer, Update)
        assert dict(answer.metrics) == {}
    said = reason(ask(born(**policy), asked(sent[2], settings=run)))
    assert "max_epsilon" in said
    assert "for this site, over all runs so far" in said
    assert [entry.unit for entry in entries(born(**policy))] == ["client", "client"]


def test_a_run_that_uses_few_of_the_examples_gets_no_larger_delta(born, asked, shaped) -> None:
    """A coordinator's data.max_tokens decides how many examples fit, and with fewer delta would be larger."""
    trainer = born(**LIMITED)
    assert isinstance(ask(trainer, asked(broadcast(shaped))), Update)
    (entry,) = entries(trainer)
    assert entry.examples == held(trainer, asked)
    few = replace(entry, examples=90_000, round=7)
    assert privacy_ledger.spend(trainer._ledger(), [], [few]) is None
    assert [each.delta for each in trainer._budgets(20)] == [90_000**-1.1]
    assert [each.delta for each in trainer._budgets(500_000)] == [500_000**-1.1]
    kept = privacy_ledger.ledger_of(trainer.home, trainer.settings.data)
    assert privacy_ledger.most_examples(kept) == 90_000


def test_noise_that_is_correlated_hides_visits_that_are_apart(born, asked, shaped) -> None:
    """The budget counts each as one of independent noise, which is true of visits `bands` apart alone."""
    name = "gaussian_correlated"
    run = {
        **tables(federation={"rounds": 9, "weights": "equal"}),
        "transforms": [{"name": name, "noise": 4.0, "norm": 0.05, "bands": 3}],
    }
    spent = accountant.epsilon([accountant.Spending(noise=4.0, sampling=Poisson(chance=1.0), steps=3)], 1e-5)
    trainer = born(transforms=(name,))
    sent = [asked(replace(broadcast(shaped, n), transforms=({},)), settings=run) for n in range(9)]
    for number in (0, 4):
        assert isinstance(ask(trainer, sent[number]), Update)
    for number in (5, 6):
        said = reason(ask(trainer, sent[number]))
        assert f"in round 5 of this run and is asked again in round {number + 1}" in said
        assert "hides rounds that are 3 or more apart" in said
    assert isinstance(ask(trainer, sent[4]), Update)  # the same answer again
    assert [(entry.unit, entry.round) for entry in entries(trainer)] == [("client", 0), ("client", 4)]
    limited = born(require_privacy=("client",), max_epsilon=spent * 1.01, transforms=(name,))
    assert isinstance(ask(limited, sent[7]), Update)  # visits before privacy was required count
    other = asked(replace(broadcast(shaped, 0), transforms=({},)), settings=run, run="2" * 16)
    assert "its privacy budget is spent" in reason(ask(limited, other))
    assert len(entries(limited)) == 3


NOISY = {
    **tables(federation={"rounds": 4, "weights": "equal"}, secure={"ring_bits": 32}),
    "transforms": [{"name": "skellam", "norm": 0.05, "noise": 1.0, "honest": 3}],
}


def test_a_visit_that_overflows_looks_like_any_other_where_noise_hides_the_site(
    born, asked, shaped, monkeypatch
) -> None:
    """An adapter can be made to overflow on some texts alone, so staying away would tell of them."""
    honest = tune.tune

    def overflowed(base, job, watch):
        (tuned,) = honest(base, job, watch)
        return (replace(tuned, delta=tuned.delta.times(float("nan"))),)

    trainer = born(require_privacy=("client",), max_epsilon=50.0, transforms=("skellam",))
    expected = ask(trainer, asked(broadcast(shaped, 0), settings=NOISY))
    assert isinstance(expected, Trained), expected
    monkeypatch.setattr(tune, "tune", overflowed)
    sent = asked(broadcast(shaped, 1), settings=NOISY)
    assert ask(trainer, sent) == replace(expected, round=1)
    kept = born().store.answered(RUN, sent.id)
    assert kept is not None
    assert kept.moved == released.MAX_COUNTED_LENGTH
    assert all(tensor.any() for tensor in kept.update.delta.values())  # the noise is there
    monkeypatch.undo()
    assert ask(trainer, asked(broadcast(shaped, 2), settings=NOISY)) == replace(expected, round=2)


@pytest.mark.parametrize("rate", [0.01, 1e-5])
def test_under_masks_no_refusal_tells_how_long_an_update_is(born, shaped, llama_folder, rate) -> None:
    """A refused score costs nothing, so adapters at falling distances would find the length to any digit."""
    masked = {
        **tables(
            federation={"rounds": 4, "weights": "equal"},
            secure={"ring_bits": 32},
            tuning={"learning_rate": rate},
        ),
        "transforms": [{"name": "fixed_point", "norm": 0.5}],
    }
    trainer = born(transforms=("fixed_point",))
    sent = broadcast(shaped, 0)
    trained = ask(trainer, request(llama_folder, sent, settings=masked))
    assert isinstance(trained, Trained), trained
    for distance in (5.01, 4.99):
        moved = sent.adapter.plus(sent.adapter, distance / sent.adapter.norm())
        again = replace(sent, round=1, adapter=moved)
        reply = ask(trainer, request(llama_folder, again, "score", settings=masked))
        assert isinstance(reply, Failure if distance > 5 else Scores), reply


def test_a_share_of_noise_is_not_drawn_from_what_the_server_knows(born, shaped, llama_folder) -> None:
    """The seeds of the order and of the broadcast are known: noise from them could be taken out."""
    trainer = born(require_privacy=("client",), max_epsilon=50.0, transforms=("skellam",))
    drawn = []
    for run in ("1" * 16, "2" * 16):
        sent = request(llama_folder, broadcast(shaped), settings=NOISY, run=run)
        assert isinstance(ask(trainer, sent), Trained)
        kept = trainer.store.answered(run, sent.id)
        assert kept is not None
        drawn.append(kept.update.delta)
    assert drawn[0] != drawn[1]


def test_a_repeated_request_gets_the_same_noise_and_spends_nothing(born, shaped, llama_folder) -> None:
    """Sums of one update with noise drawn again would give it away on average."""
    policy = {"require_privacy": ("client",), "max_epsilon": 50.0, "transforms": ("skellam",)}
    sent = request(llama_folder, broadcast(shaped), settings=NOISY)
    kept = []
    for trainer in (born(**policy), born(**policy)):  # the second after a restart
        for _ in range(2):
            assert isinstance(ask(trainer, sent), Trained)
            found = trainer.store.answered(RUN, sent.id)
            assert found is not None
            kept.append(found.update)
        assert [entry.unit for entry in entries(trainer)] == ["client"]
    assert all(update == kept[0] for update in kept)
