"""The safe settings, as FLARE itself understands them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.private.fed.client.fed_client_base import FederatedClientBase
from nvflare.security.security import COMMAND_CATEGORIES, FLAuthorizer

from shepherd.silos.flare.hardening import ROLES, files, harden
from shepherd.silos.flare.job import CONTROLLER, EXECUTOR

RIGHTS = [*COMMAND_CATEGORIES, AdminCommandNames.SUBMIT_JOB, "byoc", "clone_job"]


def granted(kind: Any) -> set[tuple[str, str]]:
    """(role, right) pairs that FLARE would grant to somebody on another's job."""
    authorizer = FLAuthorizer("shepherd", files(kind)["authorization.json"])
    other = Person("other@shepherd.local", "shepherd", "lead")
    return {
        (role, right)
        for role in ROLES
        for right in RIGHTS
        if authorizer.authorize(AuthzContext(right, Person("me@shepherd.local", "shepherd", role), other))[0]
    }


def test_at_a_site_two_roles_may_submit_and_all_may_see_whether_it_works_and_nothing_else() -> None:
    asks = {(role, "check_status") for role in ROLES}
    assert granted("site") == asks | {(role, "submit_job") for role in ("project_admin", "lead")}


def test_at_the_server_nobody_may_bring_code_or_look_into_files_or_configure_logs() -> None:
    rights = granted("server")
    never = {"byoc", "clone_job", "download_job", "ls", "cat", "grep", "call", "shutdown", "restart"}
    assert not {right for _, right in rights} & (never | {"configure_job_log", "configure_site_log"})
    may_remove = {role for role, right in rights if right == AdminCommandNames.DISABLE_CLIENT}
    may_submit = {role for role, right in rights if right == AdminCommandNames.SUBMIT_JOB}
    may_stop_anothers = {role for role, right in rights if right == AdminCommandNames.ABORT_JOB}
    assert may_remove == may_stop_anothers == {"project_admin"}
    assert may_submit == {"project_admin", "lead"}


def test_a_question_that_went_down_with_a_connection_is_soon_asked_again() -> None:
    """By FLARE's own reading of a site's settings; its default is 300 s."""
    client = FederatedClientBase(
        "a", files("site")["resources.json"]["client"], False, {"shepherd": {}}, None, cell=None
    )
    assert client.communicator.timeout == 30


@pytest.mark.parametrize(("kind", "ours"), [("server", CONTROLLER), ("site", EXECUTOR)])
def test_a_job_may_name_one_class(kind: Any, ours: str) -> None:
    policy = ComponentPathAuthorizer()
    allowed, _, by_default = policy._get_policy_from_resources(files(kind)["resources.json"])
    assert not by_default

    def may(path: str) -> bool:
        return any(policy._path_matches_prefix(path, prefix) for prefix in allowed)

    assert may(ours)
    for path in (
        "subprocess.Popen",
        "os.system",
        "shepherd.silos.flare.supervise.supervise",
        ours + "x",
    ):
        assert not may(path)


def loosened(table: dict[str, Any], *keys: str | int, to: Any) -> dict[str, Any]:
    inner: Any = table
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    return table


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("resources.json", ["class_allow_list"], ["nvflare.", EXECUTOR]),
        ("resources.json", ["class_allow_list"], "*"),
        ("resources.json", ["class_list_enforcement_mode"], "warn"),
        ("resources.json", ["app_validator"], None),
        ("resources.json", ["allow_log_streaming"], True),
        ("resources.json", ["components"], [{"id": "x", "path": "x.SiteLogStreamer"}]),
        ("authorization.json", ["permissions", "lead", "byoc"], "any"),
        ("authorization.json", ["permissions", "lead"], "any"),
        ("authorization.json", ["permissions", "king"], {"shell_commands": "any"}),
        ("authorization.json", ["permissions"], None),
    ],
)
def test_what_was_loosened_is_put_back_and_said(
    tmp_path: Path, file: str, keys: list[str], value: Any
) -> None:
    assert harden(tmp_path, "site") == []
    path = tmp_path / "local" / file
    safe = json.loads(path.read_text())
    path.write_text(json.dumps(loosened(json.loads(path.read_text()), *keys, to=value)))
    (said,) = harden(tmp_path, "site")
    assert str(path) in said
    assert json.loads(path.read_text()) == safe
    assert harden(tmp_path, "site") == []


def test_what_the_owner_made_stricter_stays(tmp_path: Path) -> None:
    harden(tmp_path, "site")
    path = tmp_path / "local" / "authorization.json"
    stricter = loosened(json.loads(path.read_text()), "permissions", "lead", to="none")
    path.write_text(json.dumps(stricter))
    assert harden(tmp_path, "site") == []
    assert json.loads(path.read_text()) == stricter


def test_a_missing_or_damaged_file_is_written_again(tmp_path: Path) -> None:
    harden(tmp_path, "server")
    (tmp_path / "local" / "resources.json").unlink()
    (tmp_path / "local" / "authorization.json").write_text("{")
    (said,) = harden(tmp_path, "server")
    assert "could not be read" in said
    assert {p.name for p in (tmp_path / "local").iterdir()} == set(files("server"))
    assert harden(tmp_path, "server") == []
