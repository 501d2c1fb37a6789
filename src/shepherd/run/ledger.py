"""The ledger of a run's privacy, `privacy.json`: what its rounds have spent, and what that means.

It is written before a round draws noise, so `begun` counts the rounds that were cut off and made again as
well. Those release nothing: a round's state is saved before anything of it is scored, logged or printed. So
epsilon is that of the finished rounds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shepherd.errors import FolderError
from shepherd.io.atomic import secret
from shepherd.privacy.client_level import ClientPrivacy, described
from shepherd.run.folder import RunFolder

LEDGER = "privacy.json"
SECRET = "secret"
"""File of the number that decides the cohorts of a run whose noise hides clients; for its owner alone."""


def write(holder: RunFolder, privacy: ClientPrivacy, *, begun: int, finished: int) -> None:
    """Write the ledger after `finished` rounds, of `begun` that drew noise or are about to."""
    spent = privacy.spent(finished)
    kept = {
        "unit": "client",
        "clients": privacy.clients,
        "relation": privacy.relation,
        "noise": spent.noise,
        "sampling": described(privacy.counted),
        "rounds": privacy.rounds,
        "begun": begun,
        "finished": finished,
        **privacy.row(finished),
        "budget": privacy.budget,
        "says": list(privacy.sentences()),
    }
    holder.write(LEDGER, json.dumps(kept, indent=2) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """Read the ledger of a run folder; empty if its run adds no noise.

    Raises:
        FolderError: the file is damaged.
    """
    try:
        kept = json.loads((folder / LEDGER).read_text(encoding="utf8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FolderError(f"{folder / LEDGER} is damaged; restore it from a copy") from error
    if not isinstance(kept, dict):
        raise FolderError(f"{folder / LEDGER} is damaged; restore it from a copy")
    return kept


def begun(folder: Path, finished: int) -> int:
    """Rounds that have drawn noise so far, redone ones included; at least those that are finished."""
    count = read(folder).get("begun", 0)
    return max(finished, count) if isinstance(count, int) else finished


def secret_of_cohorts(path: Path, finished: int, together: int) -> int:
    """The secret number that decides the cohorts of a private run, from its file; drawn at the start.

    Args:
        finished: rounds that are finished.
        together: rounds in a row whose cohorts are drawn together, see `core.Selection`.

    Raises:
        FolderError: the file is gone, and a new number would draw the cohorts of an epoch a second time: a
            client may then be in two of its rounds, and epsilon would be untrue.
    """
    if finished % together and not path.exists():
        raise FolderError(
            f"{path} is missing, and it decides who is in the rest of the {together} rounds that were drawn"
            " together; restore it from a copy, or start a run with output=ANOTHER_FOLDER"
        )
    return secret(path)
