"""What was predicted beside masks, by task: confusion, curves, agreement, scores and bands, in pictures and CSV.

Numbers that were measured in masks, such as the ejection fraction, are among them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvid_core.engine.run import write_text
from medvid_core.engine.scoring import mask_classes
from medvid_core.metrics.anomaly import pooled_frames, videos
from medvid_core.metrics.base import Floats, ScoredCase
from medvid_core.metrics.classification import confusion, decide, questions
from medvid_core.metrics.frames import Integers, known_frames
from medvid_core.metrics.gather import together
from medvid_core.report import figures
from medvid_core.report.evidence import Evidence
from medvid_core.report.figures import Bands, Curve
from medvid_core.report.overlay import safe_name
from medvid_core.report.palette import palette, to_hex
from medvid_core.report.rundata import RunData, as_float
from medvid_core.report.text import counted, esc, joined, metric_name, number, section, tag
from medvid_core.specs import OutputSpec

MOST_BANDS = 6
_CONFUSED = ("classification", "ordinal", "frame_classification")


def predictions_section(run: RunData, evidence: Evidence) -> str:
    """Return pictures of what was predicted, output by output; empty where masks alone are, and nothing from them."""
    if evidence.problem:
        return section("Predictions", tag("p", esc(f"Not shown: {evidence.problem}")), *_from_masks(run))
    blocks = [*_pixels(run, evidence), *_from_masks(run)]
    for output in run.others if evidence.cases else ():
        title = tag("h3", esc(output.name)) if len(run.others) > 1 else ""
        blocks.append(title + output_pictures(output, evidence.cases))
    return section("Predictions", *blocks)


def _pixels(run: RunData, evidence: Evidence) -> list[str]:
    """Return the confusion matrix of the pixels of masks."""
    if evidence.pixels is None:
        return []
    masks = next(output for output in run.outputs if output.task == "segmentation")
    alt = f"Confusion matrix of the pixels of {masks.name}"
    drawn = figures.confusion_plot(evidence.pixels, mask_classes(masks), f"Confusion of {masks.name}", alt)
    words = "Rows are true, columns predicted: annotated pixels of all cases, and their share of the true class."
    return [_said(words) + _pictures(drawn)]


def _from_masks(run: RunData) -> list[str]:
    """Return true against predicted, and the agreement, of every number that a metric measures in both masks."""
    found: list[str] = []
    for column in run.columns:
        name, _, part = column.rpartition("/")
        if part != "true" or f"{name}/predicted" not in run.columns:
            continue
        pairs = [(as_float(row.get(column)), as_float(row.get(f"{name}/predicted"))) for row in run.scored]
        known = [pair for pair in pairs if np.isfinite(pair).all()]
        if known:
            title = f"{metric_name(name).replace(' error', '')} (from masks)"
            found.append(_of_number(title, *np.array(known, np.float64).T))
    return found


def output_pictures(output: OutputSpec, cases: Sequence[ScoredCase]) -> str:
    """Return pictures of what was predicted of an output that is no mask."""
    return _BY_TASK[output.task](output, cases)


def about_positive(output: OutputSpec) -> str:
    """Say which class is the positive one, of what has classes; empty of numbers."""
    name, classes = output.name, output.classes
    if output.task in ("classification", "frame_classification") and len(classes) == 2:
        return (
            f"{name}: positive is {classes[1]} (class 1, the other is {classes[0]}) where a metric has one, as AUROC; "
            "F1 and balanced accuracy over all classes are means over both."
        )
    if output.task in ("classification", "frame_classification", "ordinal", "segmentation"):
        kind = "grade" if output.task == "ordinal" else "class"
        return f"{name}: positive is each {kind} in turn, against all others."
    if output.task == "multilabel":
        return f"{name}: positive is the presence of each label."
    return f"{name}: positive is what is abnormal." if output.task == "anomaly" else ""


def write_confusions(run: RunData, evidence: Evidence) -> list[Path]:
    """Write ``confusion.csv`` (counts, rows true) and ``confusion_normalised.csv`` (shares of each true class).

    With several outputs of classes the output's name stands behind: ``confusion-<output>.csv``.

    Returns:
        The files written.
    """
    matrices = {o: confusion_of(o, evidence.cases) for o in run.others if o.task in _CONFUSED and evidence.cases}
    if (counts := evidence.pixels) is not None:
        masks = next(output for output in run.outputs if output.task == "segmentation")
        matrices = {replace(masks, classes=mask_classes(masks)): counts, **matrices}
    written: list[Path] = []
    names: list[str] = []
    for output, counts in matrices.items():
        names.append(safe_name(output.name, names))
        end = f"-{names[-1]}" if len(matrices) > 1 else ""
        for kind, cells in (("confusion", counts), ("confusion_normalised", figures.shares_of(counts))):
            path = run.directory / f"{kind}{end}.csv"
            write_text(path, confusion_csv(cells, output.classes).encode("utf-8", "replace").decode("utf-8"))
            written.append(path)
    return written


def confusion_csv(cells: npt.NDArray[Any], classes: Sequence[str]) -> str:
    """Return a matrix [K,K] with the names of its rows and columns; NaN is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([r"true \ predicted", *classes])
    for name, row in zip(classes, cells.tolist(), strict=True):
        writer.writerow([name, *("" if math.isnan(cell) else cell for cell in row)])
    return buffer.getvalue()


