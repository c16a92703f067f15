"""Size of a pixel: typed, from points, markers, EXIF and the map."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from cssr.cracks import pixel_size
from cssr.cracks.pixel_size import (
    PixelSize,
    best,
    markers,
    of_file,
    of_markers,
    of_points,
    parse_size,
    rectify,
    tilt_of,
)

SIDE = 40.0  # mm


def test_typed_sizes_have_an_uncertainty():
    assert parse_size("0.2+-0.005") == parse_size("0.2±0.005") == PixelSize(0.2, 0.005, "typed")
    assert parse_size("0.2").uncertainty == pytest.approx(0.002)


@pytest.mark.parametrize("text", ["", "abc", "0", "-1", "nan", "inf", "0.2+--1", "0.2+-x"])
def test_what_cannot_be_a_size_is_one_line(text):
    with pytest.raises(ValueError, match="--mm-per-pixel must be mm above 0"):
        parse_size(text)


def test_two_points():
    size = of_points((10, 10), (310, 410), 100)
    assert size.mm == pytest.approx(0.2) and size.uncertainty == pytest.approx(0.2 * math.sqrt(2) / 500)
    for second, mm in (((10, 10), 100), ((12, 10), 100), ((310, 410), 0), ((310, 410), math.nan)):
        with pytest.raises(ValueError, match="take points at least 10 pixels apart"):
            of_points((10, 10), second, mm)


# ---- markers ----


def wall(family: str = "apriltag-36h11", pixels: int = 200, number: int = 7) -> np.ndarray:
    """A grey wall, 900 x 1200, with a marker of so many pixels a side whose corner is at (300, 400)."""
    image = np.full((900, 1200, 3), 170, np.uint8)
    marker = cv2.aruco.generateImageMarker(
        cv2.aruco.getPredefinedDictionary(pixel_size.FAMILIES[family]), number, pixels
    )
    image[340 : 460 + pixels, 240 : 360 + pixels] = 255
    image[400 : 400 + pixels, 300 : 300 + pixels] = marker[..., None]
    return image


def seen_at(image: np.ndarray, degrees: float) -> np.ndarray:
    """The wall turned about an upright axis, from far away: shortened along its rows, with a little perspective."""
    height, width = image.shape[:2]
    focal, middle = 4000.0, np.array([width / 2, height / 2])
    turn = math.radians(degrees)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    x, y = (corners - middle).T
    depth = focal + x * math.sin(turn)
    target = np.stack([focal * x * math.cos(turn) / depth, focal * y / depth], 1) + middle
    h = cv2.getPerspectiveTransform(corners.astype(np.float32), target.astype(np.float32))
    return cv2.warpPerspective(image, h, (width, height), flags=cv2.INTER_AREA, borderValue=(170, 170, 170))


@pytest.mark.parametrize("family", pixel_size.FAMILIES)
def test_every_family_of_markers_is_found_and_measured(family):
    seen = markers(wall(family))
    assert [(marker.family, marker.number) for marker in seen] == [(family, 7)]
    assert seen[0].corners == pytest.approx(np.array([[300, 400], [500, 400], [500, 600], [300, 600]]), abs=0.6)
    size = of_markers(seen, SIDE)
    assert size.mm == pytest.approx(SIDE / 200, rel=0.005) and abs(size.mm - SIDE / 200) < 2 * size.uncertainty
    assert size.note == ""
    assert markers(wall(family), "aruco-6x6" if family != "aruco-6x6" else "aruco-5x5") == []


@pytest.mark.parametrize("pixels, blur, within", [(50, 1.0, 0.004), (50, 1.8, 0.01), (34, 1.0, 0.008), (34, 1.6, 0.02)])
@pytest.mark.parametrize("degrees", [3, 11, -20])
def test_blur_makes_no_marker_smaller(pixels, blur, within, degrees):
    marker = wall(pixels=4 * pixels)[320 : 480 + 4 * pixels, 220 : 380 + 4 * pixels]
    turn = cv2.getRotationMatrix2D((len(marker) / 2, len(marker) / 2), degrees, 0.25)
    turn[:, 2] += 100.3 - len(marker) / 2
    smooth = cv2.GaussianBlur(marker, (0, 0), 4 * blur)
    image = cv2.warpAffine(smooth, turn, (200, 200), None, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    (found,) = markers(image)
    assert of_markers([found], SIDE).mm == pytest.approx(SIDE / pixels, rel=within)
    middle = turn[:, :2] @ np.full(2, len(marker) / 2 - 0.5) + turn[:, 2] + 0.5
    assert np.abs(found.corners.mean(0) - middle).max() < 0.2


@pytest.mark.parametrize("degrees", [-8, 0, 3, 8])
@pytest.mark.parametrize("right, below", [(0, 0), (12, 12), (0, 60), (60, 0)])
def test_markers_at_the_border_are_found(degrees, right, below):
    """`right` and `below`: pixels between the white around a marker and the photograph's border."""
    marker = wall()[360:640, 260:540]
    image = np.random.default_rng(0).normal(120, 12, (500, 500, 3)).clip(0, 255).astype(np.uint8)
    turn = cv2.getRotationMatrix2D((140, 140), degrees, 0.5)
    half = 70 * (math.cos(math.radians(degrees)) + math.sin(math.radians(abs(degrees))))
    turn[:, 2] += 500 - half - 140 - np.array([right, below])
    cv2.warpAffine(marker, turn, (500, 500), image, cv2.INTER_AREA, cv2.BORDER_TRANSPARENT)
    (found,) = markers(cv2.GaussianBlur(image, (0, 0), 0.7))
    assert of_markers([found], SIDE).mm == pytest.approx(SIDE / 100, rel=0.02)


