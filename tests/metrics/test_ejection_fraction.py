"""The ejection fraction from masks: ellipsoids of known volume, which frames, two views, and what is undefined."""

import math

import numpy as np
import pytest
import torch

from medvid_core import Case, ConfigError, OutputSpec, Source, create_metric
from medvid_core.data.phantoms.echo import EchoPhantomConfig, draw_case, render_case
from medvid_core.metrics.base import ScoredFrames
from medvid_core.metrics.ejection_fraction import QUANTITIES, agreement, biplane_view
from medvid_core.metrics.ventricle import DISCS, discs, left_ventricle

LV = OutputSpec(name="mask", task="segmentation", classes=("lv",))
NAMES = ("ejection-fraction", "ejection-fraction-area-length")
SIZE = (220, 240)


def ellipse(length, width, angle=0.0, spacing=(0.5, 0.5), cut=1.0, tilt=0.0, size=SIZE) -> np.ndarray:
    """An ellipse of these half axes in mm, cut at this share of the half axis towards the base; angles in degrees."""
    y, x = ((np.arange(side) - side / 2 + 0.3) * step for side, step in zip(size, spacing, strict=True))
    y, x = np.meshgrid(y, x, indexing="ij")
    turn = math.radians(angle)
    along, across = y * math.cos(turn) + x * math.sin(turn), x * math.cos(turn) - y * math.sin(turn)
    inside = (along / length) ** 2 + (across / width) ** 2 <= 1
    return inside & (along + math.tan(math.radians(tilt)) * across <= cut * length)


def volume(length, width, cut=1.0) -> float:
    """Of the prolate ellipsoid, cut at right angles to its axis, in ml."""
    return math.pi * width**2 * length * (cut - cut**3 / 3 + 2 / 3) / 1000


def measured(name, mask, spacing, other=None) -> float:
    one = discs(mask, spacing)
    return create_metric(name, [LV]).volume_ml(one, one if other is None else discs(other, spacing))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("angle", [0, 17, 45, 90, 130, 180, 250])
@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.4, 0.8)])
def test_a_prolate_ellipsoid(name, angle, spacing):
    """Whichever way it lies, and whatever the shape of the pixels.

    It has no mitral plane, so that its length, on which the second formula leans more, comes out a little short.
    """
    for length, width in ((40, 20), (45, 18), (35, 23)):
        found = measured(name, ellipse(length, width, angle, spacing), spacing)
        assert found == pytest.approx(volume(length, width), rel=0.02 if name == "ejection-fraction" else 0.035)


@pytest.mark.parametrize("angle", [0, 30, 100, 200])
@pytest.mark.parametrize("cut", [0.3, 0.5])
def test_a_ventricle_ends_at_the_mitral_plane(angle, cut):
    """A truncated ellipsoid by summation of discs, its base at either end of the picture; length and diameters too."""
    mask = ellipse(42, 21, angle, cut=cut)
    assert measured("ejection-fraction", mask, (0.5, 0.5)) == pytest.approx(volume(42, 21, cut), rel=0.025)
    found = discs(mask, (0.5, 0.5))
    assert found[DISCS] == pytest.approx(42 * (1 + cut), rel=0.02)
    middles = -1 + (np.arange(DISCS)[::-1] + 0.5) / DISCS * (1 + cut)  # from base to apex
    assert found[1 : DISCS - 1] == pytest.approx((42 * np.sqrt(1 - middles**2))[1:-1], abs=1.5)


def test_a_tilted_mitral_plane_is_halved_in_its_middle():
    """The long axis ends there, and leans a little; the volume hardly changes."""
    straight, tilted = (ellipse(42, 21, cut=0.4, tilt=tilt) for tilt in (0, 15))
    found = [discs(mask, (0.5, 0.5))[DISCS] for mask in (straight, tilted)]
    assert found[1] == pytest.approx(found[0], rel=0.02)
    volumes = [measured("ejection-fraction", mask, (0.5, 0.5)) for mask in (straight, tilted)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.03)


def test_two_views_of_an_ellipsoid_with_three_axes():
    """A product of diameters, which neither view alone gives."""
    one, other = ellipse(40, 20), ellipse(40, 14)
    expected = 4 / 3 * math.pi * 40 * 20 * 14 / 1000
    for name in NAMES:
        assert measured(name, one, (0.5, 0.5), other) == pytest.approx(expected, rel=0.025)
        assert measured(name, one, (0.5, 0.5), other) == pytest.approx(measured(name, other, (0.5, 0.5), one))


