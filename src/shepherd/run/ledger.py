"""The ledgers of a run's privacy: what its rounds have spent, and what that means.

`privacy.json` is that of noise that hides clients, `example-privacy.json` that of noise that hides single
examples. Both say how many rounds are finished: those whose state was saved, which happens before anything of
a round is published. A round that is cut off before has released nothing. A run that goes on from an earlier
round, because later checkpoints are lost, makes rounds again that were released, with other noise. These are
counted besides (`again`), and the ledger is written before any of them begins: `standing` says what is lost,
`continued` and `continued_examples` count it, and the log is cut last. A process that dies in between changes
no count, since the ledger says up to which round all that was lost is counted (`last_lost`).

The first is also written before a round draws noise, so `begun` counts the rounds that were cut off as well.

Both name their run by the number in `run-id`, so that a ledger of another run is not read as its own.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shepherd.config import NonNegativeFloat, PositiveFloat, PositiveInt
from shepherd.errors import FolderError, SettingsError
from shepherd.io.atomic import disk_errors, secret, write_atomic
from shepherd.io.progress import many
from shepherd.privacy.client_level import ClientPrivacy, described
from shepherd.privacy.example_level import ExampleAccount
from shepherd.privacy.guarantee import Guarantee
from shepherd.settings import RunSettings

LEDGER, OF_EXAMPLES = "privacy.json", "example-privacy.json"
CLIENTS, EXAMPLES = "privacy", "example_privacy"
LEVELS = {CLIENTS: LEDGER, EXAMPLES: OF_EXAMPLES}
"""Keys of a row that say what is spent of privacy, with the ledger of each."""
UNITS = {CLIENTS: "client", EXAMPLES: "example"}
"""The same keys, with whose privacy it is."""
SECRET = "secret"
"""File of the number that decides the cohorts of a run whose noise hides clients; for its owner alone, and
deleted once the run is finished."""
RUN_ID = "run-id"
"""File of the number by which the ledgers name their run."""
Row = Mapping[str, Any]


_Count = Annotated[int, Field(ge=0, le=10**9)]
_Delta = Annotated[float, Field(gt=0.0, lt=1.0)]


class _OfExamples(BaseModel):
    """The ranges of a ledger's keys; earlier versions wrote fewer, and a site's epsilon may not be known yet.

    A default stands for a key that may be missing, and is not used.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    unit: Literal["example"] = "example"
    noise: PositiveFloat = 1.0
    finished: _Count
    last_lost: _Count = 0
    again: _Count = 0
    epsilon: NonNegativeFloat | None = None
    delta: _Delta = 0.5
    says: list[str] = []
    run: str = ""

    @model_validator(mode="after")
    def _both(self) -> _OfExamples:
        if len({"epsilon", "delta"} & self.model_fields_set) == 1:
            raise ValueError("epsilon and delta belong together")
        return self


class _OfClients(_OfExamples):
    """The same of the ledger of clients, all of which is known from the start."""

    unit: Literal["client"]  # type: ignore[assignment]
    clients: PositiveInt
    noise: PositiveFloat
    rounds: PositiveInt
    begun: _Count
    epsilon: NonNegativeFloat | None
    delta: _Delta
    says: list[str]


_KINDS: Mapping[str, type[_OfExamples]] = {LEDGER: _OfClients, OF_EXAMPLES: _OfExamples}


def write(folder: Path, privacy: ClientPrivacy, *, begun: int, finished: int, last_lost: int = 0) -> None:
    """Write the ledger after `finished` rounds, of `begun` that drew noise or are about to.

    Args:
        last_lost: the last round that was lost and is counted besides now; other cohorts are drawn from here,
            so the secret of these must be another one by now.
    """
    spent = privacy.spent(finished)
    kept = {
        "run": _run_of(folder) or _named(folder),
        "unit": "client",
        "clients": privacy.clients,
        "relation": privacy.relation,
        "noise": spent.noise,
        "sampling": described(privacy.counted),
        "rounds": privacy.rounds,
        "begun": begun,
        "finished": finished,
        "last_lost": max(last_lost, _last_lost(read(folder))),
        **_spent(privacy.row(finished)),
        "budget": privacy.budget,
        "says": [*privacy.sentences(), *_again(privacy.again)],
    }
    write_atomic(folder / LEDGER, json.dumps(kept, indent=2) + "\n")


