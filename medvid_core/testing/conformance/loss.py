"""Promises of a loss, tried with made-up predictions for the clips of `medvid_core.testing.samples`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from torch import Tensor

from medvid_core.data.clip import UNLABELLED, Batch
from medvid_core.data.loader import collate
from medvid_core.errors import ConfigError
from medvid_core.losses.base import Loss
from medvid_core.specs import LossSpec, OutputSpec, resolve
from medvid_core.testing.samples import (
    all_labelled,
    cut_labels,
    make_sample,
    pick,
    random_outputs,
    total,
    with_other_padding,
    without_labels,
)
from medvid_core.testing.subject import outputs_of, subject_of
from medvid_core.testing.worker import RunElsewhere

pytestmark = pytest.mark.usefixtures("single_thread")

FRAMES, SIZE = 4, (32, 32)


@dataclass(frozen=True)
class LossUnderTest:
    """A loss with its default configuration, for one output."""

    spec: LossSpec
    output: OutputSpec

    @cached_property
    def loss(self) -> Loss:
        """The loss itself; the check is skipped where it refuses the output."""
        try:
            built: Loss = resolve(self.spec.build)(resolve(self.spec.config)(), (self.output,))
        except ConfigError as error:
            pytest.skip(f"refuses this output: {error}")
        return built

    def batch(self, present: int = FRAMES) -> Batch:
        """Make two clips, of which ``present`` frames are real."""
        return collate([make_sample(n, self.output, FRAMES, SIZE, present=present) for n in range(2)])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try every check on each loss, for each of its tasks."""
    losses = [
        LossUnderTest(entry.spec, output)
        for entry in subject_of(metafunc).of_kind("loss")
        if isinstance(entry.spec, LossSpec)
        for task in entry.spec.tasks
        for output in outputs_of(task)
    ]
    ids = [f"{loss.spec.name}-{loss.output.task}-{len(loss.output.classes)}" for loss in losses]
    metafunc.parametrize("under_test", losses, ids=ids)


def _assert_close(left: dict[str, Tensor], right: dict[str, Tensor], what: str) -> None:
    assert left.keys() == right.keys(), f"{what}: parts {sorted(left)} and {sorted(right)}"
    for name in left:
        torch.testing.assert_close(
            left[name].float(), right[name].float(), rtol=1e-5, atol=1e-5, msg=lambda m: f"{what}: {m}"
        )


def test_parts_are_scalars_with_counts(under_test: LossUnderTest) -> None:
    """Sums and counts have the same parts, each a scalar; sums are differentiable, counts are not."""
    loss, batch = under_test.loss, under_test.batch()
    counts, sums = loss.counts(batch), loss(random_outputs(under_test.output, batch), batch)
    assert counts.keys() == sums.keys(), f"counts has {sorted(counts)}, the sums {sorted(sums)}"
    for name in sums:
        assert sums[name].shape == counts[name].shape == (), f"part {name!r} is not a scalar"
        assert sums[name].requires_grad, f"part {name!r} has lost its gradient"
        assert not counts[name].requires_grad, f"the count of part {name!r} has a gradient"
        assert counts[name] > 0, f"part {name!r} counts nothing in a batch where everything is annotated"


def test_batch_and_outputs_are_left_alone(under_test: LossUnderTest) -> None:
    """Computing the loss changes neither batch nor outputs, and counts stay the same."""
    loss, batch = under_test.loss, under_test.batch()
    outputs, before = random_outputs(under_test.output, batch), copy.deepcopy(batch)
    kept = {name: value.detach().clone() for name, value in outputs.items()}
    counts = loss.counts(batch)
    loss(outputs, batch)
    _assert_close(loss.counts(batch), counts, "counts before and after")
    for name, value in kept.items():
        assert torch.equal(outputs[name], value), f"the loss changed the output {name!r}"
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(batch[name].nan_to_num(), value.nan_to_num()), f"the loss changed {name!r} in the batch"


def test_sums_and_counts_add_up(under_test: LossUnderTest) -> None:
    """Sums and counts of a batch are those of its clips added up: accumulation and processes change nothing."""
    loss, batch = under_test.loss, under_test.batch()
    outputs = random_outputs(under_test.output, batch)
    clips = [(pick(batch, [n]), {name: value[n : n + 1] for name, value in outputs.items()}) for n in range(2)]
    first, second = (loss(clip_outputs, clip) for clip, clip_outputs in clips)
    _assert_close(loss(outputs, batch), {name: first[name] + second[name] for name in first}, "sums")
    counts = [loss.counts(clip) for clip, _ in clips]
    _assert_close(loss.counts(batch), {name: counts[0][name] + counts[1][name] for name in counts[0]}, "counts")


