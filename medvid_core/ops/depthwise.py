"""Depth-wise convolution of tokens on their grid, whose features lie side by side, and ``medvid::depthwise_conv``.

PyTorch's own, on a CPU, takes tens to hundreds of times longer than the arithmetic, most of all backwards in 3D.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from medvid_core.ops.backends import absence, refuse_tangents


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve (cross-correlate) every channel by its own kernel, zeros around: the size stays.

    Args:
        x: [B,T,H,W,C], of any strides; quickest where the channels of a position lie side by side.
        weight: [C,kT,kH,kW], of odd sizes.
        bias: [C].

    Returns:
        [B,T,H,W,C], in x's type where it is computed here; what is left to PyTorch follows autocast.

    Raises:
        ValueError: a shape that does not fit, naming the argument.
    """
    if x.dim() != 5:
        raise ValueError(f"x must have shape [B,T,H,W,C]; got {tuple(x.shape)}.")
    channels = x.shape[4]
    if weight.dim() != 4 or weight.shape[0] != channels or not all(size % 2 for size in weight.shape[1:]):
        raise ValueError(
            f"weight must have shape [C,kT,kH,kW] with C = {channels} and odd sizes; got {tuple(weight.shape)}."
        )
    if tuple(bias.shape) != (channels,):
        raise ValueError(f"bias must have shape {(channels,)}; got {tuple(bias.shape)}.")
    if x.device.type == "cpu" and x.dtype == torch.float32 and absence("cpu") is None:
        refuse_tangents(x, weight, bias)
        return cast(Tensor, _conv(x, weight.float(), bias.float()))
    padding = tuple(size // 2 for size in weight.shape[1:])
    y = F.conv3d(x.permute(0, 4, 1, 2, 3), weight[:, None], bias, padding=padding, groups=weight.shape[0])
    return y.permute(0, 2, 3, 4, 1)


@torch.library.custom_op(
    "medvid::depthwise_conv", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor bias) -> Tensor"
)
def _conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from medvid_core.ops import depthwise_cpu

    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    depthwise_cpu.forward(x, weight, bias, y)
    return y


@torch.library.register_fake(_conv)
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "medvid::depthwise_conv_backward",
    mutates_args=(),
    schema="(Tensor grad_y, Tensor x, Tensor weight) -> (Tensor, Tensor, Tensor)",
)
def _conv_backward(grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from medvid_core.ops import depthwise_cpu

    grads = torch.empty(x.shape, dtype=x.dtype), torch.empty_like(weight), weight.new_empty(weight.shape[0])
    depthwise_cpu.backward(grad_y, x, weight, *grads)
    return grads


@torch.library.register_fake(_conv_backward)
def _(grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), weight.new_empty(weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
    return cast(tuple[Tensor, ...], _conv_backward(grad_y, *ctx.saved_tensors))


torch.library.register_autograd(_conv, _backward, setup_context=_setup_context)


def _flops(x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> int:
    return 2 * torch.Size(x_shape).numel() * torch.Size(weight_shape[1:]).numel()


@register_flop_formula(torch.ops.medvid.depthwise_conv)
def _(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], *rest: Any, **options: Any) -> int:
    return _flops(x_shape, weight_shape)


@register_flop_formula(torch.ops.medvid.depthwise_conv_backward)
def _(
    grad_shape: tuple[int, ...], x_shape: tuple[int, ...], weight_shape: tuple[int, ...], *rest: Any, **options: Any
) -> int:
    return 2 * _flops(x_shape, weight_shape)
