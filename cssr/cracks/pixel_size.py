"""Size of a photograph's pixels on the surface, in mm: typed, from two points, markers, EXIF, or the map.

Each way has a standard uncertainty (68 %), so that ways which disagree by more are reported, and widths in millimetres
have an interval.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cssr.utils.geotiff import Place
from cssr.utils.images import open_image

FAMILIES = {  # of printed markers: OpenCV's dictionaries, the smallest that hold what people print
    "apriltag-36h11": cv2.aruco.DICT_APRILTAG_36h11,
    "apriltag-25h9": cv2.aruco.DICT_APRILTAG_25h9,
    "aruco-original": cv2.aruco.DICT_ARUCO_ORIGINAL,
    "aruco-6x6": cv2.aruco.DICT_6X6_250,
    "aruco-5x5": cv2.aruco.DICT_5X5_250,
    "aruco-4x4": cv2.aruco.DICT_4X4_50,
}
TILT = 10.0  # degrees to the surface above which a photograph's pixels differ too much to stay silent

SIZES = 1e-6, 1e6  # mm, of a pixel: what can be meant
_TYPED = 0.01  # relative uncertainty of a size that is typed without one
_POINT = 1.0  # pixels by which a point that is read off a photograph may be off
_CORNER = 0.5  # pixels, of a marker's detected corners
_DISTANCE = {"EXIF SubjectDistance": 0.1, "--distance": 0.05, "laser distance": 0.02, "altitude": 0.1}  # relative
_FOCAL = 0.02  # relative uncertainty of focal length and sensor
_MAP = 0.01  # of an orthophoto
_FRAME = math.hypot(36, 24)  # mm, diagonal of 35 mm film
_NADIR = 15.0  # degrees from straight down up to which altitude is distance
_EXIF, _FOCAL_LENGTH, _SUBJECT, _FOCAL_35, _PLANE_X, _PLANE_UNIT = 0x8769, 37386, 37382, 41989, 41486, 41488
_UNITS = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # mm, of FocalPlaneResolutionUnit
_XMP = rb"%s\s*(?:=\s*[\"']|>)\s*([-+0-9.eE]+)"


@dataclass(frozen=True)
class PixelSize:
    """Side of a pixel on the surface, its standard uncertainty, both mm, and how it is known."""

    mm: float
    uncertainty: float
    source: str
    note: str = ""  # what its user should know

    def __post_init__(self) -> None:
        if not (SIZES[0] <= self.mm <= SIZES[1] and 0 <= self.uncertainty < math.inf):
            raise ValueError(f"{self.source}: a pixel of {self.mm:g} +- {self.uncertainty:g} mm cannot be")

    def __str__(self) -> str:
        return f"{self.mm:.4g} +- {self.uncertainty:.2g} mm ({self.source})"


def parse_size(text: str) -> PixelSize:
    """`0.2`, or `0.2+-0.005`, in mm; ValueError for anything else."""
    value, _, uncertainty = text.replace("±", "+-").partition("+-")
    try:
        mm, error = float(value), float(uncertainty) if uncertainty else None
        return PixelSize(mm, _TYPED * mm if error is None else error, "typed")
    except ValueError:
        raise ValueError(f"--mm-per-pixel must be mm above 0, as 0.2 or 0.2+-0.005, got {text}") from None


def of_points(first: Sequence[float], second: Sequence[float], mm: float) -> PixelSize:
    """Size from the distance of two points (x, y) of the photograph; ValueError where they (almost) coincide."""
    pixels = math.dist(first, second)
    if not pixels >= 10 * _POINT or not 0 < mm < math.inf:
        raise ValueError(
            f"two points {pixels:.3g} pixels and {mm:g} mm apart give no size of a pixel: take points at least "
            f"{10 * _POINT:g} pixels apart, and a distance above 0"
        )
    return PixelSize(mm / pixels, mm / pixels * _POINT * math.sqrt(2) / pixels, "two points")


# ---- markers ----


@dataclass(frozen=True)
class Marker:
    """A printed square marker as it is seen: corners 4 2 float64 (x, y), clockwise from its upper left."""

    family: str
    number: int
    corners: np.ndarray


def markers(image: np.ndarray, family: str | None = None) -> list[Marker]:
    """Markers in a photograph (H W 3 uint8), the largest first: of one family, or of the first that is seen."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    for name in [family] if family else FAMILIES:
        corners, numbers, _ = _detector(name, cv2.aruco.CORNER_REFINE_SUBPIX).detectMarkers(grey)
        if numbers is not None:
            visible = [Marker(name, int(n), _by_sides(grey, name, n, c[0])) for n, c in zip(np.ravel(numbers), corners)]
            return sorted(visible, key=lambda marker: -cv2.contourArea(marker.corners.astype(np.float32)))
    return []


