"""CardiacUDC: echocardiograms of several sites and views as NIfTI cines, with chambers drawn in some frames.

``Site_*/patient-<id>-<view>_image.nii.gz`` with ``…_label.nii.gz``, and ``label_all_frame/{patient,normal}-<id>-4_…``,
whose clips are labelled in every frame. What the files do not say by themselves:

- The same id in several views and folders is one patient; ``normal-1`` and ``patient-1`` are two people.
- Clips of ``label_all_frame`` may stand in a site's folder too: the same id and view, where one site alone has that id.
  The one with more labelled frames is used, the other is skipped. Its site is that of the patient's other clips, else
  ``label_all_frame``.
- Label values 1 to 4 are left ventricle, left atrium, right atrium and right ventricle in view 4, the apical
  four-chamber view. Other views use the same values for other structures.
- Labels are chambers or their outlines, which are filled here.
- Normal and diseased people differ in folder, and so perhaps in site and machine. A model that tells them apart may
  have learnt the machine: trust ``diagnosis`` only with a site held out.

Reading which frames are labelled unpacks every label file once a run, about 0.2 s each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvid_core.data.clip import Array, Case, Index, Source
from medvid_core.data.datasets.folders import list_folders, make_index, natural_key, require_folder
from medvid_core.data.readers import nifti
from medvid_core.errors import ConfigError, DataError, did_you_mean
from medvid_core.specs import OutputSpec

LAYOUT = "Site_*/patient-<id>-<view>_image.nii.gz with …_label.nii.gz, and label_all_frame/ likewise"
KINDS = ("normal", "patient")
DIAGNOSIS = OutputSpec(name="diagnosis", task="classification", classes=KINDS)

_ALL_FRAMES = "label_all_frame"
_FOUR_CHAMBERS = ("background", "lv", "la", "ra", "rv")
_NAME = re.compile(r"(normal|patient)-(.+)-([0-9]+)_image(\.nii|\.nii\.gz)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class CardiacUDCConfig:
    """Which clips are used, and how.

    Attributes:
        views: views to use; 4 is the apical four-chamber view.
        masks: whether to use the labels; without them only the diagnosis is predicted.
        classes: names of the label values from 0 on. Must be set for other views than 4.
        empty_is_unlabelled: a frame without any label is one nobody drew, rather than one without a chamber.
        fill_contours: fill what a label encloses: some are outlines.
        held_out_site: the folder that is the test set; all others are training. Empty: medvid draws the split.
    """

    views: tuple[int, ...] = (4,)
    masks: bool = True
    classes: tuple[str, ...] = _FOUR_CHAMBERS
    empty_is_unlabelled: bool = True
    fill_contours: bool = True
    held_out_site: str = ""


@dataclass(frozen=True)
class _Clip:
    """One clip by its names."""

    path: Path
    kind: str
    person: str
    view: int

    @property
    def folder(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.person}-{self.view}"

    @property
    def label(self) -> Path:
        return self.path.with_name(re.sub("_image(?=[^_]*$)", "_label", self.path.name, flags=re.IGNORECASE))


def can_read(root: Path) -> bool:
    """Whether a folder of a site, or of fully labelled clips, holds a clip."""
    return root.is_dir() and any(_clips(root))


def index(root: Path | None, config: CardiacUDCConfig) -> Index:
    """List the cases. The group of a case is the person; metadata: ``site``.

    Outputs: the mask of the chambers, and the diagnosis where there are both normal and diseased people.

    Raises:
        DataError: if the folder is missing or holds no usable clip.
        ConfigError: if a setting does not fit the data.
    """
    root = require_folder(root, LAYOUT)
    _check_classes(config)
    clips = _clips(root)
    sites = _sites(clips)
    held_out = _held_out(config.held_out_site, set(sites.values()))
    skipped: dict[str, str] = {}
    used = [clip for clip in clips if clip.view in config.views]
    away = {clip.person for clip in clips if sites[clip] == held_out}
    diagnosis = {clip.kind for clip in used} == set(KINDS)
    found: dict[_Clip, Case] = {}
    for clip in used:
        if clip.person in away and sites[clip] != held_out:
            skipped[clip.name] = f"the patient is also in the held-out site {held_out}"
            continue
        split = ("test" if sites[clip] == held_out else "train") if held_out else None
        try:
            found[clip] = _case(clip, sites[clip], split, config, diagnosis)
        except DataError as error:
            skipped[clip.name] = str(error)
    cases = _without_repeats(found, sites, skipped)
    outputs: list[OutputSpec] = []
    if any("mask" in case.streams for case in cases):
        outputs.append(OutputSpec(name="mask", task="segmentation", classes=tuple(config.classes)))
    if diagnosis:
        outputs.append(DIAGNOSIS)
    if not outputs and not config.masks:
        raise DataError(
            f"{root} holds only {used[0].kind if used else 'no'} clips and dataset.masks is false: "
            "there is nothing to learn."
        )
    return make_index(cases, tuple(outputs), skipped, root, LAYOUT)


def _check_classes(config: CardiacUDCConfig) -> None:
    """Refuse to call structures of other views by the names of the chambers in view 4."""
    if config.masks and tuple(config.views) != (4,) and tuple(config.classes) == _FOUR_CHAMBERS:
        raise ConfigError(
            f"dataset.views={list(config.views)}: label values mean the chambers {', '.join(_FOUR_CHAMBERS[1:])} in "
            "view 4 only. Name what they mean here with dataset.classes=[background,…], or leave labels out with "
            "dataset.masks=false."
        )


def _clips(root: Path) -> list[_Clip]:
    """All clips, by folder and name in natural order."""
    found = []
    for folder in list_folders(root):
        if folder.name.lower().startswith("site_") or folder.name.lower() == _ALL_FRAMES:
            for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
                if match := _NAME.fullmatch(path.name):
                    kind = match[1].lower()
                    found.append(_Clip(path, kind, f"{kind}-{match[2]}", int(match[3])))
    return found


def _sites(clips: Sequence[_Clip]) -> dict[_Clip, str]:
    """The site of each clip."""
    of_person: dict[str, set[str]] = {}
    for clip in clips:
        if clip.folder.lower() != _ALL_FRAMES:
            of_person.setdefault(clip.person, set()).add(clip.folder)
    found = {}
    for clip in clips:
        known = of_person.get(clip.person, set())
        is_elsewhere = clip.folder.lower() == _ALL_FRAMES and len(known) == 1
        found[clip] = next(iter(known)) if is_elsewhere else clip.folder
    return found


def _held_out(wanted: str, sites: set[str]) -> str:
    """The site that is the test set, by its folder's name with or without ``Site_``; empty for none."""
    found = [site for site in sites if wanted.lower() in (site.lower(), site.lower().removeprefix("site_"))]
    if wanted and not found:
        raise ConfigError(
            f"dataset.held_out_site={wanted}: there is no such site.{did_you_mean(wanted, sites)} "
            f"Sites here: {', '.join(sorted(sites))}."
        )
    return found[0] if wanted else ""


