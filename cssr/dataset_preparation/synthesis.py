"""Draw photographs of concrete and asphalt, with or without cracks, and the exact mask of each.

A picture is built the way a scene is: a surface, what is on it (stains, joints, scratches), the cracks, the light,
the camera. Luminance is a float32 H W plane where 1 is white; geometry is in pixels of the finished picture, x first.
Joints, scratches and shadow edges are dark and long as cracks are, but never in the mask: a network has to learn that.
"""

import cv2
import numpy as np
from einops import repeat

SUPERSAMPLE = 3  # cracks are drawn this much larger and averaged down: thin lines need the sub-pixel coverage
MAX_WIDTH = 8.5  # pixels; a junction is a little wider than the lines that meet in it
SUBPIXEL_BITS = 4  # fixed-point fraction of the coordinates that OpenCV draws with
# red, green, blue of warm to cool surfaces
CASTS = np.array(
    [[1.04, 1, 0.93], [1.10, 0.99, 0.84], [0.95, 1, 1.07], [0.98, 1.02, 0.94], [1, 1, 1], [1.08, 0.97, 0.92]]
)


def render(seed: int, index: int, size: int = 256, empty_share: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Draw sample `index` of the set `seed`; a pure function of its arguments.

    Returns: the photograph (uint8, size x size x 3, RGB) and its mask (bool, size x size, True where crack covers more
    than half of the pixel). A share `empty_share` of all samples has no crack.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
    empty = rng.random() < empty_share
    asphalt = rng.random() < 0.45
    light = rng.uniform(0, 2 * np.pi)  # the direction of the sun, for rims of cracks and pores
    plane = _asphalt(rng, size) if asphalt else _concrete(rng, size, light)
    plane = _weather(rng, plane)
    plane = _lookalikes(rng, plane, light, likely=0.75 if empty else 0.35)
    mask = np.zeros((size, size), bool)
    if not empty:
        plane, mask = _add_cracks(rng, plane, light)
    photo = _colour(rng, plane, asphalt) * _lighting(rng, size)
    return _camera(rng, photo), mask


# --- noise


def fractal(rng: np.random.Generator, size: int, coarse: float, fine: float = 2.0, gain: float = 0.6) -> np.ndarray:
    """Smooth random plane of several octaves, features of `coarse` down to `fine` pixels; mean about 0, deviation 1."""
    plane, amplitude, cell = np.zeros((size, size), np.float32), 1.0, float(coarse)
    while cell >= fine:
        count = int(np.ceil(size / cell)) + 3
        grid = rng.standard_normal((count, count), dtype=np.float32)
        shift = rng.uniform(0.5, 1.5, 2)  # else the lattices of all octaves line up at the corner
        across = np.array([[1 / cell, 0, shift[0]], [0, 1 / cell, shift[1]]])
        plane += amplitude * cv2.warpAffine(
            grid, across, (size, size), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101
        )
        amplitude, cell = amplitude * gain, cell / 2
    return plane / (plane.std() + 1e-6)


def _along(rng: np.random.Generator, count: int, knots: int) -> np.ndarray:
    """Smooth random values along a path, `count` numbers, deviation about 1."""
    values = rng.standard_normal(max(knots, 2))
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(values)), values)


def _soft_step(plane: np.ndarray, threshold: float, width: float) -> np.ndarray:
    """0 below, 1 above `threshold`, with a ramp of `width` between."""
    return np.clip((plane - threshold) / width + 0.5, 0, 1)


# --- surfaces


