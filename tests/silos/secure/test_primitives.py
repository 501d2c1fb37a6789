"""Each primitive against published vectors, through the functions that the protocol calls."""

from __future__ import annotations

import pytest

from shepherd.silos.secure import primitives

ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
P = 2**255 - 19
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
"""The two points of order 8 (of u = 0, 1, p - 1 the orders are 2, 4 and 4)."""


def test_x25519_of_rfc_7748() -> None:
    """Section 6.1, and the first vector of section 5.2."""
    assert primitives.x25519_public(ALICE) == ALICE_PUBLIC
    assert primitives.x25519_public(BOB) == BOB_PUBLIC
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert primitives.x25519(ALICE, BOB_PUBLIC) == primitives.x25519(BOB, ALICE_PUBLIC) == shared
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    product = bytes.fromhex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    assert primitives.x25519(scalar, point) == product


def test_points_of_low_order_and_unreduced_ones_are_no_keys() -> None:
    low = [0, 1, P - 1, *ORDER_8]
    for value in (*low, *(P + small for small in range(19)), 2**255 + 9, 2**256 - 1):
        assert not primitives.is_x25519_public(value.to_bytes(32, "little")), value
    for value in low:
        with pytest.raises(ValueError, match="shared key"):
            primitives.x25519(ALICE, value.to_bytes(32, "little"))
    assert primitives.is_x25519_public((9).to_bytes(32, "little"))
    assert primitives.is_x25519_public(ALICE_PUBLIC)


def test_hkdf_of_rfc_5869() -> None:
    """Appendices A.1 and A.3."""
    made = primitives.hkdf(b"\x0b" * 22, bytes(range(0xF0, 0xFA)), bytes(range(13)), 42)
    assert made.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    made = primitives.hkdf(b"\x0b" * 22, b"", length=42)
    assert made.hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_chacha20_poly1305_of_rfc_8439() -> None:
    """Section 2.8.2."""
    key, nonce = bytes(range(0x80, 0xA0)), bytes.fromhex("070000004041424344454647")
    associated = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    message = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future,"
        b" sunscreen would be it."
    )
    sealed = primitives.seal(key, message, associated, nonce)
    assert sealed.hex() == (
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b"
        "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691"
    )
    assert primitives.unseal(key, sealed, associated, nonce) == message
    for wrong in (
        (key, sealed[:-1] + b"\0", associated),
        (key, sealed, b""),
        (bytes(32), sealed, associated),
    ):
        assert primitives.unseal(*wrong, nonce) is None
    assert primitives.unseal(key, b"short", associated, nonce) is None


def test_aes_256_ctr_of_sp_800_38a() -> None:
    """Appendix F.5.5; the stream is what the plain text differs by from the encrypted one."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    encrypted = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    keystream = primitives.Keystream(key, bytes(range(0xF0, 0x100)))
    found = b""
    for size in (16, 5, 43):  # a stream goes on where it stopped
        buffer = bytearray(size + 15)
        keystream.fill(buffer, memoryview(bytes(size)))
        found += bytes(buffer[:size])
    assert found == bytes(one ^ other for one, other in zip(plain, encrypted, strict=True))


def test_ed25519_of_rfc_8032() -> None:
    """Section 7.1, test 1."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert primitives.ed25519_public(seed) == public
    signature = primitives.ed25519_sign(seed, b"")
    assert signature.hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    assert primitives.ed25519_verifies(public, b"", signature)
    assert not primitives.ed25519_verifies(public, b"x", signature)
    assert not primitives.ed25519_verifies(b"no key", b"", signature)
