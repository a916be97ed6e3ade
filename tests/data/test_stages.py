"""What a stage is told of those before it, and what is not at hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medvid_core.data.cache import Cache
from medvid_core.data.clip import Case, Source
from medvid_core.data.stages import Made, Stage, Work, all_ready, prepare_case, wanted
from medvid_core.errors import ConfigError


def draw(source: Source, frames) -> np.ndarray:
    return np.stack([np.full((6, 8), source.options + frame, np.uint8) for frame in frames])


CASE = Case(
    case_id="a", group_id="a", frames=4, fps=10.0, streams={"video": Source(reader=f"{__name__}:draw", options=10)}
)


class Three:
    """A stage that says something, one that says more, and one that reads what either said."""

    def __init__(self, **last) -> None:
        self.ran: list[str] = []
        self.heard: dict[str, object] = {}
        self.stages = [self._stage("first"), self._stage("second"), self._stage("third", **last)]

    def _stage(self, name: str, **more) -> Stage:
        return Stage(name=name, provides=(name,), requires=("video",), run=lambda work: self._run(name, work), **more)

    def _run(self, name: str, work: Work) -> Made:
        self.ran.append(name)
        self.heard[name] = {key: dict(value) for key, value in work.details.items()}
        work.write(name, "mask", (image[None, ..., 0] for image in work.read(range(work.case.frames))))
        return Made(details={"by": name})

    def prepare(self, cache: Cache, changed: str = "") -> None:
        stages = [replace(stage, version="2") if stage.name == changed else stage for stage in self.stages]
        prepare_case(CASE, stages, cache, torch.device("cpu"))


@pytest.mark.parametrize(
    ("details_of", "heard", "changed", "anew"),
    [
        ((), {}, "second", ["second"]),
        (("first",), {"first": {"by": "first"}}, "second", ["second"]),
        (("first",), {"first": {"by": "first"}}, "first", ["first", "second", "third"]),
        (None, {"first": {"by": "first"}, "second": {"by": "second"}}, "second", ["second", "third"]),
    ],
    ids=["nothing", "another", "its own", "all by default"],
)
def test_only_what_a_stage_is_told_changes_its_result(tmp_path, details_of, heard, changed, anew):
    three = Three(details_of=details_of)
    three.prepare(Cache(tmp_path))
    assert three.heard["third"] == heard
    three.ran.clear()
    three.prepare(Cache(tmp_path), changed)
    assert three.ran == anew


def test_a_stage_brings_those_whose_details_it_reads():
    stages = Three(details_of=("first",)).stages
    assert [stage.name for stage in wanted(stages, ("third",))] == ["first", "third"]
    assert [stage.name for stage in wanted(Three(details_of=()).stages, ("third",))] == ["third"]


def test_all_that_is_missing_is_named_at_once():
    def missing(name: str):
        def ready():
            raise ConfigError(f"{name} is not at hand.")

        return ready

    first, second, third = Three().stages
    with pytest.raises(ConfigError, match=r"^first is not at hand\.\nthird is not at hand\.$"):
        all_ready([replace(first, ready=missing("first")), second, replace(third, ready=missing("third"))])
    ready = all_ready([replace(first, ready=lambda: {"weights": "abc"}), second])
    assert ready[0].settings == {"weights": "abc"}
