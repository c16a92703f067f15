"""Pictures of an evaluation: strips of panels side by side, and sample images beside a result, for reports.

`samples/NN-KEY/` holds `lq.png`, `sr.webp`, `hr.webp` and, where cracks are sought, `prob.png` and `mask.png`; a large
photograph is cut to the window that shows most crack. `prob.png` has the probability in 100 levels: how many of the 99
thresholds are below it, so that what is crack at a threshold is read from it exactly as it was evaluated.
`index.json` names the samples, their kinds (best, median, worst), their kernels, and where the window lay.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cssr.data.batch import Batch, Outputs
from cssr.evaluation.metrics import THRESHOLDS, thresholds_below
from cssr.utils.files import PARTIAL, naming_path, safe_name, write_atomic
from cssr.utils.images import encode_image, join_images, to_image
from cssr.utils.json_files import read_json

_GAP = 4  # pixels between panels
FORMAT = "cssr-samples-1"
SIDE = 1024  # HR pixels a side at most
FILES = {"lq": "lq.png", "sr": "sr.webp", "hr": "hr.webp", "prob": "prob.png", "mask": "mask.png"}
_QUALITY = 90  # of WebP: a quarter of PNG's bytes, and no difference to the eye
_ABOUT = ("key", "scale", "size", "window", "kernel", "predicted_kernel")


def sample_panels(batch: Batch, outputs: Outputs, index: int, segmentation: bool = True) -> dict[str, np.ndarray]:
    """The panels of one sample by title, all of HR size: LQ (pixels enlarged), SR, HR; of `segmentation`, probability
    and mask.
    """
    size = batch.hr.shape[-2:]
    lq = F.interpolate(batch.lq[index : index + 1].float(), size=size, mode="nearest")[0]
    height, width = batch.lq.shape[-2:]
    panels = {f"LQ {width}x{height}": to_image(lq), "SR": to_image(outputs.sr[index]), "HR": to_image(batch.hr[index])}
    if segmentation:
        panels |= {"probability": to_image(outputs.logits[index].sigmoid()), "mask": to_image(batch.mask[index])}
    return panels


def strip(rows: Sequence[dict[str, np.ndarray]], captions: Sequence[str] = ()) -> Image.Image:
    """Rows of titled panels as one picture; `captions` are above the rows."""
    pictures = [_row(panels, caption) for panels, caption in zip(rows, [*captions, *[""] * len(rows)])]
    return join_images(pictures, down=True)


def _row(panels: dict[str, np.ndarray], caption: str) -> Image.Image:
    font, head = ImageFont.load_default(13), 20 * (2 if caption else 1)
    width = sum(p.shape[1] + _GAP for p in panels.values()) + _GAP
    row = Image.new("RGB", (width, max(p.shape[0] for p in panels.values()) + head + _GAP), "white")
    draw, left = ImageDraw.Draw(row), _GAP
    draw.text((_GAP, 2), caption, fill="black", font=font)
    for title, panel in panels.items():
        draw.text((left, head - 18), title, fill="black", font=font)
        row.paste(Image.fromarray(panel), (left, head))
        left += panel.shape[1] + _GAP
    return row


def save_picture(image: Image.Image | np.ndarray, path: Path) -> Path:
    """Write a PNG, making its directory; ValueError, one line, where it cannot be written."""
    with naming_path(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, encode_image(image))
    return path


@dataclass(frozen=True)
class Sample:
    """A sample image: its encoded files by the names of `FILES`, and facts about it.

    `about`: key; scale; size [height, width] of the HR image; window [top, left, height, width] that is shown, HR
    pixels; kernel and predicted_kernel, rows of numbers, or None.
    """

    about: dict[str, Any]
    files: dict[str, bytes]


def take_sample(batch: Batch, outputs: Outputs, index: int, segmentation: bool = True) -> Sample:
    """A sample of a batch on any device, as it is kept; prob and mask only of `segmentation`."""
    hr, lq = batch.hr[index], batch.lq[index]
    scale = hr.shape[-1] // lq.shape[-1]
    window = crack_window(batch.mask[index, 0].cpu().numpy(), SIDE // scale * scale, scale)
    files = {"lq": _encode(to_image(_crop(lq, [n // scale for n in window])), "png")}
    files |= {name: _encode(to_image(_crop(x, window)), "webp") for name, x in (("sr", outputs.sr[index]), ("hr", hr))}
    if segmentation:
        prob, mask = (_crop(x[index], window)[0] for x in (outputs.logits.sigmoid(), batch.mask))
        files |= {"prob": _encode(levels_to_grey(thresholds_below(prob).cpu().numpy()), "png")}
        files |= {"mask": _encode((mask > 0.5).cpu().numpy(), "png")}
    kernels = [_numbers(kernels, index) for kernels in (batch.kernel, outputs.kernel)]
    about = (batch.key[index], scale, list(hr.shape[-2:]), window, *kernels)
    return Sample(dict(zip(_ABOUT, about)), files)


def crack_window(mask: np.ndarray, side: int, step: int) -> list[int]:
    """[top, left, height, width] of the window, `side` at most, that holds most of a mask (H, W); without crack, the
    middle. All but the ends of the image are multiples of `step`.
    """
    height, width = (min(side, n) for n in mask.shape)
    sums = np.pad((mask > 0.5).cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    across = sums[:, width:] - sums[:, :-width]
    counts = (across[height:] - across[:-height])[::step, ::step]
    top, left = np.unravel_index(counts.argmax(), counts.shape) if counts.any() else (n // 2 for n in counts.shape)
    return [int(top) * step, int(left) * step, height, width]


def levels_to_grey(levels: np.ndarray) -> np.ndarray:
    """Levels 0..99 as uint8 grey 0..255, from which `grey_to_levels` has them back."""
    return np.round(levels * (255 / len(THRESHOLDS))).astype(np.uint8)


def grey_to_levels(grey: np.ndarray) -> np.ndarray:
    """Count of thresholds below: of uint8 grey 0..255, 0..99; crack at threshold number i (from 1) where >= i."""
    return np.round(grey.astype(np.float64) * (len(THRESHOLDS) / 255)).astype(np.uint8)


def _crop(x: Tensor, window: Sequence[int]) -> Tensor:
    top, left, height, width = window
    return x[..., top : top + height, left : left + width]


def _encode(pixels: np.ndarray, form: str) -> bytes:
    return encode_image(pixels, form, **({"quality": _QUALITY} if form == "webp" else {"optimize": True}))


def _numbers(kernels: Tensor | None, index: int) -> list[list[float]] | None:
    """A kernel (of B 1 k k) with six digits."""
    if kernels is None:
        return None
    return [[float(f"{value:.6g}") for value in row] for row in kernels[index, 0].to(torch.float64).tolist()]


# ---- files ----


def write_samples(samples: Mapping[str, Sample], kinds: Mapping[str, Sequence[str]], out: Path) -> None:
    """Write the samples (by key) that `kinds` (kind to keys) name into `out`, in place of what is there."""
    keys = list(dict.fromkeys(key for group in kinds.values() for key in group))
    folders = {key: f"{number:02d}-{safe_name(key, empty='sample')[-60:]}" for number, key in enumerate(keys)}
    entries = [
        {"folder": folder, **samples[key].about, "files": list(samples[key].files)} for key, folder in folders.items()
    ]
    index = {"format": FORMAT, "kinds": {kind: list(group) for kind, group in kinds.items()}, "samples": entries}
    temporary = out.with_name(f"{out.name}{PARTIAL}-{os.getpid()}")
    try:
        for key, folder in folders.items():
            (temporary / folder).mkdir(parents=True)
            for name, content in samples[key].files.items():
                (temporary / folder / FILES[name]).write_bytes(content)
        (temporary / "index.json").write_text(json.dumps(index), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_INDEX = {"format": str, "samples": [{"key": str, "folder": str, "files": list[str]}], "kinds": dict[str, list[str]]}


def read_samples(directory: Path) -> tuple[dict[str, list[str]], dict[str, Sample]]:
    """Kinds (best, median, worst) to keys, and the samples by key; nothing where the directory has no index.

    Raises: ValueError, one line, for an index that is damaged, or files that are missing.
    """
    index = directory / "index.json"
    if not index.is_file():
        return {}, {}
    content = read_json(index, {"format": str}, "evaluate again")
    if content["format"] == FORMAT:
        content = read_json(index, _INDEX, "evaluate again")
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {FORMAT!r}")
        samples = {entry["key"]: _read(directory, entry) for entry in content["samples"]}
        return {kind: [key for key in keys if key in samples] for kind, keys in content["kinds"].items()}, samples
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{index} is damaged, evaluate again: {reason}") from None


def _read(directory: Path, entry: Mapping[str, Any]) -> Sample:
    if Path(entry["folder"]).name != entry["folder"]:
        raise ValueError(f"{entry['folder']!r} is no folder of it")
    files = {name: (directory / entry["folder"] / FILES[name]).read_bytes() for name in entry["files"]}
    return Sample({name: entry[name] for name in _ABOUT}, files)
