"""Every question of the motion phantom from training to prediction, by the command."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from medvid_core.cli.main import main
from medvid_core.engine import checkpoint
from medvid_core.engine import train as training
from medvid_core.errors import MedvidError
from medvid_core.metrics.defaults import DEFAULT_METRICS

TINY = ("preset=tiny", "train.max_steps=2", "evaluate.overlays=0")
PHANTOM = (*TINY, "dataset.patients=8", "dataset.size=[32,32]")

ORDERS = ("physiologic", "reversed", "shuffled")
QUESTIONS = {
    # question: model, its settings, frames, task, columns of cases.csv, columns of frames.csv
    "order": (
        "cnn",
        (),
        8,
        "classification",
        ["true/order", "predicted/order", *(f"p/order/{name}" for name in ORDERS)],
        [],
    ),
    "ejection_fraction": (
        "r2plus1d",
        (),
        8,
        "regression",
        ["true/ejection_fraction", "predicted/ejection_fraction"],
        [],
    ),
    "arrhythmia": (
        "cnn-gru",
        (),
        24,
        "anomaly",
        ["true/arrhythmia", "score/arrhythmia"],
        ["true/arrhythmia", "score/arrhythmia"],
    ),
    "stall": (
        "cnn-mamba",
        ("model.motion=true",),
        16,
        "anomaly",
        ["true/stall", "score/stall"],
        ["true/stall", "score/stall"],
    ),
    "phase": (
        "cnn-mamba",
        ("model.bidirectional=true",),
        8,
        "frame_classification",
        [],
        ["true/phase", "predicted/phase", "p/phase/systole", "p/phase/diastole"],
    ),
    "progression": (
        "cnn-mamba",
        ("model.time_gaps=true", "model.pooling=attention"),
        8,
        "regression",
        ["true/next_ejection_fraction", "predicted/next_ejection_fraction", "last/next_ejection_fraction"],
        [],
    ),
}
BEATS = {"arrhythmia": 3, "stall": 2}


def medvid(*words) -> None:
    main([str(word) for word in words])


@pytest.fixture
def refused(capsys):
    """Run a command that must fail: exit code 2 and one message, which is returned."""

    def run(*words) -> str:
        with pytest.raises(SystemExit) as exit_info:
            medvid(*words)
        text = capsys.readouterr().err
        assert exit_info.value.code == 2, text
        assert "Traceback" not in text
        return text.partition("medvid-run: error: ")[2].strip()

    return run


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def record_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def log(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


SLOW = ("ejection_fraction", "arrhythmia")
"""Questions whose tasks others have as well."""


@pytest.fixture(
    scope="module", params=[pytest.param(q, marks=pytest.mark.slow if q in SLOW else ()) for q in QUESTIONS]
)
def asked(request, tmp_path_factory):
    """A question and the run that was trained to answer it."""
    model, settings, frames, *_ = QUESTIONS[request.param]
    run = tmp_path_factory.mktemp(request.param) / "run"
    words = (f"dataset.question={request.param}", f"dataset.frames={frames}")
    beats = f"dataset.beats={BEATS.get(request.param, 1)}"
    medvid("--model", model, *PHANTOM, *words, beats, *settings, "evaluate.overlays=1", "--out", run)
    return request.param, run


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """A folder with one video of eleven frames, no multiple of the clip length, of another size."""
    folder = tmp_path_factory.mktemp("videos")
    with av.open(str(folder / "clip.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=20)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuvj420p"
        for image in np.random.default_rng(0).integers(0, 256, (11, 40, 48, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return folder


def test_a_run_leaves_what_it_promises(asked):
    """Tables with the columns of their task, every usual metric, the trivial predictors, a report."""
    question, run = asked
    _, _, _, task, of_cases, of_frames = QUESTIONS[question]
    record = record_of(run)
    assert record["status"] == "done"
    rows = table(run / "cases.csv")
    assert [row["case_id"] for row in rows] == json.loads((run / "splits.json").read_text())["test"]
    columns = list(rows[0])
    assert columns[:4] == ["case_id", "group_id", "frames", "scored_frames"]
    predicted = [name for name in columns if name.split("/")[0] in ("true", "predicted", "last", "p", "score")]
    assert predicted == of_cases
    assert all(row[name] for row in rows for name in of_cases)
    results = record["results"]
    of_change = set() if question == "progression" else {"auroc-worsened", "c-index"}
    assert {name.split("/")[0] for name in results} == set(DEFAULT_METRICS[task]) - of_change
    assert all(name.split("/")[0] in DEFAULT_METRICS[task] for name in columns[5 + len(of_cases) :])
    foreseen = {"carry-forward", "trend"} if question == "progression" else set()
    assert set(record["baselines"]) == {"untrained", "constant"} | foreseen
    headline = DEFAULT_METRICS[task][0]
    assert all(values[headline] is not None for values in (results, *record["baselines"].values()))
    assert (run / "frames.csv").exists() == bool(of_frames)
    if of_frames:
        frames = table(run / "frames.csv")
        assert list(frames[0]) == ["case_id", "frame", *of_frames]
        assert len(frames) == sum(int(row["frames"]) for row in rows)
    assert "<html" in (run / "report.html").read_text()[:500]
    assert len(list((run / "overlays").glob("*.webm"))) == 2


def test_evaluation_repeats_the_table_and_takes_another_phantom(asked, tmp_path):
    """The run's own test cases give the run's table; another seed draws other patients, of whom none was learnt."""
    question, run = asked
    medvid("evaluate", run, "--out", tmp_path / "same")
    for name in ("cases.csv", *(["frames.csv"] if (run / "frames.csv").exists() else [])):
        assert (tmp_path / "same" / name).read_bytes() == (run / name).read_bytes()
    medvid("evaluate", run, "dataset.seed=1", "dataset.patients=3", "--out", tmp_path / "other")
    summary = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert (
        summary["dataset"]["cases"] == len(table(tmp_path / "other" / "cases.csv")) == (9 if question == "order" else 3)
    )
    assert summary["dataset"]["learnt_by_the_run"] == []
    assert summary["results"].keys() == record_of(run)["results"].keys()


def test_predictions_on_a_video(asked, video, tmp_path):
    """The columns of the run's tables, truth empty; a row a frame; a video to look at."""
    question, run = asked
    *_, of_cases, of_frames = QUESTIONS[question]
    medvid("predict", run, video, "--out", tmp_path / "p")
    folder = tmp_path / "p" / "clip"
    (row,) = table(folder / "prediction.csv")
    of_cases = [name for name in of_cases if not name.startswith("last/")]  # a video has no history
    assert list(row) == ["case_id", "frames", *of_cases]
    assert (row["case_id"], row["frames"]) == ("clip", "11")
    assert [name for name in of_cases if not row[name]] == [name for name in of_cases if name.startswith("true/")]
    probabilities = [float(row[name]) for name in of_cases if name.startswith("p/")]
    assert sum(probabilities) == pytest.approx(1 if probabilities else 0, abs=1e-6)
    assert (folder / "frames.csv").exists() == bool(of_frames)
    if of_frames:
        frames = table(folder / "frames.csv")
        assert [row["frame"] for row in frames] == [str(number) for number in range(11)]
        assert list(frames[0]) == ["case_id", "frame", *of_frames]
    with av.open(str(folder / "overlay.webm")) as overlay:
        assert sum(1 for _ in overlay.decode(video=0)) == 11


