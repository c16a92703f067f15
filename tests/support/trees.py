"""Small data sets on disk: pictures whose pixels say which they are, and masks that belong to them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cssr.dataset_preparation.sources import Item, Source

HEIGHT, WIDTH = 6, 8


def photo(path: Path, number: int, size: tuple[int, int] = (HEIGHT, WIDTH), **options) -> Path:
    """A picture all of whose pixels are `number`, height x width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), number, np.uint8)).save(path, **options)
    return path


def crack(number: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """The crack that belongs to picture `number`: bool H W, other for other numbers below 47."""
    mask = np.zeros(size, bool)
    mask.ravel()[number % mask.size] = True
    return mask


def truth(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    """A mask file that holds `values`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path)
    return path


def pair(image: Path, mask: Path, number: int, crack_value: int = 255) -> None:
    """A picture and its mask, grey, 0 and `crack_value`."""
    photo(image, number)
    truth(mask, (crack(number) * crack_value).astype(np.uint8))


def number_of(item: Item) -> int:
    """Which picture an item's image is (JPEG changes a grey by little)."""
    return round(float(np.asarray(Image.open(io.BytesIO(item.image())).convert("L")).mean()))


def masks_of(source: Source) -> dict[str, np.ndarray]:
    """key -> mask after the rule of the set; checks that each belongs to its picture in kind and size."""
    rule = source.decide(source.items)
    masks = {item.key: rule.apply(item.mask()) for item in source.items}
    assert all(mask.dtype == bool and mask.shape == (HEIGHT, WIDTH) for mask in masks.values())
    return masks


def belong(source: Source) -> bool:
    """Whether each item's mask is its picture's."""
    masks = masks_of(source)
    return all((masks[item.key] == crack(number_of(item))).all() for item in source.items)
