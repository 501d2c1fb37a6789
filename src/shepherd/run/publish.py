"""Publish a run's adapter on the Hugging Face hub: `shepherd push`.

What would be published is written into a folder of this machine first, described with what the hub has under
that id, and only then sent, if the person at the keyboard said so. The token comes from the environment
variable HF_TOKEN alone: one that `hf auth login` keeps in a file is never read.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from shepherd.consent import NOTHING, Consent
from shepherd.errors import HubError, ShepherdError
from shepherd.io import paths
from shepherd.io.progress import many, stage
from shepherd.run import folder, published_texts
from shepherd.run.export import CARD, export, exporter_of, require_name
from shepherd.settings import TINY

TOKEN = "HF_TOKEN"
"""Environment variable of the access token."""
ENDPOINT = "HF_ENDPOINT"
"""Environment variable of the hub's address, where it is another than huggingface.co."""
MESSAGE = "Adapter of a federated run"
"""Title of a commit, by which a later publication knows the files of an earlier one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """What the hub has under an id."""

    private: bool
    commit: str | None
    files: frozenset[str]
    ours: frozenset[str]
    """Those of the files that a publication of this program wrote, and nobody has changed since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What would be published, in a folder of this machine."""

    folder: Path
    repo: str
    public: bool
    base: str
    """The base's public name; "" where the files hold the base themselves, and it has none."""
    use: str
    """The command that answers with what was published; "" if there is none to name."""
    there: Repository | None
    """What the hub has under that id; None if there is no such repository."""
    unseen: str
    """Why the hub was not asked for that; "" if it was."""

    @property
    def files(self) -> list[Path]:
        """The files to send, by name."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    @property
    def names(self) -> frozenset[str]:
        """Names of the files in the repository."""
        return frozenset(path.relative_to(self.folder).as_posix() for path in self.files)

    @property
    def outdated(self) -> list[str]:
        """Files of an earlier publication that this one has no file for; they are deleted."""
        return sorted(self.there.ours - self.names) if self.there else []

    def lines(self) -> Iterator[str]:
        """Say what would be published, to whom it is visible, and what becomes of what is there."""
        sizes = {path: path.stat().st_size for path in self.files}
        seen = "public, for anybody to read" if self.public else "private, for your account or organisation"
        yield f"repository: {self.repo} ({seen})"
        yield from self._changes()
        if self.base:
            yield f"base: {self.base}"
        yield f"{many(len(sizes), 'file')}, {sum(sizes.values()):,} bytes:"
        yield from (f"  {path.relative_to(self.folder)}  {size:,} bytes" for path, size in sizes.items())
        yield f"{CARD} holds the run file, numbers of examples and scores; read it before you publish it"

    def _changes(self) -> Iterator[str]:
        if self.unseen:
            yield f"whether it is there, and what would be deleted in it, is not known: {self.unseen}"
        elif self.there is None:
            yield "it is not there yet, and is made"
        else:
            yield f"it is there, with {many(len(self.there.files), 'file')}"
            for title, names in (
                ("replaced", self.there.files & self.names),
                ("deleted, as of an earlier publication, though its history keeps them", self.outdated),
                ("left there", self.there.files - self.names - self.there.ours),
            ):
                if names:
                    yield f"{title}: {', '.join(sorted(names))}"


@contextmanager
def prepared(
    path: str | Path,
    repo: str,
    to: str = "peft",
    keys: Iterable[str] = (),
    *,
    public: bool = False,
    update: bool = False,
    sends: bool = False,
    base: str = "",
    round: int | None = None,
    client: str | None = None,
    results: Iterable[str | Path] = (),
    unreleased: bool = False,
    consent: Consent = NOTHING,
) -> Iterator[Publication]:
    """Export the run in `path` into a temporary folder, as it would be published.

    The hub is asked what it has under that id, and sent nothing.

    Args:
        repo: id of the repository, "owner/name".
        to, keys, round, client, results, unreleased, consent: as for `run.export.export`.
        public: whether anybody may read it.
        update: whether files may be added to a repository that has some, in place of those of an earlier
            publication; its history keeps them.
        sends: whether it is to be sent, so that the hub has to answer; else the description says that it did
            not.
        base: the base's public name on the hub, where the run's base is a folder of this machine.

    Raises:
        HubError: `repo` is no id, the base has no public name, a file would name a folder of this machine,
            the repository has files already or is not as visible as was asked, or the hub refuses or is not
            reached.
        ShepherdError: as for `run.export.export`.
    """
    if not paths.is_hub_id(repo) or repo.count("/") != 1:
        raise HubError(f"{repo!r} is no repository of the hub; give it as OWNER/NAME")
    require_name(base)
    path, keys = Path(path), list(keys)
    named = _base(path, base, holds_base=exporter_of(to, keys, consent).holds_base)
    there, unseen = None, ""
    try:
        there = look_up(repo)
    except HubError as error:
        if sends:
            raise
        unseen = str(error)
    _require_takes(repo, there, public=public, update=update)
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "published"
        use = export(
            path,
            written,
            to,
            keys,
            base=base,
            repo=repo,
            round=round,
            client=client,
            results=results,
            unreleased=unreleased,
            consent=consent,
        )
        publication = Publication(
            folder=written, repo=repo, public=public, base=named, use=use, there=there, unseen=unseen
        )
        published_texts.require_no_paths(publication.files, path, written)
        yield publication


def _base(path: Path, public: str, *, holds_base: bool) -> str:
    """What a reader loads the base by; "" if there is no such name, and the files hold the base."""
    model = folder.planned(path).model
    name, revision = paths.for_others(model.base, model.revision, public)
    if name != TINY and paths.is_hub_id(name):
        return name + (f" at revision {revision}" if revision else "")
    if holds_base:
        return ""
    where = "embedded in shepherd-fit" if name == TINY else f"the folder {name} of this machine"
    raise HubError(
        f"the adapter's base is {where}, where nobody finds it by a name of the hub; give its name there with"
        " --base OWNER/NAME, or publish base and adapter as one with --to merged"
    )


def look_up(repo: str) -> Repository | None:
    """What the hub has under an id; None if there is no such repository, or the token may not see it.

    Raises:
        HubError: there is no token, or the hub refuses or is not reached.
    """
    api = _api(repo)
    with _hub_errors(repo):
        try:
            found = api.model_info(repo)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 404:
                return None
            raise
        tree = api.list_repo_tree(repo, recursive=True, expand=True, revision=found.sha)
        files = [each for each in tree if isinstance(each, RepoFile) and each.path != ".gitattributes"]
        return Repository(
            private=bool(found.private),
            commit=found.sha,
            files=frozenset(each.path for each in files),
            ours=frozenset(each.path for each in files if _is_ours(each)),
        )


def _is_ours(file: RepoFile) -> bool:
    """Whether a publication wrote a file last; an earlier version may have made several commits of one."""
    title = str(file.last_commit.title) if file.last_commit else ""
    return title == MESSAGE or title.startswith(f"{MESSAGE} (part ")


def _require_takes(repo: str, there: Repository | None, *, public: bool, update: bool) -> None:
    """Raise HubError unless a repository may get a publication; what it is visible to is never changed."""
    if there is None:
        return
    if public and there.private:
        raise HubError(
            f"repository {repo} is private, and stays so; make it public in its settings on the hub first,"
            " leave out --public, or give another repository"
        )
    if not public and not there.private:
        raise HubError(f"repository {repo} is public; say --public, or give another repository")
    if there.files and not update:
        raise HubError(
            f"repository {repo} holds {many(len(there.files), 'file')} already, {min(there.files)} first; say"
            " --update to commit over them, or give another repository"
        )


def publish(publication: Publication) -> str:
    """Send the files in one commit to a repository, which is made where it is missing.

    Returns:
        The address of the commit.

    Raises:
        HubError: the repository is not as it was when the publication was prepared, or the hub refuses or is
            not reached.
    """
    repo, there = publication.repo, publication.there
    api = _api(repo)
    if look_up(repo) != there:
        raise HubError(f"repository {repo} was changed meanwhile, and nothing was sent; try again")
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationDelete(path_in_repo=name) for name in publication.outdated),
        *(
            CommitOperationAdd(
                path_in_repo=path.relative_to(publication.folder).as_posix(), path_or_fileobj=path
            )
            for path in publication.files
        ),
    ]
    with _hub_errors(repo):
        if there is None:
            api.create_repo(repo, private=not publication.public)
    try:
        with _hub_errors(repo), stage(f"sending {many(len(publication.files), 'file')} to {repo}"):
            commit = api.create_commit(
                repo, operations, commit_message=MESSAGE, parent_commit=there.commit if there else None
            )
    except HubError as error:
        if there is not None:
            raise
        raise HubError(f"{error}; repository {repo} was made for it, and is empty") from error
    return str(commit.commit_url)


def _api(repo: str) -> HfApi:
    token = os.environ.get(TOKEN, "")
    if not token:
        raise HubError(
            f"the environment variable {TOKEN} is empty; set it to an access token of the hub that may write"
            f" to {repo}"
        )
    return HfApi(endpoint=os.environ.get(ENDPOINT) or None, token=token)


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn what the hub and its client raise into HubError."""
    try:
        yield
    except ShepherdError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        fix = f"check that the token in {TOKEN} may write there" if status in (401, 403, 404) else "try again"
        raise HubError(f"the hub refused {repo} (status {status}: {_reason(error)}); {fix}") from error
    except HFValidationError as error:
        raise HubError(f"{repo!r} is no repository of the hub; give it as OWNER/NAME") from error
    except Exception as error:  # each version of the library has its own, of the network and of an upload
        raise HubError(
            f"the hub was not reached, or did not take the files ({_reason(error)}); check the network, and"
            " try again"
        ) from error


def _reason(error: Exception) -> str:
    said = getattr(error, "server_message", None) or str(error.__cause__ or error)
    return " ".join(said.split())[:200] or type(error).__name__
