import io
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from medssl.evals.stats.significance import Ranking, ranking
from medssl.reporting import critical_difference as diagram
from medssl.reporting import plots


def some(k=6, tasks=20, spread=0.7, seed=0, name="model {}"):
    r = np.random.default_rng(seed)
    return ranking({name.format(i): r.normal(spread * i, 1, tasks) for i in range(k)})


def texts(figure):
    """Return {text: its box in pixels} for all visible text."""
    found = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
    return {t.get_text(): t.get_window_extent() for t in found}


def lines(figure, colour):
    return [line for line in figure.axes[0].lines if line.get_color() == colour]


@pytest.fixture
def figure():
    def draw(given):
        with mpl.rc_context(plots.STYLE):
            return diagram._figure(given)

    return draw


@pytest.mark.parametrize("name", ["model {}", "W" * 60 + "{}", "$_{}^|", "a name of some length, number {}"])
@pytest.mark.parametrize("k", [3, 6, 11])
def test_no_text_is_outside_the_figure_or_overlaps(figure, k, name):
    fig = figure(some(k, tasks=40, name=name))
    width, height = fig.canvas.get_width_height()
    boxes = list(texts(fig).values())
    assert len(boxes) >= 2 * k + 2  # names, ranks of the axis, the critical difference, and the caption
    for box in boxes:
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert not a.overlaps(b)


def test_every_model_is_at_its_rank_with_the_best_on_the_left(figure):
    given = some()
    fig = figure(given)
    stems = {line.get_xdata()[0]: line for line in lines(fig, plots.SOFT) if len(line.get_xdata()) == 3}
    left, right = diagram.SIDE, plots.WIDTH - diagram.SIDE
    expected = [left + (right - left) * (rank - 1) / 5 for rank in given.ranks]
    assert sorted(stems) == pytest.approx(sorted(expected))
    ends = [stems[x].get_xdata()[-1] < plots.WIDTH / 2 for x in sorted(stems)]
    assert ends == [True] * 3 + [False] * 3
    for name, rank in zip(given.names, given.ranks, strict=True):
        assert any(name in words and f"{rank:.2f}" in words for words in texts(fig))


def test_bars_are_the_cliques_and_dots_their_members(figure):
    """a and c cannot be told apart, but a and b in between can: b has no dot on the bar of a and c."""
    p = {("a", "b"): 0.01, ("a", "c"): 0.3, ("b", "c"): 0.4, ("a", "d"): 0.01, ("b", "d"): 0.01, ("c", "d"): 0.01}
    given = Ranking(("a", "b", "c", "d"), (1.5, 2.0, 2.5, 4.0), 12, 0.05, 0.0004, 1.35, p, (("a", "c"), ("b", "c")))
    fig = figure(given)
    x = {name: diagram._at(rank, 4) for name, rank in zip(given.names, given.ranks, strict=True)}
    bars, dots = (
        [line for line in lines(fig, plots.COLOURS[0]) if (line.get_marker() == "o") is dotted]
        for dotted in (False, True)
    )
    assert [list(line.get_xdata()) for line in bars] == [[x["a"], x["c"]], [x["b"], x["c"]]]
    assert [list(line.get_xdata()) for line in dots] == [[x["a"], x["c"]], [x["b"], x["c"]]]
    assert len({line.get_ydata()[0] for line in bars}) == 2  # one below the other
    words = " ".join(texts(fig))
    assert "12 tasks; Friedman p < 0.001" in words
    assert "critical difference 1.35" in words
    critical = next(line for line in lines(fig, plots.SOFT) if line.get_marker() == "|")
    assert np.diff(critical.get_xdata())[0] == pytest.approx(1.35 * (x["d"] - x["a"]) / 2.5)


def test_it_is_a_small_png_and_changes_no_global_state():
    before = dict(mpl.rcParams)
    png = diagram.critical_difference_diagram(some())
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png == diagram.critical_difference_diagram(some())
    assert len(png) < 60_000
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert image.shape[1] == int(plots.WIDTH * 144)
    assert (image == 255).all(-1).mean() > 0.8
    assert dict(mpl.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
