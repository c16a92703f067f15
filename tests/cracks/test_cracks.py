"""Cracks drawn with a known length and width are measured as such, within a pixel or 5 %."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree

from cssr.cracks import measure
from cssr.cracks.components import Components, Runs, _find_runs
from cssr.cracks.measure import Crack, TooRagged, measure_cracks
from cssr.cracks.skeleton import stays_when_thinned, thin

ANGLES = (0, 7, 15, 22.5, 30, 45, 53, 63, 75, 90, 101, 120, 135, 160, 178)


def near(true: float) -> float:
    return pytest.approx(true, abs=max(1.0, 0.05 * true))


def draw(points: np.ndarray, width: float, size: tuple[int, int]) -> np.ndarray:
    """Pixels whose middles lie within half the width of a fine polyline; so it ends in half discs."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return (cKDTree(points).query(np.stack([x, y], -1), distance_upper_bound=width)[0]) <= width / 2


def bar(length: float, width: float, angle: float, size: int) -> np.ndarray:
    """An upright or turned rectangle in the middle of a square image; angles run counter-clockwise as seen."""
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2 - 0.123
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (abs(x * c - y * s) <= length / 2) & (abs(x * s + y * c) <= width / 2)


def only(mask: np.ndarray) -> Crack:
    found = measure_cracks(mask)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("length", [40, 150])
@pytest.mark.parametrize("width", [2, 3, 4, 5, 8, 11, 14, 20])
def test_straight_cracks_at_any_angle(length, width):
    for angle in ANGLES:
        mask = bar(length, width, angle, length + 30)
        crack = only(mask)
        rastered = mask.sum() / length  # what the pixel grid has made of the width
        assert crack.length == pytest.approx(length, abs=max(1.4, 0.05 * length)), angle
        assert crack.mean_width == near(width) and crack.mean_width == pytest.approx(rastered, rel=0.05), angle
        assert crack.max_width == pytest.approx(width, abs=max(1.2, 0.05 * width)), angle
        if length > 3 * width:
            assert abs((crack.orientation - angle + 90) % 180 - 90) < 2, angle


@pytest.mark.parametrize("width", range(1, 21))
def test_odd_and_even_widths_along_rows_and_columns_are_exact(width):
    mask = np.zeros((60, 200), np.uint8)
    mask[20 : 20 + width, 30:170] = 1
    for turned, degrees in ((mask, 0), (mask.T, 90)):
        crack = only(turned)
        assert crack.length == pytest.approx(140, abs=0.11)  # the end is looked for in steps of 0.1
        assert (crack.mean_width, crack.max_width) == pytest.approx((width, width), abs=0.06)
        assert (crack.orientation, crack.area) == (degrees, 140 * width)
    assert only(mask).box == (30, 20, 170, 20 + width)


@pytest.mark.parametrize("slope", [1 / 10, 2 / 5, 1])
def test_the_steps_of_a_line_one_pixel_wide_do_not_add_to_its_length(slope):
    mask = np.zeros((320, 320), bool)
    x = np.arange(10, 310)
    mask[np.round(5 + slope * (x - 10)).astype(int), x] = True
    chain = 299 * (1 + slope * (math.sqrt(2) - 1))
    crack = only(mask)
    assert crack.length == pytest.approx(300 * math.hypot(1, slope), rel=0.01)
    assert slope == 1 or chain > 1.02 * 299 * math.hypot(1, slope)  # which the plain chain would be


@pytest.mark.parametrize("amplitude, period", [(20, 200), (40, 150), (60, 300)])
@pytest.mark.parametrize("width", [2, 3, 6, 11])
def test_waves_of_known_arc_length(width, amplitude, period):
    x = np.linspace(50, 650, 6000)
    points = np.stack([x, 150 + amplitude * np.sin(2 * np.pi * x / period)], 1)
    crack = only(draw(points, width, (300, 700)))
    assert crack.length == near(np.linalg.norm(np.diff(points, axis=0), axis=1).sum() + width)
    assert (crack.mean_width, crack.max_width) == (near(width), near(width))


