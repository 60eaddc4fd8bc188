"""Korean particles: a template says 은(는), 이(가), 을(를), 과(와) or 으로(로), and the word before it decides."""

import re

PARTICLES = re.compile(r"(은\(는\)|이\(가\)|을\(를\)|과\(와\)|으로\(로\))")
BRACKET = re.compile(r"\s*[(\[][^()\[\]]*[)\]]$")
FINAL_DIGITS = "013678"  # 영, 일, 삼, 육, 칠, 팔 end in a consonant
RIEUL = ["1", "7", "8", "L", "l"]  # 일, 칠, 팔, 엘


def particles(text: str) -> str:
    """Choose each particle by the sound that the word before it ends in; brackets and quotation marks are not heard.

    Latin words are read as English: those ending in l, m, n or net, or in a capital R, end in a consonant.
    """
    parts = PARTICLES.split(text)
    for i in range(1, len(parts), 2):
        after_consonant, after_vowel = parts[i].rstrip(")").split("(")
        before = "".join(parts[:i])
        while (shorter := BRACKET.sub("", before.rstrip("\"'”’ "))) != before:
            before = shorter
        last = before[-1:]
        closed = _closed(last) or before.lower().endswith("net")
        if after_vowel == "로" and _rieul(last):
            closed = False
        parts[i] = after_consonant if closed else after_vowel
    return "".join(parts)


def _closed(last: str) -> bool:
    if "가" <= last <= "힣":
        return (ord(last) - ord("가")) % 28 > 0
    return last in FINAL_DIGITS or last in "lmnLMNR"


def _rieul(last: str) -> bool:
    return (ord(last) - ord("가")) % 28 == 8 if "가" <= last <= "힣" else last in RIEUL
