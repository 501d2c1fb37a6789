"""Secure sums over real trainers, with the kits of a real federation, and a server in this process."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nvflare")

from benchmarks.masking import PHASES, Killed, Room

from benchmarks import silos_same
from shepherd import plugins
from shepherd.core import Adapter, Failure, ServerState, Update
from shepherd.machine import memory
from shepherd.model import lora
from shepherd.overrides import parse
from shepherd.rounds import start
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.loading import load_base
from shepherd.run.log import read_rows
from shepherd.settings import RunSettings
from shepherd.silos import loopback
from shepherd.silos.flare import kits, provision
from shepherd.silos.flare.kit_identity import KitDirectory
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.jobspec import JobSpec, settings_of
from shepherd.silos.protocol.wire import Ready, Request, SumAnswer, Trained
from shepherd.silos.server.server_run import ServerRun
from shepherd.silos.site import audit, policy, site_settings
from shepherd.silos.site.trainer import Trainer
from shepherd.training import tune

SITES = ("site-1", "site-2", "site-3", "site-4")
RUN: dict[str, Any] = {
    "seed": 5,
    "model": {"base": "tiny"},
    "adapter": {"rank": 2, "targets": ["q_proj"]},
    "data": {"source": "world", "template": "alpaca-short", "holdout": 0.0, "limit": 80},
    "split": {"clients": len(SITES), "by": "iid"},
    "federation": {"rounds": 1, "weights": "equal", "quorum": 0.5},
    "silos": {"deadline_s": 60.0},
    "tuning": {"max_steps": 1, "batch_size": 16, "learning_rate": 0.004},
    "transforms": [{"name": "fixed_point", "norm": 1.0, "bits": 20}],
    "secure": {"ring_bits": 32},
    "evaluation": {"answers": 0},
}
PLAIN = {name: table for name, table in RUN.items() if name != "secure"}


@dataclass
class Hall:
    """Four sites with their kits and trainers on this machine, and runs over them."""

    folder: Path
    configs: Mapping[str, Path]
    trainers: dict[str, Trainer]
    targets: Any
    """The layers of the base that are trained."""
    runs: int = 0

    def settings(self, **tables: Any) -> RunSettings:
        return parse({**RUN, **tables, "output": str(self.folder / "unused")}, "the test")

    def kit(self, site: str) -> Path:
        return self.folder / "federation" / "sites" / site

    def restart(self, site: str) -> Trainer:
        if site in self.trainers:
            self.trainers[site].stop()
        config = site_settings.read(self.configs[site])
        self.trainers[site] = Trainer(config, site, self.kit(site) / "shepherd")
        return self.trainers[site]

    def room(self) -> Room:
        return Room({site: lambda message, site=site: self.trainers[site].handle(message) for site in SITES})

    def order(self, settings: RunSettings | None = None) -> JobSpec:
        """A new run."""
        self.runs += 1
        base = site_settings.read(self.configs["site-1"]).bases[0].sha256
        return JobSpec(
            run=f"{self.runs:016x}",
            base=base,
            fingerprint="f",
            version=wire.version(),
            sites=SITES,
            settings=settings_of(settings or self.settings()),
        )

    def serve(self, order: JobSpec, room: Room) -> ServerRun:
        """The job of a run: it goes on from the last one's last round."""
        settings = parse({**order.settings, "output": str(self.folder / "unused")}, "the test")
        method = plugins.method(settings)
        notes = {"positions": {}, "row": None, "base": "f"}
        first = Checkpoint(state=start(method, self.first(settings)), notes=notes)
        given = self.folder / "given" / f"{order.run}-{time.monotonic_ns()}"
        path = checkpoint.save(given, first, keep=1)
        server = self.folder / "federation" / "server"
        made = ServerRun(
            order,
            self.home(order),
            path,
            room,
            directory=lambda: KitDirectory(kits.read(server, "server")),
        )
        made.run()
        return made

    def first(self, settings: RunSettings) -> Adapter:
        return lora.first(self.targets, settings.adapter.rank, settings.seed)

    def home(self, order: JobSpec) -> Path:
        return self.folder / "server-runs" / order.run

    def last(self, order: JobSpec) -> ServerState:
        found = checkpoint.latest(self.home(order) / "checkpoints")
        assert found is not None
        return checkpoint.load(found).state


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    before = memory.threads()
    memory.use_threads(1)
    folder = tmp_path_factory.mktemp("secure")
    settings = parse({**RUN, "output": str(folder / "unused")}, "the test")
    configs = loopback.write_sites(
        settings, folder / "sites", policy={"rounds_per_month": 1000, "runs_per_month": 1000}
    )
    provision.create(folder / "federation", "localhost:9002", SITES)
    made = Hall(folder, configs, {}, load_base(settings).targets)
    for site in SITES:
        made.restart(site)
    yield made
    for trainer in made.trainers.values():
        trainer.stop()
    memory.use_threads(before)


