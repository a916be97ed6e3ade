"""The network."""

import torch
from torch import nn


class AcmeNet(nn.Module):
    def __init__(self, config, output):
        super().__init__()
        self.output_name = output.name
        self.layers = nn.Sequential(
            nn.Conv2d(6, config.width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(config.width, config.width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(config.width, len(output.classes), 1),
        )

    def forward(self, batch):
        x = torch.cat([batch["video"], batch["difference"]], 2)
        logits = self.layers(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return {self.output_name: logits}


def build(config, outputs):
    return AcmeNet(config, outputs[0])
