"""Real-ESRGAN's second-order degradation: blur, resize, noise and JPEG, twice."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cssr.config.registry import KernelSide, Share, did_you_mean
from cssr.degradations import DEGRADATIONS, canvas, draws
from cssr.degradations.blurs import BLURS, Blur, axis, check_fits, check_size, normalized
from cssr.degradations.canvas import METHODS, Canvas
from cssr.degradations.draws import Rngs, check_range, check_share, check_weights, generators, uniform
from cssr.degradations.ops import reduced_size

_KINDS = ("gaussian", "gaussian", "generalized_gaussian", "generalized_gaussian", "plateau", "plateau")
_WEIGHTS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # of each kind, isotropic and not in turn
_SIDES = (7, 9, 11, 13, 15, 17, 19, 21)


@dataclass(frozen=True)
class Pass:
    """Settings of one pass; draws from ranges are uniform. The defaults are those of the first pass."""

    blur: float = 1.0  # probability of a blur
    sigma: Sequence[float] = (0.2, 3.0)  # standard deviations of the blur, pixels of the picture in this pass
    sinc: float = 0.1  # probability that the blur is a sinc filter
    resize: Sequence[float] = (0.15, 1.5)  # factor, 1 within it: of HR's size (first pass), of LQ's (second)
    resize_weights: Sequence[float] = (0.2, 0.7, 0.1)  # of enlarging, reducing, keeping
    gaussian: float = 0.5  # probability of Gaussian noise; otherwise Poisson's
    noise: Sequence[float] = (1 / 255, 30 / 255)  # standard deviation of Gaussian noise, 0..1 units
    poisson: Sequence[float] = (0.05, 3.0)  # factor on Poisson noise
    gray: float = 0.4  # probability that the three channels share the noise
    jpeg: Sequence[float] = (30, 95)  # quality


_FIRST = Pass()
_SECOND = Pass(
    blur=0.8,
    sigma=(0.2, 1.5),
    resize=(0.3, 1.2),
    resize_weights=(0.3, 0.4, 0.3),
    noise=(1 / 255, 25 / 255),
    poisson=(0.05, 2.5),
)


@DEGRADATIONS.register
def second_order(
    scale: int,
    first: Mapping[str, Any] | None = None,
    second: Mapping[str, Any] | None = None,
    final_sinc: Share = 0.8,
    size: KernelSide = 21,
) -> Callable:
    """Second-order degradation of Real-ESRGAN (Wang et al. 2021), which has no single kernel.

    Each of two passes: blur (Gaussian, generalised, plateau or sinc kernel), resize by a random factor and method,
    noise, JPEG. A resize to 1/scale and a sinc filter follow, before or after the second JPEG. Differences from the
    published code: HR is not sharpened first, the cutoff of sinc filters is at least 1/3 of the Nyquist frequency for
    kernels of every side (published: 1/5 from side 13 on), Poisson noise is normal with 256 levels, and `lq` is not
    rounded to 8 bits.

    Args:
        first, second: settings of each pass that differ from the published ones, see `Pass`.
        final_sinc: probability of the last sinc filter, 0..1.
        size: side of the kernels, odd, pixels; kernels of the published random sides, 7 to 21, are windows of it.
    Raises: ValueError for an unknown setting or one out of range.
    """
    check_size("second_order", size)
    check_share("second_order", "final_sinc", final_sinc)
    stages = (_settings("first", _FIRST, first, size), _settings("second", _SECOND, second, size))
    blurs = [_blur(stage, size) for stage in stages]
    final = BLURS.build("sinc", size=size)

    def degrade(hr: Tensor, seeds: Tensor) -> tuple[Tensor, None]:
        target = reduced_size(hr, scale)
        with torch.autocast(hr.device.type, enabled=False):
            rngs = generators(seeds, draws.FIRST)
            plan = _plan(stages[0], blurs[0], rngs, tuple(hr.shape[-2:]))
            picture = canvas.compress(_apply(plan, canvas.whole(hr), rngs), plan.quality)
            rngs = generators(seeds, draws.SECOND)
            plan = _plan(stages[1], blurs[1], rngs, target)
            picture = _apply(plan, picture, rngs)
            return _finish(picture, plan.quality, final, final_sinc, generators(seeds, draws.FINAL), target), None

    degrade.resampler = (
        f"second order: blur, resize without antialias (area, bilinear or bicubic), noise, JPEG, twice, to x1/{scale}"
    )
    return degrade


def _settings(name: str, published: Pass, changes: Mapping[str, Any] | None, size: int) -> Pass:
    known = [field.name for field in dataclasses.fields(Pass)]
    if not isinstance(changes or {}, Mapping):
        raise ValueError(f"degradation 'second_order': {name} needs settings ({', '.join(known)}), got {changes!r}")
    for key in changes or {}:
        if key not in known:
            raise ValueError(f"degradation 'second_order': {name} does not take {key!r}{did_you_mean(key, known)}")
    settings = dataclasses.replace(published, **(changes or {}))
    _check(settings, f"{name}.", size)
    return settings


def _check(settings: Pass, prefix: str, size: int) -> None:
    for key in ("blur", "sinc", "gaussian", "gray"):
        check_share("second_order", prefix + key, getattr(settings, key))
    limits = {"noise": {"low": 0}, "poisson": {"low": 0}, "jpeg": {"low": 1, "high": 100}}
    for key, limit in (limits | {"sigma": {"above": 0}, "resize": {"above": 0}}).items():
        check_range("second_order", prefix + key, getattr(settings, key), **limit)
    check_fits("second_order", f"{prefix}sigma={settings.sigma[1]:g}", 4 * settings.sigma[1] + 1, size)
    check_weights("second_order", prefix + "resize_weights", settings.resize_weights, 3)
    if not settings.resize[0] <= 1 <= settings.resize[1]:
        raise ValueError(f"degradation 'second_order': {prefix}resize needs low <= 1 <= high, got {settings.resize}")


def _blur(settings: Pass, size: int) -> Blur:
    """Published mixture of kernels, each cut to a random side, and no blur with probability 1 - `settings.blur`."""
    kinds = [
        {"name": kind, "sigma": settings.sigma, "isotropic": number % 2 == 0} for number, kind in enumerate(_KINDS)
    ]
    weights = [weight * (1 - settings.sinc) for weight in _WEIGHTS] + [settings.sinc]
    mixture = BLURS.build({"name": "random_blur", "blurs": [*kinds, "sinc"], "weights": weights}, size=size)
    return mixture._replace(kernels=lambda rngs: _crop_to_random_side(mixture.kernels(rngs), rngs, settings.blur))


def _crop_to_random_side(kernels: Tensor, rngs: Rngs, probability: float) -> Tensor:
    """Crop kernels to a random side and normalise; with 1 - `probability` to a single pixel, which is no blur."""
    sides = torch.tensor([_SIDES[int(rng.integers(len(_SIDES)))] for rng in rngs])
    half = torch.where(draws.chances(rngs, probability), sides // 2, 0)[:, None]
    inside = axis(kernels.shape[-1]).abs() <= half  # B size
    return normalized(kernels * inside[:, :, None] * inside[:, None, :])


class _Plan(NamedTuple):
    """Random parameters of one pass, B each, on the CPU."""

    kernel: Tensor
    heights: Tensor
    widths: Tensor
    methods: list[str]
    limit: tuple[int, int]  # size of the canvas: the largest that the settings allow
    level: Tensor
    poisson: Tensor
    gray: Tensor
    quality: Tensor


def _plan(settings: Pass, blurring: Blur, rngs: Rngs, base: tuple[int, int]) -> _Plan:
    """Draw the parameters of one pass; `base`: height and width that the factor of the resize refers to."""
    kernel = blurring.kernels(rngs)
    low, high = settings.resize
    direction = torch.tensor(draws.choices(rngs, settings.resize_weights))
    factors = uniform(rngs, (1, high), (low, 1), (1, 1)).gather(1, direction[:, None])[:, 0]
    heights, widths = ((factors * side).long().clamp(min=1) for side in base)
    levels = uniform(rngs, settings.noise, settings.poisson)
    poisson = ~draws.chances(rngs, settings.gaussian)
    return _Plan(
        kernel=kernel,
        heights=heights,
        widths=widths,
        methods=_methods(rngs),
        limit=(int(high * base[0]), int(high * base[1])),
        level=torch.where(poisson, levels[:, 1], levels[:, 0]),
        poisson=poisson,
        gray=draws.chances(rngs, settings.gray),
        quality=uniform(rngs, settings.jpeg)[:, 0],
    )


def _methods(rngs: Rngs) -> list[str]:
    return [METHODS[int(rng.integers(len(METHODS)))] for rng in rngs]


def _apply(plan: _Plan, picture: Canvas, rngs: Rngs) -> Canvas:
    """Apply blur, resize and noise of one pass."""
    picture = canvas.blur(picture, plan.kernel)
    picture = canvas.resize(picture, plan.heights, plan.widths, plan.methods, plan.limit)
    return canvas.add_noise(picture, rngs, plan.level, plan.poisson, plan.gray)


def _finish(
    picture: Canvas, quality: Tensor, final: Blur, probability: float, rngs: Rngs, target: tuple[int, int]
) -> Tensor:
    """JPEG, resize to `target` and sinc filter, or resize, sinc filter and JPEG, equally often: B 3 h w, 0..1."""
    jpeg_first, methods = draws.chances(rngs, 0.5), _methods(rngs)
    kernel = _crop_to_random_side(final.kernels(rngs), rngs, probability)
    height, width = (torch.full((len(rngs),), side) for side in target)
    picture = canvas.select(jpeg_first, canvas.compress(picture, quality), picture)
    picture = canvas.blur(canvas.resize(picture, height, width, methods, target), kernel)
    return canvas.select(jpeg_first, picture, canvas.compress(picture, quality)).pixels.clamp(0, 1)
