"""Heat over a picture: colours by sign, strength by opacity."""

from dataclasses import replace

import numpy as np
import torch

from medvid_core.data.clip import Case
from medvid_core.data.transforms import resize_affine
from medvid_core.report.heat import AGAINST, FOR, Heat, draw_heat, frame_label, stills_of


def heat(values, signed):
    return Heat(values, signed, resize_affine((20, 30), tuple(values.shape[-2:])), (20, 30))


def test_colour_says_which_way_and_opacity_how_much():
    image = np.full((1, 5, 3), 100, np.uint8)
    drawn = draw_heat(image, np.array([[0, 0.5, 1, -1, 0.05]], np.float32)).astype(int)
    np.testing.assert_array_equal(drawn[0, 0], [100] * 3)
    np.testing.assert_array_equal(drawn[0, 4], [100] * 3)
    for place, colour in ((2, FOR), (3, AGAINST)):
        assert np.abs(drawn[0, place] - colour).max() < 0.21 * np.abs(np.array(colour) - 100).max()
    assert 100 < drawn[0, 1, 0] < drawn[0, 2, 0]


def test_heat_stands_where_it_was_found():
    values = torch.zeros(3, 10, 10)
    values[1, 2, 7] = 4.0
    found = heat(values, signed=False)
    drawn = found.at([0, 1], (40, 60))
    assert drawn.shape == (2, 40, 60)
    assert drawn[0].max() == 0
    row, column = np.unravel_index(drawn[1].argmax(), drawn[1].shape)
    assert abs(row - 10) <= 1
    assert abs(column - 45) <= 2
    assert found.full == 4
    np.testing.assert_array_equal(found.frames, [0, 4, 0])


def test_signed_heat_keeps_its_sign_and_is_not_drawn_for_one_pixel_s_sake():
    values = torch.ones(2, 40, 40)
    values[1] = -1
    values[0, 0, 0] = 1000
    found = heat(values, signed=True)
    assert found.full < 100
    assert found.at([0], (20, 30)).max() == 1
    assert found.at([1], (20, 30)).max() < 0
    np.testing.assert_allclose(found.frames, [2599, -1600])


def test_nothing_is_drawn_as_nothing():
    found = heat(torch.zeros(2, 8, 8), signed=False)
    assert found.full == 0
    assert not found.at([0, 1], (8, 8)).any()


def test_the_strongest_frame_is_among_the_stills():
    strengths = np.zeros(100, np.float32)
    strengths[37] = 1
    assert stills_of(strengths) == [0, 20, 37, 59, 79, 99]
    assert stills_of(np.zeros(1, np.float32)) == [0]
    assert stills_of(np.array([0, 1, 0], np.float32)) == [0, 1, 2]


def test_stills_are_labelled_as_in_the_recording():
    """Of a prepared video, the frame that was recorded and when; by rate; where that is unknown, the frame alone."""
    case = Case(case_id="c", group_id="p", frames=2, streams={}, times_s=(3.0, 3.1), source_frames=(90, 93))
    assert frame_label(case, 1) == "frame 93, 3.10 s"
    assert frame_label(replace(case, times_s=(), source_frames=(), fps=4.0), 1) == "frame 1, 0.25 s"
    assert frame_label(replace(case, times_s=(), source_frames=()), 1) == "frame 1"
