"""Open videos for a trained model, and write a folder of results for each: what predicting and explaining share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from medvid_core.config import ClipConfig, compose, datasets_for, parse_overrides
from medvid_core.data.clip import Case
from medvid_core.data.datasets.unlabelled import find_cases
from medvid_core.data.preprocess import Preparation, plan_steps, streams_at_hand
from medvid_core.engine.inference import Windows
from medvid_core.engine.prepare import plan_for, prepare
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import prepare_lines
from medvid_core.engine.setup import open_dataset
from medvid_core.errors import ConfigError, DataError
from medvid_core.models import ModelInfo
from medvid_core.plugins import registry
from medvid_core.specs import resolve


@dataclass(frozen=True)
class Opened:
    """Videos that a model can be run on.

    Attributes:
        cases: the videos, each with the name of its folder of results.
        failed: id of each video that cannot be read → the reason.
        windows: how they are cut and read.
        preparation: what videos of this model are taken through first; None for nothing.
    """

    cases: Sequence[tuple[Case, str]]
    failed: Mapping[str, str]
    windows: Windows
    preparation: Preparation | None

    @property
    def names(self) -> list[str]:
        """The folders of results."""
        return [name for _, name in self.cases]


def open_videos(
    info: ModelInfo,
    path: Path,
    overlap: int,
    batch_size: int,
    device: torch.device,
    settings: Sequence[str] = (),
    config_file: Path | None = None,
) -> Opened:
    """Find the videos at a path, as a model reads them; nothing is prepared yet.

    Args:
        info: the model.
        path: a video, a folder of frames, or a folder of either; or data in a layout that a data set reads.
        overlap: frames that neighbouring windows share.
        batch_size: windows computed together.
        device: where.
        settings: words ``dataset=NAME`` and ``dataset.KEY=VALUE``, see `find_videos`.
        config_file: ``config.yaml`` of the model's run, likewise.

    Raises:
        DataError: nothing is there. ConfigError: the overlap does not fit the model's clips, or nothing provides a
            stream that the model reads; or as `find_videos` does.
    """
    from medvid_core.report.overlay import safe_name

    if not 0 <= overlap < info.frames:
        raise ConfigError(f"overlap={overlap} cannot be used: it must be from 0 to {info.frames - 1}.")
    clip = ClipConfig(
        frames=info.frames,
        size=info.size,
        stride=info.stride,
        overlap=overlap,
        padding=info.padding,
        fan_crop=info.fan_crop,
        blend=info.blend,
    )
    preparation = plan_for(info, registry())
    cases, failed = find_videos(info, path, settings, config_file)
    steps = plan_steps(registry(), info.clip.streams, streams_at_hand(preparation, cases))
    names: list[str] = []
    for case in cases:
        names.append(safe_name(case.case_id, names))
    windows = Windows(clip, info.clip, steps, batch_size, device)
    return Opened(list(zip(cases, names, strict=True)), failed, windows, preparation)


def config_beside(file: Path) -> Path | None:
    """Return ``config.yaml`` of the run that a model file lies in; None where it stands without one."""
    written = file.with_name("config.yaml")
    return written if written.is_file() else None


def check_words(settings: Sequence[str]) -> None:
    """Refuse settings that do not say how data are read.

    Raises:
        ConfigError: naming the first.
    """
    for key in parse_overrides(settings):
        if not key.startswith("dataset."):
            raise ConfigError(
                f"{key} cannot be set here. Settings that can: dataset=NAME and dataset.KEY=VALUE, which say how PATH "
                "is read."
            )


def find_videos(
    info: ModelInfo, path: Path, settings: Sequence[str] = (), config_file: Path | None = None
) -> tuple[list[Case], Mapping[str, str]]:
    """Find the videos at a path: those of the data set that knows its layout, without annotation, or all there are.

    Args:
        info: the model they are for.
        path: a folder or file.
        settings: ``dataset=NAME`` where several data sets know the layout, and ``dataset.KEY=VALUE``.
        config_file: ``config.yaml`` of the model's run, whose settings count where it was trained on the same data set.

    Returns:
        The cases, and the reason why for each one that cannot be read.

    Raises:
        DataError: nothing is there, or nothing readable. ConfigError: several data sets know the layout, or a setting
            does not fit.
    """
    if not settings and not datasets_for(registry(), path):
        return find_cases(path)
    composed = compose(registry(), info.name, str(path), settings, config_file)
    if composed.dataset.unlabelled:
        config = composed.config
        root = Path(config.data_root) if config.data_root else None
        index = resolve(composed.dataset.unlabelled)(root, config.dataset.config)
    else:
        index = open_dataset(composed)
    cases = [replace(case.only(()), targets={}, frame_targets={}) for case in index.cases]
    return cases, index.skipped


def prepared(opened: Opened, cache: str, front: Accelerator, progress: Progress) -> Opened:
    """Take the videos through the model's preprocessor, if it has one, and say so.

    Raises:
        DataError: not one can be prepared.
    """
    if opened.preparation is None:
        return opened
    found = prepare([case for case, _ in opened.cases], opened.preparation, cache, front, progress)
    for line in prepare_lines(found.record, most=None):
        progress.say(line)
    kept = [(found.cases[case.case_id], name) for case, name in opened.cases if case.case_id in found.cases]
    return replace(opened, cases=kept, failed={**opened.failed, **found.skipped})


def write_folders(
    opened: Opened, out: Path, what: str, front: Accelerator, progress: Progress, write: Callable[[Case, Path], None]
) -> list[Path]:
    """Write a folder for each video, every process its share; a folder has its name once it is whole.

    Args:
        opened: the videos.
        out: where to.
        what: said by the bar.
        front: the processes.
        progress: shows a bar.
        write: fills the folder of a case.

    Returns:
        The folders this process wrote.

    Raises:
        DataError: after all others are written: the videos that cannot be read, each with its reason.
    """
    failed, folders = dict(opened.failed), []
    with progress:
        for case, name in progress.track(opened.cases[front.process_index :: front.num_processes], what):
            folder = out / name
            unfinished = folder.with_name(f".{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # of one that was killed
            try:
                write(case, unfinished)
            except DataError as error:
                failed[case.case_id] = str(error)
                shutil.rmtree(unfinished, ignore_errors=True)
                continue
            os.replace(unfinished, folder)
            folders.append(folder)
    progress.say(f"wrote    {len(folders)} case(s) to {out}")
    if failed:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise DataError(f"{len(failed)} case(s) could not be read and are left out:\n{reasons}")
    return folders


def require_free(out: Path, names: Sequence[str], what: str) -> None:
    """Refuse at once what would be found out hours later: nothing is skipped, and nothing written over.

    Args:
        out: where to write.
        names: the folders there.
        what: that they would hold, such as ``prediction``.

    Raises:
        DataError: there are such folders already.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; it must be a folder. Choose another --out.")
    taken = [name for name in names if (out / name).exists()]
    if len(taken) == 1:
        article = "an" if what[0] in "aeiou" else "a"
        raise DataError(f"{out / taken[0]} already holds {article} {what}. Choose another --out.")
    if taken:
        first = ", ".join(taken[:5]) + (", …" if len(taken) > 5 else "")
        raise DataError(
            f"{out} already holds {what}s of {len(taken)} of the {len(names)} cases: {first}. Choose another --out."
        )
