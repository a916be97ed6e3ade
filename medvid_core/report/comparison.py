"""The tables of a comparison: the same in Markdown, LaTeX and HTML, and all figures as CSV and JSON.

What was measured and what was estimated stand in tables of their own, the estimate above its caveat.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvid_core.engine.operations import ENERGY_CAVEAT
from medvid_core.engine.run import write_json, write_text
from medvid_core.report.text import BASELINES, UNDEFINED, counted, metric_name, number

if TYPE_CHECKING:
    from medvid_core.engine.compare import Comparison, Entry
    from medvid_core.engine.contrast import Difference, Value
    from medvid_core.engine.cost import Cost

NOT_AVAILABLE = "n/a"
GLANCE: Mapping[str, tuple[str, ...]] = {
    "segmentation": ("dice", "jaccard"),
    "classification": ("accuracy", "f1"),
    "regression": ("mae", "r2"),
}
"""Metrics of the first table, which holds time and energy beside them, by task; of others the first two."""


@dataclass(frozen=True)
class Table:
    """One table, as text.

    Attributes:
        title: what it shows.
        head: the names of the columns.
        rows: the cells.
        lead: what to know before reading it.
        after: what to know having read it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    lead: str = ""
    after: str = ""


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write ``comparison.json``, ``.csv``, ``.md``, ``.tex`` and ``.html`` to a folder, over those of before."""
    from medvid_core.report.comparison_html import page

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", as_data(comparison))
    write_text(out / "comparison.csv", as_csv(comparison))
    write_text(out / "comparison.md", markdown(comparison))
    write_text(out / "comparison.tex", latex(comparison))
    write_text(out / "comparison.html", page(comparison))


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Return everything as plain data."""
    plain = dataclasses.asdict(comparison)
    for entry, kept in zip(comparison.entries, plain["entries"], strict=True):
        for name, value in entry.values.items():
            kept["values"][name]["deviation_over_seeds"] = value.deviation
    return plain | {"reference": comparison.entries[0].label, "energy_caveat": ENERGY_CAVEAT}


# cells


def with_interval(value: Value) -> str:
    """Return ``0.912 (0.880 to 0.944)``, with ``± 0.004`` where there are several seeds."""
    return in_brackets(value.value, value.low, value.high) + (
        "" if math.isnan(value.deviation) else f" ± {number(value.deviation)}"
    )


def in_brackets(value: float, low: float, high: float) -> str:
    """Return ``0.912 (0.880 to 0.944)``; the value alone where there is no interval."""
    return number(value) if math.isnan(low) else f"{number(value)} ({number(low)} to {number(high)})"


def probability(p: float) -> str:
    """Return a p-value: three digits, ``< 0.001`` below."""
    return UNDEFINED if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def quantity(value: float | None) -> str:
    """Return a measured quantity with three digits that count, ``n/a`` where there is none."""
    if value is None or math.isnan(value):
        return NOT_AVAILABLE
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def arrow(name: str, comparison: Comparison) -> str:
    """Return a metric's name with the direction that is better."""
    return f"{metric_name(name)} {'↑' if comparison.metrics[name] else '↓'}"


# tables


def tables(comparison: Comparison) -> list[Table]:
    """Return all tables that have something to show."""
    found = [_results(comparison)]
    if len(comparison.entries) > 1:
        found.append(_differences(comparison))
    if any(entry.cost for entry in comparison.entries):
        found = [_glance(comparison), *found, _measured(comparison), _estimated(comparison)]
    return [*found, *_spike_rates(comparison)]


def glance(comparison: Comparison) -> list[str]:
    """Return the metrics of the first table: those that papers print of these tasks, as far as they were computed."""
    wanted = [metric for task in comparison.tasks for metric in GLANCE.get(task, ())]
    found = [name for metric in wanted for name in comparison.main if name.split("/")[0] == metric]
    return list(dict.fromkeys(found)) or list(comparison.main[:2])


