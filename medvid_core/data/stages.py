"""Cached stages of a preprocessor: each works on a whole video once, and what it makes is kept (see `cache`).

A preprocessor that is expensive declares ``stages``: a function ``(config) -> Sequence[Stage]``. A stage reads the
video as earlier stages left it, writes streams frame by frame, and says which source frames these show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvid_core.data.cache import Cache, Entry, files_key, key_of, plain
from medvid_core.data.clip import Array, Case, Source
from medvid_core.data.readers import frame_times, read_images, read_stream, stored
from medvid_core.errors import ConfigError, DataError

__all__ = ["Made", "Stage", "Work"]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a stage says of what it wrote.

    Attributes:
        frames: of a stage that makes a new video: the frame of its input that each new frame shows, rising. Every
            stream of the input is then left behind. None: the streams it wrote go beside those there are.
        details: plain data (JSON) for later stages and for people, e.g. the boxes that were cut out.
        note: one line of what a reader of the result should know; empty for none.
    """

    frames: tuple[int, ...] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a preprocessor.

    Attributes:
        name: unique within the preprocessor.
        provides: streams it writes.
        requires: streams it reads; those that no earlier stage provides are the data's own.
        run: does the work for one case. `DataError`: this case cannot be prepared, and is left out. Its text is kept,
            and shown to whoever comes with the same content: it must name no file, case or patient.
        settings: everything beside the input that the result depends on, plain data.
        ready: called before anything is computed, and only where the stage is needed; returns further settings, such
            as the hash of a file of weights. `ConfigError`: something is not at hand.
        version: change it whenever the same input and settings give another result.
        details_of: earlier stages whose ``details`` it reads; what others said is then kept from it, so that a change
            there leaves its result as it is. None: those of every earlier stage.
    """

    name: str
    provides: tuple[str, ...]
    requires: tuple[str, ...]
    run: Callable[[Work], Made]
    settings: Mapping[str, Any] = field(default_factory=dict)
    ready: Callable[[], Mapping[str, Any]] | None = None
    version: str = "1"
    details_of: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """One case in the hands of a stage.

    Attributes:
        case: as earlier stages left it.
        source: as the data set has it.
        details: what earlier stages said, by name: those that the stage asked for (`Stage.details_of`).
        folder: where files of the result go.
        device: where to compute.
        written: kind and file of the streams written so far, by name.
    """

    case: Case
    source: Case
    details: Mapping[str, Mapping[str, Any]]
    folder: Path
    device: torch.device
    written: dict[str, dict[str, str]] = field(default_factory=dict)

    def read(self, frames: Sequence[int], stream: str = "video") -> Array:
        """Read frames of a stream as earlier stages left it: video uint8 [T,H,W,3], others as `read_stream` does."""
        source = self.case.streams[stream]
        with _reading():
            return read_images(source, frames) if stream == "video" else read_stream(source, frames)

    def read_source(self, frames: Sequence[int]) -> Array:
        """Read frames of the data's own video, uint8 [T,H,W,3]."""
        with _reading():
            return read_images(self.source.streams["video"], frames)

    def times_s(self) -> list[float]:
        """Return when each frame of ``case`` was taken, in seconds; frame numbers where no rate is known."""
        with _reading():
            return frame_times(self.case)

    def write(self, stream: str, kind: str, frames: Iterable[Array]) -> None:
        """Write a stream.

        Args:
            stream: its name.
            kind: ``image`` (uint8 [3,H,W] each), ``mask`` (uint8 [1,H,W], 255 is certain) or ``vector``
                (float [2,H,W]: dx, dy in pixels), see `Source.kind`.
            frames: one after the other; they are not kept in memory.

        Raises:
            DataError: there are none, they differ in shape, or a vector is too long to be stored.
        """
        name = f"{stream}.frames"
        stored.write(self.folder / name, frames)
        self.written[stream] = {"kind": kind, "file": name}


