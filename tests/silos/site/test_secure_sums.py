"""What a site lets be summed: one set of sites a round, and no phase but in its order, whoever asks."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.masking import PHASES, POLICY, TABLES, Site, codes, directory

from shepherd.core import Adapter, Broadcast, Failure, Update
from shepherd.errors import FolderError, SecureError
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Request, SumAnswer, SumRequest, Trained
from shepherd.silos.secure import Session, SumServer, messages
from shepherd.silos.site import secure_sums
from shepherd.silos.site.request_checks import RequestRefused
from shepherd.silos.site.secure_sums import require_no_downgrade, require_trainable
from shepherd.silos.site.site_store import Store, SumRecord

RUN, A = "0123456789abcdef", "q.lora_A.weight"
ADAPTER = Adapter({A: np.zeros((2, 5), np.float32)})
LENGTH = 10
NAMES = ("site-1", "site-2", "site-3", "site-4")


def train(round: int = 0, tables: Mapping[str, Any] = TABLES) -> Request:
    sent = Broadcast(round=round, adapter=ADAPTER, seed=1)
    made = Request(
        kind="train", run=RUN, id="", round=round, deadline=60.0, sent=1.8e9, version="1", cohort=4,
        base="b" * 64, settings=tables, broadcast=sent,
    )  # fmt: skip
    return replace(made, id=wire.request_id(made))


class Coordinator:
    """A server that can do anything: it asks sites for phases in any order, with any content."""

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES, **each: Any) -> None:
        self.folder, self.names, self.each = folder, names, each
        self.sites = {name: Site(name, folder / name, names, **each) for name in names}
        self.attempts = 0

    def restart(self, name: str) -> None:
        self.sites[name] = Site(name, self.folder / name, self.names, **self.each)

    def train(self, round: int = 0) -> None:
        for site in self.sites.values():
            reply = wire.decode_reply(site(wire.encode_request(train(round))) or b"")
            assert reply == Trained(client=site.name, round=round, length=LENGTH)

    def attempt(self, round: int = 0, **changed: Any) -> Session:
        self.attempts += 1
        given = {
            "run": RUN,
            "round": round,
            "attempt": f"{self.attempts:032x}",
            "request": train(round).id,
            "members": self.names,
            "length": LENGTH,
            "ring_bits": 32,
        }
        return Session(**{**given, **changed})

    def ask(self, name: str, kind: Any, session: Session, content: bytes = b"") -> Any:
        """The content of a site's answer, or its Failure."""
        asked = SumRequest(
            kind=kind,
            run=session.run,
            id=session.request,
            round=session.round,
            attempt=session.attempt,
            members=session.members,
            length=session.length,
            ring_bits=session.ring_bits,
            deadline=60.0,
            sent=1.8e9,
            version="1",
            content=content,
        )
        reply = wire.decode_reply(self.sites[name](wire.encode_sum_request(asked)) or b"")
        if isinstance(reply, Failure):
            return reply
        assert reply == SumAnswer(
            client=name, round=session.round, kind=kind, attempt=session.attempt, content=reply.content
        )
        return reply.content

    def up_to(self, phase: str, session: Session, lost: Mapping[str, str] = {}) -> tuple[SumServer, Any]:
        """An honest sum up to a phase, and what its sites are to be asked then.

        Args:
            lost: site -> the phase that it does not answer.
        """
        server, waiting = SumServer(session, directory(self.names)), dict.fromkeys(session.members, b"")
        for kind in PHASES[: PHASES.index(phase)]:
            waiting = {name: content for name, content in waiting.items() if lost.get(name) != kind}
            answers = {name: self.ask(name, kind, session, content) for name, content in waiting.items()}
            assert not any(isinstance(answer, Failure) for answer in answers.values()), answers
            waiting = self._next(server, kind, answers)
        return server, waiting

    def _next(self, server: SumServer, kind: str, answers: dict[str, bytes]) -> dict[str, bytes]:
        match kind:
            case "keys":
                return dict.fromkeys(answers, server.roster(answers))
            case "shares":
                return server.deliveries(answers)
            case "masked":
                for name, content in answers.items():
                    server.add(name, content)
                return dict.fromkeys(answers, server.survivors())
            case _:
                return dict.fromkeys(answers, server.signatures(answers))

    def whole(self, session: Session, lost: Mapping[str, str] = {}) -> np.ndarray[Any, Any]:
        server, waiting = self.up_to("reveal", session, lost)
        return server.total({name: self.ask(name, "reveal", session, c) for name, c in waiting.items()})


