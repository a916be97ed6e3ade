"""SAM 2 through medvid: the same as the library's own session by hand, in both directions; prompts; weights."""

from __future__ import annotations

import copy
import socket
import sys

import pytest
import torch
import torch.nn.functional as F

from medvid_core.errors import CheckpointError, ConfigError, DataError
from medvid_core.specs import OutputSpec
from medvid_medivista_sam import sam2
from medvid_medivista_sam.sam2 import ABSENT, build_sam2_video, prompts_from
from medvid_medivista_sam.sam2_config import SAM2Config

pytest.importorskip("transformers")

ONE = OutputSpec(name="mask", task="segmentation", classes=("ventricle",))
THREE = OutputSpec(name="mask", task="segmentation", classes=("background", "ventricle", "wall"))
SIDE = 64  # of the tiny network's pictures


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as the library writes it, of a network whose every part has an effect."""
    path = tmp_path_factory.mktemp("sam2") / "checkpoint"
    trained_a_little(build_sam2_video(SAM2Config(weights="random"), (ONE,))).net.save_pretrained(path)
    return path


def trained_a_little(model):
    """Give parameters that begin at zero some value, and weights enough size for the prompts to matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if "pred_obj_score_head" in name:
                continue
            if not parameter.any():
                parameter.normal_(std=0.1, generator=generator)
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def one(folder):
    return build_sam2_video(SAM2Config(weights=str(folder)), (ONE,)).eval()


@pytest.fixture(scope="module")
def three(folder):
    return build_sam2_video(SAM2Config(weights=str(folder)), (THREE,)).eval()


def video(frames=6, height=40, width=56, clips=1, seed=0):
    return torch.randn(clips, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def square(height=40, width=56, left=10):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[12:28, left : left + 16] = True
    return mask


def run(model, clip, *prompts, **more):
    with torch.inference_mode():
        return model({"video": clip, "prompts": [list(prompts)], **more})["mask"][0]


def library():
    return sam2._library()


def processor():
    """The library's own, which brings prompts and pictures to the network's pixels."""
    sam2._library()
    from transformers import Sam2ImageProcessor, Sam2VideoProcessor, Sam2VideoVideoProcessor

    size = {"height": SIDE, "width": SIDE}
    return Sam2VideoProcessor(Sam2ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size), target_size=SIDE)


def by_hand(net, clip, prompts):
    """Follow objects with the library's session, processor and iterator; returns (frame, object) → logits [H,W].

    ``prompts``: (object, frame, arguments of the processor), those of one object and frame.
    """
    height, width = clip.shape[-2:]
    size = (SIDE, SIDE)
    pictures = F.interpolate(clip[0], size, mode="bilinear", align_corners=False, antialias=True)
    session = library().Sam2VideoInferenceSession(
        video=pictures, video_height=height, video_width=width, dtype=torch.float32
    )
    tools = processor()
    for number, frame, arguments in prompts:
        tools.add_inputs_to_inference_session(session, frame, number, **arguments)
        net(session, frame_idx=frame)
    found = {}
    for reverse in (False, True):
        for output in net.propagate_in_video_iterator(session, reverse=reverse):
            masks = tools.post_process_masks([output.pred_masks], [[height, width]], binarize=False)[0]
            for number, mask in zip(output.object_ids, masks[:, 0], strict=True):
                found[output.frame_idx, number] = mask
    return found


