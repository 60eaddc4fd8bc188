"""Text of a DICOM file, decoded by Specific Character Set (PS3.3 C.12.1.1.2, PS3.5 6.1.2).

Bytes that contradict the stated character set, or have none, are read as tables are: as UTF-8 or else CP949.
"""

import re
from collections.abc import Sequence

# ISO registration number (the n of "ISO_IR n" and "ISO 2022 IR n") -> codec. Every codec reads ASCII as ASCII. Where writers
# use a larger set under the name of a smaller one (KS X 1001, GB 2312, JIS X 0201), it is the larger one.
REGISTERED = {
    **{13: "cp932", 58: "gb18030", 87: "cp932", 100: "latin-1", 101: "iso8859-2", 109: "iso8859-3", 110: "iso8859-4"},
    **{126: "iso8859-7", 127: "iso8859-6", 138: "iso8859-8", 144: "iso8859-5", 148: "iso8859-9", 149: "cp949"},
    **{159: "cp932", 166: "iso8859-11", 192: "utf-8", 203: "iso8859-15"},
}
# Other names, without spaces and punctuation: GB18030 and GBK are in the standard, the rest is common.
NAMED = {"GB18030": "gb18030", "GBK": "gb18030", "ISO2022GBK": "gb18030", "ISO202258": "gb18030", "UTF8": "utf-8"}
NAMED |= {"EUCKR": "cp949", "CP949": "cp949", "KSC5601": "cp949", "KSC56011987": "cp949", "KSX1001": "cp949"}

# Escape sequences (PS3.3 tables C.12-3 and C.12-4): those for bytes from 0x80 -> codec; the others change 7-bit bytes.
ESCAPE = b"\x1b"
HIGH = {b"-A": 100, b"-B": 101, b"-C": 109, b"-D": 110, b"-F": 126, b"-G": 127, b"-H": 138, b"-L": 144, b"-M": 148}
HIGH |= {b"-T": 166, b"-b": 203, b")I": 13, b"$)C": 149, b"$)A": 58}
TO_ASCII = (b"(B", b"(J")  # the Roman set of JIS X 0201 is ASCII here, as in Shift-JIS
SEQUENCES = (*HIGH, *TO_ASCII, b"$B", b"$@", b"$(C", b"$(D")
PARTS = re.compile(b"\x1b(" + b"|".join(map(re.escape, SEQUENCES)) + b")([^\x1b]*)")
RUNS = re.compile(rb"[\x00-\x7f]+|[\x80-\xff]+")

UNSTATED = ("utf-8", "cp949", "cp1252")  # in this order: hardly any text in the later ones is valid in the earlier ones


def decode(raw: bytes, character_sets: Sequence[str]) -> str | None:
    """Return the text of one value, None if it is text in no character set.

    Args:
        raw: the bytes.
        character_sets: the values of Specific Character Set, in upper case; () if it is absent.
    """
    stated = next(filter(None, map(_codec, character_sets)), "")
    if ESCAPE in raw:
        return _with_escapes(raw, stated)
    # Many devices state Latin-1 whatever they write; text in it is not valid UTF-8, except for pairs such as "Ã¼".
    for codec in (*(() if stated == "latin-1" else (stated,)), UNSTATED[0], stated, *UNSTATED[1:]):
        if codec and (text := _strict(raw, codec)) is not None:
            return text
    return None


def _codec(name: str) -> str:
    """Return the codec of a character set, "" for ASCII and unknown names. Spelling errors ("ISO-IR-149") are understood."""
    squashed = re.sub(r"[^A-Z0-9]", "", name)
    number = re.fullmatch(r"ISO(?:2022)?IR(\d+)", squashed)
    return REGISTERED.get(int(number[1]), "") if number else NAMED.get(squashed, "")


def _strict(raw: bytes, codec: str) -> str | None:
    """Return the text, None if the bytes are not valid or stand for C1 control characters, which no id has."""
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError:
        return None
    return None if any("\x80" <= c <= "\x9f" for c in text) else text


def _with_escapes(raw: bytes, stated: str) -> str | None:
    """Decode a value with code extensions (PS3.5 6.1.2.4). Delimiters do not occur in an id, so nothing is reset."""
    start = raw.index(ESCAPE)
    parts = PARTS.findall(raw, start)
    if start + sum(len(ESCAPE + sequence + part) for sequence, part in parts) != len(raw):
        return None  # an unknown escape sequence
    low, high = b"", stated or UNSTATED[0]
    out = [_strict(raw[:start], high)]
    for sequence, part in parts:
        if sequence in HIGH:
            high = REGISTERED[HIGH[sequence]]
        else:
            low = b"" if sequence in TO_ASCII else ESCAPE + sequence
        if not low:
            out.append(_strict(part, high))
            continue
        for run in RUNS.findall(part):  # two 7-bit bytes per character, and katakana or Latin beside them
            out.append(_strict(low + run, "iso2022_jp_2") if run.isascii() else _strict(run, high))
    return None if None in out else "".join(text for text in out if text is not None)
