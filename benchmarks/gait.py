"""Which stream sees which cue: the two-stream network on the gait phantom, with posture, timing, or both to go by.

Run from the repository: ``python benchmarks/gait.py > benchmarks/results/gait.md``. The classes of the phantom differ
in the lean of the trunk (static), in the timing of the steps (dynamic), or in both; networks see pictures, the person
alone, flow, both streams, or pictures in random order. Two processes train at a time, with a thread each. Runs are kept
in ``--out``; give the command again to go on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, say, table

from medvid_core import plugins
from medvid_core.engine.train_many import train_missing

SEEDS = 3
PROCESSES = 2
CUES = ("static", "dynamic", "both")
VARIANTS = {
    "RGB": "model.inputs=[rgb]",
    "RGB, frames shuffled": "model.inputs=[rgb] model.shuffled=true",
    "masked RGB": "model.inputs=[masked-rgb]",
    "flow": "model.inputs=[flow]",
    "masked RGB and flow": "model.inputs=[masked-rgb,flow]",
}
"""Name of a row to its settings."""

COMMON = (
    "preset=small",
    "preprocess.size=96",
    "clip.size=[64,64]",
    "model.width=8",
    "dataset.patients=120",
    "dataset.videos_per_patient=[2,2]",
    "dataset.assistants=0",
    "dataset.setting=laboratory",
    "split.test=0.35",
    "train.epochs=12",
    "train.evaluate_every=4",
    "evaluate.overlays=0",
)
QUICK = ("preset=tiny", "dataset.patients=12", "dataset.frames=16", "train.epochs=1", "evaluate.overlays=0")

NOTES = """
Accuracy on the videos of patients who were not trained on, mean over {seeds} seeds; in brackets the 95 % interval over
patients (bootstrap of patients, {resamples} resamples, of the mean over seeds). Chance is 0.5. Patients are filmed in
the laboratory: before a plain backdrop, arms held up, the picture following them, so that flow shows the legs and next
to nothing of the trunk. Flow is DIS, mask and crop by background subtraction; networks are slow-R50 with one block a
stage and an eighth of the width.
"""

RESAMPLES = 2000


def outcomes(run: Path) -> dict[str, list[float]]:
    """Return patient → 1 or 0 for each video that was told right or wrong."""
    found: dict[str, list[float]] = {}
    with open(run / "cases.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            right = float(row["predicted/diagnosis"] == row["true/diagnosis"])
            found.setdefault(row["group_id"], []).append(right)
    return found


def interval(runs: Sequence[dict[str, list[float]]], rng: np.random.Generator) -> tuple[float, float, float]:
    """Return mean accuracy and its 95 % interval over patients; every run has the same patients."""
    patients = sorted(runs[0])
    right = np.array([[sum(run[patient]) for patient in patients] for run in runs])
    count = np.array([len(runs[0][patient]) for patient in patients])
    drawn = rng.integers(len(patients), size=(RESAMPLES, len(patients)))
    means = right[:, drawn].sum((0, 2)) / (len(runs) * count[drawn].sum(1))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(right.sum() / (len(runs) * count.sum())), float(low), float(high)


def trained(variant: str, cue: str, seeds: int, common: Sequence[str], out: Path) -> list[Path]:
    """Train what is missing of a variant, in a process of its own; return its runs."""
    torch.set_num_threads(1)
    folder = out / cue / variant.replace(", ", "-").replace(" ", "-")
    settings = [*common, f"dataset.cue={cue}", *VARIANTS[variant].split()]
    return train_missing(["two-stream"], None, seeds, settings, folder, plugins.registry(), say)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="toy trainings, for the tests")
    parser.add_argument("--cues", help="only these, with commas between")
    parser.add_argument("--out", type=Path, help="where runs are kept; a folder that is removed if not given")
    arguments = parser.parse_args(words)
    seeds, common = (1, QUICK) if arguments.quick else (SEEDS, COMMON)
    cues = (arguments.cues or ",".join(CUES)).split(",")
    start = time.monotonic()
    print(f"# Which stream sees which cue\n\n{machine(torch.device('cpu'))}\n")
    rows: list[list[Any]] = []
    pool = ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as temporary, pool:
        out = arguments.out or Path(temporary)
        pairs = itertools.product(VARIANTS, cues)
        running = {pair: pool.submit(trained, *pair, seeds, common, out) for pair in pairs}
        for variant in VARIANTS:
            row = [variant]
            for cue in cues:
                runs = [outcomes(run) for run in running[variant, cue].result()]
                mean, low, high = interval(runs, np.random.default_rng(0))
                row.append(f"{mean:.3f} ({low:.3f} to {high:.3f})")
            rows.append(row)
    print(table(["network sees", *(f"cue: {cue}" for cue in cues)], rows))
    print(NOTES.format(seeds=seeds, resamples=RESAMPLES))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock, cpu = ((time.monotonic() - start) / 60, (used.ru_utime + used.ru_stime) / 60)
    print(f"All together: {clock:.0f} minutes, {cpu:.0f} CPU minutes in {PROCESSES} processes.")


if __name__ == "__main__":
    main()
