"""Make, load, save and import models by name: the library's front door, used by the commands as well."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medvid_core import plugins
from medvid_core.config import build_section, preset_settings
from medvid_core.engine import checkpoint
from medvid_core.engine.run import read_json
from medvid_core.errors import CheckpointError, ConfigError, did_you_mean
from medvid_core.specs import ClipSpec, LossSpec, MetricSpec, ModelSpec, OutputSpec, resolve

if TYPE_CHECKING:
    from medvid_core.weights import ImportReport

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, kept as ``module.medvid`` and in the header of its file.

    Attributes:
        name: full name, ``distribution/name``.
        version: version of the distribution that built it.
        config: the model's own configuration.
        outputs: what it predicts.
        clip: the input it is made for, with normalisation.
        frames: clip length it was trained with.
        size: height and width it was trained with.
        stride: frame stride it was trained with.
        padding: what filled clips up that reached beyond their video, see `ClipConfig`.
        fan_crop: whether its clips were cropped to the sector, see `ClipConfig`.
        blend: how a frame gets its prediction from windows, see `ClipConfig`.
        preprocess: name and settings of the preprocessor that its videos were taken through; empty for none.
    """

    name: str
    version: str
    config: Mapping[str, Any]
    outputs: tuple[OutputSpec, ...]
    clip: ClipSpec
    frames: int
    size: tuple[int, int]
    stride: int = 1
    padding: str = "repeat"
    fan_crop: str = "none"
    blend: str = "mean"
    preprocess: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the file header."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ModelInfo:
        """Read plain data back.

        Raises:
            CheckpointError: a field is missing or unknown.
        """
        try:
            values = dict(data)
            values["outputs"] = tuple(OutputSpec(**_tuples(item)) for item in values["outputs"])
            values["clip"] = ClipSpec(**_tuples(values["clip"]))
            values["size"] = tuple(values["size"])
            if not isinstance(values["name"], str) or not isinstance(values["config"], Mapping):
                raise TypeError("name must be text and config a mapping")
            if not isinstance(values.get("preprocess", {}), Mapping):
                raise TypeError("preprocess must be a mapping")
            return ModelInfo(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"The model file's description is incomplete or unknown: {error}.") from error


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, as JSON has them, as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def list_models() -> list[str]:
    """Return the names of all installed models."""
    registry = plugins.registry()
    return sorted(registry.name_of("model", spec) for spec in registry.specs(ModelSpec))


def model_spec(name: str) -> ModelSpec:
    """Return the spec of an installed model.

    Raises:
        PluginError: no plugin offers it, or several do.
    """
    spec = plugins.registry().find("model", name).spec
    assert isinstance(spec, ModelSpec)
    return spec


def input_of(spec: ModelSpec, config: Any, mean: Sequence[float] = (), std: Sequence[float] = ()) -> ClipSpec:
    """Return the input of a model with this configuration: its ``clip``, with the streams that it reads so.

    Args:
        spec: the model.
        config: its own configuration.
        mean: normalisation other than the model's, one number or one a channel; empty for its own.
        std: likewise.

    Raises:
        ConfigError: another number of channels than the model's.
    """
    found = spec.clip
    if mean:
        if len(mean) not in (1, found.channels):
            raise ConfigError(f"clip.mean={list(mean)} must be one number, or {found.channels}: one a channel.")
        found = dataclasses.replace(found, mean=tuple(mean), std=tuple(std))
    return dataclasses.replace(found, streams=tuple(resolve(spec.streams)(config))) if spec.streams else found


def check_tasks(spec: ModelSpec | LossSpec | MetricSpec, outputs: Sequence[OutputSpec]) -> None:
    """Refuse outputs of a task that the model, loss or metric is not made for.

    Raises:
        ConfigError: naming the component and the first such output.
    """
    kind = {ModelSpec: "model", LossSpec: "loss", MetricSpec: "metric"}[type(spec)]
    for output in outputs:
        if output.task not in spec.tasks:
            raise ConfigError(
                f"{kind.capitalize()} {spec.name!r} does {', '.join(spec.tasks)}, and the data ask for {output.task} "
                f"(output {output.name!r}). Choose another {kind} or data set."
            )


