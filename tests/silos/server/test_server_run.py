"""A run at the server, with sites that are functions: kept, told, gone on with."""

from __future__ import annotations

import base64
import math
import multiprocessing
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.masking import Room
from tests.silos.server.posts import Letters, Site, failing, honest, joined, silent, update

from benchmarks import masking
from shepherd import plugins
from shepherd.config import PartTable, validated
from shepherd.core import Adapter, Context, Payload, Poisson, Seeded, ServerState, Spending
from shepherd.errors import FolderError
from shepherd.privacy import accountant
from shepherd.rounds import context_of, start
from shepherd.rounds.loop import bytes_of_round
from shepherd.run import checkpoint, claims, ledger
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.log import read_rows
from shepherd.settings import RunSettings
from shepherd.silos.coordinator.status_update import _check_rows
from shepherd.silos.protocol import jobspec, wire
from shepherd.silos.protocol.jobspec import JobSpec
from shepherd.silos.protocol.wire import Request, Scores
from shepherd.silos.server import run_status, server_run
from shepherd.silos.server.server_run import ServerRun

A, B = "q.lora_A.weight", "q.lora_B.weight"
START = ServerState(round=0, adapter=Adapter({A: np.ones((2, 3)), B: np.zeros((3, 2))}))


def order(sites: tuple[str, ...] = ("a", "b"), max_in_flight: int = 4, **federation: Any) -> JobSpec:
    settings = {
        "model": {"base": "tiny"},
        "data": {"source": "world"},
        "federation": {"rounds": 3, **federation},
        "silos": {"deadline_s": 5.0, "max_in_flight": max_in_flight},
        "tuning": {"max_steps": 1},
    }
    return JobSpec(
        run="0" * 16, base="b" * 64, fingerprint="f", version="0.1.0", sites=sites, settings=settings
    )


def given(tmp_path: Path, state: ServerState = START) -> Path:
    notes: dict[str, Any] = {"positions": {}, "row": None, "base": "f"}
    return checkpoint.save(tmp_path / "given", Checkpoint(state=state, notes=notes), keep=1)


def served(tmp_path: Path, post: Letters, asked: JobSpec | None = None) -> ServerRun:
    made = ServerRun(asked or order(), tmp_path / "home", given(tmp_path) if post else None, post)
    made.run()
    return made


def both() -> Letters:
    return Letters({"a": honest("a", 1.0), "b": honest("b", 2.0, weight=3.0)})


def told(made: ServerRun, **asked: Any) -> dict[str, Any]:
    return made.snapshot({"rows": 0, "said": 0, **asked})


def test_a_run_goes_through_its_rounds_and_keeps_them(tmp_path: Path) -> None:
    made = served(tmp_path, both())
    answer = told(made)

    assert answer["outcome"] == {"finished": True}
    assert [row["round"] for row in answer["rows"]] == [0, 1, 2, 3]
    assert answer["rows"] == read_rows(tmp_path / "home")
    last = checkpoint.load(tmp_path / "home" / "checkpoints" / "round-00003")
    # by hand: each round adds the weighted mean (1 * 1 + 3 * 2) / 4, but neither is more than half
    np.testing.assert_allclose(last.state.adapter[A], 1 + 3 * 1.5)
    assert last.notes["base"] == "f"
    assert last.notes["row"] == answer["rows"][-1]


WEIGHED: dict[str, Any] = {
    "federation": {"rounds": 1, "weights": "size", "quorum": 0.5},
    "tuning": {"max_steps": 1, "batch_size": 8},
    "transforms": [{"name": "fixed_point", "norm": 10.0, "bits": 16, "largest_weight": 2000.0}],
    "secure": {"ring_bits": 32},
}


def weighed(tmp_path: Path, sizes: dict[str, int]) -> tuple[dict[str, Any], Room]:
    """What is told of a secure run over sites of these sizes, and all that was asked."""
    sites = {
        name: masking.Site(name, tmp_path / name, tuple(sizes), WEIGHED, bits=4, examples=size)
        for name, size in sizes.items()
    }
    asked, room = order(tuple(sizes)), Room(sites)
    asked = replace(asked, settings={**asked.settings, **WEIGHED})
    method = plugins.method(validated(RunSettings, asked.settings, "the test"))
    made = ServerRun(asked, tmp_path / "home", given(tmp_path, start(method, START.adapter)), room)
    made.run()
    return told(made), room


@pytest.mark.parametrize("heavy", ["a", "d"])
def test_a_site_too_heavy_for_a_secure_sum_keeps_no_other_out(tmp_path: Path, heavy: str) -> None:
    """Whether it joins first or last; it alone says how many examples it has."""
    sizes = {name: 2000 if name == heavy else 50 + 10 * number for number, name in enumerate("abcd")}
    answer, _ = weighed(tmp_path, sizes)
    assert answer["outcome"] == {"finished": True}
    row = answer["rows"][-1]
    assert row["summed"] == [name for name in sizes if name != heavy]
    assert re.match(rf"{heavy} would be 9\d% of a sum with the lightest clients", row["failures"][heavy])


def test_noise_on_pairs_of_answers_is_refused_before_a_site_is_asked(tmp_path: Path) -> None:
    asked = order(weights="equal")
    tables = {"privacy": {"examples": {"norm": 1.0, "noise": 1.0}}, "tuning": {"objective": {"name": "dpo"}}}
    post = both()
    made = served(tmp_path, post, replace(asked, settings={**asked.settings, **tables}))
    made.run()
    assert "protects single examples, and the objective draws 2 together" in told(made)["outcome"]["error"]
    assert not post.requests


def test_a_secure_run_whose_sums_would_show_a_site_trains_nobody(tmp_path: Path) -> None:
    answer, room = weighed(tmp_path, {"a": 2000, "b": 60, "c": 70})
    assert "a would be 94% of a sum with the lightest clients" in str(answer["outcome"])
    assert "train" not in {kind for kind, _ in room.asked}


def test_a_largest_weight_far_above_the_sites_is_told(tmp_path: Path) -> None:
    answer, _ = weighed(tmp_path, dict.fromkeys("abc", 20))
    assert answer["outcome"] == {"finished": True}
    assert "set it near 20" in "".join(answer["said"])


def unequal(**adapter: Any) -> JobSpec:
    asked = order(("a", "b"))
    more = {"adapter": {"rank": 2, **adapter}, "aggregation": {"name": "product"}}
    return replace(asked, settings={**asked.settings, **more})


def test_a_site_trains_the_rank_that_it_said_when_it_joined(tmp_path: Path) -> None:
    post = Letters({"a": honest("a", rank=1), "b": honest("b", rank=2)})
    answer = told(served(tmp_path, post, unequal(min_rank=1)))

    assert answer["outcome"] == {"finished": True}
    assert answer["said"] == ["a trains 1 of the 2 ranks"]
    assert [row.get("ranks") for row in answer["rows"]] == [None, *3 * [{"a": 1}]]
    assert [row["failures"] for row in answer["rows"][1:]] == [{}, {}, {}]
    sent = 4 * (3 + 3)  # a factor of one rank each
    assert {row["bytes_up"] for row in answer["rows"][1:]} == {sent + 2 * sent}


