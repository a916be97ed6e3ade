"""Explain what a trained model predicts of a video: where, and when, it is seen."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, nn

from medvid_core.data.clip import Case
from medvid_core.data.loader import collate, frame_times, to_device
from medvid_core.engine.attribution import (
    CLOSED,
    COARSE,
    METHODS,
    NOT,
    Asked,
    Attribution,
    Method,
    Question,
    ask,
    differentiable,
    explained_output,
    predicted_question,
)
from medvid_core.engine.ensemble import Ensemble, runs_of
from medvid_core.engine.inference import Blend, Windows, predict_case
from medvid_core.engine.opening import check_words, config_beside, open_videos, prepared, require_free, write_folders
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import scan_lines, write_json
from medvid_core.engine.setup import accelerator, scan_choice
from medvid_core.errors import ConfigError, did_you_mean
from medvid_core.models import describe, load_model, model_file

MAPS_FILE, RECORD_FILE = "explanation.safetensors", "explanation.json"


@dataclass(frozen=True)
class Explanation:
    """What speaks for something in a video.

    Attributes:
        question: what was asked.
        answer: its probability, or the number.
        predicted: whether it is what the model predicts, or was asked for by name.
        maps: by stream, float [T,h,w] in model pixels.
        affine: [3,3], source → model pixel coordinates.
        source_size: height and width of the video in pixels.
        windows: how many windows the video was cut into.
        attributed: sum of all maps, the mean over windows; None where it has no meaning.
        difference: what that should be, likewise.
        gap: the largest difference of the two in any window.
        map_sizes: by stream, frames, height and width of a window's maps before they were enlarged to those of the
            clip; empty: they were not.
    """

    question: Question
    answer: float
    predicted: bool
    maps: Mapping[str, Tensor]
    affine: Tensor
    source_size: tuple[int, int]
    windows: int
    attributed: float | None = None
    difference: float | None = None
    gap: float | None = None
    map_sizes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def coarse(self) -> list[str]:
        """Height and width of maps that are too coarse to say where, each once."""
        sizes = dict.fromkeys((height, width) for _, height, width in self.map_sizes.values())
        return [f"{height}x{width}" for height, width in sizes if min(height, width) < COARSE]


def explain(
    model_or_run: nn.Module | Path | str,
    path: Path | str,
    out: Path | str = "explanations",
    *,
    wanted: str = "",
    output: str = "",
    method: str = "grad-cam",
    overlap: int = 0,
    cache: Path | str = "",
    settings: Sequence[str] = (),
) -> list[Path]:
    """Explain what a model predicts of a video, a folder of frames, or of each in a folder of either, or in a data set.

    Each case gets a folder with, for each stream, a video and a sheet of stills that show what speaks for what is
    asked, ``explanation.json`` and ``explanation.safetensors`` (the maps).

    Args:
        model_or_run: a model made by medvid, a run directory, or a model file.
        path: what to explain.
        out: folder to write to.
        wanted: the class asked for, see `medvid_core.engine.attribution.ask`; empty: the predicted one of each video.
        output: of which output; empty: the only one that can be explained.
        method: ``grad-cam`` or ``integrated-gradients``.
        overlap: frames that neighbouring windows share; they are blended.
        cache: folder of prepared videos, for models whose videos are prepared; empty: the user's own.
        settings: ``dataset=NAME`` and ``dataset.KEY=VALUE``, where the layout alone does not say how ``path`` is read.

    Returns:
        The folder of each case.

    Raises:
        ConfigError: the model, output, class or method do not fit; or Captum is asked for and not installed; or several
            data sets know the layout of ``path``, or a setting does not fit.
        CheckpointError: the model cannot be loaded. DataError: nothing to explain; or ``out`` holds explanations of
            some of the cases; or, after all the others are written, the cases that cannot be read.
    """
    check_words(settings)
    front = accelerator()
    model = _one_model(model_or_run)
    info = describe(model)
    chosen = explained_output(info, output)
    if wanted == "" and chosen.task == "regression" and len(chosen.classes) > 1:
        raise ConfigError(
            f"Output {chosen.name!r} has several numbers: say which with --class ({', '.join(chosen.classes)})."
        )
    question = ask(chosen, wanted) if wanted else None
    if method not in METHODS:
        raise ConfigError(
            f"--method {method}: there is no such method.{did_you_mean(method, METHODS)} Known: {', '.join(METHODS)}."
        )
    asked = Asked(model)
    how = METHODS[method](asked, info)
    config_file = None if isinstance(model_or_run, nn.Module) else config_beside(model_file(model_or_run))
    opened = open_videos(info, Path(path), overlap, 1, front.device, settings, config_file)
    model.to(front.device)
    require_free(Path(out), opened.names, "explanation")
    front.wait_for_everyone()
    progress = Progress(front.is_main_process)
    for line in scan_lines(scan_choice(model, front.device, trained=model is not model_or_run)):
        progress.say(line)
    opened = prepared(opened, str(cache), front, progress)

    def write(case: Case, folder: Path) -> None:
        predicted = predict_case(model, [chosen], case, opened.windows)[chosen.name]
        asked.question = question or predicted_question(chosen, predicted)
        found = explain_case(asked, how, case, opened.windows, predicted, question is None, progress)
        progress.say(f"{case.case_id}: {answer_line(found)}{_size_words(found)}")
        for line in doubts(found):
            progress.say(f"note     {case.case_id}: {line}")
        write_explanation(folder, case, found, how, method, {"model": info.name, "overlap": overlap})

    return write_folders(opened, Path(out), "explaining", front, progress, write)


def _one_model(model_or_run: nn.Module | Path | str) -> nn.Module:
    """Return a model of our own, that nobody minds being hooked and asks for no gradients of its parameters."""
    if isinstance(model_or_run, Ensemble):
        raise ConfigError("One model is explained, not the mean of several. Choose one of them.")
    if isinstance(model_or_run, nn.Module):
        return copy.deepcopy(model_or_run).requires_grad_(False)
    if runs := runs_of(Path(model_or_run)):
        raise ConfigError(f"One model is explained, not the mean of several. Name one run: {runs[0]}.")
    return load_model(model_or_run).requires_grad_(False)


def explain_case(
    asked: Asked,
    method: Method,
    case: Case,
    windows: Windows,
    predicted: Tensor,
    default: bool,
    progress: Progress,
) -> Explanation:
    """Attribute every window of a video, and blend them in time as predictions are.

    Args:
        asked: the model, in evaluation mode, and what is asked of it.
        method: how to attribute.
        case: the video.
        windows: how it is cut and read.
        predicted: what the model predicts of it, [K].
        default: whether what is asked is what is predicted.
        progress: shows a bar.

    Raises:
        DataError: a frame cannot be read.
    """
    starts, weights = windows.starts(case.frames), windows.weights
    blends: dict[str, Blend] = {}
    found: list[Attribution] = []
    sample: dict[str, Any] = {}
    for start in progress.track(starts, f"windows of {case.case_id}"):
        sample = windows.read(case, start)
        with differentiable(asked):
            one = method.attribute(to_device(collate([sample]), windows.device))
        for name, maps in one.maps.items():
            blends.setdefault(name, Blend()).add_window(start, maps, weights, case.frames, windows.clip.stride)
        found.append(Attribution({}, one.attributed, one.difference, one.sizes))
    height, width = sample["source_size"].tolist()
    return Explanation(
        question=asked.question,
        answer=asked.question.answer(predicted),
        predicted=default,
        maps={name: _all_frames(blend, case) for name, blend in blends.items()},
        affine=sample["affine"],
        source_size=(height, width),
        windows=len(starts),
        map_sizes=found[-1].sizes,
        **_completeness(found),
    )


def _all_frames(blend: Blend, case: Case) -> Tensor:
    """Return the blended maps of all frames, [T,h,w]."""
    _, maps = blend.pop_before(case.frames)
    assert maps is not None  # a case has a frame
    return maps


def _completeness(found: list[Attribution]) -> dict[str, float]:
    """Return what was attributed against what should be; empty of methods that promise nothing."""
    pairs = [(one.attributed, one.difference) for one in found if one.attributed is not None]
    known = [(attributed, difference) for attributed, difference in pairs if difference is not None]
    if not known:
        return {}
    attributed, difference = (sum(values) / len(known) for values in zip(*known, strict=True))
    return {"attributed": attributed, "difference": difference, "gap": max(abs(a - b) for a, b in known)}


def answer_line(found: Explanation) -> str:
    """Return what is explained, in words."""
    question = found.question
    why = " (predicted)" if found.predicted else ""
    if question.output.task == "regression":
        several = len(question.output.classes) > 1 or question.negated
        name = f"{question.output.name}: {question.words}" if several else question.output.name
        return f"{name} {found.answer:.3g}{why}"
    return f"{question.output.name}: {question.words}, probability {found.answer:.2f}{why}"


def _size_words(found: Explanation) -> str:
    """Return how large the maps of a window were, as the end of a line; empty where they were not enlarged."""
    sizes = {stream: "x".join(map(str, size)) for stream, size in found.map_sizes.items()}
    each = [f"{stream} {size}" for stream, size in sizes.items()] if len(set(sizes.values())) > 1 else sizes.values()
    return f", maps {', '.join(dict.fromkeys(each))} (frames x height x width)" if sizes else ""


def doubts(found: Explanation) -> list[str]:
    """Return what should be known before the maps are believed."""
    lines = []
    if found.coarse:
        lines.append(
            f"maps of {' and '.join(found.coarse)} places (height x width) are too coarse to say where. Train with a "
            "larger clip.size, or use --method integrated-gradients"
        )
    if not any(bool(maps.any()) for maps in found.maps.values()):
        lines.append(
            f"nothing speaks for {found.question.words}; ask what speaks against it with --class '{_other(found)}'"
        )
    elif found.gap is not None and found.gap > CLOSED * abs(found.difference or 0.0):
        lines.append(
            f"the maps of a window add up to {found.gap:.3g} more or less than they should (the mean is "
            f"{found.difference:.3g}): gradients vary too much between baseline and clip to be relied upon"
        )
    return lines


def _other(found: Explanation) -> str:
    words = found.question.words
    return words.removeprefix(NOT) if found.question.negated else f"{NOT}{words}"


def _unit(question: Question) -> str:
    return question.output.name if question.output.task == "regression" else "log odds"


def _heat_lines(found: Explanation, how: Method, stream: str) -> tuple[list[str], str]:
    """Return the words of a video, and what its curve is of."""
    of = f" ({stream})" if len(found.maps) > 1 else ""
    maps, question, unit = found.maps[stream], found.question, _unit(found.question)
    pro, con = "speaks for it", "speaks against it"
    if question.output.task == "regression":
        pro, con = ("lowers it", "raises it") if question.negated else ("raises it", "lowers it")
    colours = f"orange {pro}, blue {con}" if how.signed else f"orange {pro}"
    notes = [] if bool(maps.any()) else [f"nothing in this video {pro}"]
    if found.coarse:
        notes.append(f"{' and '.join(found.coarse)} places: too coarse to say where")
    curve = f"what a frame adds, {unit}" if how.signed else "strongest place of a frame"
    return [answer_line(found), f"{how.title}{of}: {colours}", *notes], curve


def write_explanation(
    folder: Path, case: Case, found: Explanation, how: Method, method: str, more: Mapping[str, Any]
) -> None:
    """Write all there is to say of a case.

    Args:
        folder: where to; made if need be.
        case: the video.
        found: what was found.
        how: the method, as it was set up.
        method: its name.
        more: for the record.

    Raises:
        DataError: a frame cannot be read.
    """
    from medvid_core.report.heat import Heat, write_heat
    from medvid_core.report.overlay import safe_name

    folder.mkdir(parents=True, exist_ok=True)
    question = found.question
    streams: dict[str, Any] = {}
    names: list[str] = []
    for stream, maps in found.maps.items():
        end = f"-{stream}" if len(found.maps) > 1 else ""
        names.append(safe_name(f"{question.words}-{method}{end}".replace(" ", "-"), names))
        heat = Heat(maps, how.signed, found.affine, found.source_size)
        words, curve = _heat_lines(found, how, stream)
        write_heat(folder / names[-1], case, heat, words, curve)
        streams[stream] = {
            "video": f"{names[-1]}.webm",
            "stills": f"{names[-1]}.png",
            "map_size": list(found.map_sizes.get(stream, maps.shape)),
            "unit": float(maps.abs().max()),
            "sum": float(maps.double().sum()),
            "frame_maximum": maps.flatten(1).amax(1).tolist(),
            "frame_sum": maps.double().flatten(1).sum(1).tolist(),
        }
    times = frame_times(case, np.arange(case.frames))
    value = {"number" if question.output.task == "regression" else "probability": found.answer}
    record = {
        "case_id": case.case_id,
        "frames": case.frames,
        "frame_index": list(case.source_frames) or list(range(case.frames)),
        "time_s": [None if math.isnan(time) else round(time, 6) for time in times.tolist()],
        **more,
        "output": question.output.name,
        "task": question.output.task,
        "class": question.words,
        "is_predicted": found.predicted,
        **value,
        "explains": _unit(question),
        "method": method,
        "settings": how.settings(),
        "windows": found.windows,
        "streams": streams,
        "notes": doubts(found),
    }
    if found.gap is not None:
        record["completeness"] = {"sum": found.attributed, "expected": found.difference, "largest_gap": found.gap}
    write_json(folder / RECORD_FILE, record)
    _write_maps(folder / MAPS_FILE, found)


def _write_maps(path: Path, found: Explanation) -> None:
    """Write maps as float16 [T,h,w]: in parts of their largest value, for single pixels hold less than it can say."""
    maps = {name: (value / (value.abs().max() or 1.0)).half().contiguous() for name, value in found.maps.items()}
    units = {f"{name}/unit": str(float(value.abs().max())) for name, value in found.maps.items()}
    save_file(maps, os.fspath(path), metadata={**units, "class": found.question.words})
