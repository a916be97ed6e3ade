"""What the folder adapters share: natural order, listing, pairing masks with frames, and the checks of an index."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medvid_core.data.clip import Case, Index
from medvid_core.data.readers.frames import SUFFIXES
from medvid_core.errors import DataError
from medvid_core.specs import OutputSpec

_DIGITS = re.compile(r"([0-9]+)")


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return the key that sorts ``frame2`` before ``frame10``, digits before letters, letters whatever their case.

    Texts that differ only in case or leading zeros are sorted as plain text.
    """
    parts = _DIGITS.split(text)  # text, digits, text, digits, …, text
    keys = [_number_key(part) if place % 2 else (1, 0, part.lower()) for place, part in enumerate(parts) if part]
    return (*keys, (-1, 0, text))


def _number_key(digits: str) -> tuple[int, int, str]:
    """The key of a number: by length, then by digits, as Python refuses to read thousands of them."""
    digits = digits.lstrip("0")
    return 0, len(digits), digits


def list_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """List the files with one of these endings in natural order; hidden files and fan masks are left out."""
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes
        and not path.name.startswith(".")
        and not is_fan_mask(path)
        and path.is_file()
    ]
    return sorted(found, key=lambda path: natural_key(path.name))


def is_fan_mask(path: Path) -> bool:
    """Whether a file is named as fan masks are, ``fan.png`` or ``clip_fan.png`` (see `medvid_core.data.fan`)."""
    return (path.stem == "fan" or path.stem.endswith("_fan")) and path.suffix.lower() in SUFFIXES


def list_folders(folder: Path) -> list[Path]:
    """List the folders inside in natural order; hidden ones are left out."""
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=lambda path: natural_key(path.name))


def require_folder(root: Path | None, layout: str) -> Path:
    """Return the data set's folder.

    Args:
        root: what the user named.
        layout: what the folder should hold, for the error text.

    Raises:
        DataError: if none was named, it does not exist, or it is empty.
    """
    if root is None:
        raise DataError(f"No folder was given. Name one with --data PATH; it must hold {layout}.")
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"The folder {root} {what}. Name with --data a folder that holds {layout}.")
    if not any(root.iterdir()):
        raise DataError(f"The folder {root} is empty. Put the data there: it must hold {layout}.")
    return root


def pair(
    frames: Sequence[Path], masks: Sequence[Path], where: str, *, sparse: bool, remedy: str = ""
) -> tuple[str, ...]:
    """Find the mask of each frame: by file stem, or, where no stem agrees, by the last number in the stem.

    Args:
        frames: the frame files.
        masks: the mask files.
        where: the case, for the error text.
        sparse: whether a frame may lack a mask.
        remedy: what to do about a frame that lacks one.

    Returns:
        One path a frame, ``""`` for a frame without a mask.

    Raises:
        DataError: if a mask matches no frame, or a frame lacks one where ``sparse`` is off.
    """
    by_key = _by_stem(frames), _by_stem(masks)
    if not by_key[0].keys() & by_key[1].keys():
        numbers = _by_number(frames), _by_number(masks)
        by_key = numbers if numbers[0].keys() & numbers[1].keys() else by_key
    frame_of, mask_of = by_key
    stray = [path for key, path in mask_of.items() if key not in frame_of]
    if stray:
        raise DataError(
            f"{where}: {len(stray)} of {len(masks)} masks match none of the {len(frames)} frames, first "
            f"{_names(stray)}. Give mask and frame files the same names (the ending apart), or remove these masks."
        )
    paired = tuple(str(mask_of[key]) if key in mask_of else "" for key in frame_of)
    if not sparse and "" in paired:
        raise DataError(
            f"{where}: {paired.count('')} of {len(frames)} frames have no mask, first "
            f"{frames[paired.index('')].name}. Add the masks, or remove the frames{remedy}."
        )
    return paired


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    """File by its name without the ending.

    Raises:
        DataError: if two files differ in their ending alone.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise DataError(f"{found[path.stem]} and {path.name} differ in their ending alone. Remove one of them.")
        found[path.stem] = path
    return found


def _by_number(paths: Sequence[Path]) -> dict[str, Path]:
    """File by the last number in its name; empty where one has none, or two the same."""
    numbers = [_DIGITS.findall(path.stem)[-1:] for path in paths]
    found = {str(int(number[0])): path for number, path in zip(numbers, paths, strict=True) if number}
    return found if len(found) == len(paths) else {}


def _names(paths: Sequence[Path], most: int = 3) -> str:
    """The first few file names."""
    return ", ".join(path.name for path in paths[:most]) + (", …" if len(paths) > most else "")


def labelled_frames(masks: Sequence[str]) -> tuple[int, ...] | None:
    """Numbers of the frames that have a mask file; None for all."""
    return None if all(masks) else tuple(number for number, path in enumerate(masks) if path)


def make_index(
    cases: Iterable[Case], outputs: tuple[OutputSpec, ...], skipped: Mapping[str, str], root: Path, layout: str
) -> Index:
    """Check the cases as a whole.

    Raises:
        DataError: if there is none, two share a name, or one patient stands on two sides of a split.
    """
    cases = tuple(cases)
    if not cases:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise DataError(f"No usable clip in {root}. {reasons or 'Nothing there looks like one'}. Expected: {layout}.")
    twice = [name for name, count in Counter(case.case_id for case in cases).items() if count > 1]
    if twice:
        raise DataError(
            f"{root}: the case name {', '.join(map(repr, twice[:3]))} stands for more than one clip. "
            "Case names must be unique over the whole data set: rename the folders, files or case_id values."
        )
    sides: dict[str, str] = {}
    for case in cases:
        if case.split and sides.setdefault(case.group_id, case.split) != case.split:
            raise DataError(
                f"{root}: the patient (group_id) {case.group_id!r} is in both {sides[case.group_id]} and {case.split}. "
                "Put all clips of a patient on one side, or leave the split out and let medvid draw it."
            )
    return Index(cases=cases, outputs=outputs, skipped=dict(skipped))