def _glance(comparison: Comparison) -> Table:
    names = glance(comparison)
    head = ["model", *(arrow(name, comparison) for name in names), "time per clip, ms", "energy per clip, J"]
    rows = [
        [
            entry.label,
            *(with_interval(entry.values[name]) for name in names),
            quantity(entry.cost.latency_s * 1e3 if entry.cost else None),
            quantity(entry.cost.energy.joules_per_call if entry.cost else None),
        ]
        for entry in comparison.entries
    ]
    return Table("At a glance", head, rows, lead="Time and energy are measured.")


def _results(comparison: Comparison) -> Table:
    names = comparison.main
    seeds = max(len(entry.seeds) for entry in comparison.entries)
    rows = [
        [entry.label, str(len(entry.seeds)), *(with_interval(entry.values[name]) for name in names)]
        for entry in comparison.entries
    ]
    for baseline, values in comparison.baselines.items():
        rows.append([baseline_name(baseline), "", *(number(values.get(name, math.nan)) for name in names)])
    data = comparison.data
    lead = (
        f"{counted(data['cases'], 'case')} of {counted(data['patients'], 'patient')}, {data['part']} part of "
        f"{data['name']}. In brackets the 95 % interval over patients."
    )
    if seeds > 1:
        lead += (
            " Several seeds: the mean, ± the standard deviation over seeds. Intervals and tests are of these networks "
            "on other patients; what another seed would change is the ±."
        )
    return Table(
        "Results", ["model", "seeds", *(arrow(name, comparison) for name in names)], rows, lead, _said(comparison)
    )


def baseline_name(baseline: str) -> str:
    """Return what a trivial predictor is called."""
    return BASELINES.get(baseline, baseline)


def _said(comparison: Comparison) -> str:
    """Return what keeps values from being trusted, each remark once, with the metrics it is about."""
    about: dict[str, dict[str, None]] = {}
    for entry in comparison.entries:
        for name in comparison.main:
            _add_remarks(about, entry.values[name].note, name)
    return _remarks(about, comparison)


def _add_remarks(about: dict[str, dict[str, None]], note: str, name: str) -> None:
    for remark in filter(None, note.split("; ")):
        about.setdefault(remark, {})[name] = None


def _remarks(about: Mapping[str, Mapping[str, None]], comparison: Comparison) -> str:
    lines = []
    for note, names in about.items():
        of = "" if len(names) == len(comparison.main) else f" ({', '.join(map(metric_name, names))})"
        lines.append(f"{note}{of}")
    return f"Note: {'; '.join(lines)}." if lines else ""


def _differences(comparison: Comparison) -> Table:
    first, *others = comparison.entries
    rows, about = [], dict[str, dict[str, None]]()
    for name in comparison.main:
        for entry in others:
            found = entry.differences.get(name)
            if found is None:
                continue
            rows.append([arrow(name, comparison), entry.label, *_difference_cells(found)])
            _add_remarks(about, found.note, name)
    lead = (
        f"Each model minus {first.label}, on the same cases; 95 % interval over patients; p by permutation over "
        f"patients ({comparison.resamples} at most)"
    )
    lead += f", and corrected by Holm for {len(others)} models." if len(others) > 1 else "."
    head = ["metric", "model", "difference", "p", "p (Holm)", "patients who differ"]
    return Table(f"Differences from {first.label}", head, rows, lead, _remarks(about, comparison))


def _difference_cells(found: Difference) -> list[str]:
    return [
        in_brackets(found.difference, found.low, found.high),
        probability(found.p_value),
        probability(found.p_holm),
        f"{found.discordant} of {found.patients}",
    ]