PROMPTS = {
    "point": (
        {"points": torch.tensor([[20.0, 17.0]]), "labels": torch.tensor([1])},
        {"input_points": [[[[20.0, 17.0]]]], "input_labels": [[[1]]]},
    ),
    "points inside and outside": (
        {"points": [[20.0, 17.0], [50.0, 3.0]], "labels": [1, 0]},
        {"input_points": [[[[20.0, 17.0], [50.0, 3.0]]]], "input_labels": [[[1, 0]]]},
    ),
    "box": ({"box": [10.0, 12.0, 25.0, 27.0]}, {"input_boxes": [[[10.0, 12.0, 25.0, 27.0]]]}),
    "box and point": (
        {"box": torch.tensor([10.0, 12.0, 25.0, 27.0]), "points": [[50.0, 3.0]], "labels": [0]},
        {
            "input_boxes": [[[10.0, 12.0, 25.0, 27.0]]],
            "input_points": [[[[50.0, 3.0]]]],
            "input_labels": [[[0]]],
        },
    ),
    "mask": ({"mask": square()}, {"input_masks": square().numpy()}),
    "soft mask": ({"mask": 0.7 * square()}, {"input_masks": torch.as_tensor(0.7 * square())}),
}
kinds = pytest.mark.parametrize("kind", PROMPTS)


@kinds
@pytest.mark.parametrize("frame", [0, 2, 5])
def test_equals_the_library_by_hand(one, kind, frame):
    """Prompted on the first, a middle and the last frame: forwards and backwards."""
    ours, theirs = PROMPTS[kind]
    clip = video()
    found = run(one, clip, {"class": 1, "frame": frame, **ours})
    expected = by_hand(one.net, clip, [(1, frame, theirs)])
    assert sorted(expected) == [(number, 1) for number in range(6)]
    for (number, _), logits in expected.items():
        torch.testing.assert_close(found[number, 0], logits, rtol=0, atol=0)


def test_equals_the_library_with_prompts_on_two_frames(one):
    clip = video()
    (point, theirs), (mask, their_mask) = PROMPTS["point"], PROMPTS["mask"]
    # the order in the list does not matter
    found = run(one, clip, {"class": 1, "frame": 4, **mask}, {"class": 1, "frame": 1, **point})
    expected = by_hand(one.net, clip, [(1, 1, theirs), (1, 4, their_mask)])
    for (number, _), logits in expected.items():
        torch.testing.assert_close(found[number, 0], logits, rtol=0, atol=0)
    single = run(one, clip, {"class": 1, "frame": 1, **point})
    assert (single[5] - found[5]).abs().max() > 1e-3


def test_equals_the_library_on_a_clip_longer_than_its_memory(one):
    """What is forgotten on the way is what the library would not have looked at either."""
    clip, frame = video(frames=60), 30
    ours, theirs = PROMPTS["box"]
    found = run(one, clip, {"class": 1, "frame": frame, **ours})
    for (number, _), logits in by_hand(one.net, clip, [(1, frame, theirs)]).items():
        torch.testing.assert_close(found[number, 0], logits, rtol=0, atol=0)


def test_memory_does_not_grow_with_the_clip(one, monkeypatch):
    """Of a hundred frames the pictures are made one by one, and a fixed number is remembered."""
    kept, asked = [], []
    forget, picture = sam2._Track._forget, sam2._Images.__getitem__

    def watched(track, position, reverse):
        forget(track, position, reverse)
        outputs = track.session.output_dict_per_obj[0]
        kept.append(sum(map(len, outputs.values())))
        assert not any("high_res_masks" in frame for frames in outputs.values() for frame in frames.values())

    monkeypatch.setattr(sam2._Track, "_forget", watched)
    monkeypatch.setattr(sam2._Images, "__getitem__", lambda images, n: asked.append(n) or picture(images, n))
    run(one, video(frames=100, height=16, width=16), {"class": 1, "frame": 20, "box": [2, 2, 9, 9]})
    assert len(kept) == 1 + 80 + 20
    assert max(kept) == 1 + 16 + 17  # the prompted one, those after it, those up to the present one
    # the prompted frame, those after it (itself known), those before it
    assert asked == [20, *range(21, 100), *range(19, -1, -1)]


