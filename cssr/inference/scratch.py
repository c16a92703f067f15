"""An image on the disk, between two rounds of networks over it."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cssr.utils.threads import WriteBehind

_ITEM = 4  # bytes of a float32


class Scratch:
    """Rows of an image, appended from the top down and read by windows: float32, 12 bytes a pixel on the disk.

    The file is in `directory` without a name, so that nothing is left of it, whatever ends the process. It is written
    by a thread of its own, and not mapped into memory. Use as a context.
    """

    def __init__(self, directory: Path):
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115, closed by __exit__
        self._later = WriteBehind(2)
        self.shape = (0, 0)

    def __enter__(self) -> "Scratch":
        self._later.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._later.__exit__(*error)
        finally:
            self._file.close()

    def append(self, rows: Tensor) -> None:
        """The next rows, 1 3 n W; OSError if there is no room."""
        self.shape = (self.shape[0] + rows.shape[-2], rows.shape[-1])
        self._later(self._write, rows)

    def _write(self, rows: Tensor) -> None:
        pixels = rearrange(rows[0].float(), "c h w -> h w c").contiguous()
        left = memoryview(pixels.cpu().numpy()).cast("B")
        while left:
            left = left[os.write(self._file.fileno(), left) :]

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """1 3 height width float32."""
        return rearrange(torch.from_numpy(self.pixels(top, left, height, width)), "h w c -> 1 c h w")

    def pixels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The same as height width 3."""
        self._later.wait()
        values, columns = np.empty((height, width, 3), np.float32), self.shape[1]
        for row in range(height):
            room = memoryview(values[row]).cast("B")
            offset = ((top + row) * columns + left) * 3 * _ITEM
            while room:
                count = os.preadv(self._file.fileno(), [room], offset)
                if not count:
                    raise OSError("the temporary file of the SR image ends too early")
                room, offset = room[count:], offset + count
        return values
