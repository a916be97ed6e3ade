"""Promises of a metric, tried on the drawn masks, and on the made-up cases, of `medvid_core.testing`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medvid_core.data.clip import UNLABELLED
from medvid_core.errors import ConfigError
from medvid_core.metrics.base import CaseMetric, Floats, ScoredCase, ScoredFrames
from medvid_core.specs import MetricSpec, OutputSpec, resolve
from medvid_core.testing.predictions import chance, described, opposite, perfect, unknown
from medvid_core.testing.samples import Scene
from medvid_core.testing.subject import outputs_of, subject_of

FRAMES, SIZE = 4, (32, 40)


@dataclass(frozen=True)
class MetricUnderTest:
    """A metric for one output. A case is whatever a subclass scores."""

    spec: MetricSpec
    output: OutputSpec

    @cached_property
    def metric(self) -> Any:
        """The metric itself; the check is skipped where it refuses the output."""
        try:
            return resolve(self.spec.build)((self.output,))
        except ConfigError as error:
            pytest.skip(f"refuses this output: {error}")

    def row(self, case: Any) -> dict[str, float]:
        """Score one case."""
        raise NotImplementedError

    def summary(self, cases: Sequence[Any]) -> dict[str, float]:
        """Score all cases together."""
        raise NotImplementedError

    def perfect(self) -> list[Any]:
        """Return cases predicted as they are."""
        raise NotImplementedError

    def opposite(self) -> list[Any]:
        """Return the same cases, wrong everywhere."""
        raise NotImplementedError

    def chance(self, seed: int) -> list[Any]:
        """Return the same cases, predicted at random."""
        raise NotImplementedError

    def varied(self) -> list[Any]:
        """Return cases of which some are predicted better than others."""
        raise NotImplementedError

    def value(self, cases: Sequence[Any]) -> float:
        """Score cases down to one number."""
        return self.summary(cases)[self.metric.name]

    def better(self, left: float, right: float) -> bool:
        """Whether one value is better than another."""
        return left > right if self.spec.higher_is_better else left < right


@dataclass(frozen=True)
class MetricOfMasks(MetricUnderTest):
    """A metric for masks; a case is its probabilities [T,K,H,W] and its mask [T,H,W]."""

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

    def row(self, case: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Score one case."""
        probabilities, mask = case
        frames = ScoredFrames(probabilities, mask, torch.ones(len(mask), dtype=torch.bool))
        columns = self.metric.per_frame(frames)
        row = self.metric.per_case({n: column.double().numpy() for n, column in columns.items()})
        return {name: value for name, value in row.items() if not isinstance(value, np.ndarray)}

    def summary(self, cases: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Score all cases together."""
        found: dict[str, float] = self.metric.summarise([self.row(case) for case in cases])
        return found

    def perfect(self) -> list[tuple[Tensor, Tensor]]:
        """Return a case predicted as it is."""
        return [(self.certain(self.mask()), self.mask())]

    def opposite(self) -> list[tuple[Tensor, Tensor]]:
        """Return the same case, wrong everywhere."""
        return [(self.certain(self.wrong(self.mask())), self.mask())]

    def chance(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Return the same case, predicted at random."""
        mask = self.mask()
        drawn = torch.rand(self.certain(mask).shape, generator=torch.Generator().manual_seed(seed))
        return [(drawn / drawn.sum(1, keepdim=True).clamp(min=1), mask)]

    def varied(self) -> list[tuple[Tensor, Tensor]]:
        """Return three cases, of which some are predicted better than others."""
        predicted = [self.mask(), self.mask(2), self.mask(0)]
        return [(self.certain(mask), self.mask(case)) for case, mask in enumerate(predicted)]


@dataclass(frozen=True)
class MetricOfCases(MetricUnderTest):
    """A metric for anything but masks; a case is a `ScoredCase`."""

    @cached_property
    def wanted(self) -> OutputSpec:
        """The output, with mean and spread of a regression."""
        return described(self.output)

    @cached_property
    def metric(self) -> Any:
        """The metric itself; the check is skipped where it refuses the output."""
        return self.of((self.wanted,))

    def of(self, outputs: tuple[OutputSpec, ...]) -> CaseMetric:
        """Build the metric for these outputs; the check is skipped where it refuses them."""
        try:
            built = resolve(self.spec.build)(outputs)
        except ConfigError as error:
            pytest.skip(f"refuses this output: {error}")
        kind = type(built).__name__
        assert isinstance(built, CaseMetric), f"{self.spec.name} builds a {kind}: for {self.output.task} a CaseMetric"
        return built

    def row(self, case: ScoredCase) -> dict[str, float]:
        """Score one case."""
        row: dict[str, float] = self.metric.per_case(case)
        return row

    def summary(self, cases: Sequence[ScoredCase]) -> dict[str, float]:
        """Score all cases together."""
        found: dict[str, float] = self.metric.summarise(cases)
        return found

    def perfect(self) -> list[ScoredCase]:
        """Return cases predicted as they are."""
        return perfect(self.wanted)

    def opposite(self) -> list[ScoredCase]:
        """Return the same cases, wrong everywhere."""
        return opposite(self.wanted)

    def chance(self, seed: int) -> list[ScoredCase]:
        """Return the same cases, predicted at random."""
        return chance(self.wanted, seed)

    def varied(self) -> list[ScoredCase]:
        """Return cases of which some are predicted better than others."""
        return chance(self.wanted, 7)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try every check on each metric, for each of its tasks: those for masks, for cases, or for all."""
    kinds = {"of_masks": MetricOfMasks, "of_cases": MetricOfCases, "under_test": MetricUnderTest}
    (wanted,) = kinds.keys() & set(metafunc.fixturenames)
    metrics = [
        metric
        for entry in subject_of(metafunc).of_kind("metric")
        if isinstance(entry.spec, MetricSpec)
        for task in entry.spec.tasks
        for output in outputs_of(task)
        for metric in [(MetricOfMasks if task == "segmentation" else MetricOfCases)(entry.spec, output)]
        if isinstance(metric, kinds[wanted])
    ]
    ids = [f"{metric.spec.name}-{metric.output.task}-{len(metric.output.classes)}" for metric in metrics]
    metafunc.parametrize(wanted, metrics, ids=ids)


def _agree(left: dict[str, float], right: dict[str, float]) -> list[str]:
    """Return the columns that differ."""
    return [
        name
        for name in left.keys() | right.keys()
        if not (
            math.isclose(left.get(name, math.inf), right.get(name, -math.inf), rel_tol=1e-9, abs_tol=1e-12)
            or (math.isnan(left.get(name, math.inf)) and math.isnan(right.get(name, math.inf)))
        )
    ]


def test_names_are_its_own(under_test: MetricUnderTest) -> None:
    """The metric is called as its spec says, and so are its columns, with parts after a slash."""
    metric, cases = under_test.metric, under_test.perfect()
    assert metric.name == under_test.spec.name, f"the spec says {under_test.spec.name!r}, the metric {metric.name!r}"
    row, summary = under_test.row(cases[0]), under_test.summary(cases)
    assert metric.name in summary, f"there is no column {metric.name!r} among {sorted(summary)}"
    strangers = [name for name in (*row, *summary) if name.split("/")[0] != metric.name]
    assert not strangers, f"the columns {', '.join(strangers)} are not called {metric.name}/…"
    if isinstance(under_test, MetricOfCases):
        two = under_test.of((under_test.wanted, replace(under_test.wanted, name="other")))
        names = list(two.summarise([_with_other(case) for case in cases]))
        nameless = [name for name in names if name.split("/")[1:2] not in ([under_test.wanted.name], ["other"])]
        assert names, "of two outputs the summary is empty"
        assert not nameless, f"of two outputs the columns {', '.join(nameless)} do not say of which they are"


def _with_other(case: ScoredCase) -> ScoredCase:
    """Return a case with a second output that is known and predicted just like the first."""

    def twice(values: Mapping[str, Floats]) -> dict[str, Floats]:
        return {**values, **dict.fromkeys(["other"], *values.values())} if values else {}

    return replace(
        case,
        predicted=twice(case.predicted),
        true=twice(case.true),
        true_frames=twice(case.true_frames),
        last=twice(case.last),
    )


def test_per_frame_has_a_value_for_each_frame(of_masks: MetricOfMasks) -> None:
    """Every column of per_frame has a value, or several, for each frame."""
    probabilities, mask = of_masks.perfect()[0]
    frames = ScoredFrames(probabilities, mask, torch.ones(FRAMES, dtype=torch.bool))
    for name, column in of_masks.metric.per_frame(frames).items():
        assert column.shape[:1] == (FRAMES,), f"{name} has shape {list(column.shape)}, should be [{FRAMES}] or longer"


def test_perfect_prediction_is_best(under_test: MetricUnderTest) -> None:
    """No prediction scores better than the truth; one that is wrong everywhere scores worse, or is undefined."""
    best, worst = under_test.value(under_test.perfect()), under_test.value(under_test.opposite())
    assert not math.isnan(best), "a perfect prediction scores NaN"
    assert math.isnan(worst) or under_test.better(best, worst), f"the truth scores {best}, its opposite {worst}"
    for seed in range(5):
        value = under_test.value(under_test.chance(seed))
        assert not under_test.better(value, best), f"a random prediction scores {value}, the truth {best}"


def test_order_of_cases_does_not_matter(under_test: MetricUnderTest) -> None:
    """The summary is the same whatever the order of the cases."""
    cases = under_test.varied()
    forward, backward = under_test.summary(cases), under_test.summary(cases[::-1])
    differing = _agree(forward, backward)
    assert not differing, (
        f"{differing[0]} is {forward.get(differing[0])} and, the other way round, {backward.get(differing[0])}"
    )


def test_empty_masks_spoil_nothing(of_masks: MetricOfMasks) -> None:
    """Where nothing is to be found the value is a number, or NaN for undefined, which the summary leaves out."""
    mask = of_masks.mask()
    empty = torch.zeros_like(mask)
    for prediction in (empty, mask):
        row = of_masks.row((of_masks.certain(prediction), empty))
        assert not any(math.isinf(value) for value in row.values()), f"an empty mask scores {row}"
        value = of_masks.value([*of_masks.perfect(), (of_masks.certain(prediction), empty)])
        assert math.isfinite(value), f"one case with empty masks makes the summary {value}"


def test_unlabelled_pixels_do_not_count(of_masks: MetricOfMasks) -> None:
    """The prediction at pixels marked 255 does not matter."""
    mask = of_masks.mask()
    mask[:, ::2, ::2] = UNLABELLED
    prediction, other = of_masks.mask(1), of_masks.mask(1)
    other[:, ::2, ::2] = of_masks.wrong(prediction)[:, ::2, ::2]
    left, right = (of_masks.row((of_masks.certain(p), mask)) for p in (prediction, other))
    for name in _agree(left, right):
        pytest.fail(f"{name} is {left[name]}, and {right[name]} with another prediction at unlabelled pixels")


def test_unknown_targets_spoil_nothing(of_cases: MetricOfCases) -> None:
    """Of no case, one case or cases without target the value is a number or NaN; the latter change nothing."""
    cases, blank = of_cases.varied(), unknown(of_cases.wanted)
    for few in ([], cases[:1], cases[1:2], blank):
        for name, value in of_cases.summary(few).items():
            assert not math.isinf(value), f"{name} of {len(few)} case(s) is {value}"
    row = of_cases.row(blank[0])
    assert not any(math.isfinite(value) for value in row.values()), f"a case of which nothing is known scores {row}"
    before, after = of_cases.summary(cases), of_cases.summary([*cases, *blank])
    differing = _agree(before, after)
    assert not differing, (
        f"{differing[0]} is {before.get(differing[0])}, and {after.get(differing[0])} with cases of which nothing is "
        "known"
    )
