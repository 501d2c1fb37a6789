"""Run a run file again and again in processes that are killed at random moments, until it is done.

    python killing.py RUN.toml KILLS SEED

Imports once and forks, so that a death costs the run alone. Prints, as JSON, the rounds that each process
finished and how it ended.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time

from shepherd import folder, run
from shepherd.settings import read

READY = 0


def live(path: str, told: int) -> None:
    """The life of one process: go on with the run, and tell each finished round as a byte."""
    settings = read(path)
    going = run.resume(settings.output) if folder.is_run(settings.output) else run.open_run(settings)
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


def buried(child: int, hear: int) -> dict[str, object]:
    _, status = os.waitpid(child, 0)
    with os.fdopen(hear, "rb") as told:
        rounds = [byte for byte in told.read() if byte != READY]
    return {"rounds": rounds, "exit": os.waitstatus_to_exitcode(status)}


def main(path: str, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    lives: list[dict[str, object]] = []
    while not lives or lives[-1]["exit"] < 0:  # type: ignore[operator]
        child, hear = born(path)
        if len(lives) < kills:
            if len(lives) % 3:  # in its rounds; every third time anywhere, from its birth on
                select.select([hear], [], [], 60)
                time.sleep(rng.uniform(0, 0.15))
            else:
                time.sleep(rng.uniform(0, 1.0))
            os.kill(child, signal.SIGKILL)
        lives.append(buried(child, hear))
    print(json.dumps(lives))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
