"""A run at the server: the round loop over sites, its files, and its status for the coordinator.

Does not depend on FLARE. The folder of a run at the server:

RUN_ID/
  .lock           held by the one process that runs the rounds
  submitter       name of the administrator who submitted the run
  rounds.jsonl    one line for each finished round
  checkpoints/    the last server states
  secret          seed of cohorts and noise; where noise hides sites, until the last round
  privacy.json    what the rounds have spent, where noise hides sites; see `run.ledger`
  example-privacy.json  what they have spent, where noise hides single examples
  late/           late updates that the round under way has taken, under [stragglers]
  agreed.json     the sites that were asked to agree to a secure sum last, and its round
"""

from __future__ import annotations

import base64
import logging
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from shepherd import plugins
from shepherd.config import validated
from shepherd.core import (
    ClientInfo,
    Context,
    Failure,
    FromSystem,
    Method,
    Seeded,
    Selection,
    ServerState,
)
from shepherd.core.algorithm import no_server_memory
from shepherd.data import cursor, poisson_batches
from shepherd.errors import FederationError, FolderError, SettingsError, ShepherdError
from shepherd.io import lock
from shepherd.io.atomic import disk_errors, renew_secret, secret
from shepherd.privacy import example_level, required
from shepherd.privacy.client_level import ClientPrivacy
from shepherd.privacy.example_level import ExampleAccount
from shepherd.privacy.guarantee import Guarantee
from shepherd.rounds import RoundReport, context_of, report_row, rounds, weights
from shepherd.rounds.acceptance import needed
from shepherd.rounds.ranks import require_for_sites, site_ranks
from shepherd.rounds.ring import require_sums, rounding_fault, too_heavy
from shepherd.rounds.waiting import require_enough
from shepherd.run import checkpoint, claims, folder, ledger
from shepherd.run.checkpoint import Checkpoint
from shepherd.run.log import append_row, read_rows, reconciled
from shepherd.settings import RunSettings, SecureTable
from shepherd.silos.protocol.jobspec import JobSpec, settings_for_site
from shepherd.silos.protocol.wire import Reply, Scores
from shepherd.silos.server import exposure
from shepherd.silos.server import trusted_modules as trusted
from shepherd.silos.server.exposure import Exposures
from shepherd.silos.server.pooling import pooled
from shepherd.silos.server.run_status import RunStatus
from shepherd.silos.server.site_federation import (
    RequestContext,
    SiteFederation,
    Transport,
    short_deadline_s,
)
from shepherd.silos.server.trusted_modules import NO_OTHERS, Trusted
from shepherd.training.local import require_at_server

if TYPE_CHECKING:
    from shepherd.silos.secure import Directory
    from shepherd.silos.server.secure_federation import SecureFederation

log = logging.getLogger(__name__)

Row = dict[str, Any]
CHUNK_BYTES = 3 * 2**20
"""Size of one piece of a checkpoint in an answer to the coordinator, before base64."""
LOCK_TIMEOUT_S = 90.0
"""How long to wait for the lock while an orphaned server process still holds it."""
SECRET_FILE = "secret"
"""The file, in the folder of the run, with the seed of this server's random draws."""
LATE = "late"
"""The folder, in that of the run, with late updates that the round under way has taken."""
AGREED_FILE = "agreed.json"
"""The file, in the folder of the run, with the sites of the last secure sum."""
KEPT_CHECKPOINTS = 2
"""Checkpoints kept at the server; `checkpoints.keep` is for the coordinator's run folder."""
MAX_REASON_CHARS = 300  # why a site is left out of a score


