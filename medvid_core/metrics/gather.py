"""What metrics of whole cases share: bringing cases together, and remembering what is slow to compute."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np

from medvid_core.metrics.base import Floats, ScoredCase
from medvid_core.specs import OutputSpec

T = TypeVar("T")


def together(cases: Sequence[ScoredCase], output: OutputSpec) -> tuple[Floats, Floats]:
    """Return what was predicted [N,...] and what is true [N,...] for the N cases that know this output."""
    name = output.name
    known = [case for case in cases if name in case.true]
    predicted = np.array([case.predicted[name] for case in known], dtype=np.float64)
    true = np.array([case.true[name] for case in known], dtype=np.float64)
    if known:
        return predicted, true
    width = {"ordinal": len(output.classes) - 1}.get(output.task, len(output.classes))
    several = output.task in ("multilabel", "regression")
    return predicted.reshape(0, width), true.reshape((0, width) if several else (0,))


def remembered(case: ScoredCase, key: Hashable, compute: Callable[[], T]) -> T:
    """Return what ``compute`` returned the first time it was asked for ``key`` of this case.

    A bootstrap summarises the same cases thousands of times; what depends on one case alone is computed once. It is
    kept on the case, and goes with it.
    """
    kept: dict[Hashable, Any] = vars(case).setdefault("_remembered", {})
    if key not in kept:
        kept[key] = compute()
    value: T = kept[key]
    return value


def nan_mean(values: Sequence[float] | Floats) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    array = np.asarray(values, dtype=np.float64)
    defined = array[~np.isnan(array)]
    return float(defined.mean()) if len(defined) else float("nan")
