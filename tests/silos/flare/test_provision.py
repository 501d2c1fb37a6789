from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvflare.apis.utils.format_check import name_check
from tests.silos.flare import federations

from shepherd.errors import SilosError
from shepherd.silos.flare import kits, provision


def test_everyone_gets_a_kit_and_only_its_own_key(federation: Path) -> None:
    keys = {str(path.relative_to(federation)) for path in federation.rglob("*.key")}
    assert keys == {
        "server/startup/server.key",
        "sites/site-1/startup/client.key",
        "sites/site-2/startup/client.key",
        "admins/ada/startup/client.key",
        "admins/lea/startup/client.key",
    }
    assert set(json.loads((federation / "authority" / "state.json").read_text())) == {
        "root_cert",
        "root_pri_key",
    }


def test_everything_is_the_owners_alone_and_nothing_can_be_run(federation: Path) -> None:
    paths = [path for path in federation.rglob("*") if path.name != "federation.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}
    assert not [path for path in paths if path.suffix in (".sh", ".ipynb")]


def test_the_certificates_carry_names_and_roles(federation: Path) -> None:
    ada, lea = kits.read(federation / "admins" / "ada"), kits.read(federation / "admins" / "lea")
    assert (ada.name, ada.role, lea.role) == ("ada@shepherd.local", "project_admin", "lead")
    assert kits.read(federation / "sites" / "site-2").name == "site-2"
    assert kits.read(federation / "server").identity == "localhost"


def test_it_is_said_who_gets_which_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "_provision", lambda *_, **__: None)
    said = provision.create(tmp_path / "f", "fl.example.org:9000", ["north"], ["ada"]).sentences
    text = "\n".join(said)
    for kit in ("server", "sites/north", "admins/ada", "authority"):
        assert str(tmp_path / "f" / kit) in text
    assert "fl.example.org" in text
    assert "9000" in text


def test_a_site_is_added_by_the_same_authority_and_a_removed_one_is_remembered(tmp_path: Path) -> None:
    folder = federations.made(tmp_path / "f", sites=1)
    added = provision.add_site(folder, "north")
    assert added.folder == folder / "sites" / "north"
    new, old = kits.read(added.folder, "site"), kits.read(folder / "sites" / "site-1", "site")
    assert (new.authority, new.federation, new.port) == (old.authority, old.federation, old.port)
    assert {p.name for p in added.folder.iterdir()} == {p.name for p in old.folder.iterdir()}
    assert not list(folder.rglob(".*"))

    provision.remove_site(folder, "site-1")
    assert provision.read(folder).sites == {"site-1": "removed", "north": "member"}
    assert (folder / "sites" / "site-1" / "REMOVED").is_file()
    with pytest.raises(SilosError, match="was removed from the federation"):
        provision.add_site(folder, "site-1")


def test_no_site_without_the_authority(federation: Path, tmp_path: Path) -> None:
    folder = federations.copied(federation, tmp_path / "f")
    (folder / "authority" / "state.json").unlink()
    with pytest.raises(SilosError, match="restore it from where it is kept"):
        provision.add_site(folder, "north")


