"""Check the options of `cssr.predict` before work starts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cssr.config.schema import check_tile
from cssr.cracks import pixel_size
from cssr.cracks.pixel_size import FAMILIES
from cssr.models.hub import is_hub_name
from cssr.models.load import is_model
from cssr.models.shipped import DEFAULT
from cssr.utils import geotiff
from cssr.utils.cli import check_bits

if TYPE_CHECKING:
    from cssr.inference.measures import MeasureOptions

_MAX_DETECTABLE = 1000  # cracks of each width: 8 take as long as a photograph or two
_MEASURE_ONLY = ("mm_per_pixel", "known_distance", "marker_side", "distance", "rectify", "limits", "least_length")


def choose_model(options: argparse.Namespace) -> None:
    """`options.model`: what --model says, a run or export in place of the first photograph, or the package's own."""
    first, *others = options.source
    if options.model is not None:
        return
    if is_model(first) or (others and is_hub_name(first)):
        if not others:
            raise ValueError(f"{first} is a model, and no photographs are given: name files or folders behind it")
        options.model, options.source = first, others
        return
    options.model = Path(DEFAULT)


def check(options: argparse.Namespace) -> None:
    """Refuse options that cannot be meant; ValueError names the option."""
    if not 0 <= options.threshold <= 1:
        raise ValueError(f"--threshold must be in 0..1, got {options.threshold}")
    if options.tile is not None:
        check_tile(options.tile, "--tile")
    check_bits(options.bits)
    for name in ("batch", "every"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, got {getattr(options, name)}")
    if not options.memory > 0:
        raise ValueError(f"--memory must be above 0 (GiB), got {options.memory}")
    _check_measures(options)
    if options.format == "tiff" and not geotiff.installed():
        raise ValueError("--format tiff needs rasterio: pip install 'cssr[large]'")


def _check_measures(options: argparse.Namespace) -> None:
    for name in _MEASURE_ONLY:
        if getattr(options, name) and not options.measure:
            raise ValueError(f"--{name.replace('_', '-')} is for --measure, which is not given")
    for name in ("marker_side", "distance"):
        if getattr(options, name) is not None and not 0 < getattr(options, name) < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(options, name)}")
    if not 0 <= options.detectable <= _MAX_DETECTABLE:
        raise ValueError(f"--detectable must be 0 to {_MAX_DETECTABLE}, got {options.detectable}")
    for name in ("least_length", "width_uncertainty"):
        if not 0 <= getattr(options, name) < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be 0 or more, got {getattr(options, name)}")
    if options.mm_per_pixel is not None and options.known_distance is not None:
        raise ValueError("--mm-per-pixel and --known-distance both say the size of a pixel: give one of them")
    if options.marker_family is not None and options.marker_family not in FAMILIES:
        raise ValueError(f"--marker-family must be one of {', '.join(FAMILIES)}, got {options.marker_family}")
    if (options.rectify or options.marker_family) and options.marker_side is None:
        raise ValueError("--rectify and --marker-family need --marker-side, the side of the markers in mm")
    if options.measure:
        from cssr.cracks.measure import check_max_cracks  # slow to import, as all that measures

        check_max_cracks(options.most_cracks)


def measure_options(options: argparse.Namespace) -> "MeasureOptions":
    """Settings of measurement from the command line."""
    from cssr.inference.measures import MeasureOptions

    size = None if options.mm_per_pixel is None else pixel_size.parse_size(options.mm_per_pixel)
    if options.known_distance is not None:
        *points, mm = options.known_distance
        try:
            size = pixel_size.of_points(points[:2], points[2:], mm)
        except ValueError as error:
            raise ValueError(f"--known-distance: {error}") from None
    return MeasureOptions(
        size,
        options.marker_side,
        options.marker_family,
        options.distance,
        options.rectify,
        options.least_length,
        options.most_cracks,
    )
