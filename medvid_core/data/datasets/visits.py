"""Patients' visits as histories: what was seen and measured so far, and a number to be foreseen at the next visit."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvid_core.data.clip import Case
from medvid_core.data.readers.joined import join
from medvid_core.errors import DataError
from medvid_core.specs import OutputSpec

_DAY_S = 86_400.0
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


@dataclass(frozen=True)
class Visit:
    """One visit of a patient.

    Attributes:
        time_s: when, in seconds from any start.
        clips: what was recorded, in the order of the table.
        value: the number that was measured; None where unknown.
    """

    time_s: float
    clips: tuple[Case, ...]
    value: float | None


def next_output(number: str) -> OutputSpec:
    """Return what is foreseen: the number at the next visit."""
    return OutputSpec(name=f"next_{number}", task="regression", classes=(f"next_{number}",))


def histories(clips: Sequence[Case], number: str, table: Path) -> tuple[list[Case], dict[str, str]]:
    """Return a case for every visit but a patient's first, and what was left out, with the reason.

    Such a case, ``<group_id>/visit-<k>``, holds the frames of all visits before the k-th, one after the other, the
    numbers measured at them, and as its target the number of the k-th.

    Args:
        clips: what was recorded, with ``visit_time``; the number is a target where it is known.
        number: its name.
        table: where they are listed, for error texts.

    Raises:
        DataError: no clip has a visit time, one cannot be read, or a visit has two numbers.
    """
    if not any(clip.visit_time for clip in clips):
        raise DataError(
            f"{table}: no row has a visit_time, without which dataset.progression={number} knows of no next visit. "
            "Fill the column visit_time with dates (2021-03-04) or numbers of days."
        )
    dated = [bool(_NUMBER.fullmatch(clip.visit_time)) for clip in clips if clip.visit_time]
    if any(dated) and not all(dated):
        raise DataError(f"{table}: some visit_time are dates and some are numbers of days. Write all of them alike.")
    cases: list[Case] = []
    skipped = {clip.case_id: "it has no visit_time" for clip in clips if not clip.visit_time}
    for group in dict.fromkeys(clip.group_id for clip in clips if clip.visit_time):
        visits = _visits([clip for clip in clips if clip.group_id == group and clip.visit_time], number, table)
        if len(visits) == 1:
            skipped[group] = "the patient (group_id) has one visit, and no next one"
        for count, following in enumerate(visits[1:], 1):
            name = f"{group}/visit-{count + 1}"
            if following.value is None:
                skipped[name] = f"the visit has no {number} to foresee"
            elif all(visit.value is None for visit in visits[:count]):
                skipped[name] = f"no {number} is known of any visit before it"
            else:
                cases.append(_history(name, visits[:count], following.time_s, following.value, number))
    return cases, skipped


def _visits(clips: Sequence[Case], number: str, table: Path) -> list[Visit]:
    """Return the visits of a patient, the oldest first; clips of one time are of one visit."""
    by_time: dict[float, list[Case]] = {}
    for clip in clips:
        by_time.setdefault(_seconds(clip.visit_time, table), []).append(clip)
    found = []
    for time_s, mine in sorted(by_time.items()):
        values = {value for clip in mine if isinstance(value := clip.targets.get(number), float)}
        if len(values) > 1:
            raise DataError(
                f"{table}: the clips of patient {mine[0].group_id!r} at visit_time {mine[0].visit_time!r} differ in "
                f"{number}: {' and '.join(f'{value:g}' for value in sorted(values))}. A visit has one."
            )
        found.append(Visit(time_s, tuple(mine), values.pop() if values else None))
    return found


def _seconds(text: str, table: Path) -> float:
    """Read a date, with or without time of day, or a number of days."""
    if _NUMBER.fullmatch(text):
        return float(text) * _DAY_S
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise DataError(
            f"{table}: the visit_time {text!r} is neither a date such as 2021-03-04 nor a number of days."
        ) from error
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()


def _history(name: str, past: Sequence[Visit], next_s: float, next_value: float, number: str) -> Case:
    """Return the visits so far as one case, whose target is the number at the next."""
    clips = [clip for visit in past for clip in visit.clips]
    last, start, foreseen = clips[-1], past[0].time_s, next_output(number).name
    known = tuple((visit.time_s - start, visit.value) for visit in past if visit.value is not None)
    rates, views = {clip.fps for clip in clips}, {clip.view for clip in clips}
    return Case(
        case_id=name,
        group_id=last.group_id,
        frames=sum(clip.frames for clip in clips),
        streams={"video": join([clip.streams["video"] for clip in clips], [clip.frames for clip in clips])},
        split=last.split,
        stratum=last.stratum,
        fps=last.fps if len(rates) == 1 else None,
        view=last.view if len(views) == 1 else "",
        visit_time=f"{next_s - start:.0f}",
        targets={foreseen: next_value},
        times_s=tuple(time_s for visit in past for time_s in _frame_times(visit, visit.time_s - start)),
        history={foreseen: known},
        metadata={"visits": str(len(past)), **last.metadata},
    )


def _frame_times(visit: Visit, start_s: float) -> Iterator[float]:
    """Yield when each frame of a visit was taken, its clips one after the other; all at once where nobody knows."""
    for clip in visit.clips:
        if clip.times_s:
            times = np.asarray(clip.times_s, np.float64) - clip.times_s[0]
            step = float(times[-1]) / max(1, clip.frames - 1)
        else:
            step = 1 / clip.fps if clip.fps else 0.0
            times = step * np.arange(clip.frames, dtype=np.float64)
        yield from (start_s + times).tolist()
        start_s += float(times[-1]) + step
