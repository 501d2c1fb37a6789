"""No text of a site's data leaves it: not in a file at the server or the coordinator, a message, or a log.

Three sites whose every row holds strings that stand nowhere else. site-1 trains once and refuses the next
round; site-2 trains, and leaves out a row that is no JSON; site-3 stops at a row whose error would quote it.
What the trainers are asked and answer is recorded at their sockets, what goes over the network by a relay
in front of the server's port.
"""

from __future__ import annotations

import json
import secrets
import tomllib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w

pytest.importorskip("nvflare")

from shepherd.core import Failure, Update
from shepherd.data import pipeline
from shepherd.data.examples import Example
from shepherd.silos import loopback
from shepherd.silos.coordinator import coordinate
from shepherd.silos.flare import provision
from shepherd.silos.loopback import Loopback
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Ready, Reply, Request, Scores
from shepherd.silos.site import audit, redaction
from tests.silos import scene as scenes
from tests.silos.relay import Relay, recording
from tests.silos.tap import tapped

pytestmark = pytest.mark.silos

SITES = scenes.SITES
METRICS = {"site-1": ["loss", "steps"], "site-2": ["loss", "examples", "heldout"], "site-3": ["loss"]}
SECRET = secrets.token_hex(6)
"""In every text of every site, behind a word for the site and the field."""


def secret(site: str, field: str) -> str:
    return f"Zyx{site}{field}{SECRET}"


def lines(site: str, examples: list[Example]) -> list[str]:
    rows = [
        {
            "instruction": f"{example.instruction} {secret(site, 'instruction')}",
            "context": f"{example.context} {secret(site, 'context')}",
            "response": f"{example.response} {secret(site, 'response')}",
            "category": example.category,
        }
        for example in examples
    ]
    written = [json.dumps(row) for row in rows]
    if site == "site-2":
        written.insert(3, f'{{"instruction": "{secret(site, "torn")}", "response": ')
    if site == "site-3":
        turn = {"role": secret(site, "role"), "content": secret(site, "content")}
        written.insert(5, json.dumps({"messages": [turn, {"role": "assistant", "content": "yes"}]}))
    return written


def a_site(place: Path, site: str, examples: list[Example]) -> Path:
    policy: dict[str, Any] = {"metrics": METRICS[site], "min_examples": 8, "min_cohort": 1}
    if site == "site-1":
        policy["rounds_per_month"] = 1
    config = loopback.write_site(place, examples, policy, scoring={"template": "alpaca-short"})
    (place / "data.jsonl").write_text("\n".join(lines(site, examples)) + "\n")
    table = tomllib.loads(config.read_text())
    if site == "site-2":
        table["data"]["on_bad_row"] = "skip"
    if site == "site-3":
        (place / "data.jsonl").write_text(
            "\n".join(line for line in lines(site, examples) if "messages" in line) + "\n"
        )
    config.write_text(tomli_w.dumps(table))
    return config


@dataclass(frozen=True)
class Ran:
    """A run that is over, and all that was recorded."""

    place: Path
    made: Loopback
    relay: Relay
    requests: dict[str, list[bytes]]
    replies: dict[str, list[bytes]]
    rows: list[dict[str, Any]]
    said: list[str]

    def decoded(self, site: str) -> list[tuple[Request, Reply]]:
        return [
            (wire.decode_request(asked), wire.decode_reply(answer))
            for asked, answer in zip(self.requests[site], self.replies[site], strict=True)
        ]


def kept(requests: list[bytes], replies: list[bytes]) -> Callable[[bytes, bytes], bytes]:
    """Pass answers on as they are, and keep them."""

    def passed(asked: bytes, answer: bytes) -> bytes:
        requests.append(asked)
        replies.append(answer)
        return answer

    return passed


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    place = tmp_path_factory.mktemp("leaks")
    settings = scenes.settings(
        place / "run",
        data={"holdout": 0.1},
        evaluation={"examples": 8},
        federation={"rounds": 2, "quorum": 0.3, "sites": SITES},
    )
    division = pipeline.divide(settings)
    configs = {
        site: a_site(place / "sites" / site, site, division.of(places))
        for site, places in zip(SITES, division.clients.values(), strict=True)
    }
    outside, inside = loopback.free_port(), loopback.free_port()
    made = Loopback(folder=place / "federation", sites=SITES)
    provision.create(made.folder, f"localhost:{outside}", SITES)
    listen_at(made.folder / "server", inside)
    requests: dict[str, list[bytes]] = {site: [] for site in SITES}
    replies: dict[str, list[bytes]] = {site: [] for site in SITES}
    said: list[str] = []
    (place / "tmp").mkdir()
    with ExitStack() as ends:
        ends.enter_context(pytest.MonkeyPatch.context()).setenv("TMPDIR", str(place / "tmp"))
        relay = ends.enter_context(recording(("localhost", inside), outside))
        ends.enter_context(scenes.up(made, configs))
        for site in SITES:
            home = made.kit(site) / "shepherd"
            ends.enter_context(tapped(home, kept(requests[site], replies[site])))
        run = coordinate.open_run(settings, made.admin, said.append)
        rows = [row for _, row in run.rounds()]
        run.finish()
    return Ran(place, made, relay, requests, replies, rows, said)