@pytest.mark.parametrize("radius, width", [(100, 5), (50, 4), (30, 1.5), (20, 6), (20, 12)])
def test_arcs_and_closed_rings(radius, width):
    y, x = np.mgrid[:240, :240] + 0.5 - 120
    ring = abs(np.hypot(x, y) - radius) <= width / 2
    assert only(ring).length == near(2 * math.pi * radius)
    assert only(ring & (y < 0)).length == near(math.pi * radius)
    assert (only(ring).mean_width, only(ring).max_width) == (near(width), near(width))
    (line,) = only(ring).lines
    assert np.allclose(line[0], line[-1])
    assert np.hypot(*(line - 120).T) == pytest.approx(radius, abs=1.2)


@pytest.mark.parametrize("width", [3, 4, 9, 10])
def test_branches_count_from_the_middle_of_the_line_they_leave(width):
    mask = np.zeros((220, 220), bool)
    mask[100 : 100 + width, 20:200] = True
    mask[100:200, 60 : 60 + width] = True
    crack = only(mask)
    assert len(crack.lines) == 3
    assert crack.length == near(180 + 100 - width / 2)
    assert (crack.mean_width, crack.max_width) == (near(width), near(width))
    mask[20:100, 130 : 130 + width] = True
    assert len(only(mask).lines) == 5 and only(mask).length == near(360 - width)


def test_the_roughness_of_a_wide_crack_makes_no_branches():
    rng = np.random.default_rng(0)
    mask = np.zeros((60, 400), bool)
    for x, (top, bottom) in enumerate(ndimage.gaussian_filter1d(rng.normal(0, 4, (400, 2)), 2, axis=0)):
        mask[round(22 + top) : round(38 + bottom), x] = x >= 10
    crack = only(mask)
    assert len(crack.lines) == 1 and crack.length == near(390) and crack.mean_width == near(mask.sum() / 390)


def test_the_widest_place_is_where_a_crack_widens():
    mask = np.zeros((80, 400), bool)
    for x in range(20, 380):
        half = 3 + 9 * math.exp(-(((x - 250) / 30) ** 2))
        mask[round(40 - half) : round(40 + half), x] = True
    crack = only(mask)
    assert crack.max_width == near(24) and crack.mean_width == near(mask.sum() / 360)
    assert crack.widest == (pytest.approx(250, abs=8), pytest.approx(40, abs=2))


def test_cracks_that_leave_the_image_end_at_its_border():
    mask = np.zeros((50, 200), bool)
    mask[20:23] = mask[:3] = True
    mask[-4:, :100] = True
    found = measure_cracks(mask)
    assert [c.number for c in found] == [1, 2, 3]
    assert [c.length for c in found] == pytest.approx([200, 200, 100], abs=0.06)
    assert [c.box for c in found] == [(0, 0, 200, 3), (0, 20, 200, 23), (0, 46, 100, 50)]
    assert [c.max_width for c in found] == pytest.approx([3, 3, 4], abs=0.06)


def test_the_smallest_masks():
    assert measure_cracks(np.zeros((5, 7))) == [] == measure_cracks(np.zeros((0, 7)))
    for size in (1, 2, 3, 5):
        crack = only(np.ones((size, size), np.uint8))
        assert (crack.length, crack.mean_width, crack.max_width) == pytest.approx((size, size, size), abs=0.06)
        assert (crack.orientation, crack.area, crack.box) == (0, size * size, (0, 0, size, size))
    dots = np.zeros((5, 5), bool)
    dots[1, 1] = dots[3, 3] = True
    assert [c.length for c in measure_cracks(dots)] == [1, 1]
    dots[2, 2] = True  # joined by corners
    assert only(dots).length == pytest.approx(3 * math.sqrt(2), abs=1) and only(dots).orientation == 135


def test_a_speck_measures_the_same_wherever_it_lies():
    """Measures of small components are kept by their shape, and moved to where the next of it is."""
    speck = np.array([[0, 1, 1], [1, 1, 0], [1, 0, 0]], bool)
    mask = np.zeros((20, 30), bool)
    for left, top in ((0, 0), (7, 3), (27, 17)):
        mask[top : top + 3, left : left + 3] = speck
    alone, found = only(speck), measure_cracks(mask)
    for crack, (left, top) in zip(found, ((0, 0), (7, 3), (27, 17)), strict=True):
        assert (crack.length, crack.mean_width, crack.max_width) == (alone.length, alone.mean_width, alone.max_width)
        assert crack.box == (left, top, left + 3, top + 3) and crack.area == 5
        assert crack.widest == pytest.approx((alone.widest[0] + left, alone.widest[1] + top))
        np.testing.assert_allclose(crack.lines[0], alone.lines[0] + (left, top))


