"""Who is in a federation, what runs there, and how to end it, for an administrator."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from shepherd.errors import FederationError, OutOfReach, SilosError
from shepherd.run import folder as folders
from shepherd.silos.coordinator import state_file, status_update
from shepherd.silos.coordinator.job_follower import NO_NEWS, ended
from shepherd.silos.flare import kits, probe, provision
from shepherd.silos.flare.kits import Kit
from shepherd.silos.flare.session import JobGone, JobSilent, NotAllowed, Quiet, Session, Work, session


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A federation now."""

    server: str
    """host:port."""
    sites: Mapping[str, str]
    """Every connected site, and what it does."""
    runs: Mapping[str, str]
    """Every run whose job runs there, by the run's id, and how far it is."""


def status(kit: str | Path) -> Status:
    """Ask the server who is connected and what runs.

    Raises:
        SilosError: the server refuses the kit, or cannot be reached.
    """
    with session(kit) as server:
        working = server.working()
        jobs = server.jobs()
        known = (work for work in working.values() if isinstance(work, frozenset))
        runs = {job: _run(server, job) for job in sorted(jobs.union(*known))}
        return Status(
            server=f"{server.kit.host}:{server.kit.port}",
            sites={site: _doing(working[site], runs) for site in sorted(working)},
            runs=_under_way(server, {job: runs[job] for job in sorted(jobs)}),
        )


def remove(folder: str | Path, name: str, kit: str | Path | None = None) -> list[str]:
    """Remember a site as removed, and have the server throw it out.

    Returns:
        What was done, in sentences.

    Raises:
        SilosError: there is no such federation or site, or the kit may not do it; nothing is changed then. Or
            the site is remembered as removed, and the server could not be told: the sentence says so.
    """
    with_kit = _remover(folder, kit)
    provision.remove_site(folder, name)
    with _said_if_untold(folder, name), session(with_kit.folder) as server:
        server.disable(name)
    return [
        _removed(folder, name),
        "the running server has thrown it out; the runs that it was in go on without it",
    ]


def remove_admin(
    folder: str | Path, name: str, kit: str | Path | None = None, *, stop_runs: bool = False
) -> list[str]:
    """Remember an administrator as removed, and have the server end the session and take the kit no more.

    Args:
        name: of the administrator, or of the kit.
        kit: of a project_admin; the first in the folder, another than the removed one where there is another.
        stop_runs: also end the jobs that the administrator has submitted.

    Returns:
        What was done, and which runs are the administrator's, in sentences.

    Raises:
        SilosError: as `remove`.
    """
    federation = provision.read(folder)
    full = provision.full_name(federation, Path(folder), name)
    with_kit = _remover(folder, kit, last=full)
    provision.remove_admin(folder, full)
    with _said_if_untold(folder, full), session(with_kit.folder) as server:
        theirs = _submitted(server, full, stop_runs)
        _disable(server, full)
    return [
        _removed(folder, full),
        "the running server has ended the sessions of that kit and opens no other",
        *theirs,
    ]


def _disable(server: Session, admin: str) -> None:
    try:
        server.disable(admin)
    except OutOfReach:
        if admin != server.kit.name:
            raise
        # who removes the own kit is cut off, perhaps before the answer is through
        with suppress(OutOfReach):
            _require_refused(server.kit)
            return
        raise


def _require_refused(kit: Kit) -> None:
    """Raise OutOfReach unless the server takes this kit no more."""
    try:
        probe.reach(kit)
    except OutOfReach:
        raise
    except SilosError:
        return
    raise OutOfReach(f"the server at {kit.host}:{kit.port} still takes the kit of {kit.name}; ask again")


def _submitted(server: Session, admin: str, stop_runs: bool) -> list[str]:
    """Which runs an administrator has submitted, by the server's records; ends those under way if asked."""
    jobs = server.jobs_of(admin)
    going = {job: run for job, (run, over) in jobs.items() if not over}
    if stop_runs:
        for job in going:
            server.abort(job)
    runs = sorted({run for run, _ in jobs.values()})
    under_way = sorted(set(going.values()))
    listed = f"submitted by {admin}: {', '.join(runs) or 'no run'}"
    older = "; `shepherd silos runs` at the server lists older ones too"
    if not under_way:
        return [listed + older]
    state = "were stopped" if stop_runs else "go on: stop them with --stop-runs"
    return [f"{listed}, of which {', '.join(under_way)} {state}{older}"]


def _remover(folder: str | Path, kit: str | Path | None, last: str = "") -> Kit:
    """The kit that removes somebody."""
    federation = provision.read(folder)
    with_kit = kits.read(kit if kit is not None else _first_admin(Path(folder), federation, last), "admin")
    _require_may_remove(with_kit, federation)
    return with_kit