def test_two_objects_equal_the_library(three):
    clip = video()
    (box, theirs), (point, their_point) = PROMPTS["box"], PROMPTS["point"]
    found = run(three, clip, {"class": 2, "frame": 3, **point}, {"class": 1, "frame": 3, **box})
    expected = by_hand(three.net, clip, [(1, 3, theirs), (2, 3, their_point)])
    assert not found[:, 0].any()
    for (number, object_), logits in expected.items():
        torch.testing.assert_close(found[number, object_], logits, rtol=1e-3, atol=1e-3)  # theirs in one batch
    assert (found[:, 1] - found[:, 2]).abs().max() > 1e-2


def test_objects_do_not_see_each_other(three):
    """Each is as it is alone, with its first prompt on a frame of its own."""
    clip = video()
    left = {"class": 1, "frame": 1, **PROMPTS["box"][0]}
    right = {"class": 2, "frame": 4, "mask": square(left=34)}
    both = run(three, clip, left, right)
    torch.testing.assert_close(both[:, 1], run(three, clip, left)[:, 1], rtol=0, atol=0)
    torch.testing.assert_close(both[:, 2], run(three, clip, right)[:, 2], rtol=0, atol=0)


def test_each_picture_is_encoded_once_for_all_objects(three):
    seen = []
    handle = three.net.vision_encoder.register_forward_hook(lambda *_: seen.append(1))
    prompts = ({"class": k, "frame": 0, "points": [[9.0 * k, 20.0]], "labels": [1]} for k in (1, 2))
    run(three, video(), *prompts)
    handle.remove()
    assert len(seen) == 6


@pytest.mark.parametrize(("prompted", "changed"), [(0, 3), (5, 2)])
def test_memory_carries_an_object_in_both_directions(one, prompted, changed):
    """A picture on the way changes what is found behind it, and not what was found before."""
    clip = video()
    other = clip.clone()
    other[:, changed] += torch.randn(other[:, changed].shape, generator=torch.Generator().manual_seed(5))
    prompt = {"class": 1, "frame": prompted, **PROMPTS["box"][0]}
    difference = (run(one, clip, prompt) - run(one, other, prompt)).abs().amax((1, 2, 3))
    behind = [frame for frame in range(6) if (frame > changed if prompted == 0 else frame < changed)]
    before = [frame for frame in range(6) if frame != changed and frame not in behind]
    assert (difference[[changed, *behind]] > 1e-4).all()
    assert not difference[before].any()


def test_a_class_without_a_prompt_is_absent(three):
    found = run(three, video(), {"class": 2, "frame": 0, "mask": square()})
    assert (found[:, 1] == ABSENT).all()
    assert (found[:, 2] > ABSENT).any()
    assert torch.equal(found[0].argmax(0) == 2, found[0, 2] > 0)
    torch.testing.assert_close(found.softmax(1)[:, 2], found[:, 2].sigmoid())


def test_a_mask_comes_back_where_it_was_given(three):
    found = run(
        three, video(), {"class": 1, "frame": 2, "mask": square()}, {"class": 2, "frame": 2, "mask": square(left=34)}
    )
    expected = square().long() + 2 * square(left=34)
    assert (found[2].argmax(0) == expected).float().mean() > 0.97  # the network's masks are small


def test_padding_is_left_out(one):
    """Frames that are not real change nothing, wherever they are, and hold nothing."""
    clip = video()
    prompt = PROMPTS["point"][0]
    real = torch.tensor([[False, True, True, True, True, False]])
    found = run(one, clip, {"class": 1, "frame": 2, **prompt}, frame_real=real)
    alone = run(one, clip[:, 1:5], {"class": 1, "frame": 1, **prompt})
    torch.testing.assert_close(found[1:5], alone, rtol=0, atol=0)
    assert (found[[0, 5]] == ABSENT).all()


@pytest.mark.parametrize(("height", "width"), [(17, 90), (64, 64), (130, 70)])
@kinds
def test_one_frame_of_any_size(one, height, width, kind):
    prompt = {**PROMPTS[kind][0]}
    if "mask" in prompt:
        prompt["mask"] = torch.ones(height, width)
    found = run(one, video(1, height, width), {"class": 1, "frame": 0, **prompt})
    assert found.shape == (1, 1, height, width)
    assert found.isfinite().all()