@pytest.fixture(scope="module")
def expected(hall: Hall) -> list[ServerState]:
    """The state after each round of the same run in one process."""
    return [state for state, _ in silos_same.simulated(hall.settings(), hall.configs)]


def same(one: Adapter, other: Adapter) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name].view(np.uint32), other[name].view(np.uint32)) for name in one
    )


def outcome(served: ServerRun) -> Any:
    return served.snapshot({"rows": 0, "said": 0})["outcome"]


# the right result ------------------------------------------------------------------------------------------


def test_a_run_has_the_bits_of_one_process(hall: Hall, expected: list[ServerState]) -> None:
    """Law 2, under masks; and the same codes added up as real numbers differ by rounding alone."""
    order, room = hall.order(), hall.room()
    served = hall.serve(order, room)
    assert outcome(served) == {"finished": True}
    found = hall.last(order)
    assert found.round == 1
    assert same(found.adapter, expected[-1].adapter)

    plain = hall.order(hall.settings(secure=None))
    hall.serve(plain, hall.room())
    for name, tensor in hall.last(plain).adapter.items():
        np.testing.assert_allclose(found.adapter[name], tensor, rtol=0, atol=3e-6)
        assert np.abs(tensor).max() > 1e-3

    rows = read_rows(hall.home(order))
    for row in rows[1:]:
        assert (row["summed"], row["weights"], row["failures"], row["losses"]) == (list(SITES), {}, {}, {})
        assert row["bytes_up"] == 4 * 4 * sum(tensor.size for tensor in found.adapter.values())
        assert "taken" not in row
        assert "coverage" not in row


def test_nothing_but_sums_reaches_the_server(hall: Hall) -> None:
    order, room = hall.order(), hall.room()
    hall.serve(order, room)
    by_kind: dict[str, set[str]] = {}
    for _, asked, reply in room.seen:
        by_kind.setdefault(asked.kind, set()).add(type(reply).__name__)
    phases = {phase: {"SumAnswer"} for phase in PHASES}
    assert by_kind == {"join": {"Ready"}, "train": {"Trained"}, **phases}
    kept = {site: trainer.store.kept(order.run)[-1].update for site, trainer in hall.trainers.items()}
    for site, update in kept.items():
        name = next(iter(update.delta))
        plain = update.delta[name].astype("<i4").tobytes()
        sent = [reply.content for who, _, reply in room.seen if who == site and isinstance(reply, SumAnswer)]
        assert sent
        assert not any(plain[:64] in content for content in sent)


def test_the_sites_of_a_larger_weight_weigh_more_in_the_sum(hall: Hall) -> None:
    """Weights are whole numbers of the sum too, so the server learns their total."""
    weighted = {
        "federation": {**RUN["federation"], "weights": "size"},
        "transforms": [{**RUN["transforms"][0], "largest_weight": 64.0}],
    }
    order = hall.order(hall.settings(**weighted))
    served = hall.serve(order, hall.room())
    assert outcome(served) == {"finished": True}
    *_, (due, _) = silos_same.simulated(hall.settings(**weighted), hall.configs)
    assert same(hall.last(order).adapter, due.adapter)


# losses and kills ------------------------------------------------------------------------------------------


