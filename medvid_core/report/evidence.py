"""What was predicted for each case beside masks, read back from the tables of a run."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medvid_core.engine.finished import read_pixels, read_scored
from medvid_core.engine.scoring import CaseRow, merit
from medvid_core.errors import DataError
from medvid_core.metrics.base import ScoredCase
from medvid_core.metrics.frames import Integers
from medvid_core.report.rundata import RunData
from medvid_core.specs import OutputSpec


@dataclass(frozen=True)
class Evidence:
    """The cases of a run as their predictions stand in its tables.

    Attributes:
        cases: what was predicted and is known; empty where masks alone are predicted.
        merits: case id → how well the case went, larger is better; NaN where nothing is known.
        problem: why ``cases`` is empty though it should not be.
        pixels: how many pixels of each true class of the masks were called which, [K,K]; None where nothing is known.
    """

    cases: Sequence[ScoredCase] = ()
    merits: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    pixels: Integers | None = None


def read_evidence(run: RunData) -> Evidence:
    """Read ``cases.csv``, ``frames.csv`` and ``pixels.csv`` of a run; damage is a `problem`, never an error."""
    try:
        pixels = _read_pixels(run)
        if not run.others or not run.rows:
            return Evidence(pixels=pixels)
        cases = [case for case in read_scored(run.directory, run.others) if _complete(case, run.others)]
        return Evidence(cases, {case.case_id: _merit(run, case) for case in cases}, pixels=pixels)
    except (DataError, KeyError, IndexError, TypeError, ValueError, csv.Error) as error:
        return Evidence(problem=str(error) or type(error).__name__)


def _read_pixels(run: RunData) -> Integers | None:
    masks = next((output for output in run.outputs if output.task == "segmentation"), None)
    if masks is None or not (run.directory / "pixels.csv").is_file():
        return None
    found = list(read_pixels(run.directory, masks).values())
    return np.sum(found, axis=0) if found else None


def _complete(case: ScoredCase, outputs: Sequence[OutputSpec]) -> bool:
    """Whether a case has frames wherever its outputs have."""
    return all(case.predicted[output.name].size for output in outputs)


def _merit(run: RunData, case: ScoredCase) -> float:
    row = CaseRow()
    row.scored = case
    return merit(row, "", True, run.others) if not run.has_masks else math.nan