def confusion_of(output: OutputSpec, cases: Sequence[ScoredCase]) -> Integers:
    """Return how often each class, grade, or class of a frame, was called which, [K,K], rows true."""
    size = len(output.classes)
    if output.task == "frame_classification":
        pairs = [known_frames(case, output) for case in cases]
        return sum((confusion(*pair, size) for pair in pairs), np.zeros((size, size), np.int64))
    predicted, true = together(cases, output)
    return confusion(true, decide(output, predicted), size)


def _pictures(*drawn: str) -> str:
    cells = "".join(tag("div", picture) for picture in drawn if picture)
    return tag("div", cells, class_="pictures") if cells else ""


def _said(*sentences: str) -> str:
    text = " ".join(sentence for sentence in sentences if sentence)
    return tag("p", esc(text), class_="lead") if text else ""


def _colours(output: OutputSpec) -> list[str]:
    return [to_hex(colour) for colour in palette(max(3, len(output.classes) + 1))[1:]]


def _of_classes(output: OutputSpec, cases: Sequence[ScoredCase]) -> str:
    """Return confusion matrix and ROC curves of a classification, or of grades."""
    predicted, true = together(cases, output)
    if not len(true):
        return _said(f"No case with a known {output.name}.")
    curves = _curves(output, predicted, true)
    name = output.name
    words = "Rows are true, columns predicted: cases, and their share of the true class."
    about = _about_curves(output, curves)
    return _said(words, about, _without_curve(curves)) + _pictures(
        figures.confusion_plot(confusion_of(output, cases), output.classes, "Confusion", f"Confusion matrix of {name}"),
        figures.roc_plot(curves, "ROC", f"ROC curves of {name}"),
    )


def _curves(output: OutputSpec, predicted: Floats, true: Floats) -> list[Curve]:
    """Return the questions behind the ROC curves: every class against the rest; of grades, lying above each."""
    colours = _colours(output)
    if output.task == "ordinal":
        names = [f"above {grade}" for grade in output.classes[:-1]]
        return [Curve(name, predicted[:, k], true > k, colours[k]) for k, name in enumerate(names)]
    asked = questions(output, predicted, true)
    if len(asked) == 1:  # the second of two classes, or the only label
        return [Curve(output.classes[-1], asked[0][1], asked[0][2], colours[len(output.classes) - 1])]
    return [Curve(name, p, y, colours[output.classes.index(name)]) for name, p, y in asked]


def _about_curves(output: OutputSpec, curves: Sequence[Curve]) -> str:
    """Say which class is positive."""
    if output.task == "ordinal":
        return "Positive in each ROC curve: the grades above the one named."
    if output.task == "multilabel":
        return "Positive in each ROC curve: the cases with the label."
    if len(curves) == 1:
        return f"Positive in the ROC curve: {output.classes[-1]}."
    return "Positive in each ROC curve: the class named, against all others."


def _without_curve(curves: Sequence[Curve]) -> str:
    """Say which curves are not drawn, and why."""
    undefined = [curve.name for curve in curves if math.isnan(curve.area)]
    more = len(curves) - len(undefined) - figures.MOST_CURVES
    words = f"No curve for {joined(undefined)}: all of these cases have it, or none." if undefined else ""
    return f"{words} The first {figures.MOST_CURVES} curves are drawn.".strip() if more > 0 else words


def _of_labels(output: OutputSpec, cases: Sequence[ScoredCase]) -> str:
    """Return the ROC curves of labels."""
    curves = _curves(output, *together(cases, output))
    drawn = figures.roc_plot(curves, "ROC", f"ROC curves of {output.name}")
    return _said(_about_curves(output, curves), _without_curve(curves)) + _pictures(drawn)


