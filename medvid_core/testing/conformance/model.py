"""Promises of a model, tried on its tiny preset, on the CPU."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medvid_core.models import load_model, save_model
from medvid_core.specs import LossSpec, ModelSpec, OutputSpec, resolve
from medvid_core.testing.samples import (
    ModelUnderTest,
    all_labelled,
    output_shape,
    pick,
    random_outputs,
    run,
    total,
    with_other_padding,
)
from medvid_core.testing.subject import outputs_of, subject_of
from medvid_core.testing.worker import RunElsewhere

pytestmark = pytest.mark.usefixtures("single_thread")

OVERFIT_STEPS = 60
OVERFIT_LR = 1e-2
"""Learning rate for presets that name none."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try every check on each model, for each of its tasks."""
    subject = subject_of(metafunc)
    models = [
        ModelUnderTest(subject.registry, entry, output)
        for entry in subject.of_kind("model")
        if isinstance(entry.spec, ModelSpec)
        for task in entry.spec.tasks
        for output in outputs_of(task)
    ]
    ids = [f"{model.spec.name}-{model.output.task}-{len(model.output.classes)}" for model in models]
    metafunc.parametrize("model", models, ids=ids)


def _loss_spec(model: ModelUnderTest) -> LossSpec:
    spec = model.loss_spec()
    if spec is None:
        pytest.skip(f"the recipe's loss {model.composed.loss.name!r} is not made for {model.output.task}")
    return spec


def _assert_equal(left: dict[str, Tensor], right: dict[str, Tensor], what: str) -> None:
    assert left.keys() == right.keys(), f"{what}: {sorted(left)} and {sorted(right)}"
    for name in left:
        assert torch.equal(left[name], right[name]), f"{what}: {name} differs"


def _assert_close(left: dict[str, Tensor], right: dict[str, Tensor], what: str) -> None:
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-5, msg=lambda m: f"{what}: {m}")


def _assert_fits(model: ModelUnderTest, batch: dict[str, Any]) -> None:
    outputs = run(model.build(), batch)
    name = model.output.name
    assert name in outputs, f"there is no output {name!r} among {sorted(outputs)}"
    wanted = output_shape(model.output, batch)
    assert tuple(outputs[name].shape) == wanted, f"output is {list(outputs[name].shape)}, should be {list(wanted)}"
    assert outputs[name].dtype == torch.float32, f"output is {outputs[name].dtype}, should be float32"
    assert outputs[name].isfinite().all(), "output holds NaN or infinity"


@pytest.mark.parametrize("clips", [1, 3])
def test_output_has_the_shape_of_its_task(model: ModelUnderTest, clips: int) -> None:
    """Outputs have the shape that their task calls for, in float32 and finite, for any number of clips."""
    _assert_fits(model, model.batch(clips))


@pytest.mark.parametrize("frames", ["one", "one more"])
def test_takes_any_number_of_frames(model: ModelUnderTest, frames: str) -> None:
    """A model that says any_frames takes clips of one frame, and of one more than its preset has."""
    if not model.spec.clip.any_frames:
        pytest.skip("any_frames is false")
    _assert_fits(model, model.batch(1, frames=1 if frames == "one" else model.frames + 1))


def test_takes_any_size_that_is_a_multiple(model: ModelUnderTest) -> None:
    """Height and width may differ, and need to be multiples of clip.multiple only."""
    height, width = model.size
    _assert_fits(model, model.batch(1, size=(height, width + model.spec.clip.multiple)))


def test_builds_on_the_meta_device(model: ModelUnderTest) -> None:
    """The model can be built without memory for its weights, as a large one is before it is shared out."""
    with torch.device("meta"):
        network = model.build()
    state = network.state_dict()
    real = [name for name, value in state.items() if value.device.type != "meta"]
    assert not real, f"these are on a real device: {', '.join(real[:5])}"
    shapes = {name: value.shape for name, value in state.items()}
    assert shapes == {name: value.shape for name, value in model.build().state_dict().items()}


def test_initialisation_is_seeded(model: ModelUnderTest) -> None:
    """The same seed gives the same initial weights."""
    _assert_equal(model.build(3).state_dict(), model.build(3).state_dict(), "two models of one seed")


def test_gradients_arrive(model: ModelUnderTest) -> None:
    """Every trainable parameter gets a finite gradient, unless unused_parameters names it; those it names get none."""
    network, batch = model.build().train(), model.batch()
    parameters = dict(network.named_parameters())
    patterns = model.spec.unused_parameters
    declared = {name for name in parameters if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)}
    undeclared: list[str] = []
    for seed in range(3):  # dropped paths and layers differ
        torch.manual_seed(seed)
        outputs = network(batch)
        weighted = [(value * torch.rand_like(value)).sum() for value in outputs.values()]
        torch.autograd.backward(torch.stack(weighted).sum())
        without = {name for name, parameter in parameters.items() if parameter.requires_grad and parameter.grad is None}
        undeclared = sorted(without - declared)
        if not undeclared:
            break
    assert not undeclared, f"no gradient reaches {', '.join(undeclared[:5])}: use them or name them unused_parameters"
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    used = sorted(declared & gradients.keys())
    assert not used, f"unused_parameters names {', '.join(used[:5])}, which get a gradient"
    bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    assert not bad, f"the gradient of {', '.join(bad[:5])} is not finite"


