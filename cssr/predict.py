"""Cracks in photographs: `python -m cssr.predict PHOTOGRAPHS... --out DIR [--model small-x4|small-x1|RUN|EXPORT]`.

A photograph is taken as the low-resolution image: what is written is larger by the model's scale along each side.
"""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.handle_signals()

import argparse
import sys
from pathlib import Path
from typing import Any

from cssr.config.schema import PRECISIONS, RESULTS, TILE, TILE_AT_SCALE_1
from cssr.utils.cli import ExitingParser, program, quick_imports


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = ExitingParser(prog=program("python -m cssr.predict"), description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("source", type=Path, nargs="+", help="photographs, folders of them, quoted patterns ('pier/*.jpg'), videos; "
        "a run or an export in the first place is taken as --model")  # fmt: skip
    add("--model", type=Path, help="a model of the package (small-x4: photographs from afar, blurred or small; "
        "small-x1: sharp ones), a run, an export, or OWNER/NAME in the Hub's cache (small-x4)")  # fmt: skip
    add("--out", type=Path, required=True, help="directory to write to; what is done there is not done again")
    add("--write", nargs="+", choices=RESULTS, default=list(RESULTS), help="what is written (default: all)")
    add("--size", choices=("sr", "photo"), default="sr", help="of probability, mask and overlay: the SR image's or the "
        "photograph's own, probabilities averaged (sr)")  # fmt: skip
    add("--format", choices=("auto", "png", "tiff"), default="auto", help="auto: PNG; TIFF above 64 megapixels and for "
        "georeferenced photographs, with their georeference (extra `large`)")  # fmt: skip
    add("--threshold", type=float, default=0.5, help="probability above which a pixel is crack (0.5)")
    add("--float", action="store_true", help="probabilities as float32 (.npy, or TIFF) instead of 8 bit")
    add("--tta", action="store_true", help="test-time augmentation: probabilities averaged over flips and quarter "
        "turns (finding cracks takes 8 x as long)")  # fmt: skip
    add("--measure", action="store_true", help="each crack's length, width, direction and confidence: _cracks.csv, "
        "_cracks.geojson (map coordinates where there are) and _cracks.png")  # fmt: skip
    add("--mm-per-pixel", metavar="X", help="for measures in mm: width of a pixel of the photographs, with its "
        "uncertainty if known (0.2, or 0.2+-0.005); without it as markers, EXIF or the map say")  # fmt: skip
    add("--known-distance", type=float, nargs=5, metavar=("X1", "Y1", "X2", "Y2", "MM"), help="the same by two points "
        "of a photograph that are so many mm apart, of all photographs")  # fmt: skip
    add("--marker-side", type=float, metavar="MM", help="the same by printed ArUco or AprilTag markers in the "
        "photographs: side of their black square")  # fmt: skip
    add("--marker-family", metavar="NAME", help="of the markers: apriltag-36h11, apriltag-25h9, aruco-original, "
        "aruco-6x6, aruco-5x5, aruco-4x4 (any)")  # fmt: skip
    add("--rectify", action="store_true", help="photographs with a marker are turned into a view from straight ahead "
        "of its plane")  # fmt: skip
    add("--distance", type=float, metavar="M", help="metres from the camera to the surface, where EXIF knows the focal "
        "length alone (as EXIF says)")  # fmt: skip
    add("--limits", metavar="NAME", help="classes of severity by width: en1992-1-1, en1992-1-1-prestressed, "
        "aashto-reinforced, aashto-prestressed, jsce, or a YAML file (en1992-1-1)")  # fmt: skip
    add("--width-uncertainty", type=float, default=0.6, metavar="PX", help="standard uncertainty of a measured width, "
        "pixels of the photograph (0.6, measured: docs/results.md)")  # fmt: skip
    add("--detectable", type=int, default=8, metavar="N", help="cracks drawn of each width, to say from which width on "
        "the model finds them in these photographs (8; 0: not said)")  # fmt: skip
    add("--least-length", type=float, default=0.0, metavar="N", help="what --measure leaves out: cracks shorter than "
        "so many of the photograph's pixels (0)")  # fmt: skip
    add("--most-cracks", type=int, default=10_000, metavar="N", help="--measure takes the largest N components of a "
        "photograph, of at most 2 N branches (10000)")  # fmt: skip
    add("--bits", type=int, metavar="N", help="of values that photographs store in 16 bits (without it, as each file "
        "says or shows)")  # fmt: skip
    add("--every", type=int, default=1, metavar="N", help="of videos, each N-th frame (1)")
    add("--tile", type=int, help=f"photograph pixels a side of a tile (what fits the photograph best, {TILE} at most, "
        f"{TILE_AT_SCALE_1} where the model does not enlarge; 0: whole)")  # fmt: skip
    add("--batch", type=int, help="tiles worked at once: on a CPU side by side, each by its share of the cores (2), "
        "elsewhere as one tensor (1)")  # fmt: skip
    add("--memory", type=float, default=4.0, metavar="GIB", help="that a photograph may take beside the networks and "
        "what they compute of a batch (4): 4 bytes a pixel, by windows 64 MiB, and 12 bytes x scale^2 x width x tile, "
        "and probabilities as .npy (--float)")  # fmt: skip
    add("--checkpoint", default="export", help="of a run: export (default), best, last, or a step")
    add("--precision", choices=PRECISIONS, default="float32", help="of the networks: bfloat16 takes less time "
        "where the processor has AVX512-BF16 or AMX, or on a GPU; few pixels change (float32)")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, ... (auto: an accelerator where there is one)")
    return parser


def __getattr__(name: str) -> Any:
    """`from cssr.predict import predict, Prediction`: imported when asked for, as torch takes seconds."""
    if name not in ("predict", "Prediction"):
        raise AttributeError(f"module 'cssr.predict' has no attribute {name!r}")
    from cssr.inference import predictor

    return getattr(predictor, name)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parser().parse_args(arguments)
    with quick_imports(compiler=False):  # takes seconds, which --help does not need
        from cssr.inference.run import run

    run(options)


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
