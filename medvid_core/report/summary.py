"""The head of the report: what came out, against what, and how far it can be trusted."""

from __future__ import annotations

import math

from medvid_core.report.rundata import RunData, deviation, interval, mean
from medvid_core.report.text import UNDEFINED, counted, esc, joined, metric_name, number, section, tag

SMALL = 10
"""Below so many cases, or groups of them, the report warns."""
_PART = {"test": "held-out test", "val": "validation", "train": "training"}
_IN_UNIT = ("mae", "rmse", "mae-low", "bland-altman")
"""Metrics of a regression that have the unit of what is predicted."""
_UNITS = {
    "detection-delay": "frames",
    "ejection-fraction": "percentage points",
    "ejection-fraction-area-length": "percentage points",
}
_LENGTHS = ("mm", "pixels")
"""Parts that repeat a metric under the name of its unit."""


def summary_section(run: RunData) -> str:
    """Return headline number, bars against the baselines, and the verdict in words."""
    name = run.headline
    if not name or math.isnan(run.result(name)):
        return section("Result", tag("p", esc(_no_result(run))))
    figure = tag("div", number(run.result(name)), class_="figure") + tag("p", esc(_what(run)))
    head = tag("div", tag("div", figure) + _bars(run), class_="result")
    sentences = [_verdict(run), _spread(run), _trust(run), _small(run)]
    words = tag("div", "".join(tag("p", sentence) for sentence in sentences if sentence), class_="verdict")
    return section("Result", head, words)


def _no_result(run: RunData) -> str:
    """Say why there is no headline number."""
    if any(not math.isnan(run.result(name)) for name in run.columns):
        return (
            f"No result: {metric_name(run.headline)} is undefined on {counted(len(run.scored), 'case')}, as where only "
            "one class occurs or all true values are equal. The metrics that are defined stand below."
        )
    return "No result: the run has not been evaluated, or nothing could be scored."


def _what(run: RunData) -> str:
    """Say what the big number is."""
    name = run.headline
    scope = "mean " if run.of_cases(name) else ""
    part = _PART.get(str(run.record.get("split")), "")
    count = f", {counted(len(run.scored), f'{part} case'.strip())}" if run.scored else ""
    direction = "higher" if run.higher_is_better(name) else "lower"
    return f"{scope}{metric_name(name)}{_unit(run)}{count} ({direction} is better)"


def _unit(run: RunData) -> str:
    """Say in what the headline is measured, where that is no share."""
    metric = run.headline.split("/")[0]
    numbers = [output.name for output in run.outputs if output.task == "regression"]
    if metric in _UNITS:
        return f" in {_UNITS[metric]}"
    for unit in _LENGTHS:
        if f"{metric}/{unit}" in run.columns:
            return f" in {unit}"
    return f" in the unit of {joined(numbers)}" if numbers and metric in _IN_UNIT else ""


def _bars(run: RunData) -> str:
    """Return one bar for the model and one for each baseline, from zero, to the left where a value is negative."""
    values = {"this model": run.result(run.headline)}
    values |= {label: run.baseline(which, run.headline) for which, label in run.baseline_names.items()}
    defined = [value for value in values.values() if math.isfinite(value)]
    # what is better the higher, and nowhere above 1, is a share or a coefficient: 1 is as good as can be
    share = run.higher_is_better(run.headline) and max(defined, default=0) <= 1
    low, high = min(0.0, *defined), max(1.0 if share else 0.0, *defined)
    cells = [part for label, value in values.items() for part in _bar(label, value, low, high)]
    return tag("div", "".join(cells), class_="bars")


def _bar(label: str, value: float, low: float, high: float) -> list[str]:
    own = " own" if label == "this model" else ""
    width = (high - low) or 1.0
    filled = ""
    if math.isfinite(value):
        start, length = 100 * (min(value, 0.0) - low) / width, 100 * abs(value) / width
        filled = f'<span style="margin-left:{start:.1f}%;width:{length:.1f}%"></span>'
    return [
        tag("span", esc(label), class_=f"label{own}"),
        tag("span", filled, class_=f"track{own}"),
        tag("span", number(value), class_=f"value{own}"),
    ]


