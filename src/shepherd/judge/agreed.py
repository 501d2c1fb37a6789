"""Consent for calling a judge: a file alone may not choose its host or its API key (law 12)."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from shepherd.consent import Consent
from shepherd.errors import JudgeError
from shepherd.settings import JudgeTable

URL, KEY_ENV = (JudgeTable.model_fields[name].default for name in ("base_url", "key_env"))


def require_agreed(table: JudgeTable, consent: Consent) -> None:
    """Raise JudgeError where only a file names the judge's address or the environment variable of its key.

    The defaults are allowed, and so is what `consent` names. The message says what would have been sent to
    which host.
    """
    options = []
    if _bare(table.base_url) not in (_bare(URL), _bare(consent.base_url or URL)):
        options.append(f"--base-url {table.base_url}")
    if table.key_env not in ("", KEY_ENV, consent.key_env):
        options.append(f"--key-env {table.key_env}")
    if options:
        key = f", with the key in {table.key_env}" if table.key_env else ""
        plain = ", unencrypted" if _unsafe(table.base_url) else ""
        raise JudgeError(
            f"[judge] asks to send the questions and the answers to {table.base_url}{key}{plain}, which"
            f" settings alone may not decide; nothing was sent: add {' '.join(options)} to allow it"
        )


def _bare(url: str) -> str:
    return url.rstrip("/")


def _unsafe(url: str) -> bool:
    """Whether an address is plain http to another machine."""
    return urlsplit(url).scheme == "http" and not is_local(url)


def is_local(url: str) -> bool:
    """Whether an address names this machine, without a look-up in DNS."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
