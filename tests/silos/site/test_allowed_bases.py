"""Which base a run gets: by its digest, and only if the files are still the ones that were named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shepherd import world
from shepherd.errors import BaseError
from shepherd.model.digest import digest
from shepherd.silos.site import allowed_bases
from shepherd.silos.site.site_settings import BaseTable

TINY = digest(world.base_path())


def table(folder: Path | str, sha256: str = "", name: str = "b") -> BaseTable:
    return BaseTable(name=name, folder=str(folder), sha256=sha256)


def test_the_embedded_base_and_a_copy_of_it_are_one(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(world.base_path(), copy)
    assert allowed_bases.digest_of(table("tiny")) == allowed_bases.digest_of(table(copy)) == TINY
    assert allowed_bases.find([table(copy, TINY)], TINY) == str(copy)
    assert allowed_bases.find([table("tiny", TINY)], TINY) == str(world.base_path())


def test_a_base_without_a_digest_is_never_loaded() -> None:
    unnamed = [table("tiny")]
    assert allowed_bases.allowed(unnamed) == frozenset()
    for asked in (TINY, ""):
        with pytest.raises(BaseError, match="no base of this site has the digest"):
            allowed_bases.find(unnamed, asked)


def test_files_that_are_others_than_were_named_are_not_loaded(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(world.base_path(), copy)
    (copy / "config.json").write_text("{}")
    named = [table(copy, TINY, "ours")]
    assert allowed_bases.allowed(named) == {TINY}
    with pytest.raises(BaseError, match=f"base ours has the digest {digest(copy)}, not {TINY} as in site"):
        allowed_bases.find(named, TINY)


def test_a_hub_id_that_was_not_downloaded_is_named() -> None:
    with pytest.raises(BaseError, match="base them/never-fetched is not on this disk"):
        allowed_bases.digest_of(table("them/never-fetched"))
