"""Who is in a federation, what runs there, and how to end it, for an administrator."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from shepherd import folder as folders
from shepherd.errors import SilosError
from shepherd.federation.nvflare import kits, provision
from shepherd.federation.nvflare.kits import Kit
from shepherd.federation.nvflare.session import JobGone, JobSilent, NotAllowed, Quiet, Session, Work, session
from shepherd.silos import record
from shepherd.silos.following import NO_NEWS, ended


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
    federation = provision.read(folder)
    with_kit = kits.read(kit if kit is not None else _first_admin(Path(folder), federation), "admin")
    _require_may_remove(with_kit, federation)
    provision.remove_site(folder, name)
    try:
        with session(with_kit.folder) as server:
            server.disable(name)
    except SilosError as error:
        raise type(error)(
            f"{name} is noted as removed in {folder}, and the server still lets it in, since it was not told"
            f" ({error}); ask again once that is mended"
        ) from error
    return [
        f"{name} is removed from the federation in {folder}; its kit opens nothing any more",
        "the running server has thrown it out; the runs that it was in go on without it",
    ]


def stop(folder: str | Path, kit: str | Path | None = None) -> str:
    """End the job of a run; what is finished is kept at the server and in the run folder.

    Whoever follows the run stops too, and begins no other job.

    Returns:
        One sentence.

    Raises:
        FolderError: the folder holds no run over silos.
        SilosError: the kit has moved, the server refuses it, or is out of reach.
    """
    with_kit, job = record.under_way(folder, kit)
    if record.is_finished(folder):
        return f"the run in {folder} has ended already"
    record.mark_stopped(folder)  # first: a job that only ended would be followed by another
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
    with_kit, _ = record.under_way(folder, kit)
    if record.is_finished(folder):
        return f"the run in {folder} has ended already"
    holder = folders.reopen(folder)
    with closing(holder):
        stop(folder, with_kit)
        _, order, _ = record.recorded(holder.path)
        named = replace(order, run=secrets.token_hex(8))
        holder.write(folders.SILOS, record.text(with_kit, named, None))
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
        told = server.told(job, NO_NEWS)
    except (JobGone, JobSilent):
        return "begins or ends, and gives no answer now"
    except NotAllowed:
        return "is under way; only who submitted it and a project_admin may ask how far"
    if told["outcome"]:
        return "has ended" if told["outcome"].get("finished") else "has ended in an error; see its run folder"
    progress = told["progress"]
    return f"round {progress['round']} of {progress['rounds']}" if told["opened"] else "waits for its sites"


def _require_may_remove(kit: Kit, federation: provision.Federation) -> None:
    if kit.federation != federation.name:
        raise SilosError(
            f"the kit in {kit.folder} is of another federation ({kit.federation}, and this is"
            f" {federation.name}); use an administrator's kit of this one"
        )
    if kit.role != "project_admin":
        raise SilosError(
            f"{kit.name} is {kit.role} in the federation and may not remove a site; use the kit of a"
            " project_admin"
        )


def _first_admin(folder: Path, federation: provision.Federation) -> Path:
    for name, role in sorted(federation.admins.items()):
        kit = folder / "admins" / provision.kit_name(name)
        if role == "project_admin" and kit.is_dir():
            return kit
    raise SilosError(
        f"{folder} has no project_admin's kit to tell the server with; name one with --kit ADMIN_KIT"
    )