def test_confidence_is_the_mean_probability_of_a_cracks_own_pixels(monkeypatch):
    """By scipy's labels; the same where pixels are looked up a few at a time, and of specks of one shape."""
    random = np.random.default_rng(0)
    mask = ndimage.binary_dilation(random.random((90, 120)) > 0.97)
    prob = random.integers(1, 256, mask.shape).astype(np.uint8)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    expected = sorted(ndimage.mean(prob / 255, labels, range(1, count + 1)))
    assert sorted(c.confidence for c in measure_cracks(mask, prob=prob)) == pytest.approx(expected)
    monkeypatch.setattr("cssr.cracks.components._AT_ONCE", 7)
    assert sorted(c.confidence for c in measure_cracks(prob * mask, prob=prob)) == pytest.approx(expected)
    assert {c.confidence for c in measure_cracks(mask)} == {None}


def test_pieces_below_the_least_length_are_left_out():
    mask = np.zeros((60, 60), bool)
    mask[10, 10:50] = mask[30, 10:20] = mask[50, 50] = True
    assert [c.length for c in measure_cracks(mask, 5)] == pytest.approx([40, 10], abs=0.06)
    assert len(measure_cracks(mask)) == 3 and len(measure_cracks(mask, 41)) == 0


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_noise_is_refused_in_one_line_before_it_is_thinned(share, monkeypatch):
    monkeypatch.setattr(measure, "_measure", None)
    noise = np.random.default_rng(0).random((2000, 2000)) < share
    with pytest.raises(
        TooRagged, match="^too ragged to measure: its components have [0-9]+ holes, and 20000 bran"
    ) as caught:
        measure_cracks(noise)
    assert "\n" not in str(caught.value)


def test_a_component_like_noise_is_refused_by_its_ends_and_junctions():
    comb = np.zeros((80, 3000), np.uint8)
    comb[40], comb[10:70, ::4] = 1, 1
    assert len(measure_cracks(comb)) == 1
    with pytest.raises(
        TooRagged, match="one of its components, of [0-9]+ pixels, has [0-9]+ ends and junctions, and 80 "
    ):
        measure_cracks(comb, max_cracks=40)


def test_of_many_components_the_largest_are_measured_and_the_others_told_of():
    mask, output = np.zeros((200, 400), np.uint8), []
    for number in range(40):
        mask[10, 10 * number : 10 * number + 1 + number % 8] = mask[50 + number, 5:9] = 1
    mask[100, 20:320] = 1
    every = measure_cracks(mask)
    found = measure_cracks(mask, max_cracks=10, warn=output.append)
    assert output == [f"left out {len(every) - 10} components of at most 7 pixels: the 10 largest are measured"]
    assert [c.length for c in found] == [c.length for c in every[:10]] and found[0].area == 300
    output.clear()
    assert len(measure_cracks(mask, max_cracks=len(every), warn=output.append)) == len(every) and not output
    branched = np.zeros((90, 90), np.uint8)
    branched[10, 10:80] = branched[10:80, 20] = branched[10:80, 40] = branched[10:80, 60] = branched[86, 5:30] = 1
    assert len(measure_cracks(branched, max_cracks=2, warn=output.append)) == 1  # of more branches than four
    assert output == ["left out 1 components of at most 25 pixels: the 1 largest are measured"]


def test_holes_and_forks_of_components():
    mask = np.zeros((12, 30), bool)
    mask[1:6, 1:8] = True
    mask[3, 3] = mask[3, 5] = False  # two holes
    mask[8:11, 12] = mask[8, 12:15] = mask[8:11, 14] = True  # two legs
    both = Components(mask)
    assert len(both) == 2 and both.areas.tolist() == [33, 7] and both.holes.tolist() == [2, 0]
    assert both.forks.tolist() == [4, 1] and len(Components(np.zeros((3, 3)))) == 0
    labels, _ = ndimage.label(np.random.default_rng(0).random((60, 60)) < 0.6, np.ones((3, 3)))
    noise = Components(labels > 0)
    background = ndimage.label(np.pad(labels == 0, 1, constant_values=True))[1]
    assert noise.holes.sum() == background - 1 and noise.areas.sum() == (labels > 0).sum()