@dataclass(slots=True)
class ServerRun:
    """One job of a run at the server: continues after the last finished round."""

    order: JobSpec
    home: Path
    """Folder of the run at the server."""
    brought_checkpoint: Path | None
    """The coordinator's last checkpoint, sent with the job; used if it is later than the server's own."""
    transport: Transport
    known: Collection[str] | None = None
    """All sites of the federation, connected or not; None where no list is kept."""
    trusted: Trusted = NO_OTHERS
    """Modules outside the package that a run may name."""
    directory: Callable[[], Directory] | None = None
    """Reads what verifies the certificates of sites in secure sums; None leaves that to the sites."""
    settings: RunSettings = field(init=False)
    silos: SiteFederation = field(init=False)
    _privacy: ClientPrivacy | None = None
    """What the rounds spend of each site's privacy; None if no transform hides sites."""
    _examples_again: int = 0
    """Rounds that count besides for single examples; see `run.ledger`."""
    _exposures: Exposures = field(default_factory=Exposures)
    """What the sites have trained up to the last finished round, under [privacy.examples]."""
    _said: Mapping[str, Any] = field(default_factory=dict)
    """The largest epsilon of single examples that a row has said, with its delta."""
    _status: RunStatus = field(init=False)

    def __post_init__(self) -> None:
        self.settings = validated(RunSettings, self.order.settings, "the job's run file")
        federation, silos = self.settings.federation, self.settings.silos
        request_context = RequestContext(
            run=self.order.run,
            base=self.order.base,
            version=self.order.version,
            settings=settings_for_site(self.settings),
            deadline_s=silos.deadline_s,
            short_deadline_s=short_deadline_s(silos),
            max_in_flight=silos.max_in_flight,
        )
        self._status = RunStatus(rounds=federation.rounds)
        self.silos = SiteFederation(
            transport=self.transport,
            request_context=request_context,
            sites=self.order.sites,
            on_reply=self._status.on_reply,
        )

    def run(self) -> None:
        """Run the rounds. Never raises: `snapshot` reports the outcome, also where it is an error."""
        try:
            self.require_sound()
            # numpy's threads would compete with other work on this machine
            with _lock_run(self.home), threadpool_limits(1, user_api="blas"):
                self._run_rounds()
            self._status.end({"finished": True})
        except ShepherdError as error:
            self._status.fail(error)
        except Exception as error:  # its message may quote anything, so it is not passed on
            log.error("the run ended: %s at %s", type(error).__name__, _traceback_summary(error))
            self._status.fail(_unexpected_error(error))

    def snapshot(self, asked: Mapping[str, Any]) -> Row:
        """The answer to the coordinator's request for news; safe in any thread.

        Args:
            asked: `rows` and `said`, how many of each it has already; `state`, None or {"round", "file",
                "offset"}, the part of a checkpoint to send.
        """
        answer = self._status.snapshot(asked)
        part = asked.get("state")
        return {**answer, "state": self._checkpoint_piece(part) if part else None}

    def require_sound(self) -> None:
        """Raise FederationError unless this server accepts the job."""
        _require_sites(self.order.sites, self.known)
        trusted.require(self.settings, self.trusted)
        require_at_server(self.settings, self.trusted.all)
        share = self.settings.federation.max_share
        if share > weights.MAX_SHARE:
            raise FederationError(
                f"federation.max_share = {share:g} would let one site be more than half of a mean, which a"
                f" server does not allow; set it to {weights.MAX_SHARE:g} or less"
            )
        aggregation = plugins.aggregation(self.settings.aggregation, self.trusted.all)
        require_for_sites(self.settings.adapter, aggregation, self.order.sites)
        self.silos.ranks = site_ranks(self.settings.adapter, aggregation, self.order.sites)
        method = plugins.method(self.settings, self.trusted.all)
        require_sums(self.settings, method, self._selection(), len(self.order.sites))
        require_enough(self.settings, method, self._selection(), len(self.order.sites))
        _require_all_at_once(self.settings, method, self._selection().size(len(self.order.sites)))
        self.silos.stragglers = method.stragglers
        self.silos.late_folder = self.home / LATE
        self._privacy = required.of_clients(
            ledger.as_counted(self.settings, self.home, ledger.CLIENTS),
            method,
            self._selection(),
            len(self.order.sites),
            self.trusted.all,
        )
        self.silos.sizes_fault = self._sizes_fault
        if self._privacy is not None:
            self.silos.on_reply = said_to_nobody

    def _sizes_fault(self, sizes: Mapping[str, int]) -> str:
        """Why sites of these sizes cannot be protected as the run file says; empty if they can.

        For the noise on examples each site counts as asked in every round.
        """
        try:
            if self.settings.privacy.examples is not None:
                self._account(sizes).require_bounded()
        except SettingsError as error:
            return str(error)
        return ""

    def _account(self, sizes: Mapping[str, int]) -> ExampleAccount:
        """The account of examples over sites of these sizes, with what is counted besides.

        A site counts with the fewest examples that it has had, and delta is below 1 over the most that any
        has had, those that have left the run included.

        Raises:
            SettingsError: as `example_level.of_run`, or for what is counted besides.
        """
        tuning = self.settings.tuning
        found = {site: self._exposures.of(site, n, tuning) for site, n in sizes.items()}
        most = {site: each.most for site, each in {**self._exposures.sites, **found}.items()}
        largest = max(most, key=lambda site: most[site])
        counted = ledger.as_counted(self.settings, self.home, ledger.EXAMPLES)
        # a site that has joined since may have too many examples for it
        settings = counted if (counted.privacy.delta or 0.0) < 1 / most[largest] else self.settings
        account = example_level.of_run(settings, {site: each.fewest for site, each in found.items()})
        delta = example_level.delta_of(settings.privacy.delta, most[largest], f"client {largest}")
        visits = {site: (each.fewest, example_level.steps(tuning, each.most)) for site, each in found.items()}
        account = replace(account, delta=delta).counting(self._examples_again, visits)
        if account.limit is not None and not account.planned_epsilon <= account.limit:
            raise SettingsError(
                f"{account.visits} of each client, with those that are counted besides, would spend"
                f" {Guarantee(account.planned_epsilon, account.delta).text('example')} with the fewest that"
                f" each has had, above privacy.epsilon = {account.limit:g}"
            )
        return account

    def _examples_spent(self, exposures: Exposures) -> Row:
        """The epsilon of single examples after a round: the largest of any site. The ledger keeps it."""
        if self.settings.privacy.examples is None:
            return {}
        if not (sizes := self._sizes()):  # nobody was asked
            return {ledger.EXAMPLES: dict(self._said)} if self._said else {}
        account = self._account(sizes)
        made = [
            (each.fewest, each.steps + account.again * example_level.steps(self.settings.tuning, each.most))
            for each in exposures.sites.values()
        ]
        return {ledger.EXAMPLES: claims.at_least(account.row(made), self._said)}

    def _exposed_by(self, report: RoundReport) -> Exposures:
        """What the sites have trained after a round."""
        if self.settings.privacy.examples is None:
            return self._exposures
        asked = report.cohort if self._privacy is None else None
        return self._exposures.after_round(self._sizes(), asked, self.settings.tuning)

    def _sizes(self) -> dict[str, int]:
        """How many examples each site has that is in this job."""
        return {site: joined.examples for site, joined in self.silos.joined.items()}

    def _keep_ledgers(self, row: Row) -> None:
        """Write what the rounds have spent, once the last of them is saved."""
        finished = row["round"]
        if self._privacy is not None:
            again = self._privacy.again
            ledger.write(self.home, self._privacy, begun=finished + again, finished=finished)
        if ledger.EXAMPLES in row:
            ledger.write_reported(self.home, self.settings, row[ledger.EXAMPLES], finished=finished)

    def _run_rounds(self) -> None:
        state, rows = self._load_state()
        self._status.open(rows)
        for reply in self.silos.join(state.round):
            if isinstance(reply, Failure):
                self._status.echo(f"{reply.client}: {reply.reason}")
        for site, rank in self.silos.fewer().items():
            self._status.echo(f"{site} trains {rank} of the {self.settings.adapter.rank} ranks")
        if not rows:
            self._log({"round": 0, **self._score(state)})
        self.silos.restore(state.round)
        taken = dict(rows[-1].get("taken", {})) if rows else {}
        for after, report in self._round_iterator(state):
            taken = _add_taken(taken, report)
            self._exposures = self._exposed_by(report)
            row = {**self._row(after, report, taken), **self._examples_spent(self._exposures)}
            self._said = row.get(ledger.EXAMPLES, self._said)
            saved = Checkpoint(state=after, notes=self._notes(row))
            checkpoint.save(self.home / "checkpoints", saved, keep=KEPT_CHECKPOINTS)
            self._keep_ledgers(row)
            self._log(row)
        if self._privacy is not None:
            ledger.forget_cohorts(self.home)

    def _round_iterator(self, state: ServerState) -> Iterator[tuple[ServerState, RoundReport]]:
        method = plugins.method(self.settings, self.trusted.all)
        selection = self._selection()
        # the secret of a finished run is deleted, and nothing is drawn by it
        secret = self._secret(state.round) if state.round < self.settings.federation.rounds else 0
        return rounds(
            method,
            self.silos if self.settings.secure is None else self._secure(method, self.settings.secure),
            state,
            secret=secret,
            # a mechanism's noise must not be reproducible; otherwise a restarted job repeats its round
            noise=Seeded(secret) if method.transform.mechanism is None else FromSystem(),
            context=self._context(state),
            until=self.settings.federation.rounds,
            select=selection.cohort,
            by_loss=selection.by_loss,
            quorum=self.settings.federation.quorum,
            seed=self.settings.seed,
            allow=weights.allowed_by(self.settings),
            max_share=self.settings.federation.max_share,
        )

    def _secure(self, method: Method, table: SecureTable) -> SecureFederation:
        """The sites as a federation that learns their sums alone."""
        # needs `cryptography`, which a server without FLARE may lack
        from shepherd.silos.server.secure_federation import SecureFederation

        if fault := rounding_fault(self.settings, method, self._sizes()):
            self._status.echo(fault)  # a heavier site may join later
        anyone = ClientInfo(name="anyone", examples=1)
        asked = self._selection().size(len(self.order.sites))
        quorum = 0.0 if method.is_private else self.settings.federation.quorum
        return SecureFederation(
            silos=self.silos,
            ring_bits=table.ring_bits,
            layout=lambda broadcast: method.expects(broadcast, anyone),
            fewest=lambda cohort: max(needed(quorum, cohort), method.aggregation.smallest_cohort),
            agreed=self.home / AGREED_FILE,
            directory=self.directory() if self.directory else None,
            names_sites=not method.is_private,
            too_heavy=partial(too_heavy, self.settings, method, asked=asked),
        )

    def _secret(self, finished: int) -> int:
        """The seed of cohorts and noise: drawn once for this run, and never sent to anybody."""
        file = self.home / SECRET_FILE
        if self._privacy is None:
            return secret(file)
        return ledger.secret_of_cohorts(file, finished, self._selection().together)

    def _context(self, state: ServerState) -> Context:
        return context_of(self.settings, self._selection(), state.adapter, len(self.order.sites))

    def _selection(self) -> Selection:
        return plugins.selection(self.settings, self.trusted.all)

    def _load_state(self) -> tuple[ServerState, list[Row]]:
        """The later of the two checkpoints, and the log up to its round."""
        mine = checkpoint.latest(self.home / "checkpoints")
        found = [checkpoint.load(path) for path in (mine, self.brought_checkpoint) if path]
        if not found:
            raise FolderError(
                f"{self.home} holds no checkpoint and the job brought none; submit the run again"
            )
        last = max(found, key=lambda saved: saved.state.round)
        noted = last.notes.get("row")
        rows = [*read_rows(self.home), *([noted] if noted else [])]
        self._count_lost(rows, last.state.round)
        if self.settings.privacy.examples is not None:
            self._exposures = exposure.of_notes(last.notes, last.state.round)
            self._said = claims.largest(self.home, rows)
        return last.state, reconciled(self.home, last.state.round, noted)

    def _count_lost(self, rows: Sequence[Row], finished: int) -> None:
        """Count what rounds after `finished` have spent that were released, and are made again.

        Raises:
            SettingsError: the sites' budget does not allow it; nothing is changed.
        """
        kept = {level: ledger.read(self.home, name) for level, name in ledger.LEVELS.items()}
        clients, examples = (
            ledger.standing(
                kept[level],
                rows,
                level,
                finished,
                released=self.order.released,
                again=self.order.again.get(level, 0),
            )
            for level in (ledger.CLIENTS, ledger.EXAMPLES)
        )
        if self._privacy is not None:
            self._privacy = ledger.continued(self.home, self._privacy, clients)
            if clients.last_lost:
                renew_secret(self.home / SECRET_FILE)
            ledger.write(
                self.home,
                self._privacy,
                begun=finished + self._privacy.again,
                finished=finished,
                last_lost=clients.last_lost,
            )
        if self.settings.privacy.examples is not None:
            self._examples_again = ledger.again_of_examples(examples)
            ledger.write_reported(
                self.home,
                self.settings,
                ledger.reported(kept[ledger.EXAMPLES], rows, examples),
                finished=finished,
                last_lost=examples.last_lost,
            )

    def _notes(self, row: Row) -> Row:
        is_model = plugins.algorithm(self.settings.algorithm, self.trusted.all).server_is_model
        base = self.order.fingerprint
        notes = {"positions": row.get("taken", {}), "row": row, "base": base, "is_model": is_model}
        if self.settings.privacy.examples is not None:
            notes[exposure.NOTE] = self._exposures.note()
        return notes

    def _row(self, state: ServerState, report: RoundReport, taken: Mapping[str, int]) -> Row:
        if self._privacy is not None:  # all else depends on who took part, or on what a site holds
            return {**report_row(report), ledger.CLIENTS: self._privacy.row(state.round)}
        began = time.perf_counter()
        due = state.round % self.settings.evaluation.every == 0
        scored = self._score(state) if due or state.round == self.settings.federation.rounds else {}
        scoring = time.perf_counter() - began
        return {
            **report_row(report),
            **scored,
            **self._coverage(self._sizes(), taken),
            **({"ranks": fewer} if (fewer := self.silos.fewer()) else {}),
            "seconds": {
                "round": report.seconds + scoring,
                "tuning": report.federation_seconds,
                "scoring": scoring,
            },
        }

    def _coverage(self, held: Mapping[str, int], taken: Mapping[str, int]) -> Row:
        """How far each site has gone through its examples, by its reports; on average, where it has none."""
        if self.settings.secure:
            return {}
        if self.settings.privacy.examples is None:
            return _coverage(held, taken)
        chances = {site: example_level.chance(n, self.settings.tuning.batch_size) for site, n in held.items()}
        trained = self._exposures.sites
        shares = {site: poisson_batches.coverage(trained[site].steps, chances[site]) for site in sorted(held)}
        return {"coverage": shares}

    def _score(self, state: ServerState) -> Row:
        """Held-out loss over the sites that release theirs."""
        if not self.settings.data.holdout or self._privacy is not None:  # the scores would be the sites' own
            return {}
        replies = {
            reply.client: _scores_or_reason(reply) for reply in self.silos.score(state.round, state.adapter)
        }
        absent = {site: "it was not asked" for site in self.order.sites if site not in replies}
        heldout = pooled({**replies, **absent}, self.settings.federation.max_share)
        return {"heldout": heldout} if heldout else {}

    def _log(self, row: Row) -> None:
        append_row(self.home, row)
        self._status.row(row)

    def _checkpoint_piece(self, part: Mapping[str, Any]) -> Row | None:
        """One piece of a checkpoint's file in base64; None where the checkpoint is gone."""
        place = self.home / "checkpoints" / f"round-{int(part['round']):05d}"
        name, offset = str(part["file"]), int(part["offset"])
        if name not in checkpoint.FILES:
            return None
        try:
            with open(place / name, "rb") as file:
                file.seek(offset)
                data = file.read(CHUNK_BYTES)
                return {"of": os.fstat(file.fileno()).st_size, "data": base64.b64encode(data).decode()}
        except OSError:  # an older round's checkpoint, already deleted
            return None


