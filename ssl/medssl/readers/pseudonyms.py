"""Pseudonyms: keyed hashes of identifiers. They cannot be reversed without the key, even by trying all identifiers."""

import base64
import hmac
import os
import re
import secrets
import stat
import unicodedata
from functools import lru_cache
from pathlib import Path

from medssl.errors import UserError

KEY_BYTES = 32
PADDING = b" \t\r\n\0"  # around DICOM elements and table cells
# What stands in place of a patient's number for nobody, in lower case
NOBODY = frozenset(
    """
    anon anonymous anonymized anonymised deidentified de-identified unknown unk none null nil nan na n/a n.a. missing
    미상 불명 모름 없음 익명 무명 不明 未知 匿名 なし 无 無
    """.split()  # noqa: SIM905
) | {"", "not available", "not applicable", "no id"}
LENGTH = 26  # base32 characters: 130 bits


class Pseudonyms:
    """Pseudonyms for one secret key. With the same key, a person has the same pseudonym in every store."""

    def __init__(self, key: bytes):
        self._key = key
        self.key_id = _base32(self._digest(b"v1|key id"))[:8]

    def of(self, domain: str, raw: str | bytes) -> str:
        """Return 26 base32 characters of HMAC-SHA256(key, "v1|domain|raw"). Text is NFC-normalised."""
        return _base32(self._digest(f"v1|{domain}|".encode() + _bytes(raw)))[:LENGTH]

    def patient(self, number: str | bytes, issuer: str | bytes = b"") -> str:
        """Return the pseudonym of a Patient ID, the same from a DICOM header, a table or a JSON file.

        Args:
            number: Patient ID; surrounding white space and NUL are ignored.
            issuer: Issuer of Patient ID, if any: equal IDs of different issuers are different people. An ID
                "issuer|number" means the same.
        """
        person, of = (_bytes(x.strip() if isinstance(x, str) else x).strip(PADDING) for x in (number, issuer))
        return self.of("patient", of + b"|" + person if of else person)

    def person(self, number: str | bytes, issuer: str | bytes = b"") -> dict[str, str | bool]:
        """Return what is kept of a Patient ID: patient, its pseudonym; similar_id, that of its `simplified` spelling."""
        similar = "|".join(simplified(part) for part in (issuer, number) if part)
        return {
            "patient": self.patient(number, issuer),
            "patient_known": True,
            "similar_id": self.of("similar", similar),
        }

    def split_fraction(self, patient: str) -> float:
        """Return a number in [0, 1) for a patient pseudonym. It does not depend on which other patients there are."""
        return (int.from_bytes(self._digest(f"v1|split|{patient}".encode())[:8], "big") >> 11) * 2.0**-53

    def secret(self) -> str:
        """Return the key in hex, for the standard input of a worker. Never write, log or pass it as an argument."""
        return self._key.hex()

    def __repr__(self) -> str:
        """Return the key id, not the key."""
        return f"Pseudonyms(key_id={self.key_id!r})"

    def _digest(self, message: bytes) -> bytes:
        return hmac.digest(self._key, message, "sha256")


def names_nobody(number: str) -> bool:
    """Return whether an id is empty or a word that stands for nobody, in any width or case."""
    return unicodedata.normalize("NFKC", number).strip().casefold() in NOBODY


@lru_cache(1 << 12)
def simplified(number: str | bytes) -> str:
    """Return an id without what spellings of one number differ in, to count patients who may be the same.

    That is case, width (NFKC), white space, dashes, underscores, zeros before a number and ".0" after it.
    """
    text = number if isinstance(number, str) else number.decode("utf-8", "backslashreplace")
    text = unicodedata.normalize("NFKC", text).casefold()
    dropped = {"Pd", "Pc", "Cc", "Cf"}  # dashes, underscores, control and invisible characters
    text = "".join(c for c in text if not c.isspace() and unicodedata.category(c) not in dropped)
    return re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"(?<=\d)\.0+$", "", text))


def open_key(path: Path) -> Pseudonyms:
    """Return the pseudonyms for the key in `path` (64 hex digits, readable by its owner only), created if absent.

    Raises:
        UserError: the file is readable by others, is not a regular file, or does not contain a key.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    except OSError as e:
        raise UserError(f"cannot create the key file {path}: {e.strerror}; choose a writable path") from e
    else:
        with os.fdopen(handle, "w") as f:
            f.write(secrets.token_hex(KEY_BYTES) + "\n")
            f.flush()
            os.fsync(f.fileno())
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"the key file {path} is not a regular file; give a regular file or a new path")
    if info.st_mode & 0o077:
        raise UserError(f"the key file {path} is readable by others; run: chmod 600 {path}")
    try:
        key = bytes.fromhex(path.read_text("utf-8").strip())
    except (OSError, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise UserError(
            f"the key file {path} does not contain {2 * KEY_BYTES} hex digits; restore it or give a new path"
        )
    return Pseudonyms(key)


def _bytes(raw: str | bytes) -> bytes:
    return unicodedata.normalize("NFC", raw).encode() if isinstance(raw, str) else raw


def _base32(digest: bytes) -> str:
    return base64.b32encode(digest[:20]).decode().lower()  # 32 characters, no padding
