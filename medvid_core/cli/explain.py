"""Explain what a trained model predicts of videos: what in them speaks for a class, as heat over the video."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvid_core.cli.predict import add_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``explain``."""
    parser.add_argument("run_or_file", metavar="RUN|FILE", type=Path, help="a run directory, or a model file")
    add_path(parser)
    parser.add_argument(
        "--class",
        dest="wanted",
        metavar="NAME",
        default="",
        help="class, label, grade to lie above, or number; 'not NAME' for what speaks against it "
        "(default: what is predicted of each video)",
    )
    parser.add_argument("--output", metavar="NAME", default="", help="of which output, where a model has several")
    parser.add_argument(
        "--method", metavar="NAME", default="grad-cam", help="grad-cam (default) or integrated-gradients"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("explanations"), help="default: explanations")
    parser.add_argument(
        "--overlap", metavar="N", type=int, default=0, help="frames that neighbouring windows share (default: 0)"
    )
    parser.add_argument("--cache", metavar="DIR", default="", help="where prepared videos are kept, for such models")


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``explain``."""
    from medvid_core.engine.explain import explain

    explain(
        arguments.run_or_file,
        arguments.path,
        arguments.out,
        wanted=arguments.wanted,
        output=arguments.output,
        method=arguments.method,
        overlap=arguments.overlap,
        cache=arguments.cache,
        settings=arguments.settings,
    )
