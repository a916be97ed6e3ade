"""Prepared videos are kept: computed once, by one process, whole or not at all."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medvid_core.data.cache import BusyError, Cache, default_root, key_of
from medvid_core.data.clip import Case, Source
from medvid_core.data.readers import read_images, read_stream
from medvid_core.data.stages import Made, Stage, all_ready, identity, prepare_case, wanted
from medvid_core.errors import CacheError, ConfigError, DataError

CPU = torch.device("cpu")


def draw(source: Source, frames) -> np.ndarray:
    return np.stack([np.full((6, 8), source.options + frame, np.uint8) for frame in frames])


def drawn(start=10, frames=6, **more) -> Case:
    source = Source(reader=f"{__name__}:draw", options=start)
    return Case(case_id="a", group_id="a", frames=frames, fps=10.0, streams={"video": source}, **more)


class Counted:
    """Two stages that count how often they run: every second frame, then how bright each is."""

    def __init__(self, version="1", stride=2) -> None:
        self.ran: list[str] = []
        self.stages = [
            Stage(
                name="half", provides=("video",), requires=("video",), run=self.half, settings={"stride": stride},
                version=version,
            ),
            Stage(name="light", provides=("light",), requires=("video",), run=self.light),
        ]  # fmt: skip
        self.stride = stride

    def half(self, work) -> Made:
        self.ran.append("half")
        frames = tuple(range(0, work.case.frames, self.stride))
        images = work.read(frames)
        if not images.any():
            raise DataError("It is black.")
        work.write("video", "image", (np.ascontiguousarray(image.transpose(2, 0, 1)) for image in images))
        return Made(frames=frames, details={"mean": float(images.mean())}, note="a remark")

    def light(self, work) -> Made:
        self.ran.append("light")
        assert work.details["half"]["mean"] > 0
        assert work.read_source([0]).shape == (1, 6, 8, 3)
        images = work.read(range(work.case.frames))
        work.write("light", "mask", (image[None, ..., 0] for image in images))
        return Made()

    def prepare(self, case: Case, cache: Cache):
        return prepare_case(case, self.stages, cache, CPU)


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def test_a_second_run_computes_nothing(cache):
    first, second = Counted(), Counted()
    made, again = first.prepare(drawn(), cache), second.prepare(drawn(), cache)
    assert (first.ran, second.ran) == (["half", "light"], [])
    assert (made.computed, again.computed, again.seconds) == (2, 0, 0.0)
    assert again.case == made.case
    assert again.notes == ("a remark",)
    case = again.case
    assert (case.frames, case.fps, case.source_frames) == (3, 5.0, (0, 2, 4))
    assert case.times_s == (0.0, 0.2, 0.4)
    assert read_images(case.streams["video"], [1])[0, 0, 0].tolist() == [12, 12, 12]
    assert read_stream(case.streams["light"], [2]).max() == 14


def test_only_what_changed_is_computed_anew(cache):
    Counted().prepare(drawn(), cache)
    other = Counted()
    other.stages[1] = replace(other.stages[1], version="2")
    other.prepare(drawn(), cache)
    assert other.ran == ["light"]


@pytest.mark.parametrize(
    ("stages", "case"),
    [
        (Counted(version="2"), drawn()),
        (Counted(stride=3), drawn()),
        (Counted(), drawn(start=11)),
        (Counted(), drawn(frames=7)),
        (Counted(), replace(drawn(), fps=11.0)),
    ],
    ids=["version", "setting", "content", "length", "rate"],
)
def test_another_input_is_another_result(cache, stages, case):
    Counted().prepare(drawn(), cache)
    stages.prepare(case, cache)
    assert stages.ran == ["half", "light"]


def test_a_drawn_video_is_known_by_its_pictures(cache, monkeypatch):
    """Another way of drawing under the same name and options is another content."""
    before = identity(drawn(), ["video"], cache)
    real = draw
    monkeypatch.setattr(f"{__name__}.draw", lambda source, frames: real(source, frames) + 1)
    monkeypatch.setattr("medvid_core.data.readers.resolve", lambda reference: draw)
    assert identity(drawn(), ["video"], cache) != before


def test_files_are_known_by_their_content(cache, tmp_path):
    one, two = tmp_path / "one.bin", tmp_path / "deeper" / "two.bin"
    two.parent.mkdir()
    one.write_bytes(b"abc")
    two.write_bytes(b"abc")
    os.utime(two, (1, 1))
    same = [identity(replace(drawn(), streams={"video": Source(reader="video", paths=(str(p),))}), ["video"], cache)
            for p in (one, two)]  # fmt: skip
    assert same[0] == same[1], "neither place nor age counts"
    one.write_bytes(b"abd")
    assert cache.file_hash(one) != cache.file_hash(two)


def test_a_file_is_read_once(cache, tmp_path, monkeypatch):
    path = tmp_path / "video.bin"
    path.write_bytes(b"abc")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    before = cache.file_hash(path)
    monkeypatch.setattr("medvid_core.data.cache.hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert Cache(cache.root).file_hash(path) == before


def test_a_missing_file_is_named(cache, tmp_path):
    with pytest.raises(DataError, match=r"The file .*gone\.mp4 cannot be read"):
        cache.file_hash(tmp_path / "gone.mp4")


@pytest.mark.parametrize("harm", ["truncated", "changed", "missing", "record"])
def test_a_damaged_result_is_made_anew_with_a_word(cache, harm):
    made = Counted().prepare(drawn(), cache)
    path = Path(made.case.streams["light"].paths[0])
    content = path.read_bytes()
    if harm == "truncated":
        path.write_bytes(content[:-5])
    elif harm == "changed":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif harm == "missing":
        path.unlink()
    else:
        (path.parent / "entry.json").write_text("{")
    again = Counted()
    found = again.prepare(drawn(), cache)
    assert again.ran == ["light"]
    assert any("was damaged" in note and "made anew" in note for note in found.notes), found.notes
    assert path.read_bytes() == content


BLACK = {"start": 0, "frames": 1}


def test_what_cannot_be_prepared_is_not_tried_again(cache):
    for stages, ran in ((Counted(), ["half"]), (Counted(), []), (Counted(version="2"), ["half"])):
        with pytest.raises(DataError, match=r"^It is black\.$"):
            stages.prepare(drawn(**BLACK), cache)
        assert stages.ran == ran
    assert list((cache.root / "unfinished").iterdir()) == []


def test_a_damaged_reason_is_found_anew(cache):
    with pytest.raises(DataError):
        Counted().prepare(drawn(**BLACK), cache)
    (record,) = cache.root.glob("entries/*/*/entry.json")
    record.write_text("{")
    again = Counted()
    with pytest.raises(DataError, match="It is black"):
        again.prepare(drawn(**BLACK), cache)
    assert again.ran == ["half"]


def unreadable(folder):
    (folder / "begun").write_text("half")
    try:
        raise FileNotFoundError("gone.mp4")
    except OSError as error:
        raise DataError("It cannot be read.") from error


def test_a_file_that_cannot_be_read_is_not_kept(cache, tmp_path):
    """Its error names it: of the same content under another name it would say the name of the first."""
    for name in ("Jane Doe.dcm", "b.dcm"):
        path = tmp_path / name
        path.write_bytes(bytes(128) + b"DICM" + b"damaged")
        source = Source(reader="dicom", paths=(str(path),))
        case = Case(case_id=path.stem, group_id="a", frames=4, fps=10.0, streams={"video": source})
        stages = Counted()
        with pytest.raises(DataError, match=re.escape(str(path))):
            stages.prepare(case, cache)
        assert stages.ran == ["half"]
    assert not list(cache.root.glob("entries/*/*"))


def broken(folder):
    (folder / "begun").write_text("half")
    raise ZeroDivisionError


def faulty(folder):
    (folder / "begun").write_text("half")
    raise PermissionError(errno.EACCES, "Permission denied", "walk.mp4")


@pytest.mark.parametrize(
    ("make", "error"), [(unreadable, DataError), (broken, ZeroDivisionError), (faulty, PermissionError)]
)
def test_a_fault_that_may_pass_leaves_nothing(cache, make, error):
    """It is raised as it is: a file that could not be read for once, a bug, and no fault of the cache."""
    with pytest.raises(error):
        cache.get("key", make)
    assert list((cache.root / "unfinished").iterdir()) == []
    assert cache.get("key", lambda folder: {"made": "now"}).content == {"made": "now"}


def test_a_full_disk_as_a_stage_writes(cache):
    def make(folder):
        (folder / "frames").symlink_to("/dev/full")
        with open(folder / "frames", "wb", buffering=0) as file:
            file.write(b"x")

    with pytest.raises(CacheError, match=r"The disk of the cache .* is full: .* Make room, or name another: cache=DIR"):
        cache.get("key", make)
    assert list((cache.root / "unfinished").iterdir()) == []
    assert not cache.folder("key").exists()


def test_a_full_disk_as_the_record_is_written(cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medvid_core.data.cache.os.replace", full)
    with pytest.raises(CacheError, match="is full"):
        cache.get("key", lambda folder: {})
    assert not cache.folder("key").exists()


def test_a_file_system_without_locks(cache, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(CacheError, match=r"The file system of the cache .* takes no locks: .* cache=DIR"):
        cache.get("key", lambda folder: {})
    (cache.root / "unfinished" / "dead").mkdir(parents=True)
    with pytest.raises(CacheError, match="takes no locks"):
        cache.sweep()


def test_one_that_does_not_wait_says_that_another_is_at_it(cache):
    eager = Cache(cache.root, wait=False)
    with cache._locked("key"), pytest.raises(BusyError):
        eager.get("key", lambda folder: pytest.fail("made twice"))
    assert eager.get("key", lambda folder: {"made": "now"}).computed


def test_a_stage_must_write_what_it_promises(cache):
    stage = Stage(name="idle", provides=("light",), requires=("video",), run=lambda work: Made())
    with pytest.raises(DataError, match="The stage idle wrote no light"):
        prepare_case(drawn(), [stage], cache, CPU)


def test_only_stages_that_are_needed():
    stages = Counted().stages
    assert [stage.name for stage in wanted(stages, ["video"])] == ["half"]
    assert [stage.name for stage in wanted(stages, ["light"])] == ["half", "light"]
    assert wanted(stages, ["flow"]) == []


def test_what_a_stage_finds_at_hand_belongs_to_its_settings():
    stage = replace(Counted().stages[0], ready=lambda: {"weights": "abc"})
    (ready,) = all_ready([stage])
    assert ready.settings == {"stride": 2, "weights": "abc"}
    assert ready.ready is None


def test_settings_must_be_plain():
    assert key_of({"a": 1, "b": (2, 3)}) == key_of({"b": [2, 3], "a": 1})
    assert key_of(np.arange(3000)) != key_of(np.arange(3000) + (np.arange(3000) == 1500))
    with pytest.raises(ConfigError, match="A object among settings"):
        key_of({"a": object()})


def test_the_usual_place(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "medvid" / "prepared"


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot be written to: .* Name another: cache=DIR"):
        Counted().prepare(drawn(), Cache(tmp_path / "file"))


WORKER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from medvid_core.data.cache import Cache

    root, log, pause, keys = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]

    def make(key):
        def run(folder):
            with open(log, "a") as file:
                file.write(key + "\\n")
            (folder / "half").write_text("half")
            time.sleep(pause)
            (folder / "whole").write_text(key)
            return {"key": key}
        return run

    cache = Cache(root)
    cache.sweep()
    for key in keys:
        assert cache.get(key, make(key)).content == {"key": key}
    print("done")
    """
)


