"""Curves and distributions as SVG that stands inside the page and takes its colours and fonts from it."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medvid_core.report.palette import palette, to_hex
from medvid_core.report.rundata import RunData, as_float
from medvid_core.report.text import esc, metric_name, shortened

Floats = npt.NDArray[np.float64]
Axes = Any

# drawn in these colours, then replaced: so one picture serves a light and a dark page
INK, FAINT, ACCENT = "#010203", "#040506", "#070809"
_THEMED = {INK: "currentColor", FAINT: "var(--line)", ACCENT: "var(--accent)"}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "medvid",  # the same ids each time
    "text.parse_math": False,  # names are untrusted: a "$" is a dollar
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "axes.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
_MOST_POINTS = 300
_MARKERS = ("x", "D", "^", "s")


def plot(draw: Callable[[Axes], None], alt: str, width: float = 4.6, height: float = 2.9) -> str:
    """Return a figure with one axes, drawn by ``draw``, as inline SVG.

    Args:
        draw: draws on the axes it is given.
        alt: what the picture shows, for those who do not see it.
        width: inches.
        height: inches.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return inline_svg(buffer.getvalue(), alt)


def inline_svg(text: str, alt: str) -> str:
    """Return an SVG file as an element of a page: no prolog, metadata, fixed size, name spaces or ids shared by two."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text[text.index("<svg") :]
    opening, rest = text.split(">", 1)
    opening = re.sub(r'\s(xmlns(:\w+)?|width|height|version)="[^"]*"', "", opening)
    prefix = re.sub(r"[^A-Za-z0-9]", "", alt)[:24] + hashlib.sha256(alt.encode("utf-8", "replace")).hexdigest()[:6]
    rest = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', rest)
    rest = re.sub(r'(xlink:href="#|url\(#)', rf"\1{prefix}-", rest).replace("xlink:href", "href")
    rest = re.sub(r"<style.*?</style>", "", rest, flags=re.DOTALL)  # it would rule the whole page
    rest = re.sub(r"font-family: [^;\"]*;? ?", "", rest)
    rest = re.sub(r"font: (\w+ )?([\d.]+px) '[^;\"]*", r"font-size: \2; font-weight: \1", rest)
    rest = re.sub(r" ?font-weight: (?=[;\"])", "", rest)
    for drawn, themed in _THEMED.items():
        rest = rest.replace(drawn, themed)
    return f'{opening} role="img" aria-label="{esc(alt)}">{rest}'


_PLAIN = {"currentColor": "#1f2328", "var(--line)": "#d0d7de", "var(--accent)": "#3b5bdb"}


def as_file(svg: str) -> str:
    """Return an inline picture as an SVG file that stands alone, dark on white."""
    for themed, colour in _PLAIN.items():
        svg = svg.replace(themed, colour)
    style = 'xmlns="http://www.w3.org/2000/svg" style="background: #fff; font-family: sans-serif"'
    return f'<?xml version="1.0" encoding="utf-8"?>\n<svg {style}{svg[len("<svg") :]}\n'


def _series(log: Sequence[Mapping[str, Any]], name: str) -> tuple[Floats, Floats]:
    """Return steps and defined values of one logged number; of a step logged twice the first."""
    found: dict[float, float] = {}
    for line in log:
        value = as_float(line.get(name))
        if math.isfinite(value):
            found.setdefault(as_float(line["step"]), value)
    steps = sorted(found)
    return np.array(steps, float), np.array([found[step] for step in steps], float)


def _thinned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Return at most `_MOST_POINTS` points, means of neighbours: a page needs no more, and stays small."""
    pieces = min(len(steps), _MOST_POINTS)
    if pieces == len(steps):
        return steps, values
    return tuple(np.array([part.mean() for part in np.array_split(line, pieces)]) for line in (steps, values))  # type: ignore[return-value]


