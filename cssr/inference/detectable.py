"""Least width of a crack that a model finds: cracks of known width drawn onto the photographs themselves.

Probability of detection by width is a logistic curve of the logarithm of the width (hit or miss, as MIL-HDBK-1823A has
it for cracks). A drawn crack is found where the mask covers half of its centre line, and did not before.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange, reduce

from cssr.models.joint import JointModel
from cssr.models.training_range import blur_sigma
from cssr.utils.photographs import Photograph

WIDTHS = (0.15, 0.25, 0.4, 0.6, 1.0, 1.5, 2.5, 4.0)  # pixels of the photograph
SIDE = 64  # pixels of the photograph's parts that are drawn on
CONTRAST = 0.5  # share of the light that is missing in a crack
BLUR = 0.6  # pixels, standard deviation of the camera's blur, where the model estimates none
_FINE = 8  # parts of a pixel's side that a drawn crack may cover or not
_NEAR = 1.5  # pixels between a crack's line and the mask that still find it
_PLACES = 20  # tries to draw a crack apart from those that are there
_FREE = 0.1  # of a line that the mask may cover before it is drawn
_BATCH = 8
_DRAWS = 200  # of the bootstrap
_RIDGE = 0.02  # keeps the curve finite where widths part hits from misses without a fault


@dataclass(frozen=True)
class Detectable:
    """Probability of detection by width; widths in pixels of the photograph, None where a probability is not reached.

    Attributes:
        hits: found cracks of each of `widths`, of `tries` each.
        p50, p90: the widths found with a probability of 50 and 90 %; p90_upper: the latter's 95 % upper bound.
        parts: of the photographs that were drawn on. contrast, blur: of the cracks.
    """

    widths: tuple[float, ...]
    hits: tuple[int, ...]
    tries: int
    p50: float | None
    p90: float | None
    p90_upper: float | None
    parts: int
    contrast: float
    blur: float

    def sentence(self, mm_per_pixel: float | None = None) -> str:
        """In words."""
        how = f"{self.tries * len(self.widths)} cracks drawn on {self.parts} parts of these photographs"
        if self.p90 is None:
            share = self.hits[-1] / self.tries
            return f"of cracks {self.widths[-1]:g} px wide {share:.0%} would be found ({how})"
        upper = "" if self.p90_upper is None else f", at most {self.p90_upper:.2g} px with a confidence of 95 %"
        mm = "" if mm_per_pixel is None else f" = {self.p90 * mm_per_pixel:.2g} mm"
        return f"cracks from {self.p90:.2g} px{mm} on are found with a probability of 90 %{upper} ({how})"

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def detectable(
    model: JointModel,
    photographs: Sequence[Callable[[], Photograph]],
    threshold: float = 0.5,
    tries: int = 8,
    seed: int = 0,
) -> Detectable | None:
    """Measure it on the user's own photographs, opened one by one; None where none has room for a crack.

    `tries`: cracks of each width. The same photographs, model and seed give the same cracks.
    """
    rng = np.random.default_rng(seed)
    images: list[np.ndarray] = []
    for opening in photographs:
        with opening() as photograph:
            images += _parts(photograph, rng, -(-tries // len(photographs)))
        if len(images) >= tries:
            break
    masks, blurs = _masks(model, images, threshold)
    blur = float(np.median(blurs)) if blurs else BLUR
    rooms = [(image, mask) for image, mask in zip(images, masks) if not mask.all()]
    rooms = [room for room in rooms if _drawn_apart(*room, WIDTHS[-1], blur, rng, model.scale)]
    if not rooms:
        return None
    hits = []
    for width in WIDTHS:
        drawn = [_drawn_apart(*rooms[n % len(rooms)], width, blur, rng, model.scale) for n in range(tries)]
        pictures, lines = zip(*filter(None, drawn))
        masks = _masks(model, pictures, threshold)[0]
        hits.append(sum(_share(mask, line, model.scale) >= 0.5 for mask, line in zip(masks, lines)))
    p50, p90, upper = fit(WIDTHS, hits, tries, rng)
    return Detectable(WIDTHS, tuple(hits), tries, p50, p90, upper, len(rooms), CONTRAST, round(blur, 3))


def draw(
    image: np.ndarray, width: float, blur: float, rng: np.random.Generator, contrast: float = CONTRAST
) -> tuple[np.ndarray, np.ndarray]:
    """A crack of so many pixels through the middle of a part (S S 3 uint8), and points N 2 (x, y) of its centre line.

    It runs in any direction and swings by some pixels; it takes `contrast` of the light, and is blurred as the rest.
    """
    side, angle = image.shape[0], rng.uniform(0, math.pi)
    amplitude, period, phase = rng.uniform(0, 3), rng.uniform(20, 60), rng.uniform(0, 2 * math.pi)
    middle = side / 2 + rng.uniform(-side / 8, side / 8, 2)
    fine = (np.arange(side * _FINE) + 0.5) / _FINE
    x, y = fine[None, :] - middle[0], fine[:, None] - middle[1]
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    swing = amplitude * np.sin(2 * math.pi * along / period + phase)
    slope = 2 * math.pi * amplitude / period * np.cos(2 * math.pi * along / period + phase)
    inside = np.abs(across - swing) <= width / 2 * np.hypot(1, slope)
    covered = reduce(inside.astype(np.float32), "(h a) (w b) -> h w", "mean", a=_FINE, b=_FINE)
    covered = cv2.GaussianBlur(covered, (0, 0), blur) if blur > 0.05 else covered
    shaded = image * (1 - contrast * covered[..., None])
    at = np.linspace(-side, side, 4 * side)
    off = amplitude * np.sin(2 * math.pi * at / period + phase)
    line = (
        np.stack([at * math.cos(angle) - off * math.sin(angle), at * math.sin(angle) + off * math.cos(angle)], 1)
        + middle
    )
    inner = ((line > 4) & (line < side - 4)).all(1)
    return np.round(shaded).astype(np.uint8), line[inner]


def fit(
    widths: Sequence[float], hits: Sequence[int], tries: int, rng: np.random.Generator
) -> tuple[float | None, float | None, float | None]:
    """Widths of a probability of 50 and 90 %, and the latter's 95 % upper bound; None beyond the widths tried."""
    p50, p90 = (_width_at(_curve(widths, hits, tries), p, widths) for p in (0.5, 0.9))
    shares = np.asarray(hits) / tries
    draws = (_curve(widths, rng.binomial(tries, shares), tries) for _ in range(_DRAWS))
    upper = np.percentile([_width_at(curve, 0.9, widths) or math.inf for curve in draws], 95, method="higher")
    return p50, p90, float(upper) if p90 is not None and upper < math.inf else None


