"""The run configuration: typed dataclasses are the one truth, YAML files and ``key=value`` are views of them.

Precedence, lowest first: core defaults, the model's clip and recipe, preset, data set, the preset's size of clips,
``--config file.yaml``, ``key=value``. Each value remembers which of these it came from. Nothing in a configuration is
ever executed: a value that contains ``${`` is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medvid_core.errors import ConfigError, did_you_mean
from medvid_core.plugins import Problem, Registry, normalise
from medvid_core.specs import DatasetSpec, LossSpec, ModelSpec, PreprocessorSpec, Settings, resolve

DEFAULT_DATASET = "echo-phantom"
DEFAULT_PRESET = "small"
FULL_PRESET = "full"
NO_PREPROCESSOR = "none"
TRACKERS = ("tensorboard", "wandb", "trackio")

C = TypeVar("C")


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        end = "" if allowed.endswith("?") else "."
        raise ConfigError(f"{key}={value!r} cannot be used: it must be {allowed}{end}")


def _require_choice(key: str, value: str, choices: Sequence[str]) -> None:
    _require(value in choices, key, value, f"one of {', '.join(choices)}.{did_you_mean(value, choices)}".rstrip("."))


@dataclass
class ClipConfig:
    """How clips are cut out of videos.

    Attributes:
        frames: clip length T.
        size: height and width in pixels a frame is resized to.
        stride: take every n-th frame of the video.
        sampling: which clips a training epoch sees: ``random`` and ``equispaced`` (``per_case`` clips a case),
            ``dense`` (one clip around every frame), ``all`` (windows one after the other).
        per_case: clips a case and epoch for ``random`` and ``equispaced``.
        blend: how a frame gets its prediction from the windows that hold it, in evaluation and prediction: ``mean``,
            weighted, less towards the ends of a window; or ``centre``: it has a window of its own, and is taken from
            its middle, number (T - 1) // 2 counted from zero. For models that are trained there alone; a window for
            every frame takes ``frames`` times as long.
        overlap: frames that neighbouring windows share with ``blend: mean``.
        padding: what fills a clip where the video is too short: ``repeat`` its nearest frame, or ``zero``, the grey
            that normalisation makes 0.
        mean: mean subtracted from pictures scaled to [0, 1], one number or one a channel; empty: the model's own, or
            that of the weights it starts from.
        std: the standard deviation they are divided by then, likewise.
        fan_crop: crop to the sector of an ultrasound picture: ``none``, ``mask`` (a fan mask beside the clip says where
            it is), ``estimate`` (from the clip) or ``auto`` (a fan mask where there is one, else the estimate).
        max_numerosity: most clips of a patient that a training epoch sees, over all of the patient's cases; 0: all.
        numerosity: which these are: ``equispaced``, the same in every epoch, or ``random``, drawn anew every epoch.
    """

    frames: int = 5
    size: tuple[int, int] = (256, 256)
    stride: int = 1
    sampling: str = "random"
    per_case: int = 1
    blend: str = "mean"
    overlap: int = 0
    padding: str = "repeat"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    fan_crop: str = "none"
    max_numerosity: int = 0
    numerosity: str = "equispaced"

    def __post_init__(self) -> None:
        _require(len(self.mean) == len(self.std), "clip.mean", self.mean, "as many numbers as clip.std")
        _require(all(value > 0 for value in self.std), "clip.std", self.std, "above 0")
        _require(self.frames >= 1, "clip.frames", self.frames, "at least 1")
        _require(len(self.size) == 2 and min(self.size) >= 1, "clip.size", self.size, "two positive integers")
        _require(self.stride >= 1, "clip.stride", self.stride, "at least 1")
        _require(self.per_case >= 1, "clip.per_case", self.per_case, "at least 1")
        _require(0 <= self.overlap < self.frames, "clip.overlap", self.overlap, "from 0 to clip.frames - 1")
        _require_choice("clip.blend", self.blend, ("mean", "centre"))
        alone = "0 with clip.blend=centre, where every frame has a window of its own"
        _require(self.blend == "mean" or not self.overlap, "clip.overlap", self.overlap, alone)
        _require_choice("clip.sampling", self.sampling, ("random", "equispaced", "dense", "all"))
        _require_choice("clip.padding", self.padding, ("repeat", "zero"))
        _require_choice("clip.fan_crop", self.fan_crop, ("none", "mask", "estimate", "auto"))
        _require(self.max_numerosity >= 0, "clip.max_numerosity", self.max_numerosity, "0 or more")
        _require_choice("clip.numerosity", self.numerosity, ("equispaced", "random"))


AUGMENT_PRESETS: Mapping[str, Settings] = {
    "none": {},
    "light": {
        "horizontal_flip": 0.5,
        "rotation_deg": 15.0,
        "affine": 0.2,
        "crop": 0.1,
        "blur": 0.1,
        "gamma": 0.1,
        "brightness": 0.1,
        "contrast": 0.1,
        "saturation": 0.1,
    },
    "medium": {
        "horizontal_flip": 0.5,
        "rotation_deg": 15.0,
        "affine": 0.3,
        "crop": 0.3,
        "blur": 0.2,
        "gamma": 0.2,
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.3,
    },
    "heavy": {
        "horizontal_flip": 0.5,
        "rotation_deg": 20.0,
        "affine": 0.4,
        "crop": 0.4,
        "blur": 0.3,
        "gamma": 0.3,
        "brightness": 0.5,
        "contrast": 0.5,
        "saturation": 0.5,
    },
}
"""Strengths of augmentation by name, those of the ovarian fork of Vivim; every key that is not named is off."""


@dataclass
class AugmentConfig:
    """Random changes of training clips, drawn once a clip so that its frames stay consistent.

    Attributes:
        preset: sets all the other keys: ``light``, ``medium``, ``heavy``, or ``none`` for no change at all; keys given
            beside it win. ``custom``: the keys as they are.
        horizontal_flip: probability.
        vertical_flip: probability.
        crop: probability of cutting out a part, which is resized to the clip's size.
        crop_side: shortest and longest side of that part, as a fraction of the clip's.
        rotation_deg: largest rotation either way, in degrees.
        scale: largest relative zoom either way.
        translate: largest shift either way, as a fraction of the size.
        affine: probability of rotation, zoom and shift, which come together.
        brightness: largest relative change of brightness.
        contrast: largest relative change of contrast.
        saturation: largest relative change of saturation.
        sharpness: largest relative change of sharpness, from 0, blurred, over 1, as it is: 2 draws from 0 to 3.
        colour_per_frame: draw brightness, contrast, saturation and sharpness for every frame by itself, as Vivim's
            original does.
        gamma: probability of a gamma curve.
        gamma_range: smallest and largest gamma; above 1 is darker.
        blur: probability of Gaussian blur.
        blur_sigma: smallest and largest standard deviation of the blur, in pixels of the clip.
        noise: standard deviation of Gaussian noise, in units of the image range 1.
        pad: pixels of border, 0 after normalisation, from which a window of the clip's size is cut at random.
    """

    preset: str = "custom"
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    crop: float = 0.0
    crop_side: tuple[float, float] = (0.8, 0.95)
    rotation_deg: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    affine: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    sharpness: float = 0.0
    colour_per_frame: bool = False
    gamma: float = 0.0
    gamma_range: tuple[float, float] = (0.7, 1.5)
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.5, 1.5)
    noise: float = 0.0
    pad: int = 0

    def __post_init__(self) -> None:
        _require_choice("augment.preset", self.preset, ("custom", *AUGMENT_PRESETS))
        probabilities = ("horizontal_flip", "vertical_flip", "crop", "affine", "gamma", "blur")
        for name in (*probabilities, "translate", "brightness", "contrast", "saturation"):
            _require(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "from 0 to 1")
        _require(0 <= self.scale < 1, "augment.scale", self.scale, "from 0 to below 1")  # 1 would zoom to nothing
        _require(0 <= self.rotation_deg <= 180, "augment.rotation_deg", self.rotation_deg, "from 0 to 180")
        _require(self.sharpness >= 0, "augment.sharpness", self.sharpness, "0 or more")
        for name, most in (("crop_side", 1.0), ("gamma_range", math.inf), ("blur_sigma", math.inf)):
            pair = getattr(self, name)
            allowed = f"two rising numbers above 0{', up to 1' if most == 1 else ''}"
            rising = len(pair) == 2 and 0 < pair[0] <= pair[1] <= most and pair[1] < math.inf
            _require(rising, f"augment.{name}", pair, allowed)
        _require(self.noise >= 0, "augment.noise", self.noise, "0 or more")
        _require(self.pad >= 0, "augment.pad", self.pad, "0 or more")


@dataclass
class SplitConfig:
    """How cases without a split of their own are divided, group by group (no patient in two parts).

    Attributes:
        val: fraction of the groups used to choose the best checkpoint.
        test: fraction of the groups held out for the final evaluation.
        seed: seed of the division, apart from the training seed so that runs compare on the same split.
        group: ``patient``: all cases of a patient (``group_id``) stay together; ``none``: every case by itself, which
            makes results too good wherever a patient has several.
        stratify: what the folds of ``cv`` share evenly: ``auto`` the class, grade or number of a case, or where masks
            alone are predicted the ``compound`` of its stratum, its number of annotated frames and how much of each
            class it holds; ``none``: nothing.
        attempts: shuffles of which ``cv`` takes the most even folds; 0: the patients are not shuffled.
        file: folds to divide by, as ``cv`` writes them (``splits.json``); None for none.
        fold: the fold of ``file`` that is tested; None: all of its cases are trained on.
    """

    val: float = 0.15
    test: float = 0.2
    seed: int = 0
    group: str = "patient"
    stratify: str = "auto"
    attempts: int = 10
    file: str | None = None
    fold: int | None = None

    def __post_init__(self) -> None:
        _require_choice("split.group", self.group, ("patient", "none"))
        _require_choice("split.stratify", self.stratify, ("auto", "compound", "none"))
        _require(self.attempts >= 0, "split.attempts", self.attempts, "0 or more")
        _require(self.fold is None or self.fold >= 0, "split.fold", self.fold, "0 or more")
        _require(self.fold is None or bool(self.file), "split.fold", self.fold, "given with split.file, which holds it")
        for name in ("val", "test"):
            _require(0 <= getattr(self, name) < 1, f"split.{name}", getattr(self, name), "from 0 to below 1")
        _require(self.seed >= 0, "split.seed", self.seed, "0 or more")
        _require(self.val + self.test < 1, "split.val + split.test", self.val + self.test, "below 1")


@dataclass
class OptimizerConfig:
    """The optimiser.

    Attributes:
        name: ``adam``, ``adamw``, ``sgd`` with momentum, or ``madgrad``, which the timm library has.
        lr: learning rate at the start of the schedule.
        lr_scale: factors of the learning rate, by parameter name: ``{frames.encoder: 0.1}`` is for all parameters whose
            names begin so, ``{"*.bias": 2}`` for all that end so. Where several fit, the longest counts.
        weight_decay: decoupled decay (adamw), L2 penalty (all others).
        decay: what decays: ``all`` parameters, or only ``weights``, those of two or more dimensions: neither biases
            and norms nor what a layer exempts, as the scan's A.
        betas: decay rates of the running averages of adam and adamw.
        momentum: of sgd and madgrad.
        clip_norm: largest gradient norm; larger ones are scaled down. 0: no clipping.
    """

    name: str = "adamw"
    lr: float = 1e-4
    lr_scale: dict[str, float] = field(default_factory=dict)
    weight_decay: float = 0.01
    decay: str = "all"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("optimizer.name", self.name, ("adam", "adamw", "sgd", "madgrad"))
        _require(0 < self.lr < math.inf, "optimizer.lr", self.lr, "above 0")
        factors = self.lr_scale.values()  # not checked to be numbers yet: a nested mapping comes through
        numbers = all(isinstance(factor, int | float) and 0 < factor < math.inf for factor in factors)
        _require(numbers, "optimizer.lr_scale", self.lr_scale, "names of parameters with factors above 0")
        _require_choice("optimizer.decay", self.decay, ("all", "weights"))
        _require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "from 0 to below 1")
        _require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "from 0 to below 1")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        _require(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "0 or more")


@dataclass
class ScheduleConfig:
    """The course of the learning rate.

    Attributes:
        name: ``cosine`` (half a cosine from ``optimizer.lr`` to ``final_lr``), ``poly`` (to ``final_lr`` too, as the
            share of steps left to the power ``power``), ``step`` (times ``gamma`` after every ``every`` epochs), or
            ``constant``.
        final_lr: learning rate at the end of ``cosine`` and ``poly``.
        power: of ``poly``; 1 is a straight line.
        gamma: of ``step``.
        every: of ``step``.
        warmup: fraction of all steps over which the rate rises linearly from 0.
        warmup_steps: the same in steps; only one of the two may be above 0.
        unit: ``step`` changes the rate at every step; ``epoch`` holds it for a whole epoch.
    """

    name: str = "cosine"
    final_lr: float = 1e-6
    power: float = 1.0
    gamma: float = 0.1
    every: int = 30
    warmup: float = 0.0
    warmup_steps: int = 0
    unit: str = "step"

    def __post_init__(self) -> None:
        _require_choice("schedule.name", self.name, ("cosine", "poly", "step", "constant"))
        _require_choice("schedule.unit", self.unit, ("step", "epoch"))
        _require(self.power > 0, "schedule.power", self.power, "above 0")
        _require(0 < self.gamma <= 1, "schedule.gamma", self.gamma, "above 0, up to 1")
        _require(self.every >= 1, "schedule.every", self.every, "at least 1")
        _require(self.final_lr >= 0, "schedule.final_lr", self.final_lr, "0 or more")
        _require(0 <= self.warmup < 1, "schedule.warmup", self.warmup, "from 0 to below 1")
        _require(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "0 or more")
        if self.warmup and self.warmup_steps:
            raise ConfigError(
                f"schedule.warmup={self.warmup:g} and schedule.warmup_steps={self.warmup_steps} both say how long the "
                "rate rises. Set one of them to 0."
            )


@dataclass
class TrainConfig:
    """The training loop.

    Attributes:
        epochs: passes over the training cases.
        max_steps: stop after so many optimiser steps; None for all epochs; 0 scores weights as they are.
        batch_size: clips an optimiser step, over all processes.
        accumulate: parts each process cuts its share of the batch into, to fit its memory.
        precision: ``no`` (float32), ``bf16`` or ``fp16``.
        ema: decay of the moving average of the weights that is evaluated and kept; 0 for none.
        evaluate_every: epochs between evaluations on the validation cases.
        patience: evaluations without improvement after which training stops; 0 for never.
        save_every_s: seconds between checkpoints, besides one at every evaluation.
        workers: loading processes; None for none on a CPU and up to four on a GPU.
        trainable: which of the model's named choices of parameters is trained.
        save: ``all`` weights, or only those ``trained``; for the rest the model file names the published file they come
            from, which must be at hand whenever the model is loaded.
        trackers: experiment trackers that are told of the run: ``tensorboard``, ``wandb``, ``trackio``.
    """

    epochs: int = 100
    max_steps: int | None = None
    batch_size: int = 8
    accumulate: int = 1
    precision: str = "no"
    ema: float = 0.0
    evaluate_every: int = 1
    patience: int = 0
    save_every_s: float = 300.0
    workers: int | None = None
    trainable: str = "all"
    save: str = "all"
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.trackers:
            _require_choice("train.trackers", name, TRACKERS)
        for name in ("epochs", "batch_size", "accumulate", "evaluate_every"):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        _require(self.max_steps is None or self.max_steps >= 0, "train.max_steps", self.max_steps, "0 or more")
        _require_choice("train.save", self.save, ("all", "trained"))
        _require_choice("train.precision", self.precision, ("no", "bf16", "fp16"))
        _require(0 <= self.ema < 1, "train.ema", self.ema, "from 0 to below 1")
        _require(self.patience >= 0, "train.patience", self.patience, "0 or more")
        _require(self.save_every_s >= 0, "train.save_every_s", self.save_every_s, "0 or more")
        _require(self.workers is None or self.workers >= 0, "train.workers", self.workers, "0 or more")


@dataclass
class EvaluateConfig:
    """Evaluation and prediction.

    Attributes:
        at: ``source`` scores in the pixels of the original video, ``model`` in those the model sees.
        batch_size: windows of one case computed together.
        overlays: number of best and of worst cases shown in the report.
        prompt: for models that take prompts, what points at each class in a case's first annotated frame: ``point``,
            ``box``, ``mask``, or ``none``. That frame is not scored: an ejection fraction that needs it is undefined.
    """

    at: str = "source"
    batch_size: int = 4
    overlays: int = 2
    prompt: str = "none"

    def __post_init__(self) -> None:
        _require_choice("evaluate.at", self.at, ("source", "model"))
        _require_choice("evaluate.prompt", self.prompt, ("none", "point", "box", "mask"))
        _require(self.batch_size >= 1, "evaluate.batch_size", self.batch_size, "at least 1")
        _require(self.overlays >= 0, "evaluate.overlays", self.overlays, "0 or more")


@dataclass
class Chosen:
    """A plugin's component by name, with its own configuration."""

    name: str
    config: Any


