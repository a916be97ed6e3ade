"""Pictures of what was predicted beside masks: confusion, curves, agreement, scores and bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medvid_core.metrics.base import Floats
from medvid_core.metrics.curves import Bools, auroc
from medvid_core.metrics.frames import Integers, segments
from medvid_core.report.palette import palette, to_hex
from medvid_core.report.plots import ACCENT, INK, Axes, draw_points, plot
from medvid_core.report.text import number, shortened

MOST_POINTS = 2000
"""Points of a scatter plot, and corners of a curve, at most: the page stays small."""
MOST_CURVES = 10
_NAMED_CELLS = 12
_STYLES = ("-", "--", "-.", ":")
_TINT = 0.5  # opacity of a full cell: dark and light text both stay readable on it
_NORMAL, _ABNORMAL = (to_hex(colour) for colour in palette(3)[1:])


@dataclass(frozen=True)
class Curve:
    """A yes-or-no question that scores answer.

    Attributes:
        name: what is looked for.
        scores: [N], larger where it is likelier.
        positive: the truth [N].
        colour: of its line.
    """

    name: str
    scores: Floats
    positive: Bools
    colour: str

    @property
    def area(self) -> float:
        """Area under its ROC curve; NaN without cases of both kinds."""
        return auroc(self.scores, self.positive)


def roc_points(scores: Floats, positive: Bools) -> tuple[Floats, Floats]:
    """Return false and true positive rate at every threshold, falling, equal scores forming one step, [P] each."""
    order = np.argsort(-scores, kind="stable")
    falling, found = scores[order], positive[order]
    ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)
    hits, alarms = found.cumsum()[ends], (~found).cumsum()[ends]
    start = np.zeros(1)
    return np.concatenate([start, alarms / max(1, alarms[-1])]), np.concatenate([start, hits / max(1, hits[-1])])


def few(count: int, most: int = MOST_POINTS) -> Integers:
    """Return the indices of at most so many of ``count`` things, evenly spaced, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def roc_plot(curves: Sequence[Curve], title: str, alt: str) -> str:
    """Return the ROC curves with their areas, of those that are defined; empty if none is."""
    drawn = [curve for curve in curves if not math.isnan(curve.area)][:MOST_CURVES]
    if not drawn:
        return ""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (1, 3)), label="chance")
        for i, curve in enumerate(drawn):
            x, y = roc_points(curve.scores, curve.positive)
            kept = few(len(x))
            label = f"{shortened(curve.name, 28)} (AUROC {number(curve.area)})"
            axes.plot(x[kept], y[kept], color=curve.colour, linestyle=_STYLES[i % 4], label=label)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=title)
        axes.set_xlabel("1 − specificity")
        axes.set_ylabel("sensitivity")
        axes.set_box_aspect(1)
        axes.legend(loc="upper left", bbox_to_anchor=(-0.1, -0.17))

    return plot(draw, alt, width=4.6, height=4.0 + 0.2 * len(drawn))


def confusion_plot(counts: Integers, classes: Sequence[str], title: str, alt: str) -> str:
    """Return a confusion matrix [K,K], rows true: counts, and the share of each true class as number and tint."""
    shares = shares_of(counts)
    cells, unit = in_one_unit(counts)
    size = len(classes)
    named = size <= _NAMED_CELLS

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        for i in range(size):
            for j in range(size):
                share = 0.0 if math.isnan(shares[i, j]) else shares[i, j]
                corner = (j - 0.5, i - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=ACCENT, alpha=_TINT * share, linewidth=0))
                if named:
                    shown = "–" if math.isnan(shares[i, j]) else f"{share:.0%}"
                    axes.text(j, i, f"{cells[i][j]}\n{shown}", ha="center", va="center", fontsize=10.5)
            axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=1))
        names = [shortened(name, 16) for name in classes]
        tilted = size > 3 or max(map(len, names)) > 10
        axes.set_xticks(range(size), names, rotation=35 if tilted else 0, ha="right" if tilted else "center")
        axes.set_yticks(range(size), names)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), title=title, ylabel="true")
        axes.set_xlabel(f"predicted{unit if named else ''}")
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.grid(visible=False)
        axes.grid(visible=True, which="minor")
        axes.tick_params(which="both", length=0)

    side = min(9.2, 1.9 + (0.72 if named else 0.28) * size)
    return plot(draw, alt, width=max(4.6, side + 0.6), height=max(3.0, side))


