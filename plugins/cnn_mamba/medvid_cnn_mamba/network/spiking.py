"""Spiking networks: convolutional, with the video's frames as time steps, wholly or behind an analog stem.

The neurons are spikingjelly's, through its functions that take and return the membrane voltages. So nothing is
remembered between two forward passes, there is nothing to reset, and a stream is the same computation in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from medvid_cnn_mamba.config import CNNSNNConfig, SNNConfig
from medvid_cnn_mamba.network.heads import Heads, Pool, PoolState
from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec

INSTALL = 'pip install "medvid-cnn-mamba[snn]"'

EXPECTED_RATE = 0.15
"""Share of neurons that fire in a frame, for which the weights are initialised: mean square of a layer's input."""

THRESHOLD = 1.0


def _spikingjelly() -> tuple[ModuleType, ModuleType]:
    try:
        from spikingjelly.activation_based import functional, surrogate
    except ImportError as error:
        raise ConfigError(f"Spiking networks need spikingjelly 2.0 or later ({error}). Type: {INSTALL}") from error
    if not hasattr(functional, "lif_multi_step"):
        raise ConfigError(f"Spiking networks need spikingjelly 2.0 or later; an older one is here. Type: {INSTALL}")
    return functional, surrogate


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons with a hard reset, and the arc tangent as surrogate (Fang et al., ICCV 2021).

    h[t] = v[t-1] - v[t-1]/tau + x[t]; s[t] = 1 where h[t] >= 1, else 0; v[t] = h[t] (1 - s[t]). In the backward pass
    ds/dh = 1 / (1 + (pi (h - 1))^2), and the reset is held fixed. The input is not divided by tau: behind a
    normalisation to unit variance such neurons fire, those with a divided input hardly do.
    """

    def __init__(self, tau: float) -> None:
        super().__init__()
        functional, surrogate = _spikingjelly()
        self.tau = tau
        self._run = functional.lif_multi_step
        self.surrogate = surrogate.ATan(alpha=2.0)

    def forward(self, current: Tensor, voltage: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return spikes and the voltage after them.

        Args:
            current: [T,B,...].
            voltage: [B,...] float32; None: at rest.

        Returns:
            Spikes, 0 or 1, [T,B,...]; voltage [B,...].
        """
        if voltage is None:
            voltage = torch.zeros_like(current[0], dtype=torch.promote_types(current.dtype, torch.float32))
        spikes, after, _ = self._run(
            current, voltage, self.tau, False, THRESHOLD, 0.0, self.surrogate, detach_reset=True
        )
        return spikes, after


def _initialise(weight: Tensor, mean_square: float) -> None:
    """Draw weights whose sums over inputs of this mean square have unit variance: neurons fire before any training."""
    nn.init.normal_(weight, std=(weight[0].numel() * mean_square) ** -0.5)