@dataclass
class NoPreprocessor:
    """Videos are read as they are: nothing to set."""


@dataclass
class RunConfig:
    """Everything that determines a run.

    Attributes:
        preset: the model's named partial settings in force.
        seed: seed of initialisation, order, augmentation and dropout.
        metrics: names of the metrics; the first decides which checkpoint is best. ``auto``: what is usual for the task.
        outputs: names of what is predicted, of all that the data offer; empty: everything the model can.
        cache: folder of prepared videos; empty: in the user's cache folder.
        data_root: the data folder or file, empty for generated data.
        preprocess: the preprocessor that whole videos are taken through first; ``none`` for none.
    """

    preset: str
    seed: int
    metrics: tuple[str, ...]
    outputs: tuple[str, ...]
    data_root: str
    model: Chosen
    dataset: Chosen
    loss: Chosen
    cache: str = ""
    preprocess: Chosen = field(default_factory=lambda: Chosen(NO_PREPROCESSOR, NoPreprocessor()))
    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested data that ``--config`` reads back."""
        plain: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Chosen):
                plain[item.name] = {"name": value.name, **dataclasses.asdict(value.config)}
            else:
                plain[item.name] = dataclasses.asdict(value) if item.name in SECTIONS else value
        plain["dataset"]["root"] = plain.pop("data_root")
        return typing.cast("dict[str, Any]", _lists(plain))

    def to_yaml(self) -> str:
        """Return the YAML text written to a run's ``config.yaml``."""
        return OmegaConf.to_yaml(OmegaConf.create(self.to_dict()))