def why(answer: Any) -> str:
    assert isinstance(answer, Failure), answer
    return answer.reason


def test_a_sum_is_that_of_what_the_sites_keep(tmp_path: Path) -> None:
    there = Coordinator(tmp_path)
    there.train()
    expected = sum(codes(name, 0, (2, 5)).ravel() for name in NAMES)
    assert np.array_equal(there.whole(there.attempt()), expected)


def test_a_repeated_attempt_masks_the_same_update_with_fresh_keys(tmp_path: Path) -> None:
    there = Coordinator(tmp_path)
    there.train()
    first, second = there.attempt(), there.attempt()
    total = there.whole(first)
    there.restart("site-2")
    there.train()
    assert np.array_equal(there.whole(second), total)


def test_the_sites_of_a_round_are_written_before_an_update_leaves(tmp_path: Path, monkeypatch) -> None:
    there = Coordinator(tmp_path)
    there.train()
    session = there.attempt()
    _, waiting = there.up_to("masked", session)
    site = there.sites["site-1"]

    def full(*_: Any) -> None:
        raise FolderError("the disk is full")

    monkeypatch.setattr(Store, "save_sum", full)
    with pytest.raises(FolderError):
        there.ask("site-1", "masked", session, waiting["site-1"])
    monkeypatch.undo()
    assert site.store.sum_of(RUN, 0) is None
    there.ask("site-1", "masked", session, waiting["site-1"])
    assert site.store.sum_of(RUN, 0) == SumRecord(round=0, members=NAMES)


def test_the_survivors_are_written_before_a_site_agrees(tmp_path: Path, monkeypatch) -> None:
    there = Coordinator(tmp_path)
    there.train()
    session = there.attempt()
    _, waiting = there.up_to("agree", session)
    site = there.sites["site-1"]
    seen: list[SumRecord] = []
    saved = Store.save_sum
    monkeypatch.setattr(Store, "save_sum", lambda *given: (seen.append(given[2]), saved(*given)))
    there.ask("site-1", "agree", session, waiting["site-1"])
    assert seen == [SumRecord(round=0, members=NAMES, survivors=NAMES)]
    text = (site.home / "runs" / f"{RUN}.json").read_text()
    assert json.loads(text)["sums"] == [{"round": 0, "members": list(NAMES), "survivors": list(NAMES)}]
    # where it cannot be written, nothing is signed
    monkeypatch.undo()
    there.train(1)
    session = there.attempt(1)
    _, waiting = there.up_to("agree", session)
    monkeypatch.setattr(Store, "save_sum", lambda *_: (_ for _ in ()).throw(FolderError("full")))
    with pytest.raises(FolderError):
        there.ask("site-1", "agree", session, waiting["site-1"])
    assert there.sites["site-1"].store.sum_of(RUN, 1) == SumRecord(round=1, members=NAMES)


@pytest.mark.parametrize("restarted", [False, True])
def test_another_set_of_survivors_is_refused_for_ever(tmp_path: Path, restarted: bool) -> None:
    """The difference of the two sums would be the update of one site."""
    there = Coordinator(tmp_path)
    there.train()
    there.whole(there.attempt())
    if restarted:
        for name in NAMES:
            there.restart(name)
        there.train()
    session = there.attempt()
    _, waiting = there.up_to("agree", session, lost={"site-4": "masked"})
    for name in ("site-1", "site-2", "site-3"):
        assert why(there.ask(name, "agree", session, waiting[name])) == (
            f"{name} has agreed to the sum of round 1 over site-1, site-2, site-3, site-4, and is asked for"
            " one over site-1, site-2, site-3, which would tell single updates apart; bring the same sites"
            " back, or use `shepherd silos new-id`"
        )


