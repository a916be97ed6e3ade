"""The structure loss: what counts, and that nothing else does. Values are compared with the original in test_parity."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medvid_core.config import ClipConfig
from medvid_core.data.clip import Case, Source
from medvid_core.data.sampling import training_items, window
from medvid_core.errors import ConfigError
from medvid_core.specs import OutputSpec
from medvid_vivim.config import StructureLossConfig
from medvid_vivim.losses import build_structure

MASK = (OutputSpec(name="mask", task="segmentation", classes=("lesion",)),)


def loss_for(classes, frames="all", form="released"):
    output = OutputSpec(name="mask", task="segmentation", classes=tuple(f"class {k}" for k in range(classes)))
    return build_structure(StructureLossConfig(frames=frames, form=form), (output,))


def value(loss, logits, batch):
    counts, sums = loss.counts(batch), loss({"mask": logits}, batch)
    assert set(counts) == set(sums)
    return sum((sums[k] / counts[k] if counts[k] > 0 else sums[k] * 0 for k in sums), torch.zeros(()))


def example(clips, frames, classes, size=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(clips, frames, classes, size, size, generator=g)
    batch = {
        "mask": torch.randint(0, max(2, classes), (clips, frames, size, size), generator=g),
        "frame_real": torch.ones(clips, frames, dtype=torch.bool),
        "mask_labelled": torch.ones(clips, frames, dtype=torch.bool),
    }
    return logits, batch


def published(logits, mask):
    """The formula on [M,1,H,W], written as in the paper it comes from, with the cross-entropy's plain mean."""
    w = 1 + 5 * (F.avg_pool2d(mask, 31, 1, 15) - mask).abs()
    p = logits.sigmoid()
    inter, union = (w * p * mask).sum((2, 3)), (w * (p + mask)).sum((2, 3))
    bce = F.binary_cross_entropy_with_logits(logits, mask)
    return bce + (1 - (inter + 1) / (union - inter + 1)).mean()


def test_is_the_published_formula():
    logits, batch = example(2, 3, 1, size=40)
    wanted = published(logits.flatten(0, 1), batch["mask"].flatten(0, 1)[:, None].float())
    torch.testing.assert_close(value(loss_for(1), logits, batch), wanted)


def test_several_classes_are_one_against_rest_on_softmax_probabilities():
    logits, batch = example(2, 2, 4)
    wanted = torch.zeros(())
    probabilities = logits.softmax(2)
    for k in (1, 2, 3):
        mask = (batch["mask"] == k).float().flatten(0, 1)[:, None]
        wanted += published(probabilities[:, :, k : k + 1].logit().flatten(0, 1), mask) / 3
    torch.testing.assert_close(value(loss_for(4), logits, batch), wanted, rtol=1e-5, atol=1e-5)


def weighted(logits, mask, smooth):
    """The formula as the paper it comes from has it, the cross-entropy weighted too; of every channel [M,F,H,W]."""
    w = 1 + 5 * (F.avg_pool2d(mask, 31, 1, 15) - mask).abs()
    p = logits.sigmoid()
    inter, union = (w * p * mask).sum((2, 3)), (w * (p + mask)).sum((2, 3))
    bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    iou = 1 - (inter + smooth) / (union - inter + smooth)
    return ((bce * w).sum((2, 3)) / w.sum((2, 3)) + iou).mean()


def test_other_forms_are_their_formulas():
    logits, batch = example(2, 3, 1, size=40)
    mask = batch["mask"].flatten(0, 1)[:, None].float()
    got = value(loss_for(1, form="intended"), logits, batch)
    torch.testing.assert_close(got, weighted(logits.flatten(0, 1), mask, 1))
    logits, batch = example(2, 2, 3)
    mask = F.one_hot(batch["mask"].flatten(0, 1), 3).movedim(-1, 1).float()
    got = value(loss_for(3, form="ovarian"), logits, batch)
    torch.testing.assert_close(got, weighted(logits.flatten(0, 1), mask, 1e-6))


@pytest.mark.parametrize("form", ["released", "intended", "ovarian"])
@pytest.mark.parametrize("classes", [1, 3])
def test_each_form_counts_what_is_annotated_alone(form, classes):
    """Halves of a batch add up to the whole; unlabelled pixels and frames have no gradient."""
    logits, batch = example(2, 3, classes)
    batch["mask"][:, :, :3] = 255
    batch["mask_labelled"][0, 1] = False
    loss = loss_for(classes, form=form)
    logits.requires_grad_()
    sums = loss({"mask": logits}, batch)
    (grad,) = torch.autograd.grad(sum(sums.values()), logits)
    assert not grad[:, :, :, :3].any()
    assert not grad[0, 1].any()
    assert grad[1, 1].any()
    halves = [{name: x[n : n + 1] for name, x in batch.items()} for n in range(2)]
    for name, total in sums.items():
        parts = [loss({"mask": logits[n : n + 1]}, half)[name] for n, half in enumerate(halves)]
        torch.testing.assert_close(total, sum(parts))
        assert loss.counts(batch)[name] == sum(loss.counts(half)[name] for half in halves)