def test_a_site_is_lost_in_each_phase_in_turn(hall: Hall) -> None:
    """One in each round of a run: before the masks its update is not in the sum, and later it is."""
    kinds = ("train", *PHASES)
    six = hall.settings(federation={**RUN["federation"], "rounds": len(kinds)})
    order, room = hall.order(six), hall.room()
    answer, lost = room.sites["site-3"], dict(enumerate(kinds))
    updates: dict[int, dict[str, Update]] = {}

    def site_3(message: bytes) -> bytes | None:
        asked = wire.decode_asked(message)
        return None if lost.get(asked.round) == asked.kind else answer(message)

    def before(asked: Any) -> None:
        if asked.kind == "keys":  # all have trained
            kept = {site: trainer.store.kept(order.run)[-1:] for site, trainer in hall.trainers.items()}
            updates[asked.round] = {
                site: each.update for site, last in kept.items() for each in last if each.round == asked.round
            }

    room.sites["site-3"], room.before = site_3, before
    assert outcome(hall.serve(order, room)) == {"finished": True}
    expected, step = dict(hall.first(six)), 1.0 / (2**19 - 1)
    for row in read_rows(hall.home(order))[1:]:
        late = lost[row["round"] - 1] in ("agree", "reveal")
        rest = list(SITES) if late else [site for site in SITES if site != "site-3"]
        assert row["summed"] == rest
        assert list(row["failures"]) == ([] if late else ["site-3"])
        deltas = [updates[row["round"] - 1][site].delta for site in rest]
        for name in expected:
            expected[name] = expected[name] + step / len(rest) * sum(delta[name] for delta in deltas)
    for name, tensor in hall.last(order).adapter.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=3e-6)


@pytest.mark.slow
def test_a_server_that_is_killed_in_each_phase_in_turn_has_the_same_bits(
    hall: Hall, expected: list[ServerState]
) -> None:
    """Each job that follows starts the round again, with fresh keys and the updates that the sites keep."""
    order, room = hall.order(), hall.room()
    for kind in ("train", *PHASES):
        count = 0

        def before(asked: Any, kind: str = kind) -> None:
            nonlocal count
            count += asked.kind == kind
            if count > 1:
                raise Killed

        room.before = before
        with pytest.raises(Killed):
            hall.serve(order, room)
        hall.restart("site-2")
    room.before = lambda asked: None
    assert outcome(hall.serve(order, room)) == {"finished": True}
    assert same(hall.last(order).adapter, expected[-1].adapter)
    train = [asked for site, asked, _ in room.seen if asked.kind == "train"]
    assert len({asked.id for asked in train}) == 1
    masked = [reply.content for _, asked, reply in room.seen if asked.kind == "masked"]
    assert len(set(masked)) == len(masked) > 8
    granted = audit.events(hall.kit("site-2") / "shepherd" / audit.FILE)
    assert sum(e.what == "granted" and e.run == order.run and e.kind == "train" for e in granted) == 1


def test_too_few_sites_end_the_run_and_it_can_be_resumed(hall: Hall, expected: list[ServerState]) -> None:
    order, room = hall.order(), hall.room()
    answers = {site: room.sites[site] for site in ("site-1", "site-4")}
    room.sites.update({site: _but_not(answer, "masked") for site, answer in answers.items()})
    found = outcome(hall.serve(order, room))
    assert found["kind"] == "QuorumNotMet"
    assert "site-1: masked: it did not reply within" in found["error"]
    assert not any(asked.kind in ("agree", "reveal") for _, asked, _ in room.seen)
    room.sites.update(answers)
    assert outcome(hall.serve(order, room)) == {"finished": True}
    assert same(hall.last(order).adapter, expected[-1].adapter)


# the sites -------------------------------------------------------------------------------------------------


def train_request(hall: Hall, order: JobSpec, settings: RunSettings, round: int = 0) -> tuple[Request, Room]:
    """What an honest server asks first in a round, and the room that has not been asked it."""
    room = hall.room()
    asked: list[Any] = []

    def before(message: Any) -> None:
        if message.kind == "train" and message.round == round:
            asked.append(message)
            raise Killed

    room.before = before
    with pytest.raises(Killed):
        hall.serve(replace(order, settings=settings_of(settings)), room)
    room.before = lambda message: None
    return asked[0], room


