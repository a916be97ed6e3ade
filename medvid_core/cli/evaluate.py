"""Score a trained model case by case on a data set; the data of its own run by default."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``evaluate``."""
    parser.add_argument(
        "run_or_file",
        metavar="RUN|FILE|DIR",
        type=Path,
        help="a run directory, a model file, or the folder of a cross-validation (cv)",
    )
    parser.add_argument("--data", metavar="NAME|PATH", help="a data set by name, or a folder or file of your own")
    parser.add_argument(
        "--split",
        choices=["train", "val", "test", "all"],
        help="which cases (default: test for the data of the run, or data that say which cases are for testing; "
        "else all)",
    )
    parser.add_argument(
        "--by",
        metavar="COLUMN",
        action="append",
        default=[],
        help="also show the result by the values of a column: metadata such as vendor, or view, split, group, stratum; "
        "may be given several times",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to write (default: beside the model)")
    parser.add_argument(
        "settings",
        metavar="key=value",
        nargs="*",
        help="evaluate.…, metrics, clip.overlap, clip.blend, dataset.…, split.…; e.g. evaluate.at=model",
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``evaluate``."""
    from medvid_core.engine.evaluate import evaluate

    evaluate(arguments.run_or_file, arguments.data, arguments.split, arguments.out, arguments.settings, by=arguments.by)
