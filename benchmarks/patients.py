"""Check the statistics on simulated patients whose truth is known, and print Markdown.

Run from the repository: ``python benchmarks/patients.py > benchmarks/results/statistics.md``. (Not named after the
library's module: a file ``statistics.py`` here would hide Python's own from the other scripts.)
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from measuring import machine, table, verdict

from medvid_core.metrics import permutation, statistics
from medvid_core.metrics.classification import confusion, f1_of
from medvid_core.metrics.curves import auroc

Floats = np.ndarray[Any, np.dtype[np.float64]]

FALSE_POSITIVES, COVERAGE = (0.035, 0.065), (0.93, 0.97)
MEANS = ("absolute error", "accuracy")
WHOLE = ("AUROC", "macro F1")
SMALL = (10, 20)

TOO_FEW = "The targets are for real numbers of repeats: nothing is said of them here."

NOTES = """
Simulated: a patient is ill (40 %) or not; a model gives each clip the probability σ(g (2y - 1) + 0.8 u + 0.7 v + 0.7 e)
with y the illness, u the patient's difficulty, which both models share, v a patient's own for each model, e noise of
the clip, all but y standard normal. Both models have g = 1.2 where false positives are counted; where coverage is, the
second has g = 0.9, and the truth is that of 200,000 patients. Absolute error, |p - y|, and accuracy are means over
clips; AUROC and macro F1 exist only over all clips.

False positives: how often p ≤ 0.05 although the models are equally good. Coverage: how often the 95 % interval holds
the truth. *Clips* treats each clip as a patient of its own: that is what it costs. Sign flips and t-intervals are those
of `medvid_core.metrics`. For bootstrap and swapped predictions it draws the patients and makes intervals and p-values
of the metrics, which are computed here for all draws at once; the first repeat of each table is done by
`bootstrap` and `swap_test` as well, with the same result within 1e-12, or this page ends with WRONG. A
share of 5 % has a standard error of 0.7 % in 1,000 repeats.
"""


class Setting(NamedTuple):
    """How much is simulated."""

    patients: int = 60
    clips: int = 3
    resamples: int = 2000
    seed: int = 0


Row = tuple[str, str, str]
"""Metric, method, what is resampled."""

Spread = Callable[[Callable[[int], dict[Row, bool]], Iterable[int]], Iterator[dict[Row, bool]]]
"""Does what `map` does."""


@contextlib.contextmanager
def spread_over(processes: int) -> Iterator[Spread]:
    """Yield a `map` that uses these many processes; of one, this one."""
    if processes == 1:
        yield map
        return
    with ProcessPoolExecutor(processes) as pool:
        yield partial(pool.map, chunksize=10)


def draw(make: np.random.Generator, patients: int, clips: int, gains: tuple[float, float]) -> Floats:
    """Return illness and both models' probabilities, [patients, clips, 3]."""
    ill = np.broadcast_to(make.random((patients, 1)) < 0.4, (patients, clips)).astype(np.float64)
    shared = 0.8 * make.standard_normal((patients, 1))
    columns = [ill]
    for gain in gains:
        own = 0.7 * make.standard_normal((patients, 1)) + 0.7 * make.standard_normal((patients, clips))
        columns.append(1 / (1 + np.exp(-(gain * (2 * ill - 1) + shared + own))))
    return np.stack(columns, 2)


def per_clip(clips: Floats, model: int) -> dict[str, Floats]:
    """Return the metrics that every clip has, of clips [..., 3]."""
    ill, p = clips[..., 0], clips[..., 1 + model]
    return {"absolute error": np.abs(p - ill), "accuracy": ((p > 0.5) == (ill > 0)).astype(np.float64)}


def over_clips(parts: Sequence[Floats]) -> dict[str, float]:
    """Return the metrics that only exist over clips, of parts [n,2]: illness and a model's probability."""
    clips = np.concatenate(parts)
    ill, p = clips[:, 0] > 0, clips[:, 1]
    return {"AUROC": auroc(p, ill), "macro F1": float(np.nanmean(f1_of(confusion(ill, p > 0.5, 2))))}


