"""Made-up predictions for cases whose truth is known: what metrics of anything but masks are tried with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from medvid_core.metrics.base import Floats, ScoredCase
from medvid_core.specs import OutputSpec

CASES, FRAMES = 12, 32

Truth = Floats
"""Of one case: a class or grade [], labels [K], numbers [D], or of every frame [T]."""


def described(output: OutputSpec) -> OutputSpec:
    """Return the output, a regression with mean and standard deviation of the made-up cases."""
    if output.task != "regression":
        return output
    values = np.stack([_truth(output, number) for number in range(CASES)])
    return replace(output, center=tuple(values.mean(0).tolist()), scale=tuple(values.std(0).tolist()))


def perfect(output: OutputSpec) -> list[ScoredCase]:
    """Return cases that are predicted as they are: every class, grade and label occurs, anomalies in every other."""
    return _cases(output, lambda truth, number: _certain(output, truth))


def opposite(output: OutputSpec) -> list[ScoredCase]:
    """Return the same cases, each predicted wrong in all it says; numbers are those of other cases."""
    return _cases(output, lambda truth, number: _certain(output, _wrong(output, truth, number)))


def chance(output: OutputSpec, seed: int) -> list[ScoredCase]:
    """Return the same cases, predicted at random."""
    rng = np.random.default_rng(seed)

    def draw(truth: Truth, number: int) -> Floats:
        shape = _certain(output, truth).shape
        if output.task == "regression":
            return rng.uniform(20.0, 80.0, shape)
        drawn = rng.uniform(0.05, 1.0, shape)
        if output.task == "ordinal":
            return np.sort(drawn)[::-1]
        return drawn / drawn.sum(-1, keepdims=True) if output.task.endswith("classification") else drawn

    return _cases(output, draw)


def unknown(output: OutputSpec) -> list[ScoredCase]:
    """Return two cases of which nothing is known."""
    return [replace(case, true={}, true_frames={}) for case in chance(output, 99)[:2]]


def _cases(output: OutputSpec, predict: Callable[[Truth, int], Floats]) -> list[ScoredCase]:
    found = []
    for number in range(CASES):
        truth = _truth(output, number)
        of_frames = output.task in ("frame_classification", "anomaly")
        whole = {} if output.task == "frame_classification" else {output.name: truth.max() if of_frames else truth}
        found.append(
            ScoredCase(
                case_id=f"case {number}",
                group_id=f"patient {number // 2}",
                predicted={output.name: predict(truth, number)},
                true={name: np.asarray(value, np.float64) for name, value in whole.items()},
                true_frames={output.name: truth} if of_frames else {},
                fps=25.0,
                last={output.name: np.full(len(output.classes), 45.0 + 5.0 * (number % 3))}
                if output.task == "regression"
                else {},
            )
        )
    return found


def _truth(output: OutputSpec, number: int) -> Truth:
    count = len(output.classes)
    if output.task == "multilabel":
        return np.array([float((number // (k + 1)) % 2) for k in range(count)])
    if output.task == "regression":
        return np.array([28.0 + 4.0 * ((number + k) % CASES) for k in range(count)])
    frames = np.arange(FRAMES)
    if output.task == "frame_classification":
        return ((frames // 6 + number) % count).astype(np.float64)
    if output.task == "anomaly":
        return ((frames >= 8 + number) & (frames < 16 + number) & (number % 2 == 1)).astype(np.float64)
    return np.array(float(number % count))


def _wrong(output: OutputSpec, truth: Truth, number: int) -> Truth:
    if output.task == "regression":
        return _truth(output, number * 5 + 3)
    if output.task == "ordinal":  # as far off as can be
        return np.where(truth < len(output.classes) / 2, len(output.classes) - 1.0, 0.0)
    if output.task in ("classification", "frame_classification"):
        return np.asarray((truth + 1) % len(output.classes), np.float64)
    return 1 - truth


def _certain(output: OutputSpec, truth: Truth) -> Floats:
    """Return the prediction that says this without doubt."""
    if output.task in ("classification", "frame_classification"):
        return np.asarray(truth[..., None] == np.arange(len(output.classes)), np.float64)
    if output.task == "ordinal":
        return np.asarray(truth > np.arange(len(output.classes) - 1), np.float64)
    return truth.astype(np.float64)
