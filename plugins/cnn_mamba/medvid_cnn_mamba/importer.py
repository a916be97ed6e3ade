"""Published weights: timm's for frame encoders, Kinetics and EchoNet-Dynamic's for R(2+1)D-18."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from medvid_cnn_mamba.network.encoder import FrameEncoder
from medvid_cnn_mamba.network.heads import Regression
from medvid_cnn_mamba.network.r2plus1d import R2Plus1D
from medvid_core.errors import CheckpointError
from medvid_core.weights import ImportReport, load_strictly, normalised_as

ENCODER = "frames.encoder."

KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
"""Mean and standard deviation of pictures in [0, 1] that torchvision's Kinetics-400 weights were trained with."""

ECHONET = ((0.12847, 0.12918, 0.13051), (0.19576, 0.19627, 0.19765))
"""The same of EchoNet-Dynamic: 32.76, 32.94, 33.28 and 49.92, 50.05, 50.40 of 255, drawn anew by each of its runs."""

COUNTERS = "*.num_batches_tracked"
"""Batches seen by a normalisation: old files lack them, and nothing here reads them."""


def import_timm(state: Mapping[str, Tensor], model: nn.Module) -> ImportReport:
    """Load the frame encoder from a timm checkpoint of the same network; everything else stays as initialised.

    The file's classifier is dropped. A first convolution for another number of channels is refused, as frames here have
    three, grey ones too.

    Raises:
        CheckpointError: the model has no timm encoder, or keys are missing, unexpected or of another shape; the model
            is unchanged.
    """
    encoder = getattr(getattr(model, "frames", None), "encoder", None)
    if not isinstance(encoder, FrameEncoder):
        raise CheckpointError(
            f"{type(model).__name__} has no timm encoder to load. timm's weights are for cnn-mamba, cnn, cnn-gru and "
            "cnn-transformer."
        )
    inside = f"{ENCODER}net."
    renamed = {inside + key: value for key, value in state.items()}
    dead = {f"{inside}{name}.*": "timm's classifier" for name in _classifiers(encoder.net)}
    fresh = [name for name in model.state_dict() if not name.startswith(inside)]
    hint = "model.encoder must name the network of the file, as timm calls it, with frames of three channels."
    return load_strictly(model, renamed, source="timm", dead=dead, fresh=[*fresh, COUNTERS], hint=hint)


def _classifiers(net: nn.Module) -> Sequence[str]:
    """Names of the classifying layers of a timm network."""
    names = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def import_kinetics(state: Mapping[str, Tensor], model: nn.Module) -> ImportReport:
    """Load torchvision's ``r2plus1d_18`` weights of Kinetics-400; the heads stay as initialised.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape; the model is unchanged.
    """
    dead = {"fc.*": "torchvision's classifier of 400 actions"}
    hint = "These weights are for model r2plus1d with model.width=64 and model.blocks=[2,2,2,2]."
    report = load_strictly(
        model, state, source="torchvision R(2+1)D-18", dead=dead, fresh=["heads.*", COUNTERS], hint=hint
    )
    normalised_as(model, *KINETICS)
    return report


def import_echonet(state: Mapping[str, Tensor], model: nn.Module) -> ImportReport:
    """Load a checkpoint of EchoNet-Dynamic's ejection-fraction network, whose outputs are kept.

    Its ``fc`` gives the number w x + b itself, our head ``center + scale (w' x + b')``: w' = w / scale,
    b' = (b - center) / scale.

    Raises:
        CheckpointError: the model has other outputs than one number, or keys are missing, unexpected or of another
            shape; the model is unchanged.
    """
    name, head = _only_number(model)
    # DataParallel, with which the original trains, puts "module." in front of every name
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    if len(bare) != len(state):
        raise CheckpointError("Some keys occur with and without the prefix 'module.'; which ones count?")
    if "fc.weight" in bare and "fc.bias" in bare:
        center, scale = (head.get_buffer(key).double().cpu() for key in ("center", "scale"))
        weight, bias = bare.pop("fc.weight").double().cpu(), bare.pop("fc.bias").double().cpu()
        bare[f"{name}.linear.weight"] = (weight / scale[:, None]).float()
        bare[f"{name}.linear.bias"] = ((bias - center) / scale).float()
    hint = "These weights are for model r2plus1d with model.width=64 and model.blocks=[2,2,2,2]."
    report = load_strictly(model, bare, source="EchoNet-Dynamic", dead={}, fresh=[COUNTERS], hint=hint)
    normalised_as(model, *ECHONET)
    return report


def _only_number(model: nn.Module) -> tuple[str, Regression]:
    """Return the path and the head of a network that predicts one number."""
    heads = list(model.heads.heads) if isinstance(model, R2Plus1D) else []
    found = [(f"heads.heads.{number}", head) for number, head in enumerate(heads) if isinstance(head, Regression)]
    if len(heads) != 1 or len(found) != 1 or found[0][1].linear.out_features != 1:
        raise CheckpointError(
            "EchoNet-Dynamic's network gives one number, so the model must be r2plus1d with one regression output of "
            "one number."
        )
    return found[0]