def ask(hall: Hall, site: str, request: Request) -> Any:
    made = replace(request, sent=time.time(), id="")
    made = replace(made, id=wire.request_id(made))
    return wire.decode_reply(hall.trainers[site].handle(wire.encode_request(made)))


def test_a_request_without_masks_gets_nothing_of_a_round_that_was_under_masks(hall: Hall) -> None:
    order = hall.order()
    request, _ = train_request(hall, order, hall.settings())
    plain = replace(request, settings={n: t for n, t in request.settings.items() if n != "secure"})
    assert isinstance(ask(hall, "site-1", request), Trained)
    assert isinstance(ask(hall, "site-1", request), Trained)  # the kept answer
    for round in (0, 1):
        assert request.broadcast is not None
        again = replace(plain, round=round, broadcast=replace(request.broadcast, round=round))
        reply = ask(hall, "site-1", again)
        assert isinstance(reply, Failure)
        assert "has sent its updates of this run under masks" in reply.reason


def test_a_request_with_masks_gets_nothing_of_a_round_that_was_without(hall: Hall) -> None:
    order = hall.order()
    request, _ = train_request(hall, order, hall.settings())
    plain = replace(request, settings={n: t for n, t in request.settings.items() if n != "secure"})
    assert isinstance(ask(hall, "site-1", plain), Update)
    reply = ask(hall, "site-1", request)
    assert isinstance(reply, Failure)
    assert "has answered round 1 of this run" in reply.reason


def test_a_policy_that_requires_it_refuses_every_run_without(hall: Hall) -> None:
    request, _ = train_request(hall, hall.order(), hall.settings())
    plain = replace(request, settings={n: t for n, t in request.settings.items() if n != "secure"})
    config = site_settings.read(hall.configs["site-1"])
    strict = config.model_copy(
        update={"policy": config.policy.model_copy(update={"require_secure_aggregation": True})}
    )
    home = hall.folder / "strict" / "shepherd"
    shutil.copytree(hall.kit("site-1") / "startup", home.parent / "startup")
    trainer = Trainer(strict, "site-1", home)

    def reply(request: Request) -> Any:
        made = replace(request, sent=time.time(), id="")
        message = wire.encode_request(replace(made, id=wire.request_id(made)))
        return wire.decode_reply(trainer.handle(message))

    for kind in ("join", "train"):
        asked = replace(plain, kind=kind, broadcast=plain.broadcast if kind == "train" else None)
        assert "refuses a run without secure aggregation; add [secure]" in reply(asked).reason
    assert isinstance(reply(request), Trained)
    trainer.stop()


def test_the_audit_log_says_each_phase_and_that_what_left_was_masked(hall: Hall) -> None:
    order, room = hall.order(), hall.room()
    hall.serve(order, room)
    events = [e for e in audit.events(hall.kit("site-2") / "shepherd" / audit.FILE) if e.run == order.run]
    of_round = [e for e in events if e.round == 0 and e.kind not in ("join", "score")]
    assert [(e.what, e.kind) for e in of_round] == [
        ("granted", "train"), ("answered", "train"), *(("answered", phase) for phase in PHASES),
    ]  # fmt: skip
    by_kind = {e.kind: e for e in of_round}
    assert [phase for phase in PHASES if by_kind[phase].left.masked] == ["masked"]
    assert by_kind["train"].left.tensors == 0
    assert by_kind["train"].left.metrics == {}
    assert by_kind["train"].left.bytes < 500
    assert by_kind["agree"].asked["sites"] == list(SITES)
    assert len({by_kind[phase].asked["attempt"] for phase in PHASES}) == 1
    text = (hall.kit("site-2") / "shepherd").glob("audit-*.jsonl")
    assert '"masked":false' not in "".join(path.read_text() for path in text)