def _of_numbers(output: OutputSpec, cases: Sequence[ScoredCase]) -> str:
    """Return predicted against true, and the agreement, of every number."""
    predicted, true = together(cases, output)
    parts = []
    for column, label in enumerate(output.classes):
        known = np.isfinite(true[:, column]) & np.isfinite(predicted[:, column])
        name = f"{output.name}, {label}" if len(output.classes) > 1 else output.name
        parts.append(_of_number(name, true[known, column], predicted[known, column]))
    return "".join(parts)


def _of_number(name: str, true: Floats, predicted: Floats) -> str:
    if not len(true):
        return _said(f"No case with a known {name}.")
    bias, low, high = figures.agreement(true, predicted)
    limits = (
        f"95 % limits of agreement {number(low, 2)} to {number(high, 2)} (bias ± 1.96 standard deviations)"
        if math.isfinite(low)
        else "no limits of agreement from a single case"
    )
    thinned = f"{figures.MOST_POINTS} of {len(true)} cases are drawn." if len(true) > figures.MOST_POINTS else ""
    drawn = _pictures(
        figures.scatter_plot(true, predicted, "Predicted against true", f"Predicted against true {name}"),
        figures.bland_altman_plot(true, predicted, "Agreement (Bland–Altman)", f"Bland-Altman plot of {name}"),
    )
    about = f"{name}: bias (mean of predicted − true) {number(bias, 2)}, {limits}, {counted(len(true), 'case')}."
    return _said(about, thinned) + drawn


def _of_anomaly(output: OutputSpec, cases: Sequence[ScoredCase]) -> str:
    """Return how normal and abnormal frames and videos score, and their ROC curves."""
    frames, abnormal = pooled_frames(cases, output)
    scores, _, positive = videos(cases, output)
    colours = _colours(output)
    curves = [Curve("frames", frames, abnormal, colours[0]), Curve("videos", scores, positive, colours[1])]
    curves = [curve for curve in curves if len(curve.scores)]
    if not curves:
        return _said(f"No case is known to be normal or abnormal ({output.name}).")
    name = ", ".join(output.classes) or output.name
    about = f"Positive is what is abnormal: {name}. A larger score means more abnormal."
    of_video = "The score of a video is the mean of its highest sixteenth of frame scores."
    return _said(about, of_video, _without_curve(curves)) + _pictures(
        figures.score_histogram(frames, abnormal, "Scores of frames", f"Scores of frames: {output.name}")
        if len(frames)
        else "",
        figures.score_points(scores, positive, "Scores of videos", f"Scores of videos: {output.name}")
        if len(scores)
        else "",
        figures.roc_plot(curves, "ROC", f"ROC curves of {output.name}"),
    )


def _of_frames(output: OutputSpec, cases: Sequence[ScoredCase]) -> str:
    """Return the confusion matrix of frames, and bands of truth over prediction for some cases."""
    counts = confusion_of(output, cases)
    if not counts.sum():
        return _said(f"No frame with a known {output.name}.")
    chosen, colours = _spread_out(output, cases), _colours(output)
    rows = [Bands(case.case_id, _true_classes(case, output), case.predicted[output.name].argmax(1)) for case in chosen]
    by_class = {name: colours[number] for number, name in enumerate(output.classes)}
    bands = figures.bands_plot(rows, by_class, "Frame by frame", f"True and predicted {output.name} of frames")
    which = "all cases" if len(chosen) == len(cases) else f"{len(chosen)} cases from the worst to the best"
    return (
        _said(
            "Rows are true, columns predicted: frames, and their share of the true class.",
            f"Frame by frame: {which}, by the share of frames that is right; blank where the truth is unknown.",
        )
        + _pictures(figures.confusion_plot(counts, output.classes, "Confusion", f"Confusion matrix of {output.name}"))
        + tag("div", bands, class_="wide")
    )


def _true_classes(case: ScoredCase, output: OutputSpec) -> Integers:
    """Return the true class of every frame [T], -1 where unknown."""
    true = case.true_frames[output.name]
    classes: Integers = np.where(np.isnan(true), -1, true).astype(np.int64)
    return classes


def _spread_out(output: OutputSpec, cases: Sequence[ScoredCase]) -> list[ScoredCase]:
    """Return at most `MOST_BANDS` cases with known frames, evenly from the worst to the best."""

    def right(case: ScoredCase) -> float:
        true, predicted = known_frames(case, output)
        return float((true == predicted).mean())

    ranked = sorted((case for case in cases if output.name in case.true_frames), key=right)
    return [ranked[index] for index in figures.few(len(ranked), MOST_BANDS)]


_BY_TASK = {
    "classification": _of_classes,
    "ordinal": _of_classes,
    "multilabel": _of_labels,
    "regression": _of_numbers,
    "anomaly": _of_anomaly,
    "frame_classification": _of_frames,
}
