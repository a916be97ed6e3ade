"""The loss."""

import torch.nn.functional as F

from medvid_core.data.clip import UNLABELLED


class Focal:
    def __init__(self, config, output):
        self.gamma = config.gamma
        self.name = output.name

    def valid(self, batch):
        frames = batch["frame_real"] & batch["mask_labelled"]
        return (batch["mask"] != UNLABELLED) & frames[:, :, None, None]

    def counts(self, batch):
        return {"focal": self.valid(batch).sum()}

    def __call__(self, outputs, batch):
        logits, valid = outputs[self.name].float(), self.valid(batch)
        mask = batch["mask"] * valid
        if logits.shape[2] == 1:
            error = F.binary_cross_entropy_with_logits(logits[:, :, 0], (mask == 1).to(logits), reduction="none")
        else:
            error = F.cross_entropy(logits.flatten(0, 1), mask.flatten(0, 1), reduction="none").view_as(mask)
        weight = (1 - (-error).exp()) ** self.gamma
        return {"focal": (weight * error * valid).sum()}


def build(config, outputs):
    return Focal(config, outputs[0])
