"""Files of prompts, and prompts made of annotations."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medvid_core import DataError, OutputSpec
from medvid_core.data.clip import Case, Source
from medvid_core.data.prompts import KINDS, Prompt, from_mask, read_prompts
from medvid_core.data.transforms import resize_affine

BINARY = OutputSpec(name="mask", task="segmentation", classes=("lv",))
SEVERAL = OutputSpec(name="mask", task="segmentation", classes=("background", "lv", "la"))


def case(name: str = "one", frames: int = 5) -> Case:
    return Case(case_id=name, group_id=name, frames=frames, streams={"video": Source(reader="video", paths=("x",))})


def written(folder, *entries):
    path = folder / "prompts.json"
    path.write_text(json.dumps({"prompts": list(entries)}))
    return path


def test_points_boxes_and_masks_are_read(tmp_path):
    Image.fromarray(np.array([[0, 9], [0, 0]], np.uint8)).save(tmp_path / "m.png")
    path = written(
        tmp_path,
        {"frame": 0, "class": "la", "points": [[1, 2], [3.5, 4]], "labels": [1, 0]},
        {"case": "one", "frame": 4, "class": "lv", "box": [1, 2, 3, 4], "mask": "m.png"},
    )
    first, second = read_prompts(path, [case()], SEVERAL)["one"]
    assert first == Prompt(frame=0, label=2, points=((1, 2), (3.5, 4)), positive=(True, False))
    assert (second.frame, second.label, second.box) == (4, 1, (1, 2, 3, 4))
    assert second.mask.tolist() == [[False, True], [False, False]]


def test_prompts_of_one_class_in_one_frame_are_one(tmp_path):
    point, box = {"frame": 1, "points": [[1, 2]]}, {"frame": 1, "box": [0, 0, 4, 4]}
    outside = {"frame": 1, "points": [[7, 7]], "labels": [0]}
    (found,) = read_prompts(written(tmp_path, point, box, outside), [case()], BINARY)["one"]
    assert found == Prompt(frame=1, label=1, points=((1, 2), (7, 7)), positive=(True, False), box=(0, 0, 4, 4))
    with pytest.raises(DataError, match="prompt 1 gives a second box"):
        read_prompts(written(tmp_path, box, box), [case()], BINARY)


def test_the_only_class_need_not_be_named(tmp_path):
    found = read_prompts(written(tmp_path, {"frame": 1, "points": [[1, 2]]}), [case()], BINARY)
    assert found["one"] == (Prompt(frame=1, label=1, points=((1, 2),), positive=(True,)),)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"frame": 5, "class": "lv", "box": [0, 0, 1, 1]}, "frame=5 must be from 0 to 4"),
        ({"frame": 0, "class": "rv", "box": [0, 0, 1, 1]}, "class='rv' must be one of lv, la"),
        ({"frame": 0, "box": [0, 0, 1, 1]}, "class=None must be one of lv, la"),
        ({"frame": 0, "class": "lv"}, "neither points nor box nor mask"),
        ({"frame": 0, "class": "lv", "box": [2, 0, 1, 1]}, "must be left, top, right, bottom"),
        ({"frame": 0, "class": "lv", "points": [[1, "x"]]}, "points must be a list of [x, y]"),
        ({"frame": 0, "class": "lv", "points": [[1, 2]], "labels": [1, 0]}, "labels must be 1 (inside) or 0"),
        ({"frame": 0, "class": "lv", "mask": "absent.png"}, "the mask absent.png cannot be read"),
        ({"frame": 0, "class": "lv", "pionts": [[1, 2]]}, "unknown key 'pionts'. Did you mean 'points'?"),
        ({"case": "onee", "frame": 0, "class": "lv", "box": [0, 0, 1, 1]}, "no video 'onee'. Did you mean 'one'?"),
        ({"frame": True, "class": "lv", "box": [0, 0, 1, 1]}, "frame=True must be from 0 to 4"),
        ({"frame": 0, "class": "lv", "points": [[1, 2]], "labels": 5}, "labels must be 1 (inside) or 0"),
        ({"frame": 0, "class": "lv", "points": [[1, 2]], "labels": None}, "labels must be 1 (inside) or 0"),
        ({"frame": 0, "class": "lv", "mask": "empty.png"}, "the mask empty.png is empty: no pixel of it is above 0"),
        (3, "must be an object"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, entry, words):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "empty.png")
    with pytest.raises(DataError) as caught:
        read_prompts(written(tmp_path, entry), [case()], SEVERAL)
    assert words in str(caught.value)
    assert "prompts.json, prompt 0" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"prompts": []}', '{"prompts": {}}', "\0"])
def test_what_holds_no_prompts_is_refused(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"p\.json"):
        read_prompts(path, [case()], BINARY)
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "absent.json", [case()], BINARY)


def test_everything_belongs_into_the_list(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"prompts": [{"frame": 0, "box": [0, 0, 1, 1]}], "lables": []}')
    with pytest.raises(DataError, match="unknown key 'lables' beside 'prompts'"):
        read_prompts(path, [case()], BINARY)


@pytest.mark.parametrize(
    ("pointed", "words"),
    [
        (
            {"points": ((300.5, 5.0),), "positive": (True,)},
            "(300.5, 5) lies outside the video, which has 300 x 240 pixels",
        ),
        ({"box": (-100.0, -100.0, 50.0, 40.0)}, "(-100, -100) lies outside"),
        ({"mask": np.ones((10, 12), bool)}, "its mask is 12 x 10 pixels, the video 300 x 240"),
    ],
)
def test_what_lies_outside_is_refused(pointed, words):
    with pytest.raises(DataError) as caught:
        Prompt(frame=3, label=1, **pointed).check(240, 300)
    assert str(caught.value).startswith("The prompt of class 1 on frame 3: ")
    assert words in str(caught.value)
    Prompt(frame=3, label=1, box=(-0.5, -0.5, 300.0, 240.0), mask=np.ones((240, 300), bool)).check(240, 300)


def test_of_several_videos_one_must_be_named(tmp_path):
    with pytest.raises(DataError, match="which of the 2 videos"):
        read_prompts(written(tmp_path, {"frame": 0, "box": [0, 0, 1, 1]}), [case("a"), case("b")], BINARY)


def test_coordinates_follow_the_resize():
    affine = resize_affine((100, 200), (50, 50))
    prompt = Prompt(frame=7, label=1, points=((199.0, 99.0),), positive=(True,), box=(0.0, 0.0, 199.0, 99.0))
    found = prompt.to_model(2, affine, (50, 50))
    assert (found["class"], found["frame"]) == (1, 2)
    torch.testing.assert_close(found["points"], torch.tensor([[49.375, 49.25]]))
    torch.testing.assert_close(found["box"], torch.tensor([-0.375, -0.25, 49.375, 49.25]))
    assert found["labels"].tolist() == [1]


@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
def test_prompts_of_an_annotation_lie_inside(seed, kind):
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), (7, 9), p=[0.5, 0.2, 0.2, 0.1])
    prompts = from_mask(mask, 3, kind)
    assert [p.label for p in prompts] == sorted(set(mask.flatten().tolist()) - {0, 255})
    for prompt in prompts:
        inside = mask == prompt.label
        if kind == "mask":
            assert (prompt.mask == inside).all()
        elif kind == "point":
            ((x, y),) = prompt.points
            assert inside[int(y), int(x)]
        else:
            left, top, right, bottom = (int(v) for v in prompt.box)
            assert inside[top : bottom + 1, left : right + 1].sum() == inside.sum()
            assert inside[top].any()
            assert inside[:, right].any()