def write_examples(
    folder: Path, account: ExampleAccount, spent: Row, *, finished: int, last_lost: int = 0
) -> None:
    """Write the ledger of single examples after `finished` rounds.

    Args:
        spent: what the account reports after them.
        last_lost: the last round that was lost and is counted besides now.
    """
    kept = {
        "run": _run_of(folder) or _named(folder),
        "unit": "example",
        "relation": "add or remove one",
        "noise": account.noise,
        "finished": finished,
        "last_lost": max(last_lost, _last_lost(read(folder, OF_EXAMPLES))),
        **_spent(spent),
        "budget": account.limit,
        "says": [*(account.sentences() if "delta" in spent else ()), *_again(account.again)],
    }
    write_atomic(folder / OF_EXAMPLES, json.dumps(kept, indent=2) + "\n")


def write_reported(
    folder: Path, settings: RunSettings, spent: Row, *, finished: int, last_lost: int = 0
) -> None:
    """The same where sites train, by what a row reports, since how many examples they have is theirs to say.

    Args:
        spent: what the row reports; without epsilon and delta if no row has told them yet.
    """
    assert settings.privacy.examples is not None
    account = ExampleAccount(
        noise=settings.privacy.examples.noise,
        batch_size=settings.tuning.batch_size,
        delta=spent.get("delta", 0.0),
        limit=settings.privacy.epsilon,
        again=spent.get("again", 0),
    )
    write_examples(folder, account, spent, finished=finished, last_lost=last_lost)


def _spent(row: Row) -> dict[str, Any]:
    found = {**row, "again": row.get("again", 0)}
    if "epsilon" in row and (row["epsilon"] is None or not math.isfinite(row["epsilon"])):
        found["epsilon"] = None
    return found


def _again(count: int) -> list[str]:
    said = f"Counted besides: {many(count, 'round')}, since rounds were released, lost, and made again."
    return [said] if count else []


def _run_of(folder: Path) -> str:
    """The number of the run in a folder; "" if it has none yet."""
    file = folder / RUN_ID
    with disk_errors(folder):
        return file.read_text(encoding="utf8").strip() if file.is_file() else ""


def _named(folder: Path) -> str:
    """Give the run in a folder a number."""
    drawn = secrets.token_hex(8)
    write_atomic(folder / RUN_ID, f"{drawn}\n")
    return drawn


def read(folder: Path, name: str = LEDGER) -> dict[str, Any]:
    """Read a ledger of a run folder; empty if its run adds no such noise.

    Raises:
        FolderError: the file is damaged, or it is of another run.
    """
    file = folder / name
    try:
        kept = json.loads(file.read_text(encoding="utf8"), parse_constant=_unbounded)
        _KINDS[name].model_validate(kept)
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        key = next(iter(error.errors()[0]["loc"]), "epsilon")
        raise FolderError(
            f"{file} is damaged: its key {key} is missing or out of range; restore it from a copy"
        ) from error
    except (OSError, ValueError) as error:
        raise FolderError(f"{file} is damaged; restore it from a copy") from error
    if kept.get("run") and kept["run"] != _run_of(folder):  # an earlier version did not say it
        raise FolderError(
            f"{file} is of another run than {folder} by the number in {RUN_ID}; restore the run's own from a"
            " copy"
        )
    return dict(kept)


def as_counted(settings: RunSettings, folder: Path, level: str) -> RunSettings:
    """The settings for the account of one of `LEVELS`, with the delta at which earlier rounds were counted.

    For a run file that names none: the default has been larger, and a run that has begun within its budget at
    that one would spend more at today's.

    Raises:
        FolderError: the ledger is damaged.
    """
    if settings.privacy.delta is not None or not (delta := read(folder, LEVELS[level]).get("delta")):
        return settings
    return settings.model_copy(update={"privacy": settings.privacy.model_copy(update={"delta": delta})})


def _unbounded(constant: str) -> None:
    """No bound, which an earlier version wrote as an infinite epsilon."""
    if constant != "Infinity":
        raise ValueError(f"{constant} is no number")


def _last_lost(kept: Row) -> int:
    return int(kept.get("last_lost", 0))


