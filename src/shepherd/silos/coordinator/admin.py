"""An administrator's commands: show a federation, remove members, stop a run."""

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
from shepherd.silos.coordinator.job_follower import STATUS_ONLY, ended
from shepherd.silos.flare import kits, probe, provision
from shepherd.silos.flare.kits import Kit
from shepherd.silos.flare.session import JobGone, JobSilent, NotAllowed, Quiet, Session, Work, session


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of a federation."""

    server: str
    """host:port."""
    sites: Mapping[str, str]
    """Connected site -> what it is doing."""
    runs: Mapping[str, str]
    """Id of each run that has a job at the server -> its progress."""


def status(kit: str | Path) -> Status:
    """Ask the server which sites are connected and which runs are under way.

    Raises:
        SilosError: the server refuses the kit, or cannot be reached.
    """
    with session(kit) as server:
        working = server.working()
        jobs = server.jobs()
        known = (work for work in working.values() if isinstance(work, frozenset))
        runs = {job: _run_of_job(server, job) for job in sorted(jobs.union(*known))}
        return Status(
            server=f"{server.kit.host}:{server.kit.port}",
            sites={site: _site_activity(working[site], runs) for site in sorted(working)},
            runs=_describe_runs(server, {job: runs[job] for job in sorted(jobs)}),
        )


def remove(folder: str | Path, name: str, kit: str | Path | None = None) -> list[str]:
    """Record a site as removed, and have the server disconnect it.

    Returns:
        What was done, in sentences.

    Raises:
        SilosError: there is no such federation or site, or the kit has no right to do it; nothing is changed
            then. Or the site is recorded as removed, but the server could not be reached: the
            message says so.
    """
    with_kit = _kit_to_remove_with(folder, kit)
    provision.remove_site(folder, name)
    with _explain_unreached_server(folder, name), session(with_kit.folder) as server:
        server.disable(name)
    return [
        _removed_sentence(folder, name),
        "the running server has disconnected it; its runs continue without it",
    ]


def remove_admin(
    folder: str | Path, name: str, kit: str | Path | None = None, *, stop_runs: bool = False
) -> list[str]:
    """Record an administrator as removed, and have the server end the sessions of that kit and refuse it.

    Args:
        name: the administrator's name, or that of the kit.
        kit: kit of a project_admin; by default the first in the folder, the removed one only if it is
            the last.
        stop_runs: also stop the jobs that the administrator has submitted.

    Returns:
        What was done, and which runs the administrator has submitted, in sentences.

    Raises:
        SilosError: as `remove`.
    """
    federation = provision.read(folder)
    full = provision.full_name(federation, Path(folder), name)
    with_kit = _kit_to_remove_with(folder, kit, last=full)
    provision.remove_admin(folder, full)
    with _explain_unreached_server(folder, full), session(with_kit.folder) as server:
        theirs = _submitted_runs(server, full, stop_runs)
        _disable(server, full)
    return [
        _removed_sentence(folder, full),
        "the running server has ended the sessions of that kit and accepts no new one",
        *theirs,
    ]


def _disable(server: Session, admin: str) -> None:
    try:
        server.disable(admin)
    except OutOfReach:
        if admin != server.kit.name:
            raise
        # an administrator who removes the own kit may be cut off before the answer arrives
        with suppress(OutOfReach):
            _require_refused(server.kit)
            return
        raise


def _require_refused(kit: Kit) -> None:
    """Raise OutOfReach unless the server refuses this kit."""
    try:
        probe.reach(kit)
    except OutOfReach:
        raise
    except SilosError:
        return
    raise OutOfReach(f"the server at {kit.host}:{kit.port} still accepts the kit of {kit.name}; try again")


def _submitted_runs(server: Session, admin: str, stop_runs: bool) -> list[str]:
    """List the runs that an administrator has submitted, by the server's records; optionally stop them."""
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
    state = "were stopped" if stop_runs else "continue (stop them with --stop-runs)"
    return [f"{listed}, of which {', '.join(under_way)} {state}{older}"]


def _kit_to_remove_with(folder: str | Path, kit: str | Path | None, last: str = "") -> Kit:
    """The kit to remove a member with."""
    federation = provision.read(folder)
    with_kit = kits.read(kit if kit is not None else _first_admin(Path(folder), federation, last), "admin")
    _require_may_remove(with_kit, federation)
    return with_kit


def _removed_sentence(folder: str | Path, name: str) -> str:
    return f"{name} is removed from the federation in {folder}; its kit is no longer valid"


