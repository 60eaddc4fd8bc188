"""What a command prints fits the terminal."""

import io
import sys

from medssl.cli.terminal import fitted

SENTENCE = "! " + "pretraining includes one of the test images " * 4
TABLE = "features     " + "0.900 [0.800, 0.950]  " * 6
TEXT = f"{SENTENCE.strip()}\n{TABLE.strip()}\nshort"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_sentences_are_wrapped_at_words_and_tables_are_not(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", Terminal())
    lines = fitted(TEXT).splitlines()
    assert lines[-2:] == [TABLE.strip(), "short"]
    assert len(lines) > 4
    assert all(len(line) <= 60 for line in lines[:-2])
    assert " ".join(" ".join(lines[:-2]).split()) == SENTENCE.strip()


def test_without_a_terminal_nothing_is_wrapped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert fitted(TEXT) == TEXT