def start(tmp_path, pause, *keys) -> subprocess.Popen:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "cache"), str(tmp_path / "log"), str(pause), *keys],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_never_compute_the_same(tmp_path):
    keys = [f"{number:02d}key" for number in range(6)]
    workers = [start(tmp_path, 0.2, *keys) for _ in range(2)]
    assert [worker.communicate()[0] for worker in workers] == ["done\n", "done\n"]
    assert sorted((tmp_path / "log").read_text().split()) == keys


def test_a_kill_in_the_middle_loses_one_at_most(tmp_path):
    keys = [f"{number:02d}key" for number in range(4)]
    worker = start(tmp_path, 0.3, *keys)
    log = tmp_path / "log"
    while not log.exists() or len(log.read_text().split()) < 3:
        assert worker.poll() is None
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    left = [path.name for path in (tmp_path / "cache" / "unfinished").iterdir()]
    assert left == ["02key"], "it was killed at work on the third"
    again = start(tmp_path, 0.0, *keys)
    assert again.communicate()[0] == "done\n"
    assert log.read_text().split() == [*keys[:3], *keys[2:]], "the first two were kept, the third begun anew"
    assert list((tmp_path / "cache" / "unfinished").iterdir()) == []


def test_what_another_process_is_at_is_not_swept_away(tmp_path):
    cache = Cache(tmp_path / "cache")
    mine, dead = cache.root / "unfinished" / "mine", cache.root / "unfinished" / "dead"
    mine.mkdir(parents=True)
    dead.mkdir()
    with cache._locked("mine") as held:
        assert held
        Cache(cache.root).sweep()
        assert mine.is_dir()
    assert not dead.exists()
    Cache(cache.root).sweep()
    assert not mine.exists()


def test_the_record_says_what_was_made(cache):
    made = Counted().prepare(drawn(), cache)
    record = json.loads((Path(made.case.streams["light"].paths[0]).parent / "entry.json").read_text())
    assert record["files"].keys() == {"light.frames"}
    assert record["content"]["streams"] == {"light": {"kind": "mask", "file": "light.frames"}}
