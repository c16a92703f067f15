"""Least width of a crack that a model finds: cracks of known width drawn onto the photographs themselves.

Probability of detection by width is a logistic curve of the logarithm of the width (hit or miss, as MIL-HDBK-1823A has
it for cracks). A drawn crack is detected where the mask covers half of its centre line, and did not before.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
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
_TRIES = 20  # tries to draw a crack apart from those that are there
_MAX_COVERED = 0.1  # share of a line that the mask may cover before the crack is drawn
_BATCH = 8
_DRAWS = 200  # of the bootstrap
_RIDGE = 0.02  # keeps the curve finite where the widths separate hits from misses exactly


@dataclass(frozen=True)
class Detectable:
    """Probability of detection by width; widths in pixels of the photograph, None where a probability is not reached.

    Attributes:
        hits: detected cracks of each of `widths`, of `tries` each.
        p50, p90: the widths detected with a probability of 50 and 90 %; p90_upper: the latter's 95 % upper bound.
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
        """The result as a sentence."""
        basis = f"{self.tries * len(self.widths)} cracks drawn on {self.parts} parts of these photographs"
        if self.p90 is None:
            share = self.hits[-1] / self.tries
            return f"of cracks {self.widths[-1]:g} px wide {share:.0%} would be found ({basis})"
        upper = "" if self.p90_upper is None else f", at most {self.p90_upper:.2g} px with a confidence of 95 %"
        mm = "" if mm_per_pixel is None else f" = {self.p90 * mm_per_pixel:.2g} mm"
        return f"cracks from {self.p90:.2g} px{mm} on are found with a probability of 90 %{upper} ({basis})"

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
    """Measure the detectable width on the user's photographs, opened one by one; None where none has room for a crack.

    `tries`: cracks of each width. The same photographs, model and seed give the same cracks.
    """
    rng = np.random.default_rng(seed)
    images: list[np.ndarray] = []
    for open_one in photographs:
        with open_one() as photograph:
            images += _draw_parts(photograph, rng, -(-tries // len(photographs)))
        if len(images) >= tries:
            break
    masks, blurs = _masks(model, images, threshold)
    blur = float(np.median(blurs)) if blurs else BLUR
    parts = [(image, _dilate(mask, model.scale)) for image, mask in zip(images, masks) if not mask.all()]
    parts = [part for part in parts if _draw_apart(*part, WIDTHS[-1], blur, rng, model.scale)]
    if not parts:
        return None
    hits = []
    for width in WIDTHS:
        drawn = [_draw_apart(*parts[n % len(parts)], width, blur, rng, model.scale) for n in range(tries)]
        pictures, lines = zip(*filter(None, drawn))
        masks = _masks(model, pictures, threshold)[0]
        near = (_dilate(mask, model.scale) for mask in masks)
        hits.append(sum(_share_near(mask, line, model.scale) >= 0.5 for mask, line in zip(near, lines)))
    p50, p90, upper = fit(WIDTHS, hits, tries, rng)
    return Detectable(WIDTHS, tuple(hits), tries, p50, p90, upper, len(parts), CONTRAST, round(blur, 3))


@dataclass(frozen=True)
class CentreLine:
    """Centre line of a crack through the middle of a part: in any direction, swinging by some pixels.

    Attributes:
        side: of the part, pixels. angle: of the line, radians. middle: a point (x, y) of its axis.
        amplitude, period: of the swing, pixels; phase: radians.
    """

    side: int
    angle: float
    amplitude: float
    period: float
    phase: float
    middle: np.ndarray

    @classmethod
    def drawn(cls, side: int, rng: np.random.Generator) -> "CentreLine":
        """One at random."""
        angle = rng.uniform(0, math.pi)
        amplitude, period, phase = rng.uniform(0, 3), rng.uniform(20, 60), rng.uniform(0, 2 * math.pi)
        return cls(side, angle, amplitude, period, phase, side / 2 + rng.uniform(-side / 8, side / 8, 2))

    def points(self) -> np.ndarray:
        """Points N 2 (x, y) of the line within the part."""
        along = np.linspace(-self.side, self.side, 4 * self.side)
        across = self.amplitude * np.sin(2 * math.pi * along / self.period + self.phase)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        line = np.stack([along * cos - across * sin, along * sin + across * cos], 1) + self.middle
        return line[((line > 4) & (line < self.side - 4)).all(1)]

    def covered(self, width: float) -> np.ndarray:
        """Share S S float32 of each pixel that a crack of so many pixels covers."""
        subpixels = (np.arange(self.side * _FINE) + 0.5) / _FINE
        x, y = subpixels[None, :] - self.middle[0], subpixels[:, None] - self.middle[1]
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        along, across = x * cos + y * sin, y * cos - x * sin
        turn = 2 * math.pi * along / self.period + self.phase
        slope = 2 * math.pi * self.amplitude / self.period * np.cos(turn)
        inside = np.abs(across - self.amplitude * np.sin(turn)) <= width / 2 * np.hypot(1, slope)
        return reduce(inside.astype(np.float32), "(h a) (w b) -> h w", "mean", a=_FINE, b=_FINE)


def draw(
    image: np.ndarray, centre_line: CentreLine, width: float, blur: float, contrast: float = CONTRAST
) -> np.ndarray:
    """A part (S S 3 uint8) with a crack of so many pixels: it takes `contrast` of the light, blurred as all else."""
    covered = centre_line.covered(width)
    covered = cv2.GaussianBlur(covered, (0, 0), blur) if blur > 0.05 else covered
    return np.round(image * (1 - contrast * covered[..., None])).astype(np.uint8)


def fit(
    widths: Sequence[float], hits: Sequence[int], tries: int, rng: np.random.Generator
) -> tuple[float | None, float | None, float | None]:
    """Widths of a probability of 50 and 90 %, and the latter's 95 % upper bound; None beyond the widths tried."""
    curve = cache(lambda *hits: _curve(widths, hits, tries))  # many draws are alike
    p50, p90 = (_width_at(curve(*hits), p, widths) for p in (0.5, 0.9))
    shares = np.asarray(hits) / tries
    draws = (curve(*rng.binomial(tries, shares).tolist()) for _ in range(_DRAWS))
    upper = np.percentile([_width_at(draw, 0.9, widths) or math.inf for draw in draws], 95, method="higher")
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


def _draw_parts(photograph: Photograph, rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Parts S S 3 uint8 of a photograph that hold data all over."""
    height, width = photograph.shape
    if min(height, width) < SIDE:
        return []
    parts: list[np.ndarray] = []
    for _ in range(4 * count):
        top, left = int(rng.integers(height - SIDE + 1)), int(rng.integers(width - SIDE + 1))
        image, valid = photograph.window(top, left, SIDE, SIDE)
        if valid is None or valid.all():
            parts.append(np.ascontiguousarray(image))
        if len(parts) == count:
            break
    return parts


def _draw_apart(
    image: np.ndarray, near: np.ndarray, width: float, blur: float, rng: np.random.Generator, scale: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """A part with a crack drawn apart from the mask (`near`), and its line; None where that has no room."""
    for _ in range(_TRIES):
        centre_line = CentreLine.drawn(image.shape[0], rng)
        line = centre_line.points()
        if len(line) and _share_near(near, line, scale) <= _MAX_COVERED:
            return draw(image, centre_line, width, blur), line
    return None


@torch.no_grad()
def _masks(model: JointModel, images: Sequence[np.ndarray], threshold: float) -> tuple[list[np.ndarray], list[float]]:
    """Masks (S*s S*s bool) of parts, and the standard deviations of the estimated blur, pixels of the photograph."""
    device, masks, blurs = model.mean.device, [], []
    for start in range(0, len(images), _BATCH):
        pixels = torch.from_numpy(np.stack(images[start : start + _BATCH])).to(device)
        outputs = model(rearrange(pixels, "b h w c -> b c h w").float() / 255)
        masks += list((outputs.logits[:, 0].float().sigmoid() > threshold).cpu().numpy())
        if outputs.kernel is not None:
            blurs += (blur_sigma(outputs.kernel.float()) / model.scale).tolist()
    return masks, blurs


def _dilate(mask: np.ndarray, scale: int) -> np.ndarray:
    """Pixels (S*s S*s uint8) of a mask and those around it that still find a line."""
    reach = round(_NEAR * scale)
    return cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2))


def _share_near(near: np.ndarray, line: np.ndarray, scale: int) -> float:
    """Share of a line that is near the mask."""
    x, y = np.clip((line * scale).astype(int), 0, near.shape[0] - 1).T
    return float(near[y, x].mean())