def usable_outputs(
    spec: ModelSpec, outputs: Sequence[OutputSpec], wanted: Sequence[str] = ()
) -> tuple[OutputSpec, ...]:
    """Return the outputs whose task the model does, e.g. the masks of data that hold masks and labels.

    Args:
        spec: the model.
        outputs: what the data offer.
        wanted: names of those to take; empty for all.

    Raises:
        ConfigError: there is none, or a wanted one is not among them.
    """
    names = [output.name for output in outputs]
    for name in wanted:
        if name not in names:
            raise ConfigError(
                f"outputs={list(wanted)}: the data offer no {name!r}.{did_you_mean(name, names)} "
                f"They offer: {', '.join(names)}."
            )
    if wanted:
        outputs = [output for output in outputs if output.name in wanted]
        check_tasks(spec, outputs)
    usable = tuple(output for output in outputs if output.task in spec.tasks)
    if not usable:
        check_tasks(spec, outputs)
        raise ConfigError("The data name nothing to predict.")
    return usable


def build_model(info: ModelInfo) -> nn.Module:
    """Build the network that ``info`` describes, freshly initialised, with ``info`` as its ``medvid`` attribute."""
    spec = model_spec(info.name)
    check_tasks(spec, info.outputs)
    config = build_section(spec.config, "model", info.config)
    try:
        module: nn.Module = resolve(spec.build)(config, info.outputs)
    except (ValueError, ArithmeticError, RuntimeError) as error:  # PyTorch's word for a negative or endless width
        raise ConfigError(f"Model {spec.name!r} cannot be built with these settings: {error}") from error
    module.medvid = info  # type: ignore[assignment]  # plain data on a module
    return module


def create_model(name: str, *, outputs: Sequence[OutputSpec], preset: str = "full", **config: Any) -> nn.Module:
    """Build an installed model, freshly initialised.

    Args:
        name: as in `list_models`, or ``distribution/name``.
        outputs: what it shall predict.
        preset: the model's named partial settings, over those of its recipe.
        config: the model's own settings, over those of the preset.

    Returns:
        The network: maps a batch (dict with ``video`` [B,T,C,H,W]) to a dict of output tensors.

    Raises:
        PluginError: no such model. ConfigError: no such preset or setting, or a task it cannot do.
    """
    provided = plugins.registry().find("model", name)
    spec = provided.spec
    assert isinstance(spec, ModelSpec)
    settings = {**spec.recipe, **preset_settings(spec, preset)}
    own = {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}
    info = ModelInfo(
        name=provided.full_name,
        version=provided.version,
        config={**own, **config},
        outputs=tuple(outputs),
        clip=input_of(
            spec,
            build_section(spec.config, "model", {**own, **config}),
            settings.get("clip.mean", ()),
            settings.get("clip.std", ()),
        ),
        frames=settings.get("clip.frames", spec.clip.frames),
        size=tuple(settings.get("clip.size", spec.clip.size)),
        stride=settings.get("clip.stride", 1),
        padding=settings.get("clip.padding", "repeat"),
        fan_crop=settings.get("clip.fan_crop", "none"),
        blend=settings.get("clip.blend", "mean"),
    )
    return build_model(info)


def describe(model: nn.Module) -> ModelInfo:
    """Return what a model made by medvid is.

    Raises:
        CheckpointError: the module was not made by `create_model` or `load_model`.
    """
    info = getattr(model, "medvid", None)
    if not isinstance(info, ModelInfo):
        raise CheckpointError("This module was not made by medvid_core.create_model or load_model.")
    return info


