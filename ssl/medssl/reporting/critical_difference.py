"""The critical-difference diagram: several models over several tasks on one axis of mean ranks."""

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medssl.evals.stats.significance import Ranking
from medssl.reporting.plots import COLOURS, INK, SOFT, STYLE, WIDTH, png_bytes, shorten

# All lengths are in inches.
SIDE = 2.3  # room for names, left and right of the axis
TOP = 0.66  # position of the axis
LINE, BAR = 0.24, 0.13  # heights of a name and of a clique
GAP = 0.06


def critical_difference_diagram(ranking: Ranking) -> bytes:
    """Draw a critical-difference diagram: the best model on the left, bars over models that cannot be told apart. PNG.

    Demšar, 2006, figure 1. The bars are the cliques of `ranking`. A clique may leave out a model whose rank lies between
    those of its members, so its members are dots on the bar. Nemenyi's critical difference is shown for comparison.
    """
    with rc_context(STYLE):
        return png_bytes(_figure(ranking))


def _figure(ranking: Ranking) -> Figure:
    k = len(ranking.names)
    half = (k + 1) // 2
    # the middle of the first line of names
    rows = TOP + 2 * GAP + BAR * len(ranking.cliques) + LINE / 2
    height = rows + LINE * half + 0.2
    fig = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(fig)
    axes = fig.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    x = [_at(rank, k) for rank in ranking.ranks]
    _scale(axes, k, ranking.critical)
    for i, name in enumerate(ranking.names):
        left = i < half
        y = rows + LINE * (i if left else k - 1 - i)
        end = SIDE - GAP if left else WIDTH - SIDE + GAP
        axes.plot([x[i], x[i], end], [TOP, y, y], color=SOFT, linewidth=0.8)
        _name(axes, name, f"{ranking.ranks[i]:.2f}", end + (-GAP if left else GAP), y, left)
    for i, clique in enumerate(ranking.cliques):
        members = [x[ranking.names.index(name)] for name in clique]
        y = TOP + GAP + BAR * (i + 0.5)
        axes.plot([members[0], members[-1]], [y, y], color=COLOURS[0], linewidth=2.2)
        axes.plot(members, [y] * len(members), linestyle="", marker="o", markersize=4, color=COLOURS[0])
    p = "< 0.001" if ranking.friedman < 0.001 else f"= {ranking.friedman:.3f}"
    words = (
        f"Mean rank over {ranking.tasks} tasks; Friedman p {p}. Bars: models that cannot be told apart "
        f"({100 * ranking.alpha:g} %, Wilcoxon, Holm)."
    )
    axes.text(WIDTH / 2, height - GAP, words, ha="center", va="bottom", fontsize=7, color=SOFT)
    return fig


def _at(rank: float, k: int) -> float:
    return SIDE + (WIDTH - 2 * SIDE) * (rank - 1) / (k - 1)


def _scale(axes: Axes, k: int, critical: float) -> None:
    """Draw the axis from rank 1 to k, and above it the critical difference starting at rank 1."""
    axes.plot([_at(1, k), _at(k, k)], [TOP, TOP], color=INK, linewidth=0.8)
    for rank in range(1, k + 1):
        axes.plot([_at(rank, k)] * 2, [TOP - 0.05, TOP], color=INK, linewidth=0.8)
        axes.text(_at(rank, k), TOP - 0.08, str(rank), ha="center", va="bottom", fontsize=7, color=SOFT)
    y, ends = 0.18, [_at(1, k), _at(min(1 + critical, k), k)]
    axes.plot(ends, [y, y], color=SOFT, linewidth=1.2, marker="|", markersize=6)
    axes.text(
        ends[1] + 2 * GAP, y, f"critical difference {critical:.2f} (Nemenyi)", va="center", fontsize=7, color=SOFT
    )


def _name(axes: Axes, name: str, rank: str, x: float, y: float, left: bool) -> None:
    """Write a name with its rank at (x, y), shortened until it fits into the figure."""
    text = axes.text(x, y, "", ha="right" if left else "left", va="center", color=INK)
    for most in range(len(name), 0, -1):
        short = shorten(name, most)
        text.set_text(f"{short}  {rank}" if left else f"{rank}  {short}")
        box = text.get_window_extent()
        if box.x0 >= 0 and box.x1 <= axes.bbox.x1:
            return
