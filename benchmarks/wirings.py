"""MediViSTA-SAM on one vendor's machine, tested on others': its wirings, and what each part contributes.

Run from the repository: ``python benchmarks/wirings.py > benchmarks/results/wirings.md``. All networks are trained from
random weights on the echo phantom as one (invented) vendor draws it, with three seeds, and scored on new patients of
all four. Beside the table it draws ``wirings.svg`` into the same folder. Runs are kept in ``--out``; give the command
again to go on where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from measuring import machine, mean_and_spread, say, table

from medvid_core import plugins
from medvid_core.engine.compare import compare
from medvid_core.engine.evaluate import evaluate
from medvid_core.engine.train_many import train_missing

SEEDS = 3
TRAINED_ON = "aster"
VENDORS = ("aster", "borea", "cygna", "delos")

VARIANTS = {
    "paper": ("medivista-sam",),
    "paper, no cross-frame": ("medivista-sam", "model.cross_frame=false"),
    "paper, no temporal": ("medivista-sam", "model.temporal=false", "model.cross_frame=false"),
    "paper, SAM positions": ("medivista-sam", "model.sam_positions=true"),
    "released": ("medivista-sam", "model.wiring=released"),
    "fusion": ("medivista-sam", "model.wiring=fusion"),
    "unet": ("unet",),
}
"""Name of a row to the model and its settings."""

COMMON = (
    "preset=small",
    f"dataset.vendor={TRAINED_ON}",
    "clip.size=[64,64]",
    "clip.frames=4",
    "clip.per_case=4",
    "loss=dice-ce",
    "train.epochs=8",
    "train.batch_size=8",
    "evaluate.overlays=0",
)
QUICK = ("preset=tiny", f"dataset.vendor={TRAINED_ON}", "dataset.cases=8", "train.max_steps=2", "evaluate.overlays=0")
MEASURES = ("dice", "hd95")

NOTES = """
Mean over {seeds} seeds, ± their standard deviation; all cases of a vendor are new patients. Networks begin at random
weights here, so the table says what the wirings are worth without SAM's training, on a small task: with SAM's weights
the order may be another.
"""

Scores = Mapping[tuple[str, str], list[float]]
"""(vendor, measure) → its value with each seed."""


def trained(variant: str, seeds: int, common: Sequence[str], out: Path) -> list[Path]:
    """Train what is missing of a variant; return its runs."""
    model, *own = VARIANTS[variant]
    folder = out / variant.replace(", ", "-").replace(" ", "-")
    return train_missing([model], "echo-phantom", seeds, [*common, *own], folder, plugins.registry(), say)


def by_vendor(runs: Sequence[Path], cases: int) -> Scores:
    """Score runs on new patients of all vendors."""
    found: dict[tuple[str, str], list[float]] = {}
    words = ["dataset.vendor=mixed", f"dataset.cases={cases}", "dataset.seed=1"]
    for run in runs:
        out = run / "by-vendor"
        if not (out / "by_vendor.csv").is_file():
            with contextlib.redirect_stdout(sys.stderr):  # what it prints is no part of the result
                evaluate(run, "echo-phantom", "all", out, words, by=["vendor"])
        with open(out / "by_vendor.csv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for measure in MEASURES:
                    if row["vendor"] in VENDORS and row.get(measure):
                        found.setdefault((row["vendor"], measure), []).append(float(row[measure]))
    return found


def draw(scores: Mapping[str, Scores], path: Path) -> None:
    """Draw Dice by vendor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for number, (variant, found) in enumerate(scores.items()):
        x = [place + 0.09 * (number - len(scores) / 2) for place in range(len(VENDORS))]
        values = [found.get((vendor, "dice"), [float("nan")]) for vendor in VENDORS]
        axes.plot(x, [statistics.mean(v) for v in values], "o", label=variant)
        for place, each in zip(x, values, strict=True):
            axes.plot([place] * len(each), each, "_", color="0.6", zorder=0)
    axes.set_xticks(range(len(VENDORS)), [f"{v} (trained)" if v == TRAINED_ON else v for v in VENDORS])
    axes.set(ylabel="Dice")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    figure.savefig(path)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="toy trainings, for the tests")
    parser.add_argument("--variants", help="only these, with semicolons between")
    parser.add_argument("--out", type=Path, help="where runs are kept; a folder that is removed if not given")
    parser.add_argument("--plot", type=Path, default=Path(__file__).with_name("results") / "wirings.svg")
    arguments = parser.parse_args(words)
    wanted = (arguments.variants or ";".join(VARIANTS)).split(";")
    seeds, common, cases = (1, QUICK, 8) if arguments.quick else (SEEDS, COMMON, 80)
    start = time.monotonic()
    print(f"# MediViSTA-SAM: wirings and vendors\n\n{machine(torch.device('cpu'))}\n")
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        runs = {variant: trained(variant, seeds, common, out) for variant in wanted}
        scores = {variant: by_vendor(found, cases) for variant, found in runs.items()}
        compare([run for found in runs.values() for run in found], out / "comparison", say=say)
        compared = (out / "comparison" / "comparison.md").read_text("utf-8")
        for variant, found in runs.items():  # runs of one model are told apart by their folders there
            compared = re.sub(rf"[\w-]+ \(seed0\) \({re.escape(str(found[0]))}\)", variant, compared)
    for measure in MEASURES:
        print(f"## {measure} on new patients, trained on {TRAINED_ON}\n")
        rows = [
            [variant, *(mean_and_spread(found.get((vendor, measure), [])) for vendor in VENDORS)]
            for variant, found in scores.items()
        ]
        print(table(["network", *VENDORS], rows), "\n")
    print(NOTES.format(seeds=seeds))
    print("## On the vendor trained on, with intervals over patients\n")
    print(compared.partition("## Results")[2].partition("\n## ")[0].strip(), "\n")
    print(f"All trainings together: {(time.monotonic() - start) / 60:.0f} minutes.")
    if not arguments.quick:
        draw(scores, arguments.plot)


if __name__ == "__main__":
    main()
