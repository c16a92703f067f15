"""A wall with drawn cracks, photographed twice: pictures, and results as prediction writes them, without a model."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cssr.cracks.files import Georeference, Units, write_geojson, write_outlines
from cssr.cracks.measure import measure_cracks

SIZE = (480, 640)  # of photographs: height, width
STRAIGHT = np.eye(3)
SCALE = 4  # mask pixels for one of the photograph
Drawn = tuple[Sequence[tuple[float, float]], float]  # corners of a crack's line, and its width


def wall(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Concrete, H W 3 uint8: noise of several sizes."""
    rng = np.random.default_rng(seed)
    grey = np.full(size, 150.0)
    for sigma, strength in ((1, 8), (3, 10), (12, 14)):
        noise = cv2.GaussianBlur(rng.normal(size=size), (0, 0), sigma)
        grey += strength * noise / noise.std()
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def camera(degrees: float = 12, zoom: float = 1.08, tilt: float = 8e-5, shift: tuple = (40, -30)) -> np.ndarray:
    """A homography: the wall turned about the middle of the photograph, nearer, seen aslant, and shifted."""
    turn, (x, y) = np.radians(degrees), (SIZE[1] / 2, SIZE[0] / 2)
    cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
    turned = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [tilt, -tilt / 2, 1]])
    there, back = np.array([[1, 0, x], [0, 1, y], [0, 0, 1]]), np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])
    return there @ turned @ back


def mask_of(cracks: Sequence[Drawn], matrix: np.ndarray = STRAIGHT, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The cracks' mask, `SCALE` times as large as the photograph: H W uint8."""
    mask = np.zeros([side * SCALE for side in size], np.uint8)
    for corners, width in cracks:
        line = np.concatenate([np.linspace(a, b, 200) for a, b in zip(corners[:-1], corners[1:])])
        along = np.gradient(line, axis=0)
        normal = (
            np.stack([-along[:, 1], along[:, 0]], 1)
            / np.linalg.norm(along, axis=1, keepdims=True)
            * (width - 1 / SCALE)
            / 2
        )
        seen = cv2.perspectiveTransform(np.concatenate([line + normal, (line - normal)[::-1]])[None], matrix)[0]
        # OpenCV's pixel centres are at whole numbers, ours at .5; and it fills the pixels along the rim, too.
        cv2.fillPoly(mask, [np.round((seen * SCALE - 0.5) * 16).astype(np.int32)], 1, shift=4)
    return mask


def seen(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The wall from another place, on another day: re-lit, blurred, with noise."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    moved = cv2.warpPerspective(image, np.linalg.inv(half) @ matrix @ half, image.shape[1::-1], flags=cv2.INTER_CUBIC)
    light = np.linspace(0.7, 1.1, image.shape[1])[None, :, None]
    noise = np.random.default_rng(9).normal(0, 2, moved.shape)
    return (cv2.GaussianBlur(moved, (0, 0), 0.9) * light + 8 + noise).clip(0, 255).astype(np.uint8)


def with_cracks(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cracks of a mask take two thirds of the light."""
    share = cv2.resize(mask.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_AREA)[..., None]
    return (image * (1 - 0.65 * share)).astype(np.uint8)


def segmented(image: np.ndarray) -> np.ndarray:
    """Crack is what is darker by a quarter than its surroundings, `SCALE` times as large: H W uint8."""
    grey = image[..., 0].astype(np.float32)
    around = cv2.medianBlur(image[..., 0], 61).astype(np.float32)
    share = np.where(around > 40, grey / np.maximum(around, 1), 1)  # beyond the wall it is black
    share = cv2.resize(share.astype(np.float32), None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    return (share < 0.75).astype(np.uint8)


def results(
    folder: Path,
    name: str,
    image: np.ndarray | None,
    mask: np.ndarray,
    mm: float | None = None,
    place: Georeference | None = None,
    uncertainty: float = 0.01,
) -> Path:
    """A photograph in `folder/photos`, unless `image` is None; its results in `folder/results`, which is returned."""
    photos, out = folder / "photos", folder / "results"
    photos.mkdir(parents=True, exist_ok=True)
    out.mkdir(exist_ok=True)
    if image is not None:
        Image.fromarray(image).save(photos / f"{name}.png")
    height, width = (side // SCALE for side in mask.shape)
    units = Units(SCALE) if mm is None else Units(SCALE, mm, uncertainty * mm)
    facts = {"name": str(photos / f"{name}.png"), "height": height, "width": width}
    if mm is not None:
        facts |= {"mm_per_pixel": mm, "mm_per_pixel_uncertainty": uncertainty * mm, "mm_per_pixel_by": "typed"}
    fine = None
    if place:
        a, b, c, d, e, f = place.affine
        fine = Georeference((a / SCALE, b / SCALE, c, d / SCALE, e / SCALE, f), place.crs)
        facts["affine"] = list(place.affine)
    cracks = measure_cracks(mask)
    write_geojson(cracks, out / f"{name}_cracks.geojson", units, fine, facts)
    write_outlines(cracks, out / f"{name}_outlines.geojson", units, fine)
    (out / f"{name}_prediction.json").write_text(json.dumps({}))
    return out
