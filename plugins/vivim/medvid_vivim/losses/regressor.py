"""The pretrained network of InverseForm, which tells how one outline must be moved to fall on another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from medvid_core.errors import CheckpointError
from medvid_core.weights import read_state

TILE = 224
GRID = (3, 6)
"""Rows and columns of tiles that a picture is cut into."""
SHAPES: Mapping[str, tuple[int, ...]] = {
    "fc.0.weight": (1000, 2 * TILE * TILE),
    "fc.0.bias": (1000,),
    "fc.2.weight": (32, 1000),
    "fc.2.bias": (32,),
    "fc.4.weight": (4, 32),
    "fc.4.bias": (4,),
}


class Regressor:
    """Two layers of ReLU units from a pair of tiles to four numbers, 0 where nothing has to be moved; frozen.

    (Borse et al., InverseForm, CVPR 2021; weights ``distance_measures_regressor.pth`` of its release.)

    Args:
        weights: by name, as in `SHAPES`.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = {name: value.float() for name, value in weights.items()}

    @classmethod
    def read(cls, path: Path | str) -> Regressor:
        """Read the weights alone, or from among others, such as a checkpoint of Vivim trained with its edge branch.

        Raises:
            CheckpointError: the file cannot be read, or lacks them.
        """
        state = read_state(path)
        found = [key.removesuffix("fc.0.weight") for key in state if key.endswith("fc.0.weight")]
        for prefix in found:
            weights = {name: state.get(prefix + name) for name in SHAPES}
            held = {name: value for name, value in weights.items() if value is not None}
            if {name: tuple(value.shape) for name, value in held.items()} == SHAPES:
                return cls(held)
        raise CheckpointError(
            f"{path} (loss.regressor) does not hold InverseForm's regressor: fc.0, fc.2 and fc.4 with weights of "
            f"{', '.join(str(SHAPES[f'fc.{n}.weight']) for n in (0, 2, 4))}. Give distance_measures_regressor.pth of "
            "its release, or leave loss.regressor out."
        )

    def distance(self, predicted: Tensor, true: Tensor) -> Tensor:
        """Return how far maps have to be moved to fall on others, [M]; both [M,C,H,W].

        Both are resized to 672x1344 and cut into 18 tiles; of every tile and channel the length of the four numbers,
        then the mean.
        """
        # half precision would drown the answer: the first layer sums 100,352 products
        with torch.autocast(predicted.device.type, enabled=False):
            tiles = torch.stack([_tiles(predicted.float()), _tiles(true.float())], 3)  # [M,18,C,2,224*224]
            x = tiles.flatten(0, 2).flatten(1)
            for layer in (0, 2, 4):
                weight, bias = (self._at(f"fc.{layer}.{kind}", x) for kind in ("weight", "bias"))
                x = F.linear(x if layer == 0 else x.relu(), weight, bias)
            lengths = x.norm(dim=1)
        mean: Tensor = lengths.view(len(predicted), GRID[0] * GRID[1] * predicted.shape[1]).mean(1)
        return mean

    def _at(self, name: str, like: Tensor) -> Tensor:
        """A weight, moved once to where it is used."""
        if self.weights[name].device != like.device:
            self.weights[name] = self.weights[name].to(like.device)
        return self.weights[name]


def _tiles(maps: Tensor) -> Tensor:
    """Maps [M,C,H,W] -> tiles, row by row, [M,18,C,224*224]."""
    rows, columns = GRID
    resized = F.interpolate(maps, size=(rows * TILE, columns * TILE), mode="bilinear", align_corners=False)
    cut = resized.view(*maps.shape[:2], rows, TILE, columns, TILE).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(len(maps), rows * columns, maps.shape[1], TILE * TILE)
