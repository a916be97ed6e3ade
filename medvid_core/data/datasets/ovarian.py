"""The layout of the ovarian, multi-class fork of Vivim: frames and their masks in one folder a clinical case.

``<case>/<number>_frame.png`` with ``<number>_<class>.png``, one file a class (``0001_background.png``,
``0001_solid.png``, ``0001_non-solid.png``), or with ``<number>_mask.png``, one file of class numbers. A fan mask
``<case>/fan.png`` says where the sector is (`medvid_core.data.fan`). Frames without any mask are unlabelled.

A table ``cases.csv`` may stand beside the cases, with the columns ``case_id``, and ``group_id`` (the patient) or
``stratum`` (what folds share evenly, such as the histological type). Without it every case is a patient of its own, and
``clip.max_numerosity``, which counts clips by patient, counts them by case as the fork does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medvid_core.data.clip import Case, Index, Source
from medvid_core.data.datasets.folders import labelled_frames, list_files, list_folders, make_index, require_folder
from medvid_core.data.datasets.masks import MaskConfig, MaskPlan, plan
from medvid_core.data.datasets.tables import read_table
from medvid_core.data.readers import class_masks
from medvid_core.data.readers.frames import SUFFIXES
from medvid_core.errors import DataError, did_you_mean

LAYOUT = "<case>/<number>_frame.png with <number>_<class>.png for each class, or <number>_mask.png"
_FRAME, _INDEX = "frame", "mask"


@dataclass(frozen=True, kw_only=True)
class OvarianConfig(MaskConfig):
    """The classes are the endings of the mask files, background first; with one name, that of the foreground.

    Attributes:
        classes: any number of names. A pixel that several files claim goes to the brightest, of equals to the first;
            one that no file claims is background.
    """

    classes: tuple[str, ...] = ("background", "solid", "non-solid")


@dataclass(frozen=True)
class _Files:
    """The files of one case: frames by number, and masks by number and kind."""

    frames: Mapping[str, Path]
    masks: Mapping[str, Mapping[str, Path]]

    @property
    def kinds(self) -> set[str]:
        """What kinds of mask there are."""
        return {kind for masks in self.masks.values() for kind in masks}


def can_read(root: Path) -> bool:
    """Whether the first folder with files in it holds a ``…_frame`` image."""
    for folder in list_folders(root) if root.is_dir() else ():
        if list_files(folder, SUFFIXES):
            return bool(list_frames(folder))
    return False


def list_frames(folder: Path) -> list[Path]:
    """List the ``…_frame`` images of a folder in natural order: of a case, those that are no masks."""
    return [path for path in list_files(folder, SUFFIXES) if path.stem.endswith(f"_{_FRAME}")]


def index(root: Path | None, config: OvarianConfig) -> Index:
    """List the cases; no mask is opened. The group of a case is the case, or what ``cases.csv`` says.

    Raises:
        DataError: if the folder is missing or empty, a mask belongs to no frame or no class, there are masks and none
            of a class, the table does not fit, or no clip is usable.
        ConfigError: if class names and mask values do not fit.
    """
    root = require_folder(root, LAYOUT)
    masks = plan(config)
    names = masks.classes if len(masks.classes) > 1 else ("background", *masks.classes)
    files = {folder.name: _files(folder) for folder in list_folders(root)}
    _check_kinds(files, names, root)
    table = _table(root, list(files))
    skipped = {name: "the folder holds no <number>_frame images" for name, found in files.items() if not found.frames}
    cases = [
        _case(name, found, names, masks, table.get(name, {})) for name, found in files.items() if name not in skipped
    ]
    return make_index(cases, (masks.output(),), skipped, root, LAYOUT)


def _files(folder: Path) -> _Files:
    """Sort the images of a case by number and kind.

    Raises:
        DataError: a mask without a frame.
    """
    frames: dict[str, Path] = {}
    masks: dict[str, dict[str, Path]] = {}
    for path in list_files(folder, SUFFIXES):
        number, _, kind = path.stem.partition("_")
        if kind == _FRAME:
            frames[number] = path
        elif kind:
            masks.setdefault(number, {})[kind] = path
    stray = [path for number, found in masks.items() if number not in frames for path in found.values()]
    if stray:
        raise DataError(
            f"{folder}: the mask {stray[0].name} belongs to no frame: there is no "
            f"{stray[0].stem.partition('_')[0]}_frame image. Add the frame, or remove the mask."
        )
    return _Files(frames, masks)


def _check_kinds(files: Mapping[str, _Files], names: Sequence[str], root: Path) -> None:
    """Refuse masks of classes nobody named, and foreground classes that no file is of.

    Raises:
        DataError: naming one.
    """
    found = {kind for case in files.values() for kind in case.kinds}
    for name, case in files.items():
        for kind in sorted(case.kinds - {*names, _INDEX}):
            raise DataError(
                f"{root / name} holds masks of {kind!r}, which is no class.{did_you_mean(kind, names)} Name all "
                f"classes, background first: dataset.classes=[{','.join((*names, kind))}]."
            )
    if _INDEX in found or not found:  # without any mask there is nothing to score, but to predict on
        return
    for name in names[1:]:
        if name not in found:
            raise DataError(
                f"No case in {root} has a mask of {name!r} (<number>_{name}.png).{did_you_mean(name, sorted(found))} "
                f"Found: {', '.join(sorted(found)) or 'no mask'}. Correct dataset.classes."
            )


def _case(name: str, files: _Files, names: Sequence[str], masks: MaskPlan, row: Mapping[str, str]) -> Case:
    """One clinical case.

    Raises:
        DataError: some of its masks are of class numbers, and some are one a class.
    """
    kinds = files.kinds
    indexed = _INDEX in kinds
    if indexed and len(kinds) > 1:
        other = min(kinds - {_INDEX})
        raise DataError(
            f"Case {name!r} has masks of class numbers (…_mask) and of one class (…_{other}). Keep one kind."
        )
    of_frame = [files.masks.get(number, {}) for number in files.frames]
    if indexed:
        paths = tuple(str(found.get(_INDEX, "")) for found in of_frame)
        source = masks.source("frames", paths)
        labelled = labelled_frames(paths)
    else:
        paths = tuple(str(found.get(kind, "")) for found in of_frame for kind in names)
        source = Source(
            reader=class_masks.READER,
            paths=paths,
            values=tuple(range(len(names))),
            options="resize" if masks.resize else None,
        )
        labelled = labelled_frames(["labelled" if found else "" for found in of_frame])
    return Case(
        case_id=name,
        group_id=row.get("group_id") or name,
        stratum=row.get("stratum", ""),
        frames=len(files.frames),
        labelled=labelled,
        metadata={key: value for key, value in row.items() if key not in ("case_id", "group_id", "stratum")},
        streams={"video": Source(reader="frames", paths=tuple(map(str, files.frames.values()))), "mask": source},
    )


def _table(root: Path, cases: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read ``cases.csv``, by case; nothing where there is none.

    Raises:
        DataError: it names a case that is not there.
    """
    path = root / "cases.csv"
    if not path.is_file():
        return {}
    found = {}
    for number, row in read_table(path, ("case_id",)):
        if row["case_id"] not in cases:
            raise DataError(
                f"{path}, row {number}: there is no case {row['case_id']!r}.{did_you_mean(row['case_id'], cases)} "
                "Correct the row, or add the folder."
            )
        found[row["case_id"]] = row
    return found