@contextmanager
def _explain_unreached_server(folder: str | Path, name: str) -> Iterator[None]:
    try:
        yield
    except SilosError as error:
        raise type(error)(
            f"{name} is recorded as removed in {folder}, but the server still accepts it, since it could not"
            f" be informed ({error}); run the command again once that is fixed"
        ) from error


def stop(folder: str | Path, kit: str | Path | None = None) -> str:
    """Stop a run at the server; finished rounds are kept there and in the run folder.

    The process that follows the run stops too, and submits no other job.

    Returns:
        One sentence for the person.

    Raises:
        FolderError: the folder does not hold a run over silos.
        SilosError: the kit has moved, the server refuses it, or cannot be reached.
    """
    with_kit, job = state_file.kit_and_job(folder, kit)
    if state_file.is_finished(folder):
        return f"the run in {folder} has ended already"
    state_file.mark_stopped(folder)  # first, else another job would follow the one that ends
    if job is not None:
        with session(with_kit) as server:
            if job in server.jobs() or not ended(server, job):
                server.abort(job)
    return f"stopped; continue with: shepherd resume {shlex.quote(str(folder))}"


def new_id(folder: str | Path, kit: str | Path | None = None) -> str:
    """Give a run a new id, so that sites accept rounds that they have answered and the server has lost.

    A site keeps its last two answers and refuses older rounds. Under the new id the run continues from the
    run folder's copy, and each site starts again at the beginning of its data.

    Returns:
        One sentence for the person.

    Raises:
        FolderError: the folder does not hold a run over silos, or another process follows it.
        SilosError: the kit has moved, the server refuses it, or cannot be reached.
    """
    with_kit, _ = state_file.kit_and_job(folder, kit)
    if state_file.is_finished(folder):
        return f"the run in {folder} has ended already"
    holder = folders.reopen(folder)
    with closing(holder):
        stop(folder, with_kit)
        _, order, _ = state_file.read_state(holder.path)
        named = replace(order, run=secrets.token_hex(8))
        holder.write(folders.SILOS, state_file.text(with_kit, named, None))
    return (
        "the run has a new id, under which the sites start their data from the beginning; continue from the"
        f" copy in the run folder with: shepherd resume {shlex.quote(str(folder))}"
    )


def _site_activity(work: Work, runs: Mapping[str, str]) -> str:
    if isinstance(work, Quiet):
        return work.value
    return f"works on {', '.join(sorted({runs[job] for job in work}))}" if work else "is idle"


def _run_of_job(server: Session, job: str) -> str:
    try:
        return server.run(job)
    except JobGone:
        return job


def _describe_runs(server: Session, runs: Mapping[str, str]) -> dict[str, str]:
    """Run id -> progress; where its last job is still ending, the progress of each of its jobs."""
    said: dict[str, list[str]] = {}
    for job, run in runs.items():
        said.setdefault(run, []).append(_job_progress(server, job))
    return {run: "; ".join(lines) for run, lines in said.items()}


def _job_progress(server: Session, job: str) -> str:
    """Progress of a job's run, as far as this kit may see it."""
    try:
        current = status_update.parse_status(server.ask_job(job, STATUS_ONLY), rounds=-1)
    except (JobGone, JobSilent):
        return "is starting or ending, and does not respond now"
    except FederationError:
        return "reports an unreadable status; ask the server's operator"
    except NotAllowed:
        return "is under way; only its submitter and a project_admin can see its progress"
    if current.outcome:
        return "has ended" if current.outcome.get("finished") else "has ended in an error; see its run folder"
    if not current.opened or current.progress is None:
        return "is waiting for its sites"
    return f"round {current.progress['round']} of {current.progress['rounds']}"


def _require_may_remove(kit: Kit, federation: provision.Federation) -> None:
    if kit.federation != federation.name:
        raise SilosError(
            f"the kit in {kit.folder} is for another federation ({kit.federation}, not {federation.name});"
            " use an administrator's kit of this one"
        )
    if kit.role != "project_admin":
        raise SilosError(
            f"{kit.name} has the role {kit.role} in the federation and may not remove members; use the kit of"
            " a project_admin"
        )


def _first_admin(folder: Path, federation: provision.Federation, last: str = "") -> Path:
    """The first kit of a project_admin; that of `last` only if there is no other."""
    for name, role in sorted(federation.admins.items(), key=lambda admin: (admin[0] == last, admin[0])):
        kit = folder / "admins" / provision.kit_name(name)
        if (role == "project_admin" or name == last) and kit.is_dir():
            return kit
    raise SilosError(
        f"{folder} has no project_admin's kit to contact the server with; name one with --kit ADMIN_KIT"
    )