def _curve(widths: Sequence[float], hits: Sequence[int], tries: int) -> tuple[float, float]:
    """Intercept and slope of the logit by log width, most likely, with a weak prior on the slope."""
    from scipy.optimize import minimize  # slow to import

    x, hit = np.log(widths), np.asarray(hits)

    def loss(parameters: np.ndarray) -> float:
        logit = parameters[0] + parameters[1] * x
        return float((tries * np.logaddexp(0, logit) - hit * logit).sum() + _RIDGE * (parameters**2).sum())

    intercept, slope = minimize(loss, (0.0, 1.0)).x
    return float(intercept), float(slope)


def _width_at(curve: tuple[float, float], probability: float, widths: Sequence[float]) -> float | None:
    intercept, slope = curve
    if slope <= 0:
        return None
    exponent = (math.log(probability / (1 - probability)) - intercept) / slope
    width = math.exp(min(exponent, 700.0))
    return max(width, widths[0]) if width <= widths[-1] else None


def _parts(photograph: Photograph, rng: np.random.Generator, wanted: int) -> list[np.ndarray]:
    """Parts S S 3 uint8 of a photograph that hold data all over."""
    height, width = photograph.shape
    if min(height, width) < SIDE:
        return []
    parts: list[np.ndarray] = []
    for _ in range(4 * wanted):
        top, left = int(rng.integers(height - SIDE + 1)), int(rng.integers(width - SIDE + 1))
        image, valid = photograph.window(top, left, SIDE, SIDE)
        if valid is None or valid.all():
            parts.append(np.ascontiguousarray(image))
        if len(parts) == wanted:
            break
    return parts


def _drawn_apart(
    image: np.ndarray, mask: np.ndarray, width: float, blur: float, rng: np.random.Generator, scale: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """A part with a crack drawn where the mask has none; None where that has no room."""
    for _ in range(_PLACES):
        drawn, line = draw(image, width, blur, rng)
        if len(line) and _share(mask, line, scale) <= _FREE:
            return drawn, line
    return None


@torch.no_grad()
def _masks(model: JointModel, images: Sequence[np.ndarray], threshold: float) -> tuple[list[np.ndarray], list[float]]:
    """Masks (S*s S*s bool) of parts, and the standard deviations of the estimated blur, pixels of the photograph."""
    device, masks, blurs = model.mean.device, [], []
    for at in range(0, len(images), _BATCH):
        pixels = torch.from_numpy(np.stack(images[at : at + _BATCH])).to(device)
        outputs = model(rearrange(pixels, "b h w c -> b c h w").float() / 255)
        masks += list((outputs.logits[:, 0].float().sigmoid() > threshold).cpu().numpy())
        if outputs.kernel is not None:
            blurs += (blur_sigma(outputs.kernel.float()) / model.scale).tolist()
    return masks, blurs


def _share(mask: np.ndarray, line: np.ndarray, scale: int) -> float:
    """Share of a line that is near the mask."""
    reach = round(_NEAR * scale)
    near = cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2))
    x, y = np.clip((line * scale).astype(int), 0, mask.shape[0] - 1).T
    return float(near[y, x].mean())
