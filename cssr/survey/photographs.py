"""The photographs of a directory of results: their cracks in pixels, their place on a map, and their pictures."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from einops import reduce
from PIL import Image

from cssr.cracks.pixel_size import PixelSize
from cssr.survey.annotate import prefixes_of, probabilities
from cssr.survey.collect import PIXELS, Row, collect, crs_of, read_lines, reading_cracks
from cssr.survey.geometry import paths, to_pixels
from cssr.survey.matching import Cracks, View
from cssr.survey.registration import NotRegistered, Picture, read_picture, read_reduced
from cssr.survey.severity import WIDTHS, Limits
from cssr.survey.write import FOLDER
from cssr.utils.annotations import Within, fits, shortened
from cssr.utils.json_files import read_json
from cssr.utils.photographs import open_photograph
from cssr.utils.text import message_of, one_line

WIDTH_UNCERTAINTY = 0.6  # pixels, where a survey does not say its own
_PICTURES = ("_rectified.png", "_sr.png", "_sr.tif")  # of the results, where a photograph is gone
_CACHED = 4  # pictures and lists of cracks in memory
_ANY = Limits("", "", "p95", ("any",), (0.0,))


@dataclass(frozen=True, eq=False)
class SurveyPhotograph:
    """A photograph of a survey.

    Attributes:
        prefix: common path of its results. key: the same below the directory of results.
        facts: name, height, width, and its place on a map and the size of its pixels, if known.
        crs: of the map, as GDAL reads it; "": a map without a name.
    """

    prefix: Path
    key: str
    facts: Row
    crs: str

    @property
    def name(self) -> str:
        """Name of its file."""
        return one_line(self.facts["name"])

    @property
    def shape(self) -> tuple[int, int]:
        """Height, width, pixels."""
        return self.facts["height"], self.facts["width"]

    @property
    def affine(self) -> tuple[float, ...] | None:
        """Affine map of its pixels to the map: (a, b, c, d, e, f)."""
        return tuple(self.facts["affine"]) if "affine" in self.facts else None

    @property
    def size(self) -> PixelSize | None:
        """Size of its pixels, by the survey."""
        if self.facts.get("mm_per_pixel") is None:
            return None
        uncertainty = self.facts.get("mm_per_pixel_uncertainty") or 0.0
        return PixelSize(self.facts["mm_per_pixel"], uncertainty, self.facts.get("mm_per_pixel_by") or "typed")

    @property
    def names(self) -> set[str]:
        """Names by which a table of pairs may call it."""
        return {self.facts["name"], self.key, Path(self.facts["name"]).name}


class Results:
    """A survey, as the directory of results, or its folder `survey`.

    Attributes:
        photographs: in the order of their paths. width_uncertainty: of a width, standard, pixels of the photograph.
        threshold: probability above which a pixel is crack. width: that which is classed.
        detectable: width detected with a probability of 90 %, pixels; infinite where none is; None: not known.
    Raises: ValueError, one line, where there is none, or a file of it is damaged.
    """

    def __init__(self, directory: Path):
        directory = directory.parent if (directory / "survey.json").is_file() else directory
        self.directory = directory
        self.photographs = [_read_photograph(prefix, directory) for prefix in prefixes_of(directory)]
        path = directory / FOLDER / "survey.json"
        facts = read_json(path, _SURVEY, "predict again") if path.is_file() else {}
        self.width_uncertainty = facts.get("width_uncertainty_px", WIDTH_UNCERTAINTY)
        self.threshold = facts.get("threshold", 0.5)
        self.width = facts.get("limits", {}).get("width", "p95")
        measured = facts.get("detectable")
        if measured and not fits(measured.get("p90"), float | None):
            raise ValueError(f"{path} is damaged: detectable.p90 is {shortened(measured['p90'])}; predict again")
        self.detectable = (measured.get("p90") or math.inf) if measured else None


_SURVEY = {
    "?width_uncertainty_px": PIXELS,
    "?threshold": Annotated[float, Within(0, 1)],
    "?limits": {"width": Literal[WIDTHS]},
    "?detectable": dict[str, object] | None,
}


def _read_photograph(prefix: Path, directory: Path) -> SurveyPhotograph:
    lines = read_lines(prefix)
    return SurveyPhotograph(prefix, prefix.relative_to(directory).as_posix(), lines["photograph"], crs_of(lines))


@functools.lru_cache(maxsize=_CACHED)
def cracks_of(photograph: SurveyPhotograph) -> Cracks:
    """The cracks of a photograph; ValueError, one line, where its files are damaged."""
    survey = collect([photograph.prefix], _ANY, 0.0)
    with reading_cracks(photograph.prefix):
        pixels = to_pixels(photograph.affine)
        lines = [[np.asarray(pixels(line), float) for line in paths(shape)] for shape in survey.lines]
        rings = [[np.asarray(pixels(ring), float) for ring in paths(shape)] for shape in survey.areas]
    return Cracks(photograph.shape, lines, rings, survey.rows)


@functools.lru_cache(maxsize=_CACHED)
def picture_of(photograph: SurveyPhotograph) -> Picture:
    """The features of a photograph; NotRegistered (one line) if its file is gone and its results hold no SR image."""
    reasons = []
    for path in _files(photograph):
        try:
            return read_picture(path, photograph.shape)
        except (OSError, ValueError) as error:
            reasons.append(f"{path}: {message_of(error)}")
    raise NotRegistered(reasons[0] if reasons else f"{photograph.name} is gone, and so is {photograph.prefix}_sr.png")


def view_of(photograph: SurveyPhotograph, level: float) -> View:
    """The `View` of a photograph; `level`: probability from which on a crack is seen faintly."""
    try:
        picture = picture_of(photograph)
    except NotRegistered:
        picture = None
    return View(photograph.shape, picture, _faint(photograph, level))


def _faint(photograph: SurveyPhotograph, level: float) -> np.ndarray | None:
    """Pixels in which a probability reaches a level, H W bool; None where no probabilities were written."""
    try:
        prob = probabilities(photograph.prefix)
    except (OSError, ValueError):  # damaged, or too large
        return None
    height, width = photograph.shape
    prob = prob[..., 0] if prob is not None and prob.ndim == 3 else prob
    if prob is None or prob.shape[0] % height or prob.shape[1] % width:
        return None
    high = prob >= level * (255 if prob.dtype == np.uint8 else 1)
    return reduce(high, "(h a) (w b) -> h w", "max", h=height, w=width)


def image_of(photograph: SurveyPhotograph, side: int) -> Image.Image | None:
    """The photograph, reduced to `side` pixels; None where its file is gone."""
    for path in _files(photograph):
        try:
            with open_photograph(path) as opened:
                return Image.fromarray(read_reduced(opened, side)[0])
        except (OSError, ValueError):
            continue
    return None


def _files(photograph: SurveyPhotograph) -> list[Path]:
    results = [photograph.prefix.with_name(photograph.prefix.name + ending) for ending in _PICTURES]
    rectified = photograph.facts["name"].endswith(_PICTURES[0])
    file = [] if rectified or "frame" in photograph.facts else [Path(photograph.facts["name"])]
    return [path for path in (*file, *results[0 if rectified else 1 :]) if path.is_file()]
