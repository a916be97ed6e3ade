"""What a plugin declares: frozen, torch-free descriptions of models, data sets, losses, metrics and preprocessors.

A spec names its heavy parts as ``"module:attribute"`` strings, imported only when used, so that listing
plugins never imports torch. Optional fields always have defaults: a plugin written for an older core keeps loading.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medvid_core.errors import PluginError

PLUGIN_API = (1, 0)
"""The plugin API (major, minor) this core speaks."""

TASKS = (
    "segmentation",
    "classification",
    "multilabel",
    "frame_classification",
    "regression",
    "ordinal",
    "anomaly",
)

FRAME_TASKS = ("frame_classification", "anomaly")
"""Tasks beside segmentation that have a value for every frame; all others have one for the clip."""

Settings = Mapping[str, Any]
"""Dotted configuration keys and their values, e.g. ``{"optimizer.lr": 1e-4}``."""


def resolve(reference: str) -> Any:
    """Import what ``"package.module:attribute"`` names.

    Raises:
        PluginError: if the text is not a reference, the module cannot be imported for whatever reason, or the
            attribute does not exist.
    """
    module_name, separator, attribute = reference.partition(":")
    if not separator or not module_name or not attribute:
        raise PluginError(f"{reference!r} is not a reference of the form 'package.module:attribute'.")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise PluginError(f"Cannot import {reference!r}: {type(error).__name__}: {error}.") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise PluginError(f"Module {module_name!r} has no attribute {attribute!r}.") from error


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """One thing a model predicts.

    The output tensor is keyed by ``name`` and shaped by task: segmentation [B,T,K,H,W], classification and
    multilabel [B,K], frame_classification [B,T,K], regression [B,D], ordinal [B,K-1], anomaly [B,T].
    K is ``len(classes)``, D too: of a regression they name the numbers predicted, of an ordinal task the grades in
    rising order, whose output k is the logit of "above grade k". A segmentation with one class is binary (sigmoid);
    with more, class 0 is the background. An anomaly output is a score, larger where more is wrong; its one class names
    what is looked for.

    Attributes:
        name: key of the output, and of the target it is trained on.
        task: one of `TASKS`.
        classes: what K or D stand for.
        center: of a regression, the mean of each number over the training cases. Networks predict
            ``center + scale * x``, so that x is of the order of 1.
        scale: of a regression, the standard deviation likewise.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    center: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """What a model takes in.

    Attributes:
        frames: clip length T the model was designed for.
        size: height and width in pixels the model was designed for.
        multiple: height and width must be multiples of this.
        channels: 3 (RGB) or 1 (grey).
        mean: per-channel mean subtracted from images scaled to [0, 1].
        std: per-channel standard deviation the difference is divided by.
        streams: sample streams the model reads.
        any_frames: whether the model accepts clips of any length.
    """

    frames: int = 5
    size: tuple[int, int] = (256, 256)
    multiple: int = 1
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    streams: tuple[str, ...] = ("video",)
    any_frames: bool = True


