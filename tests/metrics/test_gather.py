"""Cases drawn from a pool are scored as if one by one, and much faster: what resampling thousands of times rests on."""

from dataclasses import replace

import numpy as np
import pytest

from medvid_core.metrics.base import CaseMetric
from medvid_core.metrics.gather import Drawn, stacked, together
from medvid_core.plugins import registry
from medvid_core.specs import OutputSpec, resolve
from medvid_core.testing.predictions import chance, described, unknown

CLASSES = {"regression": ("edv", "esv"), "anomaly": ("stall",)}
OF_CASES = [
    (provided.spec.name, task)
    for provided in registry().provided["metric"]
    for task in provided.spec.tasks
    if task != "segmentation" and provided.distribution == "medvid-core"
]


def an_output(task) -> OutputSpec:
    return described(OutputSpec(name="y", task=task, classes=CLASSES.get(task, ("a", "b", "c"))))


@pytest.mark.parametrize(("name", "task"), OF_CASES)
def test_every_metric_scores_a_draw_as_its_cases(name, task):
    """To the bit, with repetition, and with cases of which nothing is known; also of several draws from one pool."""
    output = an_output(task)
    metric = resolve(registry().find("metric", name).spec.build)((output,))
    assert isinstance(metric, CaseMetric)
    made = [*chance(output, 0), *unknown(output)]
    pool, rng = Drawn(made), np.random.default_rng(1)
    for size in (1, 5, len(made), 3 * len(made)):
        places = rng.integers(0, len(made), size).tolist()
        expected = metric.summarise([replace(made[place]) for place in places])
        np.testing.assert_equal(metric.summarise(pool.draw(places)), expected)


def test_a_draw_is_a_sequence():
    made = chance(an_output("regression"), 0)
    drawn = Drawn(made).draw([3, 1, 3])
    assert list(drawn) == [made[3], made[1], made[3]]
    assert drawn[-1] is made[3]
    assert list(drawn[1:]) == list(drawn.draw([1, 2])) == [made[1], made[3]]
    assert len(drawn) == 3


def test_what_depends_on_a_case_alone_is_computed_once():
    made, asked = chance(an_output("regression"), 0), []
    pool = Drawn(made)
    for _ in range(3):
        found = stacked(pool.draw([0, 0, 5]), "first", lambda case: asked.append(case) or case.predicted["y"][0])
        assert found.tolist() == [made[place].predicted["y"][0] for place in (0, 0, 5)]
    assert asked == made


def test_of_nothing_known_shapes_are_kept():
    output = an_output("regression")
    blank = unknown(output)
    for cases in (blank, Drawn(blank).draw([1, 0, 1])):
        assert [part.shape for part in together(cases, output)] == [(0, 2), (0, 2)]
