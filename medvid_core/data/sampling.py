"""Which clips an epoch sees, and in what order: pure functions of (seed, epoch, position).

So the order is the same for any number of workers and processes, and a resumed run needs only its step number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medvid_core.config import ClipConfig
from medvid_core.data.clip import Case
from medvid_core.errors import DataError
from medvid_core.specs import OutputSpec

IntArray = npt.NDArray[np.int64]

_NUMEROSITY = 1
"""Spawn key of the numbers that choose the clips of an epoch."""


@dataclass(frozen=True)
class ClipItem:
    """One clip of an epoch: a case and the first frame, which may lie before the video; None: drawn at random."""

    case: int
    start: int | None


@dataclass(frozen=True)
class ClipKey:
    """What a loading worker needs to make one training sample."""

    epoch: int
    position: int
    item: int


def window(start: int, frames: int, clip: ClipConfig) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Return source frame indices [T] and which are real [T]; those outside the video repeat its nearest frame."""
    wanted = start + clip.stride * np.arange(clip.frames)
    return wanted.clip(0, frames - 1), (wanted >= 0) & (wanted < frames)


def last_start(frames: int, clip: ClipConfig) -> int:
    """Return the last first frame for which the window ends inside the video; 0 if the video is too short.

    Where short videos are filled up with zeros, they end after ``frames * stride`` frames, as in EchoNet-Dynamic:
    so their clips start at every phase of the stride.
    """
    end = max(frames, clip.frames * clip.stride) if clip.padding == "zero" else frames
    return max(0, min(frames - 1, end - 1 - clip.stride * (clip.frames - 1)))


def random_start(case: Case, clip: ClipConfig, rng: np.random.Generator) -> int:
    """Draw a first frame whose window holds at least one labelled frame, if the case has masks."""
    last = last_start(case.frames, clip)
    if "mask" not in case.streams or not case.labelled:  # all frames labelled, or none (but the clip has targets)
        return int(rng.integers(last + 1))
    offsets = clip.stride * np.arange(clip.frames)
    starts = (np.array(case.labelled)[:, None] - offsets[None, :]).ravel()
    starts = np.unique(starts[(starts >= 0) & (starts <= last)])
    if not len(starts):  # a short video, or a labelled frame near its end that only an overhanging window holds
        return int(rng.choice(np.array(case.labelled)))
    return int(rng.choice(starts))


def covering_starts(frames: int, clip: ClipConfig, overlap: int = 0) -> list[int]:
    """Return the first frames, rising, of windows that together hold every frame of a video.

    Args:
        frames: length of the video.
        clip: clip length and stride; a stride visits every phase in turn.
        overlap: frames that neighbouring windows share.
    """
    starts = set()
    for phase in range(min(clip.stride, frames)):
        last = max(0, len(range(phase, frames, clip.stride)) - clip.frames)
        starts |= {phase + clip.stride * start for start in (*range(0, last, clip.frames - overlap), last)}
    return sorted(starts)


def centred_starts(frames: int, clip: ClipConfig) -> list[int]:
    """Return the first frames, rising, of one window for each frame of a video, with that frame in the middle.

    The middle is number (T - 1) // 2 counted from zero. Windows of the first and last frames reach beyond the video;
    `window` says what fills them.
    """
    before = clip.stride * ((clip.frames - 1) // 2)
    return list(range(-before, frames - before))


def training_items(cases: Sequence[Case], clip: ClipConfig, outputs: Sequence[OutputSpec]) -> list[ClipItem]:
    """List the clips of one epoch as ``clip.sampling`` says, of the cases that know anything of the outputs.

    Raises:
        DataError: no clip results.
    """
    items: list[ClipItem] = []
    for number, case in enumerate(cases):
        if not any(case.knows(output) for output in outputs):
            continue
        last = last_start(case.frames, clip)
        if clip.sampling == "random":
            starts: list[int | None] = [None] * clip.per_case
        elif clip.sampling == "equispaced":
            starts = [int(start) for start in np.linspace(0, last, clip.per_case)]
        elif clip.sampling == "dense":
            centred = enumerate(centred_starts(case.frames, clip))
            starts = [start for frame, start in centred if _supervised(case, frame)]
        else:
            starts = [*covering_starts(case.frames, clip)]
        items += [ClipItem(number, start) for start in starts if start is None or _holds_label(case, start, clip)]
    if not items:
        raise DataError(
            f"No training clip can be cut from the {len(cases)} training cases: nothing is known of what shall "
            "be predicted."
        )
    return items


def _supervised(case: Case, frame: int) -> bool:
    return "mask" not in case.streams or case.is_labelled(frame)


def _holds_label(case: Case, start: int, clip: ClipConfig) -> bool:
    indices, real = window(start, case.frames, clip)
    return any(_supervised(case, int(frame)) for frame in indices[real])


@dataclass(frozen=True)
class Numerosity:
    """Which clips an epoch takes where those of a patient are limited (``clip.max_numerosity``).

    Attributes:
        patients: the item numbers of each patient, over all of the patient's cases, in their order.
        most: clips of a patient that an epoch takes at most.
        drawn: anew in every epoch; else they are equispaced, and the same throughout.
    """

    patients: tuple[tuple[int, ...], ...]
    most: int
    drawn: bool

    def __len__(self) -> int:
        """Clips of an epoch."""
        return sum(min(self.most, len(items)) for items in self.patients)

    def items(self, seed: int, epoch: int) -> IntArray:
        """Return the item numbers of an epoch, patient by patient: a pure function of seed and epoch.

        Equispaced are the clips ``floor(linspace(0, n - 1, most))`` of n, as in the ovarian fork of Vivim. Drawn are
        any of them (there, never the first).
        """
        # a key apart from those of the order and of samples, so that neither follows from the other
        rng = np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(_NUMEROSITY,)))
        chosen = []
        for items in self.patients:
            count = min(self.most, len(items))
            if self.drawn:
                places = np.sort(rng.choice(len(items), count, replace=False))
            else:
                places = np.linspace(0, len(items) - 1, count).astype(np.int64)
            chosen.append(np.array(items, np.int64)[places])
        return np.concatenate(chosen)


