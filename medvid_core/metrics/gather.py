"""What metrics of whole cases share: bringing cases together, and remembering what is slow to compute."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from medvid_core.metrics.base import Floats, ScoredCase, ScoredFrames
from medvid_core.specs import OutputSpec

T = TypeVar("T")


class Drawn(Sequence[ScoredCase]):
    """Cases at some places of a pool: a sequence like any other, of which `together` and `stacked` look at none anew.

    A bootstrap summarises thousands of draws from one pool of cases.

    Args:
        pool: all cases.
        places: of the cases that were drawn, in order, with repetition; None: all.
        kept: what was computed of the whole pool; shared by the draws from it.
    """

    def __init__(
        self,
        pool: Sequence[ScoredCase],
        places: npt.NDArray[np.int64] | None = None,
        kept: dict[Hashable, Any] | None = None,
    ) -> None:
        self.pool, self.places = pool, np.arange(len(pool)) if places is None else places
        self._kept: dict[Hashable, Any] = {} if kept is None else kept

    def draw(self, places: Sequence[int]) -> Drawn:
        """Return the cases at some places of this."""
        return Drawn(self.pool, self.places[np.asarray(places, np.int64)], self._kept)

    def of_pool(self, key: Hashable, compute: Callable[[Sequence[ScoredCase]], T]) -> T:
        """Return what ``compute`` returned of the pool the first time it was asked for ``key``."""
        if key not in self._kept:
            self._kept[key] = compute(self.pool)
        value: T = self._kept[key]
        return value

    def __len__(self) -> int:
        """Return how many cases were drawn."""
        return len(self.places)

    @overload
    def __getitem__(self, number: int) -> ScoredCase: ...

    @overload
    def __getitem__(self, number: slice) -> Drawn: ...

    def __getitem__(self, number: int | slice) -> ScoredCase | Drawn:
        """Return one case, or those of a slice."""
        if isinstance(number, slice):
            return Drawn(self.pool, self.places[number], self._kept)
        return self.pool[int(self.places[number])]


def together(cases: Sequence[ScoredCase], output: OutputSpec) -> tuple[Floats, Floats]:
    """Return what was predicted [N,...] and what is true [N,...] for the N cases that know this output."""
    if isinstance(cases, Drawn):
        predicted, true, rows = cases.of_pool(("together", output.name), partial(_numbered, output=output))
        drawn = rows[cases.places]
        drawn = drawn[drawn >= 0]
        return predicted[drawn], true[drawn]
    name = output.name
    known = [case for case in cases if name in case.true]
    predicted = np.array([case.predicted[name] for case in known], dtype=np.float64)
    true = np.array([case.true[name] for case in known], dtype=np.float64)
    if known:
        return predicted, true
    width = {"ordinal": len(output.classes) - 1}.get(output.task, len(output.classes))
    several = output.task in ("multilabel", "regression")
    return predicted.reshape(0, width), true.reshape((0, width) if several else (0,))


def _numbered(cases: Sequence[ScoredCase], output: OutputSpec) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Return what `together` does, and the row of each case in it; -1 of cases that do not know the output."""
    known = np.array([output.name in case.true for case in cases], dtype=bool)
    return *together(cases, output), np.where(known, known.cumsum() - 1, -1)


def stacked(cases: Sequence[ScoredCase], key: Hashable, of: Callable[[ScoredCase], npt.ArrayLike]) -> npt.NDArray[Any]:
    """Return what depends on one case alone of every case, [N,...]; it is computed once, and remembered as ``key``."""
    if isinstance(cases, Drawn):
        values = cases.of_pool(("stacked", key), lambda pool: stacked(pool, key, of))
        return values[cases.places]
    return np.array([remembered(case, key, partial(of, case)) for case in cases])


def remembered(scored: ScoredCase | ScoredFrames | Drawn, key: Hashable, compute: Callable[[], T]) -> T:
    """Return what ``compute`` returned the first time it was asked for ``key`` of this case, these frames, this draw.

    A bootstrap summarises the same cases thousands of times, and several metrics measure the same frames; what depends
    on these alone is computed once. It is kept on them, and goes with them.
    """
    kept: dict[Hashable, Any] = vars(scored).setdefault("_remembered", {})
    if key not in kept:
        kept[key] = compute()
    value: T = kept[key]
    return value


def nan_mean(values: Sequence[float] | Floats) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    array = np.asarray(values, dtype=np.float64)
    defined = array[~np.isnan(array)]
    return float(defined.mean()) if len(defined) else float("nan")
