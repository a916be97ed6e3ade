"""The preprocessor ``gait``: a walking person, cut out and followed, with mask and optical flow.

Three cached stages: ``person`` finds and follows the walker and cuts a square around her or him out of every n-th
frame, ``mask`` tells the person from the rest, ``flow`` says where each pixel moves until the next frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType

import av
import cv2
import PIL
import torch
import torchvision

from medvid_core.data.stages import Stage
from medvid_two_stream.preprocess.config import BACKGROUND, FLOW_METHODS, GaitConfig
from medvid_two_stream.preprocess.flow import make_flow
from medvid_two_stream.preprocess.mask import make_masks
from medvid_two_stream.preprocess.person import cut_out
from medvid_two_stream.preprocess.weights import Published


def stages(config: GaitConfig) -> Sequence[Stage]:
    """Return the stages that make ``video``, ``person_mask`` and ``flow``."""
    person = Published("person", config.person, (BACKGROUND,))
    mask = Published("mask", config.mask, (BACKGROUND,))
    flow = Published("flow", config.flow, FLOW_METHODS)
    kept = {key: getattr(config, key) for key in ("person", "score", "who", "size", "stride")}
    return (
        Stage(
            name="person",
            provides=("video",),
            requires=("video",),
            run=partial(cut_out, config, person),
            settings={**kept, "libraries": _libraries(person, av, PIL)},
            ready=person.settings,
            version="2",
            details_of=(),
        ),
        Stage(
            name="mask",
            provides=("person_mask",),
            requires=("video",),
            run=partial(make_masks, config, mask),
            settings={"mask": config.mask, "libraries": _libraries(mask, av, PIL)},
            ready=mask.settings,
            version="2",
            details_of=("person",),
        ),
        Stage(
            name="flow",
            provides=("flow",),
            requires=("video",),
            run=partial(make_flow, config, flow),
            settings={"flow": config.flow, "libraries": _libraries(flow)},
            ready=flow.settings,
            details_of=(),
        ),
    )


def _libraries(published: Published, *others: ModuleType) -> dict[str, str]:
    """Return the versions of the libraries that a stage computes with: another one may give another result."""
    own = (torch, torchvision) if published.needed else (cv2,)
    return {library.__name__: library.__version__.partition("+")[0] for library in (*own, *others)}
