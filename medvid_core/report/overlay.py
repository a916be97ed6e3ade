"""Predictions shown over their videos: for the report the best and worst cases, for `predict` every case."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from av.error import FFmpegError
from PIL import Image
from torch import nn

from medvid_core.data.clip import Case
from medvid_core.data.loader import read_case_masks
from medvid_core.data.readers import read_images
from medvid_core.data.transforms import to_source
from medvid_core.engine.inference import FrameBlock
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import Run, write_json
from medvid_core.engine.scoring import CaseRow, Scorer, best_and_worst
from medvid_core.errors import MedvidError
from medvid_core.metrics.base import ScoredCase, to_classes
from medvid_core.report.captions import lines, write_captioned
from medvid_core.report.draw import Bytes, Still, draw, fitted_size, resize_image, resize_mask, strip
from medvid_core.report.palette import Colours, palette
from medvid_core.report.video import OverlayWriter
from medvid_core.specs import OutputSpec

__all__ = ["OverlayWriter", "draw", "safe_name", "write_case", "write_overlays"]

FRAMES = 64
"""Most frames of a video in the report, so that it stays small."""
STILLS = 5
LONGEST = 512
"""Longer side of a video in the report, in pixels."""
_STILL_SIDE, _STILL_LONGEST = 200, 320  # pixels
_AT_ONCE = 8  # frames brought to source pixels together: large videos stay within memory


@dataclass(frozen=True)
class ShownFrame:
    """One frame with what is drawn on it.

    Attributes:
        number: its index in the source.
        image: uint8 [H,W,3].
        predicted: class of each pixel, uint8 [H,W].
        truth: annotated class of each pixel, uint8 [H,W], 255 = unlabelled; None: not annotated.
    """

    number: int
    image: Bytes
    predicted: Bytes
    truth: Bytes | None


def safe_name(case_id: str, taken: Collection[str] = ()) -> str:
    """Return a file name for a case: letters, digits, ``.``, ``_``, ``-``; no path, not hidden, not yet taken.

    An id that had to be changed gets a short hash of itself, so that ``a/b`` and ``a_b`` do not meet. Names that
    differ in case only count as the same, as on macOS and Windows.
    """
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", case_id).strip("._-")[:80] or "case"
    if clean != case_id:
        clean = f"{clean}-{hashlib.sha256(case_id.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    lower = {name.lower() for name in taken}
    names = (clean if i == 1 else f"{clean}-{i}" for i in range(1, len(lower) + 2))
    return next(name for name in names if name.lower() not in lower)


def shown_frames(case: Case, limit: int = FRAMES) -> range:
    """Return which frames of a case the report shows: the first ones, or those around the first annotated one."""
    first = min(case.labelled) if case.labelled else 0
    start = 0 if first < limit else min(first - limit // 2, max(0, case.frames - limit))
    return range(start, min(start + limit, case.frames))


def still_frames(case: Case, shown: range, count: int = STILLS) -> list[int]:
    """Return the frames of the still strip: equispaced, moved to annotated frames where those are rare."""
    picks = [round(frame) for frame in np.linspace(shown.start, shown.stop - 1, min(count, len(shown)))]
    for known in [frame for frame in shown if case.is_labelled(frame)][:count]:
        free = [i for i, frame in enumerate(picks) if not case.is_labelled(frame)]
        if known not in picks and free:
            picks[min(free, key=lambda i: abs(picks[i] - known))] = known
    return sorted(set(picks))


def frames_of(blocks: Iterable[FrameBlock], case: Case, wanted: range) -> Iterator[ShownFrame]:
    """Yield the wanted frames, in order, as their predictions come in; later blocks are not computed.

    Raises:
        DataError: a frame or mask cannot be read.
    """
    for block in blocks:
        if block.frames[0] >= wanted.stop:
            return
        for start in range(0, len(block.frames), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            yield from _frames_of_part(block, part, case, wanted)


def _frames_of_part(block: FrameBlock, part: slice, case: Case, wanted: range) -> Iterator[ShownFrame]:
    keep = [i for i in range(len(block.frames))[part] if block.frames[i] in wanted]
    if not keep:
        return
    numbers = [block.frames[i] for i in keep]
    values = to_source(block.probabilities[keep], block.affine, block.source_size)
    predicted = to_classes(values).to(torch.uint8).numpy()
    images = read_images(case.streams["video"], numbers)
    truth, labelled = read_case_masks(case, numbers, block.source_size)
    for i, number in enumerate(numbers):
        yield ShownFrame(number, images[i], predicted[i], truth[i] if labelled[i] else None)


def save_mask(path: Path, mask: Bytes, colours: Colours) -> None:
    """Write a mask uint8 [H,W] as indexed PNG: the value of a pixel is its class, shown in that class's colour."""
    image = Image.fromarray(mask)  # mode L; with a palette it becomes P, its values unchanged
    image.putpalette(colours.tobytes())
    image.save(path)


