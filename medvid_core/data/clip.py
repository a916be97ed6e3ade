"""The data contract: what an index holds (`Index`, `Case`, `Source`) and what the loader makes of it (a sample).

A **sample** is a dict; a batch adds a leading axis B to every tensor:

| key | value |
| --- | --- |
| ``video`` | float [T,C,H,W], normalised as the model's ``ClipSpec`` says |
| ``frame_real`` | bool [T]; false where a window overhangs the video and repeats its nearest frame |
| ``mask`` | long [T,H,W], class of each pixel; 255 = unlabelled |
| ``mask_labelled`` | bool [T]; false where a frame carries no annotation |
| ``targets`` | dict of name → float or long tensor: of the whole clip |
| ``targets_present`` | dict of name → bool tensor |
| ``frame_targets`` | dict of name → float tensor [T]: of each frame, 0 where unknown |
| ``frame_targets_present`` | dict of name → bool tensor [T]; false where unknown, or the frame is not real |
| ``affine`` | float [3,3], source pixel coordinates (x, y, 1) → tensor pixels: crop and resizing, no augmentation |
| ``source_size`` | long [2], height and width of the source in pixels |
| ``frame_index`` | long [T], index of each frame in the source (of prepared videos: in the video as it was recorded) |
| ``case_id``, ``group_id`` | str |
| ``fps`` | float, NaN where unknown |
| ``time_s`` | float64 [T], when each frame was taken, in seconds from any start; NaN where unknown |
| ``spacing`` | float [2], mm per source pixel (row, column), NaN where unknown |
| other streams | float, by `Source.kind`: image [T,3,H,W], mask [T,1,H,W], both from 0 to 1; vector [T,2,H,W] |

A vector is dx and dy from frame t to t+1 of the clip, in pixels of the tensor; it is 0 where the clip holds no next
frame: in its last frame, and where a frame is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from medvid_core.specs import OutputSpec

UNLABELLED = 255
"""Mask value of a pixel nobody annotated; losses and metrics leave it out."""

Array = npt.NDArray[Any]
Sample = dict[str, Any]
Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the frames of one stream are.

    Attributes:
        reader: ``frames`` (one file a frame), ``video``, ``dicom``, ``nifti`` (one file), or ``"module:attribute"`` of
            a function ``(source, frame_indices) -> array`` [T,H,W] or [T,H,W,3], uint8.
        paths: the files; empty for generated data. For ``frames``, ``""`` marks a frame without a file.
        values: for masks, the raw pixel value of each class, in class order; anything else but ``ignore`` is an error.
        nonzero: for masks, every non-zero raw value means class 1.
        ignore: for masks, the raw pixel value that means unlabelled; -1 for none.
        options: hashable extra for the reader.
        kind: how changes of the picture act on a stream beside ``video`` and ``mask``: ``image``, ``mask`` (how much of
            the pixel something covers; never photometric changes), ``vector`` (flow, in pixels: mirroring negates dx,
            resizing scales). A reader of vectors gives float32 [T,2,H,W], of others uint8 as above.
    """

    reader: str
    paths: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    nonzero: bool = False
    ignore: int = -1
    options: Any = None
    kind: str = "image"


Target = float | int | tuple[float, ...]

Reader = Callable[[Source, Sequence[int]], Array]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One video with what is known of it: a row of a data set's index.

    Attributes:
        case_id: unique within the data set.
        group_id: the patient; cases of one group never straddle a split.
        frames: number of frames.
        streams: stream name (``video``, ``mask``, …) → source.
        labelled: indices of the frames that carry a mask; None for all.
        split: ``train``, ``val`` or ``test`` where the data set fixes it.
        fps: frames per second; None where unknown.
        spacing: mm per pixel (row, column); None where unknown.
        targets: name → value, e.g. ``{"ejection_fraction": 57.2}``; a class or grade is its index, several labels or
            numbers are a tuple.
        frame_targets: name → the value of every frame, NaN where unknown; a class is its index, an anomaly 0 or 1.
        times_s: when each frame was taken, in seconds, where frames are not evenly spaced.
        history: name of a target → (time in seconds, value) of earlier visits, oldest first, on the clock of
            ``times_s``; the target itself is then that of ``visit_time`` on the same clock.
        source_frames: of a prepared video, the frame of the recorded one that each frame shows; empty: the same.
    """

    case_id: str
    group_id: str
    frames: int
    streams: Mapping[str, Source]
    labelled: tuple[int, ...] | None = None
    split: str | None = None
    study_id: str = ""
    stratum: str = ""
    fps: float | None = None
    spacing: tuple[float, float] | None = None
    view: str = ""
    visit_time: str = ""
    targets: Mapping[str, Target] = field(default_factory=dict)
    frame_targets: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    times_s: tuple[float, ...] = ()
    history: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    source_frames: tuple[int, ...] = ()

    def is_labelled(self, frame: int) -> bool:
        """Whether this frame carries a mask."""
        return "mask" in self.streams and (self.labelled is None or frame in self.labelled)

    def knows(self, output: OutputSpec) -> bool:
        """Whether anything is known that this output can be trained on or compared with."""
        if output.task == "segmentation":
            return "mask" in self.streams and self.labelled != ()
        return output.name in self.targets or any(value == value for value in self.frame_targets.get(output.name, ()))

    def taken(self, frames: Sequence[int], times_s: Sequence[float], streams: Mapping[str, Source]) -> Case:
        """Return the case as a video of some of its frames.

        Args:
            frames: which, in order.
            times_s: when each of these was taken, in seconds; of no account where neither rate nor times are known.
            streams: those of the new video; what else this case has does not fit it any more.
        """
        timed = self.fps is not None or bool(self.times_s)
        duration = times_s[-1] - times_s[0] if timed else 0.0
        return replace(
            self,
            frames=len(frames),
            streams=streams,
            labelled=None if self.labelled is None else tuple(k for k, f in enumerate(frames) if f in self.labelled),
            fps=round((len(frames) - 1) / duration, 6) if duration > 0 else self.fps,
            spacing=None,  # cut out and resized frame by frame, a pixel has no one size
            times_s=tuple(times_s) if timed else (),
            frame_targets={name: tuple(values[f] for f in frames) for name, values in self.frame_targets.items()},
            source_frames=tuple(self.source_frames[f] if self.source_frames else f for f in frames),
        )

    def only(self, outputs: Sequence[OutputSpec]) -> Case:
        """Return the case with what these outputs need: no masks are read for the sake of a class."""
        if any(output.task == "segmentation" for output in outputs):
            return self
        streams = {name: source for name, source in self.streams.items() if name != "mask"}
        return replace(self, streams=streams, labelled=None)


@dataclass(frozen=True, kw_only=True)
class Index:
    """All cases of a data set and what there is to predict.

    Attributes:
        cases: every usable case.
        outputs: what a model trained on this data predicts.
        skipped: cases left out, with the reason: shown in the run header.
    """

    cases: tuple[Case, ...]
    outputs: tuple[OutputSpec, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