def test_evaluation_is_deterministic(model: ModelUnderTest) -> None:
    """In evaluation mode the same clip gives the same output, to the bit."""
    network, batch = model.build(), model.batch()
    torch.manual_seed(1)
    first = run(network, batch)
    torch.manual_seed(2)
    _assert_equal(first, run(network, batch), "the same clip twice")


def test_clip_alone_equals_clip_in_a_batch(model: ModelUnderTest) -> None:
    """In evaluation mode a clip's output does not depend on what else is in the batch."""
    network, batch = model.build(), model.batch(3)
    together = run(network, batch)
    for clip in range(3):
        alone = run(network, pick(batch, [clip]))
        _assert_close(alone, {n: v[clip : clip + 1] for n, v in together.items()}, f"clip {clip} alone and in a batch")


def test_order_of_a_batch_does_not_matter(model: ModelUnderTest) -> None:
    """Clips in another order give the same outputs in that order."""
    network, batch = model.build(), model.batch(3)
    order = [2, 0, 1]
    expected = {name: value[order] for name, value in run(network, batch).items()}
    _assert_close(run(network, pick(batch, order)), expected, "clips in another order")


def test_batch_is_left_alone(model: ModelUnderTest) -> None:
    """The model does not change what it is given: the loss needs it too."""
    batch = model.batch()
    before = {name: value.clone() for name, value in batch.items() if isinstance(value, Tensor)}
    keys = list(batch)
    run(model.build(), batch)
    assert list(batch) == keys, "the model added to the batch or took from it"
    for name, value in before.items():
        assert torch.equal(batch[name].nan_to_num(), value.nan_to_num()), f"the model changed {name} in place"


def test_model_file_is_exact(model: ModelUnderTest, tmp_path: Path) -> None:
    """A saved and loaded model has the same weights and the same outputs, to the bit."""
    network, batch = model.build(), model.batch()
    save_model(network, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    _assert_equal(network.state_dict(), loaded.state_dict(), "weights before and after")
    _assert_equal(run(network, batch), run(loaded, batch), "outputs before and after")


def test_padding_does_not_change_the_loss(model: ModelUnderTest) -> None:
    """Frames that only fill a clip up change neither counts nor sums of the recipe's loss."""
    loss = model.loss(_loss_spec(model))
    frames = max(2, model.frames)
    batch = all_labelled(model.batch(frames=frames, present=frames - 1))
    outputs = random_outputs(model.output, batch)
    other = with_other_padding(batch)
    _assert_close(loss.counts(batch), loss.counts(other), "counts with other padding")
    _assert_close(loss(outputs, batch), loss(outputs, other), "sums with other padding")


def _rebuild(spec: ModelSpec, config: Any, output: OutputSpec, loss: Any, batch: Any) -> tuple[list[str], Any]:
    names = list(resolve(spec.build)(config, (output,)).state_dict())
    return names, loss.counts(batch) if loss is not None else None


def test_reaches_a_spawned_worker(model: ModelUnderTest, spawned: RunElsewhere) -> None:
    """Spec, configuration, loss and samples can be sent to a spawned process, which builds the same model."""
    loss_spec = model.loss_spec()
    loss = model.loss(loss_spec) if loss_spec else None
    batch = model.batch()
    names, counts = spawned(_rebuild, model.spec, model.composed.config.model.config, model.output, loss, batch)
    assert names == list(model.build().state_dict())
    if loss is not None:
        _assert_equal(loss.counts(batch), counts, "counts here and there")


def test_overfits_two_clips(model: ModelUnderTest) -> None:
    """Trained on two clips, the recipe's loss falls by half in at most 60 steps of Adam."""
    loss = model.loss(_loss_spec(model))
    network, batch = model.build().train(), model.batch(2)
    lr = float(model.spec.presets["tiny"].get("optimizer.lr", OVERFIT_LR))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=lr)
    values: list[float] = []
    for _ in range(OVERFIT_STEPS + 1):
        value = total(loss, network(batch), batch)
        values.append(value.item())
        if values[-1] <= values[0] / 2:
            return
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
    pytest.fail(f"the loss fell from {values[0]:.4f} to {min(values):.4f} only, with lr={lr} (the tiny preset's)")
