"""What is shown as a run starts."""

import dataclasses
import math

import pytest

from medvid_core import OutputSpec
from medvid_core.data.clip import Case, Index, Source
from medvid_core.engine.run import fingerprint, header_lines


def record(*outputs, root="") -> dict:
    return {
        "model": {"name": "toy/net", "version": "1.0", "parameters": 2_500_000, "trained_parameters": 500_000},
        "preset": "full",
        "dataset": {
            "name": "clips",
            "root": root,
            "cases": {"train": 4, "val": 1, "test": 2},
            "outputs": [dataclasses.asdict(output) for output in outputs],
        },
        "hardware": {"device": "x86_64", "device_type": "cpu", "processes": 1, "threads": 2},
        "precision": "no",
        "scan": None,
        "directory": "runs/a",
        "notes": ["mind the gap"],
    }


def predicts(*outputs) -> str:
    return next(line for line in header_lines(record(*outputs)) if line.startswith("predicts "))


def test_the_header():
    assert header_lines(record(OutputSpec(name="mask", task="segmentation", classes=("lv",)), root="/data")) == [
        "model    toy/net 1.0, preset full, 2.50 M parameters (0.50 M trained)",
        "data     clips at /data: 4 train, 1 val, 2 test cases",
        "predicts mask: segmentation of lv",
        "device   x86_64 (cpu), 1 process(es), 2 threads, precision float32",
        "output   runs/a",
        "note     mind the gap",
    ]


def test_every_output_is_shown_with_task_and_classes():
    """A class that only repeats the name is left out; of many, the first are named."""
    view = OutputSpec(name="view", task="classification", classes=("a2c", "a4c"))
    fraction = OutputSpec(name="ef", task="regression", classes=("ef",), center=(55.0,), scale=(10.0,))
    volumes = OutputSpec(name="volumes", task="regression", classes=("edv", "esv"))
    assert predicts(view, fraction, volumes) == (
        "predicts view: classification of a2c, a4c; ef: regression; volumes: regression of edv, esv"
    )
    many = OutputSpec(name="act", task="classification", classes=tuple("abcdefghij"))
    assert predicts(many) == "predicts act: classification of a, b, c, d, e, f, g, h, … (10 in all)"


CASE = Case(
    case_id="a",
    group_id="p",
    frames=3,
    streams={"video": Source(reader="video", paths=("a.avi",))},
    targets={"view": 1, "volumes": (120.0, math.nan)},
    frame_targets={"phase": (0.0, 1.0, math.nan)},
    times_s=(0.0, 0.1, 0.2),
    history={"ef": ((0.0, 60.0), (5.0, 55.0))},
)


def of_one(**changes) -> str:
    return fingerprint(Index(cases=(dataclasses.replace(CASE, **changes),), outputs=()))


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": {"view": 0, "volumes": (120.0, math.nan)}},
        {"targets": {"view": 1, "volumes": (120.0, 55.0)}},
        {"targets": {"other": 1, "volumes": (120.0, math.nan)}},
        {"targets": {}},
        {"frame_targets": {"phase": (0.0, 1.0, 1.0)}},
        {"frame_targets": {"stall": (0.0, 1.0, math.nan)}},
        {"times_s": (0.0, 0.1, 0.3)},
        {"times_s": ()},
        {"history": {"ef": ((0.0, 60.0), (5.0, 56.0))}},
        {"history": {"ef": ((0.0, 60.0), (6.0, 55.0))}},
    ],
)
def test_the_fingerprint_is_of_what_is_known_too(changes):
    """Other labels of the same files are other data."""
    assert of_one(**changes) != of_one()


def test_the_fingerprint_knows_no_place_and_no_order():
    """Neither where files lie nor in which order labels were put down."""
    moved = {"video": Source(reader="video", paths=("elsewhere/a.avi",))}
    turned = {"volumes": (120.0, math.nan), "view": 1}
    assert of_one(streams=moved) == of_one(targets=turned) == of_one()
