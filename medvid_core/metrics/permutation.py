"""Whether two models differ by more than chance: permutation tests over patients.

Under the hypothesis that two models are alike, what they predict for a patient could be exchanged. The difference that
was found is compared with those after such exchanges, always of all cases of a patient, because these are alike. Which
test is for which metric: see `medvid_core.metrics.statistics`. P-values of several tests go through `holm`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from medvid_core.metrics.statistics import RESAMPLES, Floats, Statistic, column, defined_values

T = TypeVar("T")

SIGNIFICANT = 0.05
ROUNDING = 1e-9
"""What is this much smaller than the largest difference is none: a sum in another order has other last digits."""


@dataclass(frozen=True, kw_only=True)
class PermutationTest:
    """Whether two models differ by more than chance.

    Attributes:
        difference: first minus second, of all cases.
        p_value: two-sided; NaN where the difference is undefined.
        groups: number of patients.
        discordant: patients in which the models differ.
        least_p: the smallest p-value that could have been reached, 2 / 2^discordant at best.
        permutations: how many were looked at.
        exact: whether these were all there are.
        note: why it could not have found anything; empty if it could.
    """

    difference: float
    p_value: float
    groups: int
    discordant: int
    least_p: float
    permutations: int
    exact: bool
    note: str = ""


def sign_flip_test(
    differences_by_group: Mapping[str, Sequence[float]], permutations: int = RESAMPLES, seed: int = 0
) -> PermutationTest:
    """Test whether the mean difference of two models over cases is zero, for metrics that are means over cases.

    If the models are alike, each patient's differences might as well have had the other sign. The mean is compared with
    those for other signs, drawn by patient: all of them if there are at most ``permutations``, else so many at random,
    with p = (1 + as extreme) / (1 + drawn) (Phipson & Smyth, 2010), which is never too small.

    Args:
        differences_by_group: first minus second model, for each case of a patient; NaN is left out.
        permutations: how many to draw.
        seed: of the draws.
    """
    kept = defined_values(differences_by_group)
    if not kept:
        return permutation_result(math.nan, np.zeros(0), 0, 0, exact=False)
    sums = np.array([math.fsum(values) for values in kept]) / sum(map(len, kept))
    flipped = sums[np.abs(sums) > ROUNDING * np.abs(sums).max()]
    signs, exact = sign_patterns(len(flipped), permutations, seed)
    return permutation_result(float(sums.sum()), signs @ flipped, len(sums), len(flipped), exact)


def swap_test(
    pairs_by_group: Mapping[str, Sequence[tuple[T, T]]],
    statistic: Statistic[T],
    permutations: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, PermutationTest]:
    """Test whether two models differ in a metric that only exists over cases, such as AUROC or F1.

    If they are alike, the predictions for all cases of a patient might as well have been the other model's. Otherwise
    as `sign_flip_test`, with which it agrees where the metric is a mean over cases.

    Args:
        pairs_by_group: of `paired`.
        statistic: of the cases of one model; called twice for each permutation and each patient.
        permutations: how many to draw.
        seed: of the draws.

    Returns:
        One test for each value of the statistic.
    """
    groups = [[list(side) for side in zip(*pairs_by_group[name], strict=True)] for name in sorted(pairs_by_group)]
    signs, exact = sign_patterns(len(groups), permutations, seed)
    alone = 1 - 2 * np.eye(len(groups), dtype=np.int8)

    def of(row: Sequence[int]) -> dict[str, float]:
        chosen = list(zip(row, groups, strict=True))
        one = statistic([case for sign, sides in chosen for case in sides[sign < 0]])
        other = statistic([case for sign, sides in chosen for case in sides[sign > 0]])
        return {name: one[name] - other[name] for name in one}

    actual = of([1] * len(groups))
    permuted, swapped = [of(row) for row in signs.tolist()], [of(row) for row in alone.tolist()]
    found = {}
    for name, value in actual.items():
        discordant = int(np.sum(~np.isclose(column(swapped, name), value, rtol=0, atol=ROUNDING)))
        found[name] = permutation_result(value, column(permuted, name), len(groups), discordant, exact)
    return found


def sign_patterns(count: int, permutations: int, seed: int) -> tuple[npt.NDArray[np.int8], bool]:
    """Return signs, 1 or -1, of ``count`` groups, [P,count], and whether these are all that there are."""
    if 2**count <= permutations:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return (1 - 2 * bits).astype(np.int8), True
    drawn = np.random.default_rng(seed).integers(0, 2, (permutations, count), dtype=np.int8)
    return 1 - 2 * drawn, False


def permutation_result(value: float, permuted: Floats, groups: int, discordant: int, exact: bool) -> PermutationTest:
    """Return the test of a difference against its permutations.

    Args:
        value: the difference.
        permuted: the difference after each permutation, [P]; NaN, where undefined, counts as extreme.
        groups: number of patients.
        discordant: how many of them the models differ in.
        exact: whether there are no other permutations.
    """
    least = min(1.0, max(2.0 ** (1 - discordant), 0.0 if exact else 1 / (1 + len(permuted))))
    if math.isnan(value):
        p, note = math.nan, "undefined for these cases"
    else:
        least_extreme = abs(value) - ROUNDING * np.nanmax(np.abs(permuted), initial=0)
        extreme = int(np.sum(~(np.abs(permuted) < least_extreme)))
        p, note = (extreme + (not exact)) / (len(permuted) + (not exact)), _cannot(discordant, least)
    return PermutationTest(
        difference=value,
        p_value=p,
        groups=groups,
        discordant=discordant,
        least_p=least,
        permutations=len(permuted),
        exact=exact,
        note=note,
    )


def _cannot(discordant: int, least: float) -> str:
    if discordant == 0:
        return "the models do not differ in any patient"
    if least < SIGNIFICANT:
        return ""
    return f"n too small: the models differ in {discordant} patients, so that p cannot fall below {least:.3g}"


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for there being several (Holm, Scandinavian Journal of Statistics 1979).

    The k-th smallest of m is multiplied by m - k + 1, and is at least the one before. NaN stays NaN and does not count.
    """
    ranked = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted, running = dict(p_values), 0.0
    for number, (p, name) in enumerate(ranked):
        running = max(running, min(1.0, (len(ranked) - number) * p))
        adjusted[name] = running
    return adjusted