def limited(items: Sequence[ClipItem], cases: Sequence[Case], clip: ClipConfig) -> Numerosity:
    """Return what ``clip.max_numerosity`` leaves of the clips of an epoch.

    Args:
        items: all clips, from `training_items`.
        cases: what they are of; the patient is the ``group_id``.
        clip: the limit, and how it chooses.
    """
    patients: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        patients.setdefault(cases[item.case].group_id, []).append(number)
    return Numerosity(tuple(map(tuple, patients.values())), clip.max_numerosity, clip.numerosity == "random")


def steps_per_epoch(items: int, batch_size: int) -> int:
    """Return the number of optimiser steps in an epoch; the last batch is filled from the epoch's beginning."""
    return -(-items // batch_size)


def epoch_order(seed: int, epoch: int, items: int, batch_size: int) -> IntArray:
    """Return item numbers [steps, batch_size]: every item at least once."""
    order = np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(items)
    return np.resize(order, (steps_per_epoch(items, batch_size), batch_size))


def sample_rng(seed: int, key: ClipKey) -> np.random.Generator:
    """Return the generator that draws everything random in one training sample."""
    return np.random.default_rng(np.random.SeedSequence([seed, key.epoch, key.position]))


@dataclass(frozen=True)
class RankBatches:
    """The micro-batches one process loads, from a given step on to the end of training.

    Each optimiser step's batch is cut into equal shares for the processes, and each share into ``accumulate``
    micro-batches.

    Attributes:
        seed: of the order.
        items: clips of an epoch.
        batch_size: clips of an optimiser step, over all processes.
        accumulate: micro-batches of a process's share.
        rank: which process.
        processes: how many.
        first_step: where to begin.
        last_step: where to end.
        numerosity: which clips an epoch takes; None: all, in number ``items``.
    """

    seed: int
    items: int
    batch_size: int
    accumulate: int
    rank: int
    processes: int
    first_step: int
    last_step: int
    numerosity: Numerosity | None = None

    def __post_init__(self) -> None:
        parts = self.processes * self.accumulate
        if self.batch_size % parts:
            raise DataError(
                f"train.batch_size={self.batch_size} cannot be divided among {self.processes} processes with "
                f"train.accumulate={self.accumulate}: it must be a multiple of {parts}."
            )

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[ClipKey]]:
        steps = steps_per_epoch(self.items, self.batch_size)
        micro = self.batch_size // (self.processes * self.accumulate)
        for step in range(self.first_step, self.last_step):
            epoch, row = divmod(step, steps)
            numbers = epoch_order(self.seed, epoch, self.items, self.batch_size)[row]
            if self.numerosity is not None:
                numbers = self.numerosity.items(self.seed, epoch)[numbers]
            keys = [
                ClipKey(epoch, row * self.batch_size + column, int(number)) for column, number in enumerate(numbers)
            ]
            share = keys[self.rank * micro * self.accumulate : (self.rank + 1) * micro * self.accumulate]
            for first in range(0, len(share), micro):
                yield share[first : first + micro]
