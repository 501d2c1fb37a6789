"""A federation that learns sums alone: the right sum or none, whoever is lost, and whenever."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from benchmarks.masking import PHASES, TABLES, Killed, Room, Site, codes, directory, failing
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.silos.server.posts import update as plain_update

from shepherd.core import Adapter, Broadcast, Expected, Failure, Update, shapes_of
from shepherd.core.stragglers import Stragglers
from shepherd.errors import QuorumNotMet
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import SumRequest, Trained
from shepherd.silos.secure import messages, threshold
from shepherd.silos.server.secure_federation import SecureFederation
from shepherd.silos.server.site_federation import RequestContext, SiteFederation

A, B = "q.lora_A.weight", "q.lora_B.weight"
ADAPTER = Adapter({A: np.zeros((2, 5), np.float32), B: np.zeros((3, 2), np.float32)})
RUN = "0" * 16


def broadcast(round: int = 0) -> Broadcast:
    return Broadcast(round=round, adapter=ADAPTER, seed=7)


def names(count: int) -> list[str]:
    return [f"site-{number}" for number in range(1, count + 1)]


def room(folder: Path, count: int, **each: Any) -> Room:
    """A room of sites with these attributes; a mapping gives each site its own."""
    called = names(count)
    own = {
        name: {key: value[name] if isinstance(value, Mapping) and name in value else value
               for key, value in each.items() if not isinstance(value, Mapping) or name in value}
        for name in called
    }  # fmt: skip
    return Room({name: Site(name, folder / name, called, **own[name]) for name in called})


def federation(folder: Path, there: Room, fewest: int = 1, **more: Any) -> SecureFederation:
    terms = RequestContext(
        run=RUN, base="b" * 64, version="0.1.0", settings=TABLES,
        deadline_s=5.0, short_deadline_s=4.0, max_in_flight=2,
    )  # fmt: skip
    silos = SiteFederation(transport=there, request_context=terms, sites=list(there.sites))
    given = {
        "silos": silos,
        "ring_bits": 32,
        "layout": lambda sent: Expected(delta=shapes_of(sent.adapter), extra={}),
        "fewest": lambda cohort: fewest,
        "agreed": folder / "agreed.json",
        "directory": directory(list(there.sites)),
    }
    return SecureFederation(**{**given, **more})


def summed(sites: Any, round: int = 0) -> dict[str, np.ndarray]:
    return {name: sum(codes(site, round, t.shape) for site in sites) for name, t in ADAPTER.items()}


def ran(folder: Path, there: Room, round: int = 0, **more: Any) -> tuple[dict[str, str], Update]:
    """The failures of a round, and its one update."""
    *lost, update = federation(folder, there, **more).run(broadcast(round), list(there.sites))
    assert all(isinstance(each, Failure) for each in lost)
    assert isinstance(update, Update)
    return {each.client: each.reason for each in lost}, update


def test_it_yields_the_sum_of_the_sites_whole_numbers(tmp_path: Path) -> None:
    there = room(tmp_path, 4)
    lost, update = ran(tmp_path, there)
    assert lost == {}
    assert (update.clients, update.weight, update.round, dict(update.metrics)) == (
        tuple(names(4)), 4.0, 0, {},
    )  # fmt: skip
    assert update.delta.keys() == ADAPTER.keys()
    for name, total in summed(names(4)).items():
        assert update.delta[name].dtype == np.int64
        assert np.array_equal(update.delta[name], total), name
    assert dict(update.extra) == {}
    assert [kind for kind, _ in there.asked] == [
        kind for kind in ("join", "train", *PHASES) for _ in range(4)
    ]


def test_what_the_server_sees_of_a_site_is_no_update_of_it(tmp_path: Path) -> None:
    there = room(tmp_path, 3)
    ran(tmp_path, there)
    replies = {type(reply).__name__ for _, _, reply in there.seen}
    assert replies == {"Ready", "Trained", "SumAnswer"}
    for site in names(3):
        own = np.concatenate([codes(site, 0, t.shape).ravel() for _, t in sorted(ADAPTER.items())])
        plain = own.astype("<i8").astype("<u4").tobytes()
        sent = [reply.content for name, _, reply in there.seen if name == site and hasattr(reply, "content")]
        assert all(plain not in content for content in sent)
        (masked,) = [content for content, kind in zip(sent, PHASES, strict=True) if kind == "masked"]
        assert len(masked) - len(plain) < 200


@pytest.mark.parametrize("kind", ["join", "train", *PHASES])
@pytest.mark.parametrize("reason", ["out of memory", ""], ids=["says so", "is silent"])
def test_a_site_may_be_lost_in_any_phase(tmp_path: Path, kind: str, reason: str) -> None:
    there = room(tmp_path, 4, fault={"site-2": failing("site-2", kind, reason=reason)})
    lost, update = ran(tmp_path, there)
    rest = [site for site in names(4) if site != "site-2"]
    if kind in ("agree", "reveal"):  # its numbers are in the sum by then
        assert (lost, update.clients) == ({}, tuple(names(4)))
    else:
        assert update.clients == tuple(rest)
        assert lost.keys() == {"site-2"}
        assert (reason or "did not reply within") in lost["site-2"]
    for name, total in summed(update.clients).items():
        assert np.array_equal(update.delta[name], total), name


@hypothesis_settings(max_examples=10)
@given(st.data())
def test_any_losses_give_the_right_sum_or_none(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 6))
    at = {
        site: data.draw(st.sampled_from(["never", "never", "never", "train", *PHASES]))
        for site in names(count)
    }
    with TemporaryDirectory() as folder:
        there = room(Path(folder), count, fault={site: failing(site, kind) for site, kind in at.items()})
        left = [site for site in names(count) if at[site] not in ("train", "keys", "shares", "masked")]
        opening = [site for site in left if at[site] not in ("agree", "reveal")]
        if len(opening) < threshold(count):
            with pytest.raises(QuorumNotMet, match="round 1 has no secure sum"):
                ran(Path(folder), there)
            return
        lost, update = ran(Path(folder), there)
    assert update.clients == tuple(left)
    assert lost.keys() == set(names(count)) - set(left)
    for name, total in summed(left).items():
        assert np.array_equal(update.delta[name], total), name


@pytest.mark.parametrize(
    ("count", "fault", "last"),
    [
        (3, {"site-1": failing("site-1", "train")}, "train"),
        (5, {site: failing(site, "shares") for site in ("site-1", "site-2")}, "shares"),
        (4, {site: failing(site, "masked") for site in ("site-1", "site-2")}, "masked"),
        (4, {site: failing(site, "agree") for site in ("site-1", "site-2")}, "agree"),
        (4, {site: failing(site, "reveal", reason="busy") for site in ("site-1", "site-2")}, "reveal"),
    ],
)
def test_too_few_sites_are_a_failed_round_that_reveals_nothing(
    tmp_path: Path, count: int, fault: Any, last: str
) -> None:
    there = room(tmp_path, count, fault=fault)
    with pytest.raises(
        QuorumNotMet, match=r"round 1 has no secure sum, and nothing of it is revealed: .*site-1: "
    ) as error:
        ran(tmp_path, there)
    assert "site-3:" not in str(error.value)
    assert there.asked[-1][0] == last
    opened = [
        reply for _, asked, reply in there.seen if asked.kind == "reveal" and not isinstance(reply, Failure)
    ]
    assert len(opened) < threshold(count)


def test_a_sum_that_the_round_could_not_use_is_not_opened(tmp_path: Path) -> None:
    """A quorum or an aggregation that asks for more than the threshold."""
    fault = {"site-1": failing("site-1", "masked")}
    with pytest.raises(QuorumNotMet, match="3 sites are left, and its sum needs 4"):
        ran(tmp_path / "quorum", there := room(tmp_path / "quorum", 4, fault=fault), fewest=4)
    assert "agree" not in dict(there.asked)


def test_a_site_that_says_a_min_cohort_above_the_threshold_is_lost_and_nobody_else(tmp_path: Path) -> None:
    """Or one site could have every round thrown away."""
    there = room(tmp_path, 4)
    joined = there.sites["site-2"]
    there.sites["site-2"] = lambda message: _asks_for_four(joined, message)
    lost, update = ran(tmp_path, there)
    assert "its min_cohort is 4, and 3 sites can open the sum" in lost["site-2"]
    assert update.clients == ("site-1", "site-3", "site-4")
    assert {kind for kind, site in there.asked if site == "site-2"} == {"join"}


def _asks_for_four(site: Any, message: bytes) -> bytes:
    answer = site(message)
    if wire.decode_asked(message).kind != "join":
        return answer
    return wire.encode_reply(replace(wire.decode_reply(answer), min_cohort=4))


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_sites_are_refused_before_anybody_trains(tmp_path: Path, count: int) -> None:
    there = room(tmp_path, count)
    with pytest.raises(QuorumNotMet, match="needs 3 to 1,000 sites"):
        ran(tmp_path, there)
    assert there.asked == []


def test_where_noise_hides_who_was_asked_an_error_names_nobody(tmp_path: Path) -> None:
    there = room(tmp_path, 3, fault={"site-1": failing("site-1", "masked", reason="out of memory")})
    with pytest.raises(QuorumNotMet) as error:
        ran(tmp_path, there, names_sites=False)
    assert "site" not in str(error.value).replace("those sites", "").replace("the sites", "")
    assert "memory" not in str(error.value)


# what a site may send instead ------------------------------------------------------------------------------


def _instead(site: Any, kind: str, change: Any) -> Any:
    def changed(message: bytes) -> bytes | None:
        asked, answer = wire.decode_asked(message), site(message)
        if asked.kind != kind or answer is None:
            return answer
        return change(asked, wire.decode_reply(answer))

    return changed


def _mislead(there: Room, site: str, kind: str, change: Any) -> None:
    """Have a site's replies of a kind changed."""
    send = lambda asked, reply: wire.encode_reply(change(asked, reply))  # noqa: E731
    there.sites[site] = _instead(there.sites[site], kind, send)


