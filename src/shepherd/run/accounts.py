"""What the rounds of a run may spend of privacy, and what those before have spent."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from shepherd.consent import Consent
from shepherd.core import Method, Selection
from shepherd.data.dataset import TokenisedData
from shepherd.errors import FolderError
from shepherd.io.progress import many
from shepherd.model import base as bases
from shepherd.privacy import example_level, required
from shepherd.privacy.client_level import ClientPrivacy
from shepherd.privacy.example_level import ExampleAccount
from shepherd.privacy.guarantee import Guarantee
from shepherd.run import ledger
from shepherd.run.folder import Row
from shepherd.settings import RunSettings
from shepherd.training import example_privacy
from shepherd.training.local import LocalTraining

log = logging.getLogger(__name__)


def of_examples(
    settings: RunSettings,
    base: bases.Base,
    training: LocalTraining,
    prepared: TokenisedData,
    selection: Selection,
    method: Method,
) -> ExampleAccount | None:
    """What the clients' steps may spend of their examples' privacy; None if nothing protects examples.

    Raises:
        SettingsError: as `required.of_examples` and `example_privacy.require_possible`.
    """
    if settings.privacy.examples is None:
        return None
    example_privacy.require_possible(base, training.objective)
    account = required.of_examples(settings, method, selection, prepared.sizes)
    if account is not None:
        log.info("%s", account.sentence)
    return account


def of_clients(
    settings: RunSettings, method: Method, selection: Selection, prepared: TokenisedData, consent: Consent
) -> ClientPrivacy | None:
    """What the planned rounds spend of each client's privacy, within the budget; logs it.

    Raises:
        SettingsError: as `required.of_clients`.
    """
    found = required.of_clients(settings, method, selection, len(prepared.clients), consent.plugins)
    if found is None:
        return None
    log.info(
        "%s will spend %s", many(found.rounds, "round"), Guarantee.of(found.row(found.rounds)).text("client")
    )
    for sentence in found.sentences():
        log.info("%s", sentence)
    return found


def spent_before(
    path: Path,
    settings: RunSettings,
    prepared: TokenisedData,
    account: ExampleAccount | None,
    privacy: ClientPrivacy | None,
    rows: Sequence[Row],
    finished: int,
) -> tuple[ExampleAccount | None, ClientPrivacy | None, Mapping[str, int]]:
    """Both accounts of a run that goes on after `finished` rounds; nothing is written.

    Later rounds that were released and are lost have spent as well.

    Args:
        rows: the log, not yet cut to these rounds, and the row that the checkpoint has.

    Returns:
        The accounts, and the last round that is lost and counted by them now, by key of a row.

    Raises:
        FolderError: a ledger is damaged, or that of rounds that were released is missing.
        SettingsError: the rounds would then spend more than the budget.
    """
    places: dict[str, ledger.Standing] = {}
    for level, of_run in ((ledger.CLIENTS, privacy), (ledger.EXAMPLES, account)):
        if of_run is not None:
            kept = ledger.read(path, ledger.LEVELS[level])
            places[level] = ledger.standing(kept, rows, level, finished)
            if places[level].released and not kept:
                raise FolderError(
                    f"{path / ledger.LEVELS[level]} is missing, which says what the rounds of this run have"
                    " spent of privacy; restore it from a copy, or start a run with output=ANOTHER_FOLDER"
                )
    if privacy is not None:
        privacy = ledger.continued(path, privacy, places[ledger.CLIENTS])
    if account is not None:
        visits = {name: (n, example_level.steps(settings.tuning, n)) for name, n in prepared.sizes.items()}
        account = ledger.continued_examples(path, account, visits, places[ledger.EXAMPLES])
    lost = {level: at.last_lost for level, at in places.items() if at.last_lost}
    if lost:
        log.warning("%s", ledger.remade(max(places.values(), key=lambda at: at.last_lost)))
    return account, privacy, lost
