"""Promises of a metric, tried on the drawn masks of `medvid_core.testing.samples`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from torch import Tensor

from medvid_core.data.clip import UNLABELLED
from medvid_core.errors import ConfigError
from medvid_core.metrics.base import Metric, ScoredFrames
from medvid_core.specs import MetricSpec, OutputSpec, resolve
from medvid_core.testing.samples import Scene
from medvid_core.testing.subject import outputs_of, subject_of

FRAMES, SIZE = 4, (32, 40)


@dataclass(frozen=True)
class MetricUnderTest:
    """A metric for one output."""

    spec: MetricSpec
    output: OutputSpec

    @cached_property
    def metric(self) -> Metric:
        """The metric itself; the check is skipped where it refuses the output."""
        try:
            built: Metric = resolve(self.spec.build)((self.output,))
        except ConfigError as error:
            pytest.skip(f"refuses this output: {error}")
        return built

    def mask(self, case: int = 0) -> Tensor:
        """Draw masks, long [T,H,W]."""
        scene = Scene(case, SIZE, max(2, len(self.output.classes)))
        return torch.from_numpy(np.stack([scene.draw(frame)[1] for frame in range(FRAMES)])).long()

    def certain(self, mask: Tensor) -> Tensor:
        """Return probabilities [T,K,H,W] that say this mask without doubt."""
        classes = len(self.output.classes)
        numbers = torch.tensor([1]) if classes == 1 else torch.arange(classes)
        return (mask.unsqueeze(1) == numbers.view(-1, 1, 1)).float()

    def wrong(self, mask: Tensor) -> Tensor:
        """Return another class for every pixel."""
        return (mask + 1) % max(2, len(self.output.classes))

    def row(self, probabilities: Tensor, mask: Tensor) -> dict[str, float]:
        """Score one case."""
        frames = ScoredFrames(probabilities, mask, torch.ones(len(mask), dtype=torch.bool))
        columns = self.metric.per_frame(frames)
        return self.metric.per_case({name: column.double().numpy() for name, column in columns.items()})

    def value(self, *cases: tuple[Tensor, Tensor]) -> float:
        """Score cases, each probabilities and mask, down to one number."""
        return self.metric.summarise([self.row(*case) for case in cases])[self.metric.name]

    def better(self, left: float, right: float) -> bool:
        """Whether one value is better than another."""
        return left > right if self.spec.higher_is_better else left < right


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try every check on each metric, for one and for three classes."""
    metrics = [
        MetricUnderTest(entry.spec, output)
        for entry in subject_of(metafunc).of_kind("metric")
        if isinstance(entry.spec, MetricSpec) and "segmentation" in entry.spec.tasks
        for output in outputs_of("segmentation")
    ]
    ids = [f"{metric.spec.name}-{metric.output.task}-{len(metric.output.classes)}" for metric in metrics]
    metafunc.parametrize("under_test", metrics, ids=ids)


def test_names_are_its_own(under_test: MetricUnderTest) -> None:
    """The metric is called as its spec says, and so are its columns, with parts after a slash."""
    metric, mask = under_test.metric, under_test.mask()
    assert metric.name == under_test.spec.name, f"the spec says {under_test.spec.name!r}, the metric {metric.name!r}"
    row = under_test.row(under_test.certain(mask), mask)
    assert metric.name in row, f"there is no column {metric.name!r} among {sorted(row)}"
    strangers = [name for name in row if name.split("/")[0] != metric.name]
    assert not strangers, f"the columns {', '.join(strangers)} are not called {metric.name}/…"


def test_per_frame_has_a_value_for_each_frame(under_test: MetricUnderTest) -> None:
    """Every column of per_frame has one value for each frame."""
    mask = under_test.mask()
    frames = ScoredFrames(under_test.certain(mask), mask, torch.ones(FRAMES, dtype=torch.bool))
    for name, column in under_test.metric.per_frame(frames).items():
        assert tuple(column.shape) == (FRAMES,), f"{name} has shape {list(column.shape)}, should be [{FRAMES}]"


def test_perfect_prediction_is_best(under_test: MetricUnderTest) -> None:
    """No prediction scores better than the truth; one that is wrong everywhere scores worse."""
    mask = under_test.mask()
    perfect = under_test.value((under_test.certain(mask), mask))
    worst = under_test.value((under_test.certain(under_test.wrong(mask)), mask))
    assert not math.isnan(perfect), "a perfect prediction scores NaN"
    assert under_test.better(perfect, worst), f"the truth scores {perfect}, its opposite {worst}"
    for seed in range(5):
        chance = torch.rand(under_test.certain(mask).shape, generator=torch.Generator().manual_seed(seed))
        value = under_test.value((chance / chance.sum(1, keepdim=True).clamp(min=1), mask))
        assert not under_test.better(value, perfect), f"a random prediction scores {value}, the truth {perfect}"


def test_order_of_cases_does_not_matter(under_test: MetricUnderTest) -> None:
    """The summary is the same whatever the order of the cases."""
    cases = [
        (under_test.certain(under_test.mask((case + 1) % 3) if case else under_test.mask()), under_test.mask(case))
        for case in range(3)
    ]
    forward, backward = under_test.value(*cases), under_test.value(*reversed(cases))
    assert math.isclose(forward, backward, rel_tol=1e-12), f"{forward} and, the other way round, {backward}"


def test_empty_masks_spoil_nothing(under_test: MetricUnderTest) -> None:
    """Where nothing is to be found the value is a number, or NaN for undefined, which the summary leaves out."""
    mask = under_test.mask()
    empty = torch.zeros_like(mask)
    fine = (under_test.certain(mask), mask)
    for prediction in (empty, mask):
        row = under_test.row(under_test.certain(prediction), empty)
        assert not any(math.isinf(value) for value in row.values()), f"an empty mask scores {row}"
        value = under_test.value(fine, (under_test.certain(prediction), empty))
        assert math.isfinite(value), f"one case with empty masks makes the summary {value}"


def test_unlabelled_pixels_do_not_count(under_test: MetricUnderTest) -> None:
    """The prediction at pixels marked 255 does not matter."""
    mask = under_test.mask()
    mask[:, ::2, ::2] = UNLABELLED
    prediction, other = under_test.mask(1), under_test.mask(1)
    other[:, ::2, ::2] = under_test.wrong(prediction)[:, ::2, ::2]
    left, right = (under_test.row(under_test.certain(p), mask) for p in (prediction, other))
    for name in left:
        undefined = math.isnan(left[name]) and math.isnan(right[name])
        same = undefined or math.isclose(left[name], right[name], rel_tol=1e-12)
        assert same, f"{name} is {left[name]}, and {right[name]} with another prediction at unlabelled pixels"