def test_other_members_are_refused_once_an_update_has_left(tmp_path: Path) -> None:
    """Fewer members would have a lower threshold, and other sites could open a second sum."""
    there = Coordinator(tmp_path)
    there.train()
    there.up_to("agree", there.attempt())
    answer = there.ask("site-1", "keys", there.attempt(members=NAMES[:3]))
    assert "takes part in the sum of round 1 over site-1, site-2, site-3, site-4 only" in why(answer)


def test_the_records_of_the_rounds_that_are_kept_outlive_other_rounds(tmp_path: Path) -> None:
    there = Coordinator(tmp_path)
    for round in range(4):
        there.train(round)
        there.whole(there.attempt(round))
    store = there.sites["site-1"].store
    assert [each.round for each in store.record(RUN).sums] == [2, 3]
    # an older update is not kept, so none can be summed again
    assert "no update for this sum" in why(there.ask("site-1", "keys", there.attempt(1)))


def test_nothing_is_revealed_of_a_sum_whose_sites_could_not_be_written(tmp_path: Path, monkeypatch) -> None:
    """Enough others have signed; this site would open a sum, and could agree to another one afterwards."""
    names = (*NAMES, "site-5", "site-6", "site-7")
    there = Coordinator(tmp_path, names)
    there.train()
    session = there.attempt()
    server, waiting = there.up_to("agree", session)
    monkeypatch.setattr(Store, "save_sum", lambda *_: (_ for _ in ()).throw(FolderError("full")))
    with pytest.raises(FolderError):
        there.ask("site-1", "agree", session, waiting["site-1"])
    monkeypatch.undo()
    signed = {name: there.ask(name, "agree", session, waiting[name]) for name in names[1:]}
    answer = there.ask("site-1", "reveal", session, server.signatures(signed))
    assert "takes part in no such attempt" in why(answer)


def test_an_update_is_not_kept_for_longer_than_the_record_of_its_sum(tmp_path: Path) -> None:
    """Without the record, it could be in a sum over other sites."""
    there = Coordinator(tmp_path)
    there.train()
    there.whole(there.attempt())
    site = there.sites["site-1"]
    old = time.time() - 366 * 86_400
    os.utime(site.home / "runs" / f"{RUN}.json", (old, old))
    asked = replace(train(), run="f" * 16, id="")
    site(wire.encode_request(replace(asked, id=wire.request_id(asked))))  # another run's record is written
    assert site.store.record(RUN).sums == ()
    there.restart("site-1")
    assert "no update for this sum" in why(there.ask("site-1", "keys", there.attempt()))
    assert there.sites["site-1"].store.answered(RUN, train().id) is None


def test_an_update_that_a_killed_save_left_behind_is_in_no_other_sum(tmp_path: Path) -> None:
    """It is deleted last of all, so its record may be gone before it."""
    there = Coordinator(tmp_path)
    left = tmp_path / "left"
    for round in range(3):
        there.train(round)
        there.whole(there.attempt(round))
        if round == 0:
            for name in NAMES:
                shutil.copytree(there.folder / name / "state" / RUN / "round-00001", left / name)
    for name in NAMES:
        (left / name).rename(there.folder / name / "state" / RUN / "round-00001")
        there.restart(name)
    there.train(2)
    for name in NAMES:
        assert there.sites[name].store.answered(RUN, train(0).id) is None