def test_a_refused_phase_is_in_the_audit_log_and_is_no_failed_visit(hall: Hall) -> None:
    order, room = hall.order(), hall.room()
    hall.serve(order, room)
    asked = next(asked for _, asked, _ in room.seen if asked.kind == "masked")
    trainer = hall.trainers["site-2"]
    for _ in range(3):
        late = replace(asked, sent=time.time())
        reply = wire.decode_reply(trainer.handle(wire.encode_sum_request(late)))
        assert isinstance(reply, Failure)
        assert "its secure sum is over" in reply.reason
    place = trainer.home / audit.FILE
    refused = [e for e in audit.events(place) if e.what == "refused" and e.kind == "masked"]
    assert refused[-1].rule == "secure"
    usage = audit.month_usage(place, refused[-1].when[:7], asked=(order.run, 5, "x"))
    assert usage.failures == 0


def test_an_old_message_and_another_version_are_refused(hall: Hall) -> None:
    room = hall.room()
    hall.serve(hall.order(), room)
    asked = next(asked for _, asked, _ in room.seen if asked.kind == "keys")
    for changed, reason in (
        ({"sent": time.time() - 3600}, "behind this site's, or the message is an old one"),
        ({"sent": time.time(), "version": "99.0.0"}, "install one version"),
    ):
        message = wire.encode_sum_request(replace(asked, **changed))
        assert reason in wire.decode_reply(hall.trainers["site-1"].handle(message)).reason


def test_phases_do_not_wait_for_another_runs_training(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    order, room = hall.order(), hall.room()
    other, _ = train_request(hall, hall.order(), hall.settings())
    started, go_on = threading.Event(), threading.Event()
    honest = tune.tune

    def slow(*given: Any) -> Any:
        started.set()
        assert go_on.wait(60)
        return honest(*given)

    with ThreadPoolExecutor(1) as beside:
        waiting: list[Any] = []

        def before(asked: Any) -> None:
            if asked.kind == "keys" and not waiting:  # all have trained, so now another run may
                monkeypatch.setattr(tune, "tune", slow)
                waiting.append(beside.submit(ask, hall, "site-1", other))
                assert started.wait(30)

        room.before = before
        try:
            rows = lambda: read_rows(hall.home(order))  # noqa: E731
            assert outcome(hall.serve(order, room)) == {"finished": True}
            assert rows()[-1]["summed"] == list(SITES)
            assert not waiting[0].done()
        finally:
            go_on.set()
        assert isinstance(waiting[0].result(60), Trained)


def _but_not(site: Callable[[bytes], bytes | None], kind: str) -> Callable[[bytes], bytes | None]:
    return lambda message: None if wire.decode_asked(message).kind == kind else site(message)


def test_a_site_whose_kit_is_gone_is_lost_with_a_sentence(hall: Hall) -> None:
    order, room = hall.order(), hall.room()
    key = hall.kit("site-4") / "startup" / "client.key"
    hidden = key.rename(key.with_suffix(".gone"))
    try:
        hall.restart("site-4")
        assert outcome(hall.serve(order, room)) == {"finished": True}
        row = read_rows(hall.home(order))[-1]
        assert row["failures"] == {
            "site-4": "keys: its own files cannot be used; see the site's log for the file and the fix"
        }
    finally:
        hidden.rename(key)


def test_only_the_sites_that_an_owner_lists_may_be_in_a_sum_with_it(hall: Hall) -> None:
    order, room = hall.order(), hall.room()
    config = site_settings.read(hall.configs["site-1"])
    table = config.policy.model_copy(update={"secure_with": ("site-2", "site-3")})
    hall.trainers["site-1"] = Trainer(
        config.model_copy(update={"policy": table}), "site-1", hall.kit("site-1") / "shepherd"
    )
    try:
        found = outcome(hall.serve(order, room))
    finally:
        hall.restart("site-1")
    assert found == {"finished": True}
    row = read_rows(hall.home(order))[-1]
    assert "site-4 is not in policy.secure_with" in row["failures"]["site-1"]
    assert row["summed"] == ["site-2", "site-3", "site-4"]


def test_a_site_joins_a_secure_run_and_says_its_policy(hall: Hall) -> None:
    request, _ = train_request(hall, hall.order(), hall.settings())
    assert isinstance(ask(hall, "site-1", replace(request, kind="join", broadcast=None)), Ready)
    config = site_settings.read(hall.configs["site-1"])
    assert policy.broken_by(config.policy, hall.settings(), site="site-1", examples=24) == []
