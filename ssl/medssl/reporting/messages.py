"""The words of a report in English and Korean: one table of messages, chosen by `language=`.

translations/*.yaml hold every message in both languages side by side, with the same placeholders. Those of `phrases*.yaml`
translate the sentences that other commands keep in a run folder: their English is a pattern, its placeholders match any text.
"""

import re
import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup, escape

from medssl.errors import UserError, nearest
from medssl.reporting.korean import particles

LANGUAGES = {"en": "English", "ko": "한국어"}
FOLDER = Path(__file__).parent / "translations"
GLOSSARY, PHRASES = "glossary", "phrases"  # their files have rules of their own
COUNTS = ("n", "k", "all", "near", "more", "images", "side", "draws", "neg", "bias")  # placeholders for numbers
LONG = ("said", "rest", "warning")  # placeholders that may hold several sentences
SENTENCE = re.compile(r"니다(\(.*\))?$")  # the end of a Korean sentence
EXAMPLE = re.compile(r", for example [a-z2-7]{26} and [a-z2-7]{26}")  # pseudonyms of two scans; the page holds none


class Messages:
    """All messages in one language: `t("key", n=3)` is a sentence, `t.phrase(text)` a kept sentence in that language."""

    def __init__(self, language: str):
        """Raises UserError for a language without translations."""
        if language not in LANGUAGES:
            raise UserError(f"there is no report in language={language!r}.{nearest(language, LANGUAGES)}")
        self.language = language

    def __call__(self, key: str, /, **values: Any) -> str:
        """Return a message with its placeholders filled. Raises KeyError for an unknown key or a missing value."""
        return self._spoken(table()[key][self.language].format(**values))

    def phrase(self, text: str) -> str:
        """Return a sentence kept by another command in this language; the English where there is no translation."""
        text = EXAMPLE.sub("", text)
        return text if self.language == "en" else self._spoken(self._translated(text) or text)

    def marked(self, text: str) -> Markup:
        """Return `phrase(text)` escaped; a sentence without a translation says to a screen reader that it is English."""
        shown = self.phrase(text)
        foreign = self.language != "en" and shown == EXAMPLE.sub("", text) and " " in shown
        return Markup('<span lang="en">{}</span>').format(shown) if foreign else escape(shown)

    def sentence(self, text: str) -> Markup:
        """Return `marked(text)` as a sentence: with a capital and a full stop, which a kept text need not have."""
        shown = self.marked(text[:1].upper() + text[1:] if self.language == "en" else text)
        return shown if shown.striptags().endswith((".", "?", "!", ":")) else shown + "."

    def names(self, words: str) -> str:
        """Return names joined by commas, each translated where it has a translation."""
        return ", ".join(self.phrase(word) for word in words.split(", "))

    def glossary(self) -> dict[str, str]:
        """Return the explained terms of this language with their explanations."""
        return {entry["term"][self.language]: entry[self.language] for entry in _read(GLOSSARY).values()}

    def _spoken(self, text: str) -> str:
        return particles(text) if self.language == "ko" else text

    def _translated(self, text: str) -> str | None:
        for pattern, korean in _patterns():
            found = pattern.fullmatch(text)
            if found and all(_is_one(name, part) for name, part in found.groupdict().items()):
                parts = {
                    k: v.replace(" to ", "~") if k in COUNTS else self._translated(v) or self._list(v) or v
                    for k, v in found.groupdict().items()
                }
                return korean.format(**parts)
        # several sentences, or parts joined by a semicolon, are translated one by one
        for mark in (". ", "; ", ": "):
            head, *others = _outside(text, mark)
            if others:
                tail = mark.join(others)
                end = mark.strip() if mark == ". " else ""
                left, right = self._translated(head + end), self._translated(tail)
                if left or right:
                    said = left or head + end
                    # Korean has no semicolon between sentences
                    joined = ". " if mark == "; " and SENTENCE.search(said) else mark.removeprefix(end)
                    return f"{said}{joined}{right or tail}"
        stem = self._translated(text[:-1]) if text.endswith(".") else None
        return f"{stem}." if stem else None

    def _list(self, text: str) -> str | None:
        """Return a list of names, "A, B and C", if each of them has a translation."""
        items = [item for part in _outside(text, ", ") for item in _outside(part, " and ")]
        found = [self._translated(item) for item in items]
        if len(items) < 2 or not all(found):
            return None
        *first, last = map(str, found)
        return f"{', '.join(first)}{', ' if text.rfind(', ') > text.rfind(' and ') else '과(와) '}{last}"


@cache
def messages(language: str = "en") -> Messages:
    """Return the messages in one language. Raises UserError for a language without translations."""
    return Messages(language)


@cache
def table() -> dict[str, dict[str, str]]:
    """Return every message: key -> language -> text. A key in two files is an error."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.stem != GLOSSARY and not path.stem.startswith(PHRASES):
            for key, texts in _read(path.stem).items():
                if key in found:
                    raise ValueError(f"{path.name} repeats the key {key!r}")
                found[key] = texts
    return found


def phrases() -> Iterator[tuple[str, str]]:
    """Yield (English pattern, Korean) of all kept sentences."""
    for path in sorted(FOLDER.glob(f"{PHRASES}*.yaml")):
        yield from _read(path.stem).items()


def placeholders(text: str) -> set[str]:
    """Return the names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@cache
def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Return the patterns of kept sentences, those with most fixed words first."""
    found = sorted(phrases(), key=lambda pair: -len(re.sub(r"\{\w+\}", "", pair[0])))
    return [(_pattern(english), korean) for english, korean in found]


def _is_one(name: str, text: str) -> bool:
    """Return whether a part of a sentence is whole: its brackets are paired, and it holds no second sentence."""
    depth = 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if depth < 0:
            return False
    return depth == 0 and (name in LONG or len(_outside(text, "; ")) == 1)


def _outside(text: str, mark: str) -> list[str]:
    """Split at a mark that stands outside brackets."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if depth == 0 and i >= start and text.startswith(mark, i):
            parts.append(text[start:i])
            start = i + len(mark)
    return [*parts, text[start:]]


def _pattern(english: str) -> re.Pattern[str]:
    parts: list[str] = []
    seen: set[str] = set()
    for words, name, _, _ in string.Formatter().parse(english):
        parts.append(re.escape(words))
        if name is not None:
            # one sentence, so that two are never taken for one
            part = (
                r"\d[\d,.]*(?: to \d[\d,.]*)?" if name in COUNTS else ".+?" if name == "warning" else r"(?:(?!\. ).)+?"
            )
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{part})")
            seen.add(name)
    return re.compile("".join(parts), re.DOTALL)
