"""Cross-validate: train on all folds but one, test on that one, and put the results of all together.

Patients are kept together and folds made alike; they are written to DIR/splits.json, which may be edited. Every fold is
a run, DIR/fold<k>; runs that are there already are kept, a stopped one goes on. A setting with several values is
searched over (optimizer.lr=1e-3,1e-4), by validation cases alone. Writes cv.md, .csv, .json and .html to DIR; evaluate
and predict take DIR for the mean of its models.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medvid_core import plugins
from medvid_core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cv``."""
    parser.add_argument("--model", metavar="NAME", help="which model (see: medvid-run plugins list)")
    parser.add_argument("--data", metavar="NAME|PATH", help="a data set by name, or a folder or file of your own")
    parser.add_argument("--folds", metavar="N", type=int, help="how many (default: those of DIR/splits.json, else 5)")
    parser.add_argument("--max-folds", metavar="N", type=int, help="train only the first N of them")
    parser.add_argument("--final", action="store_true", help="then train DIR/final on all cases, without validation")
    parser.add_argument(
        "--final-epochs", metavar="N", type=int, help="epochs of that (default: the mean best epoch of the folds)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder (default: runs/cv-MODEL-DATA)")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a YAML file")
    parser.add_argument("--weights", metavar="FILE", type=Path, help="start every run from the weights of a model file")
    parser.add_argument("--source", metavar="KIND", help="kind of a FILE published elsewhere, e.g. timm")
    parser.add_argument(
        "--resamples", metavar="N", type=int, default=2000, help="resamples of patients (default: 2000)"
    )
    parser.add_argument("--print-config", action="store_true", help="show every setting and its origin, then stop")
    parser.add_argument("settings", metavar="key=value[,value…]", nargs="*", help="settings over all others")


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``cv``."""
    if arguments.source and not arguments.weights:
        raise ConfigError("--source says of what kind the file of --weights is; give both.")
    if arguments.resamples < 100:
        raise ConfigError(f"--resamples {arguments.resamples} cannot be used: it must be at least 100.")
    registry = plugins.registry()
    from medvid_core.engine.cv import CvOptions, cross_validate, explain

    if arguments.print_config:
        print(explain(arguments.model, arguments.data, arguments.settings, registry, arguments.config))
        return
    from medvid_core.engine.progress import Progress
    from medvid_core.engine.setup import accelerator
    from medvid_core.report.cv import write_cv

    options = CvOptions(
        folds=arguments.folds,
        max_folds=arguments.max_folds,
        final=arguments.final,
        final_epochs=arguments.final_epochs,
        resamples=arguments.resamples,
        config_file=arguments.config,
        weights=arguments.weights,
        source=arguments.source,
    )
    progress = Progress(accelerator().is_main_process)
    out, found = cross_validate(
        arguments.model, arguments.data, arguments.settings, arguments.out, registry, options, progress
    )
    if found is None:
        return
    write_cv(found, out)
    print((out / "cv.md").read_text("utf-8"))
    progress.say(f"wrote    {out / 'cv.html'}")
