"""Prompts: checked, drawn in training, followed in their frame and carried to the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medvid_core.errors import DataError
from medvid_core.specs import OutputSpec
from medvid_medivista_sam.config import MediViSTAConfig
from medvid_medivista_sam.network import build
from medvid_medivista_sam.network.attention import Clip
from medvid_medivista_sam.network.prompting import (
    CERTAIN,
    carried_order,
    carried_prompt,
    check_prompts,
    drawn_prompts,
    log_odds,
    mask_odds,
)

POINT = {"points": [[9.0, 5.0]], "labels": [1]}


def medivista(classes=3, wiring="paper", **config):
    torch.manual_seed(0)
    names = tuple(f"class {k}" for k in range(classes))
    outputs = (OutputSpec(name="mask", task="segmentation", classes=names),)
    settings = {"sam_positions": True, **config} if wiring == "paper" else config  # all of SAM alive
    return build(MediViSTAConfig(wiring=wiring, variant="tiny", **settings), outputs).eval()


def clips(clips=1, frames=4, size=(32, 48), seed=1):
    return torch.rand(clips, frames, 1, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, video, *prompts, **more):
    return model({"video": video, "prompts": list(prompts), **more})["mask"]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ({"class": 0, "frame": 0, **POINT}, "class 0 on frame 0: no such class. What can be pointed out: 1, 2."),
        ({"class": 3, "frame": 0, **POINT}, "class 3 on frame 0: no such class. What can be pointed out: 1, 2."),
        ({"class": 1, "frame": 4, **POINT}, "class 1 on frame 4: no such frame. The clip has 0, 1, 2, 3."),
        ({"class": 1, "frame": -1, **POINT}, "class 1 on frame -1: no such frame."),
        ({"class": 1, "frame": 0}, "points out nothing: it needs points with labels, a box or a mask."),
        ({"class": 1, "frame": 0, "box": [1, 2, 3]}, "a box is [x0, y0, x1, y1]."),
        ({"class": 1, "frame": 0, "points": [[1.0, 2.0]], "labels": [1, 0]}, "points are [N, 2], at least one"),
        ({"class": 1, "frame": 0, "points": torch.zeros(0, 2), "labels": []}, "points are [N, 2], at least one"),
        ({"class": 1, "frame": 0, "points": [[1.0, 2.0]], "labels": [2]}, "a label is 1, inside, or 0, outside."),
        ({"class": 1, "frame": 0, "mask": torch.zeros(8, 8)}, "its mask is [8, 8], the frame [32, 48]."),
    ],
)
def test_refused_prompts(prompt, text):
    with pytest.raises(DataError) as error:
        medivista()({"video": clips(), "prompts": [[prompt]]})
    assert text in str(error.value)


def test_two_prompts_of_one_class_on_one_frame_are_refused():
    prompt = {"class": 1, "frame": 0, **POINT}
    with pytest.raises(DataError) as error:
        check_prompts([prompt, prompt], 2, [0], (16, 16))
    assert str(error.value) == "The prompt of class 1 on frame 0 is there twice. Put both into one."


def test_of_two_classes_the_one_object_is_1():
    check_prompts([{"class": 1, "frame": 0, **POINT}], 1, [0], (16, 16))
    with pytest.raises(DataError, match=r"What can be pointed out: 1\."):
        check_prompts([{"class": 0, "frame": 0, **POINT}], 1, [0], (16, 16))


@pytest.mark.parametrize(
    ("prompted", "frames", "order"),
    [
        ([0], range(4), [(1, 0), (2, 1), (3, 2)]),
        ([3], range(4), [(2, 3), (1, 2), (0, 1)]),
        ([1], range(4), [(0, 1), (2, 1), (3, 2)]),
        ([0, 4], range(5), [(1, 0), (3, 4), (2, 1)]),
        ([4, 1], range(6), [(0, 1), (2, 1), (3, 4), (5, 4)]),
        ([2], [2, 3], [(3, 2)]),
        ([0], [1, 2], [(1, 0), (2, 1)]),
        ([1], [1], []),
    ],
)
def test_carried_outwards_from_the_nearest_prompt(prompted, frames, order):
    found = list(carried_order(prompted, list(frames)))
    assert sorted(found) == sorted(order)
    known = set(prompted)
    for frame, source in found:
        assert source in known
        known.add(frame)


def test_log_odds_are_those_of_the_probability():
    scores = torch.randn(4, 3, 5)
    torch.testing.assert_close(log_odds(scores, 2).sigmoid(), scores.softmax(0)[2])
    assert torch.equal(log_odds(scores[:1], 0), scores[0])


def test_carried_prompt():
    odds = torch.full((6, 8), -100.0)
    odds[2:4, 5:7] = 3.0
    prompt = carried_prompt(odds)
    assert prompt["box"].tolist() == [5, 2, 6, 3]
    assert prompt["odds"].min() == -CERTAIN
    assert prompt["odds"].max() == 3
    assert carried_prompt(-odds.abs())["box"] is None


def test_a_mask_says_for_certain():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:8] = True
    odds = mask_odds({"mask": mask.numpy()}, (4, 4), torch.device("cpu"))
    torch.testing.assert_close(odds[0, 0, [0, 3]], torch.tensor([[CERTAIN], [-CERTAIN]]).expand(2, 4))
    assert mask_odds(POINT, (4, 4), torch.device("cpu")) is None


def target():
    """Masks [3,4,16,24]: class 1 in frames 0 and 1, class 2 in frame 2, nothing in frame 3."""
    mask = torch.zeros(3, 4, 16, 24, dtype=torch.long)
    mask[:, :2, 3:6, 10:20] = 1
    mask[:, 2, 8:12, 1:4] = 2
    mask[:, :, 0] = 255
    return mask


def test_drawn_prompts_lie_in_their_class_and_frame():
    mask, kinds = target(), set()
    usable = torch.tensor([[True, False, True, True], [True, True, True, True], [False, False, False, True]])
    for seed in range(30):
        torch.manual_seed(seed)
        *some, none = drawn_prompts(mask, usable, 3, 1.0)
        assert none == []
        for clip, prompts in enumerate(some):
            (prompt,) = prompts
            assert usable[clip, prompt["frame"]]
            inside = mask[clip, prompt["frame"]] == prompt["class"]
            if "box" in prompt:
                assert prompt["box"].tolist() == ([10, 3, 19, 5] if prompt["class"] == 1 else [1, 8, 3, 11])
            else:
                x, y = prompt["points"][0].long().tolist()
                assert inside[y, x]
                assert prompt["labels"].tolist() == [1]
            kinds.add((prompt["class"], prompt["frame"], "box" in prompt))
            check_prompts(prompts, 3, range(4), (16, 24))
    assert kinds == {(c, f, box) for c, f in ((1, 0), (1, 1), (2, 2)) for box in (True, False)}


def test_drawing_follows_the_seed_and_the_rate():
    usable = torch.ones(3, 4, dtype=torch.bool)

    def drawn(seed, rate):
        torch.manual_seed(seed)
        return [[{k: str(v) for k, v in p.items()} for p in ps] for ps in drawn_prompts(target(), usable, 3, rate)]

    assert drawn(5, 0.5) == drawn(5, 0.5)
    assert drawn(5, 0.0) == [[], [], []]
    assert 20 < sum(len(p) for seed in range(20) for p in drawn(seed, 0.5)) < 40


@pytest.mark.parametrize("wiring", ["released", "paper", "fusion"])
@pytest.mark.parametrize("classes", [1, 3])
def test_prompts_change_their_class_in_their_clip_alone(wiring, classes):
    model, video = medivista(classes, wiring), clips(3)
    before = logits(model, video)
    prompts = [[], [{"class": 1, "frame": 2, "box": [4, 4, 30, 20]}], []]
    after = logits(model, video, *prompts)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    channel = 1 if classes > 1 else 0
    others = [k for k in range(classes) if k != channel]
    assert torch.equal(after[1][:, others], before[1][:, others])
    assert (after[1, :, channel] != before[1, :, channel]).flatten(1).any(1).all()


def test_prompts_are_followed_frame_by_frame():
    """As SAM would: tokens of the prompt in its frame, then the map and box of what was found in the one before."""
    model, video = medivista(), clips()
    prompt = {"class": 2, "frame": 1, "points": torch.tensor([[9.0, 5.0], [20.0, 3.0]]), "labels": torch.tensor([1, 0])}
    got = logits(model, video, [prompt])[0]
    encoder, size, grid = model.prompt_encoder, (32, 48), (2, 3)
    with torch.no_grad():
        features = model.encode((video - video.min()) / (video.max() - video.min()), Clip(1, 4))
        wanted = model.decode(features).clone()

        def decoded(frame, sparse, dense):
            return model.decode(features.frame(frame), sparse, dense)[0, 2]

        points = (prompt["points"][None], prompt["labels"][None])
        wanted[1, 2] = decoded(1, encoder.sparse(size, *points), encoder.dense(grid))
        for frame, source in ((0, 1), (2, 1), (3, 2)):
            odds = log_odds(wanted[source], 2)
            rows, columns = (odds > 0).nonzero(as_tuple=True)
            box = torch.stack([columns.min(), rows.min(), columns.max(), rows.max()]).float() if len(rows) else None
            low = nn.functional.interpolate(
                odds.clamp(-10, 10)[None, None], (8, 12), mode="bilinear", align_corners=False, antialias=True
            )
            sparse = encoder.sparse(size, boxes=None if box is None else box[None])
            wanted[frame, 2] = decoded(frame, sparse, encoder.dense(grid, low))
    torch.testing.assert_close(got, wanted)


def test_padding_is_not_carried_to():
    model, video = medivista(), clips()
    real = torch.tensor([[True, True, True, False]])
    prompt = [{"class": 1, "frame": 0, **POINT}]
    before, after = logits(model, video, frame_real=real), logits(model, video, prompt, frame_real=real)
    assert torch.equal(after[:, 3], before[:, 3])
    torch.testing.assert_close(after[:, :3], logits(model, video[:, :3], prompt))


def test_no_prompts_are_none():
    model, video = medivista(), clips(2)
    alone = model({"video": video})["mask"]
    assert torch.equal(alone, model({"video": video, "prompts": [[], []]})["mask"])
    assert torch.equal(alone, model({"video": video, "prompts": None})["mask"])


def batch():
    mask = torch.zeros(2, 3, 32, 32, dtype=torch.long)
    mask[:, :, 8:20, 4:24] = 1
    labelled = torch.tensor([[True, False, False], [False, True, False]])
    real = torch.ones(2, 3, dtype=torch.bool)
    return {"video": clips(2, 3, (32, 32)), "mask": mask, "mask_labelled": labelled, "frame_real": real}


def test_training_with_prompts_teaches_the_prompt_encoder():
    model = medivista(prompt_rate=1.0).train()
    model(batch())["mask"].square().sum().backward()
    assert model.prompt_encoder.mask_downscaling[0].weight.grad.abs().sum() > 0  # carried on
    taught = [e.weight.grad is not None and e.weight.grad.any() for e in model.prompt_encoder.point_embeddings]
    assert taught[2]  # the corners of the boxes that are carried on
    assert taught[3]


def test_training_with_prompts_leaves_statistics_to_the_automatic_pass():
    with_prompts, without = (medivista(prompt_rate=rate).train() for rate in (1.0, 0.0))
    for model in (with_prompts, without):
        model(batch())
    for (name, x), (_, other) in zip(with_prompts.named_buffers(), without.named_buffers(), strict=True):
        assert torch.equal(x, other), name


def test_prompts_are_drawn_in_training_alone():
    model = medivista(prompt_rate=1.0)
    torch.testing.assert_close(model(batch())["mask"], model({"video": batch()["video"]})["mask"])

    def trained(rate):
        fresh = medivista(prompt_rate=rate).train()
        torch.manual_seed(3)
        return fresh(batch())["mask"]

    assert torch.equal(trained(1.0), trained(1.0))
    assert not torch.equal(trained(1.0), trained(0.0))


def test_prompts_work_with_checkpointing():
    plain, lean = (medivista(prompt_rate=1.0, checkpointing=on).train() for on in (False, True))
    for model in (plain, lean):
        torch.manual_seed(3)
        model(batch())["mask"].square().mean().backward()
    for (name, x), (_, other) in zip(plain.named_parameters(), lean.named_parameters(), strict=True):
        assert (x.grad is None) == (other.grad is None), name
        if x.grad is not None:
            torch.testing.assert_close(other.grad, x.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_prompts_can_be_learnt():
    """Two equal squares; the prompt says which of them is meant, and nothing else does."""
    model = medivista(1, "fusion", temporal=False, cross_branch=False, low_rank=0, prompt_rate=1.0)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    video = torch.zeros(4, 1, 1, 32, 32)
    squares = (slice(4, 14), slice(18, 28))
    for columns in squares:
        video[..., 10:20, columns] = 1
    mask = torch.zeros(4, 1, 32, 32, dtype=torch.long)
    for clip in range(4):
        mask[clip, 0, 10:20, squares[clip % 2]] = 1
    known = torch.ones(4, 1, dtype=torch.bool)
    torch.manual_seed(0)
    for _ in range(100):
        model.train()
        y = model({"video": video, "mask": mask, "mask_labelled": known})["mask"][:, :, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(y, mask.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    prompts = [[{"class": 1, "frame": 0, "points": [[9.0 + 14 * (c % 2), 15.0]], "labels": [1]}] for c in range(4)]
    found = logits(model, video, *prompts)[:, :, 0] > 0
    overlap = 2 * (found & (mask == 1)).sum() / (found.sum() + (mask == 1).sum())
    assert overlap > 0.9
