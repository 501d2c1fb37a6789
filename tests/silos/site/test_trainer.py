"""A site's trainer: the bits of a simulation, refusals by name, and every fault as a reply."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shepherd import plugins
from shepherd.core import Adapter, Failure, Update, seed_for
from shepherd.data import cursor, dataset, pipeline
from shepherd.errors import AdapterError, DataError, SettingsError, ShepherdError, WireError
from shepherd.federation.clients import LocalClients
from shepherd.federation.simulation import Simulation
from shepherd.machine import memory
from shepherd.machine.executors import Inline
from shepherd.model.digest import digest
from shepherd.run.loading import load_base
from shepherd.silos.protocol import ipc as local
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Ready, Scores
from shepherd.silos.site import audit, data_cache, policy, redaction, released, request_checks, site_store
from shepherd.silos.site import trainer as trainers
from shepherd.silos.site.site_settings import scoring_settings as as_scored
from shepherd.silos.site.site_settings import settings_at_site
from shepherd.silos.site.trainer import Trainer
from shepherd.training import score, tune
from tests import runs
from tests.silos.site import sleeping, trained
from tests.silos.site.trained import (
    NAME,
    REMEMBERING,
    RUN,
    SLEEPING,
    TABLES,
    ask,
    blank,
    broadcast,
    reason,
    request,
    tables,
)

CLIENT = {"algorithm": {"name": REMEMBERING}}
SLOW = {"algorithm": {"name": SLEEPING}, "tuning": {"max_steps": 500}}


@pytest.fixture
def asked(llama_folder) -> Callable[..., wire.Request]:
    return lambda *words, **more: request(llama_folder, *words, **more)


def simulated(base: Any, source: Path, folder: Path, asked: Any, **least: Any) -> Simulation:
    """The same client in process."""
    run = settings_at_site(trained.settings(folder, source), asked, str(folder))
    local = LocalClients(
        datasets=pipeline.one_client(run, NAME, base.tokenizer).clients,
        algorithm=plugins.algorithm(run.algorithm, [trained.REMEMBERING]),
        transform=plugins.transform(run.transforms),
        tuning=run.tuning,
        federation=run.federation,
        micro_batch_tokens=memory.micro_batch(base),
        order_seed=run.seed,
        **{"min_batch": 4, **least},
    )
    return Simulation(local=local, executor=Inline(base), stack_size=1)


@pytest.mark.parametrize("changed", [{}, CLIENT], ids=["fedprox", "with memory"])
def test_rounds_give_the_bits_of_a_simulation(born, asked, llama_folder, source, shaped, changed) -> None:
    """Law 2; every round by a new process, and round 3 is not asked of this site."""
    plain = tables(**changed)
    here = simulated(shaped, source, llama_folder, plain)
    for round in (0, 1, 3):
        sent = broadcast(shaped, round)
        (expected,) = here.run(sent, [NAME])
        found = ask(born(), asked(sent, settings=plain))
        assert found == replace(expected, metrics=found.metrics)
        assert found.metrics == {name: expected.metrics[name] for name in found.metrics}
        assert "trained_tokens" in found.metrics
    assert bool(expected.extra) == bool(changed)


@pytest.mark.parametrize(
    "keys", [{"name": "top_k", "share": 0.05}, {"name": "quantise", "bits": 1, "feedback": True}]
)
def test_what_an_encoding_leaves_out_is_kept_at_the_site_as_in_a_simulation(
    born, asked, llama_folder, source, shaped, keys
) -> None:
    """Laws 2 and 3: beside an algorithm that remembers under the same names, every round by a new process;
    the bytes that travel are those of the codes and a header."""
    plain = tables(algorithm=CLIENT["algorithm"]) | {"transforms": [keys]}
    here = simulated(shaped, source, llama_folder, plain)
    for round in (0, 1, 3):
        sent = broadcast(shaped, round)
        (expected,) = here.run(sent, [NAME])
        question = wire.encode_request(asked(sent, settings=plain))
        message = born(transforms=[keys["name"]]).handle(question)
        found = wire.decode_reply(message)
        assert found == replace(expected, metrics=found.metrics)
        assert message == born(transforms=[keys["name"]]).handle(question)  # a repeated request
        assert len(message) == 8 + int.from_bytes(message[:8], "little") + expected.nbytes
        assert expected.delta.nbytes < 0.1 * sent.adapter.nbytes
    kept = born().store.kept(RUN)[-1].memory
    assert {name.removeprefix("transform 0 ") for name in kept} == set(sent.adapter)
    assert len(kept) == 2 * len(sent.adapter)


def test_a_visit_that_diverges_is_recorded_though_its_codes_are_finite(born, asked, shaped) -> None:
    """Numbers that are not finite are no part of codes, and the site sees them before they are encoded."""
    wild = tables(
        tuning={"learning_rate": 1e30, "optimiser": {"name": "adamw"}}, algorithm={"name": "fedprox"}
    )
    wild |= {"transforms": [{"name": "quantise"}]}
    trainer = born(transforms=["quantise"], max_learning_rate=1e38)
    said = reason(ask(trainer, asked(broadcast(shaped), settings=wild)))
    assert "not finite" in said
    assert trainer.store.record(RUN).spent


@pytest.mark.parametrize("adapter", [{"rank": 3, "min_rank": 1}, {"rank": 3, "ranks": {NAME: 2}}], ids=str)
def test_a_site_that_allows_fewer_ranks_trains_these_alone(
    born, asked, llama_folder, source, adapter
) -> None:
    """Law 2, with the rank that the site says when it joins; the others stay as they were sent."""
    plain = tables(adapter=adapter)
    base = load_base(settings_at_site(trained.settings(llama_folder, source), plain, str(llama_folder)))
    here = simulated(base, source, llama_folder, plain, ranks={NAME: 2})
    trainer = born(max_rank=2)
    for _ in range(2):  # the second time without loading anything
        assert ask(trainer, asked(settings=plain)).rank == 2
    for round in (0, 1):
        sent = broadcast(base, round)
        (expected,) = here.run(sent, [NAME])
        found = ask(born(max_rank=2), asked(sent, settings=plain))
        assert found == replace(expected, metrics=found.metrics)
        assert {min(tensor.shape) for tensor in found.delta.values()} == {2}
    assert ask(born(), asked(settings=plain)).rank == (3 if "min_rank" in adapter else 2)


def test_a_site_that_allows_fewer_ranks_than_the_run_refuses_by_name(born, asked) -> None:
    said = reason(ask(born(max_rank=2), asked(settings=tables(adapter={"rank": 4, "min_rank": 3}))))
    assert said == (
        "policy max_rank = 2 of site-1 refuses rank 3, the lowest that the run allows; lower adapter.min_rank"
    )


@pytest.mark.parametrize("most", [1, 99, 4096, 10**6])
def test_a_pass_is_a_simulations_and_no_larger_than_the_owner_has_it(
    llama_folder, source, shaped, tmp_path, most
) -> None:
    site = trained.settings(llama_folder, source)
    site = site.model_copy(update={"trainer": site.trainer.model_copy(update={"micro_batch_tokens": most})})
    trainer = Trainer(site, NAME, tmp_path / "home")
    assert trainer._micro_batch(shaped) == min(memory.micro_batch(shaped), most)
    trainer._worker.shutdown()


def test_a_small_site_goes_on_over_the_end_of_an_epoch(
    asked, llama_folder, shaped, tmp_path, monkeypatch
) -> None:
    """Thirty examples, two steps of eight: the second visit has 14 of one epoch and 8 of the next."""
    source = runs.written(tmp_path / "rows.jsonl", runs.rows(30))
    monkeypatch.setattr(trained, "SCORING", {**trained.SCORING, "share": 0.0})
    limits = {"min_examples": 16, "min_batch": 8, "rounds_per_month": 99}
    trainer = Trainer(trained.settings(llama_folder, source, **limits), NAME, tmp_path / "home")
    plain = tables(tuning={"batch_size": 8, "max_steps": 2}, federation={"rounds": 40})
    here = simulated(shaped, source, llama_folder, plain, min_batch=8, min_examples=16)
    starts = []
    for round in range(12):
        sent = broadcast(shaped, round)
        (expected,) = here.run(sent, [NAME])
        found = ask(trainer, asked(sent, settings=plain))
        assert found == replace(expected, metrics=found.metrics)
        kept = trainer.store.kept(RUN)[-1]
        assert (kept.position, kept.different) == (here.draft.positions[NAME], len(_taken(kept)))
        assert kept.different >= 16
        starts.append(kept.start)
    assert any(start % 30 for start in starts)
    granted = [event.asked for event in audit.events(trainer.home / audit.FILE) if event.what == "granted"]
    assert {each["steps"] for each in granted} == {2}


def _taken(kept: site_store.AnsweredRound) -> set[int]:
    """The examples of a visit, by the orders of its epochs."""
    seed = seed_for(3, "order", NAME)
    orders = np.concatenate([cursor.order(30, epoch, seed) for epoch in range(kept.position // 30 + 1)])
    return set(orders[kept.start : kept.position].tolist())


def test_base_and_data_are_made_once_for_all_rounds_and_runs(born, asked, shaped, monkeypatch) -> None:
    made: list[str] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **more: made.append(name) or original(*args, **more)

    monkeypatch.setattr(data_cache, "load_base", counted("base", data_cache.load_base))
    monkeypatch.setattr(pipeline, "one_client", counted("data", pipeline.one_client))
    monkeypatch.setattr(pipeline, "held_out", counted("heldout", pipeline.held_out))
    trainer = born()
    for run in (RUN, "f" * 16):
        assert isinstance(ask(trainer, asked(run=run)), Ready)
        for round in range(2):
            assert isinstance(ask(trainer, asked(broadcast(shaped, round), run=run)), Update)
        assert isinstance(ask(trainer, asked(blank(shaped, 2), "score", run=run)), Scores)
    assert sorted(made) == ["base", "data", "heldout"]
    ask(born(), asked(run=RUN))
    assert sorted(made) == ["base", "base", "data", "heldout"]  # the tokens lie on the disk
    ask(trainer, asked(settings=tables(data={"max_tokens": 40})))
    ask(trainer, asked(settings=tables(adapter={"rank": 3})))
    assert sorted(made) == ["base"] * 3 + ["data"] * 2 + ["heldout"]  # loaded for the longer examples


def test_changed_data_are_read_again(born, asked, llama_folder, tmp_path) -> None:
    source = runs.written(tmp_path / "own.jsonl")
    trainer = Trainer(trained.settings(llama_folder, source), NAME, tmp_path / "home")
    before = ask(trainer, asked())
    runs.written(source, runs.rows(48))
    assert ask(trainer, asked()).examples > before.examples


def test_who_joins_is_told_by_size_and_version(born, asked, source, llama_folder, shaped) -> None:
    size = len(simulated(shaped, source, llama_folder, TABLES).local.datasets[NAME])
    trainer = born()
    for _ in range(2):  # loading, and loaded
        joined = Ready(client=NAME, examples=size, version=wire.version(), min_cohort=2, rank=2)
        assert ask(trainer, asked()) == joined


def test_how_few_examples_a_site_has_is_never_told(asked, llama_folder, shaped, tmp_path) -> None:
    """Not by a refusal, and not once all is loaded either."""
    source = runs.written(tmp_path / "rows.jsonl", runs.rows(36))
    trainer = Trainer(trained.settings(llama_folder, source, min_examples=6), NAME, tmp_path / "home")
    assert isinstance(ask(trainer, asked()), Ready)
    few = trainer.settings.policy.model_copy(update={"min_examples": 37})
    trainer.settings = trainer.settings.model_copy(update={"policy": few})
    said = reason(ask(trainer, asked()))
    assert said == (
        "policy min_examples = 37 of site-1 refuses to train on fewer examples; train with sites that hold"
        " more"
    )


# the same question, and an old one -------------------------------------------------------------------------


def test_the_same_question_gets_the_same_bytes_and_tunes_once(born, asked, shaped, monkeypatch) -> None:
    tuned: list[int] = []
    honest = tune.tune
    monkeypatch.setattr(tune, "tune", lambda *args, **more: tuned.append(1) or honest(*args, **more))
    first, second = (broadcast(shaped, round) for round in range(2))
    trainer = born()
    replies = [trainer.handle(wire.encode_request(asked(sent))) for sent in (first, second)]
    again = [
        each.handle(wire.encode_request(asked(sent, deadline=5.0, cohort=4)))
        for each in (trainer, born())
        for sent in (first, second)
    ]
    assert again == 2 * replies
    assert len(tuned) == 2


def test_a_round_that_was_answered_is_not_answered_to_another_question(born, asked, shaped) -> None:
    trainer = born()
    ask(trainer, asked(broadcast(shaped, 1)))
    for round in (0, 1):
        said = reason(ask(trainer, asked(broadcast(shaped, round, seed=9))))
        assert said == (
            f"site-1 has answered round 2 of this run, and got another request for round {round + 1};"
            " if the server has lost rounds, use `shepherd silos new-id`"
        )
    assert isinstance(ask(trainer, asked(broadcast(shaped, 0), run="f" * 16)), Update)


def test_an_answer_that_was_kept_leaves_as_the_policy_of_today_has_it(born, asked, shaped) -> None:
    first = ask(born(), asked(blank(shaped)))
    assert {"loss", "examples"} <= set(first.metrics)
    again = ask(born(metrics=["steps"]), asked(blank(shaped)))
    assert again == replace(first, metrics={"steps": first.metrics["steps"]})
    said = reason(ask(born(min_examples=13), asked(blank(shaped))))
    assert said.startswith("policy min_examples = 13 of site-1 refuses a visit of 12 examples")


def test_a_run_that_was_crowded_out_goes_on_where_it_was(born, asked, shaped, caplog) -> None:
    """And answers no round again."""
    trainer = born()
    ask(trainer, asked(blank(shaped)))
    for number in range(site_store.KEPT_RUNS):
        ask(trainer, asked(blank(shaped), run=f"{number:016x}"))
    assert trainer.store.kept(RUN) == ()
    said = reason(ask(born(), asked(broadcast(shaped, 0))))
    assert "answered round 1 of this run, and got another request for round 1" in said
    said = reason(ask(born(), asked(blank(shaped))))
    assert "a request whose answer is no longer kept" in said
    assert isinstance(ask(trainer, asked(broadcast(shaped, 1))), Update)
    (kept,) = trainer.store.kept(RUN)
    assert (kept.start, kept.position) == (12, 24)
    assert "the client memory is lost" in caplog.text


@pytest.mark.parametrize(("kind", "reply"), [("train", Update), ("score", Scores)])
def test_the_same_answer_is_given_only_so_often(born, asked, shaped, monkeypatch, kind, reply) -> None:
    """Whatever else is asked in between, and whoever is started again."""
    monkeypatch.setattr(trainers, "MAX_ANSWERS", 3)
    for _ in range(3):
        trainer = born()
        for run in ("a" * 16, "b" * 16):
            assert isinstance(ask(trainer, asked(blank(shaped), kind, run=run)), reply)
    for run in ("a" * 16, "b" * 16):
        assert "has sent this answer 3 times" in reason(ask(trainer, asked(blank(shaped), kind, run=run)))


def test_a_score_is_computed_once_and_given_again_as_the_policy_of_today_has_it(
    asked, shaped, llama_folder, tmp_path, monkeypatch
) -> None:
    computed: list[int] = []
    honest = score.losses
    monkeypatch.setattr(score, "losses", lambda *args, **more: computed.append(1) or honest(*args, **more))
    rows = [{**row, "category": "ab"[number % 4 == 0]} for number, row in enumerate(runs.rows(80))]
    source = runs.written(tmp_path / "rows.jsonl", rows)

    def born(**policy: Any) -> Trainer:
        settings = trained.settings(llama_folder, source, **{"min_examples": 2, **policy})
        return Trainer(settings, NAME, tmp_path / "home")

    question, trainer = asked(blank(shaped), "score"), born()
    first = ask(trainer, question)
    assert [ask(each, question) for each in (trainer, born())] == 2 * [first]
    assert isinstance(ask(trainer, asked(blank(shaped))), Update)
    assert ask(trainer, question) == first  # after it has trained, too
    assert {name: each.examples for name, each in trainer.store.record(RUN).score.items()} == {"a": 9, "b": 3}
    again = ask(born(min_examples=9), question)
    assert again.categories == {"a": first.categories["a"]}
    left = audit.events(trainer.home / audit.FILE)[-1].left
    assert list(left.scores) == ["a"]
    assert left.scores["a"]["examples"] == 9
    said = reason(ask(born(min_examples=10), question))
    assert "min_examples = 10 of site-1 refuses a score over fewer held-out examples" in said
    assert "policy metrics" in reason(ask(born(metrics=["loss"]), question))
    monkeypatch.setattr(trainers, "_now", lambda: datetime(2026, 11, 22, 18, 0))
    assert ask(born(hours="08:00-18:00"), question) == first
    assert len(computed) == 1


def test_the_mean_of_a_round_is_scored_and_what_did_not_come_of_it_is_not(born, asked, shaped) -> None:
    trainer, first = born(), blank(shaped)
    assert isinstance(ask(trainer, asked(first, "score")), Scores)
    update = ask(trainer, asked(first))
    mean = replace(first, round=1, adapter=first.adapter.plus(update.delta, 0.5))
    assert isinstance(ask(trainer, asked(mean, "score")), Scores)
    assert "loss" in ask(trainer, asked(mean)).metrics
    for far in (100.0, -1e3):
        other = replace(first, round=2, adapter=first.adapter.plus(update.delta, far))
        assert "this is neither" in reason(ask(trainer, asked(other, "score")))
    assert "loss" not in ask(trainer, asked(other)).metrics


def test_an_adapter_with_huge_numbers_is_refused(born, asked, shaped) -> None:
    sent = blank(shaped)
    huge = replace(sent, adapter=sent.adapter.times(1e30))
    for kind in ("train", "score"):
        assert "of the broadcast has values above 1000" in reason(ask(born(), asked(huge, kind)))


def test_an_update_that_is_not_finite_does_not_leave_and_its_round_is_over(
    born, asked, shaped, llama_folder, source, monkeypatch, caplog
) -> None:
    """That it is not is an answer about the examples: one a round, without a name or a number."""
    trainer, tuned, honest = born(), [], LocalClients.update

    def update(self, *words):
        sent, memory = honest(self, *words)
        tuned.append(sent.round)
        return replace(sent, delta=sent.delta.times(np.inf)), memory

    with monkeypatch.context() as patch:
        patch.setattr(LocalClients, "update", update)
        for each in (trainer, trainer, born()):
            assert reason(ask(each, asked(blank(shaped)))) == redaction.DIVERGED
        said = reason(ask(trainer, asked(broadcast(shaped))))
    assert "answered round 1 of this run, and got another request for round 1" in said
    assert tuned == [0]
    assert re.search(r"tensor \S+lora_A\.weight of its update is not finite", caplog.text)
    events = audit.events(trainer.home / audit.FILE)
    assert [event.what for event in events] == ["granted", "failed", "failed", "failed", "refused"]
    here = simulated(shaped, source, llama_folder, TABLES)  # where such an update is refused later
    for round in range(2):
        (expected,) = here.run(broadcast(shaped, round), [NAME])
    assert ask(born(), asked(broadcast(shaped, 1))).delta == expected.delta  # law 2
    (kept,) = born().store.kept(RUN)
    assert (kept.round, kept.start) == (1, 12)


# what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "rule", "said"),
    [
        ({"version": "0.0.9"}, "version", f"has shepherd-fit 0.0.9 and site-1 has {wire.version()}; "),
        ({"id": "ab" * 32}, "id", "the id of the request to site-1 does not match its content; install one"),
        ({"ahead": 400}, "clock", "the server's clock is 400 s ahead of this site's, .* set both clocks"),
        ({"ahead": -400}, "clock", "clock is 400 s behind this site's, or the message is an old"),
        ({"base": "ef" * 32}, "bases", f"of site-1 refuses base {'ef' * 32}"),
        ({"settings": tables(adapter={"rank": 64})}, "max_rank", "max_rank = 16 of site-1 refuses rank 64"),
        ({"settings": tables(algorithm={"name": "os"})}, "algorithms", 'refuses algorithm "os"'),
        ({"cohort": 1}, "min_cohort", "policy min_cohort = 2 of site-1 refuses"),
        ({"settings": tables(tuning={"max_steps": 2000})}, "max_steps", "refuses 2000 steps a visit"),
    ],
)  # fmt: skip
def test_a_request_outside_the_rules_is_refused_by_name(
    born, asked, shaped, more, rule, said, caplog
) -> None:
    trainer = born()
    sent = broadcast(shaped)
    given = dict(more)
    ahead = given.pop("ahead", 0)
    question = asked(sent, **given)
    told = reason(ask(trainer, replace(question, sent=question.sent + ahead)))
    assert re.search(said, told)
    assert told in caplog.text  # at this end too
    (event,) = audit.events(trainer.home / audit.FILE)
    assert (event.what, event.rule, event.sentence) == ("refused", rule, told)
    assert isinstance(ask(trainer, asked(sent)), Update)  # and nothing else is the worse for it


def test_an_algorithm_for_sgd_under_adamw_is_refused_here_too(born, asked, shaped) -> None:
    trainer = born(algorithms=["fedprox", "fednova"])
    told = reason(ask(trainer, asked(broadcast(shaped), settings=tables(algorithm={"name": "fednova"}))))
    assert "the algorithm 'fednova' is right only for local steps of plain SGD" in told


def test_clocks_a_little_apart_do_no_harm(born, asked) -> None:
    question = asked()
    for ahead in (-request_checks.MAX_CLOCK_SKEW_S + 60, request_checks.MAX_CLOCK_SKEW_S - 60):
        assert isinstance(ask(born(), replace(question, sent=question.sent + ahead)), Ready)


def test_a_message_that_took_its_time_on_a_slow_line_is_no_old_one(asked) -> None:
    old = replace(asked(), sent=time.time() - request_checks.MAX_CLOCK_SKEW_S - 200)
    request_checks.require_clock(old, size=32_000_000)  # 256 s at 125 kB/s
    with pytest.raises(request_checks.RequestRefused, match="an old one"):
        request_checks.require_clock(old, size=16_000_000)
    with pytest.raises(request_checks.RequestRefused, match="ahead of"):
        request_checks.require_clock(
            replace(old, sent=time.time() + request_checks.MAX_CLOCK_SKEW_S + 10), size=64_000_000
        )


def test_an_answer_that_was_kept_is_given_at_any_hour(born, asked, shaped, monkeypatch) -> None:
    trainer = born(hours="08:00-18:00")
    monkeypatch.setattr(trainers, "_now", lambda: datetime(2026, 11, 22, 17, 59))
    first = ask(trainer, asked(broadcast(shaped)))
    monkeypatch.setattr(trainers, "_now", lambda: datetime(2026, 11, 22, 18, 0))
    assert isinstance(first, Update)
    assert ask(trainer, asked(broadcast(shaped))) == first
    assert "hours" in reason(ask(trainer, asked(broadcast(shaped, 1))))


def test_the_budget_of_a_month_counts_each_question_once(born, asked, shaped) -> None:
    trainer = born(rounds_per_month=1)
    for _ in range(2):
        assert isinstance(ask(trainer, asked(broadcast(shaped))), Update)
    assert "rounds_per_month = 1" in reason(ask(trainer, asked(broadcast(shaped, 1))))


def test_the_budget_of_a_month_counts_each_score(born, asked, shaped) -> None:
    trainer = born(rounds_per_month=1)
    for round in (0, 0, 1):
        assert isinstance(ask(trainer, asked(blank(shaped, round), "score")), Scores)
    assert "rounds_per_month = 1" in reason(ask(trainer, asked(blank(shaped, 2), "score")))


def test_a_question_cannot_go_by_the_id_of_one_that_was_granted(born, asked, shaped) -> None:
    """Else a server in the wrong hands would ask all its questions for the price of the first."""
    trainer, first = born(rounds_per_month=1), asked(broadcast(shaped))
    assert isinstance(ask(trainer, first), Update)
    for other in (
        asked(broadcast(shaped), run="f" * 16),
        asked(broadcast(shaped, 1)),
        asked(broadcast(shaped), "score"),
    ):
        assert "does not match its content" in reason(ask(trainer, replace(other, id=first.id)))
    assert [event.what for event in audit.events(trainer.home / audit.FILE)] == [
        "granted",
        "answered",
    ] + 3 * ["refused"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda sent: {"adapter": sent.adapter.times(np.nan)},
            "lora_A.* of the broadcast is not finite",
        ),
        (lambda sent: {"extra": Adapter({"c": [np.inf]})}, "tensor c of the broadcast is not finite"),
        (
            lambda sent: {"adapter": Adapter({"x": [1.0]})},
            "is missing in the broadcast; use an",
        ),
        (lambda sent: {"round": 5}, "the broadcast is of round 6 and the request of round 1"),
    ],
)
def test_a_broadcast_that_does_not_fit_is_refused(born, asked, shaped, change, said) -> None:
    sent = broadcast(shaped)
    wrong = replace(sent, **change(sent))
    assert re.search(said, reason(ask(born(), asked(wrong, round=0))))


def test_settings_that_no_run_file_has_are_told(born, asked) -> None:
    assert "unknown key hook" in reason(ask(born(), asked(settings={**TABLES, "hook": "x"})))


def test_bytes_that_are_no_request_get_a_reply(born) -> None:
    for message in (b"", b"noise", wire.encode_reply(Failure(client="a", reason="b"))):
        assert reason(wire.decode_reply(born().handle(message)))


# what leaves -----------------------------------------------------------------------------------------------


def test_only_the_listed_metrics_leave(born, asked, shaped) -> None:
    trainer = born(metrics=["loss", "steps"])
    update = ask(trainer, asked(blank(shaped)))
    assert list(update.metrics) == ["loss", "steps"]
    assert update.weight == 12.0
    granted, answered = audit.events(trainer.home / audit.FILE)
    assert (granted.what, answered.what) == ("granted", "answered")
    assert answered.left.metrics == update.metrics
    assert answered.left.tensors == len(update.delta)


def test_scores_are_sums_over_the_sites_own_held_out_examples(
    born, asked, shaped, source, llama_folder
) -> None:
    sent, site = blank(shaped, 2), trained.settings(llama_folder, source)
    run = as_scored(site, settings_at_site(site, TABLES, str(llama_folder)))
    prepared = pipeline.held_out(run, NAME, shaped.tokenizer)
    expected: dict[str, tuple[float, int]] = {}
    categories = dataset.categories(prepared)
    for place, name in enumerate(categories):
        if categories.count(name) < 2:  # too few for a number of its own, and nothing to pool it with
            continue
        one = prepared.heldout.take([place])
        total, count = expected.get(name, (0.0, 0))
        lost = float(score.losses(shaped, [sent.adapter], one, micro_batch=100)[0, 0])
        expected[name] = (total + lost, count + int(tune.predictions(one)[0]))
    got = ask(born(min_examples=2), asked(sent, "score"))
    assert isinstance(got, Scores)
    assert (got.client, got.round, set(got.categories)) == (NAME, 2, set(expected))
    for name, (total, count) in expected.items():
        assert got.categories[name] == (
            pytest.approx(count * released.rounded(total / count, count)),
            count,
        )


def test_a_score_over_a_handful_is_refused(born, asked, shaped) -> None:
    trainer = born(min_examples=7)  # 6 are held out
    said = reason(ask(trainer, asked(blank(shaped), "score")))
    assert said.startswith(
        "policy min_examples = 7 of site-1 refuses a score over fewer held-out examples; continue without"
    )
    (event,) = audit.events(trainer.home / audit.FILE)
    assert (event.what, event.kind, event.rule) == ("refused", "score", "min_examples")
    assert isinstance(ask(trainer, asked(broadcast(shaped))), Update)


def test_scores_stay_where_the_policy_does_not_let_them_leave(born, asked, shaped) -> None:
    said = reason(ask(born(metrics=["loss"]), asked(broadcast(shaped), "score")))
    assert said.startswith('policy metrics = ["loss"] of site-1 refuses "heldout"')


def test_a_score_does_not_move_the_cursor(born, asked, shaped) -> None:
    trainer = born()
    ask(trainer, asked(blank(shaped), "score"))
    assert trainer.store.kept(RUN) == ()


def files_with(home: Path, text: str) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_no_text_of_an_example_is_in_any_file_or_line(llama_folder, tmp_path, shaped, asked, caplog) -> None:
    rows = [{name: f"{text} HUSH" for name, text in row.items()} for row in runs.rows()]
    rows = [{**row, "category": "qa"} for row in rows]
    source = runs.written(tmp_path / "rows.jsonl", rows)
    trainer = Trainer(trained.settings(llama_folder, source), NAME, tmp_path / "home")
    for question in (asked(), asked(blank(shaped), "score"), asked(broadcast(shaped))):
        reply = trainer.handle(wire.encode_request(question))
        assert not isinstance(wire.decode_reply(reply), Failure)
        assert b"HUSH" not in reply
    assert files_with(tmp_path / "home", "HUSH") == []
    assert "HUSH" not in caplog.text


@pytest.mark.parametrize(
    "row",
    [
        '{"instruction": "HUSH", "response": ',
        '{"messages": [{"role": "HUSH", "content": "HUSH"}]}',
        '{"HUSH": 1}',
    ],
)
def test_a_bad_row_is_named_here_and_not_there(llama_folder, tmp_path, asked, caplog, row) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(row + "\n")
    trainer = Trainer(trained.settings(llama_folder, source), NAME, tmp_path / "home")
    assert reason(ask(trainer, asked())) == redaction.DATA
    assert f"{source}, line 1" in caplog.text
    assert "HUSH" not in caplog.text
    assert files_with(tmp_path / "home", "HUSH") == []


# what goes wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("HUSH"), redaction.MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: HUSH"), redaction.MEMORY),
        (type("OutOfMemoryError", (RuntimeError,), {})("HUSH"), redaction.MEMORY),
        (OSError(errno.ENOMEM, "HUSH"), redaction.MEMORY),
        (ValueError("HUSH"), redaction.OTHER),
        (type("HUSH", (RuntimeError,), {})(), redaction.OTHER),
        (DataError("client a: HUSH"), redaction.DATA),
        (AdapterError("tensor HUSH is not finite"), redaction.VISIT),
        (SettingsError("HUSH"), redaction.VISIT),
        (WireError("HUSH"), redaction.VISIT),
    ],
)
def test_what_tuning_throws_is_a_failure_and_the_next_request_is_answered(
    born, asked, shaped, monkeypatch, caplog, error, said
) -> None:
    trainer = born()

    def fail(*args: object, **more: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tune, "tune", fail)
        assert reason(ask(trainer, asked(broadcast(shaped)))) == said
    if not isinstance(error, ShepherdError):
        assert "test_trainer.py" in caplog.text  # where it was
        assert str(error) == "" or str(error) not in caplog.text
    assert trainer.store.kept(RUN) == ()
    assert isinstance(ask(trainer, asked(broadcast(shaped))), Update)
    events = audit.events(trainer.home / audit.FILE)
    assert [event.what for event in events] == ["granted", "failed", "granted", "answered"]


def failing(monkeypatch) -> None:
    def fail(*args: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr(tune, "tune", fail)
    monkeypatch.setattr(score, "losses", fail)


@pytest.mark.parametrize("kind", ["train", "score"])
def test_one_question_is_tried_a_few_times(born, asked, shaped, monkeypatch, kind) -> None:
    """Also by a trainer that is started again."""
    failing(monkeypatch)
    for _ in range(policy.MAX_TRIES):
        assert reason(ask(born(), asked(blank(shaped), kind))) == redaction.MEMORY
    for _ in range(3):
        assert reason(ask(born(), asked(blank(shaped), kind))) == (
            "policy tries of site-1 refuses to try one request again, which failed 5 times this month;"
            " continue with the next round, and see the site's log"
        )
    assert reason(ask(born(), asked(blank(shaped, 1), kind))) == redaction.MEMORY


def test_what_comes_to_nothing_is_bounded_by_run_and_by_month(born, asked, shaped, monkeypatch) -> None:
    trainer = born(failures_per_run=3, rounds_per_month=5)
    with monkeypatch.context() as patch:
        failing(patch)
        for kind, round in (("train", 0), ("score", 0), ("train", 1)):
            assert reason(ask(trainer, asked(blank(shaped, round), kind))) == redaction.MEMORY
        for round in range(1, 4):
            assert reason(ask(trainer, asked(blank(shaped, round)))) == (
                "policy failures_per_run = 3 of site-1 refuses to continue a run of which 3 visits and"
                " scores failed this month; see the site's log, and start another run once the cause is"
                " fixed"
            )
        for _ in range(3):
            assert reason(ask(trainer, asked(blank(shaped), run="f" * 16))) == redaction.MEMORY
    assert "rounds_per_month = 5" in reason(ask(born(rounds_per_month=5), asked(blank(shaped), run="e" * 16)))


def test_what_fails_before_it_is_granted_is_bounded_too(born, asked, shaped, monkeypatch) -> None:
    """Data that cannot be read are read again each time."""

    def fail(*args: object, **more: object) -> None:
        raise DataError("no")

    monkeypatch.setattr(pipeline, "one_client", fail)
    trainer = born(failures_per_run=2)
    for round in range(2):
        assert reason(ask(trainer, asked(blank(shaped, round)))) == redaction.DATA
    assert "policy failures_per_run = 2" in reason(ask(trainer, asked(blank(shaped, 2))))


def test_a_full_disk_is_a_failure_and_the_state_before_stands(born, asked, shaped, monkeypatch) -> None:
    trainer = born()
    first = ask(trainer, asked(broadcast(shaped)))
    undisturbed = (
        ask(trainer, asked(broadcast(shaped, 0), run="f" * 16)),
        ask(trainer, asked(broadcast(shaped, 1), run="f" * 16)),
    )

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert reason(ask(trainer, asked(broadcast(shaped, 1)))) == redaction.FULL
    assert (first, ask(trainer, asked(broadcast(shaped, 1)))) == undisturbed


def test_a_base_whose_files_changed_is_not_loaded(
    asked, source, llama_folder, tmp_path, shaped, caplog
) -> None:
    copy = shutil.copytree(llama_folder, tmp_path / "base")
    trainer = Trainer(trained.settings(copy, source), NAME, tmp_path / "home")
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert reason(ask(trainer, asked())) == redaction.BASE
    assert "base llama has the digest" in caplog.text


def test_the_day_that_a_template_prints_is_the_owners_choice(
    source, llama_folder, tmp_path, shaped, monkeypatch
) -> None:
    copy = shutil.copytree(llama_folder, tmp_path / "base")
    printing = "w{{ strftime_now('%d') }} {% for m in messages %}{{ m.content }} {% endfor %}"
    (copy / "chat_template.jinja").write_text(printing)
    usual = trained.settings(copy, source, dates=["2026-11-27"])
    scoring = usual.scoring.model_copy(update={"template": "chat", "date": "2026-11-28"})
    trainer = Trainer(usual.model_copy(update={"scoring": scoring}), NAME, tmp_path / "home")

    def answer(number: int, kind: str, **data: Any) -> Any:
        plain = tables(data={"template": "chat", **data})
        return ask(trainer, request(copy, blank(shaped), kind, settings=plain, run=f"{number:016x}"))

    assert "loss" in answer(1, "train", date="2026-11-28").metrics
    assert "loss" not in answer(2, "train", date="2026-11-27").metrics
    assert "policy dates = " in reason(answer(3, "train", date="2026-11-29"))
    assert "prints the date, and the run sets none; set data.date" in reason(answer(4, "train"))
    assert isinstance(answer(5, "score"), Scores)
    trainer.settings = usual.model_copy(
        update={"scoring": scoring.model_copy(update={"date": "", "max_tokens": 40})}
    )
    assert "its owner has set none for scores" in reason(answer(6, "score"))


# time ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(asked, shaped) -> Callable[..., wire.Request]:
    """A request whose visit takes ten seconds and more."""
    sleeping.begun.clear()
    sleeping.slept.clear()
    plain = tables(**SLOW)
    return lambda round=0, **more: asked(broadcast(shaped, round), **{"settings": plain, **more})


def test_work_past_its_deadline_is_given_up_and_leaves_nothing(born, asked, slow, shaped) -> None:
    trainer = born()
    ask(trainer, asked())
    assert reason(ask(trainer, slow(deadline=0.4))) == "it did not finish within 0.4 s"
    trainer._worker.submit(int).result(5)  # the thread is free again, long before the visit would end
    assert 0 < len(sleeping.slept) < 100
    assert trainer.store.kept(RUN) == ()


def test_a_newer_question_takes_the_place_of_an_older_one(born, asked, slow, shaped) -> None:
    trainer = born()
    with ThreadPoolExecutor() as pool:
        older = pool.submit(ask, trainer, slow())
        assert sleeping.begun.wait(30)
        assert isinstance(ask(trainer, asked(broadcast(shaped, 1))), Update)
        assert reason(older.result(5)) == "it was cancelled, since a newer request arrived"
    assert len(sleeping.slept) < 400
    assert [kept.round for kept in trainer.store.kept(RUN)] == [1]


def test_two_runs_at_once_take_turns(born, asked, slow, shaped) -> None:
    trainer = born()
    ask(trainer, asked())
    plain = tables(algorithm={"name": SLEEPING}, tuning={"max_steps": 20})
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, trainer, slow(settings=plain))
        assert sleeping.begun.wait(30)
        late = pool.submit(ask, trainer, asked(broadcast(shaped), run="e" * 16, deadline=0.05))
        second = ask(trainer, asked(broadcast(shaped), run="f" * 16))
        assert len(sleeping.slept) == 20  # the first visit went to its end
        assert isinstance(first.result(30), Update)
        assert isinstance(second, Update)
        assert reason(late.result(30)) == "it did not finish within 0.05 s"


def test_joins_are_counted_by_the_hour(llama_folder, source, tmp_path, asked, monkeypatch) -> None:
    site = trained.settings(llama_folder, source)
    site = site.model_copy(update={"trainer": site.trainer.model_copy(update={"joins_per_hour": 2})})
    trainer = Trainer(site, NAME, tmp_path / "home")
    for _ in range(2):
        assert isinstance(ask(trainer, asked()), Ready)
    assert "was asked to join 2 times within an hour" in reason(ask(trainer, asked()))
    now = time.monotonic()
    monkeypatch.setattr(trainers, "monotonic", lambda: now + 3601)
    assert isinstance(ask(trainer, asked()), Ready)


def test_one_question_of_a_run_waits_and_of_a_few_runs(born, asked, slow, shaped) -> None:
    trainer = born()
    ask(trainer, asked())
    with ThreadPoolExecutor(20) as pool:
        working = pool.submit(ask, trainer, slow(settings=tables(**SLOW)))
        assert sleeping.begun.wait(30)
        older = pool.submit(ask, trainer, asked(broadcast(shaped, 0), run="a" * 16))
        while len(trainer._tasks) < 2:
            time.sleep(0.01)
        waiting = trainer._tasks["a" * 16]
        newer = pool.submit(ask, trainer, asked(broadcast(shaped, 1), run="a" * 16))
        assert reason(older.result(10)) == "it was cancelled, since a newer request arrived"  # at once
        assert waiting.request.broadcast is None
        others = [pool.submit(ask, trainer, asked(broadcast(shaped), run=run * 16)) for run in "bcd"]
        while len(trainer._tasks) < 5:
            time.sleep(0.01)
        said = reason(ask(trainer, asked(broadcast(shaped), run="e" * 16)))
        assert said == "site-1 is working for one run and 4 others are queued; try again later"
        assert not working.done()
        trainer.stop()
        for each in (working, newer, *others):
            assert reason(each.result(30)) == "it was cancelled, since a newer request arrived"


def test_the_same_question_waits_for_the_work_under_way(born, slow) -> None:
    trainer = born()
    question = slow(settings=tables(algorithm={"name": SLEEPING}, tuning={"max_steps": 20}), deadline=60.0)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(trainer.handle, wire.encode_request(question))
        assert sleeping.begun.wait(30)
        second = pool.submit(trainer.handle, wire.encode_request(replace(question, cohort=4)))
        assert first.result(30) == second.result(30)
    assert isinstance(wire.decode_reply(first.result()), Update)
    assert len(sleeping.slept) == 20  # one visit


def test_who_asks_again_is_waited_for_longer(born, asked, slow) -> None:
    trainer = born()
    ask(trainer, asked())
    question = slow(settings=tables(algorithm={"name": SLEEPING}, tuning={"max_steps": 40}), deadline=0.5)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, trainer, question)
        assert sleeping.begun.wait(30)
        second = pool.submit(ask, trainer, replace(question, deadline=60.0))
        assert reason(first.result(30)) == "it did not finish within 0.5 s"
        assert isinstance(second.result(30), Update)


def test_neither_joining_nor_a_leftover_nor_what_is_refused_disturbs_the_work_under_way(
    born, asked, slow, shaped
) -> None:
    trainer = born()
    plain = tables(algorithm={"name": SLEEPING}, tuning={"max_steps": 40})
    ask(trainer, asked())
    with ThreadPoolExecutor() as pool:
        working = pool.submit(ask, trainer, slow(2, settings=plain))
        assert sleeping.begun.wait(30)
        assert isinstance(ask(trainer, asked()), Ready)
        said = reason(ask(trainer, asked(broadcast(shaped, 1))))
        assert said.startswith("site-1 is at round 3 of this run, and the request is for round 2")
        assert "policy min_cohort = 2" in reason(ask(trainer, asked(broadcast(shaped, 3), cohort=1)))
        assert not working.done()
        assert isinstance(working.result(30), Update)


# the process -----------------------------------------------------------------------------------------------


@pytest.fixture
def home() -> Iterator[Path]:
    """A short one, as a socket needs."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "home"


