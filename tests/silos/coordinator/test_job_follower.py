"""Keeping a run going, against a server that is a script, in time that passes only by sleeping."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nvflare")

from tests.silos.servers import AWAY, DONE, GONE, ORDER, SILENT, Clock, Server, replaced, said

from shepherd.core import Adapter, ServerState
from shepherd.errors import FederationError, OutOfReach, SilosError
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.settings import SilosTable
from shepherd.silos.coordinator import job_follower
from shepherd.silos.coordinator.job_follower import JobFollower, StatusUpdate
from shepherd.silos.flare.probe import MAX_HANG_UPS, HungUp
from shepherd.silos.flare.session import Quiet, Work


@dataclass
class Followed:
    """A run that is followed, and what it was told to say."""

    run: JobFollower
    words: list[str]
    clock: Clock

    def news(self) -> list[StatusUpdate]:
        """All of it, taking the rows as the coordinator does."""
        found = []
        for news in self.run.news():
            self.run.rows += len(news.rows)
            found.append(news)
        return found

    def rounds(self) -> list[int]:
        return [row["round"] for news in self.news() for row in news.rows]


Follow = Callable[..., Followed]
WAITS = SilosTable()


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Follow:
    state = ServerState(round=0, adapter=Adapter({"a": np.ones(2)}))
    given = checkpoint.save(tmp_path / "checkpoints", Checkpoint(state=state), keep=1)

    def made(server: Server, **more: Any) -> Followed:
        clock, words = replaced(monkeypatch, server), list[str]()
        order = more.pop("order", ORDER)
        run = JobFollower(
            kit=tmp_path,
            order=order,
            cohort=len(order.sites),
            state=lambda: given,
            scratch=tmp_path / "jobs",
            echo=words.append,
            **more,
        )
        return Followed(run, words, clock)

    return made


THREE = replace(ORDER, sites=("a", "b", "c"))


def test_a_run_is_told_row_by_row_to_its_end(follow: Follow) -> None:
    server = Server([[GONE, SILENT, said(1), said(2), said(2), said(4, DONE)]])
    server.statuses["job-0"] = "RUNNING"  # beginning: not to be asked yet
    followed = follow(server)

    news = followed.news()

    assert [[row["round"] for row in each.rows] for each in news] == [[], [0], [1], [], [2, 3]]
    assert [each.restart for each in news] == [True, False, False, False, False]
    assert news[-1].outcome == DONE
    assert server.brought == ["round-00000"]
    assert server.events == ["login", "submit job-0", "abort job-0", "logout"]


def test_its_job_is_known_before_it_has_answered(follow: Follow) -> None:
    """So that it is on record if the coordinator dies now."""
    server = Server([[said(1)]])
    first = next(follow(server).run.news())
    assert (first.job, first.restart, server.asked) == ("job-0", True, [])


def test_who_stops_reading_leaves_the_job_to_the_server(follow: Follow) -> None:
    server = Server([[said(1), said(2)]])
    reading = follow(server).run.news()
    next(reading)
    next(reading)

    reading.close()

    assert server.aborted == []
    assert server.events[-1] == "logout"


def test_who_comes_back_hears_of_the_same_job(follow: Follow) -> None:
    server = Server([[said(5), said(6, DONE)]], submitted=["job-0"], running={"job-0"})
    followed = follow(server, job="job-0", rows=3)

    assert followed.rounds() == [3, 4, 5]
    assert server.submitted == ["job-0"]


@pytest.mark.parametrize("ended", ["FINISHED:EXECUTION_EXCEPTION", "FINISHED:ABORTED"])
def test_a_job_that_ended_is_followed_by_another(follow: Follow, ended: str) -> None:
    server = Server([[said(2), GONE], [said(3, DONE)]])
    server.statuses["job-0"] = ended
    followed = follow(server)

    assert followed.rounds() == [0, 1, 2]
    assert server.events == [
        "login", "submit job-0", "abort job-0", "submit job-1", "abort job-1", "logout",
    ]  # fmt: skip


def test_a_job_that_the_server_forgot_is_followed_by_another(follow: Follow) -> None:
    class Forgetful(Server):
        def status(self, job: str) -> str:
            raise GONE

    server = Forgetful([[said(2), GONE], [said(3, DONE)]])
    assert follow(server).rounds() == [0, 1, 2]


def test_a_job_that_is_silent_for_long_is_followed_by_another(follow: Follow) -> None:
    server = Server([[said(2), SILENT], [said(3, DONE)]])
    followed = follow(server)
    began = followed.clock.now

    assert followed.rounds() == [0, 1, 2]
    assert WAITS.silence_s < followed.clock.now - began < WAITS.silence_s + 2
    assert server.aborted == ["job-0", "job-1"]


def test_a_record_that_says_running_of_a_job_that_does_not_is_not_believed(follow: Follow) -> None:
    server = Server([[GONE], [said(1, DONE)]], submitted=["job-0"], statuses={"job-0": "RUNNING"})
    follow(server, job="job-0").news()
    assert server.submitted == ["job-0", "job-1"]


def test_a_job_that_waits_for_its_turn_is_waited_for(follow: Follow) -> None:
    script: list[Any] = [GONE, GONE, said(1, DONE)]
    server = Server([script], submitted=["job-0"], statuses={"job-0": "SUBMITTED"})
    follow(server, job="job-0").news()
    assert server.submitted == ["job-0"]


def test_jobs_that_die_again_and_again_end_it_with_one_sentence(follow: Follow) -> None:
    server = Server([[GONE]] * 20)
    with pytest.raises(FederationError, match="12 jobs in a row died without finishing a round"):
        follow(server).news()
    assert len(server.submitted) == WAITS.max_deaths + 1


def test_a_finished_round_between_deaths_is_hope(follow: Follow) -> None:
    dying = [[said(number), GONE] for number in range(1, 20)]
    server = Server([*dying, [said(20, DONE)]])
    assert follow(server).rounds() == list(range(20))


def test_a_server_that_was_never_there_is_told_at_once(follow: Follow) -> None:
    server = Server([[said(1, DONE)]], logins=[AWAY])
    with pytest.raises(OutOfReach, match="start it"):
        follow(server).news()


def test_a_server_that_goes_away_is_tried_again_and_its_job_gone_on_with(follow: Follow) -> None:
    server = Server([[said(2), AWAY, said(3, DONE)]], logins=[None, AWAY, AWAY, AWAY])
    followed = follow(server)

    assert followed.rounds() == [0, 1, 2]
    assert server.submitted == ["job-0"]
    assert server.aborted == ["job-0"]  # at its end alone
    assert followed.words == ["the server is down; start it; trying again"]  # said once
    assert [pause for pause in followed.clock.pauses if pause != job_follower.POLL_S] == [1.0, 2.0, 4.0, 8.0]


HUNG_UP = HungUp("the server refuses ada (it closed the connection); or it is ending")


def test_a_server_that_hangs_up_as_it_ends_is_tried_again(follow: Follow) -> None:
    server = Server([[said(2), AWAY, said(3, DONE)]], logins=[None, *[HUNG_UP] * MAX_HANG_UPS])
    assert follow(server).rounds() == [0, 1, 2]
    assert server.submitted == ["job-0"]


def test_a_server_that_hangs_up_again_and_again_refuses(follow: Follow) -> None:
    server = Server([[said(2), AWAY, said(3, DONE)]], logins=[None, *[HUNG_UP] * 20])
    with pytest.raises(HungUp):
        follow(server).news()


def test_a_server_that_hangs_up_on_the_first_login_refuses(follow: Follow) -> None:
    with pytest.raises(HungUp):
        follow(Server([[said(1, DONE)]], logins=[HUNG_UP])).news()


def test_what_a_job_said_is_told_once_also_over_a_lost_connection(follow: Follow) -> None:
    class Talking(Server):
        def ask_job(self, job: str, asked: dict[str, Any]) -> dict[str, Any]:
            told = super().ask_job(job, asked)
            return {**told, "said": ["b: refused"][asked["said"] :]}

    server = Talking([[said(1), AWAY, said(1), said(2, DONE)]])
    assert [line for news in follow(server).news() for line in news.said] == ["b: refused"]


@pytest.mark.parametrize("error", [AWAY, OutOfReach("the job is not running; wait")])
def test_an_old_job_that_cannot_be_ended_holds_up_the_next_only_if_it_runs(
    follow: Follow, error: OutOfReach
) -> None:
    class Stubborn(Server):
        tries = 0

        def abort(self, job: str) -> None:
            self.tries += 1
            self.events.append(f"try {job}")
            if self.tries == 1:
                raise error
            super().abort(job)

    server = Stubborn([[said(1), SILENT], [said(2, DONE)]])
    followed = follow(server)
    if error is AWAY:
        assert followed.rounds() == [0, 1]
        assert server.events.index("abort job-0") < server.events.index("submit job-1")
        return
    server.scripts[0][1] = GONE
    assert followed.rounds() == [0, 1]
    assert "abort job-0" not in server.events


def test_a_site_that_is_back_and_out_of_the_job_gets_a_new_job(follow: Follow) -> None:
    server = Server([[said(1), said(1, present=("a",))], [said(2, DONE)]])
    outside = {"a": frozenset({"job-0"}), "b": frozenset[str]()}
    server.working_ = lambda job: outside if job == "job-0" else {"a": frozenset({job})}
    followed = follow(server)

    assert followed.rounds() == [0, 1]
    assert followed.words == ["b reconnected: a new job repeats the round"]
    assert server.events.index("abort job-0") < server.events.index("submit job-1")


def test_a_site_that_never_gets_in_does_not_keep_the_others_from_working(follow: Follow) -> None:
    """Jobs for its sake come ever less often."""
    server = Server([[said(1, present=("a",))]] * 40)
    server.working_ = lambda job: {"a": frozenset({job}), "b": frozenset()}
    followed = follow(server)
    began: list[float] = []

    for news in followed.run.news():
        if news.restart:
            began.append(followed.clock.now)
        if followed.clock.now > 1000.0 + 3600.0:
            break

    pauses = np.diff(began[1:])
    assert all(pauses[:-1] <= pauses[1:] + job_follower.ABSENCE_CHECK_S)
    assert [round(float(pause) / job_follower.RESTART_PAUSE_S) for pause in pauses[:4]] == [1, 2, 4, 8]
    assert len(began) < 12


def test_a_site_that_gives_no_answer_is_given_up_after_a_while(follow: Follow) -> None:
    server = Server([[said(1, present=("a",))]])
    server.working_ = lambda job: {"a": frozenset({job}), "b": Quiet.SILENT}
    followed = follow(server)

    away = []
    for news in followed.run.news():
        if not news.restart:
            away.append((followed.clock.now, server.asked[-1]["away"]))
        if len(away) > 400:
            break

    first = next(now for now, sites in away if sites == ["b"])
    assert all(sites == [] for now, sites in away if now < 1000.0 + WAITS.grace_s)
    assert first < 1000.0 + WAITS.grace_s + 2 * job_follower.ABSENCE_CHECK_S
    assert server.submitted == ["job-0"]


def test_a_site_that_may_not_say_what_it_does_is_left_alone(follow: Follow) -> None:
    """Its owner grants this administrator nothing: it is neither out of work nor away."""
    server = Server([[*[said(1, present=("a", "b"))] * 400, said(2, DONE)]])
    server.working_ = lambda job: {"a": frozenset({job}), "b": Quiet.UNWILLING}
    followed = follow(server)

    assert followed.rounds() == [0, 1]
    assert followed.clock.now > 1000.0 + job_follower.LONG_ROUND_S + 2 * job_follower.ABSENCE_CHECK_S
    assert server.submitted == ["job-0"]
    assert all(asked["away"] == [] for asked in server.asked)
    assert followed.words == ["b does not disclose what it works on, so if it drops out it is not waited for"]


def test_a_job_is_not_taken_for_dead_while_silent_sites_are_asked(follow: Follow) -> None:
    def slow(job: str) -> dict[str, Work]:
        followed.clock.sleep(WAITS.silence_s + 5.0)
        return {"a": frozenset({job}), "b": Quiet.SILENT}

    server = Server([[said(1, present=("a",)), *20 * [said(1, present=("a",)), SILENT], said(2, DONE)]])
    server.statuses["job-0"] = "RUNNING"
    server.working_ = slow
    followed = follow(server)

    assert followed.rounds() == [0, 1]
    assert server.submitted == ["job-0"]


def test_it_waits_a_while_for_sites_and_begins_without_those_that_stay_away(follow: Follow) -> None:
    server = Server([[said(1, DONE, present=("a", "c"))]], connected_=["a", "c", "x"])
    followed = follow(server, order=THREE)

    followed.news()

    assert followed.words == ["waiting for b to connect; connected: a, c, x", "starting without b"]
    assert WAITS.assembly_s <= sum(followed.clock.pauses) < WAITS.assembly_s + 5
    assert [asked["unawaited"] for asked in server.asked] == [["b"]]  # the job does not wait for it again
    assert [asked["away"] for asked in server.asked] == [[]]  # and if it is in the job after all, it is asked


def test_a_run_of_several_sites_does_not_begin_with_one(follow: Follow) -> None:
    """Its mean would be that site's own update, whatever federation.quorum says."""
    server = Server([[said(1, DONE)]], connected_=["a"])
    followed = follow(server, stopped=lambda: followed.clock.now > 1000.0 + 3600.0)
    with pytest.raises(FederationError, match="was stopped"):
        followed.news()
    assert followed.words == ["waiting for b to connect; connected: a"]
    assert server.submitted == []


