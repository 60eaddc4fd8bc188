"""Progress: times in words, and a first line soon after the start."""

import pytest

from medssl import progress
from medssl.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5000, "83 min"), (7500, "2 h 5 min"), (86400, "24 h 0 min")],
)
def test_a_time_in_words(seconds, words):
    assert duration(seconds) == words


def test_the_first_line_comes_early_and_the_others_every_ten_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("CI", raising=False)
    with Progress("train", total=1000, unit="step") as bar:
        for _ in range(30):
            now[0] += 1
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 4/1000 step, 1 step/s, 17 min left"
    assert [line.split("/")[0] for line in lines] == ["train: 4", "train: 15", "train: 26"]


@pytest.mark.parametrize(("total", "told"), [(100_000, 1), (100, 0)])
def test_long_work_says_once_how_it_can_be_shortened(monkeypatch, capsys, total, told):
    now = [0.0]
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Progress("train", total=total, unit="step", advice="take fewer steps") as bar:
        for _ in range(60):
            now[0] += 0.2
            bar.update()
    lines = [line for line in capsys.readouterr().err.splitlines() if "take fewer steps" in line]
    assert lines == ["train: about 5 h 33 min at this rate; take fewer steps"] * told