class Weighted:
    """The same metrics for many weightings of the groups at once.

    AUROC is a quadratic form in the weights: concordant pairs are counted once for every two groups. A group occurs
    twice, with the first model's probabilities and with the second's: weights are [R,2G].
    """

    def __init__(self, clips: Floats) -> None:
        groups, size, _ = clips.shape
        models = np.concatenate([clips[:, :, :2], clips[:, :, ::2]])  # [2G,n,2]
        ill, p = models[..., 0], models[..., 1]
        wins = (p.reshape(-1, 1) > p.reshape(1, -1)) + 0.5 * (p.reshape(-1, 1) == p.reshape(1, -1))
        wins *= ill.reshape(-1, 1) * (1 - ill.reshape(1, -1))
        self.wins = wins.reshape(2 * groups, size, 2 * groups, size).sum((1, 3))
        self.counts = np.stack([confusion(y, q > 0.5, 2).ravel() for y, q in zip(ill, p, strict=True)]).astype(float)

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        """Return AUROC and macro F1, [R] each."""
        counts = (weights @ self.counts).reshape(-1, 2, 2)
        healthy, ill = counts.sum(2).T
        occurring = counts.sum(1) + counts.sum(2)
        with np.errstate(invalid="ignore"):  # 0 / 0, where a class is missing, is the NaN that is meant
            area = ((weights @ self.wins) * weights).sum(1) / (healthy * ill)
            f1 = np.nanmean(2 * np.diagonal(counts, axis1=1, axis2=2) / occurring, axis=1)
        return {"AUROC": area, "macro F1": f1}

    def alone(self, weights: Floats) -> dict[str, Floats]:
        """Return the first model's metrics for weights [R,G]."""
        return self(np.concatenate([weights, np.zeros_like(weights)], 1))

    def lead(self, first: Floats, second: Floats) -> dict[str, Floats]:
        """Return how far one is ahead that takes ``first`` [R,G] of the first model, and the rest of the second."""
        one, other = self(np.concatenate([first, second], 1)), self(np.concatenate([second, first], 1))
        return {name: one[name] - other[name] for name in one}


def units(data: Floats) -> dict[str, Floats]:
    """Return the clips [groups, clips, 3] by patient, as they should be, and each by itself."""
    return {"patients": data, "clips": data.reshape(-1, 1, 3)}


def grouped(values: Floats) -> dict[str, Sequence[float]]:
    """Return values [groups, clips] by group, in ids whose order is that of the groups."""
    return {f"{number:06}": value for number, value in enumerate(values.tolist())}


def pairs(clips: Floats) -> dict[str, list[tuple[Floats, Floats]]]:
    """Return what both models made of each group's clips, as one part [n,2] a model."""
    return {f"{number:06}": [(part[:, :2], part[:, ::2])] for number, part in enumerate(clips)}


def by_swapping(clips: Floats, setting: Setting, seed: int) -> dict[str, float]:
    """Return the p-values of `permutation.swap_test`."""
    signs, exact = permutation.sign_patterns(len(clips), setting.resamples, seed)
    first = (signs > 0).astype(float)
    weighted = Weighted(clips)
    actual, permuted = (
        weighted.lead(np.ones((1, len(clips))), np.zeros((1, len(clips)))),
        weighted.lead(first, 1 - first),
    )
    return {
        name: permutation.permutation_result(value.item(), permuted[name], len(clips), len(clips), exact).p_value
        for name, value in actual.items()
    }


def by_bootstrap(clips: Floats, setting: Setting, seed: int) -> dict[str, statistics.Interval]:
    """Return the intervals of `statistics.bootstrap`, of the first model and of its lead over the second."""
    count, weighted = len(clips), Weighted(clips)
    drawn = statistics.draw_groups(count, setting.resamples, seed)
    flat = (drawn + count * np.arange(len(drawn))[:, None]).ravel()
    weights = np.bincount(flat, minlength=drawn.size).reshape(drawn.shape).astype(float)
    sets = (np.ones((1, count)), weights, 1 - np.eye(count))
    alone = [weighted.alone(each) for each in sets]
    leads = [weighted.lead(each, np.zeros_like(each)) for each in sets]
    return {
        prefix + name: statistics.bca_interval(found[0][name].item(), found[1][name], found[2][name], count, 0.95)
        for prefix, found in (("", alone), ("difference of ", leads))
        for name in WHOLE
    }


def false_positives(setting: Setting, repeat: int) -> dict[Row, bool]:
    """Compare two models that are equally good: is p ≤ 0.05?"""
    make = np.random.default_rng((setting.seed, 0, repeat))
    data = draw(make, setting.patients, setting.clips, (1.2, 1.2))
    found: dict[Row, float] = {}
    for unit, clips in units(data).items():
        first, second = per_clip(clips, 0), per_clip(clips, 1)
        for name in MEANS:
            differences = grouped(first[name] - second[name])
            found[name, "sign flips", unit] = permutation.sign_flip_test(differences, setting.resamples, repeat).p_value
        for name, p in by_swapping(clips, setting, repeat).items():
            found[name, "swapped predictions", unit] = p
    return {row: p <= 0.05 for row, p in found.items()}


def coverage(setting: Setting, truth: Mapping[str, float], repeat: int) -> dict[Row, bool]:
    """Look at the first model, and at its lead over a worse one: is the truth within the interval?"""
    make = np.random.default_rng((setting.seed, 1, repeat))
    data = draw(make, setting.patients, setting.clips, (1.2, 0.9))
    found = {}
    for unit, clips in units(data).items():
        first, second = per_clip(clips, 0), per_clip(clips, 1)
        for name in MEANS:
            found[name, "t", unit] = statistics.mean_interval(grouped(first[name]))
            found[f"difference of {name}", "t", unit] = statistics.mean_interval(grouped(first[name] - second[name]))
        for name, interval in by_bootstrap(clips, setting, repeat).items():
            found[name, "BCa bootstrap", unit] = interval
    return {row: interval.low <= truth[row[0]] <= interval.high for row, interval in found.items()}