def listen_at(kit: Path, port: int) -> None:
    """Have the server listen elsewhere than where the kits lead to."""
    file = kit / "startup" / "fed_server.json"
    table = json.loads(file.read_text())
    (server,) = table["servers"]
    server["service"]["target"] = f"localhost:{port}"
    server["admin_port"] = port
    file.write_text(json.dumps(table))


def cache(place: Path) -> list[Path]:
    """The files below that hold a secret; sockets aside."""
    files = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if is_told(path.read_bytes()) or is_told(str(path).encode())]


def is_told(data: bytes) -> bool:
    wide = data.replace(b"\x00", b"")  # as UTF-16 would have it
    return any(SECRET.encode() in each.lower() for each in (data, wide))


def test_the_run_went_as_it_should_have(ran: Ran) -> None:
    """One refused a round, one could not read its data; and the secrets are where they belong."""
    first, second = ran.rows
    assert set(first["weights"]) == {"site-1", "site-2"}
    assert set(second["weights"]) == {"site-2"}
    assert first["failures"] == {"site-3": redaction.DATA}
    assert "policy rounds_per_month = 1 of site-1" in second["failures"]["site-1"]
    assert len(cache(ran.place / "sites")) == len(SITES)
    log = (ran.made.kit("site-3") / "shepherd" / "trainer.log").read_text()
    assert "data.jsonl" in log  # its owner is told where to look
    assert "line 1" in log


def test_no_file_at_the_server_or_the_coordinator_holds_any_text(ran: Ran) -> None:
    assert cache(ran.made.folder / "server") == []
    assert cache(ran.place / "run") == []
    assert not is_told("\n".join(ran.said).encode())


def test_no_log_and_no_other_file_of_any_process_holds_any_text(ran: Ran) -> None:
    """Not at the sites either: beside the data themselves, they keep tokens and no text."""
    assert {path.name for path in (ran.made.folder / "logs").iterdir()} >= {"server.log", "site-1.log"}
    assert cache(ran.made.folder) == []
    assert [
        path for path in (ran.place / "tmp").rglob("*") if path.is_file() and is_told(path.read_bytes())
    ] == []


def test_no_message_holds_any_text(ran: Ran) -> None:
    for site in SITES:
        assert len(ran.replies[site]) >= 3
        assert not any(map(is_told, [*ran.requests[site], *ran.replies[site]]))


@pytest.mark.parametrize("site", SITES)
def test_what_left_is_named_tensors_a_weight_and_the_metrics_that_the_policy_lists(
    ran: Ran, site: str
) -> None:
    for (asked, answer), raw in zip(ran.decoded(site), ran.replies[site], strict=True):
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        assert set(header.pop("__metadata__")) == {wire.HEADER}  # what decoding is strict about
        match answer:
            case Update():
                assert asked.broadcast is not None
                assert dict(answer.extra) == {}
                assert set(answer.delta) == set(asked.broadcast.adapter)
                assert len(header) == len(answer.delta)
                for name, tensor in answer.delta.items():
                    assert tensor.shape == asked.broadcast.adapter[name].shape
                assert set(answer.metrics) == set(METRICS[site]) - {"heldout"}
            case Scores():
                assert "heldout" in METRICS[site]
            case Ready():
                assert header == {}
            case Failure(reason=reason):
                assert header == {}
                assert reason == redaction.DATA or reason.startswith("policy ")


def test_the_audit_logs_say_what_left_and_no_more(ran: Ran) -> None:
    for site in SITES:
        events = audit.events(ran.made.kit(site) / "shepherd" / audit.FILE)
        told = [event.left.bytes for event in events if event.left]
        answers = [raw for raw in ran.replies[site] if not isinstance(wire.decode_reply(raw), Failure)]
        assert sorted(told) == sorted(map(len, answers))


def test_what_is_on_the_wire_is_tls(ran: Ran) -> None:
    carried = ran.relay.all()
    answers = sum(len(raw) for site in SITES for raw in ran.replies[site])
    assert len(carried) > answers > 10_000  # all of it came this way
    for connection in (*ran.relay.to_server, *ran.relay.to_client):
        assert bytes(connection[:2]) in (b"", b"\x16\x03")  # a TLS handshake
    for text in (b"lora_", b"shepherd", b"site-1", b"GET /", b"rounds", SECRET.encode()):
        assert text not in carried