def test_of_two_lengths_discs_take_the_longer_and_areas_the_shorter():
    one, other = np.full(DISCS + 1, 30.0), np.full(DISCS + 1, 40.0)
    one[DISCS], other[DISCS] = 80, 90
    simpson, area_length = (create_metric(name, [LV]).volume_ml(one, other) for name in NAMES)
    assert simpson == pytest.approx(math.pi / 4 * 90 * 30 * 40 / 1000)
    assert area_length == pytest.approx(8 * (30 * 80) * (40 * 90) / (3 * math.pi * 80) / 1000)


def test_small_islands_are_not_the_ventricle():
    clean = ellipse(40, 20)
    dirty = clean.copy()
    dirty[3:9, 3:9] = True
    assert (discs(clean, (0.5, 0.5)) == discs(dirty, (0.5, 0.5))).all()


def test_an_empty_mask_has_no_discs_and_a_pixel_has():
    assert np.isnan(discs(np.zeros((5, 5), bool), (1, 1))).all()
    dot = np.zeros((5, 5), bool)
    dot[2, 3] = True
    assert discs(dot, (2.0, 1.0))[DISCS] == 2
    assert discs(dot, (2.0, 1.0))[:DISCS] == pytest.approx(np.ones(DISCS))


def test_the_phantom_measures_what_it_was_drawn_with():
    """Volumes and ejection fraction of the drawn hearts, from their masks."""
    for number in range(6):
        case = draw_case(EchoPhantomConfig(cases=6, size=(160, 160)), number)
        masks = render_case(case)[1] == 1
        edv, esv = (
            measured("ejection-fraction", masks[frame], case.spacing_mm) for frame in (case.ed_frame, case.es_frame)
        )
        assert edv == pytest.approx(case.edv_ml, rel=0.03)
        assert 100 * (edv - esv) / edv == pytest.approx(case.ejection_fraction, abs=1.5)


# --- which class --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "number"),
    [
        (("lv",), 1),
        (("background", "lv", "myo"), 1),
        (("background", "LV wall", "LV_cavity"), 2),
        (("background", "la", "Left Ventricle"), 2),
        (("bg", "Endo", "epi"), 1),
    ],
)
def test_the_class_of_the_ventricle_is_known_by_its_name(classes, number):
    assert left_ventricle("m", OutputSpec(name="mask", task="segmentation", classes=classes)) == number


@pytest.mark.parametrize("name", [*NAMES, "temporal-consistency"])
def test_without_a_ventricle_the_metric_is_refused(name):
    output = OutputSpec(name="mask", task="segmentation", classes=("lv", "nodule", "rv"))  # the first is background
    with pytest.raises(ConfigError) as error:
        create_metric(name, [output])
    assert str(error.value) == (
        f"The metric {name!r} measures the left ventricle, and no class is called so: lv, nodule, rv. Known names: "
        "lv, lv-cavity, lv-endo, lv-endocardium, lv-blood-pool, endo, endocardium, left-ventricle, "
        "left-ventricular-cavity. "
        "Name the class so (dataset.classes=[…] where the data set has that setting), or leave the metric out."
    )
    twice = OutputSpec(name="mask", task="segmentation", classes=("background", "lv", "endo"))
    with pytest.raises(ConfigError, match="and more than one class is called so: background, lv, endo"):
        create_metric(name, [twice])


# --- frames and cases ---------------------------------------------------------------------------------------------


def case_of(labelled, **values) -> Case:
    metadata = {key: str(value) for key, value in values.pop("metadata", {}).items()}
    streams = {"mask": Source(reader="none")}
    identity = {"case_id": "a", "group_id": "p", **values}
    return Case(frames=30, streams=streams, labelled=tuple(labelled), metadata=metadata, **identity)


def row_of(case, predicted, annotated, spacing=(0.5, 0.5), name="ejection-fraction") -> dict:
    """Score the annotated frames of a case, in two blocks, from masks [T,H,W]."""
    metric = create_metric(name, [LV])
    values = []
    for block in (slice(0, 1), slice(1, None)):
        masks, truth = (torch.from_numpy(np.stack(each))[block] for each in (predicted, annotated))
        known = torch.ones(len(masks), dtype=torch.bool)
        frames = ScoredFrames(masks[:, None].float(), truth.long(), known, spacing, case.labelled[block], case)
        values.append(metric.per_frame(frames))
    return dict(metric.per_case({key: torch.cat([v[key] for v in values]).double().numpy() for key in values[0]}))


BIG, MIDDLE, SMALL = ellipse(44, 22), ellipse(42, 20), ellipse(36, 15)
EF = 100 * (1 - volume(36, 15) / volume(44, 22))