def in_one_unit(counts: Integers) -> tuple[list[list[str]], str]:
    """Return counts [K,K] as text, all in one unit, and what to say of it: in thousands where one has seven digits."""
    if counts.max(initial=0) < 1_000_000:
        return [[f"{count:,}" for count in row] for row in counts.tolist()], ""
    thousands = [
        [f"{count / 1000:,.0f}" if count >= 500 or not count else "< 0.5" for count in row] for row in counts.tolist()
    ]
    return thousands, " (counts in thousands)"


def shares_of(counts: npt.NDArray[Any]) -> Floats:
    """Return the share of each true class (row) of a confusion matrix [K,K]; NaN of a class that is never true."""
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), math.nan)


def scatter_plot(true: Floats, predicted: Floats, title: str, alt: str) -> str:
    """Return predicted against true numbers [N], with the line where both are equal."""
    kept = few(len(true))
    both = np.concatenate([true, predicted])
    margin = 0.05 * (both.max() - both.min()) or 1.0
    ends = [both.min() - margin, both.max() + margin]

    def draw(axes: Axes) -> None:
        axes.plot(ends, ends, color=INK, linewidth=1, linestyle="--", label="predicted = true")
        axes.plot(true[kept], predicted[kept], "o", ms=5.5, color=ACCENT, alpha=0.75, mec="none")
        axes.set(xlim=ends, ylim=ends, title=title, xlabel="true", ylabel="predicted")
        axes.set_box_aspect(1)
        axes.legend(loc="upper left")

    return plot(draw, alt, width=4.6, height=4.1)


def bland_altman_plot(true: Floats, predicted: Floats, title: str, alt: str) -> str:
    """Return differences predicted - true over means [N], with bias and limits (Bland & Altman, Lancet 1986)."""
    kept = few(len(true))
    difference, mean = predicted - true, (predicted + true) / 2
    bias, low, high = agreement(true, predicted)

    def draw(axes: Axes) -> None:
        from matplotlib.transforms import blended_transform_factory

        axes.plot(mean[kept], difference[kept], "o", ms=5.5, color=ACCENT, alpha=0.75, mec="none")
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
        beside = blended_transform_factory(axes.transAxes, axes.transData)
        for value, name, style in ((high, "+1.96 SD", "--"), (bias, "bias", "-"), (low, "−1.96 SD", "--")):
            if math.isfinite(value):
                axes.axhline(value, color=INK, linewidth=1, linestyle=style)
                axes.text(1.02, value, f"{name}\n{number(value, 2)}", transform=beside, va="center", fontsize=10)
        axes.margins(y=0.15)
        axes.set(title=title, xlabel="mean of predicted and true", ylabel="predicted − true")

    return plot(draw, alt, width=4.6, height=4.1)


def agreement(true: Floats, predicted: Floats) -> tuple[float, float, float]:
    """Return bias, lower and upper limit of agreement, bias ∓ 1.96 SD (n - 1); limits are NaN below two cases."""
    difference = predicted - true
    bias = float(difference.mean())
    half = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else math.nan
    return bias, bias - half, bias + half


