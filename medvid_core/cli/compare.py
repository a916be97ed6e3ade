"""Compare models on the same test cases: what they reach, with intervals and tests over patients, and what they cost.

Either finished runs (medvid-run compare RUN RUN …), or models to train first (--models A,B,…): these are trained into
DIR/<model>/seed<k>; runs that are there already are kept, stopped ones go on. The others are compared with the first.
Writes comparison.md, .tex, .csv, .json and .html to DIR.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from medvid_core import plugins
from medvid_core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``compare``."""
    parser.add_argument("--models", metavar="A,B,…", help="models to train and compare")
    parser.add_argument("--data", metavar="NAME|PATH", help="with --models: a data set by name, or a folder or file")
    parser.add_argument("--seeds", metavar="N", type=int, default=1, help="with --models: runs of each (default: 1)")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where to write")
    parser.add_argument("--no-cost", action="store_true", help="do not measure time, memory and energy")
    parser.add_argument(
        "--resamples", metavar="N", type=int, default=2000, help="resamples of patients (default: 2000)"
    )
    parser.add_argument(
        "settings",
        metavar="RUN|key=value",
        nargs="*",
        help="finished runs; or, with --models, settings for all of them",
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``compare``."""
    runs, settings = _sorted_out(arguments.settings)
    models = [name for name in (arguments.models or "").split(",") if name]
    _check(arguments, models, runs, settings)
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # now, before all work is our own
    from medvid_core.engine.compare import compare
    from medvid_core.engine.cost import CostSettings
    from medvid_core.engine.progress import Progress
    from medvid_core.engine.setup import accelerator
    from medvid_core.engine.train_many import train_missing

    front = accelerator()
    progress = Progress(front.is_main_process)
    if models:
        registry = plugins.registry()
        runs = train_missing(models, arguments.data, arguments.seeds, settings, arguments.out, registry, progress.say)
    if not front.is_main_process:
        return
    cost = None if arguments.no_cost else CostSettings()
    compare(runs, arguments.out, cost, front.device, arguments.resamples, progress.say, load_average)
    print((arguments.out / "comparison.md").read_text("utf-8"))
    progress.say(f"wrote    {arguments.out / 'comparison.html'}")


def _sorted_out(words: list[str]) -> tuple[list[Path], list[str]]:
    """Return which words are runs and which are settings: a setting has a ``=`` and is no folder."""
    settings = [word for word in words if "=" in word and not Path(word).is_dir()]
    return [Path(word) for word in words if word not in settings], settings


def _check(arguments: argparse.Namespace, models: list[str], runs: list[Path], settings: list[str]) -> None:
    if bool(models) == bool(runs):
        raise ConfigError(
            "compare takes either finished runs (medvid-run compare RUN RUN … --out DIR) or models to train "
            "(medvid-run compare --models A,B --out DIR)."
        )
    if runs and (settings or arguments.data or arguments.seeds != 1):
        raise ConfigError("Finished runs have their settings and data; --data, --seeds and key=value go with --models.")
    if arguments.resamples < 100:
        raise ConfigError(f"--resamples {arguments.resamples} cannot be used: it must be at least 100.")
