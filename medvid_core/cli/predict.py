"""Predict on videos with a trained model: masks, classes, numbers or scores, with a video to look at for each case.

With --stream a causal model predicts frame by frame as they come: from a file, from a folder that is being written,
or from a camera or frame grabber (--device-format v4l2 /dev/video0).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medvid_core.errors import ConfigError


def add_path(parser: argparse.ArgumentParser) -> None:
    """Add what is read, and the settings that say how."""
    parser.add_argument("path", metavar="PATH", help="a video, a folder of frames, a folder of either, or a data set's")
    parser.add_argument(
        "settings",
        metavar="key=value",
        nargs="*",
        help="how PATH is read, where its layout does not say: dataset=ovarian, dataset.classes=[a,b], …",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``predict``."""
    parser.add_argument(
        "run_or_file",
        metavar="RUN|FILE|DIR",
        type=Path,
        help="a run directory, a model file, or the folder of a cross-validation (cv)",
    )
    add_path(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("predictions"), help="default: predictions")
    parser.add_argument("--no-video", action="store_true", help="write no overlay videos")
    parser.add_argument("--overlap", metavar="N", type=int, help="frames that neighbouring windows share (default: 0)")
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="points, boxes and masks (JSON), see the docs")
    parser.add_argument("--cache", metavar="DIR", help="where prepared videos are kept, for models that need such")
    live = parser.add_argument_group("frame by frame")
    live.add_argument("--stream", action="store_true", help="predict each frame as it comes")
    live.add_argument("--device-format", metavar="KIND", help="PATH is a device: v4l2, avfoundation, dshow, lavfi")
    live.add_argument("--queue", metavar="N", type=int, help="frames that may wait (default: 8)")
    live.add_argument("--drop", action="store_true", help="drop the oldest waiting frame rather than slow the source")
    live.add_argument("--frames", metavar="N", type=int, help="stop after so many predictions")
    live.add_argument(
        "--idle", metavar="S", type=float, help="a folder without a new frame for so long has ended (default: 5)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``predict``."""
    _check(arguments)
    if arguments.stream:
        from medvid_core.engine.stream import IDLE_S, QUEUE, predict_stream

        predict_stream(
            arguments.run_or_file,
            arguments.path,
            arguments.out,
            device_format=arguments.device_format,
            drop=arguments.drop,
            waiting=QUEUE if arguments.queue is None else arguments.queue,
            most=arguments.frames,
            idle_s=IDLE_S if arguments.idle is None else arguments.idle,
        )
        return
    from medvid_core.engine.predict import predict

    predict(
        arguments.run_or_file,
        arguments.path,
        arguments.out,
        video=not arguments.no_video,
        overlap=arguments.overlap or 0,
        prompts=arguments.prompts,
        cache=arguments.cache or "",
        settings=arguments.settings,
    )


_WHOLE = ("overlap", "no_video", "prompts", "cache")
_LIVE = ("device_format", "queue", "drop", "frames", "idle")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that would be passed over.

    Raises:
        ConfigError: naming them.
    """
    values = {name: getattr(arguments, name) for name in (_WHOLE if arguments.stream else _LIVE)}
    given = [
        f"--{name.replace('_', '-')}" for name, value in values.items() if value is not None and value is not False
    ]
    named = " and ".join([*given, *(arguments.settings if arguments.stream else ())])
    if not named:
        return
    if arguments.stream:
        raise ConfigError(
            f"With --stream, which predicts frame by frame and writes a table, {named} would do nothing. Leave out one "
            "or the other."
        )
    raise ConfigError(f"Without --stream, {named} would do nothing. Add --stream to predict frame by frame.")
