"""The cracks of a predicted mask as files: a table, lines on the map, and a picture."""

from dataclasses import dataclass

import cv2
import numpy as np

from cssr.cracks.files import Georeference, Units, write_geojson, write_picture, write_table
from cssr.cracks.measure import measure_cracks
from cssr.inference.writers import Files
from cssr.utils.geotiff import Place
from cssr.utils.photographs import Photograph

_BACKGROUND = 32_000_000  # pixels of a mask above which the picture shows the mask, not the photograph


@dataclass(frozen=True)
class Measured:
    """How cracks are measured."""

    mm_per_pixel: float | None = None  # of the photograph
    least_length: float = 0.0  # of a crack, the photograph's pixels


def write_measures(files: Files, crack_prob: np.ndarray, photograph: Photograph, how: Measured) -> int:
    """`_cracks.csv`, `_cracks.geojson` and `_cracks.png` of a mask, larger than the photograph by any scale.

    `crack_prob` (H W uint8) is 0 where there is no crack, else the probability in 1/255.
    The lines' coordinates are the map's where the photograph lies on one, else the photograph's pixels.
    Returns: how many cracks there are.
    """
    scale = crack_prob.shape[0] / photograph.shape[0]
    cracks = measure_cracks(crack_prob, how.least_length * scale, prob=crack_prob)
    units = Units(scale, how.mm_per_pixel)
    write_table(cracks, files.new("_cracks.csv"), units)
    place = None if photograph.place is None else georeference(photograph.place.enlarged(scale))
    write_geojson(cracks, files.new("_cracks.geojson"), units, place)
    write_picture(_background(crack_prob, photograph), cracks, files.new("_cracks.png"), units)
    return len(cracks)


def georeference(place: Place) -> Georeference:
    """The same for files of lines; maps without an EPSG number are named by their definition."""
    if place.crs is None:
        return Georeference(tuple(place.transform)[:6])
    number = place.crs.to_epsg()
    name = place.crs.to_wkt() if number is None else f"urn:ogc:def:crs:EPSG::{number}"
    return Georeference(tuple(place.transform)[:6], name)


def _background(mask: np.ndarray, photograph: Photograph) -> np.ndarray:
    if mask.size > _BACKGROUND:
        return mask
    pixels = np.ascontiguousarray(photograph.pixels(0, 0, *photograph.shape))
    return cv2.resize(pixels, mask.shape[::-1], interpolation=cv2.INTER_CUBIC)