def test_ranks_that_a_site_does_not_train_stay_in_its_product(tmp_path: Path) -> None:
    asked = unequal(min_rank=1)
    once = replace(asked, settings={**asked.settings, "federation": {"rounds": 1}})
    served(tmp_path, Letters({"a": honest("a", rank=1), "b": honest("b", rank=2)}), once)
    after = checkpoint.load(tmp_path / "home" / "checkpoints" / "round-00001").state.adapter
    assert after[A].shape == (2, 3)
    # by hand: rows of B_a are (1, 0) and of A_a 2 and 1, those of B_b (1, 1) and of A_b 2 and 2
    np.testing.assert_allclose(after[B] @ after[A], np.full((3, 3), (2 + 4) / 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("adapter", "rank", "said"),
    [
        ({"min_rank": 2}, 1, "it would train rank 1, and adapter.min_rank = 2 of rank 2 is asked"),
        ({"min_rank": 1}, 3, "it would train rank 3, and adapter.min_rank = 1 of rank 2 is asked"),
        ({}, 1, "it would train rank 1, and rank 2 is asked"),
        ({"ranks": {"b": 1}}, 2, "it would train rank 2, and rank 1 is asked"),
    ],
)
def test_a_site_that_says_another_rank_than_it_may_does_not_join(tmp_path, adapter, rank, said) -> None:
    post = Letters({"a": honest("a"), "b": honest("b", rank=rank)})
    answer = told(served(tmp_path, post, unequal(**adapter)))
    assert answer["said"] == [f"b: {said}; check its policy.max_rank"]
    assert {row["failures"]["b"] for row in answer["rows"][1:]} == {f"{said}; check its policy.max_rank"}


def test_an_update_of_another_rank_than_a_site_said_is_a_counted_failure(tmp_path: Path) -> None:
    said, sent = honest("b", rank=2), honest("b", rank=1)
    changed = lambda request: (said if request.kind == "join" else sent)(request)  # noqa: E731
    rows = told(served(tmp_path, Letters({"a": honest("a"), "b": changed}), unequal(min_rank=1)))["rows"]
    assert all("shape" in row["failures"]["b"] for row in rows[1:])


def test_a_row_says_what_the_sites_said(tmp_path: Path) -> None:
    row = told(served(tmp_path, both()))["rows"][2]

    assert row["weights"] == {"a": 0.5, "b": 0.5}
    assert row["capped"] == ["b"]
    assert row["loss"] == 1.5
    assert row["examples"] == 8
    assert row["taken"] == {"a": 8, "b": 8}
    assert row["coverage"] == {"a": 0.8, "b": 0.8}
    assert row["failures"] == {}
    # qa: (2 + 4) nats over 8 tokens; each site's own: 3 nats on one token; of a site the mean over its five
    assert row["heldout"]["category"] == {"a": 3.0, "b": 3.0, "qa": 0.75}
    assert row["heldout"]["loss"] == pytest.approx(1.2)
    assert row["heldout"]["client"] == {"a": 1.0, "b": 1.4}
    assert row["heldout"]["left_out"] == {}


def test_sites_that_keep_their_numbers_back_still_count(tmp_path: Path) -> None:
    def quiet(request: Request) -> bytes:
        if request.kind == "score":
            return failing("b")(request) or b""
        if request.kind == "join":
            return wire.encode_reply(joined("b", request))
        return wire.encode_reply(replace(update(request, "b", 2.0, 3.0), metrics={}))

    made = served(tmp_path, Letters({"a": honest("a"), "b": quiet}))
    row = told(made)["rows"][1]

    assert row["weights"] == {"a": 0.5, "b": 0.5}
    assert row["loss"] == 1.0
    assert row["losses"] == {"a": 1.0}
    assert row["taken"] == {"a": 4, "b": 0}
    assert row["heldout"]["left_out"] == {"b": "out of memory"}


def test_it_goes_on_after_its_last_checkpoint_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = served(tmp_path / "whole", both())
    served(tmp_path / "parts", both(), order(rounds=1))
    post = both()
    again = ServerRun(order(), tmp_path / "parts" / "home", tmp_path / "parts/given/round-00000", post)
    again.run()

    trained = [request.round for request in post.requests if request.kind == "train"]
    assert trained == [1, 2]
    assert [row["round"] for row in told(again)["rows"]] == [0, 1, 2, 3]
    ends = [checkpoint.load(made.home / "checkpoints" / "round-00003").state for made in (whole, again)]
    assert ends[0].adapter == ends[1].adapter


def test_a_server_that_lost_its_disk_goes_on_with_what_the_job_brought(tmp_path: Path) -> None:
    served(tmp_path / "old", both(), order(rounds=2))
    post = both()
    brought = tmp_path / "old" / "home" / "checkpoints" / "round-00002"
    fresh = ServerRun(order(), tmp_path / "new", brought, post)
    fresh.run()

    assert [request.round for request in post.requests if request.kind == "train"] == [2]
    assert [row["round"] for row in told(fresh)["rows"]] == [2, 3]
    # whoever knows rounds 0 to 2 hears of the third, though the server has fewer rows than that
    assert [row["round"] for row in told(fresh, rows=3)["rows"]] == [3]
    assert (told(fresh)["round"], told(fresh)["count"]) == (3, 4)


def test_a_round_without_quorum_ends_the_job_and_keeps_the_rounds_before(tmp_path: Path) -> None:
    calls = []

    def dies_later(request: Any) -> bytes | None:
        calls.append(request.kind)
        return honest("b")(request) if calls.count("train") < 2 else silent(request)

    made = served(tmp_path, Letters({"a": honest("a"), "b": dies_later}), order(quorum=1.0))
    outcome = told(made)["outcome"]

    assert outcome["kind"] == "QuorumNotMet"
    assert "round 2" in outcome["error"]
    assert "b: it did not reply within 5 s" in outcome["error"]
    assert checkpoint.latest(tmp_path / "home" / "checkpoints") == tmp_path / "home/checkpoints/round-00001"


def test_failures_are_counted_by_name(tmp_path: Path) -> None:
    post = Letters({"a": honest("a"), "b": failing("b", "policy algorithms of b refuses fedavg")})
    rows = told(served(tmp_path, post))["rows"]
    assert [row.get("failures") for row in rows[1:]] == 3 * [{"b": "policy algorithms of b refuses fedavg"}]


def test_nonsense_from_a_site_is_a_counted_failure_and_never_in_the_mean(tmp_path: Path) -> None:
    def nonsense(request: Request) -> bytes:
        if request.kind != "train":
            return honest("b")(request) or b""
        good = update(request, "b", 2.0)
        names = dict(good.delta)
        wrong = {
            0: replace(good, delta=Adapter({**names, A: np.full((2, 3), np.nan)})),
            1: replace(good, delta=Adapter({**names, A: np.ones((3, 3))})),
            2: replace(good, round=0),
            3: replace(good, weight=float("inf")),
            4: replace(good, delta=Adapter({A: names[A]})),
        }
        return wire.encode_reply(wrong[request.round])

    made = served(tmp_path, Letters({"a": honest("a", 1.0), "b": nonsense}), order(rounds=5))

    reasons = [row["failures"]["b"] for row in told(made)["rows"][1:]]
    for reason, word in zip(reasons, ("finite", "shape", "round 1", "weight", "missing"), strict=True):
        assert word in reason
    last = checkpoint.load(tmp_path / "home" / "checkpoints" / "round-00005")
    np.testing.assert_allclose(last.state.adapter[A], 1 + 5 * 1.0)


def test_what_a_site_calls_its_tensors_reaches_no_log_and_no_terminal(tmp_path: Path) -> None:
    def shouting(request: Request) -> bytes:
        if request.kind != "train":
            return honest("b")(request) or b""
        loud = Adapter({f"x\x1b[2J\n{'y' * 10**5}": np.ones(1)})
        return wire.encode_reply(replace(update(request, "b", 2.0), delta=loud))

    post = Letters({"a": honest("a"), "b": shouting})
    answer = told(served(tmp_path, post, order(quorum=1.0)))
    rows = told(served(tmp_path / "on", post))["rows"]

    for said in (answer["outcome"]["error"], *(row["failures"]["b"] for row in rows[1:])):
        assert "cannot be read" in said
        assert said.isprintable()
        assert len(said) < 1000


def test_it_tells_only_what_is_new(tmp_path: Path) -> None:
    made = served(tmp_path, both())
    assert [row["round"] for row in told(made, rows=3)["rows"]] == [3]
    assert told(made, rows=4)["count"] == 4


def test_a_long_log_is_told_in_parts_and_the_outcome_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_status, "MAX_ROWS_PER_ANSWER", 2)
    made = served(tmp_path, both())
    parts = [told(made, rows=known) for known in (0, 2, 4)]
    assert [[row["round"] for row in part["rows"]] for part in parts] == [[0, 1], [2, 3], []]
    assert [part["outcome"] for part in parts] == [None, {"finished": True}, {"finished": True}]