# --- anomaly without labels of frames ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Eight folders of six frames; those of odd number turn bright."""
    root = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for number in range(8):
        (root / f"v{number}").mkdir()
        for frame in range(6):
            picture = rng.integers(0, 60, (36, 40)) + (150 if number % 2 and frame > 3 else 0)
            Image.fromarray(picture.astype(np.uint8)).save(root / f"v{number}" / f"{frame}.png")
    return root


def manifest(clips: Path, name: str, anomaly, splits: str = "rrrrvvee") -> Path:
    """A table that says ``anomaly(number)`` of each clip: four to train with, two to validate and two to test with."""
    parts = {"r": "train", "v": "val", "e": "test"}
    rows = [f"v{number},{anomaly(number)},{parts[split]}" for number, split in enumerate(splits)]
    (clips / name).write_text("\n".join(["file,anomaly,split", *rows]))
    return clips / name


def test_labels_of_whole_videos_are_enough_for_anomaly(clips, tmp_path):
    """Weak supervision: the loss is that of videos, frames are scored and their labels stay unknown."""
    run = tmp_path / "run"
    medvid("--model", "cnn", "--data", manifest(clips, "weak.csv", lambda n: n % 2), *TINY, "--out", run)
    parts = log(run, "train")[-1]
    assert parts["anomaly/video"] > 0
    assert parts["anomaly"] == 0
    results = record_of(run)["results"]
    assert results["anomaly-auroc"] == results["video-auroc"] is not None
    assert results["frame-auroc"] is None
    frames = table(run / "frames.csv")
    assert all(row["score/anomaly"] and not row["true/anomaly"] for row in frames)