SECTIONS: Mapping[str, type] = {
    "clip": ClipConfig,
    "augment": AugmentConfig,
    "split": SplitConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}
CHOSEN = ("model", "dataset", "loss", "preprocess")
TOP_LEVEL: Settings = {"preset": "", "seed": 0, "metrics": ("auto",), "outputs": (), "cache": ""}


@dataclass
class Composed:
    """A validated configuration, where each value came from, and the specs it names."""

    config: RunConfig
    origins: dict[str, str]
    model: ModelSpec
    dataset: DatasetSpec
    loss: LossSpec

    def explain(self) -> str:
        """Return every value with its origin, one a line (``--print-config``)."""
        words = {key: f"{key}={_yaml(value)}" for key, value in flatten(self.config.to_dict()).items()}
        width = max(map(len, words.values()))
        return "\n".join(f"{word:<{width}}  # {self.origins[key]}" for key, word in words.items())


def _yaml(value: Any) -> str:
    """A value as the command line takes it back."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_yaml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(key)}: {_yaml(item)}' for key, item in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _lists(value: Any) -> Any:
    """Tuples as lists, all the way down: what YAML and JSON hold."""
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


MAPPINGS = ("optimizer.lr_scale",)
"""Keys whose value is a mapping, set as a whole: what it maps are no keys of the configuration."""


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": 1}``; the values of `MAPPINGS` stay whole."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in MAPPINGS:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _refuse_interpolation(settings: Settings, origin: str) -> None:
    for key, value in settings.items():
        if "${" in str(value):
            raise ConfigError(
                f"{key}={value!r} ({origin}) contains '${{': configurations hold values, not expressions. "
                "Write the value itself."
            )


def _with_names(settings: Settings) -> dict[str, Any]:
    """``loss=dice`` is short for ``loss.name=dice``."""
    return {f"{key}.name" if key in CHOSEN else key: value for key, value in settings.items()}


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` words of the command line; values are read as YAML scalars or lists.

    Raises:
        ConfigError: a word without ``=``, a value that is not YAML, or one that holds an interpolation.
    """
    settings: dict[str, Any] = {}
    for word in overrides:
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise ConfigError(f"{word!r} is not of the form key=value, e.g. train.epochs=20.")
        _refuse_interpolation({key: text}, "command line")
        try:
            parsed = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))
        except Exception as error:
            raise ConfigError(f"The value of {word!r} cannot be read as YAML: {error}") from error
        value = parsed["value"] if isinstance(parsed, dict) else None
        settings.update(flatten({key: value}))
    _refuse_interpolation(settings, "command line")  # again: a YAML escape such as "\x24" hides a dollar sign
    return _with_names(settings)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a YAML configuration file as dotted settings; that of a run says what was the default when it was written.

    Raises:
        ConfigError: the file is absent, not YAML, not a mapping, or holds an interpolation.
    """
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError as error:
        raise ConfigError(f"The configuration file {path} does not exist.") from error
    except Exception as error:
        raise ConfigError(f"The configuration file {path} cannot be read as YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"The configuration file {path} must hold keys and values.")
    settings = flatten({str(key): value for key, value in loaded.items()})
    _refuse_interpolation(settings, str(path))
    if path.with_name("run.json").is_file():
        settings.setdefault("clip.blend", "mean")  # a run that began before there was a choice
    return _with_names(settings)


def _texts(value: Any) -> Any:
    """Undo YAML's reading of the words ``no`` and ``yes`` as false and true, where text is wanted."""
    if isinstance(value, list | tuple):
        return [_texts(item) for item in value]
    return {False: "no", True: "yes"}[value] if isinstance(value, bool) else value


