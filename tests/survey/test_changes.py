"""Cracks of two masks of one spot: what has become of each, and by how much it has grown."""

import json

import cv2
import numpy as np
import pytest
from spots import SCALE, SIZE, STRAIGHT, camera, mask_of

from cssr.cracks.files import Units, geojson, outlines
from cssr.cracks.measure import measure_cracks
from cssr.survey.changes import STATES, Uncertainty, changes
from cssr.survey.geometry import paths, segments, to_pixels
from cssr.survey.matching import Cracks
from cssr.survey.registration import Registration

CAMERA = camera()
OFF = Uncertainty(2.0, 0.01, (0.3, 0.3))


def cracks_of(mask: np.ndarray) -> Cracks:
    measured = measure_cracks(mask)
    lines, areas = (json.loads(form(measured, "a", Units(SCALE)))["features"] for form in (geojson, outlines))
    return Cracks(
        (mask.shape[0] // SCALE, mask.shape[1] // SCALE),
        [[np.array(line) for line in paths(feature["geometry"])] for feature in lines],
        [[np.array(ring) for ring in paths(feature["geometry"])] for feature in areas],
        [feature["properties"] for feature in lines],
    )


def compared(old, new, matrix: np.ndarray = CAMERA, **off) -> list:
    """Drawn cracks, the new ones as the camera sees them; changes by state."""
    masks = mask_of(old), mask_of(new, matrix)
    made = changes(*map(cracks_of, masks), Registration(matrix, 0.3, "features"), Uncertainty(**{**vars(OFF), **off}))
    assert [change.state for change in made] == sorted((c.state for c in made), key=STATES.index)
    return made


def local(matrix: np.ndarray, a, b) -> tuple[float, float]:
    """Length of a straight line in the new photograph, and the zoom across it."""
    a, b = np.array(a, float), np.array(b, float)
    normal = np.array([a[1] - b[1], b[0] - a[0]]) / np.linalg.norm(b - a)
    middle = (a + b) / 2
    points = cv2.perspectiveTransform(np.array([[a, b, middle - normal, middle + normal]]), matrix)[0]
    along = (points[1] - points[0]) / np.linalg.norm(points[1] - points[0])
    off = points[3] - points[2]
    return float(np.linalg.norm(points[1] - points[0])), float(abs(along[0] * off[1] - along[1] * off[0]) / 2)


@pytest.mark.parametrize("matrix", [STRAIGHT, CAMERA], ids=["same place", "moved"])
@pytest.mark.parametrize(("width", "growth"), [(1.5, 60), (3.0, 25), (6.0, 40)])
def test_growth_in_length_is_measured(matrix, width, growth):
    """Within 1.5 px of the truth: within a pixel or 5 % is what measuring a crack is held to."""
    start, end = np.array([120.0, 150.0]), np.array([320.0, 260.0])
    longer = end + growth * (end - start) / np.linalg.norm(end - start)
    (change,) = compared([((start, end), width)], [((start, longer), width)], matrix)
    assert (change.state, change.change) == ("grown", "longer")
    truth = local(matrix, start, longer)[0] - local(matrix, start, end)[0]
    assert change.lengths[1] - change.lengths[0] == pytest.approx(truth, abs=1.5)
    assert change.added == pytest.approx(truth, abs=4) and change.lost == 0
    assert change.widths[1] == pytest.approx(change.widths[0], abs=0.25)
    tip = Registration(matrix, 0, "").place(np.array([(end + longer) / 2]))[0]
    assert np.linalg.norm(tip - change.place) < growth / 2 + 2


@pytest.mark.parametrize("matrix", [STRAIGHT, CAMERA], ids=["same place", "moved"])
@pytest.mark.parametrize(("old", "new"), [(1.0, 2.5), (2.0, 3.2), (4.0, 7.0)])
def test_growth_in_width_is_measured(matrix, old, new):
    """Within 0.2 px: a mask pixel is 0.25."""
    line = (120, 150), (420, 260)
    (change,) = compared([(line, old)], [(line, new)], matrix)
    assert (change.state, change.change) == ("grown", "wider")
    zoom = local(matrix, *line)[1]
    assert change.widths == pytest.approx((old * zoom, new * zoom), abs=0.2)
    assert change.lengths[1] - change.lengths[0] == pytest.approx(0, abs=2)


def test_what_is_the_same_is_unchanged_from_another_place():
    cracks = [
        (((60, 80), (200, 120), (320, 70)), 3.0),
        (((80, 250), (380, 280)), 1.2),
        (((500, 60), (540, 420)), 5.0),
        (((150, 360), (210, 450)), 2.5),
    ]
    made = compared(cracks, cracks)
    assert [change.state for change in made] == ["unchanged"] * 4
    for change in made:
        cut = change.seen < 1  # by the edge of the new photograph, where its mask ends, too
        assert change.lengths[1] - change.lengths[0] == pytest.approx(0, abs=3 if cut else 1)
        assert change.widths[1] - change.widths[0] == pytest.approx(0, abs=0.15)


def test_new_gone_and_reduced_ones_are_reported():
    line = (100, 100), (300, 160)
    made = compared([(line, 3.0), (((400, 300), (500, 380)), 3.0)], [(line, 3.0), (((200, 300), (260, 400)), 2.0)])
    assert [change.state for change in made] == ["new", "unchanged", "gone"]
    new, _, gone = made
    assert new.old == () and new.lengths[0] is None and new.widths[0] is None and new.lengths[1] > 100
    assert gone.new == () and gone.lengths[1] is None and 2 < gone.widths[0] < 4
    (change,) = compared([(line, 5.0)], [((line[0], (220, 136)), 3.0)])
    assert (change.state, change.change) == ("reduced", "shorter, narrower") and change.lost > 70


def test_cracks_that_grow_together_are_one_change():
    parts = [(((100, 200), (200, 200)), 2.0), (((260, 200), (380, 200)), 2.0)]
    (change,) = compared(parts, [(((100, 200), (380, 200)), 2.0)])
    assert change.state == "grown" and len(change.old) == 2 and len(change.new) == 1
    assert change.lengths[1] - change.lengths[0] == pytest.approx(60 * 1.08, abs=4)


def test_a_crack_across_another_is_new():
    """Where they cross they are one component, which has grown; beside it, lines that only meet are no match."""
    old = [(((100, 240), (400, 240)), 2.0)]
    crossing = [(((250, 100), (250, 237)), 2.0), (((250, 243), (250, 400)), 2.0)]
    made = compared(old, old + crossing, STRAIGHT)
    assert sorted(change.state for change in made) == ["new", "new", "unchanged"]


def test_what_one_photograph_does_not_show_is_out_of_view():
    shifted = np.array([[1, 0, -300.0], [0, 1, 0], [0, 0, 1]])
    old = [(((40, 100), (240, 120)), 2.0), (((200, 300), (500, 300)), 2.0)]
    new = [(((200, 300), (500, 300)), 2.0), (((700, 100), (800, 200)), 2.0)]
    made = compared(old, new, shifted)
    assert [change.state for change in made] == ["unchanged", "out of view", "out of view"]
    unchanged = made[0]
    assert unchanged.lengths == pytest.approx((200, 200), abs=1.5) and unchanged.seen == pytest.approx(0.8, abs=0.05)


def test_specks_shorter_than_their_uncertainty_are_unclear():
    made = compared([(((100, 100), (103, 100)), 2.0)], [(((300, 300), (304, 300)), 2.0)])
    assert [change.state for change in made] == ["unclear", "unclear"]
    assert [c.state for c in compared([], [(((300, 300), (304, 300)), 2.0)], end=0.5)] == ["new"]


def test_a_change_within_the_uncertainty_is_none():
    line, longer = ((120, 150), (320, 260)), ((120, 150), (326, 263.3))
    assert [c.state for c in compared([(line, 3.0)], [(longer, 3.0)], STRAIGHT)] == ["unchanged"]
    assert [c.state for c in compared([(line, 3.0)], [(longer, 3.0)], STRAIGHT, end=0.5, along=0)] == ["grown"]
    assert [c.state for c in compared([(line, 3.0)], [(line, 3.6)], STRAIGHT)] == ["unchanged"]
    assert [c.state for c in compared([(line, 3.0)], [(line, 3.6)], STRAIGHT, widths=(0.1, 0.1))] == ["grown"]


@pytest.mark.parametrize("seed", range(3))
def test_every_crack_is_in_one_change(seed):
    rng = np.random.default_rng(seed)
    sets = []
    for _ in range(2):
        starts, turns = rng.uniform(20, SIZE[0] - 20, (25, 2)), rng.uniform(0, 2 * np.pi, 25)
        ends = starts + rng.uniform(5, 90, (25, 1)) * np.stack([np.cos(turns), np.sin(turns)], 1)
        sets.append([((a, b), w) for a, b, w in zip(starts, ends, rng.uniform(0.5, 6, 25))])
    old, new = cracks_of(mask_of(sets[0])), cracks_of(mask_of(sets[1], CAMERA))
    made = changes(old, new, Registration(CAMERA, 0.5, "features"), OFF)
    assert sorted(n for change in made for n in change.old) == list(range(len(old.lines)))
    assert sorted(n for change in made for n in change.new) == list(range(len(new.lines)))


def test_no_cracks_are_no_changes():
    assert compared([], []) == []


def test_lines_are_cut_into_pieces():
    lines = [np.array([[0, 0], [3.5, 0]]), np.array([[0, 0], [0, 1], [0, 1]])]
    begin, end, number = segments(lines, 1.0)
    assert number.tolist() == [0, 0, 0, 0, 1, 1] and np.linalg.norm(end - begin, axis=1).max() <= 1
    assert np.linalg.norm(end - begin, axis=1).sum() == pytest.approx(4.5)
    assert [part.shape for part in segments([], 1.0)] == [(0, 2), (0, 2), (0,)]


def test_places_on_a_map_are_pixels_again():
    points = to_pixels((0.01, 0.002, 500, 0.002, -0.01, 900))([[500.0, 900.0], [500.1, 900.02]])
    assert points == pytest.approx(np.array([[0, 0], [10, 0]]), abs=1e-9)
