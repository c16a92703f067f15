"""What several tests need: tiny shards whose pictures say where each pixel came from, and a small model."""

import io
import tarfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image
from shard_helpers import write_part

from cssr.dataset_preparation.make import main as make_shards
from cssr.dataset_preparation.sources import Item, MaskRule

SMALL_MODEL = {
    "scale": 2,
    "sr": {"name": "dbpn", "stages": 2, "width": 2, "features": 4},
    "seg": {"name": "unet", "encoder": "resnet10t", "width": 4, "encoder_args": {"channels": [8, 8, 16, 16]}},
}
_RULE = MaskRule("as drawn", lambda values: values > 0)


def coordinates(number: int, height: int, width: int) -> np.ndarray:
    """H W 3 uint8: red says the row, green the column, blue the picture."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, number)], 2).astype(np.uint8)


def mask_of(image: np.ndarray) -> np.ndarray:
    """The mask that belongs to a picture of coordinates (H W 3), however it was cut and mirrored: H W uint8, 0 or 1."""
    row, column, number = np.moveaxis(image.astype(int), -1, 0)
    return ((row * 7 + column * 3 + number) % 11 < 2).astype(np.uint8)


def write_set(
    root: Path, count: int = 10, shard_size: int = 4, sizes: Sequence[tuple[int, int]] = ((20, 24),), draw=coordinates
) -> Path:
    """A shard directory of `count` pictures `NAME-000`, ...; `sizes` (height, width) are taken in turn."""
    images = [draw(n, *sizes[n % len(sizes)]) for n in range(count)]
    items = [
        Item(f"{root.name}-{n:03d}", f"{n}.png", lambda i=image: png(i), lambda i=image: mask_of(i))
        for n, image in enumerate(images)
    ]
    write_part(root, items, _RULE, shard_size, {"source": "test"})
    return root


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def spoil(root: Path, key: str, extension: str = "png") -> None:
    """Overwrite the beginning of one file in the shards of `root`; sizes stay."""
    for path in root.glob("*.tar"):
        with tarfile.open(path) as tar:
            offsets = [m.offset_data for m in tar if m.name == f"{key}.{extension}"]
        for offset in offsets:
            with path.open("r+b") as file:
                file.seek(offset)
                file.write(bytes(40))


def shipped(registry) -> set[str]:
    """The names in a registry that the package itself registers, whatever other tests have registered beside them."""
    return {name for name in registry.names() if registry.get(name).__module__.startswith("cssr.")}


def draw_shards(out: Path, count: int, size: int, *more: str) -> Path:
    """Shards of drawn photographs, as the command writes them."""
    words = ["synthetic", "--out", out, "--count", count, "--size", size, "--workers", 1, *more]
    with redirect_stdout(io.StringIO()):
        assert make_shards([str(word) for word in words]) == 0
    return out
