"""Tell the person from the rest, in every frame of the prepared video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medvid_core.data.clip import Array
from medvid_core.data.stages import Made, Work
from medvid_core.errors import DataError
from medvid_two_stream.preprocess.background import Scene
from medvid_two_stream.preprocess.boxes import Boxes, crop
from medvid_two_stream.preprocess.config import GaitConfig
from medvid_two_stream.preprocess.weights import Published

_CHUNK = 8  # frames in memory at once
_AROUND = 0.06  # of its height, beyond the box that followed the person: how far what belongs to her or him may reach
_HOLE = 0.004  # of the box: smaller holes are closed
_FEWEST = 0.5  # of the frames in which the person must be told from the rest


def make_masks(config: GaitConfig, segmenter: Published, work: Work) -> Made:
    """Write the stream ``person_mask``, uint8 [1,size,size] a frame, 255 where the person is for certain.

    Raises:
        DataError: the person is not told from the rest in half of the frames, or (without a network) the camera moves.
    """
    followed = work.details["person"]
    masks = _by_network(segmenter, work) if segmenter.needed else _by_difference(work, followed, config.size)
    empty = []

    def noted() -> Iterator[Array]:
        for number, mask in enumerate(masks):
            if not (mask > 127).any():
                empty.append(number)
            yield mask[None]

    work.write("person_mask", "mask", noted())
    if len(empty) > (1 - _FEWEST) * work.case.frames:
        raise DataError(
            f"preprocess.mask={config.mask} does not tell the person from the rest in {len(empty)} of "
            f"{work.case.frames} frames. Take another way to make masks."
        )
    return Made(note=f"no mask in {len(empty)} of {work.case.frames} frames" if empty else "")


def _by_difference(work: Work, followed: Mapping[str, Any], size: int) -> Iterator[Array]:
    """Yield what differs from the empty scene within reach of the box that followed the person."""
    frames = [int(frame) for frame in followed["frames"]]
    squares, boxes = np.array(followed["squares"]), np.array(followed["boxes"])
    height, width = work.read_source([0]).shape[1:3]
    side = float(np.median(squares[:, 2] - squares[:, 0]))
    scene = Scene(work.read_source, work.source.frames, round(max(height, width) * min(1.0, size / side)))
    for first in range(0, len(frames), _CHUNK):
        for number, image in enumerate(scene.small(frames[first : first + _CHUNK]), first):
            mask = _belonging(scene.foreground(image), boxes[number] * scene.scale)
            yield crop(255 * mask, squares[number] * scene.scale, size)


def _belonging(mask: npt.NDArray[np.uint8], box: Boxes) -> npt.NDArray[np.uint8]:
    """Return the parts of a mask [h,w] that lie mostly within reach of a box, small holes closed."""
    reach = _AROUND * (box[3] - box[1])
    left, top = (max(0, int(edge - reach)) for edge in box[:2])
    right, bottom = (int(np.ceil(edge + reach)) for edge in box[2:])
    near = np.zeros_like(mask)
    near[top:bottom, left:right] = 1
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    inside = np.bincount((labels * near).ravel(), minlength=count)
    every = np.bincount(labels.ravel(), minlength=count)
    kept = inside > 0.5 * every
    kept[0] = False
    person = (kept[labels] & (near > 0)).astype(np.uint8)
    holes, numbers, stats, _ = cv2.connectedComponentsWithStats(1 - person, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < _HOLE * (box[2] - box[0]) * (box[3] - box[1])
    return np.where(small[numbers] & (holes > 1), 1, person).astype(np.uint8)


def _by_network(segmenter: Published, work: Work) -> Iterator[Array]:
    """Yield how sure a network is of the person, uint8 [size,size]."""
    network, person = segmenter.network(work.device), segmenter.class_number("person")
    before: Tensor | None = None
    for first in range(0, work.case.frames, _CHUNK):
        images = work.read(range(first, min(first + _CHUNK, work.case.frames)))
        video = torch.from_numpy(images).to(work.device).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            found = _instances(network, video, person) if "rcnn" in segmenter.name else None
            classes = None if found else _classes(network, video, segmenter)[:, person]
        for number in range(len(images)):
            mask = classes[number] if classes is not None else _the_one((found or [])[number], before)
            before = mask if mask.any() else before
            yield (255 * mask).round().byte().cpu().numpy()


def _classes(network: nn.Module, video: Tensor, segmenter: Published) -> Tensor:
    """Return the probability of every class, float [T,K,H,W], of frames normalised as the weights were trained."""
    rules = segmenter.entry.transforms()
    mean, std = (video.new_tensor(values).view(3, 1, 1) for values in (rules.mean, rules.std))
    logits: Tensor = network((video - mean) / std)["out"]
    return logits.softmax(1)


def _instances(network: nn.Module, video: Tensor, person: int) -> list[Tensor]:
    """Return the mask of every person of each frame, float [N,H,W], the surest first."""
    found = []
    for answer in network(list(video)):
        people = (answer["labels"] == person) & (answer["scores"] >= 0.5)
        found.append(answer["masks"][people, 0])
    return found


def _the_one(masks: Tensor, before: Tensor | None) -> Tensor:
    """Return the mask of the person followed: the one most like that of the frame before, else the most central."""
    size = masks.shape[-1]
    if not len(masks):
        return masks.new_zeros(size, size)
    if before is not None:
        shared = torch.minimum(masks, before).sum((1, 2)) / torch.maximum(masks, before).sum((1, 2)).clamp(min=1e-6)
        if shared.max() > 0.2:
            return masks[int(shared.argmax())]
    at = torch.linspace(-1, 1, size, device=masks.device)
    centred = torch.exp(-2 * (at[None, :] ** 2 + 0.25 * at[:, None] ** 2))
    return masks[int((masks * centred).sum((1, 2)).argmax())]
