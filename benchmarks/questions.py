"""What video networks see in time: the motion phantom's questions, answered with three seeds beside a network without.

Run from the repository: ``python benchmarks/questions.py > benchmarks/results/questions.md``. Runs are kept in
``--out``; give the command again to go on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import machine, mean_and_spread, say, table

from medvid_core import plugins
from medvid_core.engine.train_many import train_missing

SEEDS = 3

VARIANTS = {
    "cnn-mamba": ("cnn-mamba",),
    "cnn, motion": ("cnn", "model.motion=true"),
    "cnn": ("cnn",),
}
"""Name of a column to the model and its settings."""


@dataclass(frozen=True)
class Question:
    """One question of the phantom.

    Attributes:
        name: as ``dataset.question`` takes it.
        measures: metrics that answer it.
        settings: beyond those all questions share.
    """

    name: str
    measures: tuple[str, ...]
    settings: tuple[str, ...] = ()


QUESTIONS = (
    Question("order", ("accuracy",)),
    Question("ejection_fraction", ("mae", "r2"), ("train.epochs=16",)),
    Question("phase", ("frame-accuracy", "segmental-f1"), ("clip.frames=32",)),
    Question("stall", ("frame-auroc", "video-auroc"), ("clip.frames=48",)),
    # the odd beat is told from the beats before it, not from itself: that takes more patients to learn
    Question("arrhythmia", ("frame-auroc", "video-auroc"), ("clip.frames=48", "dataset.patients=480")),
    Question("progression", ("mae", "r2"), ("clip.frames=80", "model.time_gaps=true")),
)
COMMON = ("preset=small", "clip.size=[32,32]", "dataset.patients=160", "train.epochs=10", "evaluate.overlays=0")
QUICK = ("preset=tiny", "dataset.patients=12", "train.epochs=1")

NOTES = """
Mean over {seeds} seeds, ± their standard deviation, on the test cases; preset small with pictures of 32 × 32. *cnn* is
the same image network without anything that sees more than one frame; *cnn, motion* has the branch that sees what
changed since the frame before, and no layer over the sequence. *trivial* is the best of the predictors that every
report names beside the model: always the same answer; for progression the last measured value carried forward, and each
patient's straight line.
"""


def answers(question: Question, seeds: int, common: Sequence[str], out: Path) -> list[list[str]]:
    """Train what is missing and return the table's rows for this question."""
    settings = [*common, f"dataset.question={question.name}", *(question.settings if common is COMMON else ())]
    records = {}
    for variant, (model, *own) in VARIANTS.items():
        folder = out / question.name / variant.replace(", ", "-").replace(" ", "-")
        runs = train_missing([model], None, seeds, [*settings, *own], folder, plugins.registry(), say)
        records[variant] = [json.loads((run / "run.json").read_text()) for run in runs]
    rows = []
    for measure in question.measures:
        row = [question.name, measure]
        for found in records.values():
            values = [record["results"].get(measure, float("nan")) for record in found]
            row.append(mean_and_spread(values))
        rows.append([*row, trivial(records["cnn"][0], measure)])
    return rows


def trivial(record: dict[str, Any], measure: str) -> str:
    """The best predictor that learns nothing from pictures, and what it reaches."""
    found = {
        name: values[measure]
        for name, values in record["baselines"].items()
        if name != "untrained" and values.get(measure) is not None
    }
    if not found:
        return "undefined"
    best = (max if record["metrics"].get(measure.split("/")[0], True) else min)(found, key=lambda name: found[name])
    return f"{found[best]:.3f} ({best})"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="toy trainings, for the tests")
    parser.add_argument("--questions", help="only these, with commas between")
    parser.add_argument("--out", type=Path, help="where runs are kept; a folder that is removed if not given")
    arguments = parser.parse_args(words)
    wanted = (arguments.questions or ",".join(question.name for question in QUESTIONS)).split(",")
    seeds, common = (1, QUICK) if arguments.quick else (SEEDS, COMMON)
    start = time.monotonic()
    print(f"# The motion phantom's questions\n\n{machine(torch.device('cpu'))}\n")
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        rows = []
        for question in QUESTIONS:
            if question.name in wanted:
                rows += answers(question, seeds, common, out)
    print(table(["question", "measure", *VARIANTS, "trivial"], rows))
    print(NOTES.format(seeds=seeds))
    print(f"All trainings together: {(time.monotonic() - start) / 60:.0f} minutes.")


if __name__ == "__main__":
    main()
