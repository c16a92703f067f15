"""Temporary file for an image between two rounds of networks over it."""

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
        self._write_behind = WriteBehind(2)
        self.shape = (0, 0)

    def __enter__(self) -> "Scratch":
        self._write_behind.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._write_behind.__exit__(*error)
        finally:
            self._file.close()

    def append(self, rows: Tensor) -> None:
        """The next rows, 1 3 n W; OSError if there is no room."""
        self.shape = (self.shape[0] + rows.shape[-2], rows.shape[-1])
        self._write_behind(self._write, rows)

    def _write(self, rows: Tensor) -> None:
        pixels = rearrange(rows[0].float(), "c h w -> h w c").contiguous()
        remaining = memoryview(pixels.cpu().numpy()).cast("B")
        while remaining:
            remaining = remaining[os.write(self._file.fileno(), remaining) :]

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Read a window, 1 3 height width float32."""
        return rearrange(torch.from_numpy(self.pixels(top, left, height, width)), "h w c -> 1 c h w")

    def pixels(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window, height width 3 float32."""
        self._write_behind.wait()
        values, columns = np.empty((height, width, 3), np.float32), self.shape[1]
        for row in range(height):
            unread = memoryview(values[row]).cast("B")
            offset = ((top + row) * columns + left) * 3 * _ITEM
            while unread:
                count = os.preadv(self._file.fileno(), [unread], offset)
                if not count:
                    raise OSError("the temporary file of the SR image ends too early")
                unread, offset = unread[count:], offset + count
        return values