def _detector(family: str, refinement: int) -> cv2.aruco.ArucoDetector:
    settings = cv2.aruco.DetectorParameters()
    settings.cornerRefinementMethod = refinement
    settings.minDistanceToBorder = 0  # else markers near the photograph's border are missed, their white margins first
    return cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(FAMILIES[family]), settings)


def _by_sides(grey: np.ndarray, family: str, number: int, corners: np.ndarray) -> np.ndarray:
    """Corners of a marker (4 2) as its sides meet, where AprilTag's detector sees it as well.

    Blur rounds corners, so that what is found at them is too small: the side of a marker of 34 pixels by 5 % where the
    blur's standard deviation is 1.8 pixels, by 1.5 % where its sides meet.
    """
    margin = int(np.ptp(corners, axis=0).max() / 2) + 4
    left, top = np.maximum(corners.min(0).astype(int) - margin, 0)
    right, bottom = corners.max(0).astype(int) + margin
    part = np.ascontiguousarray(grey[top:bottom, left:right])
    detections, numbers, _ = _detector(family, cv2.aruco.CORNER_REFINE_APRILTAG).detectMarkers(part)
    # Pixel centres are whole numbers in OpenCV, and at .5 in its AprilTag detector, as ours.
    candidates = (
        [c[0] + (left, top) for n, c in zip(np.ravel(numbers), detections) if n == number] if detections else []
    )
    near = [refined for refined in candidates if np.abs(refined - corners - 0.5).max() < 2 + 0.1 * margin]
    return (near[0] if near else corners + 0.5).astype(float)


def of_markers(visible: Sequence[Marker], side: float) -> PixelSize:
    """Size from markers of a known side (mm): their mean, weighed by their areas.

    The uncertainty holds that of the corners, the tilt (pixels are larger along it), and how much markers
    differ among each other. Raises: ValueError without markers, or for a side that cannot be.
    """
    if not visible or not 0 < side < math.inf:
        raise ValueError(f"no size of a pixel from {len(visible)} markers of {side:g} mm")
    weights = [cv2.contourArea(marker.corners.astype(np.float32)) for marker in visible]
    sizes = [side / math.sqrt(weight) for weight in weights]
    mm = float(np.average(sizes, weights=weights))
    stretches = [_stretches(marker) for marker in visible]
    shortening = max((large - small) / (large + small) for large, small in stretches)
    parts = [_CORNER / math.sqrt(max(weights)), shortening / math.sqrt(3), float(np.std(sizes)) / mm]
    tilt = max(tilt_of(marker) for marker in visible)
    note = (
        f"the surface is tilted by {tilt:.0f} degrees, along which pixels are larger: --rectify" if tilt > TILT else ""
    )
    return PixelSize(mm, mm * math.hypot(*parts), f"{len(visible)} markers" if len(visible) > 1 else "a marker", note)


def tilt_of(marker: Marker) -> float:
    """Degrees between the surface and the image plane, as the marker is shortened."""
    large, small = _stretches(marker)
    return math.degrees(math.acos(small / large))


def _stretches(marker: Marker) -> tuple[float, float]:
    """Greatest and least pixels a side at the middle of the marker."""
    h = cv2.getPerspectiveTransform(np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32), _float32(marker.corners))
    x, y, w = h @ (0.5, 0.5, 1)
    jacobian = (h[:2, :2] - np.outer([x / w, y / w], h[2, :2])) / w
    large, small = np.linalg.svd(jacobian, compute_uv=False)
    return float(large), float(small)