def _build(config_class: type[C], section: str, values: Mapping[str, tuple[Any, str]]) -> C:
    """Build one typed section from values with their origins, converting as OmegaConf does."""
    types = typing.get_type_hints(config_class)
    arguments: dict[str, Any] = {}
    for key, (value, origin) in values.items():
        if value == "???":  # OmegaConf's word for a value that is still to come
            raise ConfigError(f"{section}.{key}={value!r} ({origin}) cannot be used: write the value itself.")
        if types[key] is str or (typing.get_origin(types[key]) is tuple and str in typing.get_args(types[key])):
            value = _texts(value)
        node = OmegaConf.structured(config_class)
        OmegaConf.set_readonly(node, False)
        try:
            OmegaConf.update(node, key, _lists(value))
        except OmegaConfBaseException as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ConfigError(f"{section}.{key}={value!r} ({origin}) cannot be used: {reason}.") from error
        plain = typing.cast("dict[str, Any]", OmegaConf.to_container(node))[key]
        numbers = plain if isinstance(plain, list) else plain.values() if isinstance(plain, dict) else [plain]
        if any(isinstance(number, float) and math.isnan(number) for number in numbers):
            raise ConfigError(f"{section}.{key}={value!r} ({origin}) cannot be used: it is not a number.")
        arguments[key] = tuple(plain) if isinstance(plain, list) and typing.get_origin(types[key]) is tuple else plain
    return config_class(**arguments)