def said_to_nobody(reply: Reply) -> None:
    """Count no reply, where noise is to hide which sites take part."""


def _scores_or_reason(reply: Scores | Failure) -> Scores | str:
    return reply if isinstance(reply, Scores) else reply.reason[:MAX_REASON_CHARS]


def _require_sites(sites: Collection[str], known: Collection[str] | None) -> None:
    """Raise FederationError if a run names no site, a site twice, or one that is not in the federation."""
    twice = sorted(site for site, count in Counter(sites).items() if count > 1)
    strange = sorted(site for site in sites if known is not None and site not in known)
    if not sites or twice or strange:
        named = ascii((twice or strange or ["no site"])[0][:80])
        why = "is named twice" if twice else "has never connected to this server" if strange else "is named"
        raise FederationError(
            f"the run cannot start: {named} {why}; list each site of the federation once in silos.sites"
        )


def _require_all_at_once(settings: RunSettings, method: Method, cohort: int) -> None:
    """Raise FederationError unless sites can take part in rounds that end early.

    Raises:
        FederationError: a round would ask them in waves; or what a site remembers would go on from an update
            that was dropped, which no site learns.
    """
    if method.stragglers is None:
        return
    if cohort > settings.silos.max_in_flight:
        raise FederationError(
            f"[stragglers] asks all sites of a round at once, and silos.max_in_flight ="
            f" {settings.silos.max_in_flight} allows fewer than {cohort}; set silos.max_in_flight = {cohort}"
        )
    if method.transform.remember is not None:
        raise FederationError(
            f"what {method.called('transform')} keeps at a site goes on from an update that [stragglers]"
            " drops, of which no site is told; set feedback = false for it, or remove [stragglers]"
        )
    if method.algorithm.server_init is not no_server_memory:
        raise FederationError(
            f"what {method.called('algorithm')} keeps at a site goes on from an update that [stragglers]"
            ' drops, of which no site is told; set [algorithm] name = "fedavg", or remove [stragglers]'
        )