def test_of_two_sets_of_survivors_at_once_one_is_agreed_to(tmp_path: Path) -> None:
    """Two threads ask, each with a set that this site could agree to."""
    names = (*NAMES, "site-5", "site-6", "site-7")
    there = Coordinator(tmp_path, names)
    there.train()
    for _ in range(5):
        session = there.attempt()
        there.up_to("agree", session)
        sets = [names[:5], names[:6]]
        contents = [messages.encode_survivors(session.digest(), each) for each in sets]
        with ThreadPoolExecutor(2) as two:
            answers = list(two.map(partial(there.ask, "site-1", "agree", session), contents))
        (agreed,) = (each for each, answer in zip(sets, answers, strict=True) if isinstance(answer, bytes))
        assert there.sites["site-1"].store.sum_of(RUN, 0) == SumRecord(
            round=0, members=names, survivors=agreed
        )


# messages in another order ---------------------------------------------------------------------------------


def test_the_same_message_again_gets_the_same_answer(tmp_path: Path) -> None:
    """It may have been lost with a connection."""
    there = Coordinator(tmp_path)
    there.train()
    session = there.attempt()
    assert there.ask("site-1", "keys", session) == there.ask("site-1", "keys", session)
    for kind in PHASES[1:]:
        session = there.attempt()
        _, waiting = there.up_to(kind, session)
        first = there.ask("site-1", kind, session, waiting["site-1"])
        assert there.ask("site-1", kind, session, waiting["site-1"]) == first


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_is_answered_once(tmp_path: Path, phase: str) -> None:
    there = Coordinator(tmp_path)
    there.train()
    session = there.attempt()
    _, waiting = there.up_to(phase, session)
    there.ask("site-1", phase, session, waiting["site-1"])
    again = there.ask("site-1", phase, session, waiting["site-1"] + b"x")
    said = {"agree": "goes on after its end"}
    assert said.get(phase, "out of turn") in why(again)


@pytest.mark.parametrize("now", PHASES[1:])
@pytest.mark.parametrize("asked", PHASES)
def test_phases_out_of_their_order_are_refused(tmp_path: Path, now: str, asked: str) -> None:
    there = Coordinator(tmp_path)
    there.train()
    session = there.attempt()
    there.up_to(now, session)
    if asked == now:
        return
    answer = there.ask("site-1", asked, session, b"y")
    assert isinstance(answer, Failure)
    if asked != "keys" and PHASES.index(asked) != PHASES.index(now) - 1:
        assert "out of turn" in answer.reason or "agree" in (asked, now), answer.reason


def test_an_old_attempt_is_over_once_another_has_begun(tmp_path: Path) -> None:
    there = Coordinator(tmp_path)
    there.train()
    old, new = there.attempt(), there.attempt()
    _, waiting = there.up_to("masked", old)
    there.ask("site-1", "keys", new)
    answer = there.ask("site-1", "masked", old, waiting["site-1"])
    assert "takes part in no such attempt" in why(answer)


def test_a_message_of_another_attempt_is_refused(tmp_path: Path) -> None:
    there = Coordinator(tmp_path)
    there.train()
    first = there.attempt()
    _, old = there.up_to("agree", first)
    second = there.attempt()
    there.up_to("agree", second)
    assert isinstance(there.ask("site-1", "agree", second, old["site-1"]), Failure)
    assert there.sites["site-1"].store.sum_of(RUN, 0) == SumRecord(round=0, members=NAMES)