def build_section(reference: str, section: str, values: Settings) -> Any:
    """Build a plugin component's configuration from plain values.

    Args:
        reference: the configuration dataclass, ``"module:attribute"``.
        section: what errors call it, e.g. ``model``.
        values: its settings; the rest keep their defaults.

    Raises:
        ConfigError: an unknown setting, or a value of the wrong type.
    """
    config_class = resolve(reference)
    known = [item.name for item in dataclasses.fields(config_class)]
    for key in values:
        if key not in known:
            raise ConfigError(
                f"Unknown setting {section}.{key}.{did_you_mean(key, known)} Known: {', '.join(known) or 'none'}."
            )
    return _build(config_class, section, {key: (value, "given") for key, value in values.items()})


class _Layers:
    """Settings laid one over the other, the later winning."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[Any, str]] = {}

    def add(self, settings: Settings, origin: str) -> None:
        preset = settings.get("augment.preset")
        if isinstance(preset, str) and preset in AUGMENT_PRESETS:
            keys = dataclasses.asdict(AugmentConfig(**{"preset": preset, **AUGMENT_PRESETS[preset]}))
            self.values.update({f"augment.{key}": (value, f"augment.preset={preset}") for key, value in keys.items()})
        self.values.update({key: (value, origin) for key, value in settings.items()})

    def get(self, key: str) -> Any:
        return self.values[key][0] if key in self.values else None

    def origin(self, key: str) -> str:
        return self.values[key][1] if key in self.values else "default"

    def drop(self, section: str, origin: str) -> None:
        self.values = {
            key: pair for key, pair in self.values.items() if pair[1] != origin or not key.startswith(f"{section}.")
        }

    def section(self, name: str) -> dict[str, tuple[Any, str]]:
        prefix = f"{name}."
        return {key.removeprefix(prefix): pair for key, pair in self.values.items() if key.startswith(prefix)}


def _check_keys(layers: _Layers, classes: Mapping[str, type]) -> None:
    """Refuse every key that no section knows, naming the close one."""
    known = set(TOP_LEVEL) | {f"{name}.name" for name in CHOSEN} | {"dataset.root"}
    for section, config_class in classes.items():
        known |= {f"{section}.{item.name}" for item in dataclasses.fields(config_class)}
    for key, (value, origin) in layers.values.items():
        if key not in known:
            section = key.partition(".")[0]
            near = [name for name in known if name.startswith(f"{section}.")] or sorted({*classes, *TOP_LEVEL})
            raise ConfigError(
                f"Unknown key {key!r} (value {value!r}, {origin}).{did_you_mean(key, known)} "
                f"Known here: {', '.join(sorted(near))}."
            )


def preset_settings(spec: ModelSpec, name: str) -> Settings:
    """Return the settings of a model's preset. Raises ConfigError if it has none of that name."""
    if name not in spec.presets:
        raise ConfigError(
            f"Model {spec.name!r} has no preset {name!r}.{did_you_mean(name, spec.presets)} "
            f"Known: {', '.join(spec.presets)}."
        )
    return spec.presets[name]