@dataclass(frozen=True, kw_only=True)
class Card:
    """Where a component comes from, and on what terms."""

    summary: str = ""
    paper: str = ""
    upstream: str = ""
    code_license: str = ""
    weights_license: str = ""
    data_license: str = ""
    reproduced: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An architecture.

    Attributes:
        name: what the user types, e.g. ``vivim``.
        tasks: the tasks it can be built for.
        build: ``(config, outputs: tuple[OutputSpec, ...]) -> nn.Module``; works on the meta device. The module maps
            a batch (dict) to a dict of output tensors keyed by ``OutputSpec.name``. Where its anomaly score is an
            error that it learns to make small on normal videos, its attribute ``scores_error`` is true.
        config: torch-free dataclass, every field with a default.
        presets: named partial settings; ``tiny`` (tests), ``small`` (the embedded default) and ``full``.
        clip: the input the model is made for.
        streams: ``(config) -> tuple[str, ...]``, for models whose configuration decides which sample streams they read;
            empty: ``clip.streams``.
        recipe: default training settings, by dotted key.
        embedded: settings, over those of recipe and preset, for the data set that the recipe names.
        importers: source name to ``(state: dict[str, Tensor], model) -> ImportReport``.
        upstream_config: ``(mapping of upstream constructor arguments) -> config``.
        trainable: named choices of what is trained, as beginnings or glob patterns of parameter names; the rest is
            frozen.
        keep_fp32: glob patterns of parameters that suffer in half precision. Core casts none: ``train.precision`` is
            autocast, under which all stay float32. For tools that do cast them.
        shard_units: class names of the modules that FSDP should shard as a whole. Core does not shard yet.
        unused_parameters: glob patterns of parameters that receive no gradient.
        streaming: whether the module has ``initial_state(batch)`` and ``step(frames, state) -> outputs, state``.
        prompts: whether it takes prompts: points, boxes, masks.
    """

    name: str
    tasks: tuple[str, ...]
    build: str
    config: str
    presets: Mapping[str, Settings]
    clip: ClipSpec = ClipSpec()
    streams: str = ""
    recipe: Settings = field(default_factory=dict)
    embedded: Settings = field(default_factory=dict)
    importers: Mapping[str, str] = field(default_factory=dict)
    upstream_config: str = ""
    trainable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep_fp32: tuple[str, ...] = ()
    shard_units: tuple[str, ...] = ()
    unused_parameters: tuple[str, ...] = ()
    streaming: bool = False
    prompts: bool = False
    card: Card = Card()


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A way to read a folder (or to make data up).

    Attributes:
        can_read: ``(root: Path) -> bool``, looking at file names only. Empty for data sets without a folder.
        hint: ``(root: Path) -> str``: what to do with a folder that no data set reads and that is nearly of this
            layout; empty text for any other.
        index: ``(root: Path | None, config) -> Index``; opens as few files as it can.
        unlabelled: likewise, for prediction: every video, annotated or not, and no annotation is looked at. Empty for
            data sets whose ``index`` needs none.
        config: torch-free dataclass, every field with a default.
        defaults: settings this data set suggests, by dotted key.
    """

    name: str
    tasks: tuple[str, ...]
    index: str
    config: str
    can_read: str = ""
    hint: str = ""
    unlabelled: str = ""
    defaults: Settings = field(default_factory=dict)
    card: Card = Card()


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """A loss. ``build``: ``(config, outputs) -> medvid_core.losses.Loss``."""

    name: str
    tasks: tuple[str, ...]
    build: str
    config: str
    card: Card = Card()


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """A metric. ``build``: ``(outputs) -> medvid_core.metrics.Metric``."""

    name: str
    tasks: tuple[str, ...]
    build: str
    higher_is_better: bool = True
    unit: str = ""
    card: Card = Card()


@dataclass(frozen=True, kw_only=True)
class PreprocessorSpec:
    """What derives streams from others, e.g. optical flow from video: anew for each clip, or once for each video.

    One with ``run`` works whenever a model needs what it provides. One with ``stages`` is chosen by name
    (``preprocess=NAME``, or the model's recipe), and what it makes of a video is kept on disk.

    Attributes:
        run: ``(sample: dict, config) -> dict`` with the provided streams added.
        stages: ``(config) -> Sequence[medvid_core.data.stages.Stage]``: works on whole videos, kept in a cache.
        version: change it whenever what ``stages`` make becomes another.
        cached: whether ``run`` is expensive and deterministic. A declaration only: what ``run`` makes is not stored.
        trial: settings with which ``stages`` need nothing but the video, for the conformance suite.
    """

    name: str
    requires: tuple[str, ...]
    provides: tuple[str, ...]
    config: str
    run: str = ""
    stages: str = ""
    version: str = "1"
    cached: bool = False
    trial: Settings = field(default_factory=dict)
    card: Card = Card()


Spec = ModelSpec | DatasetSpec | LossSpec | MetricSpec | PreprocessorSpec