def test_a_site_that_is_back_for_the_next_job_is_not_away(follow: Follow) -> None:
    def dies(server: Server) -> Any:
        server.connected_ = ["a", "b", "c"]
        return GONE

    server = Server([[said(1, present=("a", "c")), dies], [said(2, DONE)]], connected_=["a", "c"])
    follow(server, order=THREE).news()
    assert [asked["unawaited"] for asked in server.asked] == [["b"], ["b"], []]


def test_it_does_not_begin_without_any_site_and_says_who_is_there(follow: Follow) -> None:
    server = Server([[said(1, DONE)]])
    followed = follow(server, stopped=lambda: followed.clock.now > 1000.0 + 3600.0)
    server.connected_ = ["c"]

    with pytest.raises(FederationError, match="was stopped"):
        followed.news()

    assert followed.words == ["waiting for a, b to connect; connected: c"]
    assert server.submitted == []


@pytest.mark.parametrize(("then", "aborted"), [(GONE, []), (SILENT, ["job-0"]), (said(2), ["job-0"])])
def test_who_stops_it_ends_its_job_and_no_other_begins(follow: Follow, then: Any, aborted: list[str]) -> None:
    stopped: list[bool] = []

    def stop(server: Server) -> Any:
        stopped.append(True)
        return then

    server = Server([[said(1), said(2), stop]])
    with pytest.raises(FederationError, match="stopped by `shepherd silos stop`; continue it"):
        follow(server, stopped=lambda: bool(stopped)).news()
    assert server.submitted == ["job-0"]
    assert server.aborted == aborted