def test_nothing_is_told_of_rounds_before_the_log_is_open(tmp_path: Path) -> None:
    spoilt = given(tmp_path)
    (spoilt / "state.json").write_text("{}")
    made = ServerRun(order(), tmp_path / "home", spoilt, both())
    made.run()
    answer = told(made)
    assert (answer["opened"], answer["count"], answer["rows"]) == (False, 0, [])
    assert "cut or changed" in answer["outcome"]["error"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**308, 1.7e308, 2e12], ids="{:g}".format)
def test_numbers_that_cannot_be_counted_with_do_not_silence_the_run(tmp_path: Path, number: float) -> None:
    """What is told while a round goes on is not checked yet."""
    progress = []

    def strange(request: Request) -> bytes:
        if request.kind != "train":
            return honest("b")(request) or b""
        metrics = {"loss": number, "tokens": number, "examples": number}
        return wire.encode_reply(replace(update(request, "b", 2.0), metrics=metrics))

    def last(request: Request) -> bytes:
        if request.kind == "train":
            progress.append(told(made)["progress"])
        return honest("c")(request) or b""

    post = Letters({"a": honest("a"), "b": strange, "c": last})
    made = ServerRun(order(("a", "b", "c"), max_in_flight=2), tmp_path / "home", given(tmp_path), post)
    made.run()

    rows = told(made)["rows"]
    assert all("metric" in row["failures"]["b"] for row in rows[1:])
    known = [(each["clients_done"], each["tokens"], each["loss"]) for each in progress]
    assert known == 3 * [(2, 8, 0.0)]  # a loss of one site alone is not told before its round is finished


@pytest.mark.parametrize(
    "categories",
    [
        {},
        {"qa": (0.0, 0)},
        {"qa": (math.nan, 3)},
        {"qa": (math.inf, 3), "none": (1.0, 0)},
        {"qa": (17 * 10**307, 1), "none": (17 * 10**307, 1)},
        {"qa": (1.0, 2**63 - 1), "none": (-1.0, 3)},
    ],
)
def test_scores_of_nothing_or_nonsense_are_left_out(
    tmp_path: Path, categories: dict[str, tuple[float, int]]
) -> None:
    def odd(request: Request) -> bytes:
        if request.kind != "score":
            return honest("b")(request) or b""
        return wire.encode_reply(Scores(client="b", round=request.round, categories=categories))

    rows = told(served(tmp_path, Letters({"a": honest("a"), "b": odd})))["rows"]
    assert rows[-1]["heldout"]["category"] == {"a": 3.0, "qa": 0.5}
    assert rows[-1]["heldout"]["client"] == {"a": 1.0}
    assert "b" in rows[-1]["heldout"]["left_out"]
    alone = told(served(tmp_path / "alone", Letters({"b": odd}), order(("b",))))["rows"]
    assert [row.get("heldout") for row in alone] == 4 * [None]


