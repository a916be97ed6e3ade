"""Train a model, evaluate it on held-out cases and write a report.

Without --data the embedded echocardiography phantom is used, with preset=small.
Any setting can be given as key=value, e.g. train.epochs=20; --print-config shows all of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medvid_core import plugins
from medvid_core.config import compose
from medvid_core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train``."""
    parser.add_argument("--model", metavar="NAME", help="which model (see: medvid-run plugins list)")
    parser.add_argument("--data", metavar="NAME|PATH", help="a data set by name, or a folder or file of your own")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings from a YAML file")
    parser.add_argument("--out", metavar="DIR", type=Path, help="run directory (default: runs/MODEL-DATA-TIME)")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with a stopped run")
    parser.add_argument("--weights", metavar="FILE", type=Path, help="start from the weights of a model file")
    parser.add_argument("--source", metavar="KIND", help="kind of a FILE published elsewhere, e.g. timm")
    parser.add_argument("--print-config", action="store_true", help="show every setting and its origin, then stop")
    parser.add_argument("--expect-processes", metavar="N", type=int, help="refuse another number of processes")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="settings over all others")


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``train``."""
    registry = plugins.registry()
    config_file = arguments.config
    if arguments.resume is not None:
        if (
            arguments.model
            or arguments.data
            or arguments.config
            or arguments.settings
            or arguments.out
            or arguments.weights
            or arguments.source
        ):
            raise ConfigError("--resume goes on with the run's own settings; give it alone.")
        config_file = arguments.resume / "config.yaml"
        if not config_file.is_file():
            raise ConfigError(f"{arguments.resume} is not a run directory: it holds no config.yaml.")
    if arguments.source and not arguments.weights:
        raise ConfigError("--source says of what kind the file of --weights is; give both.")
    composed = compose(registry, arguments.model, arguments.data, arguments.settings, config_file)
    if arguments.print_config:
        print(composed.explain())
        return
    from medvid_core.engine.train import train

    train(
        composed,
        registry,
        arguments.out,
        arguments.resume,
        arguments.expect_processes,
        arguments.weights,
        arguments.source,
    )
