"""What tests across the tree share: small data, and one trained tiny run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY = (
    "preset=tiny",
    "dataset.cases=7",
    "dataset.frames=6",
    "dataset.size=[48,48]",
    "train.max_steps=4",
    "evaluate.overlays=1",
)
"""Settings under which training takes seconds."""


@pytest.fixture(scope="session")
def medvid() -> Callable[..., None]:
    """Run the command in this process; a failure is `SystemExit`."""
    from medvid_core.cli.main import main

    return lambda *words: main([str(word) for word in words])


@pytest.fixture
def refused(medvid, capsys) -> Callable[..., str]:
    """Run a command that must fail: exit code 2, nothing on stderr but one message, which is returned."""

    def run(*words) -> str:
        with pytest.raises(SystemExit) as exit_info:
            medvid(*words)
        text = capsys.readouterr().err
        assert exit_info.value.code == 2, text
        assert "Traceback" not in text
        head, separator, message = text.partition("medvid-run: error: ")
        assert separator, head
        return message.strip()

    return run


@pytest.fixture(scope="session")
def tiny_run(medvid, tmp_path_factory) -> Path:
    """The directory of one finished training run of the baseline."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    medvid("--model", "unet", *TINY, "--out", out)
    return out


@pytest.fixture
def vtus(tmp_path) -> Callable[..., Path]:
    """Make a folder in the VTUS layout: three training cases and one test case of five 40x36 frames."""

    def make(cases=(("Train", "a"), ("Train", "b"), ("Train", "c"), ("Test", "d")), frames=5) -> Path:
        root = tmp_path / "vtus"
        rng = np.random.default_rng(0)
        for part, name in cases:
            for kind in (part, f"{part}_GT"):
                (root / kind / name).mkdir(parents=True)
            for t in range(frames):
                mask = np.zeros((36, 40), np.uint8)
                mask[8 + t : 24 + t, 10:28] = 255
                image = (rng.integers(0, 60, (36, 40)) + 0.6 * mask).astype(np.uint8)
                Image.fromarray(image).save(root / part / name / f"{t:03d}.jpg")
                Image.fromarray(mask).save(root / f"{part}_GT" / name / f"{t:03d}.png")
        return root

    return make


@pytest.fixture(scope="session")
def command() -> tuple[str, ...]:
    """The words that start the command in a process of its own."""
    return (sys.executable, "-m", "medvid_core")
