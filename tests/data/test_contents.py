"""What stands in a case: kept while nothing is touched, told apart by the masks themselves."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from medvid_core.data.clip import Case, Source
from medvid_core.data.contents import Content, content_of, key_of
from medvid_core.specs import OutputSpec

MASK = (OutputSpec(name="mask", task="segmentation", classes=("background", "lesion")),)


@pytest.fixture
def case(tmp_path):
    """Two frames of 6x8 pixels with masks; half of each is lesion."""
    paths = {}
    for kind in ("video", "mask"):
        for frame in range(2):
            image = np.zeros((6, 8), np.uint8)
            image[:3] = kind == "mask"
            Image.fromarray(image).save(tmp_path / f"{kind}{frame}.bmp")
        paths[kind] = tuple(str(tmp_path / f"{kind}{frame}.bmp") for frame in range(2))
    streams = {
        "video": Source(reader="frames", paths=paths["video"]),
        "mask": Source(reader="frames", paths=paths["mask"], values=(0, 1)),
    }
    return Case(case_id="a", group_id="a", frames=2, streams=streams)


def test_what_is_kept_is_what_was_found(case):
    found = content_of(case, MASK)
    assert found.shares == (0.5,)
    assert Content.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.key == key_of(case, MASK)


def test_a_mask_drawn_anew_is_noticed_and_one_touched_is_not(case):
    """A file of the same size with other pixels is another mask; one with a new time alone is the same."""
    before, path = content_of(case, MASK), case.streams["mask"].paths[1]
    os.utime(path, ns=(1, 1))
    assert key_of(case, MASK) != before.key
    assert content_of(case, MASK).digest == before.digest
    size = os.path.getsize(path)
    image = np.zeros((6, 8), np.uint8)
    image[3:] = 1
    Image.fromarray(image).save(path)
    assert os.path.getsize(path) == size
    after = content_of(case, MASK)
    assert (after.shares, after.annotated) == (before.shares, before.annotated)
    assert after.digest != before.digest


def test_the_key_holds_what_is_predicted_and_annotated(case):
    other = (OutputSpec(name="mask", task="segmentation", classes=("background", "lesion", "fluid")),)
    half = Case(case_id="a", group_id="a", frames=2, streams=case.streams, labelled=(0,))
    assert len({key_of(case, MASK), key_of(case, other), key_of(half, MASK)}) == 3


def test_a_mask_that_cannot_be_read_costs_its_case(case):
    with open(case.streams["mask"].paths[0], "wb") as file:
        file.write(b"no image")
    found = content_of(case, MASK)
    assert (found.annotated, found.digest, found.classes) == (0, "", frozenset())
