"""The head of the report: what came out, against what, and how far it can be trusted."""

from __future__ import annotations

import math

from medvid_core.report.rundata import RunData, deviation, interval, mean
from medvid_core.report.text import BASELINES, counted, esc, joined, metric_name, number, section, tag

SMALL = 10
"""Below so many cases the report warns."""
_PART = {"test": "held-out test", "val": "validation", "train": "training"}


def summary_section(run: RunData) -> str:
    """Return headline number, bars against the baselines, and the verdict in words."""
    name = run.headline
    if not name or math.isnan(run.result(name)):
        return section("Result", tag("p", "No result: the run has not been evaluated, or nothing could be scored."))
    figure = tag("div", number(run.result(name)), class_="figure") + tag("p", esc(_what(run)))
    head = tag("div", tag("div", figure) + _bars(run), class_="result")
    sentences = [_verdict(run), _spread(run), _trust(run), _small(run)]
    words = tag("div", "".join(tag("p", sentence) for sentence in sentences if sentence), class_="verdict")
    return section("Result", head, words)


def _what(run: RunData) -> str:
    """Say what the big number is."""
    scope = "mean " if len(run.scored) > 1 else ""
    part = _PART.get(str(run.record.get("split")), "")
    count = f", {counted(len(run.scored), f'{part} case'.strip())}" if run.scored else ""
    direction = "higher" if run.higher_is_better(run.headline) else "lower"
    return f"{scope}{metric_name(run.headline)}{count} ({direction} is better)"


def _known_baselines(run: RunData) -> dict[str, float]:
    values = {which: run.baseline(which, run.headline) for which in BASELINES}
    return {which: value for which, value in values.items() if not math.isnan(value)}


def _bars(run: RunData) -> str:
    """Return one bar for the model and one for each baseline."""
    values = {"this model": run.result(run.headline)}
    values |= {BASELINES[which]: value for which, value in _known_baselines(run).items()}
    longest = max(1.0 if all(0 <= value <= 1 for value in values.values()) else 0.0, *map(abs, values.values()), 1e-12)
    cells = []
    for label, value in values.items():
        own = " own" if label == "this model" else ""
        filled = f'<span style="width:{100 * abs(value) / longest:.1f}%"></span>'
        cells += [
            tag("span", esc(label), class_=f"label{own}"),
            tag("span", filled, class_=f"track{own}"),
            tag("span", number(value), class_=f"value{own}"),
        ]
    return tag("div", "".join(cells), class_="bars")


def _verdict(run: RunData) -> str:
    """Say whether the model beats the trivial predictors."""
    value, baselines = run.result(run.headline), _known_baselines(run)
    if not baselines:
        return "No trivial predictor was scored, so there is nothing here to compare the value with."
    described = {which: f"the {BASELINES[which]} ({number(reached)})" for which, reached in baselines.items()}
    beaten = [described[which] for which, reached in baselines.items() if run.better(value, reached)]
    missed = [described[which] for which, reached in baselines.items() if not run.better(value, reached)]
    if not missed:
        both = "both trivial predictors" if len(beaten) == 2 else "the trivial predictor"
        return f"{tag('span', f'The model beats {both}', class_='good')}: {joined(beaten)}."
    verdict = tag("span", f"The model does not beat {joined(missed)}.", class_="bad")
    also = f" It does beat {joined(beaten)}." if beaten else ""
    return f"{verdict}{also} A predictor that never looks at the video does as well: this result is of no use yet."


def _spread(run: RunData) -> str:
    """Say how much cases differ."""
    values, name = run.values(run.headline), metric_name(run.headline)
    if len(values) < 2:
        return ""
    return (
        f"Over cases {name} is {number(mean(values))} ± {number(deviation(values))} (mean ± standard deviation), "
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
    count = len(run.scored)
    if not 0 < count < SMALL:
        return ""
    warning = tag("strong", f"n is small ({counted(count, 'case')}).")
    if count == 1:
        return f"{warning} One case says nothing of how the model does on others."
    groups = len({row.get("group_id") for row in run.scored})
    of_groups = f" over {counted(groups, 'group')}" if groups != count else ""
    bounds = interval(run.scored, run.headline)
    if bounds is None:
        return f"{warning} So few cases give no useful estimate of how the model does on others."
    return (
        f"{warning} The 95 % confidence interval of the mean{of_groups} is {number(bounds[0])} to "
        f"{number(bounds[1])}: read the value as a rough estimate."
    )
