"""The models of a cross-validation's folds as one: what they predict is averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from medvid_core.data.folds import read_folds
from medvid_core.engine.run import read_json
from medvid_core.errors import CheckpointError, DataError
from medvid_core.models import MODEL_FILE, ModelInfo, describe, load_model, model_file

RESULT = "cv.json"
"""What a finished cross-validation leaves in its folder."""
FOLDS = "splits.json"
"""The folds, beside it."""


class Ensemble(nn.ModuleList):
    """Models that predict the same things of the same clips.

    `medvid_core.engine.inference` runs them one after the other over the windows of a case and takes the mean of their
    probabilities, numbers or scores.

    Args:
        models: made by medvid.

    Raises:
        CheckpointError: they do not fit together.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__(models)
        first, *others = [describe(model) for model in models]
        for other in others:
            if _shape(other) != _shape(first):
                mine, theirs = _shape(first), _shape(other)
                key = next(key for key in mine if mine[key] != theirs[key])
                raise CheckpointError(
                    f"These models cannot be averaged: they differ in {key} ({mine[key]} and {theirs[key]}). Name one "
                    "of their runs."
                )
        self.medvid = first


def _shape(info: ModelInfo) -> dict[str, object]:
    """Return what models must share to be averaged: all that says what they predict, and how clips are read."""
    own = ("name", "version", "config", "outputs")
    clip = {item.name: getattr(info, item.name) for item in dataclasses.fields(info) if item.name not in own}
    return {**clip, "outputs": [(output.name, output.task, output.classes) for output in info.outputs]}


@dataclass(frozen=True)
class Loaded:
    """A model to predict with.

    Attributes:
        model: a model, or an `Ensemble`.
        file: its model file; of several the first.
        home: the folder of the run, of the file, or of the cross-validation.
        runs: run directories of an ensemble; of a single model empty.
    """

    model: nn.Module
    file: Path
    home: Path
    runs: tuple[Path, ...] = ()


def load(path: Path | str) -> Loaded:
    """Load a run directory, a model file, or the folder of a cross-validation.

    Raises:
        CheckpointError: there is no model, or one that cannot be used. DataError: a record is damaged.
    """
    runs = runs_of(Path(path))
    if not runs:
        file = model_file(path)
        return Loaded(load_model(path), file, file.parent)
    model = Ensemble([load_model(run) for run in runs])
    return Loaded(model.eval(), runs[0] / MODEL_FILE, Path(path), runs)


def runs_of(folder: Path) -> tuple[Path, ...]:
    """Return the runs of the folds whose models a cross-validation offers; none for any other folder or a file.

    Raises:
        CheckpointError: it has not finished. DataError: its record is damaged.
    """
    if not folder.is_dir() or (folder / MODEL_FILE).is_file():
        return ()
    runs = read_json(folder / RESULT).get("runs") or []
    if not runs and _is_unfinished(folder):
        raise CheckpointError(
            f"The cross-validation {folder} has not finished: it holds no {RESULT}. Go on with the same medvid-run cv."
        )
    return tuple(folder / str(run) for run in runs)


def _is_unfinished(folder: Path) -> bool:
    try:
        return (folder / FOLDS).is_file() and bool(read_folds(folder / FOLDS).test)
    except DataError:  # the record of a run that has not finished, which the caller tells of
        return False


def parts_of(loaded: Loaded) -> dict[str, list[str]]:
    """Return ids of the cases that any model of a cross-validation learnt from as ``train``, the rest as ``test``."""
    parts = [read_json(run / "splits.json") for run in loaded.runs]
    learnt = {name for splits in parts for part in ("train", "val") for name in splits.get(part, ())}
    held_out = read_folds(loaded.home / FOLDS).held_out
    tested = [*held_out, *(name for splits in parts for name in splits.get("test", ()))]
    test = [name for name in dict.fromkeys(tested) if name not in learnt]
    return {"train": sorted(learnt), "val": [], "test": test}


def described(info: ModelInfo, loaded: Loaded) -> dict[str, object]:
    """Return the description of a model for a record; of an ensemble with the runs it is made of."""
    return info.to_dict() | ({"mean_of": [str(run) for run in loaded.runs]} if loaded.runs else {})
