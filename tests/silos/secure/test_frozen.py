"""Every byte of one secure sum, frozen: the format cannot drift unnoticed.

A change on purpose gets a new VERSION in `session`, and new vectors: python -m tests.silos.secure.test_frozen
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks import secure_setting
from shepherd.silos.secure.member import Phase

FILE = Path(__file__).with_name("frozen.json")
LOST = {"site-004": Phase.SHARES, "site-005": Phase.MASKED}


def written(ring_bits: int) -> dict[str, object]:
    """All messages of a sum of seven sites of which two leave, in hex."""
    asked = secure_setting.session(7, 3, ring_bits, attempt=1, round=2)
    largest = 2 ** (ring_bits - 1) - 1
    codes = {name: np.array([place, -place, largest - place]) for place, name in enumerate(asked.members)}
    made = secure_setting.federation(asked, "frozen", codes)
    total = secure_setting.play(made, LOST)
    seen = made.seen
    return {
        "ring_bits": ring_bits,
        "digest": asked.digest().hex(),
        "codes": {name: codes.tolist() for name, codes in made.codes.items()},
        "sent": {
            phase.name.lower(): {name: answer.hex() for name, answer in answers.items()}
            for phase, answers in seen.sent.items()
        },
        "roster": seen.roster.hex(),
        "delivered": {name: message.hex() for name, message in seen.delivered.items()},
        "survivors": seen.survivors.hex(),
        "signatures": seen.signatures.hex(),
        "total": total.tolist(),
    }


def test_every_byte_is_as_it_was() -> None:
    frozen = json.loads(FILE.read_text(encoding="utf8"))
    assert [one["ring_bits"] for one in frozen] == [32, 64]
    for one in frozen:
        assert written(one["ring_bits"]) == one


if __name__ == "__main__":
    FILE.write_text(json.dumps([written(32), written(64)], indent=1) + "\n", encoding="utf8")
