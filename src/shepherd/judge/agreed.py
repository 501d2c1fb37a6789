"""Whether a judge may be called: a file alone names no host and no variable with a key (law 12)."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from shepherd.consent import Consent
from shepherd.errors import JudgeError
from shepherd.settings import JudgeTable

URL, KEY_ENV = (JudgeTable.model_fields[name].default for name in ("base_url", "key_env"))


def require_agreed(table: JudgeTable, consent: Consent) -> None:
    """Raise JudgeError where a judge would be called in a way that a file alone has named.

    That is an address other than the default one, or an environment variable other than the default one to
    take the key from; the sentence says which host would have been sent what, and nothing was.
    """
    options = []
    if _bare(table.base_url) not in (_bare(URL), _bare(consent.base_url or URL)):
        options.append(f"--base-url {table.base_url}")
    if table.key_env not in ("", KEY_ENV, consent.key_env):
        options.append(f"--key-env {table.key_env}")
    if options:
        key = f", with the key in {table.key_env}" if table.key_env else ""
        plain = ", readable by all on the way" if _unsafe(table.base_url) else ""
        raise JudgeError(
            f"[judge] asks to have the questions and the answers sent to {table.base_url}{key}{plain}, and"
            f" settings alone do not decide that; nothing was sent: give {' '.join(options)} if you want it"
        )


def _bare(url: str) -> str:
    return url.rstrip("/")


def _unsafe(url: str) -> bool:
    """Whether it is plain http to another machine."""
    return urlsplit(url).scheme == "http" and not is_here(url)


def is_here(url: str) -> bool:
    """Whether an address is on this machine, by its words alone."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