def _smoothed(values: Floats) -> Floats:
    """Return a running mean over a twentieth of the curve."""
    half = max(1, len(values) // 40)
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _spread(values: Floats) -> bool:
    """Whether a curve spans so many sizes that it wants a logarithmic axis."""
    return bool(len(values) and values.min() > 0 and values.max() / values.min() > 50)


def _draw_loss(axes: Axes, lines: Mapping[str, tuple[Floats, Floats]]) -> None:
    for i, (name, (steps, values)) in enumerate(lines.items()):
        colour = ACCENT if i == 0 else to_hex(palette(len(lines) + 1)[i + 1])
        if i == 0:
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
        axes.plot(steps, _smoothed(values), color=colour, label=name, linewidth=1.8 if i == 0 else 1.2)
    if _spread(next(iter(lines.values()))[1]):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the usual one writes powers in TeX
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    if len(lines) > 1:
        axes.legend(loc="best")
    axes.set_title("Training loss")
    axes.set_xlabel("step")


def loss_curve(run: RunData) -> str:
    """Return the training loss over steps, with its parts where there are several; empty if none was logged."""
    log = [line for line in run.log if line.get("kind") == "train"]
    skipped = {"kind", "step", "epoch", "lr", "seconds", "loss", "grad_norm"}
    names = ["loss", *sorted({name for line in log for name in line} - skipped)][:6]
    lines = {("total" if n == "loss" else n): _thinned(*_series(log, n)) for n in names}
    lines = {name: line for name, line in lines.items() if len(line[0])}
    return plot(lambda axes: _draw_loss(axes, lines), "Training loss over steps") if "total" in lines else ""


def rate_curve(run: RunData) -> str:
    """Return the learning rate over steps; empty if none was logged."""
    steps, values = _thinned(*_series([line for line in run.log if line.get("kind") == "train"], "lr"))

    def drawn(axes: Axes) -> None:
        axes.plot(steps, values, color=ACCENT)
        axes.set_title("Learning rate")
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")

    return plot(drawn, "Learning rate over steps") if len(steps) else ""


def validation_curve(run: RunData) -> str:
    """Return the headline metric on validation cases over steps, and the step that was kept; empty without any."""
    log = [line for line in run.log if line.get("kind") == "evaluation" and line.get("split") == "val"]
    name = run.headline
    steps, values = _series(log, name)
    best = as_float((run.record.get("best") or {}).get("step"))

    def drawn(axes: Axes) -> None:
        for part in run.parts(name) if len(run.parts(name)) <= 7 else []:
            colour = run.colour(part) or FAINT
            axes.plot(
                *_series(log, f"{name}/{part}"), color=colour, linewidth=1.2, marker="o", ms=2, label=shortened(part)
            )
        axes.plot(steps, values, color=INK, label="mean" if run.parts(name) else metric_name(name), marker="o", ms=2.5)
        if best in steps:
            axes.plot([best], values[steps == best], "o", ms=8, mfc="none", mec=INK, label=f"kept: step {best:.0f}")
        axes.legend(loc="lower right" if run.higher_is_better(name) else "upper right")
        axes.set_title(f"Validation {metric_name(name)}")
        axes.set_xlabel("step")

    return plot(drawn, f"Validation {metric_name(name)} over steps") if len(steps) else ""


def shown_per_case(run: RunData) -> str:
    """Return the first metric that cases have values of, more than yes and no: the headline if it has; else empty."""
    columns = [run.headline, *(name for name in run.columns if not run.taken_apart(name)[1])]
    return next((name for name in columns if len(set(run.values(name)) - {0.0, 1.0}) > 0), "")


def distribution(run: RunData) -> str:
    """Return every case as a point, over its mean and each class, with the trivial predictors; empty below two."""
    name = shown_per_case(run)
    parts = run.parts(name) if len(run.parts(name)) <= 12 else []
    columns = {name: "mean" if parts else metric_name(name)} | {f"{name}/{part}": part for part in parts}
    columns = {column: label for column, label in columns.items() if len(run.values(column)) > 1}
    if not columns:
        return ""

    def drawn(axes: Axes) -> None:
        jitter = np.random.default_rng(0)
        for row, (column, label) in enumerate(columns.items()):
            colour = (run.colour(label) if column != name else None) or ACCENT
            draw_points(axes, row, run.values(column), colour, jitter)
        _draw_baselines(axes, run, list(columns))
        axes.set_yticks(range(len(columns)), [shortened(label, 32) for label in columns.values()])
        axes.set_ylim(len(columns) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{metric_name(name)} per case")

    alt = f"Distribution of {metric_name(name)} over cases"
    return plot(drawn, alt, width=9.2, height=1.2 + 0.5 * len(columns))


def draw_points(axes: Axes, row: int, values: Sequence[float], colour: str, jitter: np.random.Generator) -> None:
    """Draw a box (quartiles, median, whiskers to the extremes) and every value as a point."""
    if len(values) >= 5:
        line = {"color": INK, "linewidth": 1}
        axes.boxplot(
            [values],
            positions=[row],
            orientation="horizontal",
            widths=0.5,
            whis=(0, 100),
            showcaps=False,
            boxprops=line,
            whiskerprops=line,
            medianprops={"color": INK, "linewidth": 2},
        )
    heights = row + jitter.uniform(-0.16, 0.16, len(values))
    axes.plot(values, heights, "o", ms=5.5, color=colour, alpha=0.75, mec="none")


def _draw_baselines(axes: Axes, run: RunData, columns: Sequence[str]) -> None:
    """Mark in every row what the trivial predictors reach there."""
    for marker, (which, label) in zip(itertools.cycle(_MARKERS), run.baseline_names.items(), strict=False):
        values = [run.baseline(which, column) for column in columns]
        rows = [row for row, value in enumerate(values) if math.isfinite(value)]
        if rows:
            where = [values[row] for row in rows]
            axes.plot(where, rows, marker, ms=6.5, mfc="none", mec=INK, mew=1.4, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0)
