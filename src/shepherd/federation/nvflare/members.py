"""Letting a site out of, and back into, a running federation; needs the role project_admin."""

from __future__ import annotations

from typing import Protocol

from shepherd.errors import SilosError


class Session(Protocol):
    """The part of FLARE's `Session` that is used here."""

    def disable_client(self, client_name: str) -> object: ...
    def enable_client(self, client_name: str) -> object: ...


def disable(session: Session, site: str) -> None:
    """Have the server cut the site's connections within a second, its running job's too, and take no more.

    FLARE takes back the site's token and remembers the name; the connections are cut by our watch at the
    server's door (see `parent.py`). The run goes on without the site.

    Raises:
        SilosError: the administrator may not do this, or the server did not do it.
    """
    try:
        session.disable_client(site)
    except Exception as error:  # FLARE's own exceptions have no common base
        raise SilosError(_denied("remove", site, error)) from error


def enable(session: Session, site: str) -> None:
    """Let a site that was disabled come back.

    Raises:
        SilosError: as `disable`.
    """
    try:
        session.enable_client(site)
    except Exception as error:
        raise SilosError(_denied("let back", site, error)) from error


def _denied(what: str, site: str, error: Exception) -> str:
    if type(error).__name__ == "AuthorizationError":
        return f"only a project_admin may {what} {site}; use the kit of one"
    return f"the server did not {what} {site} ({error}); see that it is running, then ask again"