class SpikingConv(nn.Module):
    """Convolution, batch normalisation, neurons. What goes out is binary."""

    def __init__(self, source: int, target: int, stride: int, tau: float, mean_square: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(source, target, 3, stride, 1, bias=False)
        _initialise(self.conv.weight, mean_square)
        self.norm = nn.BatchNorm2d(target)
        self.neurons = LIF(tau)

    def forward(self, x: Tensor, voltage: Tensor | None) -> tuple[Tensor, Tensor]:
        """[T,B,C,H,W] and voltages -> spikes and voltages."""
        current = self.norm(self.conv(x.flatten(0, 1)))
        return cast(tuple[Tensor, Tensor], self.neurons(torch.unflatten(current, 0, x.shape[:2]), voltage))


class LastState(NamedTuple):
    """Voltages and spikes of the last layer after a frame, both [B,D]."""

    voltage: Tensor
    spikes: Tensor


class SpikingLast(nn.Module):
    """Neurons that see the whole picture, and by choice their own spikes of the frame before.

    Currents are summed over the picture behind the weights, not spikes in front of them: an average of spikes is not
    binary, and would cost multiplications.
    """

    def __init__(self, source: int, width: int, recurrent: bool, tau: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(source, width, 1, bias=False)
        # the mean over the picture leaves of a channel's spikes little but its rate
        _initialise(self.project.weight, 2 * EXPECTED_RATE**2)
        self.norm = nn.BatchNorm1d(width)
        self.recurrent = nn.Linear(width, width, bias=False) if recurrent else None
        if self.recurrent is not None:
            _initialise(self.recurrent.weight, 10 * EXPECTED_RATE)  # a tenth of the input's variance
        self.neurons = LIF(tau)

    def forward(self, x: Tensor, state: LastState | None) -> tuple[Tensor, LastState]:
        """Spikes [T,B,C,H,W] -> spikes [T,B,D]."""
        currents = self.norm(self.project(x.flatten(0, 1)).mean((2, 3)))
        currents = torch.unflatten(currents, 0, x.shape[:2])
        if self.recurrent is None:
            spikes, voltage = self.neurons(currents, None if state is None else state.voltage)
            return spikes, LastState(voltage, spikes[-1])
        voltage, last = (None, torch.zeros_like(currents[0])) if state is None else state
        found = []
        for current in currents:
            spikes, voltage = self.neurons((current + self.recurrent(last))[None], voltage)
            last = spikes[0]
            found.append(last)
        return torch.stack(found), LastState(voltage, last)


class Readout(nn.Module):
    """Membranes that integrate and leak but never fire: m[t] = m[t-1] + (s[t] - m[t-1]) / tau, a running spike rate."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, spikes: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor]:
        """Spikes [T,B,D] -> membranes [T,B,D], and the last of them."""
        m = torch.zeros_like(spikes[0]) if membrane is None else membrane
        found = []
        for frame in spikes:
            m = m + (frame - m) / self.tau
            found.append(m)
        return torch.stack(found), m


class SpikingState(NamedTuple):
    """What a stream remembers: a voltage for every neuron, and the pool. None stands for rest, before any frame.

    Its size depends on that of the pictures, not on their number.
    """

    voltages: tuple[Tensor | None, ...]
    last: LastState | None
    membrane: Tensor | None
    pool: PoolState


class SpikingNet(nn.Module):
    """Stages of spiking convolutions, a last spiking layer, a readout, and heads.

    The first convolution sees analog input: the picture, or the features of an analog stem. All others see spikes.

    Args:
        config: sizes.
        channels: of the frames.
        outputs: what is asked for.

    Raises:
        ConfigError: spikingjelly is not installed.
    """

    def __init__(self, config: SNNConfig, channels: int, outputs: tuple[OutputSpec, ...]) -> None:
        super().__init__()
        analog = config.analog_stages if isinstance(config, CNNSNNConfig) else 0
        sources = (channels, *config.widths)
        self.stem = nn.Sequential(
            *(
                layer
                for stage in range(analog)
                for layer in _analog_stage(sources[stage], config.widths[stage], config.depth)
            )
        )
        body: list[nn.Module] = []
        mean_square = 1.0 if analog == 0 else 0.5  # a normalised picture, or ReLU of what is normalised
        for stage in range(analog, len(config.widths)):
            for number in range(config.depth):
                source, stride = (sources[stage], 2) if number == 0 else (config.widths[stage], 1)
                body.append(SpikingConv(source, config.widths[stage], stride, config.tau, mean_square))
                mean_square = EXPECTED_RATE
        self.body = nn.ModuleList(body)
        self.last = SpikingLast(config.widths[-1], config.width, config.recurrent, config.tau)
        self.readout = Readout(config.readout_tau)
        self.pool = Pool(config.width)
        self.heads = Heads(config.width, outputs, config.dropout)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return every output of a batch with ``video`` [B,T,C,H,W] and ``frame_real`` [B,T]."""
        video = batch["video"]
        return self._run(video, batch["frame_real"], self.initial_state(len(video)))[0]

    def initial_state(self, batch: int) -> SpikingState:
        """Return what ``batch`` streams start from: all neurons at rest."""
        like = next(self.heads.parameters())
        return SpikingState((None,) * len(self.body), None, None, self.pool.initial_state(batch, like))

    def step(self, frames: Mapping[str, Any], state: SpikingState) -> tuple[dict[str, Tensor], SpikingState]:
        """Go on with a stream by one or more frames: equal to `forward` of the whole, piece by piece.

        Args:
            frames: a batch with the new frames, all of them real.
            state: what the step before returned, or `initial_state`.

        Returns:
            Outputs of the new frames, and of all frames so far; and the state after them.
        """
        video = frames["video"]
        real = torch.ones(video.shape[:2], dtype=torch.bool, device=video.device)
        return self._run(video, real, state)

    def _run(self, video: Tensor, real: Tensor, state: SpikingState) -> tuple[dict[str, Tensor], SpikingState]:
        x = torch.unflatten(self.stem(video.transpose(0, 1).flatten(0, 1)), 0, (video.shape[1], video.shape[0]))
        voltages = []
        for layer, before in zip(self.body, state.voltages, strict=True):
            x, voltage = layer(x, before)
            voltages.append(voltage)
        spikes, last = self.last(x, state.last)
        membranes, membrane = self.readout(spikes, state.membrane)
        features = membranes.transpose(0, 1)
        pooled, pool = self.pool.step(features, real, state.pool)
        return self.heads(features, pooled), SpikingState(tuple(voltages), last, membrane, pool)


def _analog_stage(source: int, target: int, depth: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for number in range(depth):
        conv = nn.Conv2d(source if number == 0 else target, target, 3, 2 if number == 0 else 1, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(target), nn.ReLU(inplace=True)]
    return layers


def spike_rates(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of neurons of each spiking layer that fire in a frame, over the real frames of a batch.

    A rate near 0 means a layer that says nothing: such a network looks frugal, and is no more than its biases.

    Args:
        model: a network with `LIF` layers; it stays in its mode.
        batch: ``video`` [B,T,C,H,W] and ``frame_real`` [B,T].

    Returns:
        Layer name → rate in [0, 1]; empty for a network without such layers.
    """
    real = batch["frame_real"].transpose(0, 1)  # [T,B]
    seen: dict[str, list[Tensor]] = {name: [] for name, layer in model.named_modules() if isinstance(layer, LIF)}

    def keep(name: str) -> Callable[..., None]:
        return lambda layer, inputs, output: seen[name].append(output[0].float().flatten(2).mean(2))

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in seen]
    try:
        with torch.no_grad():
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    # a recurrent layer is called once a frame, the others once a clip
    return {name: torch.cat(parts)[real].mean().item() for name, parts in seen.items()}
