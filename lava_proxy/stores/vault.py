"""Secrets that must be shown again or used (provider keys, connection secrets): AES-256-GCM under LAVA_MASTER_KEY."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lava_proxy.domain.errors import LavaError

_VERSION = b"\x01"
_NONCE_BYTES = 12


class SealBroken(LavaError, ValueError):
    """Sealed under another key, or for another place."""

    code = "master_key_differs"


class Vault:
    """Seals and opens small secrets; `context` (table and id) is authenticated: a sealed value opens in its own row only."""

    def __init__(self, master_key: str, also_open: Sequence[str] = ()) -> None:
        """`master_key`: 32 bytes in base64. `also_open`: keys that sealed what is stored, while keys are being rotated.

        Raises ValueError for anything else.
        """
        self._cipher = _cipher(master_key, "LAVA_MASTER_KEY")
        self._ciphers = [self._cipher, *(_cipher(key, "LAVA_MASTER_KEY_PREVIOUS") for key in also_open if key)]

    def seal(self, secret: str, context: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret.encode(), context.encode())

    def open(self, sealed: bytes, context: str) -> str:
        """The secret. Raises ValueError when it was sealed under another key or for another place."""
        if sealed[:1] != _VERSION:
            raise ValueError("unknown seal version")
        for cipher in self._ciphers:
            try:
                return _decrypted(cipher, sealed, context)
            except InvalidTag:
                continue
        raise SealBroken("a stored secret cannot be opened: LAVA_MASTER_KEY differs from the one it was sealed with")

    def is_current(self, sealed: bytes, context: str) -> bool:
        """Is it sealed under the master key itself, so that it opens without the others?"""
        try:
            _decrypted(self._cipher, sealed, context)
        except InvalidTag:
            return False
        return sealed[:1] == _VERSION


def _cipher(master_key: str, name: str) -> AESGCM:
    try:
        key = base64.b64decode(master_key, validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError(f"{name} must be 32 random bytes in base64; make one with: openssl rand -base64 32")
    return AESGCM(key)


def _decrypted(cipher: AESGCM, sealed: bytes, context: str) -> str:
    return cipher.decrypt(sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :], context.encode()).decode()


def new_master_key() -> str:
    """32 random bytes in base64."""
    return base64.b64encode(os.urandom(32)).decode()
