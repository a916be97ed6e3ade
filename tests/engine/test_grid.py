"""Settings with several values: what is one value, what is a grid, and what cannot be searched over."""

import pytest

from medvid_core.config import compose
from medvid_core.engine.grid import Point, check_alike, points_of, split_values
from medvid_core.errors import ConfigError
from medvid_core.plugins import registry


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1e-3", ["1e-3"]),
        ("1e-3,1e-4", ["1e-3", "1e-4"]),
        ("[64,64]", ["[64,64]"]),
        ("[64,64],[96,96]", ["[64,64]", "[96,96]"]),
        ('{"*.bias": 2, a: 1}', ['{"*.bias": 2, a: 1}']),
        ("'a,b',c", ["'a,b'", "c"]),
        ("[[1,2],[3,4]]", ["[[1,2],[3,4]]"]),
        ("a, b", ["a", "b"]),
        ("", [""]),
    ],
)
def test_commas_outside_of_brackets_divide(text, parts):
    assert split_values(text) == parts


def test_every_combination_is_a_point():
    same, points = points_of(["optimizer.lr=1e-3,1e-4", "train.epochs=3", "loss=dice,dice-ce", "clip.size=[32,32]"])
    assert same == ["train.epochs=3", "clip.size=[32,32]"]
    assert [point.name for point in points] == [
        "lr=1e-3_loss=dice",
        "lr=1e-3_loss=dice-ce",
        "lr=1e-4_loss=dice",
        "lr=1e-4_loss=dice-ce",
    ]
    assert points[1].words == ("optimizer.lr=1e-3", "loss=dice-ce")


def test_without_several_values_there_is_one_nameless_point():
    same, points = points_of(["train.epochs=3"])
    assert same == ["train.epochs=3"]
    assert [(point.name, point.words) for point in points] == [("", ())]


def test_names_are_folders_and_tell_points_apart():
    _, points = points_of(["model.scale=1,2", "augment.scale=0.1,0.2", "clip.size=[32,32],[64,64]"])
    assert points[0].name.startswith("model.scale_1_augment.scale_0.1_size_32_32")  # brackets: made safe, with a hash
    assert len({point.name for point in points}) == 8
    assert all("/" not in point.name and "[" not in point.name for point in points)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("metrics=dice,mae", "'metrics=dice,mae' cannot be searched over: the points would not be scored alike"),
        ("dataset.size=[4,4],[5,5]", "cannot be searched over: the points would not be scored on the same cases"),
        ("split.val=0.1,0.2", "cannot be searched over: the points would not be scored on the same cases"),
        ("seed=1,2", "the best of several seeds is chance; medvid-run compare --seeds shows"),
        ("model=unet,vivim", "models are compared with medvid-run compare --models"),
        ("optimizer.lr=1,1", "the values to search over must be different, and none empty"),
        ("optimizer.lr=1,", "the values to search over must be different, and none empty"),
    ],
)
def test_what_cannot_be_searched_over_is_refused(word, text):
    with pytest.raises(ConfigError) as info:
        points_of([word])
    assert text in str(info.value)


def test_a_key_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer\.lr is given twice"):
        points_of(["optimizer.lr=1,2", "optimizer.lr=3,4"])


ALONE = ("clip.size=[32,32]", "clip.size=[48,48]")


@pytest.mark.parametrize(
    ("values", "same", "text"),
    [
        (("metrics=[dice]", "metrics=[mae]"), (), "a and b cannot be compared: metrics is ['dice'] in one and ['mae']"),
        (
            ("dataset.cases=6", "dataset.cases=7"),
            (),
            "dataset.cases is 6 in one and 7 in the other. Give dataset.cases",
        ),
        (("evaluate.at=model", "evaluate.at=source"), (), "evaluate.at is model in one and source in the other"),
        (ALONE, ("evaluate.at=model",), "(evaluate.at=model scores the pixels the model sees). Give clip.size one"),
        (("clip.fan_crop=none", "clip.fan_crop=auto"), ("evaluate.at=model",), "clip.fan_crop is none in one and auto"),
        (ALONE, ("evaluate.at=source",), ""),
        (("optimizer.lr=1e-3", "optimizer.lr=1e-4"), ("evaluate.at=model",), ""),
    ],
)
def test_points_that_are_judged_by_different_things_are_refused(values, same, text):
    """Whatever sets them: a preset may set any of these."""
    points = [Point(name, (value,)) for name, value in zip("ab", values, strict=True)]
    composed = [compose(registry(), "unet", None, [*same, *point.words]) for point in points]
    if not text:
        check_alike(points, composed)
        return
    with pytest.raises(ConfigError) as info:
        check_alike(points, composed)
    assert text in str(info.value)