def test_true_and_predicted_volumes_of_a_case():
    row = row_of(case_of([4, 12], metadata={"ed_frame": 4, "es_frame": 12}), [MIDDLE, SMALL], [BIG, SMALL])
    predicted = 100 * (1 - volume(36, 15) / volume(42, 20))
    assert row["ejection-fraction/true"] == pytest.approx(EF, abs=1)
    assert row["ejection-fraction/predicted"] == pytest.approx(predicted, abs=1)
    assert row["ejection-fraction"] == pytest.approx(EF - predicted, abs=1)
    assert row["ejection-fraction/edv/true"] == pytest.approx(volume(44, 22), rel=0.025)
    assert row["ejection-fraction/edv/predicted"] == pytest.approx(volume(42, 20), rel=0.025)
    assert row["ejection-fraction/edv"] == pytest.approx(volume(44, 22) - volume(42, 20), rel=0.1)
    assert row["ejection-fraction/esv"] == 0


@pytest.mark.parametrize(
    ("labelled", "masks", "metadata"),
    [
        ([3, 9, 20], [SMALL, MIDDLE, BIG], {"ed_frame": 20, "es_frame": 3}),  # named
        ([3, 9, 20], [SMALL, MIDDLE, BIG], {}),  # largest and smallest
        ([3, 9, 20], [MIDDLE, BIG, SMALL], {"ed_frame": 3, "es_frame": 25}),  # one of the two is not drawn
        ([3, 9, 20], [MIDDLE, BIG, SMALL], {"ed_frame": "first", "es_frame": 9}),
        ([3, 9, 20], [MIDDLE, BIG, SMALL], {"ed_frame": 3, "es_frame": 3}),
    ],
)
def test_end_diastole_and_end_systole(labelled, masks, metadata):
    """The frames that the data name, if both are drawn, else the largest and smallest annotated ventricle."""
    row = row_of(case_of(labelled, metadata=metadata), masks, masks)
    assert row["ejection-fraction/true"] == pytest.approx(EF, abs=1)


def test_named_frames_count_even_where_others_are_larger():
    row = row_of(
        case_of([3, 9, 20], metadata={"ed_frame": 9, "es_frame": 3}), [SMALL, MIDDLE, BIG], [SMALL, MIDDLE, BIG]
    )
    assert row["ejection-fraction/true"] == pytest.approx(100 * (1 - volume(36, 15) / volume(42, 20)), abs=1)


def test_the_prediction_is_measured_in_the_frames_of_the_annotation():
    """Wherever it is itself the largest."""
    row = row_of(case_of([1, 2]), [SMALL, BIG], [BIG, SMALL])
    assert row["ejection-fraction/predicted"] == pytest.approx(100 * (1 - volume(44, 22) / volume(36, 15)), abs=2)


def test_without_spacing_there_is_an_ejection_fraction_but_no_volume():
    row = row_of(case_of([1, 2]), [BIG, SMALL], [BIG, SMALL], spacing=None)
    assert row["ejection-fraction/true"] == pytest.approx(EF, abs=1)
    assert math.isnan(row["ejection-fraction/edv/true"])
    assert math.isnan(row["ejection-fraction/esv"])


EMPTY = np.zeros(SIZE, bool)


@pytest.mark.parametrize(
    ("predicted", "annotated", "known"),
    [
        ([BIG, EMPTY], [BIG, SMALL], True),
        ([EMPTY, SMALL], [BIG, SMALL], True),
        ([BIG, SMALL], [BIG, EMPTY], False),
        ([BIG], [BIG], False),
    ],
)
def test_what_is_nowhere_has_no_volume(predicted, annotated, known):
    """A missed ventricle is no volume of 0 but none at all, and is counted; a single drawn frame says nothing."""
    case = case_of(range(1, 1 + len(predicted)), metadata={"ed_frame": 1, "es_frame": 2})
    row = row_of(case, predicted, annotated)
    assert math.isnan(row["ejection-fraction"])
    assert math.isnan(row["ejection-fraction/true"]) != known
    metric = create_metric("ejection-fraction", [LV])
    good = row_of(case_of([1, 2]), [BIG, SMALL], [BIG, SMALL])
    found = metric.summarise([row, good])
    assert found["ejection-fraction/undefined"] == (0.5 if known else 0)
    assert found["ejection-fraction"] == 0
    assert metric.per_case({}) == {}


