"""Settings of the preprocessor ``gait``. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from medvid_core.errors import ConfigError, did_you_mean

BACKGROUND = "background"
"""Name of the way that needs no weights: what differs from the picture without anybody."""

DETECTORS = ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn")
SEGMENTERS = (
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "deeplabv3_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)
FLOW_NETWORKS = ("raft_large", "raft_small")
FLOW_METHODS = ("dis", "farneback")
WHO = ("walker", "shorter")


@dataclass
class GaitConfig:
    """How a person is cut out of a video, and what is made of it.

    Attributes:
        person: who finds people: a detector of torchvision (``fasterrcnn_resnet50_fpn_v2``,
            ``fasterrcnn_resnet50_fpn``, ``fasterrcnn_mobilenet_v3_large_fpn``), which needs its published weights; or
            ``background``, what differs from the median picture, for a camera that stands still.
        score: how sure a detector must be of a person, 0 to 1.
        who: which of several people: of those who are seen longest and go farthest, the ``walker`` who is nearest to
            the camera, with the feet lowest in the picture, and of those as near the shorter; or the ``shorter``
            wherever she or he walks, as in the original, which takes the taller one for the assistant.
        size: height and width of the prepared video in pixels.
        stride: take every n-th frame of the recording: so far apart are neighbours in the prepared video, and its flow.
        mask: what tells the person from the rest: a network of torchvision (``maskrcnn_resnet50_fpn_v2``,
            ``maskrcnn_resnet50_fpn``, ``deeplabv3_resnet50``, ``deeplabv3_mobilenet_v3_large``,
            ``lraspp_mobilenet_v3_large``) or ``background``.
        flow: optical flow: ``raft_large`` or ``raft_small`` of torchvision; or ``dis`` or ``farneback`` of OpenCV,
            which need no weights.
    """

    person: str = "fasterrcnn_resnet50_fpn_v2"
    score: float = 0.8
    who: str = "walker"
    size: int = 256
    stride: int = 2
    mask: str = "maskrcnn_resnet50_fpn_v2"
    flow: str = "raft_large"

    def __post_init__(self) -> None:
        for key, choices in (
            ("person", (*DETECTORS, BACKGROUND)),
            ("who", WHO),
            ("mask", (*SEGMENTERS, BACKGROUND)),
            ("flow", (*FLOW_NETWORKS, *FLOW_METHODS)),
        ):
            value = getattr(self, key)
            if value not in choices:
                raise ConfigError(
                    f"preprocess.{key}={value!r} cannot be used.{did_you_mean(value, choices)} "
                    f"Known: {', '.join(choices)}."
                )
        if not 0 <= self.score <= 1:
            raise ConfigError(f"preprocess.score={self.score} cannot be used: it must be from 0 to 1.")
        if self.size < 16:
            raise ConfigError(f"preprocess.size={self.size} cannot be used: it must be at least 16 pixels.")
        if self.stride < 1:
            raise ConfigError(f"preprocess.stride={self.stride} cannot be used: it must be at least 1.")
