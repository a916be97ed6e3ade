"""Promises of a data set. Those that read folders are asked what they can read; those that draw are tried whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medvid_core.config import ClipConfig
from medvid_core.data.clip import UNLABELLED, Case, Index, Sample
from medvid_core.data.loader import load_sample
from medvid_core.data.sampling import window
from medvid_core.specs import ClipSpec, DatasetSpec, resolve
from medvid_core.testing.subject import subject_of
from medvid_core.testing.worker import RunElsewhere

CASES_TRIED = 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try every check on each data set."""
    specs = [entry.spec for entry in subject_of(metafunc).of_kind("dataset")]
    metafunc.parametrize("spec", specs, ids=[spec.name for spec in specs])


def _index(spec: DatasetSpec) -> Index:
    if spec.can_read:
        pytest.skip("reads a folder")
    index: Index = resolve(spec.index)(None, resolve(spec.config)())
    return index


def _sample(case: Case) -> Sample:
    clip = ClipConfig(frames=3, size=(32, 32))
    return load_sample(case, *window(0, case.frames, clip), clip, ClipSpec())


def _same(left: Sample, right: Sample) -> list[str]:
    return [
        name
        for name, value in left.items()
        if isinstance(value, Tensor) and not torch.equal(value.nan_to_num(), right[name].nan_to_num())
    ]


def test_can_read_says_no_to_an_empty_folder(spec: DatasetSpec, tmp_path: Path) -> None:
    """A data set that reads folders does not take an empty one, nor one with a text file, for its own."""
    if not spec.can_read:
        pytest.skip("reads no folder")
    can_read = resolve(spec.can_read)
    assert can_read(tmp_path) is False, f"{spec.name} says it can read an empty folder"
    (tmp_path / "notes.txt").write_text("nothing to see", encoding="utf-8")
    assert can_read(tmp_path) is False, f"{spec.name} says it can read a folder with a text file"


def test_index_is_sound(spec: DatasetSpec) -> None:
    """Case ids are unique, every case has a group, a video and frames, and outputs are of the spec's tasks."""
    index = _index(spec)
    assert index.cases, f"{spec.name} has no case with its default configuration"
    ids = [case.case_id for case in index.cases]
    assert len(set(ids)) == len(ids), "case ids repeat"
    for case in index.cases:
        assert case.group_id, f"case {case.case_id!r} has no group_id"
        assert case.frames > 0, f"case {case.case_id!r} has {case.frames} frames"
        assert "video" in case.streams, f"case {case.case_id!r} has no video"
        outside = [frame for frame in case.labelled or () if not 0 <= frame < case.frames]
        assert not outside, f"case {case.case_id!r} says frame {outside} is labelled, of {case.frames}"
    assert index.outputs, "there is nothing to predict"
    strange = [output.task for output in index.outputs if output.task not in spec.tasks]
    assert not strange, f"outputs of {', '.join(strange)}, which the spec does not name"


def test_index_is_the_same_each_time(spec: DatasetSpec) -> None:
    """Indexing twice gives the same cases in the same order."""
    assert _index(spec) == _index(spec)


def test_sample_is_the_same_each_time(spec: DatasetSpec) -> None:
    """Samples load as the contract says, and reading one twice gives the same, to the bit."""
    index = _index(spec)
    for case in index.cases[:CASES_TRIED]:
        first = _sample(case)
        assert first["video"].shape == (3, 3, 32, 32)
        assert first["video"].isfinite().all()
        assert not _same(first, _sample(case)), f"case {case.case_id!r} differs when read twice"


def test_masks_hold_its_classes(spec: DatasetSpec) -> None:
    """Masks hold the classes of the output, and 255."""
    index = _index(spec)
    outputs = [output for output in index.outputs if output.task == "segmentation"]
    if not outputs:
        pytest.skip("no segmentation")
    allowed = {*range(max(2, len(outputs[0].classes))), UNLABELLED}
    for case in index.cases[:CASES_TRIED]:
        found = set(_sample(case)["mask"].unique().tolist())
        assert found <= allowed, f"case {case.case_id!r} has the classes {sorted(found - allowed)} besides"


def test_reaches_a_spawned_worker(spec: DatasetSpec, spawned: RunElsewhere) -> None:
    """A spawned loading process makes the same sample, to the bit."""
    case = _index(spec).cases[0]
    differing = _same(_sample(case), spawned(_sample, case))
    assert not differing, f"{', '.join(differing)} differ in a spawned process"
