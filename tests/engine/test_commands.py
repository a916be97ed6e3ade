"""The commands from end to end, and bad input: exit code 2 and a text that names file and remedy."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medvid_core import OutputSpec, create_model, load_model, predict, save_model
from medvid_core.engine.run import scan_lines
from medvid_core.engine.setup import scan_choice
from medvid_core.ops import MambaMixer

TINY = ("preset=tiny", "dataset.cases=4", "dataset.frames=5", "dataset.size=[40,40]")
QUICK = ("--model", "unet", "preset=tiny", "train.max_steps=1", "evaluate.overlays=0")


def write_video(path: Path, frames=7, height=52, width=64) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            picture = np.full((height, width, 3), 20 * t, np.uint8)
            picture[10:30, 10 + t : 40] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def write_frames(folder: Path, frames=5, height=40, width=36) -> Path:
    folder.mkdir(parents=True)
    for t in range(frames):
        Image.fromarray(np.full((height, width), 30 * t, np.uint8)).save(folder / f"{t}.png")
    return folder


def masks(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted((folder / "masks").iterdir())]


def test_a_run_leaves_what_it_promises(tiny_run):
    """The run directory as documented; the report stands alone; the table has a row a test case."""
    files = {path.relative_to(tiny_run).as_posix() for path in tiny_run.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "cases.csv",
        "splits.json",
        "model.safetensors",
        "report.html",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
    } <= files
    assert not [name for name in files if Path(name).name.startswith(".")]
    record = json.loads((tiny_run / "run.json").read_text())
    assert record["status"] == "done"
    assert set(record["baselines"]) == {"untrained", "constant"}
    splits = json.loads((tiny_run / "splits.json").read_text())
    rows = list(csv.DictReader((tiny_run / "cases.csv").open()))
    assert [row["case_id"] for row in rows] == splits["test"]
    assert list(rows[0])[:4] == ["case_id", "group_id", "frames", "scored_frames"]
    assert float(rows[0]["dice"]) == pytest.approx((float(rows[0]["dice/lv"]) + float(rows[0]["dice/myocardium"])) / 2)
    assert "<html" in (tiny_run / "report.html").read_text()[:500]
    assert json.dumps(record)


def test_evaluate_repeats_the_table_of_the_run(medvid, tiny_run, tmp_path, capsys):
    """The same cases, windows and metrics: the same numbers, and no other file of the run is touched."""
    medvid("evaluate", tiny_run, "--out", tmp_path / "e")
    assert (tmp_path / "e" / "cases.csv").read_bytes() == (tiny_run / "cases.csv").read_bytes()
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert summary["results"] == json.loads((tiny_run / "run.json").read_text())["results"]
    assert f"dice                         {summary['results']['dice']:.4f}\n" in capsys.readouterr().out
    medvid("evaluate", tiny_run, "--out", tmp_path / "m", "evaluate.at=model", "metrics=dice")
    rows = list(csv.DictReader((tmp_path / "m" / "cases.csv").open()))
    assert list(rows[0])[4:] == ["dice", "dice/lv", "dice/myocardium"]


def test_a_model_file_alone_is_scored_on_named_data(medvid, refused, tiny_run, tmp_path):
    """Carried away from its run, a model needs --data, and then gives the same result."""
    file = tmp_path / "m.safetensors"
    file.write_bytes((tiny_run / "model.safetensors").read_bytes())
    assert refused("evaluate", file) == (
        f"{file} stands without its run, so its data are unknown. Say what to score with --data."
    )
    words = ("dataset.cases=7", "dataset.frames=6", "dataset.size=[48,48]")
    medvid("evaluate", file, "--data", "echo-phantom", *words, "--split", "test", "--out", tmp_path / "e")
    one, other = (list(csv.DictReader((at / "cases.csv").open())) for at in (tmp_path / "e", tiny_run))
    assert [row["dice"] for row in one] == [row["dice"] for row in other]


def test_cases_added_after_training_make_no_training_case_a_test_case(medvid, vtus, tmp_path):
    """The test cases are those of the run, whatever was added to the folder since."""
    root = vtus([("Train", name) for name in "bcdefgh"])
    run = tmp_path / "run"
    medvid(*QUICK, "--data", root, "--out", run)
    splits = json.loads((run / "splits.json").read_text())
    part = "test" if splits["test"] else "val"
    for new in ("a", "z"):
        for kind in ("Train", "Train_GT"):
            write_frames(root / kind / new)
        for path in (root / "Train_GT" / new).iterdir():
            Image.fromarray(np.zeros((40, 36), np.uint8)).save(path)
    for words in ((), ("--data", root)):
        out = tmp_path / f"e{len(words)}"
        medvid("evaluate", run, "--split", part, "--out", out, *words)
        assert [row["case_id"] for row in csv.DictReader((out / "cases.csv").open())] == splits[part]


def ids(folder: Path) -> list[str]:
    return [row["case_id"] for row in csv.DictReader((folder / "cases.csv").open())]


@pytest.fixture
def table_run(medvid, vtus, tmp_path) -> tuple[Path, Path, dict[str, list[str]]]:
    """A run on a table of eight cases without a split of their own, the table, and how the run divided them."""
    table = vtus([("Train", name) for name in "abcdefgh"]) / "manifest.csv"
    table.write_text("\n".join(["case_id,file,mask", *(f"{name},Train/{name},Train_GT/{name}" for name in "abcdefgh")]))
    run = tmp_path / "run"
    medvid(*QUICK, "dataset.classes=[nodule]", "metrics=dice", "--data", table, "--out", run)
    return run, table, json.loads((run / "splits.json").read_text())


def test_cases_of_the_run_are_known_wherever_they_lie(medvid, refused, table_run, tmp_path, capsys):
    """A copy of the data elsewhere, grown and shrunk: no training case becomes a test case, and all is said."""
    run, table, splits = table_run
    capsys.readouterr()
    table.parent.rename(tmp_path / "copy")
    copy = tmp_path / "copy" / "manifest.csv"
    gone, kept = splits["test"]
    lines = [line for line in copy.read_text().splitlines() if not line.startswith(f"{gone},")]
    copy.write_text("\n".join([*lines, "new,Train/a,Train_GT/a"]))
    medvid("evaluate", run, "--data", copy, "--out", tmp_path / "e")
    assert ids(tmp_path / "e") == [kept]
    said = capsys.readouterr().err
    assert "scoring  1 of 8 case(s), split test\n" in said
    assert f"note     1 test case(s) of the run are no longer there: {gone}\n" in said
    assert "note     1 case(s) are in no part of the run and left out (not by --split all): new\n" in said
    medvid("evaluate", run, "--data", copy, "--split", "all")
    (folder,) = run.glob("evaluation-*")
    assert folder.name == "evaluation-manifest-copy-manifest-all"
    assert len(ids(folder)) == 8
    record = json.loads((folder / "summary.json").read_text())
    learnt = splits["train"] + splits["val"]
    assert sorted(record["dataset"]["learnt_by_the_run"]) == sorted(learnt)
    assert f"note     the run trained or validated on {len(learnt)} of them, or their groups: " in (
        capsys.readouterr().err
    )
    assert refused("evaluate", run, "--data", copy, "split.seed=3") == (
        "split.* cannot be set here: the cases are divided as when the model was trained."
    )


def test_test_cases_of_a_patient_the_run_trained_on_are_named(medvid, table_run, tmp_path):
    """Groups count as well as ids."""
    run, table, splits = table_run
    trained, tested = splits["train"][0], splits["test"][0]
    lines = table.read_text().split()[1:]
    lines = [f"{line},{trained if line.startswith(f'{tested},') else line[0]}" for line in lines]
    table.write_text("\n".join(["case_id,file,mask,group_id", *lines]))
    medvid("evaluate", run, "--out", tmp_path / "e")
    assert json.loads((tmp_path / "e" / "summary.json").read_text())["dataset"]["learnt_by_the_run"] == [tested]


def test_a_damaged_or_absent_record_of_the_division_is_said(medvid, refused, table_run, tmp_path, capsys):
    run, _, splits = table_run
    file = run / "splits.json"
    for text in ("{", "[]", '{"test": 3}', '{"test": [3]}'):
        file.write_text(text)
        assert refused("evaluate", run) == (
            f"{file} is damaged: without it nobody knows which cases the model was trained on. Restore it."
        )
    file.unlink()
    medvid("evaluate", run, "--out", tmp_path / "e")
    assert ids(tmp_path / "e") == splits["test"]
    assert "note     the run holds no splits.json, so its data are divided anew" in capsys.readouterr().err


def test_other_data_are_scored_whole_unless_they_fix_test_cases(medvid, vtus, table_run, tmp_path, capsys):
    run, _, _ = table_run
    (tmp_path / "vtus").rename(tmp_path / "first")
    other = vtus([("Train", "p"), ("Train", "q"), ("Train", "r")])
    medvid("evaluate", run, "--data", other, "--out", tmp_path / "e")
    assert ids(tmp_path / "e") == ["p", "q", "r"]
    assert "scoring  3 of 3 case(s), split all\n" in capsys.readouterr().err
    other.rename(tmp_path / "second")
    medvid("evaluate", run, "--data", vtus([("Train", "p"), ("Test", "t")]), "--out", tmp_path / "f")
    assert ids(tmp_path / "f") == ["t"]


def test_an_evaluation_is_never_written_over(medvid, refused, table_run, tmp_path):
    """Nor is a folder with anything in it used; what was scored, and how, is on record."""
    run, table, _ = table_run
    medvid("evaluate", run, "evaluate.at=model", "clip.overlap=1")
    folder = run / "evaluation-manifest-vtus-manifest-test"
    record = json.loads((folder / "summary.json").read_text())
    assert (record["dataset"]["root"], record["evaluate"]["at"]) == (str(table), "model")
    assert (record["metrics"], record["overlap"], record["dataset"]["cases"]) == (["dice"], 1, 2)
    before = (folder / "summary.json").read_bytes()
    assert refused("evaluate", run) == f"{folder} already holds an evaluation. Choose another --out."
    assert (folder / "summary.json").read_bytes() == before
    full = run / "checkpoints"
    assert refused("evaluate", run, "--out", full) == f"{full} is not empty. Choose another --out."
    text = refused("evaluate", run, "--out", table)
    assert text == f"{table} is a file; it must be a folder to make. Choose another --out."
    (tmp_path / "empty").mkdir()
    medvid("evaluate", run, "--out", tmp_path / "empty")


@pytest.mark.parametrize("word", ["clip.size=[64,64]", "clip.frames=2", "preset=full", "model.dropout=0.1", "seed=1"])
def test_evaluate_refuses_settings_that_training_fixed(refused, tiny_run, word):
    key = word.partition("=")[0]
    assert refused("evaluate", tiny_run, word) == (
        f"{key} was fixed when the model was trained. evaluate takes clip.overlap, clip.blend, evaluate.*, metrics, "
        f"dataset.*, split.*, cache, not {key}."
    )


def test_a_folder_of_test_cases_alone_is_scored(medvid, vtus, tmp_path):
    """An external test set has nothing to train on, and need not."""
    root = vtus([("Test", "x"), ("Test", "y")])
    model = create_model("unet", outputs=(OutputSpec(name="mask", task="segmentation", classes=("nodule",)),))
    save_model(model, tmp_path / "m.safetensors")
    medvid("evaluate", tmp_path / "m.safetensors", "--data", root, "--out", tmp_path / "e")
    assert [row["case_id"] for row in csv.DictReader((tmp_path / "e" / "cases.csv").open())] == ["x", "y"]


def test_evaluation_on_other_classes_is_refused(refused, tiny_run, vtus):
    assert refused("evaluate", tiny_run, "--data", vtus(), "--split", "all") == (
        "The model predicts mask (segmentation: background, lv, myocardium), the data hold mask "
        "(segmentation: nodule). Evaluate on data with the same classes in the same order."
    )


def test_an_empty_part_is_refused(refused, tiny_run, vtus, medvid, tmp_path):
    root = vtus([("Train", "a"), ("Train", "b"), ("Test", "t")])
    run = tmp_path / "run"
    medvid(*QUICK, "--data", root, "split.val=0", "--out", run)
    assert refused("evaluate", run, "--split", "val") == "The data set has no val cases. Choose another --split."


def test_predict_writes_a_mask_for_every_frame_of_a_video(medvid, tiny_run, tmp_path):
    """Size of the source, values of the classes, one file a frame, an overlay; twice is refused."""
    video = write_video(tmp_path / "clip one.mp4")
    medvid("predict", tiny_run, video, "--out", tmp_path / "p", "--overlap", 1)
    (folder,) = (tmp_path / "p").iterdir()
    found = masks(folder)
    assert len(found) == 7
    assert {mask.shape for mask in found} == {(52, 64)}
    assert {int(value) for mask in found for value in np.unique(mask)} <= {0, 1, 2}
    with av.open(str(folder / "overlay.webm")) as overlay:
        assert sum(1 for _ in overlay.decode(video=0)) == 7


def test_predict_does_not_write_over_a_prediction(medvid, refused, tiny_run, tmp_path):
    frames = write_frames(tmp_path / "case")
    medvid("predict", tiny_run, frames, "--out", tmp_path / "p", "--no-video")
    text = refused("predict", tiny_run, frames, "--out", tmp_path / "p", "--no-video")
    assert text == f"{tmp_path / 'p' / 'case'} already holds a prediction. Choose another --out."


def test_predict_refuses_before_it_begins(refused, tiny_run, tmp_path):
    """An interrupted prediction is not found out at its last case: none is begun."""
    for name in "abc":
        write_frames(tmp_path / "all" / name, 2)
    for name in "bc":
        (tmp_path / "p" / name).mkdir(parents=True)
    assert refused("predict", tiny_run, tmp_path / "all", "--out", tmp_path / "p") == (
        f"{tmp_path / 'p'} already holds predictions of 2 of the 3 cases: b, c. Choose another --out."
    )
    assert sorted(folder.name for folder in (tmp_path / "p").iterdir()) == ["b", "c"]
    (tmp_path / "file").touch()
    assert refused("predict", tiny_run, tmp_path / "all", "--out", tmp_path / "file") == (
        f"{tmp_path / 'file'} is a file; it must be a folder. Choose another --out."
    )


def test_predict_refuses_a_mixture_of_images_and_videos(refused, tiny_run, tmp_path):
    """One stray image must not make a folder of videos a case of one frame; nor in a folder within."""
    mixed = write_frames(tmp_path / "all" / "mixed", 1)
    write_video(mixed / "clip.mp4", 2)
    text = (
        f"{mixed} holds 1 image(s) (first: 0.png) and 1 video(s) (first: clip.mp4): neither one case of frames nor a "
        "folder of videos. Move one kind elsewhere."
    )
    assert refused("predict", tiny_run, mixed, "--out", tmp_path / "p") == text
    write_frames(tmp_path / "all" / "good", 2)
    assert text in refused("predict", tiny_run, tmp_path / "all", "--out", tmp_path / "p", "--no-video")
    assert [folder.name for folder in (tmp_path / "p").iterdir()] == ["good"]


def test_predict_on_folders_of_frames_and_videos(medvid, tiny_run, tmp_path):
    """One folder of frames; a folder that holds videos and folders; a single frame is enough."""
    medvid("predict", tiny_run, write_frames(tmp_path / "case", 5), "--out", tmp_path / "p", "--no-video")
    found = masks(tmp_path / "p" / "case")
    assert [mask.shape for mask in found] == [(40, 36)] * 5
    assert not [path for path in (tmp_path / "p").rglob("*.webm")]
    write_frames(tmp_path / "all" / "one", 1)
    write_frames(tmp_path / "all" / "two", 4)
    write_video(tmp_path / "all" / "three.avi", 3)
    medvid("predict", tiny_run, tmp_path / "all", "--out", tmp_path / "q", "--no-video")
    assert sorted(len(masks(folder)) for folder in (tmp_path / "q").iterdir()) == [1, 3, 4]


def test_predict_from_python_agrees_with_the_command(medvid, tiny_run, tmp_path):
    frames = write_frames(tmp_path / "case")
    medvid("predict", tiny_run, frames, "--out", tmp_path / "p", "--no-video")
    (folder,) = predict(load_model(tiny_run), frames, tmp_path / "q", video=False)
    one, other = masks(tmp_path / "p" / "case"), masks(folder)
    assert all(np.array_equal(first, second) for first, second in zip(one, other, strict=True))


def test_predict_names_an_unreadable_video_and_writes_the_others(medvid, refused, tiny_run, tmp_path):
    """A corrupt file costs one case; no half-written prediction is left."""
    write_frames(tmp_path / "all" / "good", 5)
    frames = sorted(write_frames(tmp_path / "all" / "torn", 5).iterdir())
    frames[3].write_bytes(frames[3].read_bytes()[:40])
    (tmp_path / "all" / "text.mp4").write_text("no video")
    text = refused("predict", tiny_run, tmp_path / "all", "--out", tmp_path / "p", "--no-video")
    assert text.startswith("2 case(s) could not be read and are left out:\n  text.mp4: ")
    assert str(frames[3]) in text
    assert [folder.name for folder in (tmp_path / "p").iterdir()] == ["good"]


def test_predict_refuses_what_it_cannot_segment(refused, tiny_run, tmp_path):
    absent = tmp_path / "absent.mp4"
    assert refused("predict", tiny_run, absent) == f"There is no file or folder {absent} to predict on."
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused("predict", tiny_run, empty).startswith(
        f"{empty} holds no video and no folder of frames to predict on. Endings that are read: .mp4, "
    )
    assert refused("predict", tiny_run, tmp_path, "--overlap", 3) == (
        "overlap=3 cannot be used: it must be from 0 to 2."
    )
    assert refused("predict", tmp_path / "absent", tmp_path) == f"There is no file {tmp_path / 'absent'}."
    broken = tmp_path / "clip.mp4"
    broken.write_bytes(b"not a video at all")
    assert refused("predict", tiny_run, broken).startswith(f"The video {broken} cannot be decoded (")


# bad data


def test_a_missing_and_an_empty_folder(refused, tmp_path):
    absent = tmp_path / "absent"
    assert refused(*QUICK, "--data", absent).startswith(
        f"--data {absent}: there is no such folder or file, and no data set of that name. Data sets by name: "
    )
    (tmp_path / "empty").mkdir()
    assert refused(*QUICK, "--data", tmp_path / "empty").startswith(
        f"--data {tmp_path / 'empty'} cannot be used. The folder is empty. Layouts that are read: "
    )


def test_masks_that_do_not_match_the_frames(refused, vtus, tmp_path):
    root = vtus()
    folder = root / "Train_GT" / "b"
    (folder / "003.png").rename(folder / "033.png")
    text = refused(*QUICK, "--data", root, "--out", tmp_path / "run")
    assert text == (
        f"{folder}: 1 of 5 masks match none of the 5 frames, first 033.png. Give mask and frame files the same names "
        "(the ending apart), or remove these masks."
    )
    (folder / "033.png").unlink()
    text = refused(*QUICK, "--data", root, "--out", tmp_path / "run")
    assert text == (f"{folder}: 1 of 5 frames have no mask, first 003.jpg. Add the masks, or remove the frames.")
    assert not (tmp_path / "run").exists()


def test_a_truncated_jpeg(refused, vtus, tmp_path):
    root = vtus()
    for name in "abc":
        for bad in (root / "Train" / name).iterdir():
            bad.write_bytes(bad.read_bytes()[:400])
    text = refused(*QUICK, "--data", root, "--out", tmp_path / "run")
    assert text.startswith(f"The image {root}/Train/")
    assert text.endswith("Copy it again from its source, or remove its case from the data.")


def test_mask_values_outside_the_classes(refused, vtus, tmp_path):
    root = vtus()
    for name in "abc":
        for path in (root / "Train_GT" / name).iterdir():
            Image.fromarray(np.full((36, 40), 7, np.uint8)).save(path)
    text = refused(*QUICK, "--data", root, "--out", tmp_path / "run")
    head, _, rest = text.partition(" holds the values ")
    assert head.startswith(f"The mask {root}/Train_GT/")
    assert rest == (
        "7, which belong to no class; allowed are 0, 255. Set dataset.mask_values=[…], one value for each class in "
        "order, or dataset.mask_nonzero=true if every non-zero pixel is the one class."
    )


def test_no_usable_clip(refused, tmp_path):
    root = tmp_path / "vtus"
    for kind in ("Train", "Train_GT"):
        (root / kind / "a").mkdir(parents=True)
    text = refused(*QUICK, "--data", root, "--out", tmp_path / "run")
    assert text.startswith(f"No usable clip in {root}. Train/a: the folder holds no images. Expected: ")


def test_test_cases_alone_cannot_be_trained_on(refused, vtus, tmp_path):
    text = refused(*QUICK, "--data", vtus([("Test", "t")]), "--out", tmp_path / "run")
    assert text == "There is no training case: every case is in val or test."


def test_sizes_the_model_cannot_take(refused, tmp_path):
    assert refused(*QUICK, "clip.size=[40,32]", "--out", tmp_path / "run") == (
        "clip.size=[40, 32] does not fit model 'unet': height and width must be multiples of 16."
    )
    text = refused(*QUICK, "model.channels=[4]", "--out", tmp_path / "run")
    assert text.startswith("Model 'unet' cannot be built with these settings: ")
    assert refused(*QUICK, "train.trainable=head", "--out", tmp_path / "run") == (
        "train.trainable='head': model 'unet' has no such choice. Known: all."
    )
    assert refused(*QUICK, "train.batch_size=3", "train.accumulate=2", "--out", tmp_path / "run") == (
        "train.batch_size=3 cannot be divided among 1 processes with train.accumulate=2: it must be a multiple of 2."
    )


# the scan

SCANS = ("--model", "vivim", *TINY, "train.max_steps=1", "evaluate.overlays=0")


def test_the_backend_of_the_scan_is_on_record(medvid, tiny_run, tmp_path, capsys):
    """In the header, in run.json and in summary.json, with the reason; nothing for a model without scans."""
    medvid(*SCANS, "model.scan_backend=torch", "--out", tmp_path / "run")
    assert "\nscan     torch: asked for by name\n" in capsys.readouterr().err
    wanted = {"backend": "torch", "reason": "asked for by name"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["scan"] == wanted
    medvid("evaluate", tmp_path / "run", "--out", tmp_path / "e")
    assert "\nscan     torch: asked for by name\n" in capsys.readouterr().err
    assert json.loads((tmp_path / "e" / "summary.json").read_text())["scan"] == wanted
    assert json.loads((tiny_run / "run.json").read_text())["scan"] is None


def test_a_scan_backend_that_cannot_be_used_is_refused_before_training(refused, tmp_path, monkeypatch):
    missing = {"mamba_ssm": "selective_scan_cuda is not installed"}
    monkeypatch.setattr("medvid_core.ops.backends.absence", missing.get)
    assert refused(*SCANS, "model.scan_backend=mamba_ssm", "--out", tmp_path / "run") == (
        "Scan backend 'mamba_ssm' cannot be used here: selective_scan_cuda is not installed. Choose auto, or install "
        'it: pip install "medvid-core[mamba-ssm]"'
    )
    text = refused(*SCANS, "model.scan_backend=torhc", "--out", tmp_path / "run")
    assert text.startswith("No scan backend 'torhc'; known: auto, reference, torch, ")
    assert not (tmp_path / "run").exists()


def test_a_trained_model_runs_where_its_backend_is_absent(medvid, tmp_path, monkeypatch, capsys):
    """Backends differ by rounding alone: another one is taken, and named, with the reason."""
    medvid(*SCANS, "model.scan_backend=cpu", "--out", tmp_path / "run")
    monkeypatch.setattr("medvid_core.ops.backends.absence", {"cpu": "numba is not installed"}.get)
    medvid("evaluate", tmp_path / "run", "--out", tmp_path / "e")
    assert (
        "\nscan     torch: first choice for cpu tensors; not cpu: numba is not installed; trained with cpu, which "
        "cannot be used here\n" in capsys.readouterr().err
    )


def test_compiling_is_announced(monkeypatch):
    scan = {"backend": "cpu", "reason": "asked for by name"}
    monkeypatch.setattr("medvid_core.engine.run.kernels_compiled", lambda: False)
    assert scan_lines(scan) == [
        "scan     cpu: asked for by name",
        "note     first the scan's kernels are compiled for this processor, and kept: up to half a minute",
    ]
    monkeypatch.setattr("medvid_core.engine.run.kernels_compiled", lambda: True)
    assert len(scan_lines(scan)) == 1


def test_a_model_with_several_scan_backends_lists_them():
    mixers = [MambaMixer(8, scan_backend=name) for name in ("torch", "reference", "torch")]
    assert scan_choice(nn.Sequential(*mixers), torch.device("cpu")) == {
        "backend": "torch, reference",
        "reason": "torch asked for by name, reference asked for by name",
    }
    assert scan_choice(nn.Linear(2, 2), torch.device("cpu"), "bf16") is None


def test_one_case_is_trained_and_scored_on_itself(medvid, vtus, tmp_path):
    """Too little to learn from, but no crash: what was scored is on record."""
    run = tmp_path / "run"
    medvid(*QUICK, "--data", vtus([("Train", "a")], frames=2), "--out", run)
    assert json.loads((run / "run.json").read_text())["split"] == "train"


def test_settings_may_stand_anywhere(medvid, refused, capsys):
    """Before, between and after the options; the last of a key wins; what is no setting is refused."""
    medvid("train", "seed=1", "--model", "unet", "seed=2", "--print-config", "train.epochs=3")
    shown = capsys.readouterr().out
    assert "seed=2 " in shown
    assert "train.epochs=3 " in shown
    assert refused("--model", "unet", "seed=1", "--print-config", "typo") == (
        "'typo' is not of the form key=value, e.g. train.epochs=20."
    )
    for words in (("--model", "unet", "--print-confg"), ("doctor", "seed=1")):
        assert refused(*words) == f"unrecognized arguments: {words[-1]}"
    told = "Settings that can: dataset=NAME and dataset.KEY=VALUE, which say how PATH is read."
    for command in ("predict", "explain"):
        assert refused(command, "RUN", "PATH", "seed=1") == f"seed cannot be set here. {told}"


def test_mistyped_command(refused):
    text = refused("trian", "--model", "unet")
    assert text.startswith("no command 'trian'; there are train, evaluate, predict, ")
    assert text.endswith(". Did you mean 'train'?")


def test_unknown_names_through_a_process_of_its_own(command, tmp_path):
    """The installed command: exit code 2, one line on stderr, nothing on stdout."""
    for words, text in (
        (("--model", "unett"), "No model is called 'unett'. Did you mean 'unet'? Known: "),
        (("--model", "unet", "train.epoch=3"), "Unknown key 'train.epoch' (value 3, command line). Did you mean "),
    ):
        done = subprocess.run([*command, *words], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"medvid-run: error: {text}")
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
    script = Path(sys.executable).with_name("medvid-run")
    if script.exists():
        done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("medvid-core ")


def test_a_model_that_takes_no_prompts_cannot_be_pointed_at(refused, tiny_run, tmp_path):
    text = "evaluate.prompt=box: model 'unet' takes no prompts. Leave it out."
    assert refused(*QUICK, "evaluate.prompt=box", "--out", tmp_path / "run") == text
    assert refused("evaluate", tiny_run, "evaluate.prompt=box", "--out", tmp_path / "scores") == text
