"""Publish a run's adapter on the Hugging Face hub: `shepherd push`.

What would be published is written into a folder of this machine first, described, and only then sent, if the
person at the keyboard said so. The token comes from the environment variable HF_TOKEN alone: one that
`hf auth login` keeps in a file is never read.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from shepherd.consent import NOTHING, Consent
from shepherd.errors import HubError, ShepherdError
from shepherd.io import paths
from shepherd.io.atomic import write_atomic
from shepherd.io.progress import many, stage
from shepherd.model import files
from shepherd.run.export import CARD, export

TOKEN = "HF_TOKEN"
"""Environment variable of the access token."""
ENDPOINT = "HF_ENDPOINT"
"""Environment variable of the hub's address, where it is another than huggingface.co."""
TEXTS = (".json", ".md", ".jinja", ".txt")
"""Ends of names of files in which no path of this machine may stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What would be published, in a folder of this machine."""

    folder: Path
    repo: str
    public: bool
    base: str
    """The base's public name; "" where the files hold the base themselves."""

    @property
    def files(self) -> list[Path]:
        """The files to send, by name."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def lines(self) -> Iterator[str]:
        """Say what would be published, to whom it is visible, and which files it is made of."""
        sizes = {path: path.stat().st_size for path in self.files}
        seen = "public, for anybody to read" if self.public else "private, for your account or organisation"
        yield f"repository: {self.repo} ({seen})"
        if self.base:
            yield f"base: {self.base}"
        yield f"{many(len(sizes), 'file')}, {sum(sizes.values()):,} bytes:"
        yield from (f"  {path.relative_to(self.folder)}  {size:,} bytes" for path, size in sizes.items())
        yield f"{CARD} holds the run file, numbers of examples and scores; read it before you publish it"


@contextmanager
def prepared(
    path: str | Path,
    repo: str,
    to: str = "peft",
    keys: Iterable[str] = (),
    *,
    public: bool = False,
    base: str = "",
    round: int | None = None,
    client: str | None = None,
    results: Iterable[str | Path] = (),
    unreleased: bool = False,
    consent: Consent = NOTHING,
) -> Iterator[Publication]:
    """Export the run in `path` into a temporary folder, as it would be published.

    Args:
        repo: id of the repository, "owner/name".
        to, keys, round, client, results, unreleased, consent: as for `run.export.export`.
        public: whether anybody may read it.
        base: the base's public name on the hub, where the run's base is a folder of this machine.

    Raises:
        HubError: `repo` is no id, or a file would name a folder of this machine.
        ShepherdError: as for `run.export.export`.
    """
    if not paths.is_hub_id(repo) or repo.count("/") != 1:
        raise HubError(f"{repo!r} is no repository of the hub; give it as OWNER/NAME")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "published"
        export(
            path,
            folder,
            to,
            keys,
            round=round,
            client=client,
            results=results,
            unreleased=unreleased,
            consent=consent,
        )
        named = _with_public_base(folder, base)
        publication = Publication(folder=folder, repo=repo, public=public, base=named)
        _require_no_paths(publication, Path(path))
        yield publication


def _with_public_base(folder: Path, base: str) -> str:
    """The name of an adapter's base in its configuration, replaced by a public one where it is a folder."""
    config = folder / files.CONFIG
    if not config.is_file():
        return ""
    keys = json.loads(config.read_text(encoding="utf8"))
    found = base or str(keys.get("base_model_name_or_path") or "")
    if not paths.is_hub_id(found):
        raise HubError(
            f"the adapter's base is the folder {found} of this machine, where nobody else finds it; give its"
            " name on the hub with --base OWNER/NAME, or publish base and adapter as one with --to merged"
        )
    if base:
        keys["base_model_name_or_path"] = base
        write_atomic(config, json.dumps(keys, indent=2, sort_keys=True) + "\n")
    return found + (f" at revision {keys['revision']}" if keys.get("revision") else "")


def _require_no_paths(publication: Publication, run: Path) -> None:
    """Raise HubError if a text names a folder of this machine."""
    private = {str(publication.folder), str(run.absolute()), str(Path.home())} - {"/"}
    for path in publication.files:
        if path.name.endswith(TEXTS) or not path.suffix:
            text = path.read_bytes().decode("utf8", errors="replace")
            if found := sorted(each for each in private if each in text):
                raise HubError(
                    f"{path.name} would publish {found[0]}, a folder of this machine; export it with"
                    " `shepherd export`, remove that from the file, and publish the folder by hand"
                )


def publish(publication: Publication, *, update: bool = False) -> str:
    """Send the files in one commit to a repository, which is made where it is missing.

    Args:
        update: whether files may be added to a repository that has some; its history keeps them.

    Returns:
        The address of the commit.

    Raises:
        HubError: there is no token, the repository has files already or is public against what was asked,
            or the hub refuses or is not reached.
    """
    token = os.environ.get(TOKEN, "")
    if not token:
        raise HubError(
            f"the environment variable {TOKEN} is empty; set it to an access token of the hub that may write"
            f" to {publication.repo}"
        )
    repo = publication.repo
    api = HfApi(endpoint=os.environ.get(ENDPOINT) or None, token=token)
    with _hub_errors(repo):
        try:
            found = api.model_info(repo)
        except RepositoryNotFoundError:
            api.create_repo(repo, private=not publication.public)
        else:
            there = [each.rfilename for each in found.siblings or () if each.rfilename != ".gitattributes"]
            if not publication.public and not found.private:
                raise HubError(f"repository {repo} is public; say --public, or give another repository")
            if there and not update:
                raise HubError(
                    f"repository {repo} holds {many(len(there), 'file')} already, {there[0]} first; say"
                    " --update to commit over them, or give another repository"
                )
        with stage(f"sending {many(len(publication.files), 'file')} to {repo}"):
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=publication.folder,
                commit_message="Adapter of a federated run",
            )
    return str(commit.commit_url)


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
