"""Predict on videos that nobody annotated: masks frame by frame as they come, everything else as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from medvid_core.data.clip import Case
from medvid_core.data.fan import fan_box
from medvid_core.data.prompts import Prompt, read_prompts
from medvid_core.data.readers import image_size
from medvid_core.engine.ensemble import load
from medvid_core.engine.inference import Windows, predict_case, segment_case
from medvid_core.engine.opening import check_words, config_beside, open_videos, prepared, require_free, write_folders
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import scan_lines, write_json
from medvid_core.engine.scoring import columns, frame_columns, scored_case, write_rows
from medvid_core.engine.setup import accelerator, scan_choice
from medvid_core.errors import ConfigError
from medvid_core.models import ModelInfo, describe, model_spec

WINDOWS = 4
"""Windows of a video computed together."""


def predict(
    model_or_run: torch.nn.Module | Path | str,
    path: Path | str,
    out: Path | str = "predictions",
    *,
    video: bool = True,
    overlap: int = 0,
    prompts: Path | str | None = None,
    cache: Path | str = "",
    settings: Sequence[str] = (),
) -> list[Path]:
    """Predict on a video, a folder of frames, or a folder of either; or on data in a layout that a data set reads.

    Of masks each case gets ``<case>/masks/<frame>.png``; of everything else ``<case>/prediction.csv`` and, where frames
    have values, ``<case>/frames.csv``, with the columns of a run's ``cases.csv`` and ``frames.csv``. Where clips
    are cropped to the sector, masks are those of whole frames, with background outside of the crop, and
    ``<case>/crop.json`` says what was cut out, in source pixels.

    Args:
        model_or_run: a model made by medvid, a run directory, a model file, or the folder of a cross-validation, of
            whose models the mean is taken.
        path: what to predict on.
        out: folder to write to.
        video: whether to write ``<case>/overlay.webm`` as well.
        overlap: frames that neighbouring windows share; they are blended. Not for models with ``clip.blend=centre``.
        prompts: a file that says what is meant, see `medvid_core.data.prompts`, for models that take prompts.
        cache: folder of prepared videos, for models whose videos are prepared; empty: the user's own.
        settings: ``dataset=NAME`` and ``dataset.KEY=VALUE``, where the layout alone does not say how ``path`` is read.

    Returns:
        The folder of each case.

    Raises:
        CheckpointError: the model cannot be loaded. DataError: nothing to predict on; or ``out`` holds predictions of
            some of the cases, before anything is computed; or, after all the others are written, the cases that
            cannot be read, each with its reason.
        ConfigError: the overlap does not fit the model's clips, or the model takes no prompts; or several data sets
            know the layout of ``path``, or a setting does not fit.
    """
    check_words(settings)
    front = accelerator()
    loaded = None if isinstance(model_or_run, torch.nn.Module) else load(model_or_run)
    model = cast(torch.nn.Module, model_or_run) if loaded is None else loaded.model
    info = describe(model)
    config_file = None if loaded is None else config_beside(loaded.file)
    opened = open_videos(info, Path(path), overlap, WINDOWS, front.device, settings, config_file)
    model.to(front.device).eval()
    pointed = _prompts(prompts, info, [case for case, _ in opened.cases])
    require_free(Path(out), opened.names, "prediction")
    front.wait_for_everyone()  # until all have looked: the folders that one process makes are no earlier predictions
    progress = Progress(front.is_main_process)
    for line in scan_lines(scan_choice(model, front.device, trained=model is not model_or_run)):
        progress.say(line)
    opened = prepared(opened, str(cache), front, progress)

    def write(case: Case, folder: Path) -> None:
        _predict_one(model, info, case, opened.windows, pointed.get(case.case_id, ()), folder, video)

    return write_folders(opened, Path(out), "predicting", front, progress, write)


def _prompts(path: Path | str | None, info: ModelInfo, cases: Sequence[Case]) -> dict[str, tuple[Prompt, ...]]:
    """Read the prompts of each case.

    Raises:
        ConfigError: the model takes none. DataError: the file cannot be used.
    """
    if path is None:
        return {}
    output = next((output for output in info.outputs if output.task == "segmentation"), None)
    if output is None or not model_spec(info.name).prompts:
        raise ConfigError(f"{info.name} takes no prompts: leave --prompts out, or choose a model that does.")
    return read_prompts(Path(path), cases, output)


def _predict_one(
    model: torch.nn.Module,
    info: ModelInfo,
    case: Case,
    windows: Windows,
    prompts: Sequence[Prompt],
    folder: Path,
    video: bool,
) -> None:
    """Write what is predicted of one case.

    Raises:
        DataError: it cannot be read.
    """
    from medvid_core.report.captions import write_captioned
    from medvid_core.report.overlay import write_case

    crop = fan_box(case, info.fan_crop)
    if crop is not None:
        folder.mkdir(parents=True, exist_ok=True)
        height, width = image_size(case.streams["video"])
        told = {"fan_crop": info.fan_crop, **crop._asdict(), "source_height": height, "source_width": width}
        write_json(folder / "crop.json", told)
    masks = [output for output in info.outputs if output.task == "segmentation"]
    others = [output for output in info.outputs if output.task != "segmentation"]
    for output in masks:
        blocks = segment_case(model, output, case, windows, prompts)
        write_case(blocks, case, folder, output, with_video=video)
    if not others:
        return
    folder.mkdir(parents=True, exist_ok=True)
    found = scored_case(case, others, predict_case(model, others, case, windows))
    write_rows(folder / "prediction.csv", [{"case_id": case.case_id, "frames": case.frames, **columns(found, others)}])
    frames = frame_columns(found, others)
    if frames:
        write_rows(folder / "frames.csv", frames)
    if video and not masks:
        write_captioned(folder / "overlay.webm", case, found, others, range(case.frames))