MEASURED: Mapping[str, Callable[[Cost], float | None]] = {
    "parameters, M": lambda cost: cost.parameters / 1e6,
    "GFLOP per clip": lambda cost: cost.gflop_per_clip,
    "GFLOP per frame": lambda cost: cost.gflop_per_frame,
    "time per clip, ms": lambda cost: cost.latency_s * 1e3,
    "fastest, ms": lambda cost: cost.latency_min_s * 1e3,
    "95th percentile, ms": lambda cost: cost.latency_p95_s * 1e3,
    "clips/s": lambda cost: cost.clips_per_s,
    "at batch": lambda cost: cost.best_batch,
    "memory, MiB": lambda cost: cost.memory.model_and_clip,
    "energy per clip, J": lambda cost: cost.energy.joules_per_call,
    "above idle, J": lambda cost: cost.energy.joules_per_call_minus_idle,
}
"""Columns of what was counted and measured."""

ESTIMATED: Mapping[str, Callable[[Cost], float | None]] = {
    "mean spike rate, %": lambda cost: _mean_rate(cost),
    "MAC per clip, M": lambda cost: cost.estimate.macs / 1e6,
    "AC per clip, M": lambda cost: cost.estimate.acs / 1e6,
    "estimated energy per clip, µJ": lambda cost: cost.estimate.energy_j * 1e6,
}
"""Columns of what was estimated."""


def _mean_rate(cost: Cost) -> float | None:
    """Return the mean over layers that see spikes, in percent; None where none does."""
    rates = cost.estimate.spike_rates.values()
    return 100 * statistics.fmean(rates) if rates else None


def _cost_rows(
    entries: Iterable[Entry], columns: Mapping[str, Callable[[Cost], float | None]], absent: str
) -> list[list[str]]:
    rows = []
    for entry in entries:
        values = [of(entry.cost) if entry.cost is not None else None for of in columns.values()]
        rows.append([entry.label, *(absent if value is None else quantity(value) for value in values)])
    return rows


def _measured(comparison: Comparison) -> Table:
    rows = _cost_rows(comparison.entries, MEASURED, NOT_AVAILABLE)
    return Table(
        "Cost, measured",
        ["model", *MEASURED],
        rows,
        lead="On one clip in memory, by itself but for clips/s. FLOP: two for a multiplication with addition.",
        after=" ".join(_circumstances(comparison)),
    )


def _circumstances(comparison: Comparison) -> list[str]:
    """Return how the costs were measured; each sentence once."""
    said: dict[str, None] = {}
    for entry in comparison.entries:
        if (cost := entry.cost) is None:
            continue
        said[
            f"Measured on {cost.device}, {counted(cost.threads, 'thread')}, {cost.precision}, torch "
            f"{cost.versions['torch']}."
        ] = None
        height, width = cost.size
        scan = f", scan by {cost.scan}" if cost.scan else ""
        said[f"{entry.label}: {counted(cost.frames, 'frame')} of {height} x {width} a clip{scan}."] = None
        if cost.load_average is not None and cost.load_average > 0.5:
            said[f"The machine was not idle as the command began (load average {cost.load_average:.1f})."] = None
        if cost.memory.note:
            said[f"{entry.label}: no memory, {cost.memory.note}."] = None
        said[f"Energy: {cost.energy.source}."] = None
        if cost.energy.note:
            said[f"{entry.label}: {cost.energy.note}."] = None
    return list(said)


def _estimated(comparison: Comparison) -> Table:
    rows = _cost_rows(comparison.entries, ESTIMATED, UNDEFINED)
    silent = [
        f"{entry.label}: {counted(dead, 'layer')} never saw a spike."
        for entry in comparison.entries
        if entry.cost and (dead := sum(rate == 0 for rate in entry.cost.estimate.spike_rates.values()))
    ]
    return Table("Energy, estimated", ["model", *ESTIMATED], rows, after=" ".join([*silent, ENERGY_CAVEAT]))


