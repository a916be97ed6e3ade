"""The preprocessor."""

import torch


def difference(sample, config):
    video = sample["video"]
    change = torch.zeros_like(video)
    change[1:] = config.factor * (video[1:] - video[:-1])
    return {**sample, "difference": change}
