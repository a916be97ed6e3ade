"""CAMUS: apical two- and four-chamber echocardiograms from end diastole to end systole, with the left heart drawn.

```text
patient0001/patient0001_4CH_half_sequence.nii.gz       the clip, and …_2CH_…
patient0001/patient0001_4CH_half_sequence_gt.nii.gz    masks of all its frames (newer releases), or only
patient0001/patient0001_4CH_{ED,ES}_gt.nii.gz          those of two
patient0001/Info_4CH.cfg                               ED, ES, EF, Sex, Age, ImageQuality, FrameRate, …
subgroup_{training,validation,testing}.txt             a patient a line: fixes the split
```

Patients may lie in a folder ``database_nifti``, and the lists in ``database_split`` beside it, as published. What the
files do not say by themselves:

- ED and ES of the ``cfg`` count frames from 1. Some clips run from end systole to end diastole.
- The single images ``…_ED.nii.gz`` and ``…_ES.nii.gz`` are frames of the clip, and not read.
- EF is of the patient, measured by the authors from both views: its cases have the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvid_core.data.clip import Array, Case, Index, Source, Target
from medvid_core.data.datasets.folders import list_folders, make_index, require_folder
from medvid_core.data.datasets.tables import number_in
from medvid_core.data.readers import nifti
from medvid_core.errors import ConfigError, DataError, did_you_mean
from medvid_core.specs import OutputSpec

LAYOUT = "patient<number>/patient<number>_{2CH,4CH}_half_sequence.nii.gz with Info_{2CH,4CH}.cfg and …_gt.nii.gz"
VIEWS = ("2CH", "4CH")
MASK = OutputSpec(name="mask", task="segmentation", classes=("background", "lv", "myo", "la"))
EJECTION_FRACTION = OutputSpec(name="ejection_fraction", task="regression", classes=("ejection_fraction",))

_PATIENT = re.compile(r"patient\d+", re.IGNORECASE)
_SPLITS = {"training": "train", "validation": "val", "testing": "test"}
_VOLUMES = {"lvedv": "edv_ml", "edv": "edv_ml", "lvesv": "esv_ml", "esv": "esv_ml"}
_KEPT = {"sex": "sex", "age": "age", "imagequality": "image_quality", **_VOLUMES}


@dataclass(frozen=True, kw_only=True)
class CAMUSConfig:
    """Which clips are used.

    Attributes:
        views: views to use, of ``2CH`` and ``4CH``.
    """

    views: tuple[str, ...] = VIEWS


def can_read(root: Path) -> bool:
    """Whether a patient has a half sequence of a view."""
    return root.is_dir() and any(
        _file(folder, f"{folder.name}_{view}_half_sequence") for folder in _patients(root) for view in VIEWS
    )


def index(root: Path | None, config: CAMUSConfig) -> Index:
    """List the cases, one a view; the headers of clip and masks are opened. Group and study are the patient.

    Outputs: the mask of left ventricle, myocardium and left atrium, and the ejection fraction in percent. Metadata of a
    case: ``ed_frame`` and ``es_frame``, ``image_quality``, ``sex``, ``age``, ``edv_ml`` and ``esv_ml`` where given.

    Raises:
        DataError: if the folder is missing, holds no usable clip, or a patient is in two of the lists.
        ConfigError: if a view is unknown.
    """
    root = require_folder(root, LAYOUT)
    for view in config.views:
        if view not in VIEWS:
            raise ConfigError(
                f"dataset.views={list(config.views)}: CAMUS has the views {' and '.join(VIEWS)}, not {view!r}."
                f"{did_you_mean(view, VIEWS)}"
            )
    splits = _splits(root)
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for folder in _patients(root):
        for view in config.views:
            name = f"{folder.name}/{view}"
            if not any(folder.glob(f"{folder.name}_{view}_*")):
                continue
            if splits and folder.name not in splits:
                skipped[name] = "the patient is in none of the lists subgroup_*.txt"
                continue
            try:
                cases.append(_case(folder, view, splits.get(folder.name)))
            except DataError as error:
                skipped[name] = str(error)
    outputs = [MASK] if any("mask" in case.streams for case in cases) else []
    outputs += [EJECTION_FRACTION] if any(case.targets for case in cases) else []
    return make_index(cases, tuple(outputs), skipped, root, LAYOUT)


def _patients(root: Path) -> Iterator[Path]:
    """The folders of patients, in the root or one level deeper."""
    place = root / "database_nifti" if (root / "database_nifti").is_dir() else root
    return (folder for folder in list_folders(place) if _PATIENT.fullmatch(folder.name))


def _file(folder: Path, stem: str) -> Path | None:
    """The NIfTI file of this name, compressed or not."""
    return next((path for path in (folder / f"{stem}{end}" for end in nifti.SUFFIXES) if path.is_file()), None)


def _splits(root: Path) -> dict[str, str]:
    """Patient → part of the data, as the lists say; empty without lists.

    Raises:
        DataError: if a patient is in two of them.
    """
    places = [root, root / "database_split"]
    if root.name == "database_nifti":
        places.append(root.parent / "database_split")
    found: dict[str, str] = {}
    for name, part in _SPLITS.items():
        path = next((path for place in places if (path := place / f"subgroup_{name}.txt").is_file()), None)
        for patient in path.read_text("utf-8", errors="replace").split() if path else ():
            if found.setdefault(patient, part) != part:
                raise DataError(f"{path}: {patient} is in the list for {found[patient]} too. Take it out of one.")
    return found


def _case(folder: Path, view: str, split: str | None) -> Case:
    """One clip.

    Raises:
        DataError: if a file is missing, cannot be read, or does not belong to the others.
    """
    stem = f"{folder.name}_{view}"
    path = _file(folder, f"{stem}_half_sequence")
    if path is None:
        raise DataError(f"there is no {stem}_half_sequence.nii.gz")
    info = nifti.probe(str(path))
    config = folder / f"Info_{view}.cfg"
    said = read_info(config)
    ed, es = (_frame(said, key, info.frames, config) for key in ("ed", "es"))
    if ed == es:
        raise DataError(f"{config}: ED and ES are the same frame, {ed + 1}")
    streams = {"video": Source(reader="nifti", paths=(str(path),))}
    mask, labelled = _mask(folder, stem, (ed, es), (*nifti.size(str(path)), info.frames))
    if mask is not None:
        streams["mask"] = mask
    fraction = said.get("ef", said.get("lvef", ""))
    ef = number_in({"EF": fraction}, "EF", str(config))
    if ef is None and mask is None:
        raise DataError(f"there are no masks {stem}_…_gt.nii.gz, and {config.name} holds no EF")
    targets: dict[str, Target] = {} if ef is None else {EJECTION_FRACTION.name: ef}
    return Case(
        case_id=f"{folder.name}/{view}",
        group_id=folder.name,
        study_id=folder.name,
        frames=info.frames,
        streams=streams,
        labelled=labelled,
        split=split,
        fps=number_in(said, "framerate", str(config)) or info.fps,
        spacing=info.spacing,
        view=view,
        targets=targets,
        metadata={
            **{_KEPT[key]: value for key, value in said.items() if key in _KEPT and value},
            "ed_frame": str(ed),
            "es_frame": str(es),
        },
    )


def read_info(path: Path) -> dict[str, str]:
    """Return the settings of an ``Info_*.cfg``, lines ``key: value`` or ``key = value``, keys in lower case.

    Raises:
        DataError: if the file is missing.
    """
    if not path.is_file():
        raise DataError(f"there is no {path.name}, which says what the frames are")
    pairs = [re.split("[:=]", line, maxsplit=1) for line in path.read_text("utf-8", errors="replace").splitlines()]
    return {pair[0].strip().lower(): pair[1].strip() for pair in pairs if len(pair) == 2}


def _frame(said: dict[str, str], key: str, frames: int, path: Path) -> int:
    """The number of a frame, from 0, that is written from 1.

    Raises:
        DataError: if it is not written, or no frame of the clip.
    """
    text = said.get(key, "")
    if not text.isdecimal() or not 1 <= int(text) <= frames:
        raise DataError(f"{path}: {key.upper()} is {text!r}; it must be a frame of the clip, 1 to {frames}")
    return int(text) - 1


def _mask(
    folder: Path, stem: str, ends: tuple[int, int], shape: tuple[int, int, int]
) -> tuple[Source | None, tuple[int, ...] | None]:
    """The masks of a clip, and which frames they are of; None for all.

    Args:
        folder: of the patient.
        stem: of the file names.
        ends: end diastole and end systole.
        shape: rows, columns and frames of the clip.

    Raises:
        DataError: if one of two is missing, or they do not fit the clip.
    """
    values = tuple(range(len(MASK.classes)))
    drawn = _file(folder, f"{stem}_half_sequence_gt")
    if drawn is not None:
        _require_shape(drawn, shape)
        return Source(reader="nifti", paths=(str(drawn),), values=values), None
    pair = {phase: _file(folder, f"{stem}_{phase}_gt") for phase in ("ED", "ES")}
    there = [path for path in pair.values() if path is not None]
    if not there:
        return None, None
    if len(there) == 1:
        missing = next(phase for phase, path in pair.items() if path is None)
        raise DataError(f"there is {there[0].name}, but no {stem}_{missing}_gt.nii.gz")
    for path in there:
        _require_shape(path, (*shape[:2], 1))
    paths = tuple(map(str, there))
    return Source(reader=f"{__name__}:read_ends", paths=paths, values=values, options=ends), tuple(sorted(ends))


def _require_shape(path: Path, shape: tuple[int, int, int]) -> None:
    """Refuse masks of another size, or number of frames, than those they are of."""
    found = (*nifti.size(str(path)), nifti.count_frames(str(path)))
    if found != shape:
        raise DataError(
            f"{path} has (rows, columns, frames) {found}, its clip calls for {shape}: they do not belong together"
        )


def read_ends(source: Source, frames: Sequence[int]) -> Array:
    """Read the masks of end diastole and end systole, whose files and frames a source names in this order, [T,H,W].

    Raises:
        DataError: if a file cannot be read.
    """
    files = dict(zip(source.options, source.paths, strict=True))
    return np.concatenate([nifti.read_raw(files[frame], [0]) for frame in frames])
