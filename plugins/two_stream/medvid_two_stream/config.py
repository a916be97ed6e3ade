"""Settings of the two-stream networks, of their baselines and of their loss. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from medvid_core.errors import ConfigError, did_you_mean

CUES: Mapping[str, tuple[tuple[str, ...], int]] = MappingProxyType(
    {
        "rgb": (("video",), 3),
        "masked-rgb": (("video", "person_mask"), 3),
        "mask": (("person_mask",), 1),
        "flow": (("flow",), 2),
    }
)
"""What a stream may look at: the sample streams it is made of, and its channels."""

SLOW_BLOCKS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"slow_r50": (3, 4, 6, 3), "slow_r101": (3, 4, 23, 3), "slow_r152": (3, 8, 36, 3)}
)
"""Residual blocks of each stage of the slow pathway of SlowFast (Feichtenhofer et al., ICCV 2019)."""

TORCHVISION_VIDEO = ("r3d_18", "r2plus1d_18", "mvit_v2_s", "swin3d_t")
TORCHVISION_IMAGE = ("resnet18", "resnet50")
"""Networks of single frames."""

CLIP_TRUNKS = (*SLOW_BLOCKS, *TORCHVISION_VIDEO)
TRUNKS = (*CLIP_TRUNKS, *TORCHVISION_IMAGE)
ORIGINAL_TRUNKS = ("slow_r50", "resnet50")
FUSIONS = ("separate", "sum", "concat", "learnt")


def cues_of(name: str) -> tuple[str, ...]:
    """Return what an input joins channel by channel: ``rgb+flow`` is ``rgb`` and ``flow``."""
    return tuple(name.split("+"))


def channels_of(name: str) -> int:
    """Return the channels of an input."""
    return sum(CUES[cue][1] for cue in cues_of(name))


def needed_streams(inputs: Sequence[str]) -> tuple[str, ...]:
    """Return the sample streams that inputs are made of; the loader always gives ``video``."""
    found = [stream for name in inputs for cue in cues_of(name) for stream in CUES[cue][0]]
    return tuple(dict.fromkeys(("video", *found)))


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(
            f"model.{key}={value!r} cannot be used.{did_you_mean(value, choices)} Known: {', '.join(choices)}."
        )


def _check_input(key: str, name: str) -> None:
    cues = cues_of(name)
    for cue in cues:
        if cue not in CUES:
            raise ConfigError(
                f"model.{key}: {cue!r} is nothing to look at.{did_you_mean(cue, CUES)} Known: {', '.join(CUES)}, "
                "or several of them joined by '+', channel by channel."
            )
    if len(set(cues)) != len(cues) or {"rgb", "masked-rgb"} <= set(cues):
        raise ConfigError(f"model.{key}: {name!r} holds the same thing twice.")


@dataclass
class TrunkConfig:
    """The network that looks at a clip.

    Attributes:
        trunk: ``slow_r50``, ``slow_r101``, ``slow_r152`` (PyTorchVideo's layout), torchvision's ``r3d_18``,
            ``r2plus1d_18``, ``mvit_v2_s`` or ``swin3d_t``.
        width: channels of the stem of a slow network; stages have 4, 8, 16 and 32 times as many. Published weights
            are for 64.
        blocks: residual blocks of the four stages of a slow network; empty: those of its depth.
        scratch: the slow network as PyTorchVideo makes it to be trained from nothing: a stem that spans three frames,
            and with ``compat`` head windows of 4 frames, not 8.
        dropout: probability in front of the classifier.
        compat: compute what the original's code computes: two classes from one logit, the head as a mean over windows
            of 8x7x7, which weights frames as a trapezoid and needs 8 frames of at least 193 pixels, published stems
            thrown away. Use the preset ``original``, which sets the clip and its normalisation too.
    """

    trunk: str = "slow_r50"
    width: int = 64
    blocks: tuple[int, ...] = ()
    scratch: bool = False
    dropout: float = 0.5
    compat: bool = False

    def __post_init__(self) -> None:
        _check_choice("trunk", self.trunk, self.trunks)
        if self.width < 1:
            raise ConfigError(f"model.width={self.width} cannot be used: it must be at least 1.")
        if self.blocks and (len(self.blocks) != 4 or min(self.blocks) < 1):
            raise ConfigError(f"model.blocks={self.blocks} cannot be used: it must be four numbers of at least 1.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout={self.dropout} cannot be used: it must be from 0 to below 1.")
        slow = [trunk for trunk in self.chosen if trunk in SLOW_BLOCKS]
        if not slow and (self.width != 64 or self.blocks or self.scratch):
            raise ConfigError(
                f"model.width, model.blocks and model.scratch are of the slow networks; {self.trunk} is torchvision's "
                "as it is. Leave them out."
            )
        other = [trunk for trunk in self.chosen if trunk not in ORIGINAL_TRUNKS]
        if self.compat and other:
            raise ConfigError(
                f"model.compat=true is for what the original has: {', '.join(ORIGINAL_TRUNKS)}, not {other[0]}."
            )

    @property
    def trunks(self) -> tuple[str, ...]:
        """Trunks that this kind of network can have."""
        return CLIP_TRUNKS

    @property
    def chosen(self) -> tuple[str, ...]:
        """Trunks in use."""
        return (self.trunk,)


@dataclass
class TwoStreamConfig(TrunkConfig):
    """Networks that look at a clip in different ways, and what becomes of what they say.

    Attributes:
        trunk: as in every network here, or ``resnet50`` or ``resnet18``: a network of single frames, whose answers are
            averaged over the clip.
        inputs: what each stream looks at: ``rgb``, ``masked-rgb`` (the person alone), ``flow``, ``mask``, or several
            joined channel by channel: ``[rgb+flow+mask]`` is one stream, fused early. One input is a single stream.
        flow_trunk: trunk of the stream ``flow``; empty: ``trunk``.
        fusion: ``separate`` trains each stream by itself and decides by their mean probability (the original's
            different_loss); ``sum`` trains the mean of their logits (sum_loss), ``learnt`` a weighted mean of them with
            learnt weights; ``concat`` one classifier of all their features.
        shuffled: look at the frames of a clip in random order, to find out what is known without their order.
    """

    inputs: tuple[str, ...] = ("rgb", "flow")
    flow_trunk: str = ""
    fusion: str = "separate"
    shuffled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.inputs or len(set(self.inputs)) != len(self.inputs):
            raise ConfigError(f"model.inputs={self.inputs} cannot be used: name one or more different inputs.")
        for name in self.inputs:
            _check_input("inputs", name)
        if self.flow_trunk:
            _check_choice("flow_trunk", self.flow_trunk, self.trunks)
            if "flow" not in self.inputs:
                raise ConfigError("model.flow_trunk is set and model.inputs has no 'flow'. Leave it out.")
        _check_choice("fusion", self.fusion, FUSIONS)
        if self.compat and self.fusion not in ("separate", "sum"):
            raise ConfigError(f"model.fusion={self.fusion} does not exist in the original. Set model.compat=false.")

    @property
    def trunks(self) -> tuple[str, ...]:
        """Trunks that this kind of network can have."""
        return TRUNKS

    @property
    def chosen(self) -> tuple[str, ...]:
        """Trunks in use."""
        return tuple(self.trunk_of(name) for name in self.inputs)

    def trunk_of(self, name: str) -> str:
        """Return the trunk of an input."""
        return self.flow_trunk if name == "flow" and self.flow_trunk else self.trunk


@dataclass
class AttentionBranchConfig(TrunkConfig):
    """A 3D network that is told by a branch of its own where to look (Fukui et al., CVPR 2019).

    Attributes:
        input: what it looks at, as one of `TwoStreamConfig.inputs`.
    """

    input: str = "rgb"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_input("input", self.input)


@dataclass
class CrossAttentionConfig(TrunkConfig):
    """A 3D network whose features ask a map of the same clip, by cross-attention over space and time.

    Attributes:
        input: what it looks at, as one of `TwoStreamConfig.inputs`.
        context: the map it asks: ``mask`` (where the person is) or ``flow`` (how it moves).
    """

    input: str = "rgb"
    context: str = "mask"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_input("input", self.input)
        _check_choice("context", self.context, ("mask", "flow"))


@dataclass
class CNNLSTMConfig:
    """An image network on each frame and an LSTM over the sequence, which answers for every frame.

    Attributes:
        trunk: ``resnet50`` or ``resnet18``.
        input: what it looks at, as one of `TwoStreamConfig.inputs`.
        features: of a frame.
        hidden: of the LSTM.
        layers: of the LSTM.
    """

    trunk: str = "resnet50"
    input: str = "rgb"
    features: int = 300
    hidden: int = 512
    layers: int = 2

    def __post_init__(self) -> None:
        _check_choice("trunk", self.trunk, TORCHVISION_IMAGE)
        _check_input("input", self.input)
        for name in ("features", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} cannot be used: it must be at least 1.")


@dataclass
class TwoStreamLossConfig:
    """Cross-entropy of everything a network is trained on.

    Attributes:
        average: take the mean over the streams, not their sum: what the original does where a 3D and a 2D network are
            trained separately, and nowhere else.
        class_weights: one factor a class; empty: all 1.
    """

    average: bool = False
    class_weights: tuple[float, ...] = ()


def two_stream_needs(config: TwoStreamConfig) -> tuple[str, ...]:
    """Return the sample streams that the network reads."""
    return needed_streams(config.inputs)


def single_needs(config: AttentionBranchConfig | CNNLSTMConfig) -> tuple[str, ...]:
    """Return the sample streams that a network of one input reads."""
    return needed_streams((config.input,))


def cross_attention_needs(config: CrossAttentionConfig) -> tuple[str, ...]:
    """Return the sample streams that the network and its context are made of."""
    return needed_streams((config.input, config.context))


UPSTREAM_MODELS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"multi": ("slow_r50", ""), "single": ("resnet50", ""), "multi_single": ("slow_r50", "resnet50")}
)
"""The original's ``--model``: trunk, and that of the flow stream."""

UPSTREAM_FUSIONS: Mapping[str, str] = MappingProxyType({"different_loss": "separate", "sum_loss": "sum"})


def from_upstream(arguments: Mapping[str, Any]) -> TwoStreamConfig:
    """Translate the original's ``model``, ``fusion`` and ``transfor_learning``, in its own arithmetic (``compat``).

    Raises:
        ConfigError: another argument, a value that the original does not have, or its fusion ``concat``, which has no
            code there.
    """
    known = {"model": UPSTREAM_MODELS, "fusion": UPSTREAM_FUSIONS, "transfor_learning": (True, False)}
    for name, value in arguments.items():
        if name not in known:
            raise ConfigError(
                f"{name!r} decides nothing of the original's network.{did_you_mean(name, known)} "
                f"These do: {', '.join(known)}."
            )
        if value not in known[name]:
            raise ConfigError(f"{name}={value!r} is none of the original's: {', '.join(map(str, known[name]))}.")
    trunk, flow_trunk = UPSTREAM_MODELS[arguments.get("model", "multi")]
    return TwoStreamConfig(
        trunk=trunk,
        flow_trunk=flow_trunk,
        fusion=UPSTREAM_FUSIONS[arguments.get("fusion", "different_loss")],
        scratch=not arguments.get("transfor_learning", True) and trunk in SLOW_BLOCKS,
        compat=True,
    )