@pytest.mark.parametrize(
    ("server", "sites", "admins", "why"),
    [
        ("host:0", ["a"], ["ada"], "not a number from 1 to 65535"),
        ("host:abc", ["a"], ["ada"], "not a number from 1 to 65535"),
        ("host:\u0661", ["a"], ["ada"], "not a number from 1 to 65535"),
        ("two words", ["a"], ["ada"], "not a valid address of a server"),
        ("", ["a"], ["ada"], "not a valid address of a server: give HOST or HOST:PORT"),
        ("fl_server:8002", ["a"], ["ada"], "may not have an underscore; give .* such as fl-server"),
        ("my_host.example.org", ["a"], ["ada"], "may not have an underscore"),
        (
            "::1",
            ["a"],
            ["ada"],
            "is an IPv6 address, and FLARE listens on IPv4 only; give the server a name",
        ),
        ("[::1]", ["a"], ["ada"], "is an IPv6 address"),
        ("[2001:db8::5]:8002", ["a"], ["ada"], "is an IPv6 address"),
        ("2001:db8:0:0:0:0:0:5", ["a"], ["ada"], "is an IPv6 address"),
        ("fe80::1%eth0", ["a"], ["ada"], "is an IPv6 address"),
        ("[fe80::1%25eth0]:8002", ["a"], ["ada"], "is an IPv6 address"),
        ("[::ffff:10.0.0.5]:8002", ["a"], ["ada"], "is an IPv6 address"),
        ("https://host:8002", ["a"], ["ada"], "without http:// and without a path"),
        ("host:8002/", ["a"], ["ada"], "without http:// and without a path"),
        ("klinik-m\u00fcnchen.de:8002", ["a"], ["ada"], r"as DNS writes it, xn--klinik-mnchen-.*\.de"),
        ("10.0.0.256", ["a"], ["ada"], "four numbers from 0 to 255"),
        ("10.0.5:8002", ["a"], ["ada"], "four numbers from 0 to 255"),
        ("0.0.0.0:8002", ["a"], ["ada"], "sites cannot connect to it"),
        ("fl.example.org.:8002", ["a"], ["ada"], "without the dot at its end"),
        ("h" * 65, ["a"], ["ada"], "not a valid address of a server"),
        ("host", [], ["ada"], "needs at least one site"),
        ("host", ["a", "A"], ["ada"], "named twice"),
        ("host", ["server"], ["ada"], "special meaning"),
        ("host", ["../up"], ["ada"], "not a valid name"),
        ("host", ["n" * 41], ["ada"], "not a valid name"),
        ("host", ["a"], ["ada:king"], "king is not a role"),
        ("host", ["a"], ["ada:member"], "no administrator could submit"),
        ("host", ["a"], ["ada", "ada:lead"], "named twice"),
        ("host", ["a"], ["ada smith"], "not a valid name"),
    ],
)
def test_what_will_not_do(tmp_path: Path, server: str, sites: list[str], admins: list[str], why: str) -> None:
    with pytest.raises(SilosError, match=why):
        provision.create(tmp_path / "f", server, sites, admins)
    assert not (tmp_path / "f").exists()


@given(st.text(alphabet="aZ09-_.@+ /é", min_size=1, max_size=45))
def test_flare_takes_every_name_that_we_take(name: str) -> None:
    try:
        made = provision._federation("host", [name.replace("@", "-")], [name])
    except SilosError:
        return
    for site in made.sites:
        assert not name_check(site, "client")[0]
    for admin in made.admins:
        assert not name_check(admin, "admin")[0]


def test_no_site_is_called_as_the_server(federation: Path, tmp_path: Path) -> None:
    """Its certificate would pass for the server's."""
    with pytest.raises(SilosError, match='"Hub" is the name of the server'):
        provision.create(tmp_path / "f", "hub:9000", ["a", "Hub"])
    with pytest.raises(SilosError, match='"localhost" is the name of the server'):
        provision.add_site(federation, "localhost")
    assert provision._federation("hub", ["a"], ["hub"]).admins  # whose certificate has a longer name


def test_nothing_is_overwritten(federation: Path, tmp_path: Path) -> None:
    with pytest.raises(SilosError, match="already has a federation"):
        provision.create(federation, "host", ["a"])
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SilosError, match="not an empty folder"):
        provision.create(tmp_path, "host", ["a"])


def test_what_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision.sys, "executable", "/bin/false")
    with pytest.raises(SilosError, match="could not make the kits"):
        provision.create(tmp_path / "f", "host", ["a"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", '{"name": "x"}', "\xff"])
def test_a_damaged_federation_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "federation.json").write_text(text, encoding="latin1")
    with pytest.raises(SilosError, match=r"federation.json cannot be read"):
        provision.read(tmp_path)