@pytest.mark.parametrize(("frames", "centre"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
def test_centre_frame(frames, centre):
    logits, batch = example(2, frames, 1)
    one = {name: x[:, centre : centre + 1] for name, x in batch.items()}
    wanted = value(loss_for(1), logits[:, centre : centre + 1], one)
    assert torch.equal(value(loss_for(1, "centre"), logits, batch), wanted)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("video", [1, 2, 4, 9])
def test_centre_is_the_frame_dense_sampling_is_about(video, length, stride):
    """Each frame of a video is supervised once an epoch, at its borders too."""
    clip = ClipConfig(frames=length, stride=stride, sampling="dense")
    sources = {name: Source(reader="frames") for name in ("video", "mask")}
    case = Case(case_id="a", group_id="a", frames=video, streams=sources)
    supervised = []
    for item in training_items([case], clip, MASK):
        indices, real = window(item.start, video, clip)
        logits, batch = example(1, length, 1)
        batch["frame_real"] = torch.from_numpy(real)[None]
        logits.requires_grad_()
        (grad,) = torch.autograd.grad(value(loss_for(1, "centre"), logits, batch), logits)
        supervised += indices[grad[0].flatten(1).any(1).numpy()].tolist()
    assert supervised == list(range(video))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(0, 99),
    st.booleans(),
)
def test_padding_changes_nothing(clips, before, frames, after, classes, seed, centre):
    """Frames of padding, whatever they hold, change neither value nor gradient.

    The centre is that of the window, padding included; if it is padding, that of the real frames.
    """
    chosen = slice(0, frames)
    if centre:
        middle = (before + frames + after - 1) // 2 - before
        middle = middle if 0 <= middle < frames else (frames - 1) // 2
        chosen = slice(middle, middle + 1)
    logits, batch = example(clips, frames, classes, seed=seed)
    logits.requires_grad_()
    wanted = value(loss_for(classes), logits[:, chosen], {name: x[:, chosen] for name, x in batch.items()})
    (wanted_grad,) = torch.autograd.grad(wanted, logits)

    padded = F.pad(logits.detach(), (0, 0, 0, 0, 0, 0, before, after), value=float("nan")).requires_grad_()
    more = {
        "mask": F.pad(batch["mask"], (0, 0, 0, 0, before, after), value=1),
        "frame_real": F.pad(batch["frame_real"], (before, after)),
        "mask_labelled": F.pad(batch["mask_labelled"], (before, after), value=True),
    }
    got = value(loss_for(classes, "centre" if centre else "all"), padded, more)
    (grad,) = torch.autograd.grad(got, padded)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(grad, F.pad(wanted_grad, (0, 0, 0, 0, 0, 0, before, after)))


def test_unlabelled_frames_change_nothing():
    logits, batch = example(2, 3, 1)
    batch["mask_labelled"][0, 1] = False
    logits.requires_grad_()
    total = value(loss_for(1), logits, batch)
    (grad,) = torch.autograd.grad(total, logits)
    assert not grad[0, 1].any()
    batch["mask"][0, 1] = 1 - batch["mask"][0, 1]
    assert torch.equal(value(loss_for(1), logits, batch), total)
    assert loss_for(1).counts(batch) == {"bce": 5 * 144, "iou": 5}


@pytest.mark.parametrize("classes", [1, 3])
def test_unlabelled_pixels_have_no_weight(classes):
    logits, batch = example(2, 2, classes)
    batch["mask"][:, :, :3] = 255
    batch["mask"][1, 1] = 255
    loss = loss_for(classes)
    assert loss.counts(batch) == {"bce": 3 * 9 * 12, "iou": 3}
    logits.requires_grad_()
    total = value(loss, logits, batch)
    (grad,) = torch.autograd.grad(total, logits)
    assert not grad[:, :, :, :3].any()
    assert not grad[1, 1].any()
    other = logits.detach().clone()
    other[:, :, :, :3] += 100
    torch.testing.assert_close(value(loss, other, batch), total)


@pytest.mark.parametrize("classes", [1, 3])
def test_nothing_labelled_is_zero_and_differentiable(classes):
    logits, batch = example(2, 2, classes)
    batch["mask_labelled"][:] = False
    loss = loss_for(classes)
    assert loss.counts(batch) == {"bce": 0, "iou": 0}
    sums = loss({"mask": logits.requires_grad_()}, batch)
    sum(sums.values()).backward()
    assert all(part.item() == 0 for part in sums.values())
    assert not logits.grad.any()


def test_sums_and_counts_add_up_over_parts_of_a_batch():
    logits, batch = example(4, 3, 2)
    batch["mask_labelled"][0, :2] = False
    loss = loss_for(2)
    whole = (loss.counts(batch), loss({"mask": logits}, batch))
    halves = [(slice(0, 1), slice(1, 4))[i] for i in range(2)]
    parts = [{name: x[half] for name, x in batch.items()} for half in halves]
    for name in whole[0]:
        assert whole[0][name] == sum(loss.counts(part)[name] for part in parts)
        total = sum(loss({"mask": logits[half]}, part)[name] for half, part in zip(halves, parts, strict=True))
        torch.testing.assert_close(whole[1][name], total)


def test_soft_labels():
    logits, batch = example(1, 2, 1)
    batch["mask"] = torch.rand(1, 2, 12, 12)
    wanted = published(logits.flatten(0, 1), batch["mask"].flatten(0, 1)[:, None])
    torch.testing.assert_close(value(loss_for(1), logits, batch), wanted)


def test_half_precision_logits():
    logits, batch = example(1, 2, 3)
    sums = loss_for(3)({"mask": logits.bfloat16()}, batch)
    assert all(part.dtype == torch.float32 for part in sums.values())


def test_frames_setting():
    """loss.frames='middle' must be 'centre' or 'all'."""
    with pytest.raises(ConfigError) as error:
        StructureLossConfig(frames="middle")
    assert str(error.value) == test_frames_setting.__doc__


def test_needs_one_segmentation():
    """This loss needs one segmentation output; the data set has 0."""
    with pytest.raises(ConfigError) as error:
        build_structure(StructureLossConfig(), (OutputSpec(name="ef", task="regression", classes=("EF",)),))
    assert str(error.value) == test_needs_one_segmentation.__doc__