@dataclass(frozen=True)
class Base:
    """A published file of weights that a model file leaves a part to.

    Attributes:
        file: its name.
        sha256: of its content.
        source: the importer that reads it.
        entries: what the model file leaves out.
        folder: where it was when training began; known to the run's record alone.
    """

    file: str
    sha256: str
    source: str
    entries: tuple[str, ...]
    folder: str = ""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Base:
        """Read plain data back.

        Raises:
            CheckpointError: a field is missing or unknown.
        """
        try:
            return Base(**_tuples(data))
        except TypeError as error:
            raise CheckpointError(f"The description of the weights a model starts from is damaged: {error}.") from error

    def find(self, beside: Path) -> Path:
        """Return the file: next to the model file, where the run had it, or in PyTorch's cache of checkpoints.

        Raises:
            CheckpointError: it is in none of these places, or another one has its name.
        """
        record = beside.parent / "run.json"
        folder = read_json(record).get("base", {}).get("folder") if record.is_file() else None
        places = [beside.parent, *([Path(folder)] if folder else []), Path(torch.hub.get_dir()) / "checkpoints"]
        found = [place / self.file for place in places if (place / self.file).is_file()]
        for path in found:
            if sha256(path) == self.sha256:
                return path
        what = f"{found[0]} has another content" if found else "it was not found"
        raise CheckpointError(
            f"{beside} holds what was trained, and takes the rest from {self.file} (sha256 {self.sha256}); {what}. "
            f"Put that file into {beside.parent}."
        )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_model(
    model: nn.Module, path: Path | str, extra: Mapping[str, Any] | None = None, base: Base | None = None
) -> None:
    """Write weights and description to one safetensors file that `load_model` reads, without what ``base`` holds."""
    header = {"kind": "model", "model": describe(model).to_dict(), **(extra or {})}
    tensors = model.state_dict()
    if base is not None:
        header["base"] = {key: value for key, value in dataclasses.asdict(base).items() if key != "folder"}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in base.entries}
    checkpoint.write(Path(path), tensors, header)


def model_file(run_or_file: Path | str) -> Path:
    """Return the model file of a run directory, or the file itself.

    Raises:
        CheckpointError: the run holds none.
    """
    path = Path(run_or_file)
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            raise CheckpointError(
                f"{path} holds no {MODEL_FILE}: the run has not finished. Go on with --resume {path}."
            )
        return path / MODEL_FILE
    return path


def load_model(run_or_file: Path | str) -> nn.Module:
    """Load a trained model from a run directory or a model file, in evaluation mode.

    Raises:
        CheckpointError: the file is absent, damaged, or not a model; or its weights do not fit.
        PluginError: the plugin that offers the architecture is not installed.
    """
    path = model_file(run_or_file)
    tensors, header = checkpoint.read(path)
    if header.get("kind") != "model" or not isinstance(header.get("model"), dict):
        raise CheckpointError(f"{path} is not a model file (its header says {header.get('kind')!r}).")
    model = build_model(ModelInfo.from_dict(header["model"]))
    if "base" in header:
        base = Base.from_dict(header["base"])
        import_weights(model, base.find(path), base.source)
        own = model.state_dict()
        tensors |= {name: own[name] for name in base.entries if name in own}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {path} do not fit the model they name: {error}") from error
    return model.eval()


def import_weights(model: nn.Module, path: Path | str, source: str = "upstream") -> ImportReport:
    """Load weights published elsewhere into a model, strictly.

    Args:
        model: made by `create_model`.
        path: ``.safetensors``, or ``.pth``/``.pyth``/``.pt``/``.ckpt``/``.bin`` read without executing anything.
        source: one of the importers the model's spec names, e.g. ``upstream``.

    Returns:
        A report of every key: loaded, dropped with the reason, left as initialised.

    Raises:
        CheckpointError: the file cannot be read safely, or keys are missing, unexpected or of the wrong shape.
        ConfigError: the model has no such importer.
    """
    from medvid_core.weights import read_state

    spec = model_spec(describe(model).name)
    if source not in spec.importers:
        raise ConfigError(
            f"Model {spec.name!r} imports no weights of the kind {source!r}.{did_you_mean(source, spec.importers)} "
            f"Known: {', '.join(spec.importers) or 'none'}."
        )
    state: dict[str, Tensor] = read_state(Path(path))
    report: ImportReport = resolve(spec.importers[source])(state, model)
    return report


def config_from_upstream(name: str, mapping: Mapping[str, Any]) -> Any:
    """Return the model's configuration for the constructor arguments of the original code.

    Raises:
        ConfigError: the model has no such translation, or an argument is unknown.
    """
    spec = model_spec(name)
    if not spec.upstream_config:
        raise ConfigError(f"Model {spec.name!r} has no upstream configuration to translate.")
    return resolve(spec.upstream_config)(mapping)
