"""The metrics."""

import torch

from medvid_core.metrics import CaseMetric, Metric


class Volume(Metric):
    name = "acme-volume"

    def per_frame(self, frames):
        tp, fp, fn, _ = frames.confusion.sum(1).unbind(1)
        similarity = 1 - (fp - fn).abs() / (2 * tp + fp + fn).clamp(min=1)
        return {self.name: torch.where(tp + fp + fn > 0, similarity * (tp > 0), 1.0)}


class Hits(CaseMetric):
    name = "acme-hits"
    tasks = ("classification",)

    def per_case(self, case):
        return {
            self.column(output): float(case.predicted[output.name].argmax() == case.true[output.name])
            for output in self.outputs
            if output.name in case.true
        }