@pytest.mark.parametrize(
    "changed",
    [
        {"round": 1},
        {"request": "f" * 64},
        {"members": ("site-1", "site-2", "site-3")},
        {"length": 9},
        {"ring_bits": 64},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_message_of_another_session_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    there = Coordinator(tmp_path)
    there.train()
    session = there.attempt()
    _, waiting = there.up_to("shares", session)
    answer = there.ask("site-1", "shares", replace(session, **changed), waiting["site-1"])
    assert "takes part in no such attempt" in why(answer)


def test_a_restarted_site_has_no_keys_and_has_to_be_asked_to_train_first(tmp_path: Path) -> None:
    there = Coordinator(tmp_path)
    there.train()
    session = there.attempt()
    _, waiting = there.up_to("masked", session)
    there.restart("site-1")
    answer = there.ask("site-1", "masked", session, waiting["site-1"])
    assert "takes part in no such attempt at a sum, as after a restart" in why(answer)
    assert "ask it to train first" in why(there.ask("site-1", "keys", there.attempt()))
    there.train()  # its policy of now has allowed the answer that it keeps
    there.whole(there.attempt())


def test_a_server_that_shows_sites_different_adapters_gets_no_sum(tmp_path: Path) -> None:
    """Else it could have all but one send zeros in some place, and read that one's numbers from the sum."""
    there = Coordinator(tmp_path)
    for name in NAMES[1:]:
        there.sites[name](wire.encode_request(train()))
    other = Broadcast(round=0, adapter=Adapter({A: np.ones((2, 5), np.float32)}), seed=1)
    asked = replace(train(), broadcast=other, id="")
    asked = replace(asked, id=wire.request_id(asked))
    victim = there.sites["site-1"]
    assert isinstance(wire.decode_reply(victim(wire.encode_request(asked)) or b""), Trained)
    session = there.attempt()
    assert "no update for this sum that it was asked to train" in why(there.ask("site-1", "keys", session))
    own = replace(session, request=asked.id)
    keys = {"site-1": there.ask("site-1", "keys", own)}
    keys |= {name: there.ask(name, "keys", session) for name in NAMES[1:]}
    with pytest.raises(SecureError, match="another session"):
        messages.decode_keys(session.digest(), keys["site-1"])
    server = SumServer(session, directory(NAMES))
    server.roster(keys)
    assert "another session" in server.dropped["site-1"]


# which sums it takes part in -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"request": "f" * 64}, "no update for this sum"),
        ({"round": 1}, "no update for this sum"),
        ({"length": 11}, "keeps 10 numbers for a ring of 32 bits, and is asked for 11 in 32 bits"),
        ({"ring_bits": 64}, "keeps 10 numbers for a ring of 32 bits, and is asked for 10 in 64 bits"),
        ({"members": ("site-2", "site-3", "site-4")}, "site-1 is not a member of the secure sum"),
    ],
)
def test_a_sum_of_something_else_is_refused(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    there = Coordinator(tmp_path)
    there.train()
    assert reason in why(there.ask("site-1", "keys", there.attempt(**changed)))


def test_fewer_than_three_members_are_refused(tmp_path: Path) -> None:
    there = Coordinator(tmp_path)
    there.train()
    asked = there.attempt()
    two = object.__new__(Session)  # which `Session` would not make
    for name in asked.__slots__:
        object.__setattr__(two, name, getattr(asked, name) if name != "members" else NAMES[:2])
    assert "needs 3 to 1,000 sites" in why(there.ask("site-1", "keys", two))


def test_a_sum_that_others_could_open_with_fewer_than_min_cohort_is_refused(tmp_path: Path) -> None:
    there = Coordinator(tmp_path, policy=POLICY.model_copy(update={"min_cohort": 4}))
    there.train()
    assert "policy min_cohort = 4 of site-1 refuses a sum that 3 of 4 sites can open" in why(
        there.ask("site-1", "keys", there.attempt())
    )


def test_a_ring_that_the_members_fill_is_refused(tmp_path: Path) -> None:
    """30 bits from each of 4 sites are 32 bits."""
    tables = {**TABLES, "transforms": [{"name": "fixed_point", "norm": 1.0, "bits": 31}]}
    there = Coordinator(tmp_path, tables=tables)
    there.train()
    assert "do not fit a ring of 32 bits" in why(there.ask("site-1", "keys", there.attempt()))


def test_an_update_beyond_its_transform_is_refused(tmp_path: Path) -> None:
    """A ring of sums has no room for it, and it would wrap around."""
    tables = {**TABLES, "transforms": [{"name": "fixed_point", "norm": 1.0, "bits": 8}]}
    there = Coordinator(tmp_path, tables=tables)
    there.train()
    assert "do not fit" in why(there.ask("site-1", "keys", there.attempt()))


def test_noise_that_needs_more_honest_sites_than_can_open_a_sum_is_refused(tmp_path: Path) -> None:
    noisy = [{"name": "skellam", "norm": 1.0, "noise": 1.0, "honest": 4, "bits": 16}]
    there = Coordinator(tmp_path, tables={**TABLES, "transforms": noisy})
    there.train()
    assert "needs 4 honest sites in a sum, and 3 of 4 can open one" in why(
        there.ask("site-1", "keys", there.attempt())
    )
    few = [{**noisy[0], "honest": 3}]
    there = Coordinator(tmp_path / "few", tables={**TABLES, "transforms": few})
    there.train()
    assert isinstance(there.ask("site-1", "keys", there.attempt()), bytes)


def test_a_site_does_not_count_on_the_noise_of_those_who_may_collude(tmp_path: Path) -> None:
    """Three of four can open a sum; if one of them helps the server, the noise of two is left."""
    for honest, answered in ((3, False), (2, True)):
        noisy = [{"name": "skellam", "norm": 1.0, "noise": 1.0, "honest": honest, "bits": 16}]
        there = Coordinator(
            tmp_path / str(honest),
            tables={**TABLES, "transforms": noisy},
            policy=POLICY.model_copy(update={"colluding": 1}),
        )
        there.train()
        answer = there.ask("site-1", "keys", there.attempt())
        if answered:
            assert isinstance(answer, bytes)
        else:
            assert "3 of 4 can open one, of which 1 may collude (policy.colluding of site-1)" in why(answer)


def test_an_update_that_was_asked_for_without_masks_is_in_no_sum(tmp_path: Path) -> None:
    plain = {name: table for name, table in TABLES.items() if name != "secure"}
    there = Coordinator(tmp_path, tables=plain)
    there.train()
    assert "was asked to train without [secure]" in why(there.ask("site-1", "keys", there.attempt()))


def test_attempts_of_many_runs_do_not_pile_up(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(secure_sums, "MAX_ATTEMPTS", 2)
    there = Coordinator(tmp_path)
    site = there.sites["site-1"]
    for number in range(4):
        asked = replace(train(), run=f"{number:016x}", id="")
        asked = replace(asked, id=wire.request_id(asked))
        site(wire.encode_request(asked))
        there.ask("site-1", "keys", there.attempt(run=asked.run, request=asked.id))
    assert len(site.sums._attempts) == 2


# before anything is trained --------------------------------------------------------------------------------


PLAIN = {name: table for name, table in TABLES.items() if name != "secure"}


def test_real_numbers_are_refused_before_they_are_trained() -> None:
    require_trainable("site-1", train(), POLICY)
    require_trainable("site-1", train(tables={**PLAIN, "transforms": []}), POLICY)
    with pytest.raises(RequestRefused, match="can mask whole numbers only") as refused:
        require_trainable("site-1", train(tables={**TABLES, "transforms": []}), POLICY)
    assert refused.value.refusal.rule == "secure"


def test_nobody_trains_for_a_sum_that_its_rules_refuse() -> None:
    """The visit would spend the site's privacy budget, and the update could not leave."""
    strict = POLICY.model_copy(update={"min_cohort": 4})
    noisy = {**TABLES, "transforms": [{"name": "skellam", "honest": 3}]}
    wary = POLICY.model_copy(update={"colluding": 1})
    for policy, tables, reason in (
        (strict, TABLES, "min_cohort = 4 of site-1 refuses a sum that 3 of 4 sites can open"),
        (wary, noisy, "needs 3 honest sites in a sum, and 3 of 4 can open one, of which 1 may collude"),
    ):
        with pytest.raises(RequestRefused, match=reason):
            require_trainable("site-1", train(tables=tables), policy)
        require_trainable("site-1", replace(train(tables=tables), cohort=7), policy)
    with pytest.raises(RequestRefused, match="needs 3 to 1,000 sites"):
        require_trainable("site-1", replace(train(), cohort=2), POLICY)


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        (
            {"algorithm": {"name": "fedsa_lora"}},
            "'fedsa_lora' has clients keep something",
        ),
        ({"algorithm": {"name": "local_adapter"}}, "'local_adapter' has clients keep something"),
        ({"tuning": {"epochs": 1.0}}, r"set tuning\.max_steps in place of tuning\.epochs"),
        ({"tuning": {"batch_size": 8}}, r"set tuning\.max_steps in place of tuning\.epochs"),
        ({"federation": {"weights": "examples"}}, 'set federation.weights = "equal" or "size"'),
        ({"federation": {"weights": "tokens"}}, 'set federation.weights = "equal" or "size"'),
    ],
)
def test_a_site_trains_for_no_sum_that_one_update_would_decide(tables: Any, reason: str) -> None:
    """A lead that skips the server's checks must not get it either: it decides whose memory differs."""
    policy = POLICY.model_copy(update={"algorithms": ("fedavg", "fedsa_lora", "local_adapter")})
    for kind in ("train", "join"):
        with pytest.raises(RequestRefused, match=reason) as refused:
            require_trainable("site-1", replace(train(tables={**TABLES, **tables}), kind=kind), policy)
        assert refused.value.refusal.rule == "secure"
    require_trainable("site-1", train(tables={**PLAIN, **tables}), policy)


