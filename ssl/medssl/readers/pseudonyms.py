"""Pseudonyms: keyed hashes of identifiers. Without the key file nobody can go back, not even by trying every number."""

import base64
import hmac
import os
import secrets
import stat
import unicodedata
from pathlib import Path

from medssl.errors import UserError

KEY_BYTES = 32
PADDING = b" \t\r\n\0"  # of an element of DICOM or a cell of a table
LENGTH = 26  # base32 characters: 130 bits


class Pseudonyms:
    """Pseudonyms under one secret key. The same key gives the same person the same pseudonym in every store."""

    def __init__(self, key: bytes):
        self._key = key
        self.key_id = _base32(self._digest(b"v1|key id"))[:8]

    def of(self, domain: str, raw: str | bytes) -> str:
        """26 characters of base32 of HMAC-SHA256(key, "v1|domain|raw"). Text is NFC-normalised."""
        return _base32(self._digest(f"v1|{domain}|".encode() + _bytes(raw)))[:LENGTH]

    def patient(self, number: str | bytes, issuer: str | bytes = b"") -> str:
        """The pseudonym of a patient's number, the same from a header, a table or a JSON file.

        Args:
            number: Patient ID; spaces and NUL around it do not count.
            issuer: Issuer of Patient ID, where there is one: numbers of different issuers are different people. The
                number "issuer|number" means the same.
        """
        person, of = (_bytes(x.strip() if isinstance(x, str) else x).strip(PADDING) for x in (number, issuer))
        return self.of("patient", of + b"|" + person if of else person)

    def split_fraction(self, patient: str) -> float:
        """Where a patient (a pseudonym) falls in [0, 1). Depends on nothing else, so adding patients moves nobody."""
        return (int.from_bytes(self._digest(f"v1|split|{patient}".encode())[:8], "big") >> 11) * 2.0**-53

    def secret(self) -> str:
        """The key itself, for a child's standard input. Never to be written, logged or passed as an argument."""
        return self._key.hex()

    def __repr__(self) -> str:
        """Never the key."""
        return f"Alias(key_id={self.key_id!r})"

    def _digest(self, message: bytes) -> bytes:
        return hmac.digest(self._key, message, "sha256")


def open_key(path: Path) -> Pseudonyms:
    """The key in `path` (64 hex digits, readable by its owner only), made with fresh randomness when absent.

    Raises:
        UserError: others can read the file, or it does not hold a key.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    except OSError as e:
        raise UserError(f"cannot make the key file {path}: {e.strerror}; choose a path you may write to") from e
    else:
        with os.fdopen(handle, "w") as f:
            f.write(secrets.token_hex(KEY_BYTES) + "\n")
            f.flush()
            os.fsync(f.fileno())
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"the key file {path} is not a regular file; name one that is, or a path to create")
    if info.st_mode & 0o077:
        raise UserError(f"the key file {path} can be read by others; run: chmod 600 {path}")
    try:
        key = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise UserError(f"the key file {path} does not hold {2 * KEY_BYTES} hex digits; restore it or name a new path")
    return Pseudonyms(key)


def _bytes(raw: str | bytes) -> bytes:
    return unicodedata.normalize("NFC", raw).encode() if isinstance(raw, str) else raw


def _base32(digest: bytes) -> str:
    return base64.b32encode(digest[:20]).decode().lower()  # 32 characters, and none of them padding
