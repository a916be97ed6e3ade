"""Segment videos with a trained model: one mask image a frame and an overlay video for each case."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``predict``."""
    parser.add_argument("run_or_file", metavar="RUN|FILE", type=Path, help="a run directory or a model file")
    parser.add_argument("path", metavar="PATH", type=Path, help="a video, a folder of frames, or a folder of either")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("predictions"), help="default: predictions")
    parser.add_argument("--no-video", action="store_true", help="write masks only")
    parser.add_argument("--overlap", metavar="N", type=int, default=0, help="frames that neighbouring windows share")


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``predict``."""
    from medvid_core.engine.predict import predict

    predict(
        arguments.run_or_file, arguments.path, arguments.out, video=not arguments.no_video, overlap=arguments.overlap
    )