def test_keys_are_dropped_with_the_next_round_and_where_a_server_does_not_go_on(tmp_path: Path) -> None:
    """Shares that a site holds for others would open sums of theirs that were recorded on the way."""
    there = Coordinator(tmp_path)
    there.train()
    session = there.attempt()
    there.up_to("agree", session)
    sums = there.sites["site-1"].sums
    assert set(sums._attempts) == {RUN}
    ending = sums._attempts[RUN].end
    assert ending is not None
    assert ending.interval == 4 * 60.0  # the server may ask one of four after another
    assert ending.daemon
    ending.function(*ending.args)
    assert not sums._attempts
    assert ending.finished.is_set()
    assert "takes part in no such attempt" in why(there.ask("site-1", "agree", session))

    there.up_to("agree", there.attempt())
    assert set(sums._attempts) == {RUN}
    there.train(1)
    assert not sums._attempts


def test_updates_of_more_runs_than_a_site_remembers_are_trained_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(secure_sums, "MAX_RUNS", 2)
    there = Coordinator(tmp_path)
    sums = there.sites["site-1"].sums
    update = there.sites["site-1"].update(train())
    for run in ("1" * 16, "2" * 16, "3" * 16):
        sums.trained(replace(train(), run=run), update)
    assert list(sums._released) == ["2" * 16, "3" * 16]


