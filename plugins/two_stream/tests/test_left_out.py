"""Videos that cannot be prepared are left out before anything is divided, and are not looked at again."""

import importlib.util
import json
from pathlib import Path

import pytest

from medvid_core.cli.main import main

_SPEC = importlib.util.spec_from_file_location("two_stream_walkers", Path(__file__).with_name("walkers.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
walkers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(walkers)

GAIT = ("preprocess=gait", "preprocess.person=background", "preprocess.mask=background", "preprocess.flow=dis",
        "preprocess.size=48")  # fmt: skip
TRAIN = ("preset=tiny", "split.val=0.25", "split.test=0.25", "train.max_steps=1", "evaluate.overlays=0")


def videos(folder: Path, **classes: str) -> Path:
    """Write videos, one for each letter of a class: w somebody walks, e nobody is there."""
    for name, letters in classes.items():
        (folder / name).mkdir(parents=True)
        for number, letter in enumerate(letters):
            pictures = walkers.scene(24, start=12 + number) if letter == "w" else walkers.scene(24, start=1000 + number)
            walkers.write(folder / name / f"{name}{number}.mp4", pictures)
    return folder


def train(data: Path, cache: Path, out: Path) -> None:
    main(["--model", "two-stream", "--data", str(data), *GAIT, *TRAIN, f"cache={cache}", "--out", str(out)])


def test_parts_are_drawn_from_what_is_left(tmp_path, monkeypatch):
    data = videos(tmp_path / "data", autism="wwe", normal="weww")
    train(data, tmp_path / "cache", tmp_path / "run")
    parts = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert {part: len(names) for part, names in parts.items()} == {"train": 3, "val": 1, "test": 1}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["dataset"]["skipped"]) == 2
    assert all("No walking person is found" in reason for reason in record["dataset"]["skipped"].values())
    assert (record["preprocess"]["cases"], record["preprocess"]["left_out"]) == (5, 2)

    monkeypatch.setattr("medvid_two_stream.preprocess.stages.cut_out", lambda *_: pytest.fail("looked at again"))
    train(data, tmp_path / "cache", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "splits.json").read_text()) == parts
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert again["dataset"] == record["dataset"]
    assert (again["preprocess"]["computed"], again["preprocess"]["from_cache"]) == (0, 5)


def test_a_class_of_which_nothing_is_left(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(videos(tmp_path / "data", autism="ee", normal="www"), tmp_path / "cache", tmp_path / "run")
    text = capsys.readouterr().err
    assert "No training case is left that holds" in text
    assert "autism, as 2 could not be prepared" in text
    assert not (tmp_path / "run").exists()


def test_folds_are_drawn_from_what_is_left(tmp_path):
    """A model that could use the others is compared on the same folds, without them."""
    data, out = videos(tmp_path / "data", autism="weww", normal="weww"), tmp_path / "cv"
    words = ["cv", "--model", "two-stream", "--data", str(data), *GAIT, "preset=tiny", "train.max_steps=1",
             "evaluate.overlays=0", f"cache={tmp_path / 'cache'}", "--folds", "2", "--resamples", "100"]  # fmt: skip
    main([*words, "--out", str(out)])
    folds = json.loads((out / "splits.json").read_text())["folds"]
    names = sorted(name for fold in folds for name in fold["test"])
    assert names == [f"{name}/{name}{number}" for name in ("autism", "normal") for number in (0, 2, 3)]
    for number, fold in enumerate(folds):
        parts = json.loads((out / f"fold{number}" / "splits.json").read_text())
        assert (set(parts["test"]), set(parts["val"])) == (set(fold["test"]), set(fold["val"]))
        assert fold["val"]
    main([*words, "--out", str(out)])  # the file of folds is read again
    lost = ["autism/autism1", "normal/normal1"]
    assert json.loads((out / "splits.json").read_text())["left_out"] == lost

    words = ["cv", "--model", "cnn-lstm", "model.input=rgb", "--data", str(data), "preprocess=none", *TRAIN[:1],
             "train.max_steps=1", "evaluate.overlays=0", f"split.file={out / 'splits.json'}", "--resamples", "100",
             "clip.size=[32,32]", "clip.frames=4", "--out", str(tmp_path / "other")]  # fmt: skip
    main(words)
    for number, fold in enumerate(folds):
        run = tmp_path / "other" / f"fold{number}"
        parts = json.loads((run / "splits.json").read_text())
        assert sorted(name for part in parts.values() for name in part) == names
        assert set(parts["test"]) == set(fold["test"])
    note = f"2 case(s) could not be prepared when the folds were made, are in none, and are not used: {', '.join(lost)}"
    assert note in json.loads((run / "run.json").read_text())["notes"]
    assert note in (tmp_path / "other" / "cv.md").read_text()


def test_the_command_counts_all_that_is_left_out(tmp_path, capsys):
    data = videos(tmp_path / "data", autism="we", normal="w")
    (data / "normal" / "broken.mp4").write_bytes(b"no video")
    words = ["preprocess", "--model", "two-stream", "--data", str(data), *GAIT, "--cache", str(tmp_path / "cache")]
    main(words)
    text = capsys.readouterr().err
    assert "left out 2 case(s): 1 could not be read, 1 not be prepared" in text
    assert "left out normal/broken: " in text
    assert "left out autism/autism1: No walking person is found" in text