def detect_dataset(registry: Registry, root: Path) -> DatasetSpec:
    """Return the one data set that can read the folder or file ``root``, judging by file names.

    Raises:
        ConfigError: the path does not exist, no data set can read it, or several can.
    """
    if not root.exists():
        names = [spec.name for spec in registry.specs(DatasetSpec)]
        raise ConfigError(
            f"--data {root}: there is no such folder or file, and no data set of that name."
            f"{did_you_mean(str(root), names)} Data sets by name: {', '.join(names)}."
        )
    failed: list[Problem] = []
    able = [spec for spec, can_read in _asked(registry, root, "can_read", failed) if can_read]
    if len(able) == 1:
        return able[0]
    readable = ", ".join(spec.name for spec in registry.specs(DatasetSpec) if spec.can_read)
    if not able:
        hints = [str(hint) for _, hint in _asked(registry, root, "hint", failed) if hint]
        what = "The folder is empty" if root.is_dir() and not any(root.iterdir()) else "No data set knows its layout"
        lines = (
            f"--data {root} cannot be used. {what}. Layouts that are read: {readable} "
            "(medvid-run plugins list describes them).",
            *hints,
            *map(str, failed),
        )
        raise ConfigError("\n".join(lines))
    several = ", ".join(spec.name for spec in able)
    raise ConfigError(f"--data {root} can be read as {several}. Say which: dataset={able[0].name}.")


def datasets_for(registry: Registry, root: Path) -> list[DatasetSpec]:
    """Return the data sets that can read a folder or file, judging by file names; none where it does not exist."""
    return [spec for spec, can_read in _asked(registry, root, "can_read", []) if can_read] if root.exists() else []


def _asked(registry: Registry, root: Path, what: str, failed: list[Problem]) -> Iterator[tuple[DatasetSpec, object]]:
    """Yield what each data set answers to ``can_read`` or ``hint`` of a path; note in ``failed`` those that raise."""
    for entry in registry.provided["dataset"]:
        spec = entry.spec
        assert isinstance(spec, DatasetSpec)
        reference = getattr(spec, what)
        try:
            answer = resolve(reference)(root) if reference else None
        except (Exception, SystemExit) as error:  # costs the plugin that raised it, not everyone's --data
            failed.append(registry.note_problem(entry.distribution, what, error))
        else:
            yield spec, answer


