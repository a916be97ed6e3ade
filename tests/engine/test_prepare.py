"""Videos are prepared before they are divided: runs share the work, a bad video costs itself, a bad machine stops."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medvid_core.config import SplitConfig
from medvid_core.data.clip import Case, Index, Source
from medvid_core.data.preprocess import Preparation
from medvid_core.data.stages import Made, Stage
from medvid_core.engine.prepare import prepare
from medvid_core.engine.progress import Progress
from medvid_core.engine.run import prepare_lines
from medvid_core.engine.setup import accelerator, open_data
from medvid_core.errors import CacheError, DataError
from medvid_core.specs import OutputSpec


def draw(source: Source, frames) -> np.ndarray:
    return np.stack([np.full((6, 8, 3), source.options, np.uint8) for _ in frames])


def drawn(name: str, light: int) -> Case:
    source = Source(reader=f"{__name__}:draw", options=light)
    return Case(case_id=name, group_id=name, frames=2, fps=10.0, streams={"video": source})


def preparation(run) -> Preparation:
    def stage(work) -> Made:
        run(work.case.case_id)
        work.write("light", "mask", (image[None, ..., 0] for image in work.read(range(work.case.frames))))
        return Made(note="a remark")

    stages = (Stage(name="light", provides=("light",), requires=("video",), run=stage),)
    return Preparation(name="stub", settings={}, version="1", stages=stages)


def prepared(cases, run, folder):
    return prepare(cases, preparation(run), str(folder), accelerator(), Progress(enabled=False))


CASES = [drawn(name, 10 + number) for number, name in enumerate("abcd")]


class Dark:
    """A stage that counts, and refuses one case."""

    def __init__(self, error: Exception):
        self.ran, self.error = [], error

    def __call__(self, name):
        self.ran.append(name)
        if name == "b":
            raise self.error


def test_a_video_that_cannot_be_prepared_is_left_out_and_not_looked_at_again(tmp_path):
    first, second = Dark(DataError("It is dark.")), Dark(DataError("It is dark."))
    found, again = prepared(CASES, first, tmp_path), prepared(CASES, second, tmp_path)
    assert (first.ran, second.ran) == (["a", "b", "c", "d"], [])
    for each in (found, again):
        assert list(each.cases) == ["a", "c", "d"]
        assert each.skipped == {"b": "It is dark."}
    assert (again.record["from_cache"], again.record["computed"], again.record["left_out"]) == (3, 0, 1)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), OSError(5, "Input/output error"), RuntimeError("a bug")]
)
def test_a_fault_of_the_machine_stops_and_names_the_case(tmp_path, error):
    """It is no reason to leave a video out; what was computed before is kept."""
    with pytest.raises(type(error)) as raised:
        prepared(CASES, Dark(error), tmp_path)
    assert raised.value.__notes__ == ["This happened as stub prepared the case 'b'."]
    healthy = Dark(DataError("It is dark."))
    prepared(CASES, healthy, tmp_path)
    assert healthy.ran == ["b", "c", "d"]


def test_a_full_disk_stops(tmp_path):
    with pytest.raises(CacheError, match=r"The disk of the cache .* is full"):
        prepared(CASES, Dark(OSError(28, "No space left on device")), tmp_path)


WORKER = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path

    sys.path.insert(0, sys.argv[1])
    import test_prepare as t

    log = Path(sys.argv[2])

    def run(name):
        (log / f"{name}-{os.getpid()}").touch()
        until = time.monotonic() + 100
        while len({path.name.split("-")[1] for path in log.iterdir()}) < 2:  # both are at work at the same time
            assert time.monotonic() < until, "the other run waits for this one"
            time.sleep(0.01)

    found = t.prepared(t.CASES, run, sys.argv[3])
    print(list(found.cases), found.record["computed"])
    """
)


