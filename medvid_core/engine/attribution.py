"""Attribution: how much each place of a clip speaks for what a model predicts of it.

What is explained is one number: the log odds of what is asked, ``log p / (1 - p)``, or the number itself of a
regression. Log odds, not logits: a network with a single logit says no less of its first class than of its second, with
the other sign, and a softmax says nothing of a shift common to all logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvid_core.data.clip import Batch
from medvid_core.errors import ConfigError, did_you_mean
from medvid_core.models import ModelInfo
from medvid_core.specs import OutputSpec

EXPLAINED_TASKS = ("classification", "multilabel", "ordinal", "regression")
"""Tasks with one answer for a clip."""

STEPS = (32, 128)
"""Points at which gradients are taken between baseline and clip; the second where the first do not add up."""

CLOSED = 0.05
"""How far off the sum of attributions may be, in parts of what it should be, to be said to add up."""

COARSE = 4
"""Maps of fewer rows or columns than this do not say where."""

NOT = "not "
"""In front of a class: what speaks against it."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model: one value of one of its outputs.

    Attributes:
        output: the output.
        number: which of its values: a class, a label, "above grade k", or a number.
        negated: what speaks against it is asked.
    """

    output: OutputSpec
    number: int
    negated: bool = False

    @property
    def words(self) -> str:
        """What is asked, as `ask` reads it."""
        label = self.output.classes[self.number]
        return (NOT if self.negated else "") + (f"above {label}" if self.output.task == "ordinal" else label)

    def score(self, raw: Tensor) -> Tensor:
        """Return the log odds, or the number, [B], of what the model puts out, [B,K]."""
        value = raw[:, self.number]
        if self.output.task == "classification":  # of a softmax
            others = [number for number in range(raw.shape[1]) if number != self.number]
            value = value - raw[:, others].logsumexp(1)
        return -value if self.negated else value

    def answer(self, predicted: Tensor) -> float:
        """Return the probability, or the number, of what is predicted of a video, [K]."""
        value = float(predicted[self.number])
        return 1 - value if self.negated and self.output.task != "regression" else value


def explained_output(info: ModelInfo, name: str = "") -> OutputSpec:
    """Return the output to explain.

    Args:
        info: the model.
        name: which; empty: the only one that can be.

    Raises:
        ConfigError: there is none of that name, it cannot be explained, or there are several.
    """
    fitting = [output for output in info.outputs if output.task in EXPLAINED_TASKS]
    names, all_names = [output.name for output in fitting], [output.name for output in info.outputs]
    if name and name not in all_names:
        raise ConfigError(
            f"--output {name}: the model has no such output.{did_you_mean(name, all_names)} "
            f"It has: {', '.join(all_names)}."
        )
    found = [output for output in fitting if name in ("", output.name)]
    if not found:
        refused = next(output for output in info.outputs if name in ("", output.name))
        raise ConfigError(
            f"Output {refused.name!r} ({refused.task}) cannot be explained: it has a value for every frame or pixel. "
            f"Explained are outputs of whole videos ({', '.join(EXPLAINED_TASKS)})"
            + (f", of this model {', '.join(names)}." if names else ", of which this model has none.")
        )
    if len(found) > 1:
        raise ConfigError(f"The model has several outputs: say which to explain with --output ({', '.join(names)}).")
    return found[0]


def ask(output: OutputSpec, wanted: str) -> Question:
    """Return the question that a user asks.

    Args:
        output: of which output.
        wanted: a class or label; of grades the one to lie above (``2`` or ``above 2``); a number. With ``not`` in
            front, what speaks against it.

    Raises:
        ConfigError: the output has no such class.
    """
    labels = output.classes[:-1] if output.task == "ordinal" else output.classes
    known = {label: number for number, label in enumerate(labels)}
    if output.task == "ordinal":
        known = {f"above {label}": number for label, number in known.items()} | known
    if wanted in known:
        return Question(output, known[wanted])
    if wanted.startswith(NOT) and wanted.removeprefix(NOT) in known:
        return Question(output, known[wanted.removeprefix(NOT)], negated=True)
    kind = {"ordinal": "grade to lie above", "regression": "number"}.get(output.task, "class")
    raise ConfigError(
        f"--class {wanted}: output {output.name!r} has no such {kind}.{did_you_mean(wanted, known)} "
        f"It has: {', '.join(labels)}."
    )


def predicted_question(output: OutputSpec, predicted: Tensor) -> Question:
    """Ask for what is predicted of a video, [K]: the class, the likeliest label, the grade's lower end, the number.

    Of the lowest grade, which has no lower end, "not above" it is asked.
    """
    if output.task != "ordinal":
        return Question(output, 0 if output.task == "regression" else int(predicted.argmax()))
    grade = int((predicted > 0.5).sum())
    return Question(output, max(0, grade - 1), negated=grade == 0)


class Asked(nn.Module):
    """A model with one value, in evaluation mode.

    Args:
        model: made by medvid; its parameters must not ask for gradients, which would be computed for nothing.

    Attributes:
        question: what is asked.
    """

    question: Question

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()  # itself too: MONAI puts all back into the mode it finds this module in

    def forward(self, batch: Batch) -> Tensor:
        """Return the log odds, or the number, asked for, [B,1]."""
        return self.question.score(self.model(batch)[self.question.output.name].float())[:, None]


@dataclass(frozen=True)
class Attribution:
    """What was found of one clip.

    Attributes:
        maps: by stream, how much every pixel speaks for what is asked, float [T,H,W], on the CPU.
        attributed: sum of all maps; None where it has no meaning.
        difference: what the sum should be: the value of the clip less that of the baseline.
        sizes: by stream, frames, height and width of the maps as they were found; empty: those of the clip.
    """

    maps: Mapping[str, Tensor]
    attributed: float | None = None
    difference: float | None = None
    sizes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


class Method(Protocol):
    """A way to attribute.

    Attributes:
        title: what it is called.
        signed: whether its maps also hold what speaks against.
    """

    title: str
    signed: bool

    def settings(self) -> dict[str, Any]:
        """Return what it was set up with, as plain data."""
        ...

    def attribute(self, batch: Batch) -> Attribution:
        """Attribute the value of one clip, a batch of B = 1."""
        ...


def read_streams(batch: Batch, info: ModelInfo) -> dict[str, Tensor]:
    """Return the floating streams of pictures that a model reads, [B,T,C,H,W], each free of any graph."""
    found = {name: batch[name] for name in info.clip.streams if isinstance(batch.get(name), Tensor)}
    return {name: value.detach() for name, value in found.items() if value.is_floating_point() and value.dim() == 5}


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Let gradients flow through a model in evaluation mode: cuDNN's recurrent layers can do so in training alone."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent):
        yield


class GradCam:
    """Grad-CAM (Selvaraju et al., ICCV 2017, equations 1 and 2), by MONAI, of one layer for each stream.

    The features of the layer, weighted by the mean of their gradients, summed over channels; negative sums are 0.
    A layer may give maps over space and time, [1,C,T',h,w], weighted as one, or of each frame, [T',C,h,w], each with
    weights of its own. They are brought to the frames and pixels of the clip, linear in each; where they are of pairs
    of neighbours (T' = T - 1), a map stands at the first frame of its pair, and the last is repeated.

    Args:
        asked: the model.
        info: what it is.

    Raises:
        ConfigError: the network names no layer in ``attribution_layer``, or one that it does not have.
    """

    title = "Grad-CAM"
    signed = False

    def __init__(self, asked: Asked, info: ModelInfo) -> None:
        self.info = info
        named = getattr(asked.model, "attribution_layer", None)
        if not named:
            raise ConfigError(
                f"{info.name} names no layer for Grad-CAM (the attribute attribution_layer of its network). "
                "Use --method integrated-gradients."
            )
        self.layers: dict[str, str] = {"video": named} if isinstance(named, str) else dict(named)
        modules = dict(asked.model.named_modules())
        for layer in self.layers.values():
            if layer not in modules:
                raise self._useless(layer, "is not in the network")
        self.maps = {stream: _grad_cam(asked, f"model.{layer}") for stream, layer in self.layers.items()}

    def settings(self) -> dict[str, Any]:
        """Return the layer of each stream."""
        return {"layers": self.layers}

    def attribute(self, batch: Batch) -> Attribution:
        """Attribute the value of one clip.

        Raises:
            ConfigError: a layer has no part in it, or gives no maps.
        """
        streams = read_streams(batch, self.info)
        followed = {**batch, **{name: value.clone().requires_grad_() for name, value in streams.items()}}
        frames, (height, width) = batch["frame_real"].shape[1], batch["video"].shape[-2:]
        found, sizes = {}, {}
        for stream, compute in self.maps.items():
            try:
                maps = compute(followed)
            except (KeyError, IndexError) as error:  # MONAI's word for it
                raise self._useless(self.layers[stream], "has no part in what is asked") from error
            except ValueError as error:
                raise self._useless(self.layers[stream], str(error)) from error
            sizes[stream] = (maps.shape[0], maps.shape[1], maps.shape[2])
            found[stream] = at_frames(maps, (frames, height, width)).cpu()
        return Attribution(found, sizes=sizes)

    def _useless(self, layer: str, why: str) -> ConfigError:
        return ConfigError(
            f"{self.info.name}: Grad-CAM cannot use the layer {layer!r}: it {why}. Use --method integrated-gradients."
        )


def _grad_cam(asked: Asked, layer: str) -> Callable[[Batch], Tensor]:
    """Return a function of a batch of one clip that gives the maps of a layer [T',h,w], at its own size.

    It raises ValueError where the layer gives no maps.
    """
    from monai.visualize import GradCAM
    from monai.visualize.class_activation_maps import ModelWithHooks

    class Hooks(ModelWithHooks):  # type: ignore[misc]
        """Keeps gradients as MONAI can reshape them: those of a mean are spread without a copy."""

        def backward_hook(self, name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, gradients: tuple[Tensor, ...]) -> None:
                if gradients[0].dim() not in (4, 5):
                    raise ValueError(f"gives {list(gradients[0].shape)}, which are no maps [B,C,T,H,W] or [B*T,C,H,W]")
                self.gradients[name] = gradients[0].contiguous()

            return hook

    # MONAI's own last step would scale maps to [0, 1] upside down, each by itself: neither windows nor signs would fit
    cam = GradCAM(Hooks(asked, layer, register_forward=True, register_backward=True), layer, postprocessing=lambda x: x)

    def compute(batch: Batch) -> Tensor:
        maps = cast(Tensor, cam.compute_map(batch, class_idx=0)).detach()
        return maps[0, 0] if maps.dim() == 5 else maps[:, 0]

    return compute


def at_frames(maps: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Bring maps [T',h,w] to frames, height and width of a clip, [T,H,W], linear in each."""
    if len(maps) == size[0] - 1:  # between neighbours
        maps = torch.cat([maps, maps[-1:]])
    return F.interpolate(maps[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]


class IntegratedGradients:
    """Integrated gradients (Sundararajan et al., ICML 2017, equation 1), by Captum, of all streams together.

    The baseline is 0 in what the network sees: the mean colour of its normalisation, no motion, an empty mask.
    Gradients at `STEPS` points (Gauss–Legendre) from there to the clip; the sum over channels keeps its sign. All maps
    together sum up to what the clip adds to the value of the baseline, but for the error of the integral, which decides
    how many points are taken.

    Args:
        asked: the model.
        info: what it is.

    Raises:
        ConfigError: Captum is not installed.
    """

    title = "Integrated gradients"
    signed = True

    def __init__(self, asked: Asked, info: ModelInfo) -> None:
        try:
            from captum.attr import IntegratedGradients as Captum
        except ImportError as error:
            raise ConfigError(
                "--method integrated-gradients needs Captum, which is not installed. Install it with: "
                "pip install 'medvid-core[explain]'."
            ) from error
        self.asked, self.info, self.captum = asked, info, Captum

    def settings(self) -> dict[str, Any]:
        """Return the steps and the baseline."""
        return {"steps": list(STEPS), "baseline": "0 after normalisation: mean colour, no motion, empty masks"}

    def attribute(self, batch: Batch) -> Attribution:
        """Attribute the value of one clip."""
        streams = read_streams(batch, self.info)

        def value(*tensors: Tensor) -> Tensor:
            return cast(Tensor, self.asked({**batch, **dict(zip(streams, tensors, strict=True))}))[:, 0]

        inputs = tuple(streams.values())
        with torch.no_grad():
            difference = float(value(*inputs) - value(*map(torch.zeros_like, inputs)))
        for steps in STEPS:
            found = self.captum(value).attribute(inputs, n_steps=steps, internal_batch_size=1)
            maps = {name: each.detach()[0].sum(1).float().cpu() for name, each in zip(streams, found, strict=True)}
            total = sum(float(each.double().sum()) for each in maps.values())
            if abs(total - difference) <= CLOSED * abs(difference):
                break
        return Attribution(maps, total, difference)


METHODS: dict[str, Callable[[Asked, ModelInfo], Method]] = {
    "grad-cam": GradCam,
    "integrated-gradients": IntegratedGradients,
}
