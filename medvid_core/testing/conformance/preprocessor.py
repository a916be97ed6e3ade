"""Promises of a preprocessor, tried on the clips of `medvid_core.testing.samples`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medvid_core.config import build_section
from medvid_core.data.cache import Cache
from medvid_core.data.clip import Case, Sample
from medvid_core.data.preprocess import plan_steps
from medvid_core.data.readers import read_images, read_stream
from medvid_core.data.stages import Prepared, all_ready, prepare_case
from medvid_core.plugins import Registry
from medvid_core.specs import PreprocessorSpec, resolve
from medvid_core.testing.samples import make_sample, make_walk
from medvid_core.testing.subject import outputs_of, subject_of
from medvid_core.testing.worker import RunElsewhere


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try every check on each preprocessor."""
    subject = subject_of(metafunc)
    kind = "stages" if "walk" in metafunc.fixturenames else "run"
    specs = [entry.spec for entry in subject.of_kind("preprocessor") if getattr(entry.spec, kind)]
    metafunc.parametrize(("registry", "spec"), [(subject.registry, s) for s in specs], ids=[s.name for s in specs])


def _sample(registry: Registry, spec: PreprocessorSpec, frames: int) -> Sample:
    steps = plan_steps(registry, spec.requires)
    return make_sample(0, outputs_of("segmentation")[0], frames, (32, 40), steps=steps)


def _run(spec: PreprocessorSpec, sample: Sample) -> Sample:
    derived: Sample = resolve(spec.run)(dict(sample), resolve(spec.config)())
    return derived


@pytest.mark.parametrize("frames", [1, 4])
def test_gives_what_it_promises(registry: Registry, spec: PreprocessorSpec, frames: int) -> None:
    """Every stream it provides is there, a finite tensor, for a single frame too."""
    derived = _run(spec, _sample(registry, spec, frames))
    assert isinstance(derived, dict), f"{spec.name} returned a {type(derived).__name__}, expected the sample"
    for stream in spec.provides:
        assert stream in derived, f"{spec.name} promises the stream {stream!r} and gives {sorted(derived)}"
        value: Any = derived[stream]
        assert isinstance(value, Tensor), f"the stream {stream!r} is a {type(value).__name__}, not a tensor"
        assert value.isfinite().all(), f"the stream {stream!r} is not finite"


def test_leaves_the_rest_alone(registry: Registry, spec: PreprocessorSpec) -> None:
    """Streams it does not provide stay as they were."""
    sample = _sample(registry, spec, 4)
    before = {name: value.clone() for name, value in sample.items() if isinstance(value, Tensor)}
    derived = _run(spec, sample)
    for name, value in before.items():
        if name not in spec.provides:
            assert name in derived, f"{spec.name} drops {name!r}"
            assert torch.equal(derived[name].nan_to_num(), value.nan_to_num()), f"{spec.name} changes {name!r}"


def test_cached_means_deterministic(registry: Registry, spec: PreprocessorSpec) -> None:
    """One that may be cached gives the same each time, to the bit."""
    if not spec.cached:
        pytest.skip("not cached: drawn anew for every sample")
    sample = _sample(registry, spec, 4)
    torch.manual_seed(1)
    first = _run(spec, sample)
    torch.manual_seed(2)
    second = _run(spec, sample)
    for stream in spec.provides:
        assert torch.equal(first[stream], second[stream]), f"the stream {stream!r} differs the second time"


def test_reaches_a_spawned_worker(registry: Registry, spec: PreprocessorSpec, spawned: RunElsewhere) -> None:
    """A spawned loading process can run it."""
    derived = spawned(_run, spec, _sample(registry, spec, 4))
    assert set(spec.provides) <= set(derived)


@pytest.fixture
def walk() -> Case:
    """A bright figure that walks across a still scene."""
    return make_walk()


def _prepared(spec: PreprocessorSpec, walk: Case, folder: Path) -> Prepared:
    stages = resolve(spec.stages)(build_section(spec.config, "preprocess", spec.trial))
    return prepare_case(walk, all_ready(stages), Cache(folder), torch.device("cpu"), spec.version)


def test_stages_say_what_they_are(registry: Registry, spec: PreprocessorSpec, walk: Case) -> None:
    """Their names differ, each reads what is there, and together they provide what is promised, with any settings."""
    for settings in ({}, spec.trial):
        stages = resolve(spec.stages)(build_section(spec.config, "preprocess", settings))
        names = [stage.name for stage in stages]
        assert len(set(names)) == len(names), f"stages of {spec.name} share a name: {', '.join(names)}"
        have = set(walk.streams)
        for stage in stages:
            assert set(stage.requires) <= have, f"stage {stage.name} reads {stage.requires}; there are {sorted(have)}"
            have |= set(stage.provides)
        made = {stream for stage in stages for stream in stage.provides}
        assert made == set(spec.provides), f"{spec.name} promises {spec.provides}; its stages make {sorted(made)}"


def test_stages_make_streams_of_their_kind(
    registry: Registry, spec: PreprocessorSpec, walk: Case, tmp_path: Path
) -> None:
    """Of every frame of the new video, of one size, finite; the frames it shows are known."""
    case = _prepared(spec, walk, tmp_path).case
    assert case.frames >= 1
    frames = range(case.frames)
    size = read_images(case.streams["video"], frames).shape[1:3]
    for stream in spec.provides:
        if stream != "video":
            values = read_stream(case.streams[stream], frames)
            assert np.isfinite(values).all(), f"the stream {stream!r} is not finite"
            assert values.shape[2:] == size, f"the stream {stream!r} is {values.shape[2:]} pixels, the video {size}"
    shown = case.source_frames or tuple(frames)
    assert len(shown) == case.frames, f"{case.frames} frames show {len(shown)} of the recording"
    assert set(shown) <= set(range(walk.frames))
    assert list(shown) == sorted(shown), "time runs backwards"


def test_stages_are_kept(registry: Registry, spec: PreprocessorSpec, walk: Case, tmp_path: Path) -> None:
    """The same video is not computed twice, and gives the same to the bit where it is."""
    first, second = _prepared(spec, walk, tmp_path / "a"), _prepared(spec, walk, tmp_path / "a")
    assert second.computed == 0, "its settings are not the same the second time"
    assert second.case == first.case
    again = _prepared(spec, walk, tmp_path / "b")
    assert again.keys == first.keys
    for stream in spec.provides:
        paths = [Path(case.streams[stream].paths[0]) for case in (first.case, again.case)]
        assert paths[0].read_bytes() == paths[1].read_bytes(), f"the stream {stream!r} differs the second time"
