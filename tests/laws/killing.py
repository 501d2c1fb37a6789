"""Runs in processes that die, for law 3; imports once and forks, so that a death costs the run alone.

    python killing.py < REQUESTS

A request is a line of JSON, and so is its answer:

    ["at random", RUN.toml, KILLS, SEED]   go on with the run in processes that are killed at random moments,
                                           until it is done -> the rounds that each finished and how it ended
    ["at a row", RUN.toml, ROUND, AFTER]   begin the run and die before or after the trackers have logged that
                                           round -> how it ended
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import flwr_datasets  # noqa: F401  each life would import the two again, which takes longer than its rounds
import peft  # noqa: F401

from shepherd.consent import Consent
from shepherd.overrides import read
from shepherd.run import folder, opening, resuming, tracking

READY = 0
MAX_LIFE_S = 600


def live(path: str, told: int) -> None:
    """The life of one process: go on with the run, and tell each finished round as a byte."""
    settings = read(path)
    consent = Consent(plugins=frozenset({settings.algorithm.name}))
    if folder.is_run(settings.output):
        going = resuming.resume(settings.output, consent)
    else:
        going = opening.open_run(settings, consent=consent)
    os.write(told, bytes([READY]))
    for _, row in going.rounds():
        os.write(told, bytes([row["round"]]))
    going.finish()


def dying(path: str, at: int, after: bool, told: int) -> None:
    """The life of one process that kills itself around the trackers' log of a round."""
    honest = tracking.Trackers.log

    def log(self: Any, row: Any) -> None:
        if after or row["round"] != at:
            honest(self, row)
        if row["round"] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    tracking.Trackers.log = log  # type: ignore[method-assign]
    for _ in opening.open_run(read(path)).rounds():
        pass


def born(life: Callable[..., None], *words: Any) -> tuple[int, int]:
    """A process that lives such a life; its id, and what it tells."""
    hear, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        return child, hear
    signal.alarm(MAX_LIFE_S)  # one that hangs ends otherwise than by a kill
    try:
        life(*words, tell)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def killed(child: int, hear: int, rng: random.Random, anywhere: bool) -> list[int]:
    """Kill it at a random moment: from its birth on, or when it has told a thing or two. What it told."""
    told: list[int] = []
    if not anywhere:
        for _ in range(rng.randint(1, 3)):
            told += os.read(hear, 1)
    time.sleep(rng.uniform(0, 1.0 if anywhere else 0.1))
    os.kill(child, signal.SIGKILL)
    return told


def buried(child: int, hear: int, told: list[int]) -> dict[str, object]:
    _, status = os.waitpid(child, 0)
    with os.fdopen(hear, "rb") as rest:
        rounds = [byte for byte in (*told, *rest.read()) if byte != READY]
    return {"rounds": rounds, "exit": os.waitstatus_to_exitcode(status)}


def at_random(path: str, kills: int, seed: int) -> list[dict[str, object]]:
    rng = random.Random(seed)
    lives: list[dict[str, object]] = []
    while not lives or lives[-1]["exit"] == -signal.SIGKILL:
        child, hear = born(live, path)
        told = killed(child, hear, rng, len(lives) % 3 == 0) if len(lives) < kills else []
        lives.append(buried(child, hear, told))
    return lives


def at_a_row(path: str, at: int, after: bool) -> object:
    return buried(*born(dying, path, at, after), [])["exit"]


if __name__ == "__main__":
    for line in sys.stdin:
        how, *words = json.loads(line)
        print(json.dumps({"at random": at_random, "at a row": at_a_row}[how](*words)), flush=True)
