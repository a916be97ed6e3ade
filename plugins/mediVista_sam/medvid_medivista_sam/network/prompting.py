"""Prompts of a clip: checked, drawn from a target in training, carried from frame to frame."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medvid_core.errors import DataError

Prompt = Mapping[str, Any]
"""``class`` (its value in masks: 1 to K-1, and 1 where K = 1), ``frame`` (index in the clip), and any of ``points``
[N,2] (x and y in pixels of the tensor) with ``labels`` [N] (1 inside, 0 outside), ``box`` [4] (x0, y0, x1, y1) and
``mask`` [H,W] (inside from 0.5)."""

CERTAIN = 10.0
"""Logit of what a mask says for certain, and the limit of those carried on."""


def objects(classes: int) -> range:
    """Values in masks of what can be pointed out: all classes but the background."""
    return range(1, max(2, classes))


def check_prompts(prompts: Sequence[Prompt], classes: int, frames: Collection[int], size: Sequence[int]) -> None:
    """Refuse prompts of one clip that cannot be used.

    Args:
        prompts: of the clip.
        classes: K.
        frames: those that the clip has.
        size: height and width.

    Raises:
        DataError: a class or frame that is not there, something of another shape, nothing pointed out, or two prompts
            for one class in one frame.
    """
    known, taken = objects(classes), set()
    for prompt in prompts:
        what = f"The prompt of class {prompt['class']} on frame {prompt['frame']}"
        mask, points, labels, box = (prompt.get(key) for key in ("mask", "points", "labels", "box"))
        if prompt["class"] not in known:
            raise DataError(f"{what}: no such class. What can be pointed out: {', '.join(map(str, known))}.")
        if prompt["frame"] not in frames:
            raise DataError(f"{what}: no such frame. The clip has {', '.join(map(str, frames))}.")
        if (prompt["class"], prompt["frame"]) in taken:
            raise DataError(f"{what} is there twice. Put both into one.")
        taken.add((prompt["class"], prompt["frame"]))
        if mask is None and points is None and box is None:
            raise DataError(f"{what} points out nothing: it needs points with labels, a box or a mask.")
        if mask is not None and np.shape(mask) != tuple(size):
            raise DataError(f"{what}: its mask is {list(np.shape(mask))}, the frame {list(size)}.")
        if box is not None and np.shape(box) != (4,):
            raise DataError(f"{what}: a box is [x0, y0, x1, y1].")
        if points is not None and (labels is None or len(points) == 0 or np.shape(points) != (*np.shape(labels), 2)):
            raise DataError(f"{what}: points are [N, 2], at least one, with as many labels.")
        if labels is not None and not {int(label) for label in labels} <= {0, 1}:
            raise DataError(f"{what}: a label is 1, inside, or 0, outside.")


def drawn_prompts(mask: Tensor, usable: Tensor, classes: int, rate: float) -> list[list[Prompt]]:
    """Draw prompts of training clips from their targets, with PyTorch's random numbers.

    Args:
        mask: class of each pixel [B,T,H,W].
        usable: [B,T], real and labelled frames.
        classes: K.
        rate: share of clips that get one.

    Returns:
        For each clip nothing, or one prompt: of a class in a frame that shows it, by equal chances a point inside or
        the box around it.
    """
    known = objects(classes)
    shown = torch.stack([(mask == k).flatten(2).any(2) & usable for k in known], 2).cpu()  # [B,T,K']
    drawn: list[list[Prompt]] = []
    for clip, present in enumerate(shown):
        candidates = present.nonzero().tolist()
        if torch.rand(()) >= rate or not candidates:
            drawn.append([])
            continue
        frame, number = candidates[int(torch.randint(len(candidates), ()))]
        inside = (mask[clip, frame] == known[number]).nonzero()  # row, column
        prompt: dict[str, Any] = {"class": known[number], "frame": frame}
        if torch.rand(()) < 0.5:
            pixel = inside[int(torch.randint(len(inside), ()))]
            prompt |= {"points": pixel.flip(0)[None].float(), "labels": torch.ones(1, dtype=torch.long)}
        else:
            prompt["box"] = _box(inside)
        drawn.append([prompt])
    return drawn


def carried_order(prompted: Sequence[int], frames: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Frames without a prompt, each with the neighbour its prompt is carried from.

    Outwards from the prompted frames, so that the neighbour always comes first; towards the nearest prompted frame, the
    earlier of two.

    Args:
        prompted: frames with a prompt, at least one.
        frames: real frames, rising.
    """
    places = {frame: place for place, frame in enumerate(sorted({*prompted, *frames}))}
    order = sorted(places, key=places.__getitem__)

    def nearest(frame: int) -> int:
        return min(sorted(prompted), key=lambda other: abs(places[other] - places[frame]))

    for frame in sorted(set(places) - set(prompted), key=lambda frame: abs(places[nearest(frame)] - places[frame])):
        yield frame, order[places[frame] + (1 if nearest(frame) > frame else -1)]


def log_odds(logits: Tensor, channel: int) -> Tensor:
    """Logits [K,H,W] of all classes -> those of one against all others [H,W]."""
    if len(logits) == 1:
        return logits[0]
    others = [index for index in range(len(logits)) if index != channel]
    return logits[channel] - logits[others].logsumexp(0)


def carried_prompt(odds: Tensor) -> Prompt:
    """Prompt of the next frame from the log odds [H,W] in this one: their map, and the box of where they are positive.

    The map is held within certainty. Where nothing is positive there is no box.
    """
    inside = (odds > 0).nonzero()
    return {"odds": odds.clamp(-CERTAIN, CERTAIN), "box": _box(inside) if len(inside) else None}


def mask_odds(prompt: Prompt, size: tuple[int, int], device: torch.device) -> Tensor | None:
    """Return the map of a prompt as SAM takes it, logits [1,1,*size]; None where the prompt has no mask."""
    odds = prompt.get("odds")
    if prompt.get("mask") is not None:
        odds = (torch.as_tensor(prompt["mask"], device=device).float() >= 0.5).float().mul(2).sub(1) * CERTAIN
    if odds is None:
        return None
    return F.interpolate(odds[None, None].float(), size, mode="bilinear", align_corners=False, antialias=True)


def _box(inside: Tensor) -> Tensor:
    """Box [4] around pixels [N,2] (row, column)."""
    low, high = inside.amin(0), inside.amax(0)
    return torch.stack([low[1], low[0], high[1], high[0]]).float()