def test_who_stops_it_need_not_wait_for_a_server_that_is_away(follow: Follow) -> None:
    stopped: list[bool] = []

    def stop(server: Server) -> Any:
        stopped.append(True)
        return AWAY

    server = Server([[said(1), stop]])
    with pytest.raises(FederationError, match="was stopped"):
        follow(server, stopped=lambda: bool(stopped)).news()


def test_an_outcome_that_was_not_taken_is_told_again(follow: Follow) -> None:
    server = Server([[said(2, DONE)]])
    followed = follow(server)
    outcomes = 0
    for news in followed.run.news():
        outcomes += bool(news.outcome)
        followed.run.again = bool(news.outcome) and outcomes < 3
    assert outcomes == 3
    assert server.aborted == ["job-0"]


def test_a_job_that_failed_before_is_not_the_last_word(follow: Follow) -> None:
    """Whoever resumes a run has repaired what ended it."""
    server = Server(
        [[said(2, {"error": "quorum", "kind": "QuorumNotMet"})], [said(3, DONE)]],
        submitted=["job-0"],
        running={"job-0"},
    )
    followed = follow(server, job="job-0", rows=2)

    assert [news.outcome for news in followed.news()][-1] == DONE
    assert server.events[1:3] == ["abort job-0", "submit job-1"]


