"""What a network computes: multiplications with addition, and, where its layers see spikes, additions alone.

A layer sees spikes where every value of its input is 0 or 1: its products are then sums of weights, one addition for
each spike and each output it reaches (a synaptic operation). This is read off real input, layer by layer, so it holds
for any network: an average of spikes, a normalisation or a residual sum in front of a layer makes it one of
multiplications again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from medvid_core.ops import ScanMixer
from medvid_core.ops.scan_op import scan_flops

MAC_J = 4.6e-12
"""Joules of a multiplication with addition: 3.7 + 0.9 pJ, 45 nm, 32-bit float (Horowitz, ISSCC 2014)."""

AC_J = 0.9e-12
"""Joules of an addition, likewise."""

ENERGY_CAVEAT = (
    "Estimated, not measured: 4.6 pJ for each multiplication with addition and 0.9 pJ for each addition caused by a "
    "spike (45 nm, 32-bit float; Horowitz, ISSCC 2014). Memory traffic, control, updates of membranes, normalisations "
    "and activations are left out, and memory alone may cost more than all that is counted. With data movement "
    "included, a spiking network of 5 to 10 steps needs spike rates below about 6 % to beat an equally able quantised "
    "network (Yan et al., arXiv 2409.08290). On CPUs and GPUs spikes save nothing."
)


@dataclass(frozen=True)
class Operations:
    """Operations of one forward pass over a whole batch.

    Attributes:
        macs: multiplications with addition, of all layers that do not see spikes, attention and selective scans.
        acs: additions caused by spikes.
        spike_rates: layer that sees spikes → share of its inputs that are 1. A layer that sees nothing but zeros is in
            here with 0, but counted in ``macs``: a network that never fires shall not look frugal.
        executed: floating-point operations that ordinary hardware carries out, two for a multiplication with addition:
            there a product with a spike, or with none, costs what every product costs.
    """

    macs: int
    acs: int
    spike_rates: Mapping[str, float]
    executed: int = field(default=0, compare=False)

    @property
    def flops(self) -> int:
        """Floating-point operations: two for a multiplication with addition, one for an addition."""
        return 2 * self.macs + self.acs


def estimated_energy_j(operations: Operations) -> float:
    """Return the joules that an operation count stands for; `ENERGY_CAVEAT` belongs beside every such number."""
    return MAC_J * operations.macs + AC_J * operations.acs


def operations(model: nn.Module, batch: Mapping[str, Any]) -> Operations:
    """Count the operations of one forward pass, in evaluation mode.

    Counted: convolutions, matrix products, attention, recurrent layers, and selective scans (9 floating-point
    operations for each element of u and state). Not counted: what is done element by element, as activations,
    normalisations, pooling and membrane updates.

    Args:
        model: any network; its mode is left as it was.
        batch: what it takes, on its device. Divide by the number of clips for the operations of one.
    """
    modes = {module: module.training for module in model.modules()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)  # the counter asks for the gradient of whatever seems to have one
    try:
        return _count(model, batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_()


def _count(model: nn.Module, batch: Mapping[str, Any]) -> Operations:
    counter = FlopCounterMode(display=False)
    layers: dict[str, _Layer] = {}
    invisible: list[_Invisible] = []
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                layers[name] = _Layer(counter, module)
                stack.enter_context(layers[name].watching())
            elif isinstance(module, nn.RNNBase | ScanMixer):
                invisible.append((_Recurrent if isinstance(module, nn.RNNBase) else _Scan)(counter, module))
                stack.enter_context(invisible[-1].watching())
        stack.enter_context(_countable_attention())
        stack.enter_context(torch.no_grad())
        with counter:
            model(batch)
    spiking = [layer for layer in layers.values() if layer.rate]
    executed = counter.get_total_flops() + sum(x.missing for x in invisible)
    flops = executed - sum(layer.flops for layer in spiking)
    rates = {name: layer.rate for name, layer in layers.items() if layer.rate is not None}
    return Operations(flops // 2, sum(layer.accumulations() for layer in spiking), rates, executed)


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Have attention computed by matrix products: PyTorch's fused encoder layers count as nothing."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Watch:
    """Sees what a module takes in, and what is counted while it runs."""

    def __init__(self, counter: FlopCounterMode, module: nn.Module) -> None:
        self.counter = counter
        self.module = module
        self.before = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look on."""
        hooks = [
            self.module.register_forward_pre_hook(self._enter),
            self.module.register_forward_hook(self._leave, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def counted(self) -> int:
        """Return the floating-point operations counted so far that are this watch's concern."""
        return self.counter.get_total_flops()

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.before = self.counted()

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], options: Mapping[str, Any], output: Any) -> None:
        x = inputs[0] if inputs else next(iter(options.values()))
        self.note(x.data if isinstance(x, PackedSequence) else x, self.counted() - self.before)

    def note(self, x: Tensor, flops: int) -> None:
        """Take down one call with input x, in which ``flops`` were counted."""
        raise NotImplementedError


class _Layer(_Watch):
    """A layer with weights: were all its inputs 0 or 1, and which?"""

    flops = 0
    analog = False

    def __init__(self, counter: FlopCounterMode, module: nn.Module) -> None:
        super().__init__(counter, module)
        self.spikes: list[Tensor] = []

    def note(self, x: Tensor, flops: int) -> None:
        """Keep the input while it may be spikes."""
        self.flops += flops
        self.analog = self.analog or not bool(((x == 0) | (x == 1)).all())
        self.spikes = [] if self.analog else [*self.spikes, x.bool()]

    @property
    def rate(self) -> float | None:
        """Share of inputs that are 1; None for a layer that sees other values, or was not called."""
        if not self.spikes:
            return None
        return sum(int(x.sum()) for x in self.spikes) / sum(x.numel() for x in self.spikes)

    def accumulations(self) -> int:
        """Return the additions of weights: what the layer gives where every weight is 1, summed."""
        dtype = self.module.get_parameter("weight").dtype
        ones = {name: torch.full_like(x, float(name == "weight")) for name, x in self.module.named_parameters()}
        with torch.no_grad():
            counts = (functional_call(self.module, ones, (x.to(dtype),)) for x in self.spikes)
            return sum(int(count.sum(dtype=torch.float64)) for count in counts)


class _Invisible(_Watch):
    """A module whose operations the counter misses, wholly or on some devices; ``missing`` makes up for it."""

    missing = 0


class _Scan(_Invisible):
    """A Mamba mixer: some backends are plain tensor operations, which count as nothing."""

    def counted(self) -> int:
        """Return the operations of scans."""
        counts = self.counter.get_flop_counts().get("Global", {})
        return sum(flops for operator, flops in counts.items() if str(operator).endswith("_scan"))

    def note(self, x: Tensor, flops: int) -> None:
        """Add the formula's operations where none were counted."""
        mixer = cast(ScanMixer, self.module)
        if flops == 0:
            elements = x.numel() // x.shape[-1] * mixer.d_inner * len(mixer.branches)
            self.missing += scan_flops((elements,), mixer.d_state)


class _Recurrent(_Invisible):
    """A recurrent layer: whether the counter sees it depends on the device, so the formula replaces what it saw."""

    def note(self, x: Tensor, flops: int) -> None:
        """Every step multiplies by every weight once."""
        rnn = cast(nn.RNNBase, self.module)
        weights = sum(p.numel() for name, p in rnn.named_parameters() if name.startswith("weight"))
        self.missing += 2 * x.numel() // rnn.input_size * weights - flops
