"""The metric."""

import torch

from medvid_core.metrics import Metric


class Volume(Metric):
    name = "acme-volume"

    def per_frame(self, frames):
        tp, fp, fn, _ = frames.confusion.sum(1).unbind(1)
        similarity = 1 - (fp - fn).abs() / (2 * tp + fp + fn).clamp(min=1)
        return {self.name: torch.where(tp + fp + fn > 0, similarity * (tp > 0), 1.0)}