def _verdict(run: RunData) -> str:
    """Say whether the model beats the trivial predictors."""
    value = run.result(run.headline)
    reached = {which: run.baseline(which, run.headline) for which in run.baseline_names}
    known = [which for which in reached if not math.isnan(reached[which])]
    undefined = _undefined(run, [name for which, name in run.baseline_names.items() if which not in known])
    if not known:
        return undefined or "No trivial predictor was scored, so there is nothing here to compare the value with."
    described = {which: f"the {esc(run.baseline_names[which])} ({number(reached[which])})" for which in known}
    beaten = [described[which] for which in known if run.better(value, reached[which])]
    missed = {which: described[which] for which in known if not run.better(value, reached[which])}
    if not missed and undefined:
        return tag("span", f"The model beats {joined(beaten)}.", class_="good") + undefined
    if not missed:
        of_them = {1: "the trivial predictor", 2: "both trivial predictors"}.get(len(beaten), "all trivial predictors")
        return f"{tag('span', f'The model beats {of_them}', class_='good')}: {joined(beaten)}."
    verdict = tag("span", f"The model does not beat {joined(list(missed.values()))}.", class_="bad")
    also = f" It does beat {joined(beaten)}." if beaten else ""
    blind = "A predictor that never looks at the video does as well"
    why = "Training has not helped" if set(missed) == {"untrained"} else blind
    return f"{verdict}{also} {why}: this result is of no use yet.{undefined}"


def _undefined(run: RunData, names: list[str]) -> str:
    """Say that trivial predictors have no value, which is no defeat of either side; HTML."""
    if not names:
        return ""
    said = joined([f"the {esc(name)}" for name in names])
    return f" {esc(metric_name(run.headline))} is undefined ({UNDEFINED}) for {said}: there it compares with nothing."


def _spread(run: RunData) -> str:
    """Say how much cases differ, where the value is their mean."""
    values, name = run.values(run.headline), metric_name(run.headline)
    if not run.of_cases(run.headline):
        together = len(run.scored) > 1 and not values
        return f"{esc(name)} is one value of all cases together: a single case has none." if together else ""
    return (
        f"Over cases {esc(name)} is {number(mean(values))} ± {number(deviation(values))} (mean ± standard deviation), "
        f"from {number(min(values))} to {number(max(values))}."
    )


def _trust(run: RunData) -> str:
    """Say it when the cases were not held out."""
    part = run.record.get("split")
    if part == "val":
        return (
            f"{tag('strong', 'Optimistic:')} there were no test cases, so these are the validation cases by which the "
            "best weights were chosen."
        )
    if part == "train":
        return (
            f"{tag('strong', 'Not a test:')} these are the cases the model was trained on. The value says that the "
            "model can fit them, nothing of how it does on new ones."
        )
    return ""


def _small(run: RunData) -> str:
    """Warn of few cases, with the interval where there is one."""
    count, groups = len(run.scored), len({row.get("group_id") for row in run.scored})
    if not 0 < groups < SMALL:
        return ""
    of_groups = f" of {counted(groups, 'group')}" if groups != count else ""
    warning = tag("strong", f"n is small ({counted(count, 'case')}{of_groups}).")
    if count == 1:
        return f"{warning} One case says nothing of how the model does on others."
    share = run.higher_is_better(run.headline)
    bounds = interval(run.scored, run.headline, share) if run.of_cases(run.headline) else None
    if bounds is None:
        return f"{warning} So few cases give no useful estimate of how the model does on others."
    over_groups = f" over {counted(groups, 'group')}" if of_groups else ""
    return (
        f"{warning} The 95 % confidence interval of the mean{over_groups} is {number(bounds[0])} to "
        f"{number(bounds[1])}: read the value as a rough estimate."
    )