def test_a_mask_of_another_shape_is_an_error_of_one_line():
    with pytest.raises(ValueError, match=r"height x width is needed, got an array of shape \(2, 3, 4\)"):
        measure_cracks(np.zeros((2, 3, 4)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_turning_and_mirroring_a_mask_changes_no_measure(seed):
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 1, 400)
    way = np.stack([20 + 160 * x, 100 + ndimage.gaussian_filter1d(rng.normal(0, 300, 400), 40)], 1)
    mask = draw(way, rng.uniform(2, 9), (200, 200))
    first = measure_cracks(mask)[0]
    for turned in (np.rot90(mask), np.rot90(mask, 2), mask[:, ::-1], mask.T):
        crack = measure_cracks(turned)[0]
        assert (crack.length, crack.mean_width) == (near(first.length), near(first.mean_width))
        assert crack.max_width == near(first.max_width) and crack.area == first.area


def test_thick_large_pieces_are_measured_in_larger_pixels():
    mask = np.zeros((1500, 6000), np.uint8)
    mask[200:900, 100:5900] = 1
    crack = only(mask)
    assert (crack.length, crack.mean_width, crack.max_width) == (near(5800), near(700), near(700))
    assert crack.area == 700 * 5800 and crack.box == (100, 200, 5900, 900)
    assert np.concatenate(crack.lines)[:, 1] == pytest.approx(550, abs=30)


# ---- what it is made of ----


def test_pieces_are_those_of_opencv():
    rng = np.random.default_rng(0)
    for _ in range(30):
        mask = rng.random((30, 40)) < rng.uniform(0.05, 0.7)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        found = [(runs, runs.pixels()) for runs in Components(mask)]
        assert len(found) == count - 1
        for runs, component in found:
            left, top, width, height, area = stats[labels[component.y[0], component.x[0]]]
            assert len(set(labels[component.y, component.x])) == 1 and len(component) == area == runs.area
            assert runs.box == (left, top, left + width, top + height)


def test_runs_know_their_circumference_and_can_be_thinned_out():
    mask = np.random.default_rng(1).random((50, 60)) < 0.6
    runs = Runs(*_find_runs(mask))
    sides = (np.diff(np.pad(mask, 1).astype(int), axis=0) != 0).sum()
    sides += (np.diff(np.pad(mask, 1).astype(int), axis=1) != 0).sum()
    assert runs.mean_width() == pytest.approx(2 * mask.sum() / sides)
    for times in (2, 3, 5):
        kept, expected = np.zeros_like(mask), mask[times // 2 :: times, times // 2 :: times]
        pixels = runs.reduced(times).pixels()
        kept[pixels.y, pixels.x] = True
        assert np.array_equal(kept[: expected.shape[0], : expected.shape[1]], expected)
        assert kept.sum() == expected.sum()


def test_lists_of_pixels_are_thinned_like_images():
    rng = np.random.default_rng(0)
    for _ in range(15):
        mask = ndimage.gaussian_filter(rng.random((60, 70)), rng.uniform(0.5, 4)) > 0.5
        line = np.zeros(mask.shape, np.uint8)
        for runs in Components(mask):
            component = runs.pixels()
            kept = component[stays_when_thinned(component.neighbours())]
            line[kept.y, kept.x] = 1
        assert np.array_equal(line, thin(mask))


def test_a_speck_around_a_hole_is_no_wider_than_it_is():
    """The closed line around a hole of a pixel or two was smoothed to a point, and the speck was 67 pixels wide."""
    for side in (3, 4, 5, 8, 20):
        mask = np.zeros((40, 40), bool)
        mask[5 : 5 + side, 5 : 5 + side] = True
        mask[6 : 4 + side, 6 : 4 + side] = False
        (crack,) = measure_cracks(mask)
        assert 1.8 * side < crack.length < 4 * side and 0.9 < crack.mean_width < 1.8, side
