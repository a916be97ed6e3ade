"""Settings of CNN-Mamba and of the networks it is compared with. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from medvid_core.errors import ConfigError


@dataclass
class VideoNetConfig:
    """A network over frames, whatever follows the sequence.

    Attributes:
        encoder: timm image network applied to each frame.
        width: features D of a frame in the sequence.
        layers: layers of the temporal network.
        motion: see also what changed since the frame before.
        motion_width: features of that.
        time_gaps: see also how long ago the frame before was taken, for visits years apart.
        pooling: from frames to the clip: ``mean``, or ``attention`` (a learnt weight a frame).
        dropout: probability in front of the heads.
        drop_path: probability that a block of the encoder is skipped in training.
        frozen_norm: leave batch statistics as they are: frames of a clip are alike, and their statistics
            those of few patients.
    """

    encoder: str = "resnet18"
    width: int = 256
    layers: int = 4
    motion: bool = False
    motion_width: int = 64
    time_gaps: bool = False
    pooling: str = "mean"
    dropout: float = 0.0
    drop_path: float = 0.0
    frozen_norm: bool = False

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "attention"):
            raise ConfigError(f"model.pooling={self.pooling!r} cannot be used: it must be mean or attention.")
        for name in ("width", "layers", "motion_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} cannot be used: it must be at least 1.")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} cannot be used: it must be from 0 to below 1.")


@dataclass
class CNNMambaConfig(VideoNetConfig):
    """CNN-Mamba: Mamba layers over what is seen in each frame and what changed since the one before.

    Attributes:
        state_size: states N of the selective scan.
        bidirectional: look ahead as well as back; such a network cannot stream.
        anomaly: ``head`` reads the score off the features, and learns it from labels; ``forecast`` foresees the next
            frame's features and scores its surprise, learning from normal videos alone (loss ``normal-only``).
        scan_backend: how the selective scan is computed; ``auto`` chooses.
    """

    motion: bool = True
    state_size: int = 16
    bidirectional: bool = False
    anomaly: str = "head"
    scan_backend: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anomaly not in ("head", "forecast"):
            raise ConfigError(f"model.anomaly={self.anomaly!r} cannot be used: it must be head or forecast.")
        if self.anomaly == "forecast" and self.bidirectional:
            raise ConfigError("model.anomaly=forecast foresees the next frame, so model.bidirectional must be false.")
        if self.state_size < 1:
            raise ConfigError(f"model.state_size={self.state_size} cannot be used: it must be at least 1.")


@dataclass
class CNNConfig(VideoNetConfig):
    """The features of frames, and their pool: the baseline without time. ``layers`` has no effect."""


@dataclass
class CNNGRUConfig(VideoNetConfig):
    """Gated recurrent units over the features of frames."""

    layers: int = 2


@dataclass
class CNNTransformerConfig(VideoNetConfig):
    """A Transformer over the features of frames.

    Attributes:
        heads: attention heads; they must divide ``width``.
        longest: frames that have a learnt position of their own; those of longer clips are interpolated.
    """

    heads: int = 8
    longest: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"model.heads={self.heads} cannot be used: it must divide model.width={self.width}.")


@dataclass
class R2Plus1DConfig:
    """R(2+1)D-18, as EchoNet-Dynamic uses it.

    Attributes:
        width: channels of the stem and of the first stage; each later stage has twice as many. 64 is the original.
        blocks: residual blocks of each stage. (2, 2, 2, 2) is the original.
        dropout: probability in front of the heads.
    """

    width: int = 64
    blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"model.width={self.width} cannot be used: it must be at least 1.")
        if len(self.blocks) != 4 or min(self.blocks) < 1:
            raise ConfigError(f"model.blocks={self.blocks} cannot be used: it must be four numbers of at least 1.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout={self.dropout} cannot be used: it must be from 0 to below 1.")


@dataclass
class SNNConfig:
    """A convolutional spiking network; a frame of the video is a time step of the neurons.

    Attributes:
        widths: channels of each stage; each halves height and width.
        depth: convolutions of a stage.
        width: neurons of the last layer, which sees the whole picture.
        recurrent: the last layer also sees its own spikes of the frame before.
        tau: frames in which a membrane forgets to 1/e, roughly; above 1.
        readout_tau: the same for the membranes that are read out, which do not fire; at least 1.
        dropout: probability in front of the heads.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256)
    depth: int = 1
    width: int = 256
    recurrent: bool = True
    tau: float = 2.0
    readout_tau: float = 4.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"model.widths={self.widths} cannot be used: it must be numbers of at least 1.")
        for name in ("depth", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} cannot be used: it must be at least 1.")
        if self.tau <= 1:
            raise ConfigError(f"model.tau={self.tau} cannot be used: it must be above 1.")
        if self.readout_tau < 1:
            raise ConfigError(f"model.readout_tau={self.readout_tau} cannot be used: it must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout={self.dropout} cannot be used: it must be from 0 to below 1.")


@dataclass
class CNNSNNConfig(SNNConfig):
    """A spiking network whose first stages are analog: convolution, normalisation and ReLU on each frame.

    Attributes:
        analog_stages: how many; at least one stage must remain that spikes.
    """

    analog_stages: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.analog_stages < len(self.widths):
            raise ConfigError(
                f"model.analog_stages={self.analog_stages} cannot be used: it must be at least 1 and below the number "
                f"of stages, {len(self.widths)} (model.widths)."
            )