def test_nothing_annotated_costs_nothing(under_test: LossUnderTest) -> None:
    """A part whose count is zero is zero, with finite gradients: no division by nothing."""
    loss, batch = under_test.loss, without_labels(under_test.batch())
    outputs = random_outputs(under_test.output, batch)
    counts, sums = loss.counts(batch), loss(outputs, batch)
    for name, value in sums.items():
        assert value.isfinite(), f"part {name!r} is {value.item()}"
        assert counts[name] > 0 or value == 0, f"part {name!r} counts nothing and is {value.item()}"
    torch.autograd.backward(torch.stack(list(sums.values())).sum())
    gradient = outputs[under_test.output.name].grad
    assert gradient is None or gradient.isfinite().all(), "the gradient is not finite"


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_gradients_are_finite(under_test: LossUnderTest, scale: float) -> None:
    """Loss and gradients are finite, for very sure predictions too."""
    loss, batch = under_test.loss, under_test.batch()
    outputs = random_outputs(under_test.output, batch, scale=scale)
    value = total(loss, outputs, batch)
    torch.autograd.backward(value)
    gradient = outputs[under_test.output.name].grad
    assert value.isfinite(), f"the loss is {value.item()}"
    assert gradient is not None, "no gradient reaches the output"
    assert gradient.isfinite().all(), "the gradient is not finite"


def test_padding_does_not_count(under_test: LossUnderTest) -> None:
    """Neither the picture, nor the mask, nor the prediction of a frame that only fills a clip up matters."""
    loss, batch = under_test.loss, all_labelled(under_test.batch(present=FRAMES - 1))
    outputs = random_outputs(under_test.output, batch)
    other, changed = with_other_padding(batch), dict(outputs)
    if under_test.output.task in ("segmentation", "frame_classification", "anomaly"):
        name = under_test.output.name
        changed[name] = outputs[name].detach().clone()
        changed[name][~batch["frame_real"]] = 7.0
    _assert_close(loss.counts(batch), loss.counts(other), "counts with other padding")
    _assert_close(loss(outputs, batch), loss(changed, other), "sums with other padding")


def test_frames_without_annotation_do_not_count(under_test: LossUnderTest) -> None:
    """In a frame nobody annotated neither mask nor prediction matters."""
    if under_test.output.task != "segmentation":
        pytest.skip("masks are of segmentation")
    loss, batch, name = under_test.loss, under_test.batch(), under_test.output.name
    batch["mask_labelled"][:, 1::2] = False
    outputs = random_outputs(under_test.output, batch)
    other, changed = copy.deepcopy(batch), outputs[name].detach().clone()
    other["mask"][~batch["mask_labelled"]] = 0
    changed[~batch["mask_labelled"]] = 7.0
    _assert_close(loss.counts(batch), loss.counts(other), "counts with other masks")
    _assert_close(loss(outputs, batch), loss({name: changed}, other), "sums with other masks")


def test_unlabelled_pixels_do_not_count(under_test: LossUnderTest) -> None:
    """The prediction at pixels marked 255 does not matter."""
    if under_test.output.task != "segmentation":
        pytest.skip("masks are of segmentation")
    loss, batch, name = under_test.loss, cut_labels(under_test.batch()), under_test.output.name
    outputs = random_outputs(under_test.output, batch)
    unknown = (batch["mask"] == UNLABELLED).unsqueeze(2)
    changed = torch.where(unknown, -outputs[name], outputs[name])
    _assert_close(loss(outputs, batch), loss({name: changed}, batch), "sums with other predictions there")


def test_right_costs_less_than_wrong(under_test: LossUnderTest) -> None:
    """A prediction that is right everywhere costs less than one that is wrong everywhere."""
    if under_test.output.task != "segmentation":
        pytest.skip("tried on segmentation")
    loss, batch, name = under_test.loss, under_test.batch(), under_test.output.name
    classes = len(under_test.output.classes)
    mask = batch["mask"].unsqueeze(2)
    right = mask == (1 if classes == 1 else torch.arange(classes).view(-1, 1, 1))
    logits = torch.where(right, 8.0, -8.0)
    good, bad = total(loss, {name: logits}, batch), total(loss, {name: -logits}, batch)
    assert good < bad, f"a right prediction costs {good.item():.4f}, a wrong one {bad.item():.4f}"


def _counts(loss: Loss, batch: Batch) -> dict[str, Tensor]:
    return loss.counts(batch)


def test_reaches_a_spawned_worker(under_test: LossUnderTest, spawned: RunElsewhere) -> None:
    """The loss can be sent to a spawned process and counts the same there."""
    loss, batch = under_test.loss, under_test.batch()
    _assert_close(spawned(_counts, loss, batch), loss.counts(batch), "counts there and here")