def _float32(corners: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(corners, np.float32)


def rectify(image: np.ndarray, marker: Marker, max_pixels: int = 100_000_000) -> np.ndarray:
    """The photograph (H W 3 or 4 uint8) as seen from straight ahead of the plane that the marker is on: H W 4.

    The marker's side keeps its mean length. Alpha is 0 where the photograph does not reach.
    Raises: ValueError where the plane's horizon is in the photograph, or the result had more pixels.
    """
    side = math.sqrt(cv2.contourArea(_float32(marker.corners)))
    square = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    h = cv2.getPerspectiveTransform(_float32(marker.corners), square)
    height, width = image.shape[:2]
    rim = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    depth = np.c_[rim, np.ones(4)] @ h[2]
    if (depth <= 0.05 * depth.max()).any():
        raise ValueError("it cannot be rectified: the horizon of the marker's plane is in it, or all but is")
    corners = cv2.perspectiveTransform(rim[None], h)[0]
    low, high = np.floor(corners.min(0)), np.ceil(corners.max(0))
    columns, rows = (int(n) for n in high - low)
    if rows * columns > max_pixels:
        raise ValueError(f"rectified it had {columns} x {rows} pixels, above {max_pixels:,}: it is tilted too much")
    # Pixel centres are at .5 here, at whole numbers in warpPerspective.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    shift = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]])
    layers = image if image.shape[2] == 4 else np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    return cv2.warpPerspective(layers, np.linalg.inv(half) @ shift @ h @ half, (columns, rows), flags=cv2.INTER_CUBIC)


# ---- georeference, EXIF and XMP ----


def of_georeference(place: Place | None) -> PixelSize | None:
    """Size from a map in metres or feet; None without one."""
    if place is None or place.crs is None or not place.crs.is_projected:
        return None
    t, metres = place.transform, float(place.crs.linear_units_factor[1])
    mm = math.sqrt(abs(t.a * t.e - t.b * t.d)) * metres * 1000
    return PixelSize(mm, _MAP * mm, "georeference") if mm > 0 else None


def of_file(path: Path, distance: float | None = None) -> PixelSize | None:
    """Size from focal length, sensor and distance in a photograph's EXIF and XMP; None where one is missing.

    Args:
        distance: metres from the camera to the surface, where it is known better than the file says.
    Raises: ValueError, one line, for values that cannot be.
    """
    try:
        with open_image(path) as picture:
            exif, xmp = dict(picture.getexif().get_ifd(_EXIF)), picture.info.get("xmp", b"")
            xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
            width, height = picture.size
    except (OSError, ValueError, SyntaxError):  # no header that Pillow reads
        return None
    per_focal = _pixel_per_focal(exif, max(width, height), math.hypot(width, height))
    metres, source = (distance, "--distance") if distance is not None else _distance(exif, xmp)
    if per_focal is None or metres is None:
        return None
    mm = metres * 1000 * per_focal
    return PixelSize(mm, mm * math.hypot(_FOCAL, _DISTANCE[source]), f"EXIF, {source}")


def _pixel_per_focal(exif: Mapping[int, Any], longer: int, diagonal: float) -> float | None:
    """Pitch of the pixels by the focal length: the size of a pixel at a distance of 1."""
    equivalent = _number(exif, _FOCAL_35, "FocalLengthIn35mmFilm")
    if equivalent:
        return _FRAME / diagonal / equivalent
    focal, resolution = _number(exif, _FOCAL_LENGTH, "FocalLength"), _number(exif, _PLANE_X, "FocalPlaneXResolution")
    if not focal or not resolution:
        return None
    stated = _number(exif, 40962, "PixelXDimension") or longer
    pitch = _UNITS.get(exif.get(_PLANE_UNIT, 2), 25.4) / resolution * stated / longer
    return pitch / focal


def _distance(exif: Mapping[int, Any], xmp: bytes) -> tuple[float | None, str]:
    """Metres to the surface, and how they are known."""
    laser = _of_xmp(xmp, b"LRFTargetDistance")
    if laser:
        return laser, "laser distance"
    subject = _number(exif, _SUBJECT, "SubjectDistance")
    if subject:
        return subject, "EXIF SubjectDistance"
    altitude, pitch = _of_xmp(xmp, b"RelativeAltitude"), _of_xmp(xmp, b"GimbalPitchDegree")
    if altitude and pitch is not None and abs(pitch + 90) <= _NADIR:
        return altitude, "altitude"
    return None, ""


def _number(exif: Mapping[int, Any], tag: int, name: str) -> float | None:
    """A tag's value; None without one, or where it says that it is unknown (0); ValueError for what cannot be."""
    if tag not in exif:
        return None
    try:
        value = float(exif[tag])
    except (TypeError, ValueError, ZeroDivisionError):
        value = math.nan
    if value == 0 or value == math.inf:
        return None
    if not 0 < value < 0xFFFFFFFF:
        raise ValueError(f"EXIF {name} cannot be {exif[tag]}")
    return value


def _of_xmp(xmp: bytes, name: bytes) -> float | None:
    match = re.search(_XMP % name, xmp)
    try:
        return float(match[1]) if match else None
    except ValueError:
        return None


# ---- several ways ----


def best(sizes: Sequence[PixelSize]) -> tuple[PixelSize | None, list[str]]:
    """The typed size, else the least uncertain one; and sentences on those that disagree with it, and its note."""
    if not sizes:
        return None, []
    chosen = min(sizes, key=lambda size: (size.source != "typed", size.uncertainty / size.mm))
    disagreements = [
        f"a pixel is {chosen} but {other}: they differ by more than their uncertainty"
        for other in sizes
        if abs(other.mm - chosen.mm) > 2 * math.hypot(other.uncertainty, chosen.uncertainty)
    ]
    return chosen, disagreements + ([chosen.note] if chosen.note else [])