WRONG: dict[str, tuple[str, Any, str]] = {
    "an update": ("train", lambda asked, reply: plain_update(asked, reply.client, 1.0), "the wrong kind of"),
    "a length": ("train", lambda asked, reply: replace(reply, length=3), "has 3 numbers"),
    "a round": ("train", lambda asked, reply: replace(reply, round=2), "for round 2, not 0"),
    "another name": ("keys", lambda asked, reply: replace(reply, client="site-1"), "in the name of 'site-1'"),
    "another attempt": ("keys", lambda asked, reply: replace(reply, attempt="e" * 32), "the wrong kind of"),
    "another phase": ("shares", lambda asked, reply: replace(reply, kind="keys"), "the wrong kind of reply"),
    "noise for keys": ("keys", lambda asked, reply: replace(reply, content=b"x" * 99), ""),
    "noise for shares": ("shares", lambda asked, reply: replace(reply, content=b""), ""),
    "a short vector": ("masked", lambda asked, reply: replace(reply, content=reply.content[:-4]), ""),
    "too much": ("masked", lambda asked, reply: replace(reply, content=bytes(2**21)), "and the limit is"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_nonsense_costs_its_own_site_the_round_and_nobody_else(tmp_path: Path, case: str) -> None:
    kind, change, reason = WRONG[case]
    there = room(tmp_path, 4)
    _mislead(there, "site-4", kind, change)
    lost, update = ran(tmp_path, there)
    assert update.clients == tuple(names(3))
    assert lost.keys() == {"site-4"}
    assert reason in lost["site-4"]
    for name, total in summed(names(3)).items():
        assert np.array_equal(update.delta[name], total)


@pytest.mark.parametrize("case", WRONG)
def test_where_nobody_can_be_spared_the_error_says_whose_fault_it_was(tmp_path: Path, case: str) -> None:
    """Of three sites all are needed, so that every fault ends the round."""
    kind, change, reason = WRONG[case]
    there = room(tmp_path, 3)
    _mislead(there, "site-3", kind, change)
    with pytest.raises(QuorumNotMet) as error:
        ran(tmp_path, there)
    said = str(error.value)
    assert "(site-3: " in said
    assert reason.replace("site-4", "site-3") in said
    assert "no other client" not in said
    assert "site-1: " not in said


def _signed_wrong(asked: Any, reply: Any) -> bytes:
    digest = reply.content[8:40]
    return wire.encode_reply(replace(reply, content=messages.encode_agreed(digest, bytes(64))))


def test_a_wrong_signature_is_named_where_nobody_can_be_spared(tmp_path: Path) -> None:
    there = room(tmp_path, 3)
    there.sites["site-3"] = _instead(there.sites["site-3"], "agree", _signed_wrong)
    with pytest.raises(QuorumNotMet, match=r"2 of 3 sites signed .* \(site-3: a signature of site site-3"):
        ran(tmp_path, there)


def test_who_reveals_a_wrong_share_is_among_those_named(tmp_path: Path) -> None:
    """Of three sites all shares are needed, so that nobody can tell who of them is wrong."""

    def wrong(asked: Any, reply: Any) -> bytes:
        digest = reply.content[8:40]
        shares = messages.decode_revealed(digest, reply.content)
        which, share = shares["site-1"]
        shares = {**shares, "site-1": (which, share[:-1] + bytes([share[-1] ^ 1]))}
        return wire.encode_reply(replace(reply, content=messages.encode_revealed(digest, shares)))

    there = room(tmp_path, 3)
    there.sites["site-3"] = _instead(there.sites["site-3"], "reveal", wrong)
    with pytest.raises(QuorumNotMet, match="or one or more of site-1, site-2, site-3 revealed wrong ones"):
        ran(tmp_path, there)


def test_nobody_trains_where_too_few_sites_can_be_reached(tmp_path: Path) -> None:
    there = room(tmp_path, 10)
    there.away = set(names(10)[5:])
    with pytest.raises(
        QuorumNotMet, match=r"5 sites are left, and its sum needs 7 .*site-10: it is not conn"
    ):
        ran(tmp_path, there)
    assert {kind for kind, _ in there.asked} == {"join"}


def test_a_site_that_a_sum_would_show_is_left_out_and_the_others_sum(tmp_path: Path) -> None:
    there = room(tmp_path, 4)
    heavy = lambda sizes: {"site-2": f"it would be 96% of {sorted(sizes)}"}  # noqa: E731
    lost, update = ran(tmp_path, there, too_heavy=heavy)
    assert lost == {"site-2": f"it would be 96% of {names(4)}"}
    others = ["site-1", "site-3", "site-4"]
    for name, total in summed(others).items():
        assert np.array_equal(update.delta[name], total)
    assert {site for kind, site in there.asked if kind == "train"} == set(others)


def test_nobody_trains_for_a_sum_that_one_of_them_would_outweigh(tmp_path: Path) -> None:
    there = room(tmp_path, 3)
    heavy = lambda sizes: {"site-2": "it would be 96% of the sum"}  # noqa: E731
    with pytest.raises(QuorumNotMet, match=r"2 sites are left.*site-2: it would be 96% of the sum"):
        ran(tmp_path, there, too_heavy=heavy)
    assert "train" not in {kind for kind, _ in there.asked}


def test_a_round_that_waits_for_no_straggler_sums_those_that_came(tmp_path: Path) -> None:
    there = room(tmp_path, 7)
    made = federation(tmp_path, there)
    made.silos.stragglers = Stragglers(min_updates=5, wait_s=0.0, carry=False)
    *lost, update = made.run(broadcast(), list(there.sites))
    assert isinstance(update, Update)
    assert update.clients == tuple(names(5))
    assert {each.client for each in lost if isinstance(each, Failure) and each.late} == {"site-6", "site-7"}
    for name, total in summed(names(5)).items():
        assert np.array_equal(update.delta[name], total)


def test_one_site_can_end_a_round_and_is_named(tmp_path: Path) -> None:
    """Shares that nobody can open make every other site leave: what stands against it is its name."""

    def unreadable(asked: Any, reply: Any) -> bytes:
        digest = reply.content[8:40]
        sealed = messages.decode_shares(digest, reply.content)
        changed = messages.encode_shares(digest, {to: bytes(len(each)) for to, each in sealed.items()})
        return wire.encode_reply(replace(reply, content=changed))

    there = room(tmp_path, 7)
    there.sites["site-7"] = _instead(there.sites["site-7"], "shares", unreadable)
    with pytest.raises(QuorumNotMet) as error:
        ran(tmp_path, there)
    assert str(error.value).count("the shares from site-7 were changed") == 5  # "and 1 more"
    del there.sites["site-7"]
    assert ran(tmp_path, there, 1)[1].clients == tuple(names(6))


def test_bytes_that_are_no_reply_are_a_failure(tmp_path: Path) -> None:
    there = room(tmp_path, 4)
    there.sites["site-4"] = _instead(there.sites["site-4"], "shares", lambda asked, reply: b"\x00" * 40)
    lost, update = ran(tmp_path, there)
    assert update.clients == tuple(names(3))
    assert "its reply cannot be read" in lost["site-4"]


# a server that is killed -----------------------------------------------------------------------------------


def _killed_at(there: Room, kind: str, after: int) -> None:
    """End the server before the message of this kind that follows `after` others."""
    count = 0

    def before(asked: Any) -> None:
        nonlocal count
        if asked.kind == kind:
            count += 1
            if count > after:
                raise Killed

    there.before = before


@pytest.mark.parametrize("after", [0, 2], ids=["before the phase", "within it"])
@pytest.mark.parametrize("kind", ["train", *PHASES])
def test_a_killed_server_starts_the_round_anew_with_fresh_keys(tmp_path: Path, kind: str, after: int) -> None:
    there = room(tmp_path, 4)
    _killed_at(there, kind, after)
    with pytest.raises(Killed):
        ran(tmp_path, there)
    there.before = lambda asked: None
    lost, update = ran(tmp_path, there)
    assert (lost, update.clients) == ({}, tuple(names(4)))
    for name, total in summed(names(4)).items():
        assert np.array_equal(update.delta[name], total)
    keys = [reply.content for _, asked, reply in there.seen if asked.kind == "keys"]
    assert len(set(keys)) == len(keys)
    masked = [reply.content for _, asked, reply in there.seen if asked.kind == "masked"]
    assert len(set(masked)) == len(masked)


@pytest.mark.parametrize("kind", ["agree", "reveal"])
def test_a_sum_that_sites_agreed_to_is_repeated_over_the_same_sites(tmp_path: Path, kind: str) -> None:
    """One was lost, the server was killed, and the one is back: the others agree to no sum with it."""
    there = room(tmp_path, 4, fault={"site-3": failing("site-3", "masked")})
    _killed_at(there, kind, 1)
    with pytest.raises(Killed):
        ran(tmp_path, there)
    there.before = lambda asked: None
    there.sites["site-3"].fault = lambda asked: None
    lost, update = ran(tmp_path, there)
    assert update.clients == ("site-1", "site-2", "site-4")
    assert "had agreed to without it" in lost["site-3"]
    for name, total in summed(update.clients).items():
        assert np.array_equal(update.delta[name], total)


def test_another_set_of_sites_in_the_same_round_is_refused(tmp_path: Path) -> None:
    """A server that forgets what it asked, or wants to know what one site adds to the sum."""
    there = room(tmp_path, 4)
    ran(tmp_path, there)
    (tmp_path / "agreed.json").unlink()
    there.sites["site-3"].fault = failing("site-3", "masked")
    with pytest.raises(
        QuorumNotMet, match=r"site-1 has agreed to the sum of round 1 over site-1, site-2, site-3"
    ):
        ran(tmp_path, there)
    assert there.asked[-1][0] == "agree"


def test_a_lost_site_that_had_agreed_is_asked_for_by_name(tmp_path: Path) -> None:
    there = room(tmp_path, 4)
    ran(tmp_path, there)
    there.away.add("site-3")
    with pytest.raises(QuorumNotMet, match=r"bring the same sites back, or use `shepherd silos new-id`"):
        ran(tmp_path, there)
    assert json.loads((tmp_path / "agreed.json").read_text())["sites"] == names(4)
    there.away.clear()
    assert ran(tmp_path, there)[1].clients == tuple(names(4))


def test_a_damaged_file_of_agreed_sites_is_none(tmp_path: Path) -> None:
    (tmp_path / "agreed.json").write_text("[")
    assert ran(tmp_path, room(tmp_path, 3))[1].clients == tuple(names(3))


def test_rounds_follow_each_other(tmp_path: Path) -> None:
    there = room(tmp_path, 3)
    for round in range(3):
        _, update = ran(tmp_path, there, round)
        for name, total in summed(names(3), round).items():
            assert np.array_equal(update.delta[name], total)


def test_a_site_that_restarts_within_a_sum_is_lost_and_in_the_next_attempt(tmp_path: Path) -> None:
    there, called = room(tmp_path, 4), names(4)

    def restart(asked: Any) -> None:
        if isinstance(asked, SumRequest) and asked.kind == "masked" and len(there.asked) < 20:
            there.sites["site-2"] = Site("site-2", tmp_path / "site-2", called)

    there.before = restart
    lost, update = ran(tmp_path, there)
    assert update.clients == ("site-1", "site-3", "site-4")
    assert "takes part in no such attempt" in lost["site-2"]


def test_vectors_come_in_waves(tmp_path: Path) -> None:
    """No more of them are held than sites are asked at once."""
    there = room(tmp_path, 5)
    waves: list[int] = []
    ask_each = there.ask_each

    def counted(messages: Any, seconds: float) -> Any:
        if wire.decode_asked(next(iter(messages.values()))).kind == "masked":
            waves.append(len(messages))
        return ask_each(messages, seconds)

    there.ask_each = counted
    ran(tmp_path, there)
    assert waves == [2, 2, 1]


def test_a_reply_to_train_is_no_update_and_no_number_of_a_visit(tmp_path: Path) -> None:
    there = room(tmp_path, 3)
    ran(tmp_path, there)
    for site, asked, reply in there.seen:
        if asked.kind == "train":
            assert reply == Trained(client=site, round=0, length=16)