def _spike_rates(comparison: Comparison) -> list[Table]:
    """Return a table for each model that has layers which see spikes."""
    found = []
    for entry in comparison.entries:
        rates = entry.cost.estimate.spike_rates if entry.cost is not None else {}
        if rates:
            rows = [[layer, quantity(100 * rate)] for layer, rate in rates.items()]
            lead = f"Of every layer that sees spikes, the share of its inputs that are 1, on one clip: {entry.label}."
            found.append(Table(f"Spike rates of {entry.label}", ["layer", "spike rate, %"], rows, lead))
    return found


# files


def markdown(comparison: Comparison) -> str:
    """Return all tables as Markdown."""
    return as_markdown(title(comparison), comparison.notes, tables(comparison))


def as_markdown(heading: str, notes: Sequence[str], shown: Sequence[Table]) -> str:
    """Return tables under a heading, with notes above them, as Markdown."""
    parts = [f"# {_plain(heading)}", *(f"> {_plain(note)}" for note in notes)]
    for table in shown:
        lines = [table.head, ["---", *["---:"] * (len(table.head) - 1)], *table.rows]
        body = "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)
        parts += [f"## {_plain(table.title)}", _plain(table.lead), body, _plain(table.after)]
    return "\n\n".join(part for part in parts if part) + "\n"


def title(comparison: Comparison) -> str:
    """Return what is compared."""
    return f"{counted(len(comparison.entries), 'model')} on {comparison.data['name']}"


def _plain(text: str) -> str:
    """Return text that breaks no Markdown table and is no HTML."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
    return text.replace("|", "\\|").replace("\n", " ")


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "µ": r"$\mu$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
    "\n": " ",
}


def escape_tex(text: str) -> str:
    """Return text that LaTeX sets as it is."""
    return "".join(_TEX.get(character, character) for character in text)


def latex(comparison: Comparison) -> str:
    """Return all tables for LaTeX; they need the package ``booktabs``."""
    parts = ["% \\usepackage{booktabs}"]
    for table in tables(comparison):
        columns = "l" * (2 if table.head[0] == "metric" else 1)
        columns += "r" * (len(table.head) - len(columns))
        body = " \\\\\n".join(" & ".join(map(escape_tex, row)) for row in table.rows)
        caption = " ".join(part for part in (f"{table.title}.", table.lead, table.after) if part)
        parts.append(
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{escape_tex(caption)}}}\n"
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{' & '.join(map(escape_tex, table.head))} \\\\\n\\midrule\n"
            f"{body} \\\\\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}"
        )
    return "\n\n".join(parts) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Return one row a model with every figure, and one a trivial predictor; an empty cell where there is none."""
    rows = [_flat(entry) for entry in comparison.entries]
    rows += [{"model": baseline_name(name), **values} for name, values in comparison.baselines.items()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        empty = (key for key, value in row.items() if isinstance(value, float) and math.isnan(value))
        writer.writerow(row | dict.fromkeys(empty, ""))
    return buffer.getvalue()


def _flat(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": entry.label,
        "version": entry.version,
        "preset": entry.preset,
        "seeds": " ".join(map(str, entry.seeds)),
    }
    for name, value in entry.values.items():
        row |= {name: value.value, f"{name}:low": value.low, f"{name}:high": value.high}
        row |= {f"{name}:deviation_over_seeds": value.deviation, f"{name}:patients": value.patients}
        row |= {f"{name}:untrained": entry.untrained.get(name, math.nan)}
    for name, found in entry.differences.items():
        row |= {f"{name}:difference": found.difference, f"{name}:difference_low": found.low}
        row |= {f"{name}:difference_high": found.high, f"{name}:p": found.p_value, f"{name}:p_holm": found.p_holm}
    if entry.cost is not None:
        row |= {name: of(entry.cost) for name, of in MEASURED.items()}
        row |= {"energy source": entry.cost.energy.source}
        row |= {f"(estimated) {name}": of(entry.cost) for name, of in ESTIMATED.items()}
    return row
