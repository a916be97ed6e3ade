"""The preprocessor ``gait``: a walking person, cut out and followed, with mask and optical flow.

Three cached stages: ``person`` finds and follows the walker and cuts a square around her or him out of every n-th
frame, ``mask`` tells the person from the rest, ``flow`` says where each pixel moves until the next frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from medvid_core.data.stages import Stage
from medvid_two_stream.preprocess.config import BACKGROUND, FLOW_METHODS, GaitConfig
from medvid_two_stream.preprocess.flow import make_flow
from medvid_two_stream.preprocess.mask import make_masks
from medvid_two_stream.preprocess.person import cut_out
from medvid_two_stream.preprocess.weights import Published


def stages(config: GaitConfig) -> Sequence[Stage]:
    """Return the stages that make ``video``, ``person_mask`` and ``flow``."""
    person = Published("person", config.person, config.weights, (BACKGROUND,))
    mask = Published("mask", config.mask, config.weights, (BACKGROUND,))
    flow = Published("flow", config.flow, config.weights, FLOW_METHODS)
    kept = {key: getattr(config, key) for key in ("person", "score", "who", "size", "stride")}
    return (
        Stage(
            name="person",
            provides=("video",),
            requires=("video",),
            run=partial(cut_out, config, person),
            settings=kept,
            ready=person.settings,
        ),
        Stage(
            name="mask",
            provides=("person_mask",),
            requires=("video",),
            run=partial(make_masks, config, mask),
            settings={"mask": config.mask},
            ready=mask.settings,
        ),
        Stage(
            name="flow",
            provides=("flow",),
            requires=("video",),
            run=partial(make_flow, config, flow),
            settings={"flow": config.flow},
            ready=flow.settings,
        ),
    )