def test_an_error_of_its_own_job_is_the_last_word(follow: Follow) -> None:
    server = Server([[said(2, {"error": "quorum", "kind": "QuorumNotMet"})]])
    assert [news.outcome for news in follow(server).news()][-1] == {"error": "quorum", "kind": "QuorumNotMet"}


LACKED = {"error": "quorum", "kind": "QuorumNotMet"}


def test_a_job_that_began_before_its_sites_were_there_is_begun_anew(follow: Follow) -> None:
    """A server that was killed starts what it was given by itself, with whoever is there first."""
    server = Server([[said(1, LACKED, present=("a",))], [said(3, DONE)]])
    turns = iter(range(100))

    def working(job: str) -> dict[str, Work]:
        here: dict[str, Work] = {"a": frozenset({job})}
        return {**here, "b": frozenset[str]()} if next(turns) > 3 else here  # b comes a little later

    server.working_ = working
    followed = follow(server)

    assert followed.rounds() == [0, 1, 2]
    assert followed.words == ["b connected too late for the round: a new job repeats it"]


def test_a_quorum_that_nobody_can_make_up_for_is_the_last_word(follow: Follow) -> None:
    server = Server([[said(1, LACKED, present=("a",))]])
    server.working_ = lambda job: {"a": frozenset({job})}
    followed = follow(server)

    assert followed.news()[-1].outcome == LACKED
    assert server.submitted == ["job-0"]
    assert followed.clock.now < 1000.0 + WAITS.return_s + 5


