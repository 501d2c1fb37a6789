"""The primitives of the protocol, all from `cryptography`: nothing else here imports it."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16
_NO_NONCE = bytes(12)  # each key seals one message
_FIELD = 2**255 - 19


def x25519_public(private: bytes) -> bytes:
    """Public key of a private one (RFC 7748, section 5); both 32 bytes."""
    return _raw(X25519PrivateKey.from_private_bytes(private).public_key())


def x25519(private: bytes, public: bytes) -> bytes:
    """Shared secret of two parties (RFC 7748, section 6.1); 32 bytes.

    Raises:
        ValueError: the public key is a point of low order, which gives every private key the same secret.
    """
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def is_x25519_public(public: bytes) -> bool:
    """Whether 32 bytes are a public key that someone can have made: reduced, and not of low order."""
    if int.from_bytes(public, "little") >= _FIELD:
        return False
    try:
        x25519(bytes(KEY_BYTES), public)  # whether the secret is 0 does not depend on the private key
    except ValueError:
        return False
    return True


def hkdf(secret: bytes, info: bytes, salt: bytes | None = None, length: int = KEY_BYTES) -> bytes:
    """Key derived from a secret for one purpose: HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)


def seal(key: bytes, message: bytes, associated: bytes, nonce: bytes = _NO_NONCE) -> bytes:
    """Encrypt and authenticate with ChaCha20-Poly1305 (RFC 8439), under a key that is used once."""
    return ChaCha20Poly1305(key).encrypt(nonce, message, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes, nonce: bytes = _NO_NONCE) -> bytes | None:
    """Message that was sealed; None if the key, the associated data or a bit of it differs."""
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, sealed, associated)
    except InvalidTag:
        return None


class Keystream:
    """AES-256 in counter mode (NIST SP 800-38A) over zeros, from a key that is used once.

    The counter starts at zero unless another first block is given, as in published vectors.
    """

    def __init__(self, key: bytes, first_block: bytes = bytes(16)) -> None:
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(first_block)).encryptor()

    def fill(self, buffer: bytearray, zeros: memoryview) -> None:
        """Write the next `len(zeros)` bytes of the stream to the start of a buffer 15 bytes longer."""
        self._encryptor.update_into(zeros, buffer)


def ed25519_public(seed: bytes) -> bytes:
    """Verification key of a seed (RFC 8032); both 32 bytes."""
    return _raw(Ed25519PrivateKey.from_private_bytes(seed).public_key())


def ed25519_sign(seed: bytes, message: bytes) -> bytes:
    """Signature over a message (RFC 8032); 64 bytes."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def ed25519_verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature is over this message, by the holder of this key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _raw(key: X25519PublicKey | Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
