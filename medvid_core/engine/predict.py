"""Predict on videos that nobody annotated: masks frame by frame as they come, everything else as tables."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from medvid_core.config import ClipConfig
from medvid_core.data.clip import Case
from medvid_core.data.datasets.unlabelled import find_cases
from medvid_core.data.preprocess import plan_steps
from medvid_core.data.prompts import Prompt, read_prompts
from medvid_core.engine.inference import Windows, predict_case, segment_case
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import scan_lines
from medvid_core.engine.scoring import columns, frame_columns, scored_case, write_rows
from medvid_core.engine.setup import accelerator, scan_choice
from medvid_core.errors import ConfigError, DataError
from medvid_core.models import ModelInfo, describe, load_model, model_spec
from medvid_core.plugins import registry

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
) -> list[Path]:
    """Predict on a video, a folder of frames, or a folder of either.

    Of masks each case gets ``<case>/masks/<frame>.png``; of everything else ``<case>/prediction.csv`` and, where frames
    have values, ``<case>/frames.csv``, with the columns of a run's ``cases.csv`` and ``frames.csv``.

    Args:
        model_or_run: a model made by medvid, a run directory, or a model file.
        path: what to predict on.
        out: folder to write to.
        video: whether to write ``<case>/overlay.webm`` as well.
        overlap: frames that neighbouring windows share; they are blended.
        prompts: a file that says what is meant, see `medvid_core.data.prompts`, for models that take prompts.

    Returns:
        The folder of each case.

    Raises:
        CheckpointError: the model cannot be loaded. DataError: nothing to predict on; or ``out`` holds predictions of
            some of the cases, before anything is computed; or, after all the others are written, the cases that
            cannot be read, each with its reason.
        ConfigError: the overlap does not fit the model's clip length, or the model takes no prompts.
    """
    from medvid_core.report.overlay import safe_name

    front = accelerator()
    model = model_or_run if isinstance(model_or_run, torch.nn.Module) else load_model(model_or_run)
    info = describe(model)
    if not 0 <= overlap < info.frames:
        raise ConfigError(f"overlap={overlap} cannot be used: it must be from 0 to {info.frames - 1}.")
    clip = ClipConfig(frames=info.frames, size=info.size, stride=info.stride, overlap=overlap, padding=info.padding)
    steps = plan_steps(registry(), info.clip.streams)
    model.to(front.device).eval()
    windows = Windows(clip, info.clip, steps, WINDOWS, front.device)
    cases, failed = find_cases(Path(path))
    pointed = _prompts(prompts, info, cases)
    names: list[str] = []
    for case in cases:
        names.append(safe_name(case.case_id, names))
    _require_free(Path(out), names)
    front.wait_for_everyone()  # until all have looked: the folders that one process makes are no earlier predictions
    progress = Progress(front.is_main_process)
    for line in scan_lines(scan_choice(model, front.device, trained=model is not model_or_run)):
        progress.say(line)
    folders = []
    with progress:
        mine = list(zip(cases, names, strict=True))[front.process_index :: front.num_processes]
        for case, name in progress.track(mine, "predicting"):
            folder = Path(out) / name
            unfinished = folder.with_name(f".{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a prediction that was killed
            try:
                _predict_one(model, info, case, windows, pointed.get(case.case_id, ()), unfinished, video)
            except DataError as error:
                failed[case.case_id] = str(error)
                shutil.rmtree(unfinished)
                continue
            os.replace(unfinished, folder)
            folders.append(folder)
    progress.say(f"wrote    {len(folders)} case(s) to {out}")
    if failed:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise DataError(f"{len(failed)} case(s) could not be read and are left out:\n{reasons}")
    return folders


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


def _require_free(out: Path, names: Sequence[str]) -> None:
    """Refuse at once what would be found out hours later: nothing is skipped, and nothing written over.

    Raises:
        DataError: there are predictions of these cases already.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; it must be a folder. Choose another --out.")
    taken = [name for name in names if (out / name).exists()]
    if len(taken) == 1:
        raise DataError(f"{out / taken[0]} already holds a prediction. Choose another --out.")
    if taken:
        first = ", ".join(taken[:5]) + (", …" if len(taken) > 5 else "")
        raise DataError(
            f"{out} already holds predictions of {len(taken)} of the {len(names)} cases: {first}. Choose another --out."
        )
