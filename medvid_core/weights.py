"""Weights published elsewhere: read without executing anything, loaded strictly, every key accounted for."""

from __future__ import annotations

import argparse
import fnmatch
import pickle
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medvid_core.errors import CheckpointError

PICKLED = (".pth", ".pt", ".ckpt", ".bin", ".pyth")
CONTAINERS = ("state_dict", "model", "model_state")
"""Keys under which training scripts keep a state dict beside other things."""

_Names = list[Callable[..., Any] | tuple[Callable[..., Any], str]]
"""What PyTorch takes as names that a pickled file may use."""


class _Unread:
    """Takes the place of a NumPy number and its type: nothing is made of them, as only tensors are wanted."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_NUMPY: _Names = [
    (_Unread, name) for name in ("numpy.dtype", "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")
]
"""Names by which numbers of NumPy 2 and 1 are pickled, such as the loss so far that training scripts keep."""


def read_state(path: Path | str, allowed: Sequence[type] = ()) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from a pickled ``.pth``, ``.pt``, ``.ckpt``, ``.bin`` or ``.pyth``.

    Pickled files are read with ``weights_only=True``: a file that asks for anything but tensors and plain containers
    is refused, and nothing it holds is executed. Single numbers of NumPy beside the weights are passed over. For
    ``.ckpt`` one name more is allowed, ``argparse.Namespace``, a plain holder of options that Lightning scripts store
    beside the weights.

    Args:
        path: the file.
        allowed: further classes that a pickled file may hold. Only ever name classes that do nothing when made.

    Returns:
        Parameter names and tensors, on the CPU.

    Raises:
        CheckpointError: the file is absent, of another kind, damaged, asks for other names, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"The weights file {path} does not exist.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in PICKLED:
        raise CheckpointError(
            f"{path} is not a weights file medvid reads; it reads .safetensors and {', '.join(PICKLED)}."
        )
    names: _Names = [*allowed, *_NUMPY]
    names += [argparse.Namespace] if path.suffix == ".ckpt" else []
    return _state_dict(_read_pickled(path, names), path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}. Fetch it again.") from error


def _read_pickled(path: Path, allowed: _Names) -> Any:
    wanted = _forbidden_names(path, allowed)
    if wanted:
        raise CheckpointError(
            f"{path} asks to import {', '.join(wanted)}, which medvid does not do when it reads weights; nothing was "
            "executed. Save the bare state dict as .safetensors where you trust the file, and import that."
        )
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks to import {asked[1]}" if asked else "holds more than tensors and plain containers, or is damaged"
        raise CheckpointError(
            f"{path} {what}, and was not loaded; nothing was executed. "
            "Save the bare state dict as .safetensors where you trust the file, and import that."
        ) from error
    except Exception as error:  # damaged files fail in many ways: zip, end of file, key and runtime errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as PyTorch weights: {reason.rstrip('.')}. Fetch or save it again."
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse a zip archive with a damaged member: PyTorch itself does not look at its checksums."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Fetch or save it again.") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} is wrong. Fetch or save it again.")


def _forbidden_names(path: Path, allowed: _Names) -> list[str]:
    """Names the file would import beyond what PyTorch and the caller allow; empty where that cannot be told."""
    try:
        with torch.serialization.safe_globals(allowed):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a zip archive, or damaged: reading it will say so
        return []


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Find the names and tensors in what a training script saved."""
    for key in CONTAINERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    state = loaded if isinstance(loaded, Mapping) else {}
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(
            f"{path} holds no state dict (names with tensors), neither by itself nor under {', '.join(CONTAINERS)}."
        )
    return dict(state)


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What became of every key of a file and of every entry of the model.

    Attributes:
        source: what kind of weights these are, for people.
        loaded: entries of the model that now hold the file's values.
        dropped: keys of the file left out on purpose, with the reason.
        initialised: entries of the model that such files never hold, left as initialised.
        missing: entries of the model that the file should hold and does not.
        unexpected: keys of the file that the model has no place for.
        mismatched: names whose shapes differ, with the file's and the model's.
    """

    source: str
    loaded: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    initialised: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    def text(self) -> str:
        """The whole report, for people."""
        lines = [f"{self.source}: {len(self.loaded)} entries loaded, {len(self.dropped)} keys of the file dropped."]
        for reason in dict.fromkeys(reason for _, reason in self.dropped):
            keys = [key for key, why in self.dropped if why == reason]
            lines.append(f"  dropped, {reason}: {_summed_up(keys)}")
        if self.initialised:
            lines.append(f"  not in such files, left as initialised: {_summed_up(self.initialised)}")
        return "\n".join([*lines, *self._problems()])

    def _problems(self) -> list[str]:
        lines = []
        if self.missing:
            lines.append(f"  missing from the file: {', '.join(self.missing)}")
        if self.unexpected:
            lines.append(f"  no place in the model: {', '.join(self.unexpected)}")
        lines += [
            f"  {name}: shape {theirs} in the file, {ours} in the model" for name, theirs, ours in self.mismatched
        ]
        return lines

    def check(self, hint: str = "") -> None:
        """Refuse a file that does not fit.

        Raises:
            CheckpointError: keys are missing, unexpected, or of another shape; the text lists them.
        """
        problems = self._problems()
        if problems:
            raise CheckpointError(
                "\n".join([f"The weights ({self.source}) do not fit the model.", *problems, hint]).strip()
            )


NAMED = 12
"""So many keys are named one by one; of more, modules with their number of keys."""


def _summed_up(keys: Sequence[str]) -> str:
    """Keys for people: by name, or many by the module they are in."""
    if len(keys) <= NAMED:
        return ", ".join(keys)
    depth = 3
    while depth > 1 and len({_module(key, depth) for key in keys}) > NAMED:
        depth -= 1
    counts = Counter(_module(key, depth) for key in keys)
    return ", ".join(f"{module} ({count})" for module, count in counts.items())


def _module(key: str, depth: int) -> str:
    """The first parts of a key, the numbers of layers left open: ``blocks.3.attn.qkv`` is in ``blocks.*.attn``."""
    return ".".join("*" if part.isdigit() else part for part in key.split(".")[:-1][:depth]) or key


def load_strictly(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    dead: Mapping[str, str],
    fresh: Sequence[str] = (),
    hint: str = "",
) -> ImportReport:
    """Load a state dict whose names are the model's, or change nothing and say what does not fit.

    Args:
        model: where the values go.
        state: names and tensors; renaming is done by the caller.
        source: what kind of weights these are, for the report.
        dead: glob patterns of keys to drop, with the reason.
        fresh: glob patterns of entries of the model that such files never hold.
        hint: what to do when it does not fit.

    Raises:
        CheckpointError: something does not fit, or is no number; the model is unchanged.
    """
    own = model.state_dict()
    dropped = {key: reason for key in state if key not in own and (reason := _reason(key, dead))}
    common = [name for name in own if name in state]
    absent = [name for name in own if name not in state]
    new = tuple(name for name in absent if any(fnmatch.fnmatchcase(name, pattern) for pattern in fresh))
    report = ImportReport(
        source=source,
        loaded=tuple(common),
        dropped=tuple(dropped.items()),
        initialised=new,
        missing=tuple(name for name in absent if name not in new),
        unexpected=tuple(key for key in state if key not in own and key not in dropped),
        mismatched=tuple(
            (name, tuple(state[name].shape), tuple(own[name].shape))
            for name in common
            if state[name].shape != own[name].shape
        ),
    )
    report.check(hint)
    for name in common:
        if not state[name].is_meta and state[name].isnan().any():
            raise CheckpointError(f"The weights ({source}) are damaged: {name} holds values that are no numbers (NaN).")
    model.load_state_dict({name: state[name] for name in common}, strict=False)
    return report


def normalised_as(model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Note on a model the normalisation that its weights were trained with, where nobody asked for another.

    Args:
        model: one made by `medvid_core.create_model` or in training; others have no input described, and stay so.
        mean: of each channel, of pictures scaled to [0, 1].
        std: likewise.
    """
    from medvid_core.models import ModelInfo, model_spec

    info = getattr(model, "medvid", None)
    if not isinstance(info, ModelInfo):
        return
    usual = model_spec(info.name).clip
    if (info.clip.mean, info.clip.std) == (usual.mean, usual.std):
        model.medvid = replace(info, clip=replace(info.clip, mean=mean, std=std))  # type: ignore[assignment]


def _reason(key: str, dead: Mapping[str, str]) -> str:
    return next((why for pattern, why in dead.items() if fnmatch.fnmatchcase(key, pattern)), "")
