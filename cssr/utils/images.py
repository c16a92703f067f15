"""Pictures larger than Pillow takes for an attack."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

_PILLOW = threading.Lock()  # on its limit, which is one for the whole process


@contextmanager
def any_size() -> Iterator[None]:
    """`Image.open` without Pillow's own limit, which is below what cameras and mosaics have; the caller has another."""
    with _PILLOW:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
