"""Cracks of a probability picture at a threshold, as a process of its own: `python -m cssr.demo.measure_process`.

How long it takes depends on how ragged the mask is, and a process can be ended at any moment. It reads a PNG from its
input and writes JSON to its output: what `measure_probability` gives, or {"error": one sentence}.
"""

import argparse
import base64
import io
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cssr.cracks import pixel_size
from cssr.cracks.files import Units, geojson, table
from cssr.cracks.measure import Crack, measure_cracks
from cssr.cracks.pixel_size import PixelSize
from cssr.utils.images import encode_image, open_image

_LENGTHS = ("length", "mean_width", "max_width")


def read_probability(body: bytes, max_pixels: int) -> np.ndarray:
    """H W uint8, 255 for a probability of 1; ValueError, one sentence, for anything but an 8-bit grey PNG."""
    wrong = ValueError("The probability must be the 8-bit grey PNG that came with the prediction.")
    with io.BytesIO(body) as file:
        try:
            opened = open_image(file, max_pixels, ("PNG",))
            if opened.mode != "L":
                raise wrong
            return np.asarray(opened)
        except Exception:  # decoders raise many kinds of errors on damaged files
            raise wrong from None


def measure_probability(
    prob: np.ndarray, threshold: float, scale: int, sizes: Sequence[PixelSize] = ()
) -> dict[str, Any]:
    """The cracks where a probability (H W uint8) exceeds a threshold (0..1), and the mask, as JSON takes them.

    Lengths are pixels of the photograph, of which one is `scale` SR pixels, or millimetres where there are `sizes` of
    the photograph's pixels, of which the best is taken; boxes are SR pixels, for the page to show.
    """
    mask = prob > threshold * 255  # as the page colours it
    size, notes = pixel_size.best(sizes)
    cracks = measure_cracks(mask, prob=prob, warn=notes.append)
    units = Units(scale, size.mm, size.uncertainty, size.source) if size else Units(scale)
    unit = (size.mm if size else 1.0) / scale
    return {
        "unit": "mm" if size else "px",
        "pixel": str(size) if size else None,
        "share": float(mask.mean()),
        "total": unit * sum(crack.length for crack in cracks),
        "widest": unit * max((crack.max_width for crack in cracks), default=0.0),
        "notes": notes,
        "cracks": [_row(crack, unit) for crack in cracks],
        "mask": base64.b64encode(encode_image(mask)).decode(),
        "csv": table(cracks, units),
        "geojson": geojson(cracks, "cracks", units),
    }


def _row(crack: Crack, unit: float) -> dict[str, Any]:
    lengths = {name: unit * getattr(crack, name) for name in _LENGTHS}
    facts = {"orientation": crack.orientation, "confidence": crack.confidence, "box": list(crack.box)}
    return {"number": crack.number, **lengths, **facts}


def _sizes(options: argparse.Namespace) -> Iterator[PixelSize]:
    """Sizes of a pixel that are typed, and from two points; ValueError where these are too near each other."""
    if options.mm is not None:
        yield pixel_size.parse_size(str(options.mm))
    if options.known is not None:
        *points, mm = options.known
        yield pixel_size.of_points(points[:2], points[2:], mm)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m cssr.demo.measure_process", description=__doc__.splitlines()[0])
    parser.add_argument("--threshold", type=float, required=True, help="0..1; crack where the probability exceeds it")
    parser.add_argument("--scale", type=int, required=True, help="SR pixels per pixel of the photograph")
    parser.add_argument("--mm", type=float, help="millimetres per pixel of the photograph")
    parser.add_argument("--known", type=float, nargs=5, help="two points x y of the photograph, and mm between them")
    parser.add_argument("--most", type=int, required=True, help="pixels that are taken")
    options = parser.parse_args(arguments)
    try:
        prob = read_probability(sys.stdin.buffer.read(), options.most)
        answer = measure_probability(prob, options.threshold, options.scale, list(_sizes(options)))
    except ValueError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
