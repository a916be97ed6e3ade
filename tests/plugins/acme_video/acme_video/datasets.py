"""The data set."""

import numpy as np

from medvid_core.data.clip import Case, Index, Source
from medvid_core.specs import OutputSpec


def index(root, config):
    cases = tuple(
        Case(
            case_id=f"blob-{number}",
            group_id=f"patient-{number}",
            frames=config.frames,
            streams={
                "video": Source(reader="acme_video.datasets:video", options=(number, config.side)),
                "mask": Source(reader="acme_video.datasets:mask", options=(number, config.side), values=(0, 1)),
            },
        )
        for number in range(config.cases)
    )
    return Index(cases=cases, outputs=(OutputSpec(name="blob", task="segmentation", classes=("blob",)),))


def mask(source, frames):
    number, side = source.options
    masks = np.zeros((len(frames), side, side), np.uint8)
    for position, frame in enumerate(frames):
        top, left = 5 + number % 7 + frame, 12 - number % 5
        masks[position, top : top + 14, left : left + 16] = 1
    return masks


def video(source, frames):
    noise = [
        np.random.default_rng([source.options[0], frame]).integers(0, 60, source.options[1:] * 2) for frame in frames
    ]
    return (np.stack(noise) + 120 * mask(source, frames)).astype(np.uint8)