def _grains(
    rng: np.random.Generator, size: int, spacing: float, radius: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Scattered ragged grains: how much of each pixel a grain covers, and a random number -1..1 per grain. Both H W."""
    count = max(int((size / spacing) ** 2), 1)
    seeds = np.full((size, size), 255, np.uint8)
    seeds[rng.integers(0, size, count), rng.integers(0, size, count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    radii = rng.uniform(*radius, labels.max() + 1).astype(np.float32)
    tone = rng.uniform(-1, 1, labels.max() + 1).astype(np.float32)
    rough = fractal(rng, size, 5, 2) * 0.35 * np.sqrt(radius[1])
    return np.clip(radii[labels] - distance + rough, 0, 1), tone[labels]


def _asphalt(rng: np.random.Generator, size: int) -> np.ndarray:
    """Dark binder with stones of two sizes, some of them bright. Luminance H W."""
    plane = rng.uniform(0.24, 0.42) * (1 + 0.06 * fractal(rng, size, 90, 20))
    plane *= 1 + rng.uniform(0.04, 0.12) * fractal(rng, size, 4, 2, 0.9)
    contrast = rng.uniform(0.15, 0.4)
    for spacing, radius in ((rng.uniform(3.5, 5), (0.3, 2.2)), (rng.uniform(7, 16), (0.0, rng.uniform(3, 5.5)))):
        cover, tone = _grains(rng, size, spacing, radius)
        plane *= 1 + contrast * cover * (tone + 0.9 * tone**3 + 0.1)  # few stones stand out, most are near the binder
    return plane * (1 - contrast * 0.6 * _soft_step(fractal(rng, size, 6, 2), 1.6, 0.8))  # gaps between the stones


def _concrete(rng: np.random.Generator, size: int, light: float) -> np.ndarray:
    """Mottled cement with a fine grain, pores and now and then the boards of its formwork. Luminance H W."""
    plane = rng.uniform(0.38, 0.72) * (1 + rng.uniform(0.03, 0.10) * fractal(rng, size, 100, 3, rng.uniform(0.5, 0.75)))
    plane *= 1 + rng.uniform(0.03, 0.08) * fractal(rng, size, 8, 1.3, 0.85)
    if rng.random() < 0.8:
        pores, tone = _grains(rng, size, rng.uniform(9, 35), (-1.5, rng.uniform(0.8, 2.4)))
        dark = pores * (0.55 + 0.45 * tone)
        plane *= 1 - rng.uniform(0.25, 0.55) * np.clip(dark, 0, 1) + 0.10 * _shift(dark, light)
    if rng.random() < 0.5:  # sand and pebbles that the weather has laid bare
        cover, tone = _grains(rng, size, rng.uniform(4, 10), (-0.5, rng.uniform(1.2, 3)))
        plane *= 1 + rng.uniform(0.1, 0.3) * cover * (tone + 0.1)
    if rng.random() < 0.2:
        plane *= _boards(rng, size)
    return plane


def _boards(rng: np.random.Generator, size: int) -> np.ndarray:
    """Formwork: bands of slightly different tone with a fine dark or light seam, as a factor H W."""
    x, y = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    angle, width = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.04), rng.uniform(50, 130)
    across = (x * np.cos(angle) + y * np.sin(angle)) / width + rng.uniform(0, 1) + 5
    tones = rng.normal(0, 0.05, int(across.max()) + 2).astype(np.float32)
    seam = np.exp(-(((across - np.round(across)) * width / rng.uniform(0.8, 1.8)) ** 2))
    grain = cv2.GaussianBlur(fractal(rng, size, 4, 2), (0, 0), *((1, 9) if abs(angle) < 0.5 else (9, 1)))
    return 1 + tones[np.floor(across).astype(int)] + rng.choice([-0.25, 0.12]) * seam + 0.05 * grain


def _weather(rng: np.random.Generator, plane: np.ndarray) -> np.ndarray:
    """Stains: dark damp patches, light efflorescence, and runs of dirty water down the picture."""
    size = len(plane)
    if rng.random() < 0.55:
        blotches = fractal(rng, size, rng.uniform(40, 130), 2, rng.uniform(0.5, 0.72))
        patch = _soft_step(blotches, rng.uniform(0.2, 1.4), rng.uniform(0.2, 1.5))
        plane = plane * (1 + rng.choice([-1, -1, 1]) * rng.uniform(0.08, 0.35) * patch)
    if rng.random() < 0.2:
        streaks = cv2.GaussianBlur(fractal(rng, size, 14, 3), (0, 0), 1.2, sigmaY=rng.uniform(15, 45))
        fade = np.clip(np.linspace(1.2, rng.uniform(-1, 0.8), size), 0, 1)[:, None].astype(np.float32)
        plane = plane * (1 - rng.uniform(0.08, 0.25) * fade * np.clip(streaks / (streaks.std() + 1e-6), -0.3, 2))
    return plane


# --- look-alikes


def _lookalikes(rng: np.random.Generator, plane: np.ndarray, light: float, likely: float) -> np.ndarray:
    """Straight things that are no cracks: joints with a bevel, dark or light scratches, an edge between two slabs."""
    size = len(plane)
    if rng.random() < likely * 0.6:
        joint = _straight(rng, size, rng.uniform(1.5, 6), through=True)
        joint = cv2.GaussianBlur(joint, (0, 0), rng.uniform(0.5, 1.2)) * (1 + 0.12 * fractal(rng, size, 8, 2))
        plane = plane * (1 - rng.uniform(0.3, 0.7) * np.clip(joint, 0, 1) + rng.uniform(0, 0.25) * _shift(joint, light))
    for _ in range(rng.integers(1, 5) if rng.random() < likely else 0):
        scratch = _straight(rng, size, rng.uniform(0.5, 1.4), through=False)
        worn = _soft_step(fractal(rng, size, 12, 2), rng.uniform(-1, 0.2), 1.0)
        plane = plane * (1 + rng.choice([-0.4, 0.3]) * rng.uniform(0.4, 1) * scratch * worn)
    if rng.random() < likely * 0.3:
        side = _half_plane(rng, size, waviness=0.3)
        plane = plane * (1 + rng.choice([-1, 1]) * rng.uniform(0.08, 0.3) * side)
    return plane


def _straight(rng: np.random.Generator, size: int, width: float, through: bool) -> np.ndarray:
    """Coverage H W of one straight bar, from border to border or of a random length."""
    angle, centre = rng.uniform(0, np.pi), rng.uniform(0.1, 0.9, 2) * size
    half = np.array([np.cos(angle), np.sin(angle)]) * size * (1.5 if through else rng.uniform(0.04, 0.3))
    canvas = np.zeros((size * SUPERSAMPLE,) * 2, np.uint8)
    path = np.stack([centre - half, centre + half])
    _stroke(canvas, path, np.full((2, 2), width / 2))
    return _coverage(canvas, size)


def _half_plane(rng: np.random.Generator, size: int, waviness: float) -> np.ndarray:
    """1 on one side of a line through the picture, 0 on the other, a sharp edge. float32 H W."""
    x, y = np.meshgrid(np.linspace(-1, 1, size, dtype=np.float32), np.linspace(-1, 1, size, dtype=np.float32))
    angle = rng.uniform(0, 2 * np.pi)
    level = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(-0.6, 0.6)
    return _soft_step(level + waviness * 0.1 * fractal(rng, size, size / 2, 8), 0, 3 / size)


def _shift(plane: np.ndarray, light: float) -> np.ndarray:
    """The rim of a shape on the side away from the light, which the light strikes."""
    move = np.array([[1, 0, 1.3 * np.cos(light)], [0, 1, 1.3 * np.sin(light)]])
    moved = cv2.warpAffine(plane.astype(np.float32), move, plane.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    return np.clip(cv2.GaussianBlur(moved, (0, 0), 0.7) - plane, 0, 1)


# --- cracks


def meander(
    rng: np.random.Generator, start: np.ndarray, end: np.ndarray, sway: float, hurst: float, step: float = 2.5
) -> np.ndarray:
    """Path from `start` to `end` by midpoint displacement: N 2, points at most about `step` pixels apart.

    `sway` is the first displacement as a share of the length; `hurst` near 1 gives a smooth path, 0.7 a jagged one.
    """
    path, share = np.stack([start, end]).astype(float), sway
    while np.linalg.norm(path[1] - path[0]) > step and len(path) < 2000:
        along = np.diff(path, axis=0)
        normal = np.stack([-along[:, 1], along[:, 0]], 1)
        middle = path[:-1] + along * 0.5 + normal * np.clip(rng.normal(0, share, (len(along), 1)), -0.3, 0.3)
        path = np.insert(path, np.arange(1, len(path)), middle, axis=0)
        share *= 2 ** (1 - hurst)  # the displacement shrinks by 2^-hurst, the segment by 2^-1
    return path


def _stroke(canvas: np.ndarray, path: np.ndarray, halves: np.ndarray) -> None:
    """Fill a band along `path` (N 2, picture pixels) on the enlarged canvas; `halves` N 2: its reach left and right."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    unit = SUPERSAMPLE * 2**SUBPIXEL_BITS
    left = np.rint((path + normal * halves[:, :1] + 0.5) * unit - unit / 2).astype(np.int32)
    right = np.rint((path - normal * halves[:, 1:] + 0.5) * unit - unit / 2).astype(np.int32)
    for k in range(len(path) - 1):  # quad by quad: one polygon would leave holes where a bend folds over itself
        quad = np.stack([left[k], left[k + 1], right[k + 1], right[k]])
        cv2.fillConvexPoly(canvas, quad, 255, cv2.LINE_8, SUBPIXEL_BITS)


def _coverage(canvas: np.ndarray, size: int) -> np.ndarray:
    """The share 0..1 of each finished pixel that the enlarged canvas has painted. float32 H W."""
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _widths(rng: np.random.Generator, count: int, width: float, taper: tuple[bool, bool]) -> np.ndarray:
    """Reach left and right of each point, N 2: swelling and narrowing along the way, ragged, pointed where it ends."""
    swell = np.exp(0.28 * _along(rng, count, count // 14) + 0.16 * _along(rng, count, count // 4))
    pinch = np.clip(1.5 + _along(rng, count, count // 10) / 1.4, 0.25, 1)  # here and there a crack nearly closes
    place = np.linspace(0, 1, count)
    ends = np.where(taper[0], np.clip(place * 3, 0, 1), 1) * np.where(taper[1], np.clip((1 - place) * 2.2, 0, 1), 1)
    full = np.clip(width * swell * pinch, 0.9, MAX_WIDTH) * np.sqrt(ends)
    ragged = 1 + 0.18 * rng.standard_normal((count, 2))
    return np.clip(full[:, None] / 2 * np.clip(ragged, 0.5, 1.5), 0.3, MAX_WIDTH / 2)


def _grow(
    rng: np.random.Generator,
    start: np.ndarray,
    end: np.ndarray,
    width: float,
    taper: tuple[bool, bool],
    style: tuple[float, float],
    depth: int = 0,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """One crack and its branches as (path, reach) pairs; each branch is thinner than its parent and ends in a point."""
    path = meander(rng, start, end, *style)
    strokes = [(path, _widths(rng, len(path), width, taper))]
    length = np.linalg.norm(end - start)
    chance = (0.75, 0.3, 0.0)[depth]
    while rng.random() < chance and length > 25:
        at = rng.integers(len(path) // 8, max(len(path) * 7 // 8, len(path) // 8 + 1))
        turn = rng.choice([-1, 1]) * rng.uniform(0.4, 1.2)
        heading = np.arctan2(*(end - start)[::-1]) + turn
        tip = path[at] + length * rng.uniform(0.12, 0.5) * np.array([np.cos(heading), np.sin(heading)])
        strokes += _grow(rng, path[at], tip, max(width * rng.uniform(0.4, 0.75), 1.0), (False, True), style, depth + 1)
        chance *= 0.6
    return strokes


def _ends(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, tuple[bool, bool]]:
    """End points of a crack: mostly border to border, sometimes it fades out inside (taper at that end)."""
    angle, reach = rng.uniform(0, np.pi), size * 0.75
    direction = np.array([np.cos(angle), np.sin(angle)])
    centre = rng.uniform(0.2, 0.8, 2) * size
    taper = (rng.random() < 0.15, rng.random() < 0.35)
    start = centre - direction * (rng.uniform(0.15, 0.4) * size if taper[0] else reach)
    end = centre + direction * (rng.uniform(0.15, 0.4) * size if taper[1] else reach)
    return start, end, taper


def _add_cracks(rng: np.random.Generator, plane: np.ndarray, light: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut one to three cracks into the surface. Returns the plane and the mask, bool H W."""
    size, mask = len(plane), np.zeros(plane.shape, bool)
    main = float(np.clip(np.exp(rng.normal(0.85, 0.5)), 1.2, 7))
    for number in range(1 + rng.choice(3, p=[0.7, 0.22, 0.08])):
        width = main if number == 0 else float(np.clip(main * rng.uniform(0.3, 0.8), 1.1, 3))
        cover, core = np.zeros((2, size * SUPERSAMPLE, size * SUPERSAMPLE), np.uint8)
        start, end, taper = _ends(rng, size)
        style = (rng.uniform(0.04, 0.13), rng.uniform(0.82, 0.98))
        for path, halves in _grow(rng, start, end, width, taper, style):
            _stroke(cover, path, halves)
            _stroke(core, path, halves * 0.5)
        plane = _cut(rng, plane, _coverage(cover, size), _coverage(core, size), light, width)
        mask |= _coverage(cover, size) > 0.5
    return plane, mask


def _cut(
    rng: np.random.Generator, plane: np.ndarray, cover: np.ndarray, core: np.ndarray, light: float, width: float
) -> np.ndarray:
    """Darken the plane where a crack covers it: a deeper core, a lit rim on one side, dirt beside it."""
    size = len(plane)
    depth = rng.uniform(0.3, 0.75) + min(0.04 * width, 0.2)
    filled = np.clip(0.9 + 0.18 * fractal(rng, size, 50, 4), 0.45, 1.1)  # dust fills some stretches
    rim = _shift(cover, light) * np.clip(fractal(rng, size, 20, 4), 0, 1.5)
    halo = cv2.GaussianBlur(cover, (0, 0), rng.uniform(2, 5))
    dark = np.clip(depth * filled * (0.6 * cover + 0.4 * core), 0, 0.93)
    plane = plane * (1 + rng.uniform(0.05, 0.3) * rim - rng.choice([0, 0.1, 0.25]) * halo)
    return plane * (1 - dark) + 0.03 * dark  # the bottom is never quite black


# --- light and camera


def _colour(rng: np.random.Generator, plane: np.ndarray, asphalt: bool) -> np.ndarray:
    """Give the grey surface a cast that varies over it: H W 3, red first."""
    first, other = CASTS[rng.integers(0, len(CASTS), 2)]
    second = first + rng.uniform(0, 0.5) * (other - first)
    strength = rng.uniform(0.2, 0.7) if asphalt else rng.uniform(0.4, 1.2)
    blend = _soft_step(fractal(rng, len(plane), 70, 6), 0.5, 2.5)[..., None]
    cast = 1 + strength * (first * (1 - blend) + second * blend - 1)
    return (plane[..., None] * cast).astype(np.float32)


def _lighting(rng: np.random.Generator, size: int) -> np.ndarray:
    """Uneven light as a factor H W 3: a slope across the picture, darker corners, now and then a bluish shadow."""
    x, y = np.meshgrid(np.linspace(-1, 1, size, dtype=np.float32), np.linspace(-1, 1, size, dtype=np.float32))
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.2) * (x * np.cos(angle) + y * np.sin(angle)) - rng.uniform(0, 0.12) * (x * x + y * y)
    light = repeat(light, "h w -> h w 3")
    if rng.random() < 0.22:
        shade = cv2.GaussianBlur(_half_plane(rng, size, rng.uniform(0, 2.5)), (0, 0), rng.uniform(0.8, 6))
        light *= 1 - rng.uniform(0.3, 0.55) * shade[..., None] * np.array([1.05, 1.0, 0.9], np.float32)
    return light.astype(np.float32)


def _camera(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    """Exposure, a mild lens blur, sensor noise that grows with the light, 8 bits. Returns uint8 H W 3."""
    target = rng.uniform(0.32, 0.62)
    photo = photo * (target / (photo.mean() + 1e-6)) ** 0.7
    photo = cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.3, 0.75))
    grain = rng.standard_normal(photo.shape, dtype=np.float32)
    grain += rng.standard_normal(photo.shape[:2], dtype=np.float32)[..., None]
    noise = rng.uniform(0.003, 0.014) * np.sqrt(np.clip(photo, 0.05, 1) * 2)
    return np.clip(np.rint((photo + noise * grain) * 255), 0, 255).astype(np.uint8)
