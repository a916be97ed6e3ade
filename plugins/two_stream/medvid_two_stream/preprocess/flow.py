"""Optical flow between neighbouring frames of the prepared video."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.data.clip import Array
from medvid_core.data.stages import Made, Work
from medvid_two_stream.preprocess.config import FLOW_METHODS, GaitConfig
from medvid_two_stream.preprocess.weights import Published

UPDATES = 12
"""How often RAFT refines its answer (Teed & Deng, ECCV 2020)."""

_SMALLEST, _MULTIPLE = 128, 8  # the pictures RAFT takes
_CHUNK = 8  # pairs computed together


def make_flow(config: GaitConfig, published: Published, work: Work) -> Made:
    """Write the stream ``flow``, float [2,size,size] a frame: dx and dy to the next frame, in pixels; 0 for the last.

    Raises:
        DataError: a vector is too long to be stored.
    """
    if published.needed:
        vectors = _by_network(published.network(work.device), work)
    else:
        vectors = _by_opencv(_METHODS[config.flow](), work)
    work.write("flow", "vector", vectors)
    return Made()


def raft_flow(network: nn.Module, video: Tensor) -> Tensor:
    """Return the flow from each frame to the next, float [T-1,2,H,W] in pixels, dx and dy.

    RAFT wants height and width in multiples of 8, 128 at least; others are resized and the vectors scaled back.

    Args:
        network: torchvision's ``raft_large`` or ``raft_small``.
        video: float [T,3,H,W] from 0 to 1.
    """
    size = (video.shape[-2], video.shape[-1])
    fitting = tuple(max(_SMALLEST, -(-side // _MULTIPLE) * _MULTIPLE) for side in size)
    pictures = 2 * video - 1
    if fitting != size:
        pictures = F.interpolate(pictures, size=fitting, mode="bilinear", align_corners=False)
    with torch.inference_mode():
        flow: Tensor = network(pictures[:-1], pictures[1:], num_flow_updates=UPDATES)[-1]
    if fitting != size:
        scale = flow.new_tensor([size[1] / fitting[1], size[0] / fitting[0]]).view(2, 1, 1)
        flow = F.interpolate(flow, size=size, mode="bilinear", align_corners=False, antialias=True) * scale
    return flow


def _by_network(network: nn.Module, work: Work) -> Iterator[Array]:
    for first in range(0, work.case.frames - 1, _CHUNK):
        images = work.read(range(first, min(first + _CHUNK + 1, work.case.frames)))
        video = torch.from_numpy(images).to(work.device).permute(0, 3, 1, 2).float() / 255
        yield from raft_flow(network, video).float().cpu().numpy()
    yield _zero(work)


def _by_opencv(method: Callable[[Array, Array], Array], work: Work) -> Iterator[Array]:
    before: Array | None = None
    for frame in range(work.case.frames):
        grey = cv2.cvtColor(work.read([frame])[0], cv2.COLOR_RGB2GRAY)
        if before is not None:
            yield np.ascontiguousarray(method(before, grey).transpose(2, 0, 1))
        before = grey
    yield _zero(work)


def _zero(work: Work) -> Array:
    height, width = work.read([0]).shape[1:3]
    return np.zeros((2, height, width), np.float32)


def _dis() -> Callable[[Array, Array], Array]:
    """Dense inverse search (Kroeger et al., ECCV 2016), OpenCV's medium preset."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return lambda before, after: np.asarray(search.calc(before, after, None))  # type: ignore[call-overload]


def _farneback() -> Callable[[Array, Array], Array]:
    """Polynomial expansion (Farnebäck, SCIA 2003): four levels, windows of 15 pixels, three passes."""
    return lambda before, after: np.asarray(
        cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 4, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
    )


_METHODS = dict(zip(FLOW_METHODS, (_dis, _farneback), strict=True))