def annotated(clips=1, frames=4):
    """Nothing known of the first frame, the ventricle from the second, the wall from the third."""
    mask = torch.full((clips, frames, 40, 56), 255)
    mask[:, 1:] = 0
    mask[:, 1:, square()] = 1
    mask[:, 2:, 5:9, 30:50] = 2
    return mask


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("mask", {"mask": square()}, {"mask": annotated()[0, 2] == 2}),
        ("box", {"box": [10.0, 12.0, 25.0, 27.0]}, {"box": [30.0, 5.0, 49.0, 8.0]}),
        ("point", {"points": [[17.0, 19.0]], "labels": [1]}, {"points": [[31.0, 6.0]], "labels": [1]}),
    ],
)
def test_annotation_prompts(folder, kind, first, second):
    """Without prompts each class is pointed out on the first annotated frame that shows it."""
    model = build_sam2_video(SAM2Config(weights=str(folder), prompt_from=kind), (THREE,)).eval()
    clip = video(4)
    with torch.inference_mode():
        found = model({"video": clip, "mask": annotated()})["mask"][0]
    given = run(model, clip, {"class": 1, "frame": 1, **first}, {"class": 2, "frame": 2, **second})
    torch.testing.assert_close(found, given, rtol=0, atol=0)


def test_point_lies_deepest_in_the_mask():
    """Not on the edge of the picture, and not in the hole of a ring."""
    ring = torch.zeros(21, 21, dtype=torch.long)
    ring[2:19, 2:19] = 1
    ring[6:15, 5:18] = 0  # the left side is three pixels thick, those above and below four
    (prompt,) = prompts_from({0: ring}, range(1, 2), "point")
    x, y = prompt["points"][0]
    assert ring[int(y), int(x)] == 1
    half = torch.zeros(9, 9, dtype=torch.long)
    half[:, :5] = 1
    (prompt,) = prompts_from({0: half}, range(1, 2), "point")
    assert prompt["points"] == [[2.0, 2.0]]


def test_annotation_that_is_not_there_is_no_prompt(one):
    batch = {"video": video(4), "mask": annotated(), "mask_labelled": torch.tensor([[False, False, True, True]])}
    with torch.inference_mode():
        found = one(batch)["mask"][0]
    torch.testing.assert_close(found, run(one, batch["video"], {"class": 1, "frame": 2, "mask": square()}))


def test_annotation_that_shows_nothing_finds_nothing(one):
    found = one({"video": video(), "mask": torch.zeros(1, 6, 40, 56)})["mask"]
    assert (found == ABSENT).all()
    found.sum().backward()  # training survives such a clip


