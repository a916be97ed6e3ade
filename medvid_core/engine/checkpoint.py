"""Training checkpoints and model files: safetensors with a JSON header, written whole or not at all.

No pickle is written or read. A checkpoint holds the weights, the optimiser's state, the moving average and the
step number; the order of samples and every random draw are functions of (seed, step), so nothing else is needed to
go on to the bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from medvid_core.errors import CheckpointError

HEADER = "medvid"
FORMAT = 1


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a file atomically: a reader sees the old one or the new one, never half of it.

    Raises:
        CheckpointError: the file cannot be written (a full disk, a read-only folder); the old one is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, temporary, metadata={HEADER: json.dumps({"format": FORMAT, **header})})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner may read
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}. Make room, or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Return the permissions the user withholds from new files; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a file written by `write`.

    Raises:
        CheckpointError: the file is absent, damaged, or not medvid's.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        data = path.read_bytes()  # at once: a run may replace the file while it is read
        tensors: dict[str, Tensor] = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}.") from error
    try:
        header = json.loads(metadata[HEADER])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} has no medvid header. Weights from elsewhere are read with medvid-run import."
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} has a format this version does not read. Upgrade medvid-core.")
    return tensors, header


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _unprefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def save_training(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    state: Mapping[str, Any],
) -> None:
    """Write everything a run needs to go on.

    Args:
        path: the checkpoint file.
        model: the network, unwrapped.
        optimizer: its state is flattened to tensors ``optimizer/<parameter number>/<name>``.
        average: the moving average of the network, if any.
        state: step number and other plain values, stored in the header.
    """
    tensors = _prefixed("model", model.state_dict())
    for number, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": torch.as_tensor(value) for name, value in slots.items()}
    if average is not None:
        tensors |= _prefixed("average", average.state_dict())
    write(path, tensors, {"kind": "training", "state": dict(state)})


def load_training(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None
) -> dict[str, Any]:
    """Load a training checkpoint in place and return its plain state.

    Raises:
        CheckpointError: the file is damaged, or belongs to another model or configuration.
    """
    tensors, header = read(path)
    if header.get("kind") != "training":
        raise CheckpointError(f"{path} is not a training checkpoint; give the run directory to --resume.")
    try:
        model.load_state_dict(_unprefixed("model", tensors))
        if average is not None:
            average.load_state_dict(_unprefixed("average", tensors))
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _unprefixed("optimizer", tensors).items():
            number, _, slot = name.partition("/")
            slots.setdefault(int(number), {})[slot] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
        for parameter, state in optimizer.state.items():  # PyTorch takes whatever stands under a number
            for slot, value in state.items():
                if value.ndim and value.shape != parameter.shape:
                    raise ValueError(f"{slot} of shape {tuple(value.shape)} for weights {tuple(parameter.shape)}")
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit this run's model and optimiser: {error}") from error
    state = header.get("state")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is damaged: its header holds no state.")
    return state