def begun(folder: Path, finished: int) -> int:
    """Rounds that have drawn noise so far, redone ones included; at least those that are finished."""
    return max(finished, int(read(folder).get("begun", 0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a ledger stands when its run goes on from a checkpoint."""

    finished: int
    """Rounds that the run goes on after."""
    released: int
    """The last round that was released and is not counted besides yet; `finished` if none of them is lost."""
    again: int
    """Rounds that are counted besides so far."""

    @property
    def last_lost(self) -> int:
        """The last round that is lost and to be counted now; 0 if none is."""
        return self.released if self.released > self.finished else 0


def standing(
    kept: Row, rows: Sequence[Row], level: str, finished: int, *, released: int = 0, again: int = 0
) -> Standing:
    """Where a ledger stands when its run goes on after `finished` rounds.

    Args:
        kept: the ledger.
        rows: the log, before it is cut to these rounds, with the row that the checkpoint has.
        level: key in a row of what is spent.
        released: rounds that others say were released.
        again: rounds that others say are counted besides.
    """
    told = max([released, *(int(row["round"]) for row in rows)])
    told = told if told > _last_lost(kept) else 0  # else it is counted, or was made again: see `finished`
    counts = (int((row.get(level) or {}).get("again", 0)) for row in rows)
    return Standing(
        finished=finished,
        released=max(finished, told, int(kept.get("finished", 0))),
        again=max([again, int(kept.get("again", 0)), *counts]),
    )


def continued(folder: Path, privacy: ClientPrivacy, at: Standing) -> ClientPrivacy:
    """The privacy of a run that goes on from there, with what is counted besides; nothing is written.

    Raises:
        SettingsError: all rounds would then spend more than the budget.
    """
    found = replace(privacy, again=at.again + privacy.redone(at.finished, at.released))
    _require_within(folder, at, Guarantee(found.epsilon(found.rounds), found.delta), "client", found.budget)
    return found


def continued_examples(
    folder: Path, account: ExampleAccount, visits: Mapping[str, tuple[int, int]], at: Standing
) -> ExampleAccount:
    """The account of a run that goes on from there, with what is counted besides; nothing is written.

    Each client counts as asked once more in each of the rounds that are made again.

    Args:
        visits: client -> its examples, and the steps of one visit of it.

    Raises:
        SettingsError: all visits would then spend more than the budget.
    """
    if not (again := again_of_examples(at)):
        return account
    found = account.counting(again, visits)
    _require_within(folder, at, Guarantee(found.planned_epsilon, found.delta), "example", found.limit)
    return found


def again_of_examples(at: Standing) -> int:
    """Visits of each client that are counted besides in a run that goes on from there."""
    return at.again + at.released - at.finished


def reported(kept: Row, rows: Sequence[Row], at: Standing) -> dict[str, Any]:
    """What the last row that is known says of examples, for the ledger of a run that goes on from there.

    A round spends nothing by being lost. No epsilon and no delta if neither ledger nor log has one.
    """
    said = {int(row["round"]): row[EXAMPLES] for row in rows if EXAMPLES in row}
    if "epsilon" in kept:
        said[max(int(kept.get("finished", 0)), _last_lost(kept))] = kept
    known = said[max(said)] if said else {}
    spent = {key: known[key] for key in ("epsilon", "delta") if key in known}
    return {**spent, "again": again_of_examples(at)}


def _require_within(folder: Path, at: Standing, spent: Guarantee, unit: str, budget: float | None) -> None:
    if budget is None or (spent.epsilon is not None and spent.epsilon <= budget):
        return
    if not at.last_lost:
        raise SettingsError(
            f"all rounds would spend {spent.text(unit)}, with {many(at.again, 'round')} made"
            f" again and counted besides, and privacy.epsilon allows {budget:g}; plan fewer rounds"
        )
    raise SettingsError(
        f"{remade(at)}: all rounds would spend {spent.text(unit)}, and privacy.epsilon allows"
        f" {budget:g}; restore {folder / 'checkpoints'} from a copy, or write the adapter of the last round"
        " that is there with `shepherd export`"
    )


def remade(at: Standing) -> str:
    """Say which rounds are made again."""
    first, last = at.finished + 1, at.released
    which = f"round {last} was" if last == first else f"rounds {first} to {last} were"
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
