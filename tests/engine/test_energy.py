"""Energy is read from a counter, with its source, or it is absent, with the reason."""

import types

import pytest
import torch

from medvid_core.engine.energy import PowerSum, measure, probe
from medvid_core.errors import DataError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RANGE = 1_000_000  # microjoules


class Machine:
    """A processor that draws 5 W idle and 30 W at work, with RAPL counters and a clock of its own."""

    def __init__(self, root, packages=("package-0",), start=0):
        self.root, self.now, self.energy = root, 0.0, [start] * len(packages)
        for number, name in enumerate(packages):
            self.zone(f"intel-rapl:{number}", name)
            self.zone(f"intel-rapl:{number}:0", "core")  # a part of the package: not to be added to it
        self.zone("intel-rapl:9", "psys")
        self.write()

    def zone(self, folder, name):
        (self.root / folder).mkdir(parents=True)
        (self.root / folder / "name").write_text(f"{name}\n")
        (self.root / folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
        (self.root / folder / "energy_uj").write_text("77\n")

    def write(self):
        for number, energy in enumerate(self.energy):
            (self.root / f"intel-rapl:{number}" / "energy_uj").write_text(f"{round(energy) % RANGE}\n")

    def pass_time(self, seconds, watts=5.0):
        self.now += seconds
        self.energy = [energy + watts * seconds * 1e6 for energy in self.energy]
        self.write()

    def measure(self, seconds=0.03, call_s=0.001, idle_seconds=0.02):
        meter = probe(CPU, self.root)
        return measure(
            lambda: self.pass_time(call_s, watts=30.0),
            meter,
            seconds,
            idle_seconds,
            clock=lambda: self.now,
            sleep=self.pass_time,
        )


@pytest.mark.parametrize("packages", [("package-0",), ("package-0", "package-1")])
def test_rapl_gives_the_joules_of_a_call_and_those_above_idle(tmp_path, packages):
    """Each package draws 30 W: 30 mJ in a millisecond, 25 of them above idle. Parts and psys are not added."""
    energy = Machine(tmp_path, packages).measure()
    assert energy.joules_per_call == pytest.approx(0.030 * len(packages))
    assert energy.joules_per_call_minus_idle == pytest.approx(0.025 * len(packages))
    assert energy.idle_w == pytest.approx(5.0 * len(packages))
    assert energy.window_s == pytest.approx(0.001 * energy.calls)
    assert energy.calls in (30, 31)  # seconds are a floor
    assert energy.source == f"RAPL counter of the whole processor ({', '.join(packages)}; memory not included)"


@pytest.mark.parametrize("start", [RANGE - 50_000, RANGE - 400_000])
def test_rapl_counter_may_start_anew(tmp_path, start):
    """Once while idle, once at work: the same figures as without."""
    energy = Machine(tmp_path, start=start).measure()
    assert energy.joules_per_call == pytest.approx(0.030)
    assert energy.joules_per_call_minus_idle == pytest.approx(0.025)


def test_a_machine_without_rapl_says_so(tmp_path):
    energy = measure(lambda: None, probe(CPU, tmp_path))
    assert energy.joules_per_call is None
    assert energy.joules_per_call_minus_idle is None
    assert energy.source == (
        f"n/a on this machine: the processor shows no RAPL counter (no intel-rapl:* in {tmp_path})"
    )


def test_rapl_without_permission_says_so(tmp_path, monkeypatch):
    """Readable by root only since 2020; tests may run as root, so the refusal is acted."""
    Machine(tmp_path)
    counter = tmp_path / "intel-rapl:0" / "energy_uj"

    def refuse(path, *args, **kwargs):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return open_text(path, *args, **kwargs)

    open_text = type(counter).read_text
    monkeypatch.setattr(type(counter), "read_text", refuse)
    assert probe(CPU, tmp_path).absence == f"the RAPL counter {counter} may be read by root only"


def test_a_counter_that_is_no_number_is_no_source(tmp_path):
    Machine(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("none\n")
    assert "holds no number" in probe(CPU, tmp_path).absence


def test_a_counter_that_stands_still_gives_no_figure(tmp_path):
    """Zero joules would look like a very good model."""
    machine = Machine(tmp_path)
    meter = probe(CPU, tmp_path)

    def run():
        machine.now += 0.01

    energy = measure(run, meter, 0.02, 0.0, clock=lambda: machine.now, sleep=lambda _: None)
    assert energy.joules_per_call is None
    assert "did not move in 0.0 s" in energy.source


class Refusal(Exception):
    """pynvml's NVMLError."""


def nvml(monkeypatch, counter=True, power=True, mig=0, starts=True):
    """A card that draws 200 W; each reading of its counter is a second later."""
    state = {"seconds": 0}

    def count(_):
        if not counter:
            raise Refusal("Not Supported")
        state["seconds"] += 1
        return 200_000 * state["seconds"]  # mJ

    def draw(_):
        if not power:
            raise Refusal("Not Supported")
        return 200_000  # mW

    def start():
        if not starts:
            raise Refusal("Driver Not Loaded")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="abc"))
    return types.SimpleNamespace(
        NVMLError=Refusal,
        nvmlInit=start,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-abc": "card"}[uuid],
        nvmlDeviceGetMigMode=lambda card: (mig, mig),
        nvmlDeviceGetTotalEnergyConsumption=count,
        nvmlDeviceGetPowerUsage=draw,
    )


