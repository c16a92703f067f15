"""Predict one photograph in memory: super-resolved image, crack probability and blur kernel."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from cssr.config.schema import TILE, TILE_OVERLAP, segments
from cssr.models.joint import JointModel
from cssr.models.training_range import blur_sigma, outside
from cssr.utils.images import to_image
from cssr.utils.photographs import read_with_valid
from cssr.utils.valid_pixels import fill_missing

_BEYOND = 0.5  # by which an enlarged or filtered image may be outside of 0..1


@dataclass
class Prediction:
    """Prediction of one photograph of h x w pixels, at scale s."""

    sr: np.ndarray  # h*s w*s 3 uint8, super-resolved image
    prob: np.ndarray | None  # h*s w*s float32, crack probability; None from a model that finds no cracks
    kernel: np.ndarray | None  # k k float32, blur kernel that the model has estimated, if it does
    warnings: tuple[str, ...] = ()  # how the photograph differs from what the model was trained on
    valid: np.ndarray | None = None  # h*s w*s bool, where the photograph holds data; None: everywhere. Else all is 0

    def mask(self, threshold: float = 0.5) -> np.ndarray:
        """h*s w*s bool: crack where the probability exceeds `threshold`.

        Raises: ValueError where there are no probabilities, or the threshold is none.
        """
        if self.prob is None:
            raise ValueError("there is no mask: the model only super-resolves (model.seg=none)")
        if not 0 <= threshold <= 1:
            raise ValueError(f"the threshold is {threshold}; give a probability, 0 to 1")
        return self.prob > threshold


def predict(
    model: JointModel,
    image: Image.Image | np.ndarray | Tensor | str | Path,
    tile: int = TILE,
    overlap: int = TILE_OVERLAP,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Prediction:
    """Super-resolve a photograph and find its cracks, as far as the model does, in memory.

    Args:
        model: in evaluation mode, on any device.
        image: a file, a PIL image, H W 3 uint8 (H W 4 with alpha), or 3 H W float 0..1. Where it holds no data
            (`cssr/utils/valid_pixels.py`), no crack is predicted.
        tile: LQ pixels a side of the tiles in which a larger image is worked; 0: the whole image at once. Tiles overlap
            by `overlap` and are blended; the normalisation and a predicted kernel are those of the whole image.
    Raises: ValueError, one line, for what is no such image.
    """
    device = next(iter(model.parameters()), model.mean).device
    lq, valid = _to_tensor(image)
    box, full_size, valid = _extent(valid, lq.shape[-2:]), lq.shape[-2:], None if valid is None else valid.to(device)
    lq = lq[..., box[0], box[1]].to(device)
    sr_valid = None if valid is None else _enlarged(valid, model.scale)
    valid_argument = {} if sr_valid is None else {"valid": _enlarged(valid[..., box[0], box[1]], model.scale)}
    outputs = model.infer(lq, tile, overlap, progress, **valid_argument)
    if sr_valid is not None:
        # the results of the rectangle in their place in the whole image, 0 (no crack) where it holds no data
        (height, width), (rows, columns) = full_size, box
        pad = [model.scale * n for n in (columns.start, width - columns.stop, rows.start, height - rows.stop)]
        sr, logits = (F.pad(x.float(), pad) for x in (outputs.sr, outputs.logits))
        outputs = replace(outputs, sr=sr * sr_valid, logits=logits)
    prob = outputs.logits[0, 0].float().sigmoid().cpu().numpy() if segments(model.config) else None
    kernel = None if outputs.kernel is None else outputs.kernel[0, 0].float().cpu().numpy()
    blur = None if outputs.kernel is None else blur_sigma(outputs.kernel.float()).item()
    lq_values = lq if valid is None else lq[valid[..., box[0], box[1]].expand_as(lq)]
    warnings = outside(model.trained_on, lq_values.mean().item(), lq_values.std().item(), lq.shape[-2:], blur)
    shown_valid = None if sr_valid is None else sr_valid[0, 0].cpu().numpy() > 0
    if prob is not None and shown_valid is not None:
        prob = prob * shown_valid
    return Prediction(to_image(outputs.sr[0]), prob, kernel, tuple(warnings), shown_valid)


def _extent(valid: Tensor | None, shape: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of the smallest rectangle that holds all valid pixels; ValueError where there is none."""
    if valid is None:
        return slice(0, shape[0]), slice(0, shape[1])
    if not valid.any():
        raise ValueError("none of the image's pixels holds data: all are transparent, or marked as missing")
    occupied = (valid[0, 0].any(1 - axis).nonzero() for axis in (0, 1))
    return tuple(slice(int(lines[0]), int(lines[-1]) + 1) for lines in occupied)


def _enlarged(valid: Tensor, scale: int) -> Tensor:
    return valid.float().repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def _to_tensor(image: Image.Image | np.ndarray | Tensor | str | Path) -> tuple[Tensor, Tensor | None]:
    """1 3 H W float32, 0..1, and which pixels hold data: 1 1 H W bool, None where all do."""
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point() or not image.numel():
            raise ValueError(f"a tensor of 3 x height x width, 0..1, is needed, got {image.dtype} {[*image.shape]}")
        low, high = image.min().item(), image.max().item()
        if not (low >= -_BEYOND and high <= 1 + _BEYOND):  # NaN neither
            raise ValueError(
                f"a tensor of values 0..1 is needed, got {low:g} to {high:g}: divide those of 8 bits by 255"
            )
        return image[None].float(), None
    array, valid = read_with_valid(image)
    array = fill_missing(array, valid)
    return rearrange(torch.tensor(array), "h w c -> 1 c h w").float() / 255, (
        None if valid is None else torch.from_numpy(valid)[None, None]
    )


def device_named(name: str) -> torch.device:
    """`cpu`, `cuda`, ..., or `auto`: an accelerator where there is one; ValueError where it cannot be used."""
    if name != "auto":
        try:
            return torch.zeros(1, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
