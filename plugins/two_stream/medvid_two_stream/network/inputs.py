"""What the streams of a network look at, made of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medvid_core.errors import DataError
from medvid_two_stream.config import cues_of


def look(batch: Mapping[str, Any], name: str) -> Tensor:
    """Return an input [B,C,T,H,W] of a batch.

    Flow alone has one field less than there are frames, from each to the next; of a single frame it is the one field
    there is, 0. Joined with other cues, the last field is repeated, so that every frame has one.

    A masked picture is multiplied by the mask after normalisation: the background becomes the mean colour, which is
    also what convolutions see beyond the border. (The original's is black, which is the same without normalisation.)

    Raises:
        DataError: the batch lacks a stream.
    """
    if name == "flow":
        return _moved(batch).transpose(1, 2)
    return torch.cat([_cue(batch, cue) for cue in cues_of(name)], 2).transpose(1, 2)


def _cue(batch: Mapping[str, Any], cue: str) -> Tensor:
    """Return one cue, [B,T,C,H,W], for every frame."""
    if cue == "masked-rgb":
        return _stream(batch, "video") * _stream(batch, "person_mask")
    if cue == "flow":
        moved = _moved(batch)
        return torch.cat([moved, moved[:, -1:]], 1) if _stream(batch, "flow").shape[1] > 1 else moved
    return _stream(batch, "video" if cue == "rgb" else "person_mask")


def _moved(batch: Mapping[str, Any]) -> Tensor:
    """Return the flow between frames, without the place of the last one, whose flow goes nowhere."""
    flow = _stream(batch, "flow")
    return flow[:, :-1] if flow.shape[1] > 1 else flow


def _stream(batch: Mapping[str, Any], name: str) -> Tensor:
    if name not in batch:
        raise DataError(
            f"The network reads the stream {name!r}, and the batch holds none. "
            "Prepare the data (preprocess=gait), or choose model.inputs that do without."
        )
    stream: Tensor = batch[name]
    return stream


def real_steps(frame_real: Tensor, steps: int) -> Tensor:
    """Return which steps of a sequence count, bool [B,steps], of which frames are real, bool [B,T].

    With one step less than frames, a step is a pair of neighbours, real where both are. Where no step is real, all
    count: a clip of padding alone still has an output.
    """
    real = frame_real if steps == frame_real.shape[1] else frame_real[:, 1:] & frame_real[:, :-1]
    return real | ~real.any(1, keepdim=True)


def shuffled(batch: Mapping[str, Any], generator: torch.Generator | None) -> dict[str, Any]:
    """Return the batch with the frames of every clip, and its flow fields, in random order; padding comes last.

    Args:
        batch: with ``frame_real``.
        generator: what to draw from; None: PyTorch's own.
    """
    real: Tensor = batch["frame_real"]
    changed = dict(batch)
    order = _order(real, generator)
    for name in ("video", "person_mask"):
        if name in batch:
            changed[name] = _taken(batch[name], order)
    if "flow" in batch and real.shape[1] > 1:
        steps = _order(real_steps(real, real.shape[1] - 1), generator)
        changed["flow"] = torch.cat([_taken(batch["flow"][:, :-1], steps), batch["flow"][:, -1:]], 1)
    return {**changed, "frame_real": real.gather(1, order)}


def _order(real: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random order of steps [B,T] that has those that are not real at the end."""
    drawn = torch.rand(real.shape, generator=generator).to(real.device)
    return torch.where(real, drawn, 2.0).argsort(dim=1, stable=True)


def _taken(stream: Tensor, order: Tensor) -> Tensor:
    return torch.stack([clip[places] for clip, places in zip(stream, order, strict=True)])


def uniform_temporal_subsample(frames: int, count: int) -> list[int]:
    """Return the places of ``count`` frames spread over ``frames``: trunc(linspace(0, frames - 1, count)).

    As PyTorchVideo and torchvision do. Gaps differ by one, and frames repeat where there are too few, so flow between
    the frames chosen flickers: for parity alone.
    """
    places: list[int] = torch.linspace(0, frames - 1, count, device="cpu").clamp(0, frames - 1).long().tolist()
    return places


def as_pictures(clip: Tensor, scrambled: bool = False) -> Tensor:
    """Return a clip [B,C,T,H,W] as pictures [B*T,C,H,W], clip by clip.

    Args:
        clip: the frames.
        scrambled: as the original does, by reshaping without moving the time axis in front of the channels: picture k
            is made of the planes C·k to C·k + C - 1 of all (channel, time) planes, so that most pictures of RGB frames
            are three frames of one colour.
    """
    if scrambled:
        return clip.reshape(-1, clip.shape[1], *clip.shape[-2:])
    return clip.transpose(1, 2).flatten(0, 1)
