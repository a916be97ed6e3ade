"""The causal convolution in front of the scan, and ``medvid::causal_conv``, which runs it for several scan orders."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from medvid_core.ops.backends import choose_backend, refuse_tangents

MODULES = {"cpu": "medvid_core.ops.conv_cpu", "triton": "medvid_core.ops.conv_triton"}


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Depth-wise convolution (cross-correlation) that sees the present and the past only.

    y_t = bias + sum_j weight_j x_{t-W+1+j}, with zeros before the start.

    Args:
        x: [B,D,L].
        weight: [D,W].
        bias: [D].

    Returns:
        [B,D,L].
    """
    channels, width = weight.shape
    return F.conv1d(F.pad(x, (width - 1, 0)), weight[:, None], bias, groups=channels)


def grouped_causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """silu of the causal convolution of one sequence by G kernels, each along an order of its own.

    Args:
        x: [B,R,L], of any strides; quickest on a CPU where the channels of a position lie side by side.
        weight: [G,R,W].
        bias: [G,R].
        order: int32 [G,L], a permutation of 0 … L-1 for each group: the positions as it visits them, so that "past"
            means visited before. None is their own order.
        backend: that of the scan behind it; those without a convolution of their own leave it to PyTorch.

    Returns:
        [B,G,R,L] in x's type, every position where it was; in memory [G,B,L,R].

    Raises:
        ValueError: a shape that does not fit, naming the argument; or an order that is no permutation.
    """
    if weight.dim() != 3 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must have shape [G,R,W] with R = {x.shape[1]}; got {tuple(weight.shape)}.")
    if bias.shape != weight.shape[:2]:
        raise ValueError(f"bias must have shape {tuple(weight.shape[:2])}; got {tuple(bias.shape)}.")
    if order is not None and tuple(order.shape) != (weight.shape[0], x.shape[2]):
        raise ValueError(f"order must have shape {(weight.shape[0], x.shape[2])}; got {tuple(order.shape)}.")
    name = choose_backend(backend, x.device, x.dtype).name
    if name in MODULES:
        refuse_tangents(x, weight, bias)
        compute = torch.float32 if name == "cpu" else x.dtype
        return cast(Tensor, _conv(x.to(compute), weight.float(), bias.float(), order, name)).to(x.dtype)
    groups = weight.shape[0]
    visited = x[:, None].expand(-1, groups, -1, -1)
    if order is not None:
        visited = torch.take_along_dim(visited, order.long()[None, :, None], -1)
    y = F.silu(causal_conv1d(visited.flatten(1, 2), weight.flatten(0, 1), bias.flatten())).view(visited.shape)
    return y if order is None else torch.take_along_dim(y, order.long().argsort(-1)[None, :, None], -1)


def _module(backend: str) -> ModuleType:
    return importlib.import_module(MODULES[backend])


def _output(x: Tensor, weight: Tensor) -> Tensor:
    batch, channels, length = x.shape
    return x.new_empty(weight.shape[0], batch, length, channels).permute(1, 0, 3, 2)


@torch.library.custom_op(
    "medvid::causal_conv",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor? order, str backend) -> Tensor",
)
def _conv(x: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None, backend: str) -> Tensor:
    y = _output(x, weight)
    _module(backend).forward(x, weight, bias, order, y)
    return y


@torch.library.register_fake(_conv)
def _(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return _output(x, weight)


@torch.library.custom_op(
    "medvid::causal_conv_backward",
    mutates_args=(),
    schema="(Tensor grad_y, Tensor x, Tensor weight, Tensor bias, Tensor? order, str backend) "
    "-> (Tensor, Tensor, Tensor)",
)
def _conv_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
    _module(backend).backward(grad_y, x, weight, bias, order, *grads)
    return grads


@torch.library.register_fake(_conv_backward)
def _(grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    return (*_conv_backward(grad_y, *ctx.saved_tensors, ctx.backend), None, None)


torch.library.register_autograd(_conv, _backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.medvid.causal_conv)
def _(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], *rest: Any, **options: Any) -> int:
    batch, _, length = x_shape
    groups, channels, width = weight_shape
    return 2 * batch * length * groups * channels * width


@register_flop_formula(torch.ops.medvid.causal_conv_backward)
def _(
    grad_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    *rest: Any,
    **options: Any,
) -> int:
    batch, _, length = x_shape
    groups, channels, width = weight_shape
    return 4 * batch * length * groups * channels * width
