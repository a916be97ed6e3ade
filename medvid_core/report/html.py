"""The report of a run: one HTML file that needs no network and no script.

Everything in it comes from files of the run directory; every text from them is escaped, and a content security policy
forbids the page to load or run anything, should something slip through.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medvid_core.report import plots
from medvid_core.report.appendix import environment_section, notices
from medvid_core.report.cases import cases_section
from medvid_core.report.embed import overlays_section
from medvid_core.report.rundata import RunData, as_float, read_run
from medvid_core.report.summary import summary_section
from medvid_core.report.tables import metrics_section
from medvid_core.report.text import counted, document, duration, esc, section, tag


def write_report(run_directory: Path) -> Path:
    """Write ``report.html`` into a run directory, from the files in it; of classes their confusion as CSV too.

    Args:
        run_directory: holds ``run.json``; ``metrics.jsonl``, ``cases.csv``, ``frames.csv``, ``splits.json``,
            ``config.yaml`` and ``overlays/`` are shown where they are there.

    Returns:
        The report's path.

    Raises:
        DataError: the folder is no run directory.
    """
    # these load torch, which importing this module does not
    from medvid_core.engine.run import write_text
    from medvid_core.report.evidence import read_evidence
    from medvid_core.report.predictions import predictions_section, write_confusions

    run = read_run(run_directory)
    evidence = read_evidence(run)
    write_confusions(run, evidence)
    text = page(run, predictions_section(run, evidence), evidence.merits)
    path = run_directory / "report.html"
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"))  # a lone surrogate in an id is no text
    return path


def page(run: RunData, predictions: str, merits: Mapping[str, float]) -> str:
    """Return the whole page.

    Args:
        run: the files of the run.
        predictions: section on what was predicted beside masks, HTML.
        merits: case id → how well a case went, larger is better.
    """
    title = run_title(run)
    parts = [
        tag("header", tag("h1", esc(title)) + tag("p", esc(subtitle(run)))),
        notices(run),
        summary_section(run),
        predictions,
        overlays_section(run),
        metrics_section(run),
        section(
            "Cases at a glance",
            _wide(plots.distribution(run)),
            lead="Every point is one case; a box holds the middle half of them.",
        ),
        cases_section(run, merits),
        curves_section(run),
        environment_section(run),
        tag("footer", esc(f"medvid · {run.record.get('started', '')}")),
    ]
    return document(title, parts)


def run_title(run: RunData) -> str:
    """Return ``<model> on <data set>``."""
    model = str((run.record.get("model") or {}).get("name", "model")).split("/")[-1]
    return f"{model} on {(run.record.get('dataset') or {}).get('name', 'data')}"


def subtitle(run: RunData) -> str:
    """Return one line on size, data and time."""
    model, data = run.record.get("model") or {}, run.record.get("dataset") or {}
    parts = [f"{output.name}: {output.task.replace('_', ' ')}" for output in run.others]
    if run.record.get("preset"):
        parts.append(f"preset {run.record['preset']}")
    if model.get("parameters"):
        parts.append(f"{_in_thousands(as_float(model['parameters']))} parameters")
    names = {"train": "training", "val": "validation", "test": "test"}
    cases = [f"{count} {names.get(part, part)}" for part, count in (data.get("cases") or {}).items() if count]
    if cases:
        parts.append(f"{' + '.join(cases)} cases")
    steps = [line["step"] for line in run.log if line.get("kind") == "train"]
    if steps:
        parts.append(f"{counted(int(max(steps)), 'step')} in {duration(as_float(run.record.get('seconds')))}")
    return " · ".join(parts)


def _in_thousands(count: float) -> str:
    """Return a number with M or k behind."""
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def curves_section(run: RunData) -> str:
    """Return the learning curves."""
    curves = [plots.loss_curve(run), plots.validation_curve(run), plots.rate_curve(run)]
    drawn = "".join(tag("div", curve) for curve in curves if curve)
    no_validation = "" if curves[1] or not drawn else "There were no validation cases: the last weights were kept."
    return section("Learning curves", tag("div", drawn, class_="curves") if drawn else "", lead=no_validation)


def _wide(picture: str) -> str:
    return tag("div", picture, class_="wide") if picture else ""
