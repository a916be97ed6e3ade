"""The ejection fraction that follows from masks of the left ventricle, by two formulas.

Of each case the volumes at end diastole and end systole, in annotation and prediction, both measured in the same way
(`medvid_core.metrics.ventricle`), in ml:

- summation of discs (modified Simpson's rule; Lang et al., JASE 2015; Folland et al., Circulation 1979):
  V = π/4 · L/20 · Σ a_i b_i over 20 discs; a and b are their diameters in two views at right angles, L is the longer
  of the two long axes. One view alone stands for both: V = π/4 · L/20 · Σ a_i²;
- area and length (Dodge et al., American Heart Journal 1960): V = 8 A B / (3 π L), A and B the areas of the two views,
  L the shorter axis; of one view V = 8 A² / (3 π L).

End diastole and end systole are the annotated frames that the data name (metadata ``ed_frame`` and ``es_frame``), else
those in which the annotated ventricle is largest and smallest. The prediction is measured in the same two frames. EF is
in percent, 100 (EDV - ESV) / EDV. It needs no spacing where pixels are square; volumes do, and so does the biplane
value.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medvid_core.data.clip import Case
from medvid_core.metrics.base import Floats, Metric, Row, ScoredFrames
from medvid_core.metrics.ventricle import DISCS, discs, left_ventricle
from medvid_core.specs import OutputSpec

QUANTITIES = ("", "edv", "esv")
"""The ejection fraction itself, and the volumes."""
VIEWS = {"2": re.compile(r"(2ch|a2c|ap2|2c)"), "4": re.compile(r"(4ch|a4c|ap4|4c)")}
"""How the apical two- and four-chamber views are called, in lower case, without what joins letters."""

_UNKNOWN, _ED, _ES = -1, 1, 2


def biplane_view(view: str) -> str:
    """Return ``2`` or ``4`` for the apical two- and four-chamber views, empty for any other."""
    plain = re.sub(r"[\W_]", "", view.lower())
    return next((number for number, names in VIEWS.items() if names.fullmatch(plain)), "")


class EjectionFraction(Metric):
    """Absolute error of the EF by summation of discs, in percentage points.

    Columns of a case: the error, ``true`` and ``predicted``, also of ``edv`` and ``esv`` (ml), and with ``biplane/``
    before them of the two views of a study together, in the row of the first of its cases. Over cases: mean absolute
    error, ``bias`` (mean of predicted - true), ``lower`` and ``upper`` limits of agreement (bias ∓ 1.96 SD, n - 1),
    ``rmse``, ``correlation`` (Pearson's), of each of these; ``undefined``: share of the cases with a true EF and none
    predicted, the ventricle being nowhere in one of the frames.
    """

    name = "ejection-fraction"

    def __init__(self, outputs: tuple[OutputSpec, ...]) -> None:
        """Find the class that is the ventricle.

        Raises:
            ConfigError: no class is called so.
        """
        super().__init__(outputs)
        self.number = left_ventricle(self.name, next(output for output in outputs if output.task == "segmentation"))

    def volume_ml(self, one: Floats, other: Floats) -> float:
        """Return the volume from the discs [DISCS+1] of two views in mm; from pixels it has no unit."""
        length = max(one[DISCS], other[DISCS])
        return float(math.pi / 4 * length / DISCS * (one[:DISCS] @ other[:DISCS])) / 1000

    def per_frame(self, frames: ScoredFrames) -> Mapping[str, Tensor]:
        """Return the discs of annotation and prediction [T,2,DISCS+1], the phase [T], and whether in mm [T]."""
        phases = _phases(frames)
        spacing, valid = frames.spacing or (1.0, 1.0), frames.valid
        masks = torch.stack([frames.mask == self.number, (frames.predicted == self.number) & valid], 1).numpy()
        measured = np.full((*masks.shape[:2], DISCS + 1), math.nan)
        for number in np.flatnonzero(phases):
            measured[number] = [discs(mask, spacing) for mask in masks[number]]
        in_mm = torch.full((len(masks),), float(frames.spacing is not None))
        return {
            f"{self.name}/discs": torch.from_numpy(measured),
            f"{self.name}/phase": torch.from_numpy(phases),
            f"{self.name}/mm": in_mm,
        }

    def per_case(self, values: Mapping[str, Floats]) -> Mapping[str, float | Floats]:
        """Return the columns of a case; ``discs`` of end diastole and end systole [2,2,DISCS+1] are for `across`."""
        if not values:
            return {}
        measured, phases = values[f"{self.name}/discs"], values[f"{self.name}/phase"]
        in_mm = bool(values[f"{self.name}/mm"][0])
        chosen = _ends_of_beat(phases, np.array([self.volume_ml(each[0], each[0]) for each in measured]))
        if chosen is None:
            return self._columns("", None, in_mm)
        beat = measured[list(chosen)]
        volumes = np.array([[self.volume_ml(view, view) for view in pair] for pair in beat])
        kept = {f"{self.name}/discs": beat} if in_mm else {}
        return {**self._columns("", volumes, in_mm), **kept}

    def across(self, rows: Sequence[dict[str, Any]], cases: Sequence[Case]) -> None:
        """Add the biplane columns where a study has one case of the two- and one of the four-chamber view."""
        found = dict(self._biplane(rows, cases))
        for number, row in enumerate(rows if found else ()):
            if self.name in row:
                row |= self._columns("biplane", found.get(number), True)

    def _biplane(self, rows: Sequence[dict[str, Any]], cases: Sequence[Case]) -> Iterator[tuple[int, Floats]]:
        """Yield the place of a study's first row with the volumes of both views together."""
        studies: dict[tuple[str, str], list[int]] = {}
        for number, (row, case) in enumerate(zip(rows, cases, strict=True)):
            if case.study_id and biplane_view(case.view) and f"{self.name}/discs" in row:
                studies.setdefault((case.group_id, case.study_id), []).append(number)
        for pair in studies.values():
            if sorted(biplane_view(cases[number].view) for number in pair) == ["2", "4"]:
                one, other = (rows[number][f"{self.name}/discs"] for number in pair)
                both = [
                    [self.volume_ml(one[phase, of], other[phase, of]) for of in range(2)] for phase in range(len(one))
                ]
                yield pair[0], np.array(both)

    def _columns(self, views: str, volumes: Floats | None, in_mm: bool) -> dict[str, float]:
        """Return the columns of a case from its volumes, [end diastole and end systole, true and predicted]."""
        edv, esv = np.full((2, 2), math.nan) if volumes is None else volumes
        ef = 100 * (edv - esv) / edv
        found = {}
        for quantity, (true, predicted) in zip(QUANTITIES, (ef, edv, esv), strict=True):
            if quantity and not in_mm:
                true, predicted = math.nan, math.nan
            column = _joined(self.name, views, quantity)
            found[column] = abs(float(predicted - true))
            found |= {f"{column}/true": float(true), f"{column}/predicted": float(predicted)}
        return found

    def summarise(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the agreement over all cases."""
        found: dict[str, float] = {}
        for views, quantity in itertools.product(("", "biplane"), QUANTITIES):
            column = _joined(self.name, views, quantity)
            pairs = [(row.get(f"{column}/true", math.nan), row.get(f"{column}/predicted", math.nan)) for row in rows]
            if not views or any(f"{column}/true" in row for row in rows):
                found |= agreement(column, np.array(pairs, np.float64).reshape(-1, 2))
        return found


class AreaLengthEjectionFraction(EjectionFraction):
    """The same by area and length."""

    name = "ejection-fraction-area-length"

    def volume_ml(self, one: Floats, other: Floats) -> float:
        """Return the volume from the discs [DISCS+1] of two views in mm; from pixels it has no unit."""
        areas = [each[:DISCS].sum() * each[DISCS] / DISCS for each in (one, other)]
        return float(8 * areas[0] * areas[1] / (3 * math.pi * min(one[DISCS], other[DISCS]))) / 1000


def agreement(column: str, pairs: Floats) -> dict[str, float]:
    """Return how predicted numbers agree with true ones, in pairs [N,2] (true, predicted), NaN where unknown."""
    known = ~np.isnan(pairs[:, 0])
    missed = np.isnan(pairs[known, 1])
    true, predicted = pairs[known][~missed].T
    difference = predicted - true
    several = len(difference) > 1
    bias = float(difference.mean()) if len(difference) else math.nan
    half = 1.96 * float(difference.std(ddof=1)) if several else math.nan
    varies = several and np.ptp(true) > 0 and np.ptp(predicted) > 0
    return {
        column: float(np.abs(difference).mean()) if len(difference) else math.nan,
        f"{column}/bias": bias,
        f"{column}/lower": bias - half,
        f"{column}/upper": bias + half,
        f"{column}/rmse": math.sqrt(float((difference**2).mean())) if len(difference) else math.nan,
        f"{column}/correlation": float(np.corrcoef(true, predicted)[0, 1]) if varies else math.nan,
        f"{column}/undefined": float(missed.mean()) if known.any() else math.nan,
    }


def _joined(*parts: str) -> str:
    """A column's name."""
    return "/".join(part for part in parts if part)


def _phases(frames: ScoredFrames) -> Floats:
    """Which frames are end diastole and end systole, [T]; 0: neither; all unknown unless both are named and drawn."""
    case = frames.case
    named = [_frame(case, key) for key in ("ed_frame", "es_frame")] if case else []
    if case is None or named[0] == named[1] or not all(n is not None and case.is_labelled(n) for n in named):
        return np.full(len(frames.mask), float(_UNKNOWN))
    return np.array([{named[0]: _ED, named[1]: _ES}.get(index, 0) for index in frames.indices], np.float64)


def _frame(case: Case, key: str) -> int | None:
    """The number of a frame in the metadata; None where there is none."""
    text = case.metadata.get(key, "")
    return int(text) if text.isdecimal() else None


def _ends_of_beat(phases: Floats, annotated: Floats) -> tuple[int, int] | None:
    """Places of end diastole and end systole among the frames of a case, by phase, else by volume [T]; None: none."""
    if not (phases == _UNKNOWN).any():
        ed, es = np.flatnonzero(phases == _ED), np.flatnonzero(phases == _ES)
        return (int(ed[0]), int(es[0])) if len(ed) and len(es) else None
    if (~np.isnan(annotated)).sum() < 2:
        return None
    return int(np.nanargmax(annotated)), int(np.nanargmin(annotated))
