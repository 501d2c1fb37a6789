"""What a site's trainer must not answer: a message again, an old one, and what its owner does not allow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from shepherd import world
from shepherd.core import Broadcast, Failure, seed_for
from shepherd.errors import FederationError
from shepherd.model import lora
from shepherd.model.digest import digest
from shepherd.run.loading import load_base
from shepherd.run.log import read_rows
from shepherd.silos.coordinator import coordinate
from shepherd.silos.protocol import ipc, wire
from shepherd.silos.protocol.jobspec import settings_for_site
from shepherd.silos.protocol.wire import Request
from shepherd.silos.site import audit
from tests.silos import scene as scenes
from tests.silos.scene import Scene, strict
from tests.silos.strangers import Tried, bare, matching, tried

RUN = "feed" * 4


def same_message_again(scene: Scene, tries: int) -> Tried:
    """The answer is the one that it got before, to the bit; nothing is trained again."""
    message = wire.encode_request(_request(scene))
    first = _asked(scene, message)

    def attempt() -> tuple[bool, str]:
        again = _asked(scene, message)
        return again != first, "the answer that it got before" if again == first else "another answer"

    line = rf"run {RUN}, round 1, train: answered"
    return tried(scene, "a message to a trainer, replayed", tries, attempt, line, end="site-2")


def another_question(scene: Scene, tries: int) -> Tried:
    """A round that was answered is asked again with something else."""
    _asked(scene, wire.encode_request(_request(scene)))
    numbers = iter(range(1, tries + 1))

    def attempt() -> tuple[bool, str]:
        return _refused(wire.decode_reply(_asked(scene, wire.encode_request(_request(scene, next(numbers))))))

    line = rf"run {RUN}, round 1, train: refused: .* got another request"
    return tried(scene, "an old round, asked again", tries, attempt, line, end="site-2")


def old_message(scene: Scene, tries: int) -> Tried:
    """A message that was kept for ten minutes, of a run that the site does not know."""
    late = _named(replace(_request(scene), run="dead" * 4, sent=time.time() - 600))

    def attempt() -> tuple[bool, str]:
        return _refused(wire.decode_reply(_asked(scene, wire.encode_request(late))))

    line = r"refused: the server's clock is \d+ s behind .* or the message is an old one"
    return tried(scene, "a message of ten minutes ago", tries, attempt, line, end="site-2")


def outside_policy(
    rule: str, given: Callable[[int], Mapping[str, Any]], sites: tuple[str, ...] = scenes.SITES
) -> Callable[[Scene, int], Tried]:
    """A run, submitted as any other, in whose every round site-1 must refuse to train by `rule`.

    The rules about the round itself let it join, which loads what is there and says how much it is; by the
    others it refuses that, and is not asked to train.

    Args:
        given: the tables of the run file that break the rule, by the number of tries.
    """

    def case(scene: Scene, tries: int) -> Tried:
        before, seen = scene.granted("site-1", "train"), scene.seen("site-1")
        tables = {"federation": {}, **given(tries)}
        federation = {"rounds": tries, "sites": sites, **tables["federation"]}
        output = scene.scratch / "runs" / rule
        settings = scenes.settings(output, **{**tables, "federation": federation})
        run = coordinate.open_run(settings, scene.admin("admin"), lambda line: None)
        try:
            for _ in run.rounds():
                pass
        except FederationError:
            pass  # the count below tells
        finally:
            run.close()
        rows = read_rows(output)[1:]
        reasons = [row["failures"].get("site-1", "") for row in rows]
        refused = [why for why in reasons if f"policy {rule} = " in why]
        audited = [e for e in scene.audited("site-1") if e.rule == rule]
        whole = min(len(rows), audit.FULL_LINES)  # what repeats itself has a line no more
        lines = matching(scene, "site-1", seen, rf"(join|train): refused: policy {rule} = ")
        return Tried(
            case=f"a request outside the policy: {rule}",
            tries=len(rows),
            let_in=scene.granted("site-1", "train") - before + len(rows) - len(refused),
            server=bare(lines[-1]) if len(audited) >= whole and len(lines) >= len(rows) > 0 else "",
            other=refused[-1] if refused else "",
        )

    return case


POLICY = (
    outside_policy("max_rank", lambda tries: {"adapter": {"rank": 1 + strict(tries)["max_rank"]}}),
    outside_policy("max_rounds", lambda tries: {"federation": {"rounds": tries + 1}}),
    outside_policy("max_steps", lambda tries: {"tuning": {"max_steps": 1 + strict(tries)["max_steps"]}}),
    outside_policy("algorithms", lambda tries: {"algorithm": {"name": "fedprox", "mu": 0.1}}),
    outside_policy("min_cohort", lambda tries: {}, scenes.SITES[:2]),
    outside_policy("hours", lambda tries: {}),
)


def _request(scene: Scene, seed: int = 0) -> Request:
    """To train the first round of a run, as the server would ask it of site-2."""
    settings = scenes.settings(scene.scratch / "unused")
    base = load_base(settings)
    sent = Broadcast(
        round=0,
        adapter=lora.fresh(base.targets, settings.adapter.rank, seed_for(0, "adapter")),
        seed=seed,
        transforms=(),
    )
    asked = Request(
        kind="train",
        run=RUN,
        id="",
        round=0,
        deadline=120.0,
        sent=time.time(),
        version=wire.version(),
        cohort=3,
        base=digest(world.base_path()),
        settings=settings_for_site(settings),
        broadcast=sent,
    )
    return _named(asked)


def _named(request: Request) -> Request:
    return replace(request, id=wire.request_id(request))


def _asked(scene: Scene, message: bytes) -> bytes:
    return ipc.ask(ipc.address(scene.home("site-2")), message, 120.0)


def _refused(reply: wire.Reply) -> tuple[bool, str]:
    return (False, reply.reason) if isinstance(reply, Failure) else (True, "")