def test_a_site_without_the_extra_says_so_in_one_sentence(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "shepherd.silos.secure", None)
    monkeypatch.delattr("shepherd.silos.secure", raising=False)
    with pytest.raises(RequestRefused, match=r"site-1 cannot mask its updates: .* lacks the extra \[silos\]"):
        require_trainable("site-1", train(), POLICY)
    require_trainable("site-1", train(tables=PLAIN), POLICY)


def test_a_run_that_began_under_masks_does_not_go_on_without(tmp_path: Path) -> None:
    there = Coordinator(tmp_path)
    store = there.sites["site-1"].store
    plain = {name: table for name, table in TABLES.items() if name != "secure"}
    require_no_downgrade("site-1", train(0, plain), store)
    there.train()
    require_no_downgrade("site-1", train(1), store)
    with pytest.raises(RequestRefused, match=r"is asked for one without; put \[secure\] back"):
        require_no_downgrade("site-1", train(1, plain), store)
    for kind in ("join", "score"):
        with pytest.raises(RequestRefused):
            require_no_downgrade("site-1", replace(train(1, plain), kind=kind), store)


def test_codes_are_in_the_servers_order() -> None:
    """Those of the change by name, then those of the extra by name."""
    delta = {"b": np.array([[3, 4]]), "a": np.array([1, 2])}
    update = Update(
        round=0,
        delta=wire.Payload(delta),
        extra=wire.Payload({"w": np.array([5])}),
        weight=1.0,
        clients=("x",),
    )
    assert secure_sums._codes(update).tolist() == [1, 2, 3, 4, 5]
