"""A synthetic run directory, and a tiny annotated clip."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medvid_core.data.clip import Case, Source
from medvid_core.engine.inference import FrameBlock

EVIL = "<script>alert('1')</script>\"/../x"


@pytest.fixture
def record():
    return {
        "status": "running",
        "preset": "small",
        "seed": 7,
        "precision": "no",
        "started": "2026-01-02T03:04:05+00:00",
        "command": ["medvid-run", "--model", "toy"],
        "model": {"name": "medvid-toy/toy", "version": "0.1", "parameters": 1_234_567, "trained_parameters": 1_234_567},
        "dataset": {
            "name": "clips",
            "root": "",
            "cases": {"train": 20, "val": 4, "test": 8},
            "classes": ["background", "lv", "wall"],
            "skipped": {"case-99": "the mask has value 7"},
            "fingerprint": "ab" * 32,
        },
        "metrics": {"dice": True, "mae": False},
        "origins": {"seed": "default"},
        "versions": {"python": "3.12"},
        "plugins": {"medvid-toy": "0.1"},
        "plugin_problems": [],
        "notes": ["left out case-99: the mask has value 7"],
        "hardware": {"device": "x86_64", "cpus": 2},
        "split": "test",
        "results": {"dice": 0.8, "dice/lv": 0.9, "dice/wall": 0.7, "mae": 0.05},
        "baselines": {"untrained": {"dice": 0.1}, "constant": {"dice": 0.5}},
        "best": {"step": 20, "value": 0.82},
        "peak_memory_mib": 812.5,
        "seconds": 93.2,
    }


def rows(count=8):
    values = np.linspace(0.65, 0.95, count)
    return [
        {
            "case_id": f"case-{i}",
            "group_id": f"patient-{i}",
            "frames": 12,
            "scored_frames": 12,
            "dice": v,
            "dice/lv": v + 0.03,
            "dice/wall": v - 0.03,
            "mae": 0.1 * (1 - v),
        }
        for i, v in enumerate(values)
    ]


def log():
    lines = []
    for step in range(1, 31):
        lines.append({"kind": "train", "step": step, "epoch": step // 10, "lr": 1e-3 / step, "loss": 1 / step})
        if step % 5 == 0:
            dice = {"dice": step / 40, "dice/lv": step / 40, "dice/wall": step / 40}
            lines.append({"kind": "evaluation", "split": "val", "step": step, **dice})
    return lines


class RunFiles:
    """A run directory that a test changes before the report is written."""

    def __init__(self, directory: Path, record: dict):
        self.directory, self.record, self.rows, self.log, self.overlays = directory, record, rows(), log(), []

    def write(self):
        (self.directory / "run.json").write_text(json.dumps(self.record))
        (self.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.log))
        (self.directory / "config.yaml").write_text("preset: small\nclip:\n  frames: 4\n")
        (self.directory / "splits.json").write_text(json.dumps({"train": ["a"], "val": [], "test": ["b"]}))
        if self.rows:
            with open(self.directory / "cases.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, list(self.rows[0]))
                writer.writeheader()
                writer.writerows(self.rows)
        if self.overlays:
            (self.directory / "overlays").mkdir(exist_ok=True)
            (self.directory / "overlays" / "index.json").write_text(json.dumps(self.overlays))
        return self.directory


@pytest.fixture
def run_files(tmp_path, record):
    return RunFiles(tmp_path, record)


def read_video(source, frames):
    return np.stack([np.full((30, 41), 8 * frame % 256, np.uint8) for frame in frames])


def read_mask(source, frames):
    masks = np.zeros((len(frames), 30, 41), np.uint8)
    masks[:, 5:20, 5:25] = 1
    masks[:, 20:25, 5:25] = 2
    return masks


def make_case(case_id="clip", frames=9, labelled=None, fps=20.0):
    here = f"{__name__}:"
    streams = {"video": Source(reader=here + "read_video"), "mask": Source(reader=here + "read_mask", values=(0, 1, 2))}
    return Case(case_id=case_id, group_id=case_id, frames=frames, fps=fps, labelled=labelled, streams=streams)


def make_blocks(case, classes=3):
    """What a perfect model at half the size would give, four frames at a time."""
    truth = torch.from_numpy(read_mask(None, range(case.frames))).long()[:, ::2, ::2]
    if classes == 1:
        maps = (truth == 1).float()[:, None]
    else:
        maps = torch.nn.functional.one_hot(truth, classes).permute(0, 3, 1, 2).float()
    height, width = maps.shape[-2:]
    sy, sx = height / 30, width / 41
    affine = torch.tensor([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])
    for start in range(0, case.frames, 4):
        numbers = list(range(start, min(start + 4, case.frames)))
        yield FrameBlock(numbers, maps[numbers], affine, (30, 41))
