"""Prepare the videos of a data set as a model wants them, and keep the result: training finds it there.

Started by torchrun, every process takes its share. What is kept already is not computed again; a stopped run goes on
with the next video.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``preprocess``."""
    parser.add_argument("--model", metavar="NAME", help="the model to prepare for", required=True)
    parser.add_argument("--data", metavar="NAME|PATH", help="a data set by name, or a folder or file of your own")
    parser.add_argument("--cache", metavar="DIR", help="where to keep the result (default: the user's cache folder)")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="settings, e.g. preprocess.stride=2")


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``preprocess``."""
    from medvid_core.engine.prepare import prepare_dataset

    prepare_dataset(arguments.model, arguments.data, arguments.settings, arguments.cache or "")