@pytest.mark.parametrize(
    "more",
    [{}, {"prompts": [[]]}, {"mask": torch.full((1, 6, 40, 56), 255)}, {"prompts": [[]], "mask": annotated(frames=6)}],
)
def test_no_prompt_is_refused(one, more):
    with pytest.raises(DataError, match=r"Clip heart: it has neither a prompt nor an annotated frame.*--prompts FILE"):
        one({"video": video(), "case_id": ["heart"], **more})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"class": 0, "frame": 0, "box": [1, 2, 3, 4]}, "class 0 on frame 0: no such class. What can .* out: 1, 2."),
        ({"class": 3, "frame": 0, "box": [1, 2, 3, 4]}, "class 3 on frame 0: no such class"),
        ({"class": 1, "frame": 6, "box": [1, 2, 3, 4]}, "frame 6: no such frame. The clip has 0, 1, 2, 3, 4, 5."),
        ({"class": 1, "frame": 0}, "it needs points with labels, a box or a mask"),
        (
            {"class": 1, "frame": 0, "box": [1, 2, 3, 4], "mask": square()},
            "SAM 2 takes a mask by itself, without points and box",
        ),
        ({"class": 1, "frame": 0, "mask": square(41)}, r"its mask is \[41, 56\], the frame \[40, 56\]"),
        ({"class": 1, "frame": 0, "box": [1, 2, 3]}, r"a box is \[x0, y0, x1, y1\]"),
        ({"class": 1, "frame": 0, "points": [[1, 2], [3, 4]], "labels": [1]}, "as many labels"),
        ({"class": 1, "frame": 0, "points": [[1, 2]]}, "as many labels"),
        ({"class": 1, "frame": 0, "points": [], "labels": []}, "at least one"),
        ({"class": 1, "frame": 0, "points": [[1, 2]], "labels": [2]}, "a label is 1, inside, or 0, outside"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(three, prompt, message):
    with pytest.raises(DataError, match=f"Clip 0 of the batch: The prompt of .*{message}"):
        run(three, video(), prompt)


@pytest.mark.parametrize("part", [{"mask": square()}, {"points": [[1, 2]], "labels": [1]}])
def test_an_object_is_pointed_out_once_on_a_frame(one, part):
    with pytest.raises(DataError, match="frame 0 is there twice"):
        run(one, video(), {"class": 1, "frame": 0, "mask": square()}, {"class": 1, "frame": 0, **part})


def test_an_empty_mask_says_that_nothing_is_there(one):
    """As it is carried from a window in which the object was lost."""
    nothing = torch.zeros(40, 56)
    found = run(one, video(), {"class": 1, "frame": 0, "mask": nothing}, {"class": 1, "frame": 3, "mask": square()})
    assert (found[0] < 0).all()
    assert (found[3] > 0).any()


def test_clips_do_not_depend_on_each_other(three):
    clips = video(clips=2)
    prompts = [[{"class": 1, "frame": 0, **PROMPTS["box"][0]}], [{"class": 2, "frame": 5, "mask": square()}]]
    with torch.inference_mode():
        together = three({"video": clips, "prompts": prompts})["mask"]
    for number in range(2):
        alone = run(three, clips[number : number + 1], *prompts[number])
        torch.testing.assert_close(together[number], alone, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["mask", "box", "point"])
def test_training_reaches_encoder_memory_and_decoder(folder, kind):
    """What the other frames lose is felt by all but the heads that decide; dropout stays off."""
    model = build_sam2_video(SAM2Config(weights=str(folder), prompt_from=kind), (THREE,)).train()
    batch = {"video": video(4), "mask": annotated()}
    first = model(batch)["mask"]
    assert torch.equal(first, model(batch)["mask"])
    F.cross_entropy(first.flatten(0, 1), batch["mask"].flatten(0, 1), ignore_index=255).backward()
    parts = ["vision_encoder.backbone", "memory_attention", "memory_encoder", "mask_decoder", "object_pointer_proj"]
    for part in parts:
        gradients = [p.grad for p in model.net.get_submodule(part).parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients), part
        assert any(gradient.any() for gradient in gradients), part
    for head in (model.net.mask_decoder.iou_prediction_head, model.net.mask_decoder.pred_obj_score_head):
        assert all(parameter.grad is None for parameter in head.parameters())


def test_learns(folder):
    """A few steps on a clip halve the loss of the frames that were not prompted."""
    model = build_sam2_video(SAM2Config(weights=str(folder)), (ONE,)).train()
    clip = video(3)
    clip[:, :, :, square()] += 3
    batch = {"video": clip, "mask": square().long().expand(1, 3, 40, 56)}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(25):
        logits = model(batch)["mask"][:, 1:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, batch["mask"][:, 1:].float())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("output", [ONE, THREE])
def test_tiny_network_sees_its_objects(output):
    """Untrained as it is, it hides nothing: else it could not be trained either."""
    torch.manual_seed(0)
    model = build_sam2_video(SAM2Config(weights="random"), (output,)).eval()
    found = run(model, video(), {"class": 1, "frame": 0, "mask": square()})
    assert (found[:, -1 if output is ONE else 1] > ABSENT / 2).all()


def test_weights_are_those_of_the_folder(folder, one):
    from safetensors.torch import load_file

    saved = load_file(folder / "model.safetensors")
    state = one.net.state_dict()
    assert saved.keys() <= state.keys()
    assert all(torch.equal(saved[name], state[name]) for name in saved)
    assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}


