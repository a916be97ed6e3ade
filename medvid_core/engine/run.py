"""The record of a run: its directory, what determined it, and what happened in it."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvid_core.data.clip import Index
from medvid_core.errors import DataError
from medvid_core.ops.backends import kernels_compiled
from medvid_core.plugins import Registry

LIBRARIES = (
    "torch",
    "torchvision",
    "accelerate",
    "monai",
    "numpy",
    "av",
    "safetensors",
    "omegaconf",
    "pluggy",
    "numba",
    "triton",
)


@dataclass
class Run:
    """A run directory and its record (``run.json``).

    Attributes:
        directory: where everything is written.
        record: what ``run.json`` holds.
        main: whether this process writes; the others only compute.
    """

    directory: Path
    record: dict[str, Any] = field(default_factory=dict)
    main: bool = True

    @property
    def checkpoints(self) -> Path:
        """Folder of the training checkpoints."""
        return self.directory / "checkpoints"

    def update(self, **values: Any) -> None:
        """Add to the record and write it, whole."""
        self.record.update(values)
        if self.main:
            write_json(self.directory / "run.json", self.record)

    def log(self, **values: Any) -> None:
        """Append one line to ``metrics.jsonl``."""
        if self.main:
            with open(self.directory / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(values)) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the result, and log lines later than ``step``: a resumed run writes them anew."""
        path = self.directory / "metrics.jsonl"
        if self.main and path.exists():
            lines = path.read_text("utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step and json.loads(line).get("kind") != "result"]
            write_text(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # the last line of a killed run may be cut short


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    """NaN as null, all the way down: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(_plain(data), indent=2, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one.

    Raises:
        DataError: the file is damaged.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}. Remove it to go on without it.") from error
    return data


def new_directory(out: Path | None, model: str, dataset: str) -> Path:
    """Return the run directory to use: ``out``, or ``runs/<model>-<data set>-<time>``.

    Raises:
        DataError: ``out`` already holds a run, or is a file.
    """
    if out is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        base = Path("runs") / f"{model}-{dataset}-{stamp}"
        out = next(path for i in range(1000) if not (path := Path(f"{base}-{i}" if i else base)).exists())
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; it must be a folder to make. Choose another --out.")
    if (out / "run.json").exists():
        raise DataError(f"{out} already holds a run. Choose another --out, or go on with it: --resume {out}.")
    return out


def now() -> str:
    """Return the local time with its offset, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def command() -> list[str]:
    """Return the words that started this process."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def environment(registry: Registry, device: torch.device, processes: int) -> dict[str, Any]:
    """Return versions, plugins and hardware for the record."""
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "plugins": registry.distributions,
        "plugin_problems": [str(problem) for problem in registry.problems],
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "device_type": device.type,
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": processes,
            "system": f"{platform.system()} {platform.release()}",
        },
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def peak_memory_mib(device: torch.device) -> float:
    """Return the largest memory held so far, in MiB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB here


def fingerprint(index: Index) -> str:
    """Return a hash of the cases: ids, groups, frames, all that is known of them, and the sizes of their files.

    Not of the places of the files, nor of what is in them.
    """
    digest = hashlib.sha256()
    for case in index.cases:
        digest.update(repr((case.case_id, case.group_id, case.frames, case.labelled)).encode())
        known = {"targets": case.targets, "frame_targets": case.frame_targets, "history": case.history}
        for kind, values in (*known.items(), ("times_s", {"": case.times_s} if case.times_s else {})):
            for name, value in sorted(values.items()):
                digest.update(repr((kind, name)).encode())
                digest.update(np.asarray(value, np.float64).tobytes())  # many frames: as text they would take seconds
        for name, source in sorted(case.streams.items()):
            sizes = [os.path.getsize(path) if path and os.path.exists(path) else 0 for path in source.paths]
            digest.update(repr((name, source.reader, sizes, repr(source.options))).encode())
    return digest.hexdigest()


@dataclass
class Clock:
    """Seconds since it was made, and a rate."""

    started: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """Return the seconds since the clock was made."""
        return time.perf_counter() - self.started


def header_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the lines shown as a run starts."""
    model, data, hardware = record["model"], record["dataset"], record["hardware"]
    parts = ", ".join(f"{count} {part}" for part, count in data["cases"].items())
    trained = "" if model.get("trainable", "all") == "all" else f": {model['trainable']}"
    return [
        f"model    {model['name']} {model['version']}, preset {record['preset']}, "
        f"{model['parameters'] / 1e6:.2f} M parameters ({model['trained_parameters'] / 1e6:.2f} M trained{trained})",
        f"data     {data['name']}{' at ' + data['root'] if data['root'] else ''}: {parts} cases",
        f"predicts {'; '.join(map(_predicted, data['outputs']))}",
        f"device   {hardware['device']} ({hardware['device_type']}), {hardware['processes']} process(es), "
        f"{hardware['threads']} threads, precision {'float32' if record['precision'] == 'no' else record['precision']}",
        *scan_lines(record["scan"]),
        *prepare_lines(record.get("preprocess")),
        f"output   {record['directory']}",
        *[f"note     {note}" for note in record["notes"]],
    ]


MOST_CLASSES = 8
"""So many classes of an output are named as a run starts."""


def _predicted(output: Mapping[str, Any]) -> str:
    """Return name, task and classes of an output; no class that only repeats the name."""
    classes = [str(label) for label in output["classes"]]
    more = f", … ({len(classes)} in all)" if len(classes) > MOST_CLASSES else ""
    named = "" if classes == [output["name"]] else f" of {', '.join(classes[:MOST_CLASSES])}{more}"
    return f"{output['name']}: {output['task']}{named}"


def scan_lines(scan: Mapping[str, str] | None) -> list[str]:
    """Return the lines that say how a model's scans are computed; none where it has none."""
    if scan is None:
        return []
    lines = [f"scan     {scan['backend']}: {scan['reason']}"]
    if scan["backend"] == "cpu" and not kernels_compiled():
        lines.append("note     first the scan's kernels are compiled for this processor, and kept: up to half a minute")
    return lines


def prepare_lines(record: Mapping[str, Any] | None, most: int | None = 5) -> list[str]:
    """Return the lines that say what was prepared, with so many remarks (None: all); none where nothing was."""
    if not record:
        return []
    lines = [
        f"prepare  {record['name']}: {', '.join(record['stages'])} of {record['cases']} case(s), "
        f"{record['from_cache']} from the cache, {record['computed']} computed in {record['seconds']:.1f} s"
        + (f", {record['left_out']} could not be prepared" if record["left_out"] else "")
    ]
    remarks = [f"note     {name}: {remark}" for name, found in record["remarks"].items() for remark in found]
    shown = remarks[:most]
    more = len(remarks) - len(shown)
    return [*lines, *shown, *([f"note     … and {more} more such remarks, see the record"] if more else [])]