@contextmanager
def _reading() -> Iterator[None]:
    """Give an error of a file a cause, so that the cache does not keep it: it names the file of whoever came first."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error)) from error


@dataclass(frozen=True)
class Prepared:
    """A case after all stages.

    Attributes:
        case: with the streams that were made.
        keys: of the result of each stage.
        computed: stages that were not in the cache.
        seconds: that these took.
        notes: what stages remarked, and results that were found damaged.
    """

    case: Case
    keys: tuple[str, ...]
    computed: int
    seconds: float
    notes: tuple[str, ...]


def wanted(stages: Sequence[Stage], streams: Iterable[str]) -> list[Stage]:
    """Return the stages, in order, that streams call for: their makers, and the makers of what those read."""
    asked, told, found = set(streams), set[str](), []
    for stage in reversed(stages):
        if asked & set(stage.provides) or stage.name in told:
            found.append(stage)
            asked |= set(stage.requires)
            told |= set(stage.details_of or ())
    return found[::-1]


def all_ready(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """Return stages with all of their settings.

    Raises:
        ConfigError: something that they need is not at hand; the text names all that is missing.
    """
    ready, missing = [], []
    for stage in stages:
        try:
            ready.append(
                stage
                if stage.ready is None
                else replace(stage, settings={**stage.settings, **stage.ready()}, ready=None)
            )
        except ConfigError as error:
            missing.append(str(error))
    if missing:
        raise ConfigError("\n".join(missing))
    return tuple(ready)


def prepare_case(
    case: Case, stages: Sequence[Stage], cache: Cache, device: torch.device, version: str = ""
) -> Prepared:
    """Take a case through the stages; what is in the cache is not computed again.

    Args:
        case: as the data set has it.
        stages: in order.
        cache: where results are kept.
        device: where to compute.
        version: of the preprocessor: a part of every key.

    Raises:
        DataError: the case cannot be prepared. CacheError: the cache cannot be written to.
    """
    now, notes = case, list[str]()
    keys: dict[str, str] = {}
    details: dict[str, Mapping[str, Any]] = {}
    makers: dict[str, str] = {}
    computed, seconds = 0, 0.0
    for stage in stages:
        heard = details if stage.details_of is None else {name: details[name] for name in stage.details_of}
        own = [name for name in stage.requires if name not in makers]
        keys[stage.name] = key = key_of(
            {
                "preprocessor": version,
                "stage": [stage.name, stage.version, stage.settings],
                "reads": {name: keys[makers[name]] for name in stage.requires if name in makers},
                "details": [keys[name] for name in heard],
                "data": identity(case, own, cache),
            }
        )
        entry = cache.get(key, _maker(stage, now, case, heard, device))
        now = _after(now, entry)
        details[stage.name] = entry.content["details"]
        makers |= dict.fromkeys(entry.content["streams"], stage.name)
        computed += entry.computed
        seconds += entry.seconds if entry.computed else 0.0
        notes += [note for note in (entry.remark, entry.content["note"]) if note]
    return Prepared(now, tuple(keys.values()), computed, seconds, tuple(notes))


def identity(case: Case, streams: Sequence[str], cache: Cache) -> Any:
    """Return, as plain data, what the content of streams of a case depends on: not where the files are, nor how old.

    Of drawn videos some pictures are looked at, so that another way of drawing is another content.

    Raises:
        DataError: a file cannot be read.
    """
    found: dict[str, Any] = {"frames": case.frames, "fps": case.fps, "times_s": case.times_s}
    for name in streams:
        if name not in case.streams:
            raise DataError(f"It has no stream {name!r}: {', '.join(case.streams)}.")
        source = case.streams[name]
        told = [source.reader, source.kind, source.values, source.nonzero, source.ignore, plain(source.options)]
        if source.paths:
            found[name] = [*told, files_key(cache, source.paths)]
        else:
            some = sorted({0, case.frames // 2, case.frames - 1})
            drawn = read_images(source, some) if name == "video" else read_stream(source, some)
            found[name] = [*told, plain(np.asarray(drawn))]
    return found


def _maker(
    stage: Stage, now: Case, source: Case, details: Mapping[str, Mapping[str, Any]], device: torch.device
) -> Callable[[Path], Mapping[str, Any]]:
    """Return what computes the result of a stage into a folder."""

    def make(folder: Path) -> Mapping[str, Any]:
        work = Work(case=now, source=source, details=dict(details), folder=folder, device=device)
        made = stage.run(work)
        if missing := set(stage.provides) - set(work.written):
            raise DataError(f"The stage {stage.name} wrote no {', '.join(sorted(missing))}.")
        times = work.times_s() if made.frames is not None else []
        return {
            "streams": work.written,
            "frames": made.frames,
            "times_s": [times[frame] for frame in made.frames or ()],
            "details": made.details,
            "note": made.note,
        }

    return make


def _after(case: Case, entry: Entry) -> Case:
    """Return the case with what a stage made of it."""
    streams = {
        name: Source(reader=stored.READER, paths=(str(entry.folder / each["file"]),), kind=each["kind"])
        for name, each in entry.content["streams"].items()
    }
    frames = entry.content["frames"]
    if frames is None:
        return replace(case, streams={**case.streams, **streams})
    return case.taken(frames, entry.content["times_s"], streams)
