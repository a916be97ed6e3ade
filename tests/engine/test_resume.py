"""Nothing lost: a run that was killed or stopped goes on to the bit."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from medvid_core.engine import checkpoint

WORDS = (
    "preset=tiny",
    "dataset.cases=5",
    "dataset.frames=5",
    "dataset.size=[40,40]",
    "evaluate.overlays=0",
    "train.epochs=1000",
    "train.max_steps=60",
    "train.evaluate_every=8",
    "train.ema=0.9",
    "train.save_every_s=0",
    "model.dropout=0.2",
    "augment.horizontal_flip=0.5",
    "augment.noise=0.02",
    "clip.sampling=all",
    "clip.max_numerosity=2",
    "clip.numerosity=random",
)


def log(run, *without):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in without} for line in lines]


def digest(path) -> str:
    """Of names and values of all tensors, bit by bit."""
    found = hashlib.sha256()
    tensors, _ = checkpoint.read(path)
    for name in sorted(tensors):
        found.update(name.encode() + str(tensors[name].dtype).encode() + tensors[name].numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def whole(medvid, tmp_path_factory):
    """The run nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    medvid("--model", "unet", *WORDS, "--out", out)
    return out


def interrupted(command, out, after: int, number: signal.Signals) -> tuple[int, str]:
    """Start the same run in a process of its own and send it a signal once so many steps are logged."""
    process = subprocess.Popen(
        [*command, "--model", "unet", *WORDS, "--out", str(out)], stderr=subprocess.PIPE, text=True, cwd=out.parent
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        metrics = out / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= after and (out / "checkpoints").exists():
            break
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def assert_same_run(run, whole):
    for file in ("model.safetensors", "checkpoints/last.safetensors", "checkpoints/best.safetensors"):
        assert digest(run / file) == digest(whole / file), file
    assert log(run, "seconds") == log(whole, "seconds")
    assert (run / "cases.csv").read_bytes() == (whole / "cases.csv").read_bytes()
    assert json.loads((run / "run.json").read_text())["status"] == "done"


def test_a_killed_run_goes_on_to_the_bit(command, medvid, whole, tmp_path):
    """SIGKILL in the middle, then --resume: weights, moments, average, every loss and the table are the same."""
    out = tmp_path / "run"
    code, _ = interrupted(command, out, 13, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 99')  # torn in the middle of a line
    medvid("train", "--resume", out)
    assert_same_run(out, whole)


def test_sigterm_stops_in_order_and_says_how_to_go_on(command, medvid, whole, tmp_path):
    """What a cluster's scheduler sends: exit code 2, the state saved, the words to type."""
    out = tmp_path / "run"
    code, errors = interrupted(command, out, 5, signal.SIGTERM)
    assert code == 2, errors
    step = log(out)[-1]["step"]
    assert f"medvid-run: error: Stopped at step {step}. Go on with: medvid-run train --resume {out}\n" in errors
    assert "Traceback" not in errors
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "stopped"
    medvid("train", "--resume", out)
    assert_same_run(out, whole)


def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_resuming_a_finished_run_changes_nothing(medvid, whole, tmp_path):
    run = copied(whole, tmp_path)
    medvid("train", "--resume", run)
    assert_same_run(run, whole)


def test_a_run_killed_before_its_first_record_starts_anew(medvid, whole, tmp_path):
    """Only ``config.yaml`` was written: the same run results."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole / "config.yaml", run)
    medvid("train", "--resume", run)
    assert_same_run(run, whole)


def test_a_run_killed_before_its_first_checkpoint_logs_no_step_twice(medvid, whole, tmp_path):
    """What the first life logged is written anew (checkpoints come every five minutes)."""
    run = copied(whole, tmp_path)
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log(whole)[:5]))
    medvid("train", "--resume", run)
    assert_same_run(run, whole)


def test_a_damaged_checkpoint_is_named(refused, whole, tmp_path):
    run = copied(whole, tmp_path)
    path = run / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert refused("train", "--resume", run).startswith(f"{path} is damaged or not a safetensors file: ")


def test_a_run_whose_data_changed_is_not_resumed(refused, medvid, vtus, tmp_path):
    """A case added in between moves others from test to train: the run stops instead of cheating."""
    root = vtus()
    (root / "Test").rename(tmp_path / "Test")
    run = tmp_path / "run"
    medvid("--model", "unet", "--data", root, "preset=tiny", "train.max_steps=1", "evaluate.overlays=0", "--out", run)
    for kind in ("Train", "Train_GT"):
        shutil.copytree(root / kind / "a", root / kind / "new")
    assert refused("train", "--resume", run) == (
        f"The data at {root} are divided otherwise than when {run} began: cases were added, removed or renamed, and "
        "test cases may have been trained on. Restore the data, or start a new run (--weights takes over what was "
        "learnt)."
    )


def test_resume_is_given_alone(refused, tiny_run, tmp_path):
    text = "--resume goes on with the run's own settings; give it alone."
    for more in (("--model", "unet"), ("--data", "echo-phantom"), ("seed=3",), ("--out", tmp_path)):
        assert refused("train", "--resume", tiny_run, *more) == text
    assert refused("train", "--resume", tmp_path) == f"{tmp_path} is not a run directory: it holds no config.yaml."


def test_a_run_is_not_overwritten(refused, tiny_run):
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    assert refused("--model", "unet", "preset=tiny", "--out", tiny_run) == (
        f"{tiny_run} already holds a run. Choose another --out, or go on with it: --resume {tiny_run}."
    )
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before
    file = tiny_run / "cases.csv"
    assert refused("--model", "unet", "preset=tiny", "--out", file) == (
        f"--out {file} is a file; it must be a folder to make. Choose another --out."
    )
    assert os.path.getsize(file)
