"""Train several models with several seeds on the same data, and go on where that was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medvid_core.config import Composed, compose, flatten, parse_overrides, read_config_file
from medvid_core.data.fan import check_fans
from medvid_core.engine.finished import TRACKERS, has_finished, names_of
from medvid_core.engine.run import read_json
from medvid_core.engine.setup import model_info, open_data
from medvid_core.errors import ConfigError
from medvid_core.models import ModelInfo
from medvid_core.plugins import Registry


def train_missing(
    models: Sequence[str],
    data: str | None,
    seeds: int,
    settings: Sequence[str],
    out: Path,
    plugins: Registry,
    say: Callable[[str], None],
) -> list[Path]:
    """Train every model with every seed into ``out/<model>/seed<k>``, but for the runs that are there already.

    A finished run is kept, a stopped one goes on. All are divided into the same parts (``split.seed``); everything that
    can be refused is refused before the first begins.

    Args:
        models: names of models.
        data: a data set's name or a path; None for the phantom of the first model's recipe.
        seeds: runs of each model, with seeds from ``seed`` (0) on.
        settings: ``key=value`` words for all of them.
        out: folder of the runs.
        plugins: the installed plugins.
        say: shows a line of progress.

    Returns:
        The run directories, model by model.

    Raises:
        ConfigError: a setting; models that predict different things; or a run that was made with other settings.
    """
    plans = _plans(models, data, seeds, settings, out, plugins)
    for number, (directory, composed) in enumerate(plans.items(), 1):
        name = f"{number} of {len(plans)}, {composed.model.name} with seed {composed.config.seed}"
        train_or_resume(directory, composed, name, plugins, say)
    return list(plans)


def train_or_resume(
    directory: Path,
    composed: Composed,
    name: str,
    plugins: Registry,
    say: Callable[[str], None],
    weights: Path | None = None,
    source: str | None = None,
    moved: Sequence[str] = (),
) -> None:
    """Train a run, or go on with it where it was stopped; a finished one is kept.

    Args:
        directory: of the run.
        composed: its configuration.
        name: what the lines of progress call it.
        plugins: the installed plugins.
        say: shows a line of progress.
        weights: a model file that a new run starts from.
        source: what kind of file that is.
        moved: ``key=value`` words over the settings of a run that goes on: where files are now.
    """
    from medvid_core.engine.train import train

    if not (directory / "run.json").is_file():
        say(f"training run {name}")
        train(composed, plugins, out=directory, weights=weights, source=source)
    elif has_finished(directory):
        say(f"kept     run {name}: {directory}")
    else:
        say(f"resuming run {name}")
        train(compose(plugins, overrides=moved, config_file=directory / "config.yaml"), plugins, resume=directory)


def _plans(
    models: Sequence[str], data: str | None, seeds: int, settings: Sequence[str], out: Path, plugins: Registry
) -> dict[Path, Composed]:
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds} cannot be used: it must be at least 1.")
    start = parse_overrides(settings).get("seed", 0)
    plans: dict[Path, Composed] = {}
    predicted: dict[str, str] = {}
    shared = [*settings, *_shared(compose(plugins, models[0], data, settings))]
    for model in models:
        composed = compose(plugins, model, overrides=shared)
        name = plugins.name_of("model", composed.model)
        if name in predicted:
            raise ConfigError(f"--models names {name} twice.")
        predicted[name] = _predicted(composed, plugins)
        for seed in range(start, start + seeds):
            directory = out / name.replace("/", "-") / f"seed{seed}"
            plans[directory] = compose(plugins, model, overrides=[*shared, f"seed={seed}"])
            check_settings(directory, plans[directory])
    first = next(iter(predicted))
    for name, outputs in predicted.items():
        if outputs != predicted[first]:
            raise ConfigError(
                f"{first} and {name} cannot be compared: {first} predicts {predicted[first]}; {name} {outputs}. "
                "Choose what both can with outputs=[…]."
            )
    return plans


def _shared(composed: Composed) -> list[str]:
    """Return, as words, what all models must share: the data and how they are divided, and the preset's name."""
    plain = composed.config.to_dict()
    words = flatten({key: plain[key] for key in ("dataset", "split", "preset")})
    return [f"{key}={json.dumps(value)}" for key, value in words.items()]


def _predicted(composed: Composed, plugins: Registry) -> str:
    """Return what a model would predict on the data, in words; refuses what cannot be trained."""
    return names_of(check_data(composed, plugins).outputs)


def check_data(composed: Composed, plugins: Registry) -> ModelInfo:
    """Return the model that settings and data call for; refuses what would be found out hours later.

    Raises:
        MedvidError: as `open_data` and `model_info` do. DataError: a fan mask does not fit its video.
    """
    data = open_data(composed)
    check_fans([case for cases in data.splits.values() for case in cases], composed.config.clip.fan_crop)
    return model_info(composed, plugins, data)


def check_settings(
    directory: Path, composed: Composed, but: Sequence[str] = (), begun_from: Mapping[str, Any] | None = None
) -> None:
    """Refuse a run directory that was made with other settings, or that started from other weights.

    Args:
        directory: of the run; one that has not begun is passed over.
        composed: the settings now.
        but: keys that may differ, beside who is told of the run.
        begun_from: the weights now, see `medvid_core.engine.train.start_of`; None for random ones.

    Raises:
        ConfigError: naming the first of them.
    """
    if not (directory / "run.json").is_file():
        return
    written, wanted = read_config_file(directory / "config.yaml"), flatten(composed.config.to_dict())
    but = (*but, TRACKERS)
    other = sorted(key for key in written.keys() & wanted.keys() if written[key] != wanted[key] and key not in but)
    if other:
        key = other[0]
        raise ConfigError(
            f"{directory} was trained with {key}={written[key]}, not {wanted[key]}. Choose another --out, or remove "
            "this run to train it anew."
        )
    before = read_json(directory / "run.json").get("begun_from")
    if _weights(before) != _weights(begun_from):
        raise ConfigError(
            f"{directory} was trained from {_named(before)}, not from {_named(begun_from)}. Choose another --out, or "
            "remove this run to train it anew."
        )


def _weights(begun_from: Mapping[str, Any] | None) -> tuple[Any, ...] | None:
    """Return what makes weights the same, wherever their file lies."""
    return None if begun_from is None else (begun_from.get("sha256"), begun_from.get("source"))


def _named(begun_from: Mapping[str, Any] | None) -> str:
    if begun_from is None:
        return "random weights"
    kind = f" ({begun_from['source']})" if begun_from.get("source") else ""
    return f"{begun_from.get('file')}{kind} of SHA-256 {str(begun_from.get('sha256'))[:12]}…"