def disagreements(setting: Setting) -> Iterator[str]:
    """Do the first repeat by the library's functions; yield where the result is another."""
    for number, gains in enumerate(((1.2, 1.2), (1.2, 0.9))):
        clips = draw(np.random.default_rng((setting.seed, number, 0)), setting.patients, setting.clips, gains)
        both = pairs(clips)
        tests = permutation.swap_test(both, over_clips, setting.resamples, 0)
        for name, p in by_swapping(clips, setting, 0).items():
            if abs(tests[name].p_value - p) > 1e-12:
                yield f"{name}: p = {p}, by swap_test {tests[name].p_value}"
        alone = {group: [one for one, _ in parts] for group, parts in both.items()}
        slow = statistics.bootstrap(alone, over_clips, setting.resamples, 0)
        leads = statistics.bootstrap(both, statistics.difference(over_clips), setting.resamples, 0)
        slow |= {f"difference of {name}": interval for name, interval in leads.items()}
        for name, interval in by_bootstrap(clips, setting, 0).items():
            if not np.allclose([interval.low, interval.high], [slow[name].low, slow[name].high], rtol=0, atol=1e-12):
                yield f"{name}: {interval}, by bootstrap {slow[name]}"


def truths() -> dict[str, float]:
    """Return every metric of the simulated models, from 200,000 patients."""
    data = draw(np.random.default_rng(1), 200_000, 3, (1.2, 0.9))
    models = []
    for model in (0, 1):
        values = {name: float(value.mean()) for name, value in per_clip(data, model).items()}
        models.append(values | over_clips([data[:, :, [0, 1 + model]].reshape(-1, 2)]))
    leads = {f"difference of {name}": value - models[1][name] for name, value in models[0].items()}
    return models[0] | leads


def shares(spread: Spread, one: partial[dict[Row, bool]], repeats: int) -> dict[Row, float]:
    """Return in which share of the repeats each row says yes."""
    rows = list(spread(one, range(repeats)))
    return {row: float(np.mean([found[row] for found in rows])) for row in rows[0]}


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def report(found: Mapping[Row, float], head: str, bounds: tuple[float, float], quick: bool) -> str:
    """A table, patients beside clips, and a line for each target."""
    of_patients = {row[:2]: share for row, share in found.items() if row[2] == "patients"}
    rows = [[*row, percent(share), percent(found[(*row, "clips")])] for row, share in of_patients.items()]
    low, high = bounds
    lines = [
        verdict(f"{head} {percent(low)} to {percent(high)}, {name} by {method}", low <= share <= high, percent(share))
        for (name, method), share in of_patients.items()
    ]
    return table([head, "by", "patients", "clips (wrong)"], rows) + "\n\n" + (TOO_FEW if quick else "\n".join(lines))


def small(spread: Spread, setting: Setting, truth: Mapping[str, float], repeats: int) -> str:
    """Coverage with fewer patients: what the library's FEWEST_GROUPS rests on."""
    found = [shares(spread, partial(coverage, setting._replace(patients=count), truth), repeats) for count in SMALL]
    rows = [
        [name, method, *(percent(each[name, method, unit]) for each in found)]
        for name, method, unit in found[0]
        if unit == "patients"
    ]
    return table(["coverage", "by", *(f"{count} patients" for count in SMALL)], rows)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--quick", action="store_true", help="few repeats, to see that everything runs")
    options.add_argument("--repeats", type=int, default=1000, help="simulated studies")
    options.add_argument("--resamples", type=int, default=2000, help="of each study")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--processes", type=int, default=os.cpu_count(), help="that share the repeats")
    return options


def main(words: list[str] | None = None) -> int:
    args = parser().parse_args(words)
    setting = Setting(resamples=99 if args.quick else args.resamples, seed=args.seed)
    repeats = 4 if args.quick else args.repeats
    print(
        f"# Statistics of patients with several clips\n\n{datetime.date.today()}, {machine(torch.device('cpu'))}\n"
        f"numpy {np.__version__}, scipy {scipy.__version__}, {os.cpu_count()} cores, {args.processes} processes.\n"
        f"{setting.patients} patients with {setting.clips} clips each, {setting.resamples:,} resamples, "
        f"{repeats:,} repeats, seed {setting.seed}.\n"
    )
    began, truth = time.perf_counter(), truths()
    with spread_over(args.processes) as spread:
        wrong = shares(spread, partial(false_positives, setting), repeats)
        held = shares(spread, partial(coverage, setting, truth), repeats)
        few = small(spread, setting, truth, repeats)
    print(f"## Two models that are equally good\n\n{report(wrong, 'false positives', FALSE_POSITIVES, args.quick)}\n")
    print(f"## Intervals of 95 %\n\n{report(held, 'coverage', COVERAGE, args.quick)}\n")
    print(f"## Fewer patients\n\n{few}\n\nNo targets: on these rests from how many patients on `n too small` is said.")
    print(f"{NOTES}\nIt took {(time.perf_counter() - began) / 60:.1f} minutes.")
    different = list(disagreements(setting))
    for line in different:
        print(f"\n**WRONG: {line}**")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