def write_case(
    blocks: Iterable[FrameBlock], case: Case, directory: Path, output: OutputSpec, with_video: bool = True
) -> None:
    """Write the predictions of one case as they come: ``masks/<frame>.png`` and ``overlay.webm``.

    Args:
        blocks: from `medvid_core.engine.inference.segment_case`.
        case: the video; where it is annotated, the overlay shows that too.
        directory: folder of this case (see `safe_name`).
        output: what was predicted; with one class (binary) the masks hold 0 and 1.
        with_video: whether to write the overlay video.

    Raises:
        DataError: a frame or mask cannot be read.
    """
    masks, colours = directory / "masks", palette(len(output.classes))
    masks.mkdir(parents=True, exist_ok=True)
    with OverlayWriter(directory / "overlay.webm", len(output.classes), case.fps) as writer:
        for frame in frames_of(blocks, case, range(case.frames)):
            save_mask(masks / f"{frame.number:05d}.png", frame.predicted, colours)
            if with_video:
                writer.write(frame.image, frame.predicted, frame.truth)


def _still(frame: ShownFrame, colours: Colours) -> Still:
    height, width = frame.image.shape[:2]
    size = fitted_size(height, width, _STILL_SIDE, longest=_STILL_LONGEST)
    image = resize_image(frame.image, size)
    truth = None if frame.truth is None else resize_mask(frame.truth, size)
    drawn = draw(image, resize_mask(frame.predicted, size), truth, colours)
    label = f"frame {frame.number}" + ("" if truth is not None else ", not annotated")
    return Still(label, image, drawn)


def _write_overlay(blocks: Iterable[FrameBlock], case: Case, stem: Path, classes: int) -> dict[str, Any]:
    """Write video and still strip of one case; return what the index says of them."""
    shown = shown_frames(case)
    picks, stills, colours = still_frames(case, shown), [], palette(classes)
    video, still = stem.with_name(f"{stem.name}.webm"), stem.with_name(f"{stem.name}.png")
    with OverlayWriter(video, classes, case.fps, longest=LONGEST) as writer:
        for frame in frames_of(blocks, case, shown):
            writer.write(frame.image, frame.predicted, frame.truth)
            if frame.number in picks:
                stills.append(_still(frame, colours))
    strip(stills).save(still)
    return {**_entry(case, video, still, shown, writer.fps), "shows": "masks"}


def _write_captions(case: Case, scored: ScoredCase, stem: Path, outputs: Sequence[OutputSpec]) -> dict[str, Any]:
    """Write video and some frames of one case without masks; return what the index says of them."""
    shown = shown_frames(case)
    video, still = stem.with_name(f"{stem.name}.webm"), stem.with_name(f"{stem.name}.png")
    picture, fps = write_captioned(video, case, scored, outputs, shown, LONGEST)
    Image.fromarray(picture).save(still)
    return {**_entry(case, video, still, shown, fps), "shows": "captions"}


def _entry(case: Case, video: Path, still: Path, shown: range, fps: float) -> dict[str, Any]:
    return {
        "video": video.name,
        "still": still.name,
        "frames": case.frames,
        "first_frame": shown.start,
        "frames_shown": len(shown),
        "fps": case.fps,
        "fps_shown": fps,
    }


def write_overlays(
    run: Run,
    model: nn.Module,
    cases: Sequence[Case],
    rows: Sequence[CaseRow],
    scorer: Scorer,
    progress: Progress,
) -> None:
    """Write video and stills of the best and worst cases, and ``overlays/index.json``, into the run directory.

    Best and worst are by the first metric, or by `medvid_core.engine.scoring.merit` where that has no value for a case.
    The videos show masks or, where there are none, ``captions`` of what is predicted: so ``shows`` in the index. A case
    whose overlay cannot be written costs that overlay: it is said, and stands in the index with its ``problem``.
    """
    metric = scorer.metrics[0].name
    best, worst = best_and_worst(rows, metric, run.record["metrics"][metric], scorer.settings.overlays, scorer.others)
    by_id, values = {case.case_id: case for case in cases}, {row["case_id"]: row.get(metric) for row in rows}
    scored = {row["case_id"]: row.scored for row in rows if row.scored is not None}
    directory = run.directory / "overlays"
    directory.mkdir(parents=True, exist_ok=True)
    was_training = model.training
    model.eval()
    index: list[dict[str, Any]] = []
    names: list[str] = []
    chosen = [(case_id, "best") for case_id in best] + [(case_id, "worst") for case_id in worst]
    for case_id, kind in progress.track(chosen, "overlays"):
        case = by_id[case_id]
        names.append(safe_name(case_id, names))
        words = lines(scored[case_id], scorer.others) if case_id in scored else []
        entry = {"case_id": case_id, "kind": kind, "metric": metric, "value": values[case_id], "words": words}
        try:
            if scorer.masks is not None:
                blocks = scorer.segment(model, case)
                entry |= _write_overlay(blocks, case, directory / names[-1], len(scorer.masks.classes))
            else:
                entry |= _write_captions(case, scored[case_id], directory / names[-1], scorer.others)
        except (MedvidError, OSError, FFmpegError) as error:
            progress.say(f"overlay of {case_id} left out: {error}")
            entry["problem"] = str(error)
        index.append(entry)
    model.train(was_training)
    write_json(directory / "index.json", index)
