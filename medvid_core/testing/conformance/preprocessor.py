"""Promises of a preprocessor, tried on the clips of `medvid_core.testing.samples`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medvid_core.data.clip import Sample
from medvid_core.data.preprocess import plan_steps
from medvid_core.plugins import Registry
from medvid_core.specs import PreprocessorSpec, resolve
from medvid_core.testing.samples import make_sample
from medvid_core.testing.subject import outputs_of, subject_of
from medvid_core.testing.worker import RunElsewhere


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try every check on each preprocessor."""
    subject = subject_of(metafunc)
    specs = [entry.spec for entry in subject.of_kind("preprocessor")]
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
