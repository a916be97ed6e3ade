"""Small pieces that several parts share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_Norm = nn.modules.batchnorm._BatchNorm


class MLP(nn.Module):
    """Linear layers with ReLU between them; parameter names are those of SAM's decoder."""

    def __init__(self, source: int, hidden: int, target: int, depth: int) -> None:
        super().__init__()
        widths = (source, *[hidden] * (depth - 1), target)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """[..., source] -> [..., target]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return cast(Tensor, self.layers[-1](x))


def conv_norm(source: int, target: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
    """Convolution that keeps the size, and batch norm."""
    pad = dilation * (kernel // 2)
    return [nn.Conv2d(source, target, kernel, padding=pad, dilation=dilation), nn.BatchNorm2d(target)]


def conv_relu(source: int, target: int, kernel: int) -> list[nn.Module]:
    """Convolution, batch norm, ReLU in place: of the three, only the convolution's result is kept."""
    return [*conv_norm(source, target, kernel), nn.ReLU(inplace=True)]


def double_conv(source: int, target: int) -> nn.Sequential:
    """Twice a 3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(*conv_relu(source, target, 3), *conv_relu(target, target, 3))


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Context in which operations keep the precision of their inputs, on the tensor's device."""
    known = torch.amp.is_autocast_available(like.device.type)  # not on the meta device
    return torch.autocast(like.device.type, enabled=False) if known else nullcontext()


def sinusoidal(x: Tensor) -> Tensor:
    """Positions [1,C,H,W] of a map [M,C,H,W], to be added to it.

    With h = C/2 and f_j = 10000^(-2j/h), j < h/2: channels 0 to h-1 are sin(row f), then cos(row f), the others the
    same of the column. C is a multiple of 4.
    """
    channels, height, width = x.shape[1:]
    half = channels // 2
    steps = torch.arange(0, half, 2, device=x.device, dtype=torch.float32)
    frequencies = torch.exp(steps * (-math.log(10000.0) / half))

    def wave(size: int) -> Tensor:
        angle = torch.arange(size, device=x.device, dtype=torch.float32)[:, None] * frequencies
        return torch.cat([angle.sin(), angle.cos()], 1).T  # [h,size]

    rows = wave(height)[:, :, None].expand(half, height, width)
    columns = wave(width)[:, None, :].expand(half, height, width)
    return torch.cat([rows, columns])[None].to(x.dtype)


def resized_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions [1,h,w,D] for another grid, bilinear: [1,*grid,D]."""
    if table.shape[1:3] == grid:
        return table
    resized = F.interpolate(table.permute(0, 3, 1, 2), size=grid, mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


@contextmanager
def _norms_with(module: nn.Module, **values: Any) -> Iterator[None]:
    """Give attributes of all batch norms in a module other values, and afterwards their own again."""
    norms = [norm for norm in module.modules() if isinstance(norm, _Norm)]
    before = [{name: getattr(norm, name) for name in values} for norm in norms]

    def give(norm: nn.Module, attributes: dict[str, Any]) -> None:
        for name, value in attributes.items():
            setattr(norm, name, value)

    for norm in norms:
        give(norm, values)
    try:
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            give(norm, own)


def stored_statistics(module: nn.Module) -> AbstractContextManager[None]:
    """Context in which batch norms use their stored statistics, and keep them as they are."""
    return _norms_with(module, training=False)


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """Run a module and keep its inputs alone; what lies between is computed again in the backward pass.

    Batch norms count the statistics of a batch once, not again in the second pass.
    """
    return checkpoint(
        module,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _norms_with(module, momentum=0.0, num_batches_tracked=None)),
    )


def run(module: nn.Module, checkpointing: bool, *inputs: Any) -> Any:
    """Run a module, with `recomputed` where that is asked for and gradients are kept."""
    if checkpointing and torch.is_grad_enabled():
        return recomputed(module, *inputs)
    return module(*inputs)