def _without_repeats(found: Mapping[_Clip, Case], sites: Mapping[_Clip, str], skipped: dict[str, str]) -> list[Case]:
    """The cases, of those that are there twice the one with more labelled frames."""
    used = dict(found)
    twins = {(sites[clip], clip.person, clip.view): clip for clip in found if clip.folder.lower() == _ALL_FRAMES}
    for clip in found:
        twin = twins.get((clip.folder, clip.person, clip.view), clip)
        if twin != clip:
            fewer, more = sorted((clip, twin), key=lambda one: (_labelled(found[one]), one == twin))
            skipped[fewer.name] = f"the same clip is in {more.folder}, with as many labelled frames or more"
            used.pop(fewer, None)
    return list(used.values())


def _labelled(case: Case) -> int:
    """How many frames are labelled."""
    if "mask" not in case.streams:
        return 0
    return case.frames if case.labelled is None else len(case.labelled)


def _case(clip: _Clip, site: str, split: str | None, config: CardiacUDCConfig, diagnosis: bool) -> Case:
    """One clip.

    Raises:
        DataError: if a file cannot be read, or nothing is known of it.
    """
    path = str(clip.path)
    info = nifti.probe(path)
    streams = {"video": Source(reader="nifti", paths=(path,))}
    labelled: tuple[int, ...] | None = None
    if config.masks and clip.label.is_file():
        streams["mask"] = _mask(clip, config, info.frames)
        drawn = nifti.drawn_frames(str(clip.label))
        labelled = drawn if config.empty_is_unlabelled and len(drawn) < info.frames else None
    if not diagnosis and ("mask" not in streams or labelled == ()):
        raise DataError("no frame is labelled" if clip.label.is_file() else f"there is no {clip.label.name}")
    return Case(
        case_id=clip.name,
        group_id=clip.person,
        frames=info.frames,
        streams=streams,
        labelled=labelled,
        split=split,
        stratum=clip.kind,
        fps=info.fps,
        spacing=info.spacing,
        view=str(clip.view),
        targets={DIAGNOSIS.name: KINDS.index(clip.kind)} if diagnosis else {},
        metadata={"site": site},
    )


def _mask(clip: _Clip, config: CardiacUDCConfig, frames: int) -> Source:
    """The labels of a clip.

    Raises:
        DataError: if they do not fit the clip.
    """
    label = str(clip.label)
    ours, theirs = (*nifti.size(str(clip.path)), frames), (*nifti.size(label), nifti.count_frames(label))
    if ours != theirs:
        raise DataError(f"{label} has (rows, columns, frames) {theirs}, its clip {ours}: they do not belong together")
    reader = f"{__name__}:read_filled" if config.fill_contours else "nifti"
    return Source(reader=reader, paths=(label,), values=tuple(range(len(config.classes))))


def read_filled(source: Source, frames: Sequence[int]) -> Array:
    """Read labels uint8 [T,H,W], with background that a label encloses given to that label.

    Raises:
        DataError: if the file cannot be read, or holds values above 255.
    """
    masks = nifti.read_raw(source.paths[0], frames)
    if masks.size and not 0 <= masks.min() <= masks.max() <= 255:
        raise DataError(f"{source.paths[0]} holds values from {masks.min()} to {masks.max()}: they are no labels.")
    return np.stack([fill_contours(mask.astype(np.uint8)) for mask in masks])


def fill_contours(mask: Array) -> Array:
    """Return a mask uint8 [H,W] in which the background that each label encloses is that label."""
    from scipy import ndimage

    out = mask.copy()
    for value, box in enumerate(ndimage.find_objects(mask), start=1):
        if box is not None:
            part = out[box]
            part[ndimage.binary_fill_holes(mask[box] == value) & (mask[box] == 0)] = value
    return out