@pytest.mark.parametrize("error", [ZeroDivisionError("HUSH"), ValueError("HUSH\nHUSH")])
def test_a_fault_that_nobody_knows_is_told_by_its_class_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Untold, the job would die of it, and each new job too, since sites give the same answer again."""

    def faulty(request: Request) -> bytes | None:
        if request.kind == "train" and request.round == 1:
            raise error
        return honest("a")(request)

    outcome = told(made := served(tmp_path, Letters({"a": faulty})))["outcome"]

    assert type(error).__name__ in outcome["error"]
    assert "HUSH" not in f"{outcome}{caplog.text}"
    assert f"{type(error).__name__} at " in caplog.text
    assert "test_server_run.py" in caplog.text  # where it was
    assert [row["round"] for row in told(made)["rows"]] == [0, 1]


def test_clients_that_fail_to_join_are_not_counted_as_done(tmp_path: Path) -> None:
    done = []

    def first(request: Request) -> bytes | None:
        if request.kind == "train":
            done.append(told(made)["progress"]["clients_done"])
        return honest("a")(request)

    post = Letters({"a": first, "b": failing("b")})
    made = ServerRun(order(), tmp_path / "home", given(tmp_path), post)
    made.run()
    assert done == [0, 0, 0]


def test_its_checkpoint_can_be_fetched_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_run, "CHUNK_BYTES", 100)
    made = served(tmp_path, both())
    copy = tmp_path / "copy" / "round-00003"
    copy.mkdir(parents=True)
    for name in checkpoint.FILES:
        data, size = b"", 1
        while len(data) < size:
            part = told(made, state={"round": 3, "file": name, "offset": len(data)})["state"]
            data, size = data + base64.b64decode(part["data"]), part["of"]
        (copy / name).write_bytes(data)

    assert (
        checkpoint.load(copy).state.adapter
        == checkpoint.load(tmp_path / "home" / "checkpoints" / "round-00003").state.adapter
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"round": 1, "file": "tensors.safetensors", "offset": 0},  # deleted by now
        {"round": 3, "file": "../../../etc/passwd", "offset": 0},
        {"round": 3, "file": "/etc/passwd", "offset": 0},
    ],
)
def test_nothing_else_can_be_fetched(tmp_path: Path, asked: dict[str, Any]) -> None:
    assert told(served(tmp_path, both()), state=asked)["state"] is None


def _hold(home: Path, ready: Any, end: Any) -> None:
    with server_run._lock_run(home):
        ready.set()
        end.wait(20)


def test_one_process_at_a_time_goes_through_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_run, "LOCK_TIMEOUT_S", 0.5)
    spawn = multiprocessing.get_context("spawn")
    ready, end = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(tmp_path / "home", ready, end))
    other.start()
    try:
        assert ready.wait(20)
        outcome = told(served(tmp_path, both()))["outcome"]
        assert "another process runs the rounds" in outcome["error"]
    finally:
        end.set()
        other.join()
    assert told(served(tmp_path / "later", both()))["outcome"] == {"finished": True}


# what no order and no site can have ------------------------------------------------------------------------


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("quorum", [0.05, 0.5])
def test_the_update_of_one_site_is_no_mean(tmp_path: Path, quorum: float) -> None:
    """A lead names one site that is there and others that are not, or are off: nobody gets its update."""
    sites = ("victim", *(f"ghost{number}" for number in range(9)))
    post = Letters({"victim": honest("victim", 7.0, min_cohort=2)})
    made = served(tmp_path, post, order(sites, quorum=quorum))

    assert told(made)["outcome"]["kind"] == "QuorumNotMet"
    assert [request.cohort for request in post.requests if request.kind == "train"] == [1]
    assert [row["round"] for row in told(made)["rows"]] == [0]
    assert names_in(tmp_path / "home" / "checkpoints") == []
    assert told(made, state={"round": 1, "file": "tensors.safetensors", "offset": 0})["state"] is None


def test_a_mean_of_fewer_than_a_member_asks_for_is_kept_by_nobody(tmp_path: Path) -> None:
    """Three are asked and told so; two fail after that."""
    sites = {"a": honest("a", 7.0, min_cohort=2), **{name: dying(name) for name in "bc"}}
    post = Letters(sites)
    made = served(tmp_path, post, order(("a", "b", "c"), quorum=0.05))

    assert [request.cohort for request in post.requests if request.kind == "train"] == [3]
    outcome = told(made)["outcome"]
    assert outcome["kind"] == "QuorumNotMet"
    assert (
        "client a requires a mean of at least 2 (its min_cohort), so this mean is discarded"
        in outcome["error"]
    )
    assert "b: out of memory; c: out of memory" in outcome["error"]
    assert [row["round"] for row in told(made)["rows"]] == [0]
    assert told(made)["progress"]["loss"] == 0.0
    assert names_in(tmp_path / "home" / "checkpoints") == []
    broadcast = [request for request in post.requests if request.broadcast and request.round > 0]
    assert broadcast == []


def dying(name: str) -> Any:
    def site(request: Request) -> bytes | None:
        return failing(name)(request) if request.kind == "train" else honest(name, min_cohort=2)(request)

    return site


def test_what_a_site_asks_for_itself_stops_no_round_that_it_is_not_in(tmp_path: Path) -> None:
    sites = {"a": honest("a", min_cohort=2), "b": honest("b", min_cohort=2), "c": honest("c", min_cohort=9)}
    made = served(tmp_path, Letters(sites), order(("a", "b", "c")))
    rows = told(made)["rows"]
    assert told(made)["outcome"] == {"finished": True}
    assert ["its min_cohort is 9 and 3 clients were asked" in row["failures"]["c"] for row in rows[1:]] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ((), "no site"),
        (("a", "b", "a"), "'a' is named twice"),
        (("a", "b", "ghost"), "'ghost' has never connected to this server"),
        (("a", "B"), "'B' has never connected"),
    ],
)
def test_an_order_names_each_site_of_the_federation_once(
    tmp_path: Path, sites: tuple[str, ...], words: str
) -> None:
    post = both()
    made = ServerRun(order(sites), tmp_path / "home", given(tmp_path), post, known={"a", "b", "off"})
    made.run()
    assert words in told(made)["outcome"]["error"]
    assert (told(made)["opened"], post.asked) == (False, [])
    assert not (tmp_path / "home").exists()


def test_a_site_that_is_known_may_be_off(tmp_path: Path) -> None:
    made = ServerRun(
        order(("a", "b", "off")), tmp_path / "home", given(tmp_path), both(), known={"a", "b", "off"}
    )
    made.run()
    assert told(made)["outcome"] == {"finished": True}


@pytest.mark.parametrize(
    "table",
    [
        {"algorithm": {"name": "this"}},
        {"algorithm": {"name": "tests.silos.server.bomb"}},
        {"transforms": [{"name": "clip"}, {"name": "tests.silos.server.bomb"}]},
    ],
)
def test_no_module_from_outside_is_imported_for_an_order(tmp_path: Path, table: dict[str, Any]) -> None:
    asked = order()
    asked = replace(asked, settings={**asked.settings, **table})
    before = set(sys.modules)
    made = served(tmp_path, both(), asked)
    assert "use one of this package" in told(made)["outcome"]["error"]
    assert set(sys.modules) == before
    assert not (tmp_path / "home").exists()


def test_no_order_makes_one_site_more_than_half(tmp_path: Path) -> None:
    outcome = told(served(tmp_path, both(), order(max_share=0.9)))["outcome"]
    assert "federation.max_share = 0.9" in outcome["error"]


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"algorithm": {"name": "fednova"}}, "'fednova' is right only for local steps of plain SGD"),
        ({"algorithm": {"name": "scaffold"}}, "'scaffold' counts each client the same"),
        (
            {"selection": {"name": "size_weighted", "share": 0.5}},
            "'size_weighted'|\"size_weighted\" draws clients by their size",
        ),
    ],
)
def test_parts_that_are_not_sound_together_are_refused_before_any_site_is_asked(
    tmp_path: Path, tables: dict[str, Any], why: str
) -> None:
    post, asked = both(), order()
    outcome = told(served(tmp_path, post, replace(asked, settings={**asked.settings, **tables})))["outcome"]
    assert re.search(why, outcome["error"])
    assert not post.asked


def test_a_weight_beyond_the_visit_is_a_failure(tmp_path: Path) -> None:
    sites = {"a": honest("a", 1.0), "b": honest("b", 1.0), "evil": honest("evil", 1e3, weight=1e12)}
    rows = told(served(tmp_path, Letters(sites), order(("a", "b", "evil"))))["rows"]
    assert [list(row["failures"]) for row in rows[1:]] == [["evil"]] * 3
    assert "from 1 to 63" in rows[1]["failures"]["evil"]  # a step of 32, which may be taken with a short one


def test_two_checkpoints_stay_whatever_the_run_file_says(tmp_path: Path) -> None:
    asked = order(rounds=5)
    asked = replace(asked, settings={**asked.settings, "checkpoints": {"keep": 10**9}})
    served(tmp_path, both(), asked)
    assert names_in(tmp_path / "home" / "checkpoints") == ["round-00004", "round-00005"]


NAMES = tuple("abcdefgh")


def eight() -> Letters:
    return Letters({name: honest(name) for name in NAMES})


def cohorts(made: ServerRun) -> list[list[str]]:
    return [row["cohort"] for row in told(made)["rows"][1:]]


def test_the_cohorts_come_from_a_secret_of_the_server_that_nothing_it_sends_or_tells_holds(
    tmp_path: Path,
) -> None:
    """Nobody who has the order, a request or a checkpoint can tell who is asked next (law 7)."""
    asked = order(NAMES, share=0.5, rounds=6)
    posts = [eight() for _ in range(3)]
    made = [served(tmp_path / str(k), post, asked) for k, post in enumerate(posts)]
    assert len({str(cohorts(each)) for each in made}) == 3  # 70 sets a round: by chance alike once in 1e11
    for k, post in enumerate(posts):
        home = tmp_path / str(k) / "home"
        text = (home / server_run.SECRET_FILE).read_text()
        assert len(text) == 64
        assert (home / server_run.SECRET_FILE).stat().st_mode & 0o077 == 0
        sent = [wire.encode_request(request) for request in post.requests]
        files = [path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "secret"]
        everything = b"".join([*sent, *files, str(told(made[k])).encode()])
        assert text.encode() not in everything
        assert str(int(text, 16)).encode() not in everything
        assert all("seed" not in request.settings for request in post.requests)


def test_a_job_that_goes_on_draws_the_same_cohorts(tmp_path: Path) -> None:
    """Law 3, at a server that still has its folder."""
    asked = order(NAMES, share=0.5, rounds=6)
    whole = served(tmp_path / "whole", eight(), asked)

    (tmp_path / "cut" / "home").mkdir(parents=True)
    secret = (tmp_path / "whole" / "home" / server_run.SECRET_FILE).read_text()
    (tmp_path / "cut" / "home" / server_run.SECRET_FILE).write_text(secret)
    broken = Letters({name: failing_at(name, 3) for name in NAMES})
    first = served(tmp_path / "cut", broken, asked)
    assert "error" in told(first)["outcome"]
    second = ServerRun(asked, tmp_path / "cut" / "home", None, eight())
    second.run()
    assert cohorts(second) == cohorts(whole)


def failing_at(name: str, round: int) -> Callable[[Request], bytes | None]:
    def site(request: Request) -> bytes | None:
        dies = request.kind == "train" and request.round == round
        return None if dies else honest(name)(request)

    return site


def test_a_damaged_secret_is_said(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / server_run.SECRET_FILE).write_text("cut")
    outcome = told(served(tmp_path, both()))["outcome"]
    assert "secret was cut or changed; delete it" in outcome["error"]


# --- where noise hides the sites


def noisy_order(**privacy: float) -> JobSpec:
    asked = order(NAMES, weights="equal")
    tables = {
        "transforms": [{"name": "gaussian", "noise": 3.0}],
        "selection": {"name": "poisson", "share": 0.5},
        "privacy": {"delta": 1e-3, **privacy},
    }
    return replace(asked, settings={**asked.settings, **tables})


ENCODINGS: list[dict[str, Any]] = [
    {"name": "float16"},
    {"name": "quantise", "bits": 8},
    {"name": "quantise", "bits": 4},
    {"name": "quantise", "bits": 1},
    {"name": "top_k", "share": 0.3, "feedback": False},
]


@pytest.mark.parametrize("table", ENCODINGS, ids=str)
def test_the_ledger_counts_the_bytes_of_the_tensors_that_sites_send(tmp_path: Path, table: Any) -> None:
    """A message is 8 bytes, a header of the length that these say, and the tensors, one after another."""
    encoding = plugins.transform([PartTable(**table)])
    sent: dict[int, list[int]] = {1: [], 2: [], 3: []}

    def site(name: str, step: float) -> Site:
        def answer(request: wire.Request) -> bytes | None:
            if request.kind != "train":
                return honest(name)(request)
            assert request.broadcast is not None
            made, at = update(request, name, step), request.broadcast
            encoded, _ = encoding.at_client(made, at.transforms, Seeded(1), at, Payload())
            message = wire.encode_reply(encoded)
            sent[request.round + 1].append(len(message) - 8 - int.from_bytes(message[:8], "little"))
            return message

        return answer

    made = order(weights="equal")
    made = replace(made, settings={**made.settings, "transforms": [table]})
    begun = replace(START, transforms=encoding.init(Context()))
    run = ServerRun(
        made, tmp_path / "home", given(tmp_path, begun), Letters({"a": site("a", 1.0), "b": site("b", 2.0)})
    )
    run.run()
    rows = told(run)["rows"]
    assert [row["failures"] for row in rows[1:]] == [{}, {}, {}]
    assert [row["bytes_up"] for row in rows[1:]] == [sum(sent[number]) for number in (1, 2, 3)]
    assert all(len(each) == 2 for each in sent.values())
    settings = validated(RunSettings, made.settings, "the order")
    _, each = bytes_of_round(plugins.method(settings), begun, [None])  # what a simulation says beforehand
    assert {each} == {float(size) for sizes in sent.values() for size in sizes}


def served_noisily(tmp_path: Path, post: Letters, asked: JobSpec) -> ServerRun:
    settings = validated(RunSettings, asked.settings, "the order")
    method = plugins.method(settings)
    context = context_of(settings, plugins.selection(settings), START.adapter, len(NAMES))
    made = ServerRun(asked, tmp_path / "home", given(tmp_path, start(method, START.adapter, context)), post)
    made.run()
    return made


def test_under_noise_a_row_says_what_is_spent_and_nothing_of_a_site(tmp_path: Path) -> None:
    post = Letters({name: honest(name, 0.1) for name in NAMES})
    made = served_noisily(tmp_path, post, noisy_order())
    answer = told(made)
    assert answer["outcome"] == {"finished": True}
    assert [set(row) for row in answer["rows"]] == [{"round"}, *[{"round", "privacy"}] * 3]
    spent = [row["privacy"]["epsilon"] for row in answer["rows"][1:]]
    assert 0 < spent[0] < spent[1] < spent[2]
    assert answer["progress"]["clients_done"] == 0
    assert "score" not in {kind for kind, _ in post.asked}  # a site's scores are its own
    assert _check_rows(answer["rows"], 0, 3) == answer["rows"]
    again = served_noisily(tmp_path / "again", post, noisy_order())
    assert bits(again) != bits(made)


def bits(made: ServerRun) -> bytes:
    last = checkpoint.load(made.home / "checkpoints" / "round-00003")
    return last.state.adapter[A].tobytes()


@pytest.mark.parametrize("privacy", [{"epsilon": 0.1}, {"delta": 0.2}])
def test_an_order_that_spends_too_much_asks_no_site(tmp_path: Path, privacy: dict[str, float]) -> None:
    post = Letters({name: honest(name, 0.1) for name in NAMES})
    outcome = told(served_noisily(tmp_path, post, noisy_order(**privacy)))["outcome"]
    assert "privacy." in outcome["error"]
    assert not post.asked


def test_noise_for_which_there_is_no_epsilon_asks_no_site(tmp_path: Path) -> None:
    asked = noisy_order()
    little = [{**each, "noise": 1e-9} for each in asked.settings["transforms"]]
    asked = replace(asked, settings={**asked.settings, "transforms": little})
    post = Letters({name: honest(name, 0.1) for name in NAMES})
    assert "can show no epsilon" in told(served_noisily(tmp_path, post, asked))["outcome"]["error"]
    assert not post.asked


def test_a_lost_disk_does_not_draw_an_epoch_a_second_time(tmp_path: Path) -> None:
    asked = noisy_order()
    asked = replace(asked, settings={**asked.settings, "selection": {"name": "shuffled", "share": 0.5}})
    post = Letters({name: honest(name, 0.1) for name in NAMES})
    made = served_noisily(tmp_path, post, asked)
    assert made._secret(2) >= 0  # a new epoch begins
    (made.home / server_run.SECRET_FILE).unlink()
    with pytest.raises(FolderError, match="secret is missing"):
        made._secret(3)


def epsilon_of(steps: int) -> float:
    spent = Spending(noise=3.0, sampling=Poisson(chance=0.5), steps=steps)
    return accountant.epsilon([spent], 1e-3)


def lose(home: Path, last: int) -> None:
    shutil.rmtree(home / "checkpoints" / f"round-{last:05d}")


def test_the_secret_of_the_cohorts_is_deleted_with_the_last_round(tmp_path: Path) -> None:
    post = Letters({name: honest(name, 0.1) for name in NAMES})
    made = served_noisily(tmp_path, post, noisy_order())
    assert not (made.home / server_run.SECRET_FILE).exists()
    made.run()
    assert told(made)["outcome"] == {"finished": True}
    assert not (made.home / server_run.SECRET_FILE).exists()


def test_a_released_round_that_a_server_makes_again_counts_as_often_as_it_is_made(tmp_path: Path) -> None:
    post = Letters({name: honest(name, 0.1) for name in NAMES})
    made = served_noisily(tmp_path, post, noisy_order())
    for again in (1, 2):
        lose(made.home, 3)
        made.run()
        last = read_rows(made.home)[-1]
        assert last["privacy"] == {"epsilon": epsilon_of(3 + again), "delta": 1e-3, "again": again}
        assert _check_rows([last], 0, 3) == [last]
        assert ledger.read(made.home)["epsilon"] == epsilon_of(3 + again)


def test_a_server_that_lost_its_disk_counts_what_the_coordinator_knows(tmp_path: Path) -> None:
    """Round 3 was seen, and the copy of round 2 is what is left; two were made again before."""
    post = Letters({name: honest(name, 0.1) for name in NAMES})
    made = served_noisily(tmp_path, post, noisy_order())
    brought = shutil.copytree(made.home / "checkpoints" / "round-00002", tmp_path / "copy" / "round-00002")
    asked = jobspec.read(replace(noisy_order(), released=3, again={"privacy": 2}).text())
    fresh = ServerRun(asked, tmp_path / "fresh", brought, post)
    fresh.run()
    assert [row["round"] for row in told(fresh)["rows"]] == [2, 3]
    assert told(fresh)["rows"][-1]["privacy"] == {"epsilon": epsilon_of(6), "delta": 1e-3, "again": 3}


def test_a_budget_that_lost_rounds_have_spent_asks_no_site(tmp_path: Path) -> None:
    post = Letters({name: honest(name, 0.1) for name in NAMES})
    made = served_noisily(tmp_path, post, noisy_order(epsilon=epsilon_of(3) + 1e-3))
    lose(made.home, 3)
    post.asked.clear()
    made.run()
    assert "round 3 was released before" in told(made)["outcome"]["error"]
    assert not [kind for kind, _ in post.asked if kind == "train"]


def protecting_examples(sites: tuple[str, ...] = ("a", "b"), **privacy: Any) -> JobSpec:
    asked = order(sites, weights="equal")
    tables = {
        "tuning": {"max_steps": 2, "batch_size": 16},
        "privacy": {"examples": {"norm": 1.0, "noise": 1.0}, **privacy},
    }
    return replace(asked, settings={**asked.settings, **tables})


def test_noise_on_examples_at_sites_is_accounted_for_at_the_server(tmp_path: Path) -> None:
    post = Letters({"a": honest("a", examples=200), "b": honest("b", examples=1000)})
    answer = told(served(tmp_path, post, protecting_examples()))
    assert answer["outcome"] == {"finished": True}
    found = [row["example_privacy"] for row in answer["rows"][1:]]
    delta = accountant.default_delta(1000)
    for number, each in enumerate(found, 1):  # the site with fewer examples spends more: 2 steps a round
        spent = Spending(noise=1.0, sampling=Poisson(chance=16 / 200), steps=2 * number)
        assert each["delta"] == delta
        assert each["epsilon"] == pytest.approx(accountant.epsilon([spent], delta), rel=0.01)
    assert _check_rows(answer["rows"], 0, 3) == answer["rows"]


def test_a_site_that_a_round_does_not_ask_spends_nothing_in_it(tmp_path: Path) -> None:
    post = Letters({"a": honest("a", examples=200), "b": honest("b", examples=200)})
    asked = protecting_examples()
    turns = {"selection": {"name": "round_robin", "share": 0.5}}
    rows = told(served(tmp_path, post, replace(asked, settings={**asked.settings, **turns})))["rows"]
    spent = [row["example_privacy"]["epsilon"] for row in rows[1:]]
    assert spent[0] == spent[1] < spent[2]  # a and b by turns, then one of them again


def test_a_site_whose_examples_would_spend_too_much_does_not_join(tmp_path: Path) -> None:
    post = Letters({"a": honest("a", examples=1000), "b": honest("b", examples=20)})
    answer = told(served(tmp_path, post, protecting_examples(epsilon=2.0)))
    assert answer["outcome"] == {"finished": True}
    (said,) = answer["said"]
    spent = r"epsilon [\d.]+ at delta [\d.e-]+ for each example"
    assert re.match(f"b: 3 visits of each client would spend {spent}", said)
    assert all(set(row["failures"]) <= {"b"} and row["cohort"] for row in answer["rows"][1:])
    assert answer["rows"][-1]["example_privacy"]["epsilon"] <= 2.0


def test_steps_of_a_released_round_that_is_made_again_count_twice(tmp_path: Path) -> None:
    post = Letters({"a": honest("a", examples=200), "b": honest("b", examples=1000)})
    made = served(tmp_path, post, protecting_examples())
    for again in (1, 2):
        lose(made.home, 3)
        made.run()
        spent = Spending(noise=1.0, sampling=Poisson(chance=16 / 200), steps=2 * (3 + again))
        last = read_rows(made.home)[-1]
        assert last["example_privacy"]["again"] == again
        due = accountant.epsilon([spent], accountant.default_delta(1000))
        assert last["example_privacy"]["epsilon"] == pytest.approx(due, rel=0.01)
        assert _check_rows([last], 0, 3) == [last]


def both_levels(**privacy: Any) -> JobSpec:
    asked, noisy = protecting_examples(NAMES, delta=1e-3, **privacy), noisy_order()
    tables = {name: noisy.settings[name] for name in ("transforms", "selection")}
    return replace(asked, settings={**asked.settings, **tables})


@pytest.mark.parametrize("dies", ["log", "examples"])
def test_a_job_that_dies_after_it_counted_does_not_count_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    """The next job brings the same number of released rounds, since no news of this one was read."""
    post = Letters({name: honest(name, 0.1, examples=200) for name in NAMES})
    made = served_noisily(tmp_path, post, both_levels())
    assert [each["again"] for each in claims.spent(made.home, read_rows(made.home)).values()] == [0, 0]
    lose(made.home, 3)
    made.order = replace(both_levels(), released=3)

    def stop(*given: object, **named: object) -> None:
        raise RuntimeError

    for _ in range(3):
        with monkeypatch.context() as patched:
            patched.setattr(
                *((server_run, "reconciled") if dies == "log" else (ledger, "write_reported")), stop
            )
            made.run()
            assert "error" in told(made)["outcome"]
    made.run()
    assert told(made)["outcome"] == {"finished": True}
    kept, last = claims.spent(made.home, read_rows(made.home)), read_rows(made.home)[-1]
    for level in ledger.LEVELS:
        assert (kept[level]["again"], kept[level]["last_lost"], last[level]["again"]) == (1, 3, 1)
        assert kept[level]["epsilon"] == last[level]["epsilon"]
    assert last["privacy"]["epsilon"] == epsilon_of(4)


def test_a_loss_that_the_sites_have_no_budget_for_changes_nothing(tmp_path: Path) -> None:
    post = Letters({name: honest(name, 0.1, examples=1000) for name in NAMES})
    made = served_noisily(tmp_path, post, both_levels(epsilon=epsilon_of(3) + 1e-3))
    lose(made.home, 3)
    before = {each.name: each.read_bytes() for each in made.home.glob("*.json*")}
    made.run()
    assert "round 3 was released before" in told(made)["outcome"]["error"]
    assert {each.name: each.read_bytes() for each in made.home.glob("*.json*")} == before
    assert {*ledger.LEVELS.values(), "rounds.jsonl"} <= set(before)


def test_the_ledger_of_examples_is_whole_before_any_site_is_asked(tmp_path: Path) -> None:
    post = Letters({"a": honest("a", examples=200), "b": honest("b", examples=1000)})
    made = served(tmp_path, post, protecting_examples())
    due = read_rows(made.home)[-1]["example_privacy"]
    lose(made.home, 3)
    made._load_state()
    kept = ledger.read(made.home, ledger.OF_EXAMPLES)
    assert {key: kept[key] for key in due} == due
    assert (kept["unit"], kept["noise"], kept["finished"], kept["again"]) == ("example", 1.0, 2, 1)
    assert kept["says"][-1].startswith("Counted besides: 1 round")


def test_a_site_whose_examples_would_spend_too_much_with_lost_rounds_does_not_join(tmp_path: Path) -> None:
    post = Letters({"a": honest("a", examples=1000), "b": honest("b", examples=200)})
    made = served(tmp_path, post, protecting_examples())
    spent = told(made)["rows"][-1]["example_privacy"]["epsilon"]
    asked = replace(protecting_examples(epsilon=spent + 0.01), released=3)
    brought = shutil.copytree(made.home / "checkpoints" / "round-00002", tmp_path / "copy" / "round-00002")
    fresh = ServerRun(asked, tmp_path / "fresh", brought, post)
    fresh.run()
    (said,) = told(fresh)["said"]
    assert re.match(r"b: 4 visits of each client, with those that are counted besides, would spend", said)
    assert set(told(fresh)["rows"][-1]["failures"]) == {"b"}


# what sites have trained outlives the server's disk, and their membership


SIZES = {"a": 200, "b": 1000}


def of_sizes(**sizes: int) -> Letters:
    return Letters({name: honest(name, examples=n) for name, n in sizes.items()})


def continued(made: ServerRun, rounds: int, post: Letters, **privacy: Any) -> list[dict[str, Any]]:
    """The rows of the next job of a run, with more rounds and these sites; all that it says, if it fails."""
    asked = protecting_examples(**privacy)
    settings = {**asked.settings, "federation": {**asked.settings["federation"], "rounds": rounds}}
    job = ServerRun(replace(asked, settings=settings), made.home, None, post)
    job.run()
    return read_rows(job.home)


def spent_by(examples: int, steps: int, most: int = 1000) -> float:
    spent = Spending(noise=1.0, sampling=Poisson(chance=16 / examples), steps=steps)
    return accountant.epsilon([spent], accountant.default_delta(most))


@pytest.mark.parametrize("turns", [False, True])
def test_a_lost_disk_lessens_nothing_that_the_examples_of_sites_have_spent(
    tmp_path: Path, turns: bool
) -> None:
    """The log at the server is gone; the checkpoint that the coordinator copied says whom rounds asked."""
    asked = protecting_examples()
    if turns:
        table = {"selection": {"name": "round_robin", "share": 0.5}}
        asked = replace(asked, settings={**asked.settings, **table})
    made = served(tmp_path, of_sizes(a=200, b=200), asked)
    before = told(made)["rows"][-1]["example_privacy"]["epsilon"]
    brought = shutil.copytree(made.home / "checkpoints" / "round-00002", tmp_path / "copy" / "round-00002")
    fresh = ServerRun(replace(asked, released=3), tmp_path / "fresh", brought, of_sizes(a=200, b=200))
    fresh.run()
    assert [row["round"] for row in told(fresh)["rows"]] == [2, 3]
    last = told(fresh)["rows"][-1]
    visits = 2 + 1 if turns else 3 + 1  # round 3 counts twice, for whomever it asked
    assert last["example_privacy"]["epsilon"] == pytest.approx(spent_by(200, 2 * visits, most=200), rel=0.01)
    assert last["example_privacy"]["epsilon"] > before
    if not turns:
        assert last["coverage"]["a"] == pytest.approx(1 - (1 - 16 / 200) ** 6)


def test_a_checkpoint_that_does_not_say_whom_rounds_asked_counts_everybody_in_each(tmp_path: Path) -> None:
    made = served(tmp_path, of_sizes(**SIZES), protecting_examples())
    saved = checkpoint.load(made.home / "checkpoints" / "round-00002")
    notes = {key: value for key, value in saved.notes.items() if key != "exposures"}
    assert notes != saved.notes
    brought = checkpoint.save(tmp_path / "old", replace(saved, notes=notes), keep=1)
    turns = {"selection": {"name": "round_robin", "share": 0.5}}
    asked = protecting_examples()
    asked = replace(asked, settings={**asked.settings, **turns})
    fresh = ServerRun(asked, tmp_path / "fresh", brought, of_sizes(a=200))
    fresh.run()
    spent = told(fresh)["rows"][-1]["example_privacy"]
    assert spent["epsilon"] >= spent_by(200, 2 * 2, most=200) * 0.999


@pytest.mark.parametrize(
    ("now", "fewest"),
    [
        ({"b": 1000}, 200),  # the site that has spent most does not come back
        ({"a": 200}, 200),  # nor the one of which delta is
        ({"a": 1000, "b": 1000}, 200),  # its visits so far were of few examples
        ({"a": 100, "b": 1000}, 100),
    ],
    ids=str,
)
def test_what_sites_have_spent_never_falls_whoever_joins_the_next_job(
    tmp_path: Path, now: dict[str, int], fewest: int
) -> None:
    made = served(tmp_path, of_sizes(**SIZES), protecting_examples())
    before = read_rows(made.home)[-1]["example_privacy"]
    last = continued(made, 4, of_sizes(**now))[-1]
    assert last["round"] == 4
    steps = 8 if "a" in now else 6
    assert last["example_privacy"]["delta"] == before["delta"] == accountant.default_delta(1000)
    assert last["example_privacy"]["epsilon"] == pytest.approx(spent_by(fewest, steps), rel=0.01)
    assert last["example_privacy"]["epsilon"] >= before["epsilon"]


def test_a_site_of_a_lost_round_that_does_not_return_has_spent_all_the_same(tmp_path: Path) -> None:
    """No checkpoint that is left knows it."""
    made = served(tmp_path, of_sizes(b=1000), protecting_examples())
    most = continued(made, 4, of_sizes(a=50, b=1000))[-1]["example_privacy"]["epsilon"]
    lose(made.home, 4)
    assert continued(made, 4, of_sizes(b=1000))[-1]["example_privacy"] == {
        "epsilon": most,
        "delta": accountant.default_delta(1000),
        "again": 1,
    }
    assert continued(made, 5, of_sizes(b=1000))[-1]["example_privacy"]["epsilon"] == most


@pytest.mark.parametrize(("joins", "delta"), [(200, 3e-3), (1000, accountant.default_delta(1000))])
def test_a_begun_run_is_counted_at_the_delta_of_its_rounds_before(
    tmp_path: Path, joins: int, delta: float
) -> None:
    """The default was larger once; it goes on at it as long as that is below 1 / n of every site."""
    made = served(tmp_path, of_sizes(a=200, b=200), protecting_examples(delta=3e-3))
    last = continued(made, 4, of_sizes(a=200, b=joins), epsilon=10.0)[-1]["example_privacy"]
    spent = Spending(noise=1.0, sampling=Poisson(chance=16 / 200), steps=8)
    assert last["delta"] == delta
    assert last["epsilon"] == pytest.approx(accountant.epsilon([spent], delta), rel=0.01)


def test_a_site_that_returns_with_fewer_examples_than_its_budget_allows_does_not_join(tmp_path: Path) -> None:
    made = served(tmp_path, of_sizes(**SIZES), protecting_examples())
    asked = protecting_examples(epsilon=spent_by(200, 8) + 0.1)
    settings = {**asked.settings, "federation": {**asked.settings["federation"], "rounds": 4}}
    job = ServerRun(replace(asked, settings=settings), made.home, None, of_sizes(a=60, b=1000))
    job.run()
    (said,) = told(job)["said"]
    assert re.match(r"a: 4 visits of each client.* would spend epsilon", said)
    assert read_rows(job.home)[-1]["example_privacy"]["epsilon"] <= spent_by(200, 6) * 1.01


def test_a_round_that_nobody_joined_takes_nothing_back(tmp_path: Path) -> None:
    post = Letters({name: honest(name, 0.1, examples=200) for name in NAMES})
    asked = noisy_order()
    examples = {"privacy": {"delta": 1e-3, "examples": {"norm": 1.0, "noise": 1.0}}}
    asked = replace(asked, settings={**asked.settings, **examples})
    made = served_noisily(tmp_path, post, asked)
    before = read_rows(made.home)[-1]["example_privacy"]
    federation = {**asked.settings["federation"], "rounds": 4}
    more = replace(asked, settings={**asked.settings, "federation": federation})
    job = ServerRun(more, made.home, None, Letters({}))
    job.run()
    last = read_rows(job.home)[-1]
    assert last["round"] == 4
    assert last["example_privacy"] == before


def test_coverage_under_noise_on_examples_is_what_is_to_expect(tmp_path: Path) -> None:
    """A site does not say how many it drew."""
    post = Letters({"a": honest("a", examples=200), "b": honest("b", examples=1000)})
    for row in told(served(tmp_path, post, protecting_examples()))["rows"][1:]:
        due = {name: 1 - (1 - 16 / n) ** (2 * row["round"]) for name, n in (("a", 200), ("b", 1000))}
        assert row["coverage"] == pytest.approx(due)
        assert "taken" not in row


def test_noise_on_examples_for_which_there_is_no_epsilon_lets_no_site_join(tmp_path: Path) -> None:
    post = Letters({"a": honest("a", examples=200), "b": honest("b", examples=1000)})
    answer = told(served(tmp_path, post, protecting_examples(examples={"norm": 1.0, "noise": 0.0005})))
    assert "can show no epsilon" in str(answer)
    assert not [kind for kind, _ in post.asked if kind == "train"]