def _removed(folder: str | Path, name: str) -> str:
    return f"{name} is removed from the federation in {folder}; that kit opens nothing any more"


@contextmanager
def _said_if_untold(folder: str | Path, name: str) -> Iterator[None]:
    try:
        yield
    except SilosError as error:
        raise type(error)(
            f"{name} is noted as removed in {folder}, and the server still lets it in, since it was not told"
            f" ({error}); ask again once that is mended"
        ) from error


def stop(folder: str | Path, kit: str | Path | None = None) -> str:
    """End the job of a run; what is finished is kept at the server and in the run folder.

    Whoever follows the run stops too, and begins no other job.

    Returns:
        One sentence.

    Raises:
        FolderError: the folder holds no run over silos.
        SilosError: the kit has moved, the server refuses it, or is out of reach.
    """
    with_kit, job = state_file.under_way(folder, kit)
    if state_file.is_finished(folder):
        return f"the run in {folder} has ended already"
    state_file.mark_stopped(folder)  # first: a job that only ended would be followed by another
    if job is not None:
        with session(with_kit) as server:
            if job in server.jobs() or not ended(server, job):
                server.abort(job)
    return f"stopped; go on with: shepherd resume {shlex.quote(str(folder))}"


def anew(folder: str | Path, kit: str | Path | None = None) -> str:
    """Give a run another name at its server and sites, that has lost rounds which the sites have answered.

    A site keeps its last two answers, and answers no older round again: so it would refuse. Under the new
    name the rounds go on from the run folder's copy, and each site begins its data from the front.

    Returns:
        One sentence.

    Raises:
        FolderError: the folder holds no run over silos, or another process follows it.
        SilosError: the kit has moved, the server refuses it, or is out of reach.
    """
    with_kit, _ = state_file.under_way(folder, kit)
    if state_file.is_finished(folder):
        return f"the run in {folder} has ended already"
    holder = folders.reopen(folder)
    with closing(holder):
        stop(folder, with_kit)
        _, order, _ = state_file.recorded(holder.path)
        named = replace(order, run=secrets.token_hex(8))
        holder.write(folders.SILOS, state_file.text(with_kit, named, None))
    return (
        "the sites take it for another run and begin their data anew; go on from the copy here with: shepherd"
        f" resume {shlex.quote(str(folder))}"
    )


def _doing(work: Work, runs: Mapping[str, str]) -> str:
    if isinstance(work, Quiet):
        return work.value
    return f"works on {', '.join(sorted({runs[job] for job in work}))}" if work else "waits for work"


def _run(server: Session, job: str) -> str:
    try:
        return server.run(job)
    except JobGone:
        return job


def _under_way(server: Session, runs: Mapping[str, str]) -> dict[str, str]:
    """How far each run is; of one whose last job is still ending, what each of its jobs says."""
    said: dict[str, list[str]] = {}
    for job, run in runs.items():
        said.setdefault(run, []).append(_how_far(server, job))
    return {run: "; ".join(lines) for run, lines in said.items()}


def _how_far(server: Session, job: str) -> str:
    """How far a job's run is, as far as this kit may ask."""
    try:
        told = status_update.told(server.told(job, NO_NEWS), rounds=-1)
    except (JobGone, JobSilent):
        return "begins or ends, and gives no answer now"
    except FederationError:
        return "tells what cannot be taken; ask whoever runs the server"
    except NotAllowed:
        return "is under way; only who submitted it and a project_admin may ask how far"
    if told.outcome:
        return "has ended" if told.outcome.get("finished") else "has ended in an error; see its run folder"
    if not told.opened or told.progress is None:
        return "waits for its sites"
    return f"round {told.progress['round']} of {told.progress['rounds']}"


def _require_may_remove(kit: Kit, federation: provision.Federation) -> None:
    if kit.federation != federation.name:
        raise SilosError(
            f"the kit in {kit.folder} is of another federation ({kit.federation}, and this is"
            f" {federation.name}); use an administrator's kit of this one"
        )
    if kit.role != "project_admin":
        raise SilosError(
            f"{kit.name} is {kit.role} in the federation and may not remove anybody; use the kit of a"
            " project_admin"
        )


def _first_admin(folder: Path, federation: provision.Federation, last: str = "") -> Path:
    """The first kit of a project_admin; that of `last` only where there is no other."""
    for name, role in sorted(federation.admins.items(), key=lambda admin: (admin[0] == last, admin[0])):
        kit = folder / "admins" / provision.kit_name(name)
        if (role == "project_admin" or name == last) and kit.is_dir():
            return kit
    raise SilosError(
        f"{folder} has no project_admin's kit to tell the server with; name one with --kit ADMIN_KIT"
    )
