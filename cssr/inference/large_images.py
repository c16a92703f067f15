"""Predict photographs of which the results are larger than the memory.

A photograph is predicted in rounds over its tiles: the blur kernel (where the model predicts one), the SR image and its
statistics, the cracks. Between rounds the SR image is in a temporary file beside the results (12 bytes a pixel of
it, float32), as computing it again would take longer than reading it, and rounding it would change the cracks. Tiles
are read ahead of use and results written behind by threads, a few batches apart.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cssr.config.schema import segments
from cssr.inference.result_rows import CrackMasks, ResultOptions, SRImage, as_tiff
from cssr.inference.scratch import Scratch
from cssr.inference.writers import Files, save_array, save_png
from cssr.models.joint import JointModel
from cssr.models.tiling import Tiles
from cssr.models.training_range import blur_sigma, outside
from cssr.utils import geotiff
from cssr.utils.photographs import Photograph
from cssr.utils.threads import WriteBehind

_WINDOW = 128  # pixels a side of the windows that statistics are taken from
_AHEAD = 2  # batches of tiles, and chunks of results, that wait


@dataclass
class Summary:
    """Facts of one photograph's results, for the console and the record."""

    width: int  # of prob and mask, or of the SR image
    height: int
    crack: float | None = None  # share of the pixels; None where none are looked for
    crack_prob: np.ndarray | None = field(default=None, repr=False)  # H W uint8: 0 no crack, else prob x 255
    cracks: int | None = None  # components, where they are measured
    warnings: list[str] = field(default_factory=list)  # how the photograph differs from what the model was trained on

    def facts(self) -> dict[str, Any]:
        """All but the probabilities, for JSON."""
        names = ("width", "height", "crack", "cracks", "warnings")
        return {name: getattr(self, name) for name in names}


def predict_rows(
    model: JointModel,
    photograph: Photograph,
    files: Files,
    wanted: ResultOptions,
    tiles: Tiles,
    keep_mask: bool = False,
) -> Summary:
    """Write a photograph's results by rows.

    Args:
        tiles: photograph pixels.
        keep_mask: whether the mask is wanted in memory as well, with probabilities, a byte a pixel: `crack_prob`.
    Raises: OSError for a file that ends too early, or a disk that is full.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(Scratch(files.directory))
        pictures, cracks = (stack.enter_context(WriteBehind(_AHEAD)) for _ in range(2))
        box = photograph.extent()
        part = photograph if box == (0, 0, *photograph.shape) else photograph.within(*box)
        sr = SRImage(model, photograph, files, wanted, box)
        with_cracks = segments(model.config) and (keep_mask or {"prob", "mask", "overlay"} & set(wanted.results))
        mask = CrackMasks(model, photograph, scratch, files, wanted, keep_mask, box) if with_cracks else None
        blur = None
        for name, rows in model.infer_rows(part, tiles, scratch):
            if name == "kernel":
                blur = blur_sigma(rows.float()).item()
                if "kernel" in wanted.results:
                    kernel = rows[0, 0].float().cpu().numpy()
                    save_array(files.new("_kernel.npy"), kernel)
                    levels = (kernel / kernel.max() * 255).clip(0, 255).astype(np.uint8)  # its largest value white
                    save_png(files.new("_kernel.png"), levels)
            elif name == "sr":
                pictures(sr.write, rows)
            elif name == "logits" and mask is not None:
                cracks(mask.write, rows)
            elif name == "logits" and model.rounds > 1:
                break  # the remaining rounds are not needed
        pictures(sr.finish)
        if mask is not None:
            cracks(mask.finish)
    warnings = (
        outside(model.trained_on, *_sample_statistics(photograph), photograph.shape, blur) if model.trained_on else []
    )
    if mask is None:
        return Summary(*sr.shape[::-1], warnings=warnings)
    share = mask.crack_pixels / mask.valid_pixels
    return Summary(*mask.shape[::-1], share, mask.crack_prob, warnings=warnings)


def _sample_statistics(photograph: Photograph) -> tuple[float, float]:
    """Mean and standard deviation of a photograph's values, 0..1, over windows of it."""
    height, width = (min(side, _WINDOW) for side in photograph.shape)
    tops, lefts = (np.linspace(0, side - min(side, _WINDOW), 4).astype(int) for side in photograph.shape)
    windows = [photograph.window(top, left, height, width) for top in {*tops} for left in {*lefts}]
    pixels = [(rgb if valid is None else rgb[valid]).reshape(-1, 3) for rgb, valid in windows]
    values = np.concatenate(pixels).astype(np.float32) / 255
    if not len(values):  # all of them are where there are no data
        values = photograph.read(*photograph.extent()[:2], 1, 1).numpy() / 255
    return float(values.mean()), float(values.std())


def memory(model: JointModel, photograph: Photograph, wanted: ResultOptions, side: int, keep_mask: bool = False) -> int:
    """Bytes that a photograph needs at most, beside the networks and what they compute of a batch of tiles.

    The photograph as it is held; of the SR image a row of tiles (float32, 3 channels) and the chunks in flight; results
    that become .npy, and the last blocks of pictures. `side` of the tiles, 0: the whole photograph.
    """
    height, width = photograph.shape
    row = width * model.scale * 12  # bytes of a row of the SR image
    tiles = min(side or height, height) * model.scale * row
    chunks = 64 * row * 12
    results = sum(_result_bytes(name, photograph, wanted, model.scale) for name in wanted.results if name != "kernel")
    mask = height * width * (1 if wanted.size == "photo" else model.scale**2) if keep_mask else 0
    return photograph.held + geotiff.CACHE + tiles + chunks + results + mask


def _result_bytes(name: str, photograph: Photograph, wanted: ResultOptions, scale: int) -> int:
    """Bytes of a result in memory: of a picture rows of blocks, of an .npy all, as chunks, whole, and while saved."""
    scale = 1 if name != "sr" and wanted.size == "photo" else scale
    height, width = (side * scale for side in photograph.shape)
    array = name == "prob" and wanted.as_float and not as_tiff(wanted, photograph, scale)
    pixel = 3 if name in ("sr", "overlay") else 4 if name == "prob" and wanted.as_float else 1
    return 3 * pixel * width * (height if array else 2 * geotiff.BLOCK)
