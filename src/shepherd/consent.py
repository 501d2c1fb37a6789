"""What the person at the keyboard has agreed to (law 12).

A run file, a run folder or an adapter may come from somebody else. Each may wish for what is listed here, and
none of it happens by a file's word: it needs an option on the command line, or this value in Python.

    shepherd.open_run(settings, consent=shepherd.Consent(remote_code=True))
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """What a person has agreed to; nothing, unless it is said."""

    remote_code: bool = False
    """Code that comes with a base may run, where `model.trust_remote_code` asks for it."""
    plugins: frozenset[str] = frozenset()
    """Modules from outside the package that may be imported, by their dotted names."""
    trackers: frozenset[str] = frozenset()
    """Trackers that may send a run's figures to their service: wandb, mlflow."""
    base_url: str | None = None
    """The judge's address, where it is not the default one."""
    key_env: str | None = None
    """The environment variable that holds the judge's key, where it is not the default one."""


NOTHING = Consent()
"""The consent of whoever has not been asked."""
