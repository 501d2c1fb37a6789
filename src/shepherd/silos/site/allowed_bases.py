"""The bases that a site may load: find them, and verify their digests."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shepherd import world
from shepherd.errors import BaseError
from shepherd.model.digest import digest, snapshot
from shepherd.settings import TINY
from shepherd.silos.site.site_settings import BaseTable

MAX_REQUEST_ADAPTERS = 4  # in one request
REQUEST_OVERHEAD_BYTES = 32 * 2**20  # bytes: a message's header is half of it at most


def folder_of(base: BaseTable) -> str:
    """The folder of a base on this disk: a given folder, or that of the embedded or a downloaded base.

    Raises:
        BaseError: a Hugging Face id that was not downloaded to this disk.
    """
    if base.folder == TINY:
        return str(world.base_path())
    if Path(base.folder).is_absolute():
        return base.folder
    return snapshot(base.folder)


def digest_of(base: BaseTable) -> str:
    """The digest of a base's files as they are now.

    Raises:
        BaseError: they are missing or cannot be read.
    """
    return digest(folder_of(base))


def max_message_bytes(bases: Sequence[BaseTable], max_rank: int) -> int:
    """Size in bytes of the largest request that a site accepts: a few adapters of the largest rank.

    It includes names and other fields. An algorithm may send more than the adapter, such as a correction of
    the same size.
    """
    from shepherd.model import meta_shapes

    sizes = [0]
    for base in bases:
        with suppress(BaseError):  # an unreadable base is refused when a run asks for it
            sizes.append(meta_shapes.adapter_bytes(folder_of(base), max_rank))
    return MAX_REQUEST_ADAPTERS * max(sizes) + REQUEST_OVERHEAD_BYTES


def allowed(bases: Sequence[BaseTable]) -> frozenset[str]:
    """The digests that a run may ask for, as the owner listed them."""
    return frozenset(base.sha256 for base in bases if base.sha256)


def find(bases: Sequence[BaseTable], asked: str) -> str:
    """The folder of the base with this digest, after verifying its files.

    Raises:
        BaseError: no listed base has this digest, or the files have changed.
    """
    for base in bases:
        if base.sha256 and base.sha256 == asked:
            found = digest_of(base)
            if found != asked:
                raise BaseError(
                    f"base {base.name} has the digest {found}, not {asked} as in site.toml; restore its"
                    " files, or write the new digest there if you trust them"
                )
            return folder_of(base)
    raise BaseError(
        f"no base of this site has the digest {asked:.80}; agree on one base with the coordinator"
    )
