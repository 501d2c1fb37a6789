from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.silos.flare import federations

from shepherd.errors import SilosError
from shepherd.silos.flare import kits, provision


def test_a_kit_says_whom_it_is_for_and_where_it_leads(federation: Path) -> None:
    whole = provision.read(federation)
    read = [kits.read(federation / p) for p in ("server", "sites/site-1", "admins/ada")]
    assert [kit.kind for kit in read] == ["server", "site", "admin"]
    assert [kit.name for kit in read] == ["localhost", "site-1", "ada@shepherd.local"]
    assert {(kit.federation, kit.host, kit.port, kit.identity) for kit in read} == {
        (whole.name, "localhost", whole.port, "localhost")
    }
    assert len({kit.authority for kit in read}) == 1
    assert read[1].not_after - read[1].not_before == timedelta(days=360)
    assert federations.common_name(read[1].certificate) == "site-1"
    assert kits.read(federation / "sites" / "site-1" / "startup") == read[1]


def test_no_kit_and_a_kit_of_another_kind(federation: Path, tmp_path: Path) -> None:
    with pytest.raises(SilosError, match="is not a kit"):
        kits.read(tmp_path, "site")
    with pytest.raises(SilosError, match="a kit of an administrator, and this needs a kit of a site"):
        kits.read(federation / "admins" / "ada", "site")


def test_a_certificate_holds_between_two_moments(federation: Path) -> None:
    folder = federation / "sites" / "site-1"
    kit, second = kits.read(folder), timedelta(seconds=1)
    for moment in (kit.not_before, kit.not_after):
        assert kits.read(folder, now=moment) == kit
    with pytest.raises(SilosError, match=r"is not valid before .* clock says"):
        kits.read(folder, now=kit.not_before - second)
    with pytest.raises(SilosError, match=r"expired on .* clock says .* new kit"):
        kits.read(folder, now=kit.not_after + second)
    assert kit.not_before < datetime.now(UTC) < kit.not_after


def test_an_authority_holds_between_two_moments(federation: Path) -> None:
    """All of them begin together; ten years later the authority ends, whenever a kit was made."""
    folder = federation / "sites" / "site-1"
    kit = kits.read(folder)
    late = replace(kit, not_after=kit.not_after + timedelta(days=9999))
    with pytest.raises(SilosError, match=r"the authority, .*rootCA.pem, is valid from .* new federation"):
        kits._require_in_time(late, kit.not_before + timedelta(days=provision.ROOT_DAYS + 1))


def test_moments_are_told_to_the_second(federation: Path) -> None:
    """Two that differ by less than a minute would look the same."""
    folder = federation / "sites" / "site-1"
    begins = kits.read(folder).not_before
    with pytest.raises(SilosError) as raised:
        kits.read(folder, now=begins - timedelta(seconds=1))
    for moment in (begins, begins - timedelta(seconds=1)):
        assert f"{moment:%Y-%m-%d %H:%M:%S} UTC" in str(raised.value)


@pytest.mark.parametrize("target", ["[::1]:8002", "2001:db8::5:8002"])
@pytest.mark.parametrize("folder", ["sites/site-1", "server"])
def test_a_kit_that_was_made_to_lead_to_an_ipv6_address(
    federation: Path, tmp_path: Path, folder: str, target: str
) -> None:
    kit = federations.copied(federation / folder, tmp_path / "kit")
    (file,) = (kit / "startup").glob("fed_*.json")
    file.write_text(re.sub(r'"target": "[^"]*"', f'"target": "{target}"', file.read_text()))
    with pytest.raises(SilosError, match=f"IPv6 address .* FLARE cannot use; write a name .* {file}$"):
        kits.read(kit)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read(federation: Path, tmp_path: Path, mode: int) -> None:
    folder = federations.copied(federation / "sites" / "site-1", tmp_path / "kit")
    (folder / "startup" / "client.key").chmod(mode)
    with pytest.raises(SilosError, match=f"chmod -R go= {folder}"):
        kits.read(folder)


@pytest.mark.parametrize("file", ["client.crt", "client.key", "rootCA.pem"])
def test_files_of_two_kits(federation: Path, other_federation: Path, tmp_path: Path, file: str) -> None:
    folder = federations.copied(federation / "sites" / "site-1", tmp_path / "kit")
    foreign = other_federation / "sites" / "site-1" / "startup" / file
    (folder / "startup" / file).write_bytes(foreign.read_bytes())
    with pytest.raises(SilosError, match="not belong to one kit"):
        kits.read(folder)


@pytest.mark.parametrize("file", ["client.crt", "fed_client.json", "rootCA.pem"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe"])
def test_a_damaged_kit(federation: Path, tmp_path: Path, file: str, content: bytes) -> None:
    folder = federations.copied(federation / "sites" / "site-1", tmp_path / "kit")
    (folder / "startup" / file).write_bytes(content)
    with pytest.raises(SilosError, match="is damaged"):
        kits.read(folder)


def test_a_kit_of_another_user(federation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *_: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    for method in ("is_file", "read_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, denied)
            with pytest.raises(SilosError, match=r"cannot be read \(Permission denied: .*as the user who"):
                kits.read(federation / "sites" / "site-1")


def test_flare_cannot_run_from_a_path_with_a_space(federation: Path) -> None:
    kit = kits.read(federation / "server")
    kits.require_plain_path(kit)
    with pytest.raises(SilosError, match="spaces"):
        kits.require_plain_path(replace(kit, folder=Path("/my kits/server")))