@pytest.mark.parametrize("degrees", [20, 40])
def test_a_tilted_wall_is_reported_and_rectified(degrees):
    image = seen_at(wall(), degrees)
    (marker,) = markers(image)
    size = of_markers([marker], SIDE)
    assert tilt_of(marker) == pytest.approx(degrees, abs=3) and "--rectify" in size.note
    straight = rectify(image, marker)
    (again,) = markers(np.ascontiguousarray(straight[..., :3]))
    assert tilt_of(again) < 6 and of_markers([again], SIDE).uncertainty < size.uncertainty
    sides = np.linalg.norm(np.roll(again.corners, -1, 0) - again.corners, axis=1)
    assert sides == pytest.approx(sides.mean(), rel=0.01)
    assert (straight[..., 3] == 0).any() and (straight[..., 3] == 255).any()


def test_a_plane_up_to_its_horizon_cannot_be_rectified():
    image = seen_at(wall(), 20)
    (marker,) = markers(image)
    flat = pixel_size.Marker("", 0, np.array([[500.0, 400], [540, 400], [640, 440], [400, 440]]))
    with pytest.raises(ValueError, match="horizon"):
        rectify(image, flat)
    with pytest.raises(ValueError, match="tilted too much"):
        rectify(image, marker, 1000)


def test_a_side_that_cannot_be_is_one_line():
    for side in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="no size of a pixel"):
            of_markers(markers(wall()), side)


# ---- EXIF, XMP ----


def photograph(path, tags: dict, xmp: bytes | None = None, size=(400, 300)):
    image, exif = Image.new("RGB", size), Image.Exif()
    exif.get_ifd(0x8769).update(tags)
    image.save(path, exif=exif, **({"xmp": xmp} if xmp else {}))
    return path


DRONE = b'<rdf:Description drone-dji:RelativeAltitude="+25.0" drone-dji:GimbalPitchDegree="%s"/>'


@pytest.mark.parametrize(
    "tags, xmp, distance, expected",
    [
        # 50 mm lens, pixels of 0.005 mm, 10 m away: 1 mm
        ({37386: 50.0, 41486: 5080.0, 41488: 2, 37382: 10.0}, None, None, 1.0),
        ({37386: 50.0, 41486: 2000.0, 41488: 3, 37382: 10.0}, None, None, 1.0),
        ({37386: 50.0, 41486: 5080.0, 41488: 2, 40962: 800, 37382: 10.0}, None, None, 2.0),  # halved afterwards
        # a pixel of 35 mm film is 43.27 / 500 mm here
        ({41989: 50, 37382: 10.0}, None, None, 1000 * 10 * math.hypot(36, 24) / 500 / 50),
        ({41989: 50}, DRONE % b"-90.0", None, 1000 * 25 * math.hypot(36, 24) / 500 / 50),
        ({41989: 50}, DRONE % b"-30.0", None, None),  # altitude is no distance
        ({41989: 50}, b'<x drone-dji:LRFTargetDistance="12.5"/>', None, 1000 * 12.5 * math.hypot(36, 24) / 500 / 50),
        ({41989: 50, 37382: 10.0}, None, 20.0, 1000 * 20 * math.hypot(36, 24) / 500 / 50),  # known better
        ({41989: 50}, None, None, None),
        ({37386: 0.0, 41989: 0, 37382: 10.0}, None, None, None),  # unknown
        ({}, None, 20.0, None),
    ],
)
def test_what_exif_says(tags, xmp, distance, expected, tmp_path):
    size = of_file(photograph(tmp_path / "a.jpg", tags, xmp), distance)
    assert size is None if expected is None else size.mm == pytest.approx(expected, rel=1e-4)
    if size:
        assert size.source.startswith("EXIF") and 0.02 * size.mm < size.uncertainty < 0.12 * size.mm


def test_a_file_without_exif_says_nothing(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    assert of_file(tmp_path / "a.jpg") is None


def test_ways_that_disagree_are_reported():
    near, far, other = PixelSize(0.2, 0.01, "a marker"), PixelSize(0.21, 0.02, "EXIF"), PixelSize(0.4, 0.02, "typed")
    assert best([]) == (None, []) and best([far, near]) == (near, [])
    chosen, output = best([near, far, other])
    assert chosen == other and len(output) == 2 and "0.2 +- 0.01 mm (a marker)" in output[0]
