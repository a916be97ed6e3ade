"""Measured energy: a counter of the machine itself, or none; never a model's number.

Two counters are known. **NVML** counts what one NVIDIA card has used since its driver was loaded (Volta or newer), in
millijoules; where it counts nothing, the power it tells is summed over time. **RAPL** counts what the processor's
packages have used, in microjoules, where the kernel lets us read it. Both see the whole device, whoever uses it:
nothing else may run beside a measurement. What it uses while idle is measured first, and the figure is given with and
without.

A reading comes with its source, and an absent one with its reason.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medvid_core.errors import DataError

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows RAPL (kernel documentation, power/powercap)."""

POWER_EVERY_S = 0.05
"""Seconds between readings of power: NVML renews its figure every 20 to 100 ms."""

DISAGREEMENT = 0.25
"""Share by which counter and summed power may differ before the reader is told."""

Window = Callable[[], float]
"""Ends a window; returns the joules used in it."""


@dataclass(frozen=True)
class Meter:
    """What tells energy on this machine.

    Attributes:
        source: what is read, in words; empty where nothing is.
        absence: why nothing can be read; empty where something is.
        begin: starts a window.
        check: starts a window of another way to tell the same, to compare with.
    """

    source: str = ""
    absence: str = ""
    begin: Callable[[], Window] | None = None
    check: Callable[[], Window] | None = None


@dataclass(frozen=True)
class Energy:
    """The energy of one call; None for what was not measured.

    Attributes:
        joules_per_call: of the whole device, idle or not.
        joules_per_call_minus_idle: above what the device used while idle for as long.
        source: where the figures come from, or ``n/a on this machine: <reason>``.
        window_s: seconds over which was measured.
        calls: calls in the window.
        idle_w: mean power while idle, in watts.
        note: what a reader should know besides.
    """

    joules_per_call: float | None
    joules_per_call_minus_idle: float | None
    source: str
    window_s: float = 0.0
    calls: int = 0
    idle_w: float | None = None
    note: str = ""


def unavailable(reason: str) -> Energy:
    """Return the reading of a machine that tells nothing."""
    return Energy(None, None, f"n/a on this machine: {reason}")


def probe(device: torch.device, powercap: Path = POWERCAP, nvml: Any = None) -> Meter:
    """Return the meter of a device; one without a source says why in ``absence``.

    Args:
        device: what computes. An NVIDIA card is asked through NVML, a CPU through RAPL.
        powercap: the folder of the RAPL counters.
        nvml: the module ``pynvml``, or one like it; None to import it.
    """
    if device.type == "cuda":
        return _nvml_meter(device, nvml)
    if device.type == "cpu":
        return _rapl_meter(powercap)
    return Meter(absence=f"no counter is known for devices of type {device.type!r}")


