"""What people run today, in plain PyTorch: the step-by-step scan, and Vivim as published around it.

Written from descriptions (mamba-ssm's `selective_scan_ref`, Vivim's network), to be measured against. The network takes
the parameters of ours, which bear the original's names, and uses nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scan = Callable[..., Tensor]
"""u, delta [B,D,L], A [D,N], B, C [B,N,L], D [D], z [B,D,L], delta_bias [D], delta_softplus -> y [B,D,L]."""


def step_by_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """The scan as mamba-ssm's reference computes it: factors and inputs of all steps first, then a loop over them.

    It indexes each step, and the backward pass of L such indexings takes time quadratic in L: with gradients, the
    steps are unbound at once instead. Values are the same.
    """
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    state = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for decay_t, drive_t, C_t in _steps(decay, drive, C):
        state = decay_t * state + drive_t
        outputs.append(torch.einsum("bdn,bn->bd", state, C_t))
    y = torch.stack(outputs, dim=2) + u * D[:, None]
    return y if z is None else y * F.silu(z)


def _steps(decay: Tensor, drive: Tensor, C: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    if torch.is_grad_enabled():
        yield from zip(decay.unbind(2), drive.unbind(2), C.unbind(2), strict=True)
    else:
        for t in range(C.shape[2]):
            yield decay[:, :, t], drive[:, :, t], C[:, :, t]


def no_scan(u: Tensor, *rest: Any, **options: Any) -> Tensor:
    """In the place of a scan, to count everything else."""
    return u


def plain_mixer(mixer: nn.Module, tokens: Tensor, frames: int, scan: Scan = step_by_step) -> Tensor:
    """Vivim's mixer as three scans of their own, tokens [B,L,C] -> [B,L,C]: every order is laid out in memory."""
    x: Any = mixer  # of which parameters are used alone
    xz = x.in_proj(tokens).transpose(1, 2)
    chunks = getattr(x, "frames", None) or frames
    interleaved = torch.stack(xz.chunk(chunks, dim=-1), dim=-1).flatten(-2)
    forward = _branch(x, "", xz, scan)
    backward = _branch(x, "_b", xz.flip(-1), scan).flip(-1)
    spatial = _branch(x, "_s", interleaved, scan)
    spatial = spatial.reshape(*spatial.shape[:2], -1, chunks).transpose(2, 3).flatten(2)
    return x.out_proj((forward + backward + spatial).transpose(1, 2) / 3)


def _branch(mixer: Any, suffix: str, xz: Tensor, scan: Scan) -> Tensor:
    conv = getattr(mixer, f"conv1d{suffix}")
    dt_proj = getattr(mixer, f"dt_proj{suffix}")
    x, z = xz.contiguous().chunk(2, dim=1)
    batch, inner, length = x.shape
    u = F.silu(F.conv1d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] - 1, groups=inner)[..., :length])
    A = -torch.exp(getattr(mixer, f"A{suffix}_log").float())
    low = dt_proj.weight.shape[1]
    projected = F.linear(u.transpose(1, 2).reshape(batch * length, inner), getattr(mixer, f"x_proj{suffix}").weight)
    step, B, C = projected.split([low, A.shape[1], A.shape[1]], dim=1)
    delta = (dt_proj.weight @ step.t()).view(inner, batch, length).transpose(0, 1)
    B, C = (m.view(batch, length, -1).transpose(1, 2).contiguous() for m in (B, C))
    D = getattr(mixer, f"D{suffix}").float()
    return scan(u, delta, A, B, C, D, z=z, delta_bias=dt_proj.bias.float(), delta_softplus=True)


class Meter:
    """Adds up, part by part, what a clock that only goes forward shows (CPU seconds, or operations counted)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.found: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a block of code."""
        before = self.clock()
        yield
        self.found[name] = self.found.get(name, 0) + self.clock() - before

    def watch(self, name: str, module: nn.Module) -> None:
        """Measure every call of a module."""
        blocks = []

        def enter(*_: Any) -> None:
            blocks.append(self.part(name))
            blocks[-1].__enter__()

        def leave(*_: Any) -> None:
            blocks.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)


