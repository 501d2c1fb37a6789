"""Secure aggregation: the server gets the sum of the sites' values, and no site's values.

The protocol of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS) with double masking on the complete graph, against an active server. Pure state machines: no network, no
files, no clock. docs/secure-aggregation.md defines every byte.
"""

from shepherd.silos.secure.identities import Ed25519Directory, Ed25519Identity
from shepherd.silos.secure.member import Member, survivors_of
from shepherd.silos.secure.server import SumServer
from shepherd.silos.secure.session import Directory, Identity, Session, threshold

__all__ = [
    "Directory",
    "Ed25519Directory",
    "Ed25519Identity",
    "Identity",
    "Member",
    "Session",
    "SumServer",
    "survivors_of",
    "threshold",
]
