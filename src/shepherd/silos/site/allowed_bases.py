"""The bases that a site may load: where each lies, and whether it is what its owner named."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shepherd import world
from shepherd.errors import BaseError
from shepherd.model.digest import digest, snapshot
from shepherd.settings import TINY
from shepherd.silos.site.site_settings import BaseTable

ADAPTERS = 4  # in one request
SPARE = 32 * 2**20  # bytes: a message's header is half of it at most


def folder_of(base: BaseTable) -> str:
    """Where a base lies on this disk: the embedded one's folder, its own, or a download's.

    Raises:
        BaseError: it is a Hugging Face id that was not downloaded here.
    """
    if base.folder == TINY:
        return str(world.base_path())
    if Path(base.folder).is_absolute():
        return base.folder
    return snapshot(base.folder)


def digest_of(base: BaseTable) -> str:
    """The digest of the files that are there now.

    Raises:
        BaseError: it is not there, or cannot be read.
    """
    return digest(folder_of(base))


def largest_message(bases: Sequence[BaseTable], max_rank: int) -> int:
    """Bytes of the largest request that a site has to take: a few adapters of the largest rank, and names.

    A method may send more than the adapter, such as a correction of its size.
    """
    from shepherd.model import meta_shapes

    sizes = [0]
    for base in bases:
        with suppress(BaseError):  # a base that cannot be read is refused when a run asks for it
            sizes.append(meta_shapes.adapter_bytes(folder_of(base), max_rank))
    return ADAPTERS * max(sizes) + SPARE


def allowed(bases: Sequence[BaseTable]) -> frozenset[str]:
    """The digests that a run may ask for, as the owner wrote them."""
    return frozenset(base.sha256 for base in bases if base.sha256)


def find(bases: Sequence[BaseTable], asked: str) -> str:
    """The folder of the base with the digest that is asked for, its files checked.

    Raises:
        BaseError: no base has it, or the files are others than the owner named.
    """
    for base in bases:
        if base.sha256 and base.sha256 == asked:
            found = digest_of(base)
            if found != asked:
                raise BaseError(
                    f"base {base.name} has the digest {found} and not {asked} as site.toml says; put its"
                    " files back, or write the new digest there if you trust them"
                )
            return folder_of(base)
    raise BaseError(
        f"no base of this site has the digest {asked:.80}; agree on one base with the coordinator"
    )