def test_two_runs_share_the_work(tmp_path):
    """Neither goes in lockstep behind the other: both compute some, none is computed twice, both have all."""
    script, log = tmp_path / "worker.py", tmp_path / "log"
    script.write_text(WORKER)
    log.mkdir()
    here = __file__.rpartition("/")[0]
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), here, str(log), str(tmp_path / "cache")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [run.communicate()[0].rsplit(" ", 1) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert {cases for cases, _ in said} == {"['a', 'b', 'c', 'd']"}
    computed = [int(count) for _, count in said]
    assert sum(computed) == 4
    assert min(computed) >= 1
    assert sorted(path.name[0] for path in log.iterdir()) == ["a", "b", "c", "d"]


def test_remarks_are_shortened_only_where_a_record_holds_them(tmp_path):
    record = prepared([drawn(f"{number}", number) for number in range(7)], lambda _: None, tmp_path).record
    assert prepare_lines(record)[-2:] == ["note     4: a remark", "note     … and 2 more such remarks, see the record"]
    assert prepare_lines(record, most=None)[-1] == "note     6: a remark"
    assert len(prepare_lines(record, most=None)) == 8


DIAGNOSIS = OutputSpec(name="diagnosis", task="classification", classes=("normal", "abnormal"))


def data(fixed: str = "", lost: str = "", classes: str = "", recorded=None, **split):
    """Divide ten cases a to j, of which some could not be prepared; ``fixed``: the part of each, by its letter."""
    parts = {"t": "train", "v": "val", "e": "test"}
    cases = [
        replace(
            drawn(name, number),
            split=parts[fixed[number]] if fixed else None,
            targets={"diagnosis": int(classes[number]) if classes else number % 2},
        )
        for number, name in enumerate("abcdefghij")
    ]
    config = SimpleNamespace(
        split=SplitConfig(**{"val": 0.2, "test": 0.2, **split}), outputs=(), preprocess=SimpleNamespace(name="stub")
    )
    composed = SimpleNamespace(model=SimpleNamespace(name="stub", tasks=("classification",)), config=config)
    index = Index(cases=tuple(cases), outputs=(DIAGNOSIS,), skipped={name: f"{name} is dark." for name in lost})
    ready = {case.case_id: replace(case, frames=1) for case in cases if case.case_id not in lost}
    return open_data(composed, index, ready, recorded)


def ids(found) -> dict[str, str]:
    return {part: "".join(case.case_id for case in cases) for part, cases in found.splits.items()}


def test_parts_are_drawn_from_what_could_be_prepared():
    found = ids(data(lost="abcde"))
    assert sorted("".join(found.values())) == list("fghij")
    assert all(found.values()), "each part that was asked for has its share"
    assert all(case.frames == 1 for case in data(lost="a").splits["train"]), "the prepared ones"


def test_a_part_that_the_data_fix_is_not_made_of_others():
    assert ids(data(fixed="ttttttvvee", lost="g")) == {"train": "abcdef", "val": "h", "test": "ij"}
    for part, lost in (("val", "gh"), ("test", "ij"), ("train", "abcdef")):
        with pytest.raises(DataError, match=rf"No {part} case is left, as {len(lost)} of 10 .*{lost[0]}: {lost[0]} is"):
            data(fixed="ttttttvvee", lost=lost)


def test_a_part_that_was_asked_for_is_not_dropped():
    """With two cases left one is tested, one trained on, and none to choose the weights by."""
    with pytest.raises(DataError, match=r"No val case is left, as 8 of 10 case\(s\) could not be prepared"):
        data(lost="abcdefgh", classes="1" * 10)
    assert ids(data(lost="abcdefgh", classes="1" * 10, val=0))["val"] == ""


def test_a_class_that_is_lost_is_an_error():
    with pytest.raises(DataError, match=r"No training case is left that holds diagnosis: abnormal, as 2 could not be"):
        data(classes="0000000011", lost="ij")
    with pytest.raises(DataError, match="diagnosis: abnormal, as 1 could not"):
        data(fixed="ttttttvvee", classes="1000001111", lost="a")
    data(fixed="ttttttvvee", classes="0000001111", lost="g")  # never trained on: the preparation took nothing away


FOLDS = (
    """{"folds": [{"test": ["a", "b", "c"], "val": ["d"]}, {"test": ["d", "e", "f", "g", "h", "i"], "val": ["a"]}]}"""
)


def test_a_file_of_folds_stays_as_it_is(tmp_path):
    """It need not name what could not be prepared; where it does, the part goes on without."""
    file = tmp_path / "splits.json"
    file.write_text(FOLDS)
    found = data(lost="ja", file=str(file), fold=0)
    assert ids(found) == {"train": "efghi", "val": "d", "test": "bc"}
    assert found.fallen == ("a",)
    with pytest.raises(DataError, match="No val case is left, as 2 of 10"):
        data(lost="jd", file=str(file), fold=0)
    with pytest.raises(DataError, match="No test case is left, as 4 of 10"):
        data(lost="jabc", file=str(file), fold=0)
    with pytest.raises(DataError, match="case 'j' of the data is in no fold"):
        data(lost="a", file=str(file), fold=0)


def test_a_run_that_is_gone_on_with_keeps_its_parts():
    recorded = {"train": list("abcdef"), "val": list("gh"), "test": ["i"]}
    found = data(lost="ba", recorded=recorded)
    assert ids(found) == {"train": "cdef", "val": "gh", "test": "i"}, "j was left out when it began"
    assert found.fallen == ("a", "b")
