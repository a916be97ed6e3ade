"""Predict while the video is being recorded: frame in, score out, in constant memory and time a frame.

One thread takes in frames, the other predicts. Between them is a queue of fixed length: where the model is slower than
the frames come, either the source waits (``queue``) or the oldest waiting frame is dropped (``drop``).
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from medvid_core.config import ClipConfig
from medvid_core.data import transforms
from medvid_core.data.readers.live import LiveFrame, live_frames
from medvid_core.engine.ensemble import runs_of
from medvid_core.engine.inference import activated
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import scan_lines, write_json
from medvid_core.engine.setup import accelerator, scan_choice
from medvid_core.errors import ConfigError, DataError
from medvid_core.models import describe, load_model, model_spec
from medvid_core.specs import FRAME_TASKS, OutputSpec

QUEUE = 8
"""Frames that may wait."""

IDLE_S = 5.0
"""Seconds after which a folder without a new frame has ended."""


@dataclass
class Latency:
    """How long frames took, in fixed memory: counts of a histogram whose bins grow by a twentieth.

    Attributes:
        counts: frames by bin.
        frames: how many in all.
        total_s: seconds of all together.
        longest_s: of the slowest.
    """

    counts: dict[int, int] = field(default_factory=dict)
    frames: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Take in one frame."""
        place = math.floor(math.log(max(seconds, 1e-6)) / math.log(1.05))
        self.counts[place] = self.counts.get(place, 0) + 1
        self.frames += 1
        self.total_s += seconds
        self.longest_s = max(self.longest_s, seconds)

    def quantile_s(self, share: float) -> float:
        """Return the seconds that this share of the frames does not exceed, to a twentieth; NaN of nothing."""
        wanted, seen = share * self.frames, 0
        for place in sorted(self.counts):
            seen += self.counts[place]
            if seen >= wanted:
                return min(1.05 ** (place + 1), self.longest_s)
        return math.nan

    def bars(self, rows: int = 10, width: int = 40) -> list[str]:
        """Return the histogram as lines of text."""
        if not self.frames:
            return []
        low, high = min(self.counts), max(self.counts) + 1
        edges = np.unique(np.linspace(low, high, min(rows, high - low) + 1).round().astype(int))
        sums = [
            sum(count for place, count in self.counts.items() if first <= place < last)
            for first, last in itertools.pairwise(edges)
        ]
        return [
            f"{1e3 * 1.05**a:8.2f} to {1e3 * 1.05**b:8.2f} ms  {'█' * round(width * n / max(sums)):<{width}}  {n}"
            for (a, b), n in zip(itertools.pairwise(edges), sums, strict=True)
        ]


@dataclass
class StreamResult:
    """What a stream came to.

    Attributes:
        frames: taken in.
        predicted: of these, predicted.
        dropped: of these, dropped because the model was busy.
        skipped: of these, left out because the model was trained on every n-th frame.
        seconds: from the first frame to the last score.
        work: time the model took for a frame.
        latency: time from a frame's arrival to its score, waiting included.
    """

    frames: int = 0
    predicted: int = 0
    dropped: int = 0
    skipped: int = 0
    seconds: float = 0.0
    work: Latency = field(default_factory=Latency)
    latency: Latency = field(default_factory=Latency)

    def summary(self) -> dict[str, float]:
        """Return the figures as plain data, times in milliseconds."""
        found: dict[str, float] = {
            "frames": self.frames,
            "predicted": self.predicted,
            "dropped": self.dropped,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.predicted / self.seconds, 2) if self.seconds else math.nan,
        }
        for name, kind in (("work", self.work), ("latency", self.latency)):
            mean = kind.total_s / kind.frames if kind.frames else math.nan
            values = {"mean": mean, "median": kind.quantile_s(0.5), "p95": kind.quantile_s(0.95), "max": kind.longest_s}
            found |= {f"{name}_ms_{which}": round(1e3 * value, 3) for which, value in values.items()}
        return found


