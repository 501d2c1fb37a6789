"""Run a run file again and again in processes that are killed at random moments, until it is done.

    python killing.py RUN.toml KILLS SEED

Imports once and forks, so that a death costs the run alone. Prints, as JSON, the rounds that each process
finished and how it ended.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

from shepherd.consent import Consent
from shepherd.overrides import read
from shepherd.run import folder, opening

READY = 0


def live(path: str, told: int) -> None:
    """The life of one process: go on with the run, and tell each finished round as a byte."""
    settings = read(path)
    consent = Consent(plugins=frozenset({settings.algorithm.name}))
    if folder.is_run(settings.output):
        going = opening.resume(settings.output, consent)
    else:
        going = opening.open_run(settings, consent=consent)
    os.write(told, bytes([READY]))
    for _, row in going.rounds():
        os.write(told, bytes([row["round"]]))
    going.finish()


def born(path: str) -> tuple[int, int]:
    """A process that lives the run; its id, and what it tells."""
    hear, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        return child, hear
    try:
        live(path, tell)
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


def main(path: str, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    lives: list[dict[str, object]] = []
    while not lives or lives[-1]["exit"] < 0:  # type: ignore[operator]
        child, hear = born(path)
        told = killed(child, hear, rng, len(lives) % 3 == 0) if len(lives) < kills else []
        lives.append(buried(child, hear, told))
    print(json.dumps(lives))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
