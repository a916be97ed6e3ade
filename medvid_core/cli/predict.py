"""Predict on videos with a trained model: masks, classes, numbers or scores, with a video to look at for each case.

With --stream a causal model predicts frame by frame as they come: from a file, from a folder that is being written,
or from a camera or frame grabber (--device-format v4l2 /dev/video0).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medvid_core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``predict``."""
    parser.add_argument("run_or_file", metavar="RUN|FILE", type=Path, help="a run directory or a model file")
    parser.add_argument("path", metavar="PATH", help="a video, a folder of frames, or a folder of either")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("predictions"), help="default: predictions")
    parser.add_argument("--no-video", action="store_true", help="write no overlay videos")
    parser.add_argument("--overlap", metavar="N", type=int, default=0, help="frames that neighbouring windows share")
    live = parser.add_argument_group("frame by frame")
    live.add_argument("--stream", action="store_true", help="predict each frame as it comes")
    live.add_argument("--device-format", metavar="KIND", help="PATH is a device: v4l2, avfoundation, dshow, lavfi")
    live.add_argument("--queue", metavar="N", type=int, default=8, help="frames that may wait (default: 8)")
    live.add_argument("--drop", action="store_true", help="drop the oldest waiting frame rather than slow the source")
    live.add_argument("--frames", metavar="N", type=int, help="stop after so many predictions")
    live.add_argument(
        "--idle", metavar="S", type=float, default=5.0, help="a folder without a new frame for so long has ended"
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``predict``."""
    if arguments.stream:
        from medvid_core.engine.stream import predict_stream

        predict_stream(
            arguments.run_or_file,
            arguments.path,
            arguments.out,
            device_format=arguments.device_format,
            drop=arguments.drop,
            waiting=arguments.queue,
            most=arguments.frames,
            idle_s=arguments.idle,
        )
        return
    if arguments.device_format or arguments.drop or arguments.frames:
        raise ConfigError("--device-format, --drop and --frames are for predicting frame by frame: add --stream.")
    from medvid_core.engine.predict import predict

    predict(
        arguments.run_or_file, arguments.path, arguments.out, video=not arguments.no_video, overlap=arguments.overlap
    )
