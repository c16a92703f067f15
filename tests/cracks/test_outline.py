"""Outlines: the same pixels again, and polygons that are valid."""

import numpy as np
import pytest
from scipy import ndimage

from cssr.cracks.components import Components
from cssr.cracks.outline import outline

shapely = pytest.importorskip("shapely", reason="needs shapely: pip install 'cssr[survey]'")


def polygons_of(mask: np.ndarray) -> list:
    return [[shapely.Polygon(rings[0], rings[1:]) for rings in outline(runs)] for runs in Components(mask)]


MASKS = {
    "a pixel": ["#"],
    "a ring": ["###", "#.#", "###"],
    "two by their corners": ["#.", ".#"],
    "a hole open at a corner": ["###.", "#.#.", "##.#", "..##"],
    "a hole of two by their corners": ["####", "#.##", "##.#", "####"],
    "an island in a hole, held by a corner": ["#####", "#...#", "#..##", "#.#.#", "#####"],
    "the rim": ["#.#", "#.#", "###"],
}


@pytest.mark.parametrize("rows", MASKS.values(), ids=MASKS)
def test_polygons_hold_the_pixels_of_a_mask_and_no_others(rows):
    assert_same_pixels(np.array([[pixel == "#" for pixel in row] for row in rows]))


@pytest.mark.parametrize("seed", range(20))
def test_polygons_of_noise_hold_its_pixels(seed):
    rng = np.random.default_rng(seed)
    assert_same_pixels(rng.random(rng.integers(1, 30, 2)) < rng.uniform(0.2, 0.9))


def assert_same_pixels(mask: np.ndarray) -> None:
    y, x = np.indices(mask.shape)
    found = np.zeros(mask.shape, int)
    for polygons in polygons_of(mask):
        assert all(polygon.is_valid for polygon in polygons)
        area = shapely.MultiPolygon(polygons)
        assert area.is_valid
        found += shapely.contains_xy(area, x + 0.5, y + 0.5)
    assert np.array_equal(found, mask)
    assert len(polygons_of(mask)) == ndimage.label(mask, np.ones((3, 3)))[1]


def test_a_straight_side_has_two_corners():
    (((ring,),),) = [outline(runs) for runs in Components(np.ones((3, 50), bool))]
    assert ring.tolist() == [[0, 0], [50, 0], [50, 3], [0, 3], [0, 0]]