def test_summary_by_hand():
    """Mean absolute error, bias and 95 % limits, root mean square and Pearson's correlation."""
    true, predicted = [60.0, 50.0, 40.0], [63.0, 48.0, 44.0]
    rows = [
        {"ejection-fraction/true": t, "ejection-fraction/predicted": p} for t, p in zip(true, predicted, strict=True)
    ]
    found = create_metric("ejection-fraction", [LV]).summarise([*rows, {}])
    d = np.array([3.0, -2, 4])
    half = 1.96 * d.std(ddof=1)
    assert {key: value for key, value in found.items() if "edv" not in key and "esv" not in key} == pytest.approx(
        {
            "ejection-fraction": 3.0,
            "ejection-fraction/bias": 5 / 3,
            "ejection-fraction/lower": 5 / 3 - half,
            "ejection-fraction/upper": 5 / 3 + half,
            "ejection-fraction/rmse": math.sqrt(29 / 3),
            "ejection-fraction/correlation": np.corrcoef(true, predicted)[0, 1],
            "ejection-fraction/undefined": 0.0,
        }
    )
    assert math.isnan(found["ejection-fraction/edv"])


def test_agreement_of_few_cases():
    """None: undefined. One: no limits. Equal values: no correlation."""
    assert all(math.isnan(value) for value in agreement("x", np.empty((0, 2))).values())
    one = agreement("x", np.array([[50.0, 52.0]]))
    assert (one["x"], one["x/bias"], one["x/undefined"]) == (2, 2, 0)
    assert math.isnan(one["x/lower"])
    alike = agreement("x", np.array([[50.0, 52.0], [50.0, 51.0]]))
    assert math.isfinite(alike["x/lower"])
    assert math.isnan(alike["x/correlation"])


# --- two views ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "view"), [("2CH", "2"), ("a2c", "2"), ("A4C", "4"), ("AP-4", "4"), ("PLAX", ""), ("", "")]
)
def test_names_of_views(name, view):
    assert biplane_view(name) == view


def study(*views, spacing=(0.5, 0.5), name="ejection-fraction"):
    """Rows and cases of views (group, study, view, ED, ES), completed."""
    cases, rows = [], []
    for number, (group, study_id, view, ed, es) in enumerate(views):
        case = case_of([1, 2], case_id=f"{number}", group_id=group, study_id=study_id, view=view)
        cases.append(case)
        rows.append(row_of(case, [ed, es], [ed, es], spacing, name))
    metric = create_metric(name, [LV])
    metric.across(rows, cases)
    return metric, rows


WIDE = (ellipse(44, 24), ellipse(38, 18))


@pytest.mark.parametrize("name", NAMES)
def test_two_views_of_a_study_together(name):
    """The value stands in the row of the first case alone, so that a study counts once; no other pair is made."""
    metric, rows = study(
        ("p", "p", "4CH", BIG, SMALL),
        ("q", "q", "2CH", *WIDE),
        ("p", "p", "2CH", *WIDE),
        ("r", "", "2CH", *WIDE),
        ("r", "", "4CH", BIG, SMALL),
        name=name,
    )
    edv, esv = 4 / 3 * math.pi * 44 * 22 * 24 / 1000, 4 / 3 * math.pi * 38 * 15 * 18 / 1000
    found = [row[f"{name}/biplane/edv/true"] for row in rows]
    assert found[0] == pytest.approx(edv, rel=0.03)
    assert all(math.isnan(value) for value in found[1:])
    assert rows[0][f"{name}/biplane/esv/predicted"] == pytest.approx(esv, rel=0.03)
    summary = metric.summarise(rows)
    assert summary[f"{name}/biplane"] == 0
    assert {f"{name}/biplane/{quantity}/bias".replace("//", "/") for quantity in QUANTITIES} <= summary.keys()


@pytest.mark.parametrize(
    "views",
    [
        [("p", "s", "2CH", *WIDE)],
        [("p", "s", "2CH", *WIDE), ("p", "s", "PLAX", BIG, SMALL)],
        [("p", "s", "2CH", *WIDE), ("p", "t", "4CH", BIG, SMALL)],
        [("p", "s", "2CH", *WIDE), ("p", "s", "4CH", BIG, SMALL), ("p", "s", "4CH", BIG, SMALL)],
    ],
)
def test_no_biplane_columns_without_a_pair(views):
    """One view, another view, another study, or a choice between two."""
    metric, rows = study(*views)
    assert not [name for row in rows for name in row if "biplane" in name]
    assert not [name for name in metric.summarise(rows) if "biplane" in name]


def test_pixels_of_two_views_cannot_be_multiplied():
    views = [("p", "s", "2CH", *WIDE), ("p", "s", "4CH", BIG, SMALL)]
    _, rows = study(*views, spacing=None)
    assert not [name for row in rows for name in row if "biplane" in name]
