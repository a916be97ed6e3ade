"""The original's own way to find and cut out the patient (Walk_Video_PyTorch, ``prepare_video``), to the bit.

The preprocessor `gait` does not use it: it drops frames (time jumps), and cuts each out by itself (trembling).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

_REACH = 100.0  # pixels sideways that a single box may be from the last accepted one
_BIAS = 10  # pixels kept on either side


def chosen_boxes(detections: Mapping[int, Sequence[Sequence[float]]], frames: int) -> tuple[list[int], Tensor]:
    """Choose the patient's box in every frame; frames without one are dropped.

    Of two boxes the shorter one is the patient (the doctor is taken to be taller), or the one nearer to where the
    patient was; a single box counts if it is within 100 pixels of there. With no box, or more than two, the frame is
    dropped.

    Args:
        detections: boxes (x1, y1, x2, y2) of each frame.
        frames: how many.

    Returns:
        The frames that are kept, and their boxes, float [N,4].
    """
    last: float | None = None
    kept, boxes = [], []
    for frame in range(frames):
        found = [[float(edge) for edge in box] for box in detections.get(frame, ())]
        box = None
        if len(found) == 2:
            box = min(found, key=lambda b: b[3] - b[1] if last is None else abs((b[0] + b[2]) / 2 - last))
        elif len(found) == 1 and (last is None or abs((found[0][0] + found[0][2]) / 2 - last) < _REACH):
            box = found[0]
        if box is not None:
            last = (box[0] + box[2]) / 2
            kept.append(frame)
            boxes.append(box)
    return kept, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def crop_padded(video: Tensor, boxes: Tensor, size: int, antialias: bool) -> Tensor:
    """Cut out a person with 10 pixels on either side, made square with black (``clip_pad_with_bbox``).

    Args:
        video: uint8 [T,C,H,W].
        boxes: [T,4], x1, y1, x2, y2; cut down to whole numbers.
        size: side of the result.
        antialias: whether making smaller is antialiased; torchvision did not before version 0.17.

    Returns:
        uint8 [T,C,size,size].
    """
    found = []
    for image, box in zip(video, boxes, strict=True):
        x1, y1, x2, y2 = (int(edge) for edge in box)
        gap = int(((y2 - y1) - (x2 - x1)) / 2)
        cut = VF.crop(image, y1, x1 - _BIAS, y2 - y1, x2 - x1 + 2 * _BIAS)
        found.append(_resized(VF.pad(cut, [gap - _BIAS, 0, gap - _BIAS, 0]), size, antialias))
    return torch.stack(found)


def crop_square(video: Tensor, boxes: Tensor, size: int, antialias: bool) -> Tensor:
    """Cut out a person as a square of the box's height with the scene (``clip_with_bbox``); see `crop_padded`."""
    found = []
    for image, box in zip(video, boxes, strict=True):
        x1, y1, x2, y2 = (int(edge) for edge in box)
        gap = int(((y2 - y1) - (x2 - x1)) / 2)
        found.append(_resized(VF.crop(image, y1, x1 - gap, y2 - y1, y2 - y1), size, antialias))
    return torch.stack(found)


def _resized(image: Tensor, size: int, antialias: bool) -> Tensor:
    """Resize in floating point, then round: torchvision's own way for whole numbers differs by a grey level."""
    resized: Tensor = VF.resize(image.float(), [size, size], antialias=antialias)
    return resized.round().byte()