class Streamer:
    """A causal model and the state of one stream.

    Args:
        model: made by medvid, in evaluation mode.
        device: where it runs.

    Raises:
        ConfigError: the model cannot stream: its architecture does not, it looks ahead, or it needs streams that are
            computed from several frames.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.info = describe(model)
        spec = model_spec(self.info.name)
        if self.info.preprocess:
            raise ConfigError(
                f"Model {spec.name!r} was trained on videos prepared by {self.info.preprocess['name']}, which looks at "
                "whole videos: frames that are still to come cannot be prepared. Predict without --stream."
            )
        if not spec.streaming:
            raise ConfigError(f"Model {spec.name!r} needs whole clips and cannot stream. Predict without --stream.")
        if self.info.fan_crop != "none":
            raise ConfigError(
                f"Model {spec.name!r} was trained on clips cropped to their sector, which is found by looking at whole "
                "videos (or at a mask beside them). Predict without --stream."
            )
        if self.info.clip.streams != ("video",):
            raise ConfigError(f"Model {spec.name!r} needs {', '.join(self.info.clip.streams)}; only video can stream.")
        self.model: Any = model.to(device).eval()
        self.device = device
        self.clip = ClipConfig(frames=self.info.frames, size=self.info.size, stride=self.info.stride)
        self.reset()

    def reset(self) -> None:
        """Forget all frames: the next begins a new video."""
        self.state = self.model.initial_state(1)

    def warm_up(self) -> None:
        """Predict on one black frame and forget it, so that the first one need not wait for kernels to be compiled."""
        self.push(np.zeros((*self.clip.size, 3), np.uint8), 0.0)
        self.reset()

    def push(self, image: np.ndarray[Any, Any], time_s: float | None = None) -> dict[str, Tensor]:
        """Take in one frame, and return what is predicted.

        Args:
            image: uint8 [H,W,3].
            time_s: when it was taken, in seconds.

        Returns:
            By output, on the CPU: of outputs with a value a frame, that of this frame; of the others, that of all
            frames so far. Probabilities, numbers and scores as in `ScoredCase.predicted`, less the frame axis.
        """
        video, _ = transforms.resize(
            transforms.to_video(np.ascontiguousarray(image)[None]),
            tv_tensors.Mask(torch.zeros(1, *image.shape[:2], dtype=torch.uint8)),
            self.clip.size,
        )
        taken = torch.tensor([[math.nan if time_s is None else time_s]], dtype=torch.float64)
        frames = {
            "video": transforms.normalise(video, self.info.clip)[None].to(self.device),
            "time_s": taken.to(self.device),
        }
        with torch.inference_mode():
            outputs, self.state = self.model.step(frames, self.state)
        found = {}
        for output in self.info.outputs:
            value = activated(output, outputs[output.name].float()).cpu()[0]
            found[output.name] = value[0] if output.task in FRAME_TASKS else value
        return found


def values(outputs: Iterable[OutputSpec], found: Mapping[str, Tensor]) -> dict[str, float]:
    """Return predictions as columns: ``<output>/<class>``, or ``<output>`` where there is one number."""
    columns: dict[str, float] = {}
    for output in outputs:
        numbers = found[output.name].reshape(-1).tolist()
        if len(numbers) == 1:
            columns[output.name] = numbers[0]
        else:
            columns |= {f"{output.name}/{label}": n for label, n in zip(output.classes, numbers, strict=False)}
    return columns


class _Intake(threading.Thread):
    """Takes in frames and queues them."""

    def __init__(self, frames: Iterator[LiveFrame], waiting: queue.Queue[Any], drop: bool, stride: int) -> None:
        super().__init__(daemon=True, name="medvid-intake")
        self.frames, self.waiting, self.drop, self.stride = frames, waiting, drop, stride
        self.taken = self.dropped = self.skipped = 0
        self.error: BaseException | None = None
        self.stopped = threading.Event()

    def run(self) -> None:
        try:
            for frame in self.frames:
                self.taken += 1
                if frame.number % self.stride:
                    self.skipped += 1
                elif not self._put((frame, time.perf_counter())):
                    return
        except BaseException as error:  # it is raised where the frames are used
            self.error = error
        self._put(None)

    def _put(self, item: Any) -> bool:
        """Queue an item; false where nobody waits for it any more."""
        dropping = self.drop and item is not None
        while not self.stopped.is_set():
            try:
                self.waiting.put(item, block=not dropping, timeout=0.1)
                return True
            except queue.Full:
                if dropping:
                    self._drop_oldest()
        return False

    def _drop_oldest(self) -> None:
        try:
            self.waiting.get_nowait()
            self.dropped += 1
        except queue.Empty:
            pass


def stream(
    streamer: Streamer,
    frames: Iterator[LiveFrame],
    path: Path,
    *,
    drop: bool = False,
    waiting: int = QUEUE,
    most: int | None = None,
    show: Any = None,
    result: StreamResult | None = None,
) -> StreamResult:
    """Predict frame by frame, and write a line of CSV for each as it is done.

    The table is made with the first line: a source that gives no frame leaves nothing behind.

    Args:
        streamer: the model.
        frames: as they come.
        path: the table to write: frame, time_s, what is predicted, work_ms, latency_ms.
        drop: drop the oldest waiting frame where the queue is full, rather than let the source wait.
        waiting: frames that may wait.
        most: stop after so many predictions.
        show: called with each line's values.
        result: where to put the figures, which are there also where the source breaks off.

    Returns:
        The figures; also where the stream was interrupted by Ctrl-C.

    Raises:
        DataError: the table is there already; or a frame could not be read: what came before it is predicted and
            written.
    """
    result = StreamResult() if result is None else result
    line: queue.Queue[Any] = queue.Queue(waiting)
    intake = _Intake(frames, line, drop, streamer.clip.stride)
    if path.exists():
        raise DataError(f"{path} is there already. Choose another --out.")
    if path.parent.exists() and not path.parent.is_dir():
        raise DataError(f"{path.parent} is a file; it must be a folder. Choose another --out.")
    with contextlib.ExitStack() as opened:
        writer: csv.DictWriter[str] | None = None
        intake.start()
        started = time.perf_counter()
        try:
            while most is None or result.predicted < most:
                item = line.get()
                if item is None:
                    break
                frame, arrived = item
                begun = time.perf_counter()
                predicted = values(streamer.info.outputs, streamer.push(frame.image, frame.time_s))
                now = time.perf_counter()
                row = {
                    "frame": frame.number,
                    "time_s": "" if frame.time_s is None else round(frame.time_s, 6),
                    **predicted,
                    "work_ms": round(1e3 * (now - begun), 3),
                    "latency_ms": round(1e3 * (now - arrived), 3),
                }
                if writer is None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file = opened.enter_context(open(path, "w", newline="", encoding="utf-8"))
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                writer.writerow(row)
                file.flush()  # whoever reads along sees it at once, and a kill loses nothing
                result.work.add(now - begun)
                result.latency.add(now - arrived)
                result.predicted += 1
                if show is not None:
                    show(row)
        except KeyboardInterrupt:
            pass
        finally:
            intake.stopped.set()
            result.seconds = time.perf_counter() - started
            result.frames, result.dropped, result.skipped = intake.taken, intake.dropped, intake.skipped
    if intake.error is not None:
        raise intake.error
    return result


def predict_stream(
    model_or_run: nn.Module | Path | str,
    path: str,
    out: Path | str = "predictions",
    *,
    device_format: str | None = None,
    drop: bool = False,
    waiting: int = QUEUE,
    most: int | None = None,
    idle_s: float = IDLE_S,
) -> StreamResult:
    """Predict on a file, a growing folder or a capture device, frame by frame.

    Args:
        model_or_run: a model made by medvid, a run directory, or a model file; causal.
        path: see `live_frames`.
        out: folder for ``stream.csv``, a line a frame, and ``latency.json``.
        device_format: see `live_frames`.
        drop: see `stream`.
        waiting: see `stream`.
        most: stop after so many predictions.
        idle_s: see `live_frames`.

    Returns:
        The figures, which are also printed.

    Raises:
        ConfigError: the model cannot stream, or a setting cannot be used. DataError: the source cannot be read, or
            breaks off: what came before is predicted, and the figures are written.
    """
    if waiting < 1 or (most is not None and most < 1):
        raise ConfigError("--queue and --frames must be at least 1.")
    front = accelerator()
    if not isinstance(model_or_run, nn.Module) and (runs := runs_of(Path(model_or_run))):
        raise ConfigError(f"A stream is predicted by one model, not by the mean of several. Name one run: {runs[0]}.")
    model = model_or_run if isinstance(model_or_run, nn.Module) else load_model(model_or_run)
    streamer = Streamer(model, front.device)
    progress = Progress(front.is_main_process)
    for text in scan_lines(scan_choice(model, front.device, trained=model is not model_or_run)):
        progress.say(text)
    streamer.warm_up()
    if streamer.clip.stride > 1:
        progress.say(f"note     the model was trained on every {streamer.clip.stride}th frame, and takes these alone")
    folder = Path(out)
    frames = live_frames(path, device_format, idle_s)
    result = StreamResult()
    try:
        with progress:
            stream(
                streamer,
                frames,
                folder / "stream.csv",
                drop=drop,
                waiting=waiting,
                most=most,
                show=lambda row: progress.live(_line(row)),
                result=result,
            )
    finally:
        if result.predicted:
            write_json(folder / "latency.json", result.summary())
            for text in _words(result):
                progress.say(text)
            progress.say(f"wrote    {folder / 'stream.csv'}")
    return result


def _line(row: Mapping[str, Any]) -> str:
    """One frame in a few words."""
    shown = [f"{name} {value:.3f}" for name, value in row.items() if isinstance(value, float) and name != "time_s"]
    return f"frame {row['frame']}: {', '.join(shown[:6])}"


def _words(result: StreamResult) -> list[str]:
    """The figures as people read them."""
    found = result.summary()
    lines = [
        f"frames   {found['predicted']} predicted of {found['frames']}, {found['dropped']} dropped, "
        f"{found['skipped']} skipped; {found['frames_per_second']} a second",
    ]
    for name, kind in (("work", result.work), ("latency", result.latency)):
        lines.append(
            f"{name:<8} median {found[f'{name}_ms_median']:.2f} ms, 95 % within {found[f'{name}_ms_p95']:.2f} ms, "
            f"longest {found[f'{name}_ms_max']:.2f} ms"
        )
        lines += [f"         {bar}" for bar in kind.bars()]
    return lines
