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
from medvid_two_stream.preprocess.boxes import Boxes, crop, overlaps
from medvid_two_stream.preprocess.config import GaitConfig
from medvid_two_stream.preprocess.weights import Published

_CHUNK = 8  # frames in memory at once
_AROUND = 0.06  # of its height, beyond the box that followed the person: how far what belongs to her or him may reach
_BULK = 0.25  # of the box: a part that fills as much belongs to the person, though it reaches beyond, to somebody else
_FITS = 0.3  # intersection over union with the box that followed the person: the least of a network's box of her or him
_HOLE = 0.004  # of the box: smaller holes are closed
_FEWEST = 0.5  # of the frames in which the person must be told from the rest


def make_masks(config: GaitConfig, segmenter: Published, work: Work) -> Made:
    """Write the stream ``person_mask``, uint8 [1,size,size] a frame, 255 where the person is for certain.

    Raises:
        DataError: the person is not told from the rest in half of the frames, or (without a network) the camera moves.
    """
    followed = work.details["person"]
    masks = _by_network(segmenter, work, followed) if segmenter.needed else _by_difference(work, followed, config.size)
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
            mask = belonging(scene.foreground(image), boxes[number] * scene.scale)
            yield crop(255 * mask, squares[number] * scene.scale, size)


def belonging(mask: npt.NDArray[np.uint8], box: Boxes) -> npt.NDArray[np.uint8]:
    """Return what of a mask [h,w] lies within reach of a box, small holes closed.

    Of parts that lie mostly beyond, only such as fill much of the box: two people who touch are one part.
    """
    near = _reach(box, mask.shape)
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    inside = np.bincount((labels * near).ravel(), minlength=count)
    every = np.bincount(labels.ravel(), minlength=count)
    kept = (inside > 0.5 * every) | (inside > _BULK * (box[2] - box[0]) * (box[3] - box[1]))
    kept[0] = False
    person = (kept[labels] & (near > 0)).astype(np.uint8)
    holes, numbers, stats, _ = cv2.connectedComponentsWithStats(1 - person, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < _HOLE * (box[2] - box[0]) * (box[3] - box[1])
    return np.where(small[numbers] & (holes > 1), 1, person).astype(np.uint8)


def _reach(box: Boxes, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return a mask [h,w] of what is within reach of a box."""
    reach = _AROUND * (box[3] - box[1])
    left, top = (max(0, int(edge - reach)) for edge in box[:2])
    right, bottom = (max(0, int(np.ceil(edge + reach))) for edge in box[2:])
    near = np.zeros(shape, np.uint8)
    near[top:bottom, left:right] = 1
    return near


def boxes_within(followed: Mapping[str, Any], size: int) -> Boxes:
    """Return the boxes [N,4] that followed the person, in pixels of the squares that were cut out."""
    boxes, squares = np.array(followed["boxes"]), np.array(followed["squares"])
    scale = size / (squares[:, 2:3] - squares[:, :1])
    found: Boxes = (boxes - np.tile(squares[:, :2], 2)) * scale
    return found


def _by_network(segmenter: Published, work: Work, followed: Mapping[str, Any]) -> Iterator[Array]:
    """Yield how sure a network is of the person followed, uint8 [size,size]."""
    network, person = segmenter.network(work.device), segmenter.class_number("person")
    boxes = boxes_within(followed, work.read([0]).shape[1])
    for first in range(0, work.case.frames, _CHUNK):
        images, near = work.read(range(first, min(first + _CHUNK, work.case.frames))), boxes[first : first + _CHUNK]
        video = torch.from_numpy(images).to(work.device).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            if "rcnn" in segmenter.name:
                answers = zip(network(list(video)), near, strict=True)
                masks = [the_one(answer, person, box) for answer, box in answers]
            else:
                masks = list(_classes(network, video, segmenter)[:, person])
        for mask, box in zip(masks, near, strict=True):
            sure = (255 * mask).round().byte().cpu().numpy()
            yield sure * _reach(box, sure.shape)


def _classes(network: nn.Module, video: Tensor, segmenter: Published) -> Tensor:
    """Return the probability of every class, float [T,K,H,W], of frames normalised as the weights were trained."""
    rules = segmenter.entry.transforms()
    mean, std = (video.new_tensor(values).view(3, 1, 1) for values in (rules.mean, rules.std))
    logits: Tensor = network((video - mean) / std)["out"]
    return logits.softmax(1)


def the_one(answer: Mapping[str, Tensor], person: int, box: Boxes) -> Tensor:
    """Return the mask of the person followed, float [H,W]: whose box is most like hers or his; empty where none is.

    Args:
        answer: of a torchvision detector for one frame: ``boxes`` [N,4], ``labels``, ``scores``, ``masks`` [N,1,H,W].
        person: class of people.
        box: of the person followed.
    """
    people = (answer["labels"] == person) & (answer["scores"] >= 0.5)
    masks = answer["masks"][people, 0]
    if not len(masks):
        return answer["masks"].new_zeros(answer["masks"].shape[-2:])
    alike = overlaps(box[None], answer["boxes"][people].double().cpu().numpy())[0]
    best = int(alike.argmax())
    return masks[best] if alike[best] >= _FITS else torch.zeros_like(masks[0])
