"""Two real processes on the CPU: the same table, the same training."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

WORDS = (
    "--model",
    "unet",
    "preset=tiny",
    "dataset.cases=7",
    "dataset.frames=6",
    "dataset.size=[48,48]",
    "train.max_steps=4",
    "evaluate.overlays=1",
)


def torchrun(*words, cwd, program=("-m", "medvid_core")) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *program]
        + [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )


def log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A run trained by two processes."""
    out = tmp_path_factory.mktemp("two") / "run"
    done = torchrun(*WORDS, "--expect-processes", 2, "--out", out, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    return out


def test_two_processes_train_as_one(together, tiny_run):
    """World size 2 is on record; losses agree within 1e-4; each step is logged once."""
    record = json.loads((together / "run.json").read_text())
    assert record["hardware"]["processes"] == 2
    assert record["status"] == "done"
    assert json.loads((tiny_run / "run.json").read_text())["hardware"]["processes"] == 1
    one, two = log(tiny_run), log(together)
    assert [(line["kind"], line["step"]) for line in two] == [(line["kind"], line["step"]) for line in one]
    for first, second in zip(one, two, strict=True):
        for key in ("loss", "dice", "cross_entropy", "mae"):
            assert second.get(key, 0) == pytest.approx(first.get(key, 0), abs=1e-4)
    assert (together / "splits.json").read_text() == (tiny_run / "splits.json").read_text()


def test_evaluation_by_two_processes_gives_the_same_table(medvid, tiny_run, tmp_path):
    """The same model file on seven cases: ``cases.csv`` is equal byte by byte."""
    medvid("evaluate", tiny_run, "--split", "all", "--out", tmp_path / "one")
    done = torchrun("evaluate", tiny_run, "--split", "all", "--out", tmp_path / "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (tmp_path / name / "cases.csv" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.read_text().count("\n") == 8
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert summaries[0]["results"] == summaries[1]["results"]
    assert [summary["hardware"]["processes"] for summary in summaries] == [1, 2]
    printed = done.stdout.count("dice/lv ")
    assert printed == 1  # by one process


def test_processes_part_before_they_end(tmp_path):
    """A process group left standing aborts the interpreter at its end, now and then."""
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, os, pathlib, torch.distributed as dist\n"
        "seen = pathlib.Path(os.environ['RANK'] + '.txt')\n"
        "atexit.register(lambda: seen.write_text('standing' if dist.is_initialized() else 'parted'))\n"
        "from medvid_core.engine.setup import accelerator\n"
        "assert accelerator().num_processes == 2 == accelerator().num_processes\n"
    )
    done = torchrun(cwd=tmp_path, program=(str(script),))
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["parted", "parted"]


def test_another_number_of_processes_than_expected_is_refused(tmp_path):
    done = torchrun(*WORDS, "--expect-processes", 3, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode != 0
    assert (
        "2 process(es) run, --expect-processes says 3. On a CPU start them with: "
        "torchrun --nproc_per_node 3 -m medvid_core …"
    ) in done.stderr
    assert not (tmp_path / "run").exists()


def test_processes_score_the_network_that_is_saved(tmp_path):
    """Batch statistics differ between processes; validation scores the main one's, which are kept."""
    words = ("--model", "vivim", *WORDS[2:], "train.batch_size=4", "train.max_steps=2", "evaluate.at=model")
    done = torchrun(*words, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "find_unused_parameters" not in done.stderr
    logged = [line for line in log(tmp_path / "run") if line["kind"] == "evaluation"]
    best = json.loads((tmp_path / "run" / "run.json").read_text())["best"]
    check = subprocess.run(
        [sys.executable, "-m", "medvid_core", "evaluate", str(tmp_path / "run"), "--split", "val", "--out", "val"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{best['value']:.4f}" in check.stdout.splitlines()[0]
    summary = json.loads((tmp_path / "val" / "summary.json").read_text())["results"]
    chosen = next(line for line in logged if line["step"] == best["step"])
    assert chosen["mae"] == pytest.approx(summary["mae"], abs=1e-7)