def test_nvml_counter_is_in_millijoules(monkeypatch):
    """Two seconds by the counter's clock, one idle and one at work; the power of some milliseconds disagrees."""
    meter = probe(CUDA, nvml=nvml(monkeypatch))
    assert meter.source == "NVML energy counter of the whole card"
    energy = measure(lambda: None, meter, seconds=0, idle_seconds=0)
    assert energy.calls == 1
    assert energy.joules_per_call == pytest.approx(200.0)
    assert "summed over the same time gives 0.00 times this energy" in energy.note


def test_nvml_without_a_counter_sums_power(monkeypatch):
    """Constant power: joules are watts times the window, and none are left above idle."""
    meter = probe(CUDA, nvml=nvml(monkeypatch, counter=False))
    assert meter.source.startswith("NVML power of the whole card, summed over time")
    assert "Not Supported" in meter.source
    energy = measure(lambda: None, meter, seconds=0.01, idle_seconds=0.01)
    assert energy.joules_per_call > 0
    assert energy.source == meter.source
    assert energy.note == ""


def test_power_is_summed_by_the_trapezoidal_rule():
    """Power that rises by 2 W a second from 10 W: 10 t + t² joules, however often the thread has read."""
    now = iter(range(100_000))
    seen = []

    def clock():
        seen.append(next(now))
        return seen[-1]

    window = PowerSum(lambda: 10.0 + 2 * seen[-1], every_s=0.001, clock=clock)
    joules, passed = window.end(), seen[-1]
    assert joules == pytest.approx(10 * passed + passed**2)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"counter": False, "power": False}, "NVML says: Not Supported"),
        ({"mig": 1}, "the card is divided (MIG), and its parts have no energy counter of their own"),
        ({"starts": False}, "NVML does not start: Driver Not Loaded"),
    ],
)
def test_nvml_that_tells_nothing_says_why(monkeypatch, how, reason):
    assert probe(CUDA, nvml=nvml(monkeypatch, **how)).absence == reason


def test_nvml_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in probe(CUDA).absence


def test_devices_of_other_kinds_have_no_meter():
    assert probe(torch.device("mps")).absence == "no counter is known for devices of type 'mps'"


def test_a_reading_that_fails_midway_leaves_no_figure():
    """The thread that reads power ends, and what it met is said."""
    readings = iter([100.0, 100.0])

    def watts():
        try:
            return next(readings)
        except StopIteration:
            raise DataError("NVML says: GPU is lost") from None

    window = PowerSum(watts, every_s=0.001)
    window._thread.join(5)
    with pytest.raises(DataError, match="GPU is lost"):
        window.end()