def test_normal_videos_are_enough_for_anomaly(clips, tmp_path):
    """Normal-only: the training videos are normal; the surprise of the next frame is the score, never negative."""
    data = manifest(clips, "normal.csv", lambda n: n % 2 if n > 3 else 0)
    run = tmp_path / "run"
    words = ("loss=normal-only", "model.anomaly=forecast", "optimizer.lr=0.003")
    medvid("--model", "cnn-mamba", "--data", data, *TINY, *words, "train.max_steps=6", "--out", run)
    losses = [line["loss"] for line in log(run, "train")]
    assert losses[-1] < losses[0]
    record = record_of(run)
    assert 0 < record["model"]["trained_parameters"] < record["model"]["parameters"]
    assert record["results"]["video-auroc"] is not None
    assert min(float(row["score/anomaly"]) for row in table(run / "frames.csv")) > -1e-6


def test_normal_only_refuses_what_it_cannot_learn_from(clips, refused, tmp_path):
    """Nothing but abnormal videos, or a score that could fall for ever: no run that has learnt nothing."""
    words = ("--model", "cnn-mamba", *TINY, "loss=normal-only", "--out", tmp_path / "run")
    abnormal = manifest(clips, "abnormal.csv", lambda n: int(n < 6))
    assert refused(*words, "--data", abnormal, "model.anomaly=forecast") == (
        "The loss 'normal-only' learns from normal videos, and all 4 training cases are abnormal (anomaly). Add normal "
        "ones, or learn from the labels with loss=by-task."
    )
    assert not (tmp_path / "run").exists()
    weak = manifest(clips, "weak.csv", lambda n: n % 2)
    assert refused(*words, "--data", weak) == (
        "The loss 'normal-only' is for networks whose anomaly score is an error, small where all is normal; that of "
        "this one is not. Set model.anomaly=forecast where the model has it, or learn from the labels with "
        "loss=by-task."
    )
    assert not (tmp_path / "run").exists()


def test_a_forecast_does_not_learn_from_labels(clips, refused, tmp_path):
    """The recipe's loss would train the surprise as if it were a logit."""
    weak = manifest(clips, "weak.csv", lambda n: n % 2)
    words = ("--model", "cnn-mamba", "--data", weak, *TINY, "model.anomaly=forecast", "--out", tmp_path / "run")
    assert refused(*words) == (
        "The loss 'by-task' learns 'anomaly' from labels, and the score of this network is an error, which it learns "
        "to make small on normal videos. Set loss=normal-only, or model.anomaly=head where the model has it."
    )
    assert not (tmp_path / "run").exists()


