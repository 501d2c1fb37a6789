"""Who is in a federation, what runs there, and how to end it, for an administrator."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from shepherd import folder as folders
from shepherd.errors import OutOfReach, SilosError
from shepherd.federation.nvflare import kits, provision
from shepherd.federation.nvflare.kits import Kit
from shepherd.federation.nvflare.session import session
from shepherd.silos import record
from shepherd.silos.following import ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A federation now."""

    server: str
    """host:port."""
    sites: Mapping[str, str]
    """Every connected site, and what it does."""
    jobs: Mapping[str, str]
    """The jobs that run, by id: their names."""


def status(kit: str | Path) -> Status:
    """Ask the server who is connected and what runs.

    Raises:
        SilosError: the server refuses the kit, or cannot be reached.
    """
    with session(kit) as server:
        jobs = server.jobs()
        working = server.working()
        return Status(
            server=f"{server.kit.host}:{server.kit.port}",
            sites={site: _doing(working[site]) for site in sorted(working)},
            jobs=jobs,
        )


def remove(folder: str | Path, name: str, kit: str | Path | None = None) -> list[str]:
    """Remember a site as removed, and have the running server throw it out.

    Returns:
        What was done, in sentences.

    Raises:
        SilosError: there is no such federation or site, or the kit may not do it.
    """
    if kit is not None:
        _require_may_remove(kits.read(kit, "admin"))  # a wrong one leaves everything as it is
    federation = provision.remove_site(folder, name)
    said = [f"{name} is removed from the federation in {folder}; its kit opens nothing any more"]
    with_kit = Path(kit) if kit is not None else _first_admin(Path(folder), federation)
    try:
        with session(with_kit) as server:
            server.disable(name)
    except OutOfReach as error:
        return [*said, f"the running server was not told, since it is out of reach ({error})"]
    return [*said, "the running server has thrown it out; the runs that it was in go on without it"]


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


def _doing(jobs: frozenset[str] | None) -> str:
    if jobs is None:
        return "registered, gives no answer"
    return f"works on {', '.join(sorted(jobs))}" if jobs else "waits for work"


def _require_may_remove(kit: Kit) -> None:
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
