"""The page of an evaluation: one HTML file that needs no network and no script, in the style of a run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvid_core.report import plots
from medvid_core.report.appendix import notices
from medvid_core.report.breakdown import breakdown_section
from medvid_core.report.html import run_title
from medvid_core.report.rundata import read_files
from medvid_core.report.tables import metrics_section
from medvid_core.report.text import counted, document, esc, section, tag

if TYPE_CHECKING:
    from medvid_core.engine.breakdown import Breakdown


def write_evaluation(
    folder: Path, record: Mapping[str, Any], metrics: Mapping[str, bool], breakdowns: Sequence[Breakdown]
) -> Path:
    """Write ``evaluation.html`` into the folder of an evaluation, beside its tables; of classes their confusion too.

    Args:
        folder: holds ``cases.csv``, and ``frames.csv`` where frames have values.
        record: what ``summary.json`` holds.
        metrics: name → whether higher is better.
        breakdowns: the result by columns.

    Returns:
        The path of the page.
    """
    from medvid_core.engine.run import write_text
    from medvid_core.report.evidence import read_evidence
    from medvid_core.report.predictions import predictions_section, write_confusions

    data = {**record["dataset"], "outputs": record["model"]["outputs"]}
    run = read_files(folder, {**record, "metrics": dict(metrics), "dataset": data})
    evidence = read_evidence(run)
    write_confusions(run, evidence)
    distribution = plots.distribution(run)
    title = f"{run_title(run)}: evaluation"
    cases = f"{counted(len(run.scored), 'case')} of {data['cases']} scored, split {data['split']}"
    parts = [
        tag("header", tag("h1", esc(title)) + tag("p", esc(cases))),
        notices(run),
        metrics_section(run),
        *(breakdown_section(breakdown) for breakdown in breakdowns),
        predictions_section(run, evidence),
        section(
            "Cases at a glance",
            tag("div", distribution, class_="wide") if distribution else "",
            lead="Every point is one case; a box holds the middle half of them.",
        ),
        tag("footer", esc(f"medvid · {record['finished']}")),
    ]
    path = folder / "evaluation.html"
    write_text(path, document(title, parts).encode("utf-8", "replace").decode("utf-8"))
    return path
