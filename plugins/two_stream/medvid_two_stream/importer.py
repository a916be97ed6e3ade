"""Published weights: Kinetics and ImageNet for the trunks, and checkpoints of the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medvid_core.errors import CheckpointError
from medvid_core.weights import ImportReport, load_strictly, normalised_as
from medvid_two_stream.config import CUES, cues_of
from medvid_two_stream.network.attention import OneStream
from medvid_two_stream.network.recurrent import CNNLSTM
from medvid_two_stream.network.slow import SlowResNet
from medvid_two_stream.network.stream import Published, Stream
from medvid_two_stream.network.trunks import IMAGENET
from medvid_two_stream.network.two_stream import TwoStream

COUNTERS = "*.num_batches_tracked"
"""Batches seen by a normalisation: old files lack them, and nothing here reads them."""


@dataclass(frozen=True)
class _Part:
    """A trunk of a model: where it lies, what it looks at, what published files call things."""

    prefix: str
    input: str
    published: Published
    slow: bool
    fresh: str
    keeps_stem: bool = True


def _parts(model: nn.Module) -> Iterator[_Part]:
    if isinstance(model, CNNLSTM):
        published = Published("conv1.weight", "fc", "cnn.", *IMAGENET)
        yield _Part("cnn.", model.config.input, published, False, "cnn.fc.*")
        return
    compat = isinstance(model, TwoStream | OneStream) and model.config.compat
    for name, stream in getattr(model, "streams", {}).items():
        if isinstance(stream, Stream):
            inside = f"streams.{name}."
            yield _Part(
                prefix=inside + stream.published.inside,
                input=name,
                published=stream.published,
                slow=isinstance(stream, SlowResNet),
                fresh=f"{inside}{stream.head_name}.*",
                keeps_stem=not compat,
            )


def fitted_stem(weight: Tensor, name: str) -> Tensor:
    """Return a first convolution [O,3,…] of RGB pictures for another input.

    RGB keeps it. What is joined to RGB starts at 0, so that the network begins by seeing what it saw. An input without
    RGB has n channels, each with the mean over RGB times 3/n, which keeps the scale (for flow: 3/2).
    """
    cues = cues_of(name)
    if not {"rgb", "masked-rgb"} & set(cues):
        channels = sum(CUES[cue][1] for cue in cues)
        shape = (weight.shape[0], channels, *weight.shape[2:])
        return (weight.mean(1, keepdim=True) * 3 / channels).expand(shape).contiguous()
    pieces = [
        weight if CUES[cue][1] == 3 else weight.new_zeros(weight.shape[0], CUES[cue][1], *weight.shape[2:])
        for cue in cues
    ]
    return torch.cat(pieces, 1)


def import_slow(state: Mapping[str, Tensor], model: nn.Module) -> ImportReport:
    """Load PyTorchVideo's ``SLOW_8x8_R50``, ``_R101`` or ``_R152`` weights into every slow stream.

    The classifier stays as initialised. The stem is fitted to each input (see `fitted_stem`); with ``compat`` it stays
    as initialised, as in the original, which throws it away.

    Raises:
        CheckpointError: the model has no slow stream, or keys are missing, unexpected or of another shape; the model is
            unchanged.
    """
    parts = [part for part in _parts(model) if part.slow]
    if not parts:
        raise CheckpointError("The model has no slow network. Set model.trunk=slow_r50, slow_r101 or slow_r152.")
    hint = "model.trunk must name the depth of the file, with model.width=64, model.blocks=[] and model.scratch=false."
    return _load_trunks(state, model, parts, "PyTorchVideo SLOW", hint)


def import_torchvision(state: Mapping[str, Tensor], model: nn.Module) -> ImportReport:
    """Load torchvision's weights of ``r3d_18``, ``r2plus1d_18``, ``mvit_v2_s``, ``swin3d_t`` or a ResNet.

    They go into every stream whose trunk begins as the file does; classifiers stay as initialised, and stems are fitted
    to each input (see `fitted_stem`).

    Raises:
        CheckpointError: no stream is of that kind, or keys are missing, unexpected or of another shape; the model is
            unchanged.
    """
    parts = [part for part in _parts(model) if not part.slow and part.published.stem in state]
    if not parts:
        raise CheckpointError("The model has none of torchvision's networks that begins as the file. Set model.trunk.")
    return _load_trunks(state, model, parts, "torchvision", "model.trunk must name the network of the file.")


def _load_trunks(
    state: Mapping[str, Tensor], model: nn.Module, parts: Sequence[_Part], source: str, hint: str
) -> ImportReport:
    """Load a file into several trunks of one kind."""
    published = parts[0].published
    found: dict[str, Tensor] = {}
    dropped: list[tuple[str, str]] = []
    fresh = [name for name in model.state_dict() if not any(name.startswith(part.prefix) for part in parts)]
    fresh += [COUNTERS, *(part.fresh for part in parts)]
    for key, value in state.items():
        if key.startswith(f"{published.classifier}."):
            dropped.append((key, "the classifier of the published network"))
        elif key == published.stem and not parts[0].keeps_stem:
            dropped.append((key, "the original throws the published stem away, and so does model.compat=true"))
            fresh += [part.prefix + key for part in parts]
        else:
            for part in parts:
                found[part.prefix + key] = fitted_stem(value, part.input) if key == published.stem else value
    report = load_strictly(model, found, source=source, dead={}, fresh=fresh, hint=hint)
    if parts[0].keeps_stem:
        normalised_as(model, published.mean, published.std)
    return replace(report, dropped=(*dropped, *report.dropped))


def import_upstream(state: Mapping[str, Tensor], model: nn.Module) -> ImportReport:
    """Load a checkpoint of the original's training: both streams; RAFT, which each of them holds too, is dropped.

    Its one logit z becomes that of the second class: with two logits, the pair (0, z). The model's classes must be in
    its order, ASD before non-ASD.

    Raises:
        CheckpointError: the model is not a ``two-stream`` of separate or summed logits and two classes, or keys are
            missing, unexpected or of another shape; the model is unchanged.
    """
    if not isinstance(model, TwoStream) or model.config.fusion == "concat" or len(model.output.classes) != 2:
        raise CheckpointError(
            "Checkpoints of the original are for the model two-stream with two classes and model.fusion=separate, sum "
            "or learnt."
        )
    pictures = [name for name in model.streams if name != "flow"]
    if len(pictures) > 1:
        raise CheckpointError(f"The original has one stream beside flow, and the model has {', '.join(pictures)}.")
    places = {"model_rgb.": pictures, "model_flow.": [name for name in model.streams if name == "flow"]}
    dead = {"optical_flow_model.*": "RAFT, which preprocessing runs, not the network"}
    dead |= {f"{theirs}*": "the model has no such stream" for theirs, ours in places.items() if not ours}
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        theirs = next((prefix for prefix in places if key.startswith(prefix) and places[prefix]), None)
        if theirs is None:
            found[key] = value
            continue
        input_name = places[theirs][0]
        name, fitted = _original(key.removeprefix(theirs), value, model.stream(input_name))
        found[f"streams.{input_name}.{name}"] = fitted
    hint = (
        "model.trunk and model.flow_trunk must be those of the checkpoint: slow_r50 for 3D, resnet50 for 2D; "
        "model.scratch=true where it was trained from nothing."
    )
    return load_strictly(model, found, source="Two_Stream_PyTorch", dead=dead, fresh=[COUNTERS, "weights"], hint=hint)


def _original(key: str, value: Tensor, stream: Stream) -> tuple[str, Tensor]:
    """Return our name within a stream of the original's, and the value fitted to it."""
    classifier = f"{stream.published.classifier}."
    if not key.startswith(classifier):
        return stream.published.inside + key, value
    if not stream.classifier.one_logit:
        value = torch.cat([torch.zeros_like(value), value])
    return f"{stream.head_name}.proj.{key.removeprefix(classifier)}", value