def test_nothing_is_fetched(folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    build_sam2_video(SAM2Config(weights=str(folder)), (ONE,))
    with pytest.raises(CheckpointError, match=r"there is no config.json and no model.safetensors"):
        build_sam2_video(SAM2Config(weights="facebook/sam2.1-hiera-tiny"), (ONE,))


def test_builds_on_the_meta_device(folder, one):
    with torch.device("meta"):
        model = build_sam2_video(SAM2Config(weights=str(folder)), (ONE,))
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}
    assert {n: v.shape for n, v in model.state_dict().items()} == {n: v.shape for n, v in one.state_dict().items()}


def test_published_sizes():
    """The library's default configuration is SAM 2.1 tiny, of 38.9 million parameters (Meta's table)."""
    with torch.device("meta"):
        net = library().Sam2VideoModel(library().Sam2VideoConfig())
    assert sum(parameter.numel() for parameter in net.parameters()) == 38_962_498


def test_no_weights_is_refused():
    with pytest.raises(ConfigError, match=r"model.weights names no folder: SAM 2 needs a folder with config.json and"):
        build_sam2_video(SAM2Config(), (ONE,))


def test_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no config.json and no model.safetensors.*e.g. those of facebook/sam2.1"
    ):
        build_sam2_video(SAM2Config(weights=str(tmp_path / "absent")), (ONE,))


def test_pickled_weights_are_refused(folder, tmp_path):
    """A folder with pytorch_model.bin alone is refused, and the file is not opened."""

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was executed",))

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({"trap": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"there is no model.safetensors.*no pickled weights"):
        build_sam2_video(SAM2Config(weights=str(tmp_path)), (ONE,))


def test_damaged_weights_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read as SAM 2 for video"):
        build_sam2_video(SAM2Config(weights=str(tmp_path)), (ONE,))


def test_weights_of_something_else_are_refused(folder, tmp_path):
    """What is not in the file would else be left random, with no more than a warning."""
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    state = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in state.items() if not name.startswith("memory_encoder")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    number = len(state) - len(kept)
    with pytest.raises(CheckpointError, match=rf"lacks {number} entries of SAM 2 for video, e.g. memory_encoder\."):
        build_sam2_video(SAM2Config(weights=str(tmp_path)), (ONE,))


def test_transformers_that_is_not_there_is_asked_for(monkeypatch):
    sam2._library.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ConfigError, match=r"needs transformers 5 or later .*pip install 'medvid-medivista-sam\[sam2\]'"
    ):
        build_sam2_video(SAM2Config(weights="random"), (ONE,))


@pytest.mark.parametrize(
    "outputs", [(), (ONE, THREE), (OutputSpec(name="view", task="classification", classes=("a", "b")),)]
)
def test_other_outputs_are_refused(outputs):
    with pytest.raises(ConfigError, match="exactly one segmentation"):
        build_sam2_video(SAM2Config(weights="random"), outputs)


def test_prompt_kind_is_checked():
    with pytest.raises(ConfigError, match=r"model.prompt_from='polygon' cannot be used: .* mask, box or point"):
        SAM2Config(prompt_from="polygon")


def test_a_copy_is_the_same(one):
    """To the bit: the moving average of training copies the model, and its file is loaded into another."""
    clip, prompt = video(), {"class": 1, "frame": 0, **PROMPTS["box"][0]}
    assert torch.equal(run(copy.deepcopy(one), clip, prompt), run(one, clip, prompt))