def measure(
    run: Callable[[], Any],
    meter: Meter,
    seconds: float = 10.0,
    idle_seconds: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Measure the energy of a call, repeated for a while.

    Counters are renewed only now and then, so that single calls cannot be told apart.

    Args:
        run: the call; returns when the device has finished.
        meter: what to read.
        seconds: for how long to repeat it, at least.
        idle_seconds: for how long to measure the idle device before.
        clock: tells seconds.
        sleep: waits.
    """
    if meter.begin is None:
        return unavailable(meter.absence)
    try:
        idle_w = _idle_power(meter.begin, idle_seconds, clock, sleep)
        calls, started = 0, clock()
        windows = [begin() for begin in (meter.begin, meter.check) if begin is not None]
        try:
            while calls == 0 or clock() - started < seconds:
                run()
                calls += 1
        finally:
            window = clock() - started
            joules, *checked = [end() for end in windows]
    except (OSError, DataError) as error:
        return unavailable(f"{meter.source}: {error}")
    if joules <= 0:
        return unavailable(f"{meter.source}: it did not move in {window:.1f} s")
    return Energy(
        joules_per_call=joules / calls,
        joules_per_call_minus_idle=(joules - idle_w * window) / calls,
        source=meter.source,
        window_s=window,
        calls=calls,
        idle_w=idle_w,
        note=_disagreement(joules, *checked),
    )


def _idle_power(
    begin: Callable[[], Window], seconds: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> float:
    """Return the mean power while nothing is computed, in watts."""
    started, end = clock(), begin()
    sleep(seconds)
    joules, passed = end(), clock() - started
    return joules / passed if passed > 0 else 0.0


def _disagreement(counted: float, summed: float | None = None) -> str:
    if summed is None or abs(summed - counted) <= DISAGREEMENT * counted:
        return ""
    return f"the power of the card summed over the same time gives {summed / counted:.2f} times this energy"


# RAPL


@dataclass(frozen=True)
class _Package:
    """One RAPL zone: its counter, and the value in microjoules after which it starts again from 0."""

    name: str
    counter: Path
    wrap: int

    def read(self) -> int:
        try:
            return int(self.counter.read_text("ascii"))
        except ValueError as error:
            raise DataError(f"{self.counter} holds no number.") from error


def _rapl_meter(root: Path) -> Meter:
    try:
        packages = list(_packages(root))
    except PermissionError as error:
        return Meter(absence=f"the RAPL counter {error.filename} may be read by root only")
    except (OSError, ValueError, DataError) as error:
        return Meter(absence=f"the RAPL counters in {root} cannot be read: {error}")
    if not packages:
        return Meter(absence=f"the processor shows no RAPL counter (no intel-rapl:* in {root})")

    def begin() -> Window:
        before = [package.read() for package in packages]

        def end() -> float:
            # the counter starts anew at its range; in a window of seconds at most once, since the range lasts minutes
            used = [package.read() - start for package, start in zip(packages, before, strict=True)]
            pairs = zip(packages, used, strict=True)
            return sum(count + package.wrap if count < 0 else count for package, count in pairs) / 1e6

        return end

    names = ", ".join(package.name for package in packages)
    return Meter(source=f"RAPL counter of the whole processor ({names}; memory not included)", begin=begin)


def _packages(root: Path) -> Iterator[_Package]:
    """Yield the zones that are whole packages: not their parts (``intel-rapl:0:0``), not ``psys``, which holds them."""
    for zone in sorted(root.glob("intel-rapl:*")):
        if zone.name.count(":") != 1:
            continue
        name = (zone / "name").read_text("utf-8").strip()
        if name.startswith("package"):
            package = _Package(name, zone / "energy_uj", int((zone / "max_energy_range_uj").read_text("ascii")))
            package.read()  # now, to be refused now
            yield package


# NVML


class _Card:
    """One NVIDIA card as NVML knows it.

    Args:
        nvml: the module ``pynvml``.
        device: PyTorch's name of the card. NVML is asked by the card's id, for their numbers need not agree.
    """

    def __init__(self, nvml: Any, device: torch.device) -> None:
        self._nvml = nvml
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        self._handle = self._ask(lambda: nvml.nvmlDeviceGetHandleByUUID(uuid))

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._nvml.NVMLError as error:
            raise DataError(f"NVML says: {error}") from error

    def joules(self) -> float:
        """Return the energy used since the driver was loaded."""
        return float(self._ask(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))) / 1e3

    def watts(self) -> float:
        """Return the power drawn now, or over the last moments."""
        return float(self._ask(lambda: self._nvml.nvmlDeviceGetPowerUsage(self._handle))) / 1e3

    def divided(self) -> bool:
        """Whether the card is divided into parts (MIG)."""
        try:
            return bool(self._ask(lambda: self._nvml.nvmlDeviceGetMigMode(self._handle))[0])
        except DataError:
            return False  # a card that knows nothing of it

    def count(self) -> Window:
        """Start a window of the energy counter."""
        before = self.joules()
        return lambda: self.joules() - before

    def sum_power(self) -> Window:
        """Start a window of summed power."""
        return PowerSum(self.watts).end


class PowerSum:
    """Power summed over time by the trapezoidal rule, read in a thread of its own.

    Args:
        watts: tells the power.
        every_s: seconds between readings.
        clock: tells seconds.
    """

    def __init__(
        self,
        watts: Callable[[], float],
        every_s: float = POWER_EVERY_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._watts, self._every_s, self._clock = watts, every_s, clock
        self._joules = 0.0
        self._last = (clock(), watts())
        self._failure: DataError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._add()
            except DataError as error:
                self._failure = error
                return

    def _add(self) -> None:
        now, watts = self._clock(), self._watts()
        self._joules += (now - self._last[0]) * (watts + self._last[1]) / 2
        self._last = now, watts

    def end(self) -> float:
        """Stop, and return the joules.

        Raises:
            DataError: a reading failed.
        """
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        self._add()
        return self._joules


def _nvml_meter(device: torch.device, nvml: Any) -> Meter:
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return Meter(absence="the package that reads NVML's counter is not installed (pip install nvidia-ml-py)")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Meter(absence=f"NVML does not start: {error}")
    try:
        card = _Card(nvml, device)
    except DataError as error:
        return Meter(absence=str(error))
    if card.divided():
        return Meter(absence="the card is divided (MIG), and its parts have no energy counter of their own")
    no_counter, no_power = _failure(card.joules), _failure(card.watts)
    if not no_counter:
        check = None if no_power else card.sum_power
        return Meter(source="NVML energy counter of the whole card", begin=card.count, check=check)
    if not no_power:
        source = f"NVML power of the whole card, summed over time (its energy counter: {no_counter})"
        return Meter(source=source, begin=card.sum_power)
    return Meter(absence=no_counter)


def _failure(read: Callable[[], float]) -> str:
    """Return why a reading fails; empty if it does not."""
    try:
        read()
    except DataError as error:
        return str(error)
    return ""