def site_file(folder: Path, base: Path, source: Path) -> Path:
    path = folder / "site.toml"
    bases = f'[[bases]]\nname = "llama"\nfolder = "{base}"\nsha256 = "{digest(base)}"\n'
    path.write_text(f'{bases}[data]\nsource = "{source}"\n[trainer]\ndevice = "cpu"\n')
    return path


def started(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "shepherd.silos.site.trainer", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def test_the_process_answers_on_its_socket_until_it_is_told_to_end(
    home, tmp_path, asked, llama_folder, source
) -> None:
    with started(site_file(tmp_path, llama_folder, source), "--name", NAME, "--home", home) as process:
        try:
            while not (home / "trainer.sock").exists() and process.poll() is None:
                time.sleep(0.05)
            usual = tables(data={"max_tokens": 128}, tuning={"batch_size": 8})
            reply = local.ask(local.address(home), wire.encode_request(asked(settings=usual)), 60)
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert isinstance(wire.decode_reply(reply), Ready)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert not (home / "trainer.sock").exists()
    told = (home / "trainer.log").read_text()
    assert "site.toml is read only at the start; restart the site after changing it" in told
    assert re.search(r"run 0123456789abcdef, round 1, join: answered in [\d.]+ s: \d+ bytes", told)


def test_a_trainer_ends_with_whoever_started_it() -> None:
    stopped = threading.Event()
    end = threading.Thread(target=trainers._stop_with_parent, args=(os.getppid(), stopped))
    end.start()
    end.join(1.5)
    assert not stopped.is_set()
    stopped.set()
    orphaned = threading.Event()
    trainers._stop_with_parent(os.getppid() + 1, orphaned)
    assert orphaned.is_set()


def test_a_site_file_that_cannot_be_used_ends_the_process_with_a_sentence(home, tmp_path, capsys) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert trainers.main([str(tmp_path / "none.toml"), "--name", NAME, "--home", str(home)]) == 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "none.toml cannot be read (No such file or directory); check the path" in capsys.readouterr().err
