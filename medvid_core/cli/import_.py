"""Convert weights published elsewhere to a model file, strictly and without executing anything in them."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvid_core.config import parse_overrides
from medvid_core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``import``."""
    parser.add_argument("weights", metavar="FILE", type=Path, help=".pth, .pt, .ckpt, .bin or .safetensors")
    parser.add_argument("--model", metavar="NAME", required=True, help="the model the weights are for")
    parser.add_argument("--source", metavar="KIND", default="upstream", help="where they come from (default: upstream)")
    parser.add_argument(
        "--classes", metavar="A,B,…", default="foreground", help="class names, background first if many"
    )
    parser.add_argument("--task", metavar="NAME", help="what it was trained for (default: the model's first task)")
    parser.add_argument("--output", metavar="NAME", help="name of what it predicts (default: mask, or label)")
    parser.add_argument("--preset", metavar="NAME", default="full", help="the model's preset (default: full)")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("model.safetensors"), help="model file to write"
    )
    parser.add_argument(
        "settings", metavar="key=value", nargs="*", help="the model's own settings, e.g. model.edge=true"
    )


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``import``."""
    from medvid_core.models import create_model, import_weights, model_spec, save_model
    from medvid_core.specs import OutputSpec

    settings = parse_overrides(arguments.settings)
    stray = [key for key in settings if not key.startswith("model.")]
    if stray:
        raise ConfigError(f"import takes the model's own settings only (model.…), not {stray[0]!r}.")
    if arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists already. Choose another --out.")
    task = arguments.task or model_spec(arguments.model).tasks[0]
    name = arguments.output or ("mask" if task == "segmentation" else "label")
    output = OutputSpec(name=name, task=task, classes=tuple(arguments.classes.split(",")))
    own = {key.removeprefix("model."): value for key, value in settings.items()}
    model = create_model(arguments.model, outputs=(output,), preset=arguments.preset, **own)
    report = import_weights(model, arguments.weights, arguments.source)
    save_model(model, arguments.out, {"imported": {"file": arguments.weights.name, "source": arguments.source}})
    print(report.text())
    print(f"wrote {arguments.out}")