def test_no_anomaly_among_the_test_cases_leaves_the_metrics_undefined(clips, tmp_path):
    """Undefined is empty, not an error, and nothing is made up."""
    run = tmp_path / "run"
    medvid(
        "--model", "cnn", "--data", manifest(clips, "none.csv", lambda n: n % 2 if n < 6 else 0), *TINY, "--out", run
    )
    results = record_of(run)["results"]
    assert results["anomaly-auroc"] is None
    assert results["video-ap/prevalence"] == 0
    assert (run / "report.html").stat().st_size > 0


# --- resumed, and by two processes ---------------------------------------------------------------------------------

LONGER = ("--model", "cnn-mamba", *PHANTOM, "dataset.frames=8", "train.max_steps=6", "train.ema=0.9")
LASTING = (*LONGER, "train.save_every_s=0", "model.dropout=0.2", "augment.noise=0.02", "schedule.warmup=0.5")
LASTING += ("optimizer.lr_scale={frames.encoder: 0.5}",)  # with the recipe's decay: four groups of parameters


def digest(path: Path) -> str:
    found = hashlib.sha256()
    tensors, _ = checkpoint.read(path)
    for name in sorted(tensors):
        found.update(name.encode() + str(tensors[name].dtype).encode() + tensors[name].numpy().tobytes())
    return found.hexdigest()


def test_a_stopped_classification_goes_on_to_the_bit(monkeypatch, tmp_path):
    """Broken off before the fourth step, then resumed: weights, moving average, losses and table are the same."""
    whole, run, real = tmp_path / "whole", tmp_path / "run", training._step
    medvid(*LASTING, "--out", whole)

    def interrupted(session, *rest):
        if session.state.step == 3:
            raise KeyboardInterrupt
        return real(session, *rest)

    monkeypatch.setattr(training, "_step", interrupted)
    with pytest.raises((SystemExit, MedvidError)):
        medvid(*LASTING, "--out", run)
    assert not (run / "model.safetensors").exists()
    monkeypatch.setattr(training, "_step", real)
    medvid("train", "--resume", run)
    for file in ("model.safetensors", "checkpoints/last.safetensors", "checkpoints/best.safetensors"):
        assert digest(run / file) == digest(whole / file), file
    lines = [[{**line, "seconds": 0} for line in log(at, "train")] for at in (run, whole)]
    assert [line["step"] for line in lines[0]] == [1, 2, 3, 4, 5, 6]
    assert lines[0] == lines[1]
    assert (run / "cases.csv").read_bytes() == (whole / "cases.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("question", ["order", "phase"])
def test_two_processes_train_and_score_as_one(question, tmp_path):
    """Batch statistics apart, which each process has its own (so they are left alone here): losses within 1e-4."""
    words = ("--model", "cnn-mamba", *PHANTOM, "dataset.frames=8", "dataset.beats=1", f"dataset.question={question}")
    words += ("model.frozen_norm=true", "train.batch_size=4", "train.max_steps=3", "--out")
    # as many threads each as here: torchrun would give each one, and sums are rounded otherwise then
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(torch.get_num_threads())}

    def two(*rest) -> None:
        start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
        command = [*start, "-m", "medvid_core", *map(str, rest)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stderr

    medvid(*words, tmp_path / "one")
    two(*words, tmp_path / "two")
    one, other = (log(tmp_path / name, "train") for name in ("one", "two"))
    assert [line["step"] for line in other] == [1, 2, 3]
    for first, second in zip(one, other, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], abs=1e-4)
    medvid("evaluate", tmp_path / "one", "--split", "all", "--out", tmp_path / "e1")
    two("evaluate", tmp_path / "one", "--split", "all", "--out", tmp_path / "e2")
    for name in ("cases.csv", *(["frames.csv"] if question == "phase" else [])):
        assert (tmp_path / "e1" / name).read_bytes() == (tmp_path / "e2" / name).read_bytes()
    results = [json.loads((tmp_path / name / "summary.json").read_text())["results"] for name in ("e1", "e2")]
    assert results[0] == results[1]
