"""Read windows of neighbouring frames: each frame of the video once, though many windows hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medvid_core.config import ClipConfig
from medvid_core.data.clip import Case, Sample
from medvid_core.data.loader import load_sample
from medvid_core.data.preprocess import LOADED_STREAMS, Step
from medvid_core.data.sampling import window
from medvid_core.specs import ClipSpec

_OF_FRAMES = ("video", "frame_real", "mask", "mask_labelled", "frame_index", "time_s")
"""Entries of a sample whose first axis is time, beside those of ``frame_targets``."""


def slides(clip: ClipConfig, spec: ClipSpec, steps: Sequence[Step]) -> bool:
    """Whether windows are of neighbouring frames and hold the video alone: other streams depend on the window."""
    return clip.blend == "centre" and not steps and all(name in LOADED_STREAMS for name in spec.streams)


class Sliding:
    """The windows of a case from its first frame on, each beginning a frame after the one before; without annotation.

    Args:
        case: the video.
        clip: length, stride and size of a window.
        spec: channels and normalisation.
    """

    def __init__(self, case: Case, clip: ClipConfig, spec: ClipSpec) -> None:
        self.case, self.clip, self.spec = case, clip, spec
        self.held: Sample | None = None  # what the next window shares with those that were read
        self.length = clip.stride * (clip.frames - 1) + 1

    def read(self, starts: Sequence[int]) -> list[Sample]:
        """Return the windows with these first frames, one after the other, following those that were read last.

        Raises:
            DataError: a frame cannot be read.
        """
        known = 0 if self.held is None else self.length - 1
        wanted = replace(self.clip, frames=self.length + len(starts) - 1 - known, stride=1)
        indices, real = window(starts[0] + known, self.case.frames, wanted)
        new = load_sample(self.case, indices, real, self.clip, self.spec, masks=False)
        whole = new if self.held is None else _joined(self.held, new)
        self.held = _cut(whole, slice(len(starts), None))
        return [_cut(whole, slice(i, i + self.length, self.clip.stride)) for i in range(len(starts))]


def _cut(sample: Sample, part: slice) -> Sample:
    """Some frames of a sample."""
    return {key: _cut_value(key, value, part) for key, value in sample.items()}


def _cut_value(key: str, value: Any, part: slice) -> Any:
    if key.startswith("frame_targets"):
        return {name: values[part] for name, values in value.items()}
    return value[part] if key in _OF_FRAMES else value


def _joined(first: Sample, second: Sample) -> Sample:
    """The frames of one sample, then those of another."""
    joined = {**first, **{key: torch.cat([first[key], second[key]]) for key in _OF_FRAMES}}
    for key in ("frame_targets", "frame_targets_present"):
        values: dict[str, Tensor] = first[key]
        joined[key] = {name: torch.cat([value, second[key][name]]) for name, value in values.items()}
    return joined