def _choose_dataset(registry: Registry, data: str | None, user: _Layers, embedded: str) -> tuple[DatasetSpec, str]:
    """Return the data set and its root from ``--data NAME|PATH`` and the user's own settings; else the embedded one."""
    name, root = user.get("dataset.name"), user.get("dataset.root") or ""
    if data is not None:
        if not data.strip():  # an unset shell variable, most likely: the phantom must not stand in for the user's data
            raise ConfigError("--data is empty. Name a data set, or a folder or file of your own; or leave it out.")
        if normalise(data) in registry.names("dataset") and not Path(data).exists():
            name, root = data, ""
        else:
            root = data
            if user.origin("dataset.name") != "command line":
                name = None  # a stored configuration names the data it was made with, not the data asked for now
    if name is None and root:
        return detect_dataset(registry, Path(root)), str(Path(root).resolve())
    spec = registry.find("dataset", str(name or embedded)).spec
    assert isinstance(spec, DatasetSpec)
    return spec, str(Path(root).resolve()) if root else ""


def compose(
    registry: Registry,
    model: str | None = None,
    data: str | None = None,
    overrides: Sequence[str] = (),
    config_file: Path | None = None,
) -> Composed:
    """Merge all layers into one validated configuration.

    Args:
        registry: the installed plugins.
        model: the model's name (``--model``); None when the file or an override names it.
        data: a data set's name or a path (``--data``); None for the embedded phantom the model's recipe names.
        overrides: ``key=value`` words.
        config_file: a YAML file, such as another run's ``config.yaml``.

    Raises:
        ConfigError: an unknown key, a bad value, or a choice that does not exist.
        PluginError: a name that no plugin offers.
    """
    user = _Layers()
    if config_file is not None:
        user.add(read_config_file(config_file), str(config_file))
    words = parse_overrides(overrides)
    prepared_with = user.get("preprocess.name")
    if prepared_with is not None and words.get("preprocess.name", prepared_with) != prepared_with:
        user.drop("preprocess", str(config_file))  # settings of the preprocessor that the file names
    written = user.get("preset")
    if written is not None and words.get("preset", written) != written:
        raise ConfigError(
            f"preset={words['preset']} cannot be laid over {config_file}, which was made with preset {written!r}: the "
            "values in the file outrank every preset, so that only the name would change. Set the values you mean, or "
            "leave --config out."
        )
    user.add(words, "command line")
    _require(isinstance(user.get("dataset.root"), str | None), "dataset.root", user.get("dataset.root"), "a path")
    model_name = model or user.get("model.name")
    if not model_name:
        raise ConfigError("No model is named. Say which with --model NAME; medvid-run plugins list shows them.")
    model_spec = registry.find("model", str(model_name)).spec
    assert isinstance(model_spec, ModelSpec)
    embedded = str(_with_names(model_spec.recipe).get("dataset.name", DEFAULT_DATASET))
    dataset_spec, root = _choose_dataset(registry, data, user, embedded)
    made_with = user.get("dataset.name")
    if made_with is not None and registry.find("dataset", str(made_with)).spec is not dataset_spec:
        user.drop("dataset", str(config_file))  # settings of the data set the file was made with
    preset = user.get("preset") or (FULL_PRESET if data or root or user.get("dataset.name") else DEFAULT_PRESET)

    layers = _Layers()
    layers.add(TOP_LEVEL, "default")
    layers.add({"clip.frames": model_spec.clip.frames, "clip.size": model_spec.clip.size}, f"model {model_spec.name}")
    layers.add(_with_names(model_spec.recipe), f"recipe of {model_spec.name}")
    of_preset = _with_names(preset_settings(model_spec, str(preset)))
    layers.add(of_preset, f"preset {preset}")
    if registry.find("dataset", embedded).spec is dataset_spec:
        layers.add(_with_names(model_spec.embedded), f"{model_spec.name} on {dataset_spec.name}")
    else:
        # what they say of the embedded one is not for others
        layers.values = {key: pair for key, pair in layers.values.items() if not key.startswith("dataset.")}
    layers.add(_with_names(dataset_spec.defaults), f"data set {dataset_spec.name}")
    # a preset sizes network and clips together: laid under a data set's clips, it would be neither small nor full
    layers.add({key: of_preset[key] for key in ("clip.frames", "clip.size") if key in of_preset}, f"preset {preset}")
    loss_of_recipe = layers.get("loss.name")
    loss_name = user.get("loss.name") or loss_of_recipe or "dice-ce"
    loss_spec = registry.find("loss", str(loss_name)).spec
    assert isinstance(loss_spec, LossSpec)
    if (
        loss_of_recipe is None or registry.find("loss", loss_of_recipe).spec is not loss_spec
    ):  # the recipe's loss settings belong to the loss that the recipe names
        layers.values = {key: pair for key, pair in layers.values.items() if not key.startswith("loss.")}
    preprocess_config, preprocess_name = _choose_preprocessor(registry, layers, user)
    layers.values.update(user.values)
    layers.add({"preset": str(preset)}, user.origin("preset"))
    layers.add({"model.name": registry.name_of("model", model_spec)}, "--model" if model else user.origin("model.name"))
    layers.add(
        {"dataset.name": registry.name_of("dataset", dataset_spec), "dataset.root": root},
        "--data" if data else user.origin("dataset.name"),
    )
    layers.add({"loss.name": registry.name_of("loss", loss_spec)}, layers.origin("loss.name"))
    layers.add({"preprocess.name": preprocess_name}, layers.origin("preprocess.name"))
    return _finish(layers, model_spec, dataset_spec, loss_spec, preprocess_config)