def test_a_job_that_was_ended_from_outside_is_followed_by_another(follow: Follow) -> None:
    server = Server([[said(2, {"error": "stopped", "kind": "Stopped"}), GONE], [said(3, DONE)]])
    assert follow(server).rounds() == [0, 1, 2]


def test_a_job_that_failed_before_it_began_takes_no_round_back(follow: Follow) -> None:
    failed = said(0, {"error": "the disk is full", "kind": "FolderError"}, opened=False)
    followed = follow(Server([[failed]]), rows=7)
    assert [(news.round, news.count) for news in followed.news()] == [(6, 7), (6, 7)]


def test_a_refused_kit_or_job_is_told_at_once(follow: Follow) -> None:
    class Refusing(Server):
        def submit(self, folder: Path) -> str:
            raise SilosError("the server does not let max do this; use another kit")

    with pytest.raises(SilosError, match="does not let max"):
        follow(Refusing([])).news()


def part(data: bytes, of: int) -> dict[str, Any]:
    return {"state": {"data": base64.b64encode(data).decode(), "of": of}}


def test_a_checkpoint_comes_in_pieces(follow: Follow) -> None:
    contents = {name: bytes(range(size)) for name, size in zip(checkpoint.FILES, (7, 0, 3), strict=True)}

    class Keeping(Server):
        def ask_job(self, job: str, asked: dict[str, Any]) -> dict[str, Any]:
            if "state" not in asked:
                return super().ask_job(job, asked)
            wanted = asked["state"]
            data = contents[wanted["file"]]
            assert wanted["round"] == 1
            return part(data[wanted["offset"] : wanted["offset"] + 3], len(data))

    (*_, last) = follow(Keeping([[said(2, DONE)]])).run.news()
    assert last.fetch is not None

    found: dict[str, bytes] = {}
    for name, data in last.fetch(1):
        found[name] = found.get(name, b"") + data
    assert found == contents


@pytest.mark.parametrize("answer", [{"state": None}, part(b"", 9)])
def test_a_checkpoint_that_is_gone_or_cut_is_said_and_not_asked_for_ever(
    follow: Follow, answer: dict[str, Any]
) -> None:
    class Losing(Server):
        def ask_job(self, job: str, asked: dict[str, Any]) -> dict[str, Any]:
            return super().ask_job(job, asked) if "state" not in asked else answer

    (*_, last) = follow(Losing([[said(2, DONE)]])).run.news()
    assert last.fetch is not None
    with pytest.raises(FederationError, match="no complete checkpoint of round 1"):
        list(last.fetch(1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"round": "1"},
        {"rows": 7},
        {"present": None},
        {"progress": {"round": 1}},
        {"said": [3]},
        {"outcome": 1},
    ],
)
def test_what_a_server_may_not_tell_ends_it_in_one_sentence(follow: Follow, wrong: dict[str, Any]) -> None:
    class Strange(Server):
        def ask_job(self, job: str, asked: dict[str, Any]) -> dict[str, Any]:
            return {**super().ask_job(job, asked), **wrong}

    with pytest.raises(FederationError, match="the server's status of the run is invalid"):
        follow(Strange([[said(1, DONE)]])).news()


def test_a_server_that_never_stops_talking_is_not_listened_to(follow: Follow) -> None:
    class Talking(Server):
        def ask_job(self, job: str, asked: dict[str, Any]) -> dict[str, Any]:
            return {**super().ask_job(job, asked), "said": ["x"] * 600}

    server = Talking([[*[said(1)] * 9, said(2, DONE)]])
    assert sum(len(news.said) for news in follow(server).news()) == 1200


def test_a_checkpoint_larger_than_the_runs_is_not_taken(follow: Follow) -> None:
    class Large(Server):
        def ask_job(self, job: str, asked: dict[str, Any]) -> dict[str, Any]:
            return super().ask_job(job, asked) if "state" not in asked else part(b"x" * 100, 10**9)

    (*_, last) = follow(Large([[said(2, DONE)]]), max_file_bytes=1000).run.news()
    assert last.fetch is not None
    with pytest.raises(FederationError, match="more than 1000"):
        next(last.fetch(1))
