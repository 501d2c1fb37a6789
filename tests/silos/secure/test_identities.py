"""Identities of tests and simulations: a signature is of one site, over one message."""

import pytest

from shepherd.errors import SecureError
from shepherd.silos.secure import Ed25519Directory, Ed25519Identity


def test_a_signature_is_of_one_site_over_one_message() -> None:
    anna, berta = (Ed25519Identity(bytes([number]) * 32) for number in (1, 2))
    known = Ed25519Directory({"anna": anna.certificate, "berta": berta.certificate})
    signature = anna.sign(b"message")
    known.verify("anna", anna.certificate, b"message", signature)
    with pytest.raises(SecureError, match="a signature of site anna does not verify"):
        known.verify("anna", anna.certificate, b"other", signature)
    with pytest.raises(SecureError, match="a signature of site berta does not verify"):
        known.verify("berta", berta.certificate, b"message", signature)
    for name in ("berta", "carla"):
        with pytest.raises(SecureError, match=f"the key that site {name} shows is not its own"):
            known.verify(name, anna.certificate, b"message", signature)
