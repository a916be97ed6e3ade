"""Parse the command line and hand over to a sub-command."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import medvid_core
from medvid_core.errors import MedvidError, did_you_mean

COMMANDS = {
    "train": "train, evaluate and report a model (the default command)",
    "evaluate": "score a trained model on a data set",
    "predict": "predict on videos with a trained model, whole or as they come",
    "explain": "show what in a video speaks for what a model predicts",
    "preprocess": "prepare the videos of a data set, and keep the result",
    "cv": "cross-validate a model, search settings, train the final one",
    "compare": "compare models on the same cases: results, time, energy",
    "import": "convert weights published elsewhere",
    "plugins": "list what is installed, and what failed to load",
    "doctor": "check the scan backends of this machine",
}

EPILOG = """examples:
  medvid-run --model vivim                               the embedded phantom, small preset
  medvid-run --model vivim --data FOLDER                 your own clips, full size
  medvid-run --model vivim --data FOLDER preset=small train.epochs=20
  medvid-run predict RUN video.mp4 --out masks/
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="medvid-run",
        description="Train, evaluate and use medical video models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"medvid-core {medvid_core.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"medvid_core.cli.{_module(name)}")
        sub = commands.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.add_argument("--strict-plugins", action="store_true", help="stop if any plugin failed to load")
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def _module(command: str) -> str:
    return "import_" if command == "import" else command  # a keyword cannot name a module


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; ``key=value`` words may stand anywhere among the options.

    argparse by itself takes them in one place only, and refuses ``evaluate RUN --split all evaluate.at=model``.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    stray = [word for word in rest if word.startswith("-") or not hasattr(arguments, "settings")]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    if rest:
        arguments.settings = [*arguments.settings, *rest]
    return arguments


def message_of(error: MedvidError) -> str:
    """Return the error's own text, also where a loading worker wrapped it in its traceback."""
    text = str(error)
    marker = f"{type(error).__name__}: "
    return text.rpartition(marker)[2].strip() if "Original Traceback" in text else text


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exits with 0, or with 2 after an error the user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] not in (*COMMANDS, "-h", "--help", "--version"):
        if words[0].isalpha():  # neither an option nor a setting
            meant = did_you_mean(words[0], COMMANDS)
            build_parser().error(f"no command {words[0]!r}; there are {', '.join(COMMANDS)}.{meant}")
        words.insert(0, "train")
    arguments = parse(words or ["--help"])
    try:
        if arguments.strict_plugins:
            from medvid_core import plugins

            plugins.require_healthy(plugins.registry())
        arguments.run(arguments)
        sys.stdout.flush()
    except MedvidError as error:
        print(f"medvid-run: error: {message_of(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # what reads our output, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python says so once more at its end
        sys.exit(141)  # as a shell counts a process ended by SIGPIPE
    except KeyboardInterrupt:
        sys.exit(130)
