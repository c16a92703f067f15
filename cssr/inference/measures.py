"""Measure a photograph's cracks: determine the size of its pixels, and write the files of results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from cssr.cracks import pixel_size
from cssr.cracks.files import Georeference, Units, write_geojson, write_outlines, write_picture, write_table
from cssr.cracks.measure import MAX_CRACKS, measure_cracks
from cssr.cracks.pixel_size import PixelSize
from cssr.inference.sources import Source
from cssr.inference.writers import Files
from cssr.utils.geotiff import Place
from cssr.utils.photographs import Photograph, open_photograph

_BACKGROUND = 32_000_000  # pixels of a mask above which the picture shows the mask, not the photograph
_SEARCHED = 400_000_000  # pixels of a photograph that is searched for markers


@dataclass(frozen=True)
class MeasureOptions:
    """Settings by which cracks are measured."""

    mm_per_pixel: PixelSize | None = None  # of all photographs, as it was typed or taken from two points
    marker_side: float | None = None  # mm, of printed markers
    marker_family: str | None = None  # one of `pixel_size.FAMILIES`; None: any
    distance: float | None = None  # metres from the camera to the surface
    rectify: bool = False  # photographs with a marker are seen from straight ahead
    least_length: float = 0.0  # of a crack, the photograph's pixels
    most: int = MAX_CRACKS  # components, `max_cracks` of `measure_cracks`; the name is in the records of results

    def prepare(
        self, source: Source, photograph: Photograph, warn: Callable[[str], None] = lambda _: None
    ) -> tuple[Photograph, PixelSize | None]:
        """The photograph, rectified if it is wanted, and the size of its pixels; `warn` is called with each oddity.

        Raises: ValueError, one line, for settings or files that contradict themselves.
        """
        sizes = [self.mm_per_pixel, pixel_size.of_georeference(photograph.place)]
        if source.image is None:
            stated = pixel_size.of_file(source.path, self.distance)
            if stated is None and self.distance is not None:
                warn("no focal length in its EXIF: --distance gives no size of a pixel")
            sizes.append(stated)
        if self.marker_side is not None:
            photograph, size = self._by_markers(photograph, warn)
            sizes.append(size)
        chosen, warnings = pixel_size.best([size for size in sizes if size is not None])
        for sentence in warnings:
            warn(sentence)
        return photograph, chosen

    def _by_markers(self, photograph: Photograph, warn: Callable[[str], None]) -> tuple[Photograph, PixelSize | None]:
        height, width = photograph.shape
        if height * width > _SEARCHED:
            warn(f"not searched for markers: more than {_SEARCHED:,} pixels")
            return photograph, None
        image, valid = photograph.window(0, 0, height, width)
        visible = pixel_size.markers(image, self.marker_family)
        if not visible:
            warn("no marker was found in it")
            return photograph, None
        if self.rectify:
            layers = image if valid is None else np.dstack([image, valid.astype(np.uint8) * 255])
            photograph.close()
            photograph = open_photograph(pixel_size.rectify(layers, visible[0]))
            visible = pixel_size.markers(photograph.pixels(0, 0, *photograph.shape), self.marker_family) or visible
        return photograph, pixel_size.of_markers(visible, self.marker_side)


def write_measures(
    files: Files,
    crack_prob: np.ndarray,
    photograph: Photograph,
    options: MeasureOptions,
    size: PixelSize | None,
    properties: Mapping[str, Any],
    warn: Callable[[str], None] = lambda _: None,
    progress: bool = False,
) -> int:
    """`_cracks.csv`, `.geojson` and `.png`, and `_outlines.geojson` of a mask, larger than the photograph by any scale.

    `crack_prob` (H W uint8) is 0 where there is no crack, else the probability in 1/255.
    Coordinates are the map's where the photograph is georeferenced, else the photograph's pixels.
    `size`: of the photograph's pixels. `properties`: its name and other facts that are kept with the cracks. `warn` is
    called with a sentence on those left out.
    Returns: how many cracks there are.
    Raises: TooRagged before anything is written.
    """
    scale = crack_prob.shape[0] / photograph.shape[0]
    cracks = measure_cracks(crack_prob, options.least_length * scale, crack_prob, options.most, warn, progress)
    units = Units(scale, size.mm, size.uncertainty, size.source) if size else Units(scale)
    place = None if photograph.place is None else georeference(photograph.place.enlarged(scale))
    facts = {**properties, "height": photograph.shape[0], "width": photograph.shape[1]}
    if photograph.place is not None:
        facts["affine"] = list(photograph.place.transform)[:6]
    if size:
        facts |= {"mm_per_pixel": size.mm, "mm_per_pixel_uncertainty": size.uncertainty, "mm_per_pixel_by": size.source}
    write_table(cracks, files.new("_cracks.csv"), units)
    write_geojson(cracks, files.new("_cracks.geojson"), units, place, facts)
    write_outlines(cracks, files.new("_outlines.geojson"), units, place)
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
