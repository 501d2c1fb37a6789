"""What must hold of the keys of all members before any of them is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from shepherd.errors import SecureError
from shepherd.silos.secure import primitives, transcript
from shepherd.silos.secure.messages import Keys
from shepherd.silos.secure.session import Directory, Session


def roster_faults(
    session: Session, roster: Mapping[str, Keys], directory: Directory | None
) -> dict[str, str]:
    """Members whose keys cannot be used, and why.

    A key that occurs twice, with two members or in two places, is nobody's. Without a directory, certificates
    and signatures are left for the members to verify.
    """
    digest = session.digest()
    uses = Counter(key for keys in roster.values() for key in (keys.mask_key, keys.transport_key))
    found = {}
    for name, keys in roster.items():
        both = (keys.mask_key, keys.transport_key)
        if name not in session.members:
            found[name] = "was not asked"
        elif not all(map(primitives.is_x25519_public, both)):
            found[name] = "sent a key that gives no secret"
        elif max(uses[key] for key in both) > 1:
            found[name] = "has a key that occurs twice"
        elif directory is not None:
            statement = transcript.keys_statement(digest, name, keys)
            try:
                directory.verify(name, keys.certificate, statement, keys.signature)
            except SecureError as error:
                found[name] = f"sent keys that do not verify ({str(error).partition(';')[0]})"
    return found


def share_numbers(session: Session) -> dict[str, int]:
    """Number of the share that each member holds: its place among all that were asked, from 1."""
    return {name: place for place, name in enumerate(session.members, start=1)}
