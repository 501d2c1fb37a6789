"""The ledgers of a run's privacy: what its rounds have spent, and what that means.

`privacy.json` is that of noise that hides clients, `example-privacy.json` that of noise that hides single
examples. Both say how many rounds are finished: those whose state was saved, which happens before anything of
a round is published. A round that is cut off before has released nothing. A run that goes on from an earlier
round, because later checkpoints are lost, makes rounds again that were released, with other noise. These are
counted besides (`again`), and the ledger is written before any of them begins.

The first is also written before a round draws noise, so `begun` counts the rounds that were cut off as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shepherd.errors import FolderError, SettingsError
from shepherd.io.atomic import disk_errors, renew_secret, secret, write_atomic
from shepherd.io.phrases import epsilon_text
from shepherd.io.progress import many
from shepherd.privacy.client_level import ClientPrivacy, described
from shepherd.privacy.example_level import ExampleAccount

LEDGER, OF_EXAMPLES = "privacy.json", "example-privacy.json"
SECRET = "secret"
"""File of the number that decides the cohorts of a run whose noise hides clients; for its owner alone, and
deleted once the run is finished."""
Row = Mapping[str, Any]


def write(folder: Path, privacy: ClientPrivacy, *, begun: int, finished: int) -> None:
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
        **_spent(privacy.row(finished)),
        "budget": privacy.budget,
        "says": [*privacy.sentences(), *_again(privacy.again)],
    }
    write_atomic(folder / LEDGER, json.dumps(kept, indent=2) + "\n")


def write_examples(folder: Path, account: ExampleAccount, spent: Row, *, finished: int) -> None:
    """Write the ledger of single examples after `finished` rounds.

    Args:
        spent: what the account reports after them.
    """
    kept = {
        "unit": "example",
        "relation": "add or remove one",
        "noise": account.noise,
        "finished": finished,
        **_spent(spent),
        "budget": account.limit,
        "says": [*account.sentences(), *_again(account.again)],
    }
    write_atomic(folder / OF_EXAMPLES, json.dumps(kept, indent=2) + "\n")


def _spent(row: Row) -> dict[str, Any]:
    epsilon = row["epsilon"]
    known = epsilon is not None and math.isfinite(epsilon)
    return {**row, "again": row.get("again", 0), "epsilon": epsilon if known else None}


def _again(count: int) -> list[str]:
    said = f"Counted besides: {many(count, 'round')}, since rounds were released, lost, and made again."
    return [said] if count else []


def read(folder: Path, name: str = LEDGER) -> dict[str, Any]:
    """Read a ledger of a run folder; empty if its run adds no such noise.

    Raises:
        FolderError: the file is damaged.
    """
    file = folder / name
    try:
        kept = json.loads(file.read_text(encoding="utf8"))
        if not (isinstance(kept, dict) and all(type(kept.get(key, 0)) is int for key in _COUNTS)):
            raise ValueError
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FolderError(f"{file} is damaged; restore it from a copy") from error
    return kept


_COUNTS = ("begun", "finished", "again")


def begun(folder: Path, finished: int) -> int:
    """Rounds that have drawn noise so far, redone ones included; at least those that are finished."""
    return max(finished, int(read(folder).get("begun", 0)))


def released(kept: Row, rows: Sequence[Row]) -> int:
    """Rounds of which something may be known, by a ledger and by a log that is not cut yet."""
    return max([int(kept.get("finished", 0)), *(int(row["round"]) for row in rows)])


def again(kept: Row, rows: Sequence[Row], level: str) -> int:
    """Rounds that are counted besides so far, by a ledger and by a log that is not cut yet.

    Args:
        level: key of what is spent in a row of the log.
    """
    counts = (int((row.get(level) or {}).get("again", 0)) for row in rows)
    return max([int(kept.get("again", 0)), *counts])


def continued(
    folder: Path, privacy: ClientPrivacy, rows: Sequence[Row], finished: int, known: int = 0, counted: int = 0
) -> ClientPrivacy:
    """The privacy of a run that goes on after `finished` rounds.

    If later ones were released, they are made again: the secret of the cohorts is drawn anew, and the ledger
    is written.

    Args:
        rows: the log, before it is cut to these rounds.
        known: rounds that others say were released.
        counted: rounds that others say are counted besides.

    Raises:
        FolderError: the ledger is damaged.
        SettingsError: all rounds would then spend more than the budget; nothing is changed.
    """
    kept = read(folder)
    before = max(counted, again(kept, rows, "privacy"))
    lost = max(known, released(kept, rows))
    found = replace(privacy, again=before + privacy.redone(finished, lost))
    if lost <= finished:
        return found
    _require_within(found.epsilon(found.rounds), found.budget, folder, finished, lost)
    renew_secret(folder / SECRET)  # first: the ledger says that the rounds to come have other cohorts
    write(folder, found, begun=max(lost, kept.get("begun", 0)), finished=finished)
    return found


def examples_again(
    folder: Path, rows: Sequence[Row], finished: int, known: int = 0, counted: int = 0
) -> tuple[int, int]:
    """What the ledger of examples says of a run that goes on after `finished` rounds; nothing is written.

    Args:
        rows: the log, before it is cut to these rounds.
        known: rounds that others say were released.
        counted: rounds that others say are counted besides.

    Returns:
        The rounds that were released, and those that are counted besides from now on.

    Raises:
        FolderError: the ledger is damaged.
    """
    kept = read(folder, OF_EXAMPLES)
    lost = max(known, released(kept, rows))
    return lost, max(counted, again(kept, rows, "example_privacy")) + max(0, lost - finished)


def note_examples_again(folder: Path, finished: int, again: int) -> None:
    """Write into the ledger of examples what is counted besides, before any round is made again."""
    kept = {**read(folder, OF_EXAMPLES), "finished": finished, "again": again}
    write_atomic(folder / OF_EXAMPLES, json.dumps(kept, indent=2) + "\n")


def continued_examples(
    folder: Path,
    account: ExampleAccount,
    visits: Collection[tuple[int, int]],
    rows: Sequence[Row],
    finished: int,
) -> ExampleAccount:
    """The account of a run that goes on after `finished` rounds.

    If later ones were released, they are made again: the ledger says so, and each client counts as asked in
    each of them once more.

    Args:
        visits: examples of each client, and the steps of one visit of it.
        rows: the log, before it is cut to these rounds.

    Raises:
        FolderError: the ledger is damaged.
        SettingsError: all visits would then spend more than the budget; nothing is changed.
    """
    lost, more = examples_again(folder, rows, finished)
    if not more:
        return account
    found = account.counting(more, visits)
    if lost > finished:
        _require_within(found.planned_epsilon, found.limit, folder, finished, lost)
        note_examples_again(folder, finished, more)
    return found


def _require_within(epsilon: float, budget: float | None, folder: Path, finished: int, lost: int) -> None:
    if budget is not None and not epsilon <= budget:
        raise SettingsError(
            f"{remade(finished, lost)}: all rounds would spend epsilon {epsilon_text(epsilon)}, and"
            f" privacy.epsilon allows {budget:g}; restore {folder / 'checkpoints'} from a copy, or write the"
            " adapter of the last round that is there with `shepherd export`"
        )


def remade(finished: int, lost: int) -> str:
    """Say which rounds are made again."""
    which = f"round {lost} was" if lost == finished + 1 else f"rounds {finished + 1} to {lost} were"
    return f"{which} released before, and will be made again with other noise, which is counted besides"


def forget_cohorts(folder: Path) -> None:
    """Delete the secret of the cohorts of a run that draws no more: who was in them is to be known to nobody.

    Raises:
        FolderError: the file cannot be deleted.
    """
    with disk_errors(folder):
        (folder / SECRET).unlink(missing_ok=True)


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
