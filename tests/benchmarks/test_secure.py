"""The benchmarks of secure sums, at their smallest: they end well and their figures hang together."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import secure_attacks, secure_cost, secure_faults
from shepherd.core import Payload, Update
from shepherd.silos.protocol.wire import SumAnswer, SumRequest
from shepherd.silos.secure import messages
from shepherd.silos.secure.messages import Secret


def _figures(main: Callable[[Sequence[str]], int], tmp_path: Path) -> Any:
    file = tmp_path / "figures.json"
    assert main(["--quick", "--threads", str(torch.get_num_threads()), "--json", str(file)]) == 0
    return json.loads(file.read_text())["figures"]


def test_cost(tmp_path: Path) -> None:
    rows = _figures(secure_cost.main, tmp_path)["rows"]
    assert [(row["sites"], row["leaving"]) for row in rows] == [(3, 0), (4, 0), (4, 1)]
    for row in rows:
        assert row["up"]["masked"] == row["bytes"] + 72
        assert 0 < row["site"]["masked"] < row["site"]["all"]
        assert row["server"].keys() == {"keys", "shares", "masked", "agree", "total", "all"}
    assert rows[0]["down"] < rows[1]["down"] < 4_000


def test_faults(tmp_path: Path) -> None:
    figures = _figures(secure_faults.main, tmp_path)
    assert figures["right"] + figures["failed"] == figures["cases"] == 12
    assert (figures["wrong"], figures["leaks"]) == (0, 0)
    assert any(row["faults"] and row["right"] for row in figures["rows"])
    assert any(row["server_killed"] and row["right"] for row in figures["rows"])


def test_a_leak_is_seen() -> None:
    """Both secrets of one site from enough sites, two sums of a round, and an update without a mask."""
    case = secure_faults.drawn(0, 0)
    asked = SumRequest(
        kind="reveal", run="0" * 16, id="0" * 64, round=0, attempt="0" * 32, members=tuple(case.names),
        length=1, ring_bits=32, deadline=1.0, sent=0.0, version="1", content=b"",
    )  # fmt: skip
    agree = replace(asked, kind="agree", content=messages.encode_survivors(bytes(32), case.names))

    def revealed(site: str, which: Secret, attempt: str = "0" * 32) -> tuple[str, Any, Any]:
        content = messages.encode_revealed(bytes(32), {"site-000": (which, bytes(33))})
        reply = SumAnswer(client=site, round=0, kind="reveal", attempt=attempt, content=content)
        return site, replace(asked, attempt=attempt), reply

    plain = [("site-000", agree, SumAnswer(client="", round=0, kind="agree", attempt="0" * 32, content=b""))]
    one = [*plain, *(revealed(site, Secret.SELF_MASK) for site in case.names)]
    assert secure_faults.leaks(case, None, one) == 0
    both = [*one, *(revealed(site, Secret.MASK_KEY) for site in case.names)]
    assert secure_faults.leaks(case, None, both) == 1
    assert secure_faults.leaks(case, None, both[: len(one) + secure_faults.threshold(case.sites) - 1]) == 0
    few = replace(agree, attempt="1" * 32, content=messages.encode_survivors(bytes(32), case.names[:-1]))
    again = [("site-000", few, plain[0][2]), *(revealed(s, Secret.SELF_MASK, "1" * 32) for s in case.names)]
    assert secure_faults.leaks(case, None, [*one, *again]) == 1
    update = Update(round=0, delta=Payload({}), weight=1.0, clients=("site-000",))
    assert secure_faults.leaks(case, None, [*one, ("site-000", asked, update)]) == 1


def test_attacks(tmp_path: Path) -> None:
    figures = _figures(secure_attacks.main, tmp_path)
    assert [row["bared"] for row in figures["rows"]] == [[], [], [], ["site-000"]]
    assert all(row["refused_by"] == row["asked"] > 0 for row in figures["rows"][:3])