class PlainVivim(nn.Module):
    """Vivim computed as published, with the parameters of `network` (one of ours)."""

    def __init__(self, network: nn.Module, scan: Scan, meter: Meter) -> None:
        super().__init__()
        self.network: Any = network
        self.scan = scan
        self.meter = meter

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``video`` [B,T,C,H,W] -> logits [B,T,K,H,W]."""
        video = batch["video"]
        encoder = self.network.encoder
        x = video.flatten(0, 1)
        features = []
        for stage, layers in enumerate(encoder.stages):
            with self.meter.part(f"SegFormer, stage {stage + 1}"):
                x = self.segformer_stage(encoder.downsample_layers, x, stage)
            x = x.view(*video.shape[:2], *x.shape[1:]).transpose(1, 2)
            for layer in layers:
                x = self.mamba_layer(layer[0], x, stage)
            x = x.transpose(1, 2).flatten(0, 1).contiguous()
            features.append(x)
        with self.meter.part("decoder and head"):
            logits = self.network.out(self.decoder(self.network.decoder, features))
            logits = F.interpolate(logits, size=video.shape[3:], mode="bilinear", align_corners=False)
        return {self.network.output_name: logits.view(*video.shape[:2], *logits.shape[1:])}

    def segformer_stage(self, encoder: Any, x: Tensor, stage: int) -> Tensor:
        """[M,C,H,W] -> [M,C',h,w]."""
        embedding = encoder.patch_embeddings[stage]
        x = embedding.proj(x)
        grid = x.shape[2:]
        tokens = embedding.layer_norm(x.flatten(2).transpose(1, 2))
        for block in encoder.block[stage]:
            attended = self.attention(block.attention.get_submodule("self"), block.layer_norm_1(tokens), grid)
            tokens = tokens + block.attention.output["dense"](attended)
            hidden = block.mlp.dense1(block.layer_norm_2(tokens))
            hidden = hidden.transpose(1, 2).view(*hidden.shape[::2], *grid)
            hidden = block.mlp.dwconv.dwconv(hidden).flatten(2).transpose(1, 2)
            tokens = tokens + block.mlp.dense2(F.gelu(hidden))
        return tokens.reshape(tokens.shape[0], *grid, -1).permute(0, 3, 1, 2).contiguous()

    def attention(self, layer: Any, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Tokens [M,L,C] -> [M,L,C]; the matrix of scores is laid out in memory."""

        def by_head(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], layer.heads, -1).transpose(1, 2)

        context = tokens
        if layer.reduction > 1:
            context = tokens.transpose(1, 2).reshape(*tokens.shape[::2], *grid)
            context = layer.layer_norm(layer.sr(context).flatten(2).transpose(1, 2))
        q, k, v = by_head(layer.query(tokens)), by_head(layer.key(context)), by_head(layer.value(context))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def mamba_layer(self, layer: Any, x: Tensor, stage: int) -> Tensor:
        """[B,C,T,h,w] -> [B,C,T,h,w]."""
        shape = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        with self.meter.part(f"mixers, stage {stage + 1}"):
            tokens = tokens + plain_mixer(layer.mamba, layer.norm1(tokens), shape[2], self.scan)
        with self.meter.part(f"detail FFN, stage {stage + 1}"):
            hidden = layer.mlp.fc1(layer.norm2(tokens))
            hidden = hidden.transpose(1, 2).view(*hidden.shape[::2], *shape[2:])
            hidden = layer.mlp.dwconv.dwconv(hidden).flatten(2).transpose(1, 2)
            tokens = tokens + layer.mlp.fc2(F.gelu(hidden))
        return tokens.transpose(1, 2).reshape(shape)

    def decoder(self, decoder: Any, features: list[Tensor]) -> Tensor:
        """Features [M,C_i,h_i,w_i] of all stages -> [M,E,h_0,w_0]: project, resize, concatenate, fuse."""
        maps = []
        for x, layer in zip(features, decoder.linear_c, strict=True):
            y = layer.proj(x.flatten(2).transpose(1, 2)).transpose(1, 2)
            y = y.reshape(*y.shape[:2], *x.shape[2:])
            maps.append(F.interpolate(y, size=features[0].shape[2:], mode="bilinear", align_corners=False))
        fused = decoder.linear_fuse(torch.cat(maps[::-1], dim=1))
        return decoder.dropout(F.relu(decoder.batch_norm(fused)))