def _choose_preprocessor(registry: Registry, layers: _Layers, user: _Layers) -> tuple[str, str]:
    """Return the configuration class and the name of the user's preprocessor, else the recipe's, else none.

    Raises:
        PluginError: no plugin offers it. ConfigError: it works on clips, and is not chosen.
    """
    of_recipe = str(layers.get("preprocess.name") or NO_PREPROCESSOR)
    asked = user.get("preprocess.name")
    name = of_recipe if asked is None else str(asked)
    spec = None if name == NO_PREPROCESSOR else registry.find("preprocessor", name).spec
    same = of_recipe != NO_PREPROCESSOR and registry.find("preprocessor", of_recipe).spec is spec
    if not same:  # the recipe's settings belong to the preprocessor that the recipe names
        layers.values = {key: pair for key, pair in layers.values.items() if not key.startswith("preprocess.")}
    if spec is None:
        return f"{__name__}:NoPreprocessor", NO_PREPROCESSOR
    assert isinstance(spec, PreprocessorSpec)
    if not spec.stages:
        raise ConfigError(
            f"preprocess={name}: this preprocessor works on each clip, whenever a model needs what it provides, and "
            "need not be chosen."
        )
    return spec.config, registry.name_of("preprocessor", spec)


def _finish(
    layers: _Layers, model: ModelSpec, dataset: DatasetSpec, loss: LossSpec, preprocess_config: str
) -> Composed:
    """Validate all keys and values and build the typed configuration."""
    classes = {
        **SECTIONS,
        "model": resolve(model.config),
        "dataset": resolve(dataset.config),
        "loss": resolve(loss.config),
        "preprocess": resolve(preprocess_config),
    }
    _check_keys(layers, classes)
    reserved = {"model": ("name",), "dataset": ("name", "root"), "loss": ("name",), "preprocess": ("name",)}
    built: dict[str, Any] = {}
    for section, config_class in classes.items():
        values = {k: v for k, v in layers.section(section).items() if k not in reserved.get(section, ())}
        built[section] = _build(config_class, section, values)
    if built["clip"].fan_crop != "none" and layers.get("preprocess.name") != NO_PREPROCESSOR:
        raise ConfigError(
            f"clip.fan_crop={built['clip'].fan_crop} crops videos as they were recorded, and "
            f"preprocess={layers.get('preprocess.name')} makes others of them. Leave one of the two out."
        )
    metrics, outputs = _names("metrics", "a metric", layers), _names("outputs", "an output", layers)
    _require(isinstance(layers.get("cache"), str | None), "cache", layers.get("cache"), "a folder")
    _require(len(metrics) > 0, "metrics", list(metrics), "the name of a metric, or a list of names")
    config = RunConfig(
        preset=str(layers.get("preset")),
        seed=_integer("seed", layers),
        metrics=metrics,
        outputs=outputs,
        data_root=layers.get("dataset.root"),
        model=Chosen(layers.get("model.name"), built.pop("model")),
        dataset=Chosen(layers.get("dataset.name"), built.pop("dataset")),
        loss=Chosen(layers.get("loss.name"), built.pop("loss")),
        cache=layers.get("cache") or "",
        preprocess=Chosen(layers.get("preprocess.name"), built.pop("preprocess")),
        **built,
    )
    origins = {key: layers.origin(key) for key in flatten(config.to_dict())}
    return Composed(config, origins, model, dataset, loss)


def _names(key: str, what: str, layers: _Layers) -> tuple[str, ...]:
    value = layers.get(key)
    names = (value,) if isinstance(value, str) else value
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    _require(named, key, value, f"the name of {what}, or a list of names")
    return tuple(names)


def _integer(key: str, layers: _Layers) -> int:
    value, origin = layers.values[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{key}={value!r} ({origin}) cannot be used: it must be an integer.")
    _require(0 <= value < 2**63, key, value, "from 0 to 2**63 - 1")
    return value
