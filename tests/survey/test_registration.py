"""Photographs of one spot from two places: where they are registered, and why they are refused where not."""

import cv2
import numpy as np
import pytest
from paths import SHARED, need
from PIL import Image
from spots import SIZE, camera, seen, wall

from cssr.survey import registration
from cssr.survey.registration import (
    NotRegistered,
    Picture,
    apply_homography,
    by_features,
    by_georeference,
    read_picture,
)

CAMERA = camera()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Picture]:
    """A wall, the same from another place, mirrored, in two parts that moved apart; another wall, and a blank one."""
    folder = tmp_path_factory.mktemp("pictures")
    image = wall()
    images = {
        "wall": image,
        "moved": seen(image, CAMERA),
        "mirrored": image[:, ::-1],
        "other": wall(1),
        "blank": np.full_like(image, 128),
    }
    for name, array in images.items():
        Image.fromarray(array).save(folder / f"{name}.png")
    return {name: read_picture(folder / f"{name}.png", array.shape[:2]) for name, array in images.items()}


def error(found: np.ndarray, matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels between where two homographies have points of the first photograph that the second shows."""
    height, width = shape
    grid = np.stack(np.meshgrid(np.linspace(0, width, 12), np.linspace(0, height, 12)), -1).reshape(-1, 2)
    points = apply_homography(grid, matrix)
    inside = ((points >= 0) & (points <= (width, height))).all(1)
    return np.linalg.norm(apply_homography(grid, found) - points, axis=1)[inside]


def test_a_wall_from_another_place_in_other_light(pictures):
    made = by_features(pictures["wall"], pictures["moved"])
    assert error(made.matrix, CAMERA, SIZE).max() < 0.5
    assert made.by == "features" and made.matches > 100 and 0 < made.error < 1.5
    assert made.scale(SIZE) == pytest.approx(1.08, abs=0.02)
    points = np.array([[100.0, 200.0], [300.0, 50.0]])
    assert made.back(made.place(points)) == pytest.approx(points)


@pytest.mark.parametrize(
    "photograph",
    [
        "heldout/uav315_test/images/slide1041.jpg",
        "heldout/uav75/images/DSC00550.jpg",
        "crackforest/image/003.jpg",
        "heldout/crackmap/images/GOPR0104__1_.jpg",
    ],
)
def test_real_photographs_warped(photograph, tmp_path):
    """Within half a pixel all over the common area; 24 photographs of the four sets had 0.05 to 0.30 at most."""
    path = need(SHARED / "data" / photograph)
    with Image.open(path) as opened:
        image = np.asarray(opened.convert("RGB"))
    height, width = image.shape[:2]
    turned = cv2.getRotationMatrix2D((width / 2, height / 2), 14, 1.1)
    matrix = np.array([*turned, (1e-4, -5e-5, 1.0)])
    Image.fromarray(seen(image, matrix)).save(tmp_path / "new.png")
    made = by_features(read_picture(path, (height, width)), read_picture(tmp_path / "new.png", (height, width)))
    assert error(made.matrix, matrix, (height, width)).max() < 0.5


@pytest.mark.parametrize(
    ("other", "reason"),
    [("other", "features"), ("mirrored", "features|mirrors"), ("blank", "0 features match, 15 are needed")],
)
def test_what_shows_another_spot_is_refused_in_a_line(pictures, other, reason):
    with pytest.raises(NotRegistered, match=reason) as refused:
        by_features(pictures["wall"], pictures[other])
    assert "\n" not in str(refused.value)


def test_features_in_one_corner_are_refused(pictures):
    whole = pictures["wall"]
    corner = (whole.points < 110).all(1)
    few = Picture(whole.shape, whole.factor, None, whole.points[corner], whole.descriptors[corner])
    with pytest.raises(NotRegistered, match="span [0-9]% of the common area alone"):
        by_features(few, few)


def test_a_surface_that_is_no_plane_is_refused(pictures, monkeypatch):
    monkeypatch.setattr(registration, "_ERROR", 0.01)
    with pytest.raises(NotRegistered, match="the surface is no plane"):
        by_features(pictures["wall"], pictures["moved"])


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (np.array([[1, 0, 0], [0, 1, 0], [-1 / 320, 0, 1]]), "its horizon is in the photograph"),
        (np.diag([-1, 1, 1]) + np.array([[0, 0, 640], [0, 0, 0], [0, 0, 0]]), "it mirrors or folds"),
        (np.diag([20.0, 20.0, 1]), "pixels of one are 20 of the other's"),
        (np.array([[1, 0, 2000], [0, 1, 0], [0, 0, 1]]), "they have no common area"),
    ],
)
def test_degenerate_homographies_are_refused(matrix, reason):
    with pytest.raises(NotRegistered, match=reason):
        registration.common_area(matrix.astype(float), SIZE, SIZE)


def test_a_georeference_needs_no_features():
    old, new = (0.01, 0, 500, 0, -0.01, 900), (0.02, 0, 501, 0, -0.02, 899)
    made = by_georeference(old, new, (SIZE, SIZE))
    assert made.place(np.array([[200.0, 200.0]])) == pytest.approx(np.array([[50.0, 50.0]]))
    assert made.by == "georeference" and made.error == pytest.approx(2)
    with pytest.raises(NotRegistered, match="no common area"):
        by_georeference(old, (0.02, 0, 600, 0, -0.02, 899), (SIZE, SIZE))


def test_two_projections_are_one_place():
    warp = pytest.importorskip("rasterio.warp", reason="needs rasterio: pip install 'cssr[large]'")
    from cssr.utils.geotiff import reprojected

    crs = [f"urn:ogc:def:crs:EPSG::{number}" for number in (25832, 25833)]
    (east,), (north,) = warp.transform("EPSG:25832", "EPSG:25833", [700_000], [5_500_000])
    assert reprojected(np.array([[700_000.0, 5_500_000.0]]), *crs) == pytest.approx(np.array([[east, north]]))
    old, new = (0.01, 0, 700_000, 0, -0.01, 5_500_000), (0.01, 0, east, 0, -0.01, north)
    made = by_georeference(old, new, (SIZE, SIZE), lambda points: reprojected(points, *crs))
    assert np.abs(made.place(np.zeros((1, 2)))).max() < 0.01 and made.error < 2.1
    turn = np.degrees(np.arctan2(made.matrix[1, 0], made.matrix[0, 0]))
    assert 1 < abs(turn) < 8  # grids of neighbouring zones are turned against each other
    with pytest.raises(ValueError, match="a map cannot be read"):
        reprojected(np.zeros((1, 2)), "nonsense", crs[0])


def test_a_large_photograph_is_reduced_by_strips(tmp_path, monkeypatch):
    image = cv2.resize(wall(), (1600, 1200), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(image).save(tmp_path / "wall.png")
    monkeypatch.setattr(registration, "_SIDE", 400)
    picture = read_picture(tmp_path / "wall.png", (1200, 1600))
    assert picture.factor == 4 and picture.points.max() > 1200
    with pytest.raises(ValueError, match="has 1600 x 1200 pixels, the cracks are of 100 x 300"):
        read_picture(tmp_path / "wall.png", (300, 100))


def test_pixels_without_data_show_nothing():
    valid = np.ones((48, 64), bool)
    valid[:, :32] = False
    picture = Picture(SIZE, 10.0, valid, np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    points = np.array([[10.0, 10.0], [400.0, 100.0], [639.9, 479.9], [641.0, 10.0], [-1.0, 5.0]])
    assert picture.shows(points).tolist() == [False, True, True, False, False]