def _unexpected_error(error: Exception) -> FederationError:
    kind = type(error).__name__
    return FederationError(
        f"the server stopped on an unexpected error ({kind}); its log shows where: fix it there, then"
        " continue with `shepherd resume`"
    )


def _traceback_summary(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    return " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))


def _add_taken(before: Mapping[str, int], report: RoundReport) -> dict[str, int]:
    """Examples that each site reports to have trained on, over all rounds."""
    new = {site: max(0, int(metrics.get("examples", 0))) for site, metrics in report.metrics.items()}
    return {site: before.get(site, 0) + new.get(site, 0) for site in sorted({*before, *new})}


def _coverage(held: Mapping[str, int], taken: Mapping[str, int]) -> Row:
    """How far each site has gone through its examples, by what it reports of its visits."""
    shares = {site: cursor.coverage(held[site], taken.get(site, 0)) for site in sorted(held)}
    return {"taken": dict(taken), "coverage": shares}


@contextmanager
def _lock_run(home: Path) -> Iterator[None]:
    """Lock the run, since an orphaned process of an earlier job may still be running its rounds."""
    with disk_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        try:
            handle = lock.acquire(home / folder.LOCK, LOCK_TIMEOUT_S)
        except BlockingIOError:
            raise FolderError(f"another process runs the rounds in {home}; stop it") from None
    try:
        yield
    finally:
        os.close(handle)