def breakdown_plot(
    names: Sequence[str],
    cases: Sequence[Floats],
    intervals: Sequence[tuple[float, float, float]],
    whole: float,
    title: str,
    alt: str,
) -> str:
    """Return a row for each group of cases: each case as a dot, their value with its interval as a diamond and a line.

    Args:
        names: of the groups.
        cases: the cases' own values, NaN where they have none.
        intervals: value, lower and upper end of each group; NaN where there is none.
        whole: value of all cases, a dotted line.
        title: what stands above.
        alt: for those who do not see it.
    """

    def draw(axes: Axes) -> None:
        jitter = np.random.default_rng(0)
        for row, (values, (value, low, high)) in enumerate(zip(cases, intervals, strict=True)):
            known = values[~np.isnan(values)]
            known = known[few(len(known))] if len(known) else known
            heights = row + jitter.uniform(-0.16, 0.16, len(known))
            axes.plot(known, heights, "o", ms=4.5, color=ACCENT, alpha=0.5, mec="none")
            axes.plot([low, high], [row, row], color=INK, linewidth=1.8)
            axes.plot([value], [row], "D", ms=5.5, color=INK)
        axes.axvline(whole, color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
        labels = [f"{shortened(name, 24)} (n = {len(values)})" for name, values in zip(names, cases, strict=True)]
        axes.set_yticks(range(len(names)), labels)
        axes.set(ylim=(len(names) - 0.5, -0.5), title=title)
        axes.grid(axis="y", visible=False)

    return plot(draw, alt, height=1.1 + 0.42 * len(names))


def score_histogram(scores: Floats, abnormal: Bools, title: str, alt: str) -> str:
    """Return how the scores [N] of normal and of abnormal frames are spread, each as shares of its kind."""
    edges = np.histogram_bin_edges(scores, bins=int(np.clip(np.sqrt(len(scores)), 6, 30)))

    def draw(axes: Axes) -> None:
        for positive, name, colour, hatch in ((False, "normal", _NORMAL, ""), (True, "abnormal", _ABNORMAL, "///")):
            part = scores[abnormal == positive]
            if not len(part):
                continue
            shares = np.histogram(part, edges)[0] / len(part)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35, hatch=hatch)
            axes.stairs(shares, edges, color=colour, linewidth=1.8, label=f"{name} (n = {len(part)})")
        axes.set(title=title, xlabel="score", ylabel="share of frames")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.2), ncols=2)

    return plot(draw, alt, width=4.6, height=3.3)


def score_points(scores: Floats, abnormal: Bools, title: str, alt: str) -> str:
    """Return the score of every video [N] as a point, normal and abnormal apart."""

    def draw(axes: Axes) -> None:
        jitter = np.random.default_rng(0)
        kinds = ((False, "normal", _NORMAL), (True, "abnormal", _ABNORMAL))
        for row, (positive, _, colour) in enumerate(kinds):
            part = scores[abnormal == positive]
            draw_points(axes, row, part[few(len(part))].tolist() if len(part) else [], colour, jitter)
        counts = [int((abnormal == positive).sum()) for positive in (False, True)]
        axes.set_yticks([0, 1], [f"normal\n(n = {counts[0]})", f"abnormal\n(n = {counts[1]})"])
        axes.set(title=title, xlabel="score", ylim=(1.6, -0.6))
        axes.grid(axis="y", visible=False)

    return plot(draw, alt, width=4.6, height=2.6)


@dataclass(frozen=True)
class Bands:
    """True and predicted class of every frame of a case [T]; a negative class is unknown."""

    name: str
    true: Integers
    predicted: Integers


def bands_plot(rows: Sequence[Bands], colours: Mapping[str, str], title: str, alt: str) -> str:
    """Return the true over the predicted class of the frames of each case, as bands of colour."""
    names = list(colours)

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Patch

        for row, case in enumerate(rows):
            for track, top in ((case.true, row - 0.36), (case.predicted, row + 0.02)):
                for kind, first, after in zip(*segments(track), strict=True):
                    if kind >= 0:
                        where = ([(first, after - first)], (top, 0.34))
                        axes.broken_barh(*where, facecolor=colours[names[kind]], linewidth=0)
        marks = [(row + shift, word) for row in range(len(rows)) for shift, word in ((-0.19, "true"), (0.19, "pred."))]
        axes.set_yticks([at for at, _ in marks], [word for _, word in marks], fontsize=8.5)
        for row, case in enumerate(rows):
            axes.annotate(
                shortened(case.name, 26), (-0.055, row), xycoords=("axes fraction", "data"), ha="right", va="center"
            )
        axes.set(ylim=(len(rows) - 0.45, -0.55), xlabel="frame", title=title)
        axes.set_xlim(0, max(len(case.true) for case in rows))
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
        patches = [Patch(facecolor=colour, label=shortened(name, 24)) for name, colour in colours.items()]
        axes.legend(handles=patches, loc="lower right", bbox_to_anchor=(1, 1), ncols=min(6, len(patches)))

    rows_of_legend = -(-len(names) // 6)
    return plot(draw, alt, width=9.2, height=1.0 + 0.25 * rows_of_legend + 0.62 * len(rows))
