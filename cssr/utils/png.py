"""PNGs written from the top down, in a fifth of the time of zlib's fastest level: by ISA-L, one filter for all rows."""

import io
import struct
from typing import BinaryIO

import numpy as np
from isal import isal_zlib

_UP = 2  # the filter that takes the row above off each row
_CHUNK = 64  # rows that are compressed at once
_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # type of colours by channels: grey, with alpha, RGB, with alpha


class PngRows:
    """A PNG of H W (C) uint8, C of 1 to 4, or bool as 1 bit; rows are compressed as they come, and none are kept.

    See https://www.w3.org/TR/png-3/.
    """

    def __init__(self, file: BinaryIO, height: int):
        self._file, self._height = file, height
        self._compressor = isal_zlib.compressobj(level=1)
        self._above: np.ndarray | None = None

    def write(self, rows: np.ndarray, valid: np.ndarray | None = None) -> None:
        """The next rows, n W (C); with `valid`, n W bool, the pixels without data are transparent (in bool: 0)."""
        if rows.dtype != bool and valid is not None:
            rows = np.dstack([rows, valid.astype(np.uint8) * 255])
        packed = np.packbits(rows, axis=1) if rows.dtype == bool else rows.reshape(len(rows), -1)
        if self._above is None:
            self._begin(rows)
            self._above = np.zeros_like(packed[0])
        filtered = np.empty((len(packed), 1 + packed.shape[1]), np.uint8)
        filtered[:, 0] = _UP
        np.subtract(packed[0], self._above, out=filtered[0, 1:])
        np.subtract(packed[1:], packed[:-1], out=filtered[1:, 1:])
        self._above = packed[-1].copy()
        if data := self._compressor.compress(filtered):  # which keeps what is too little
            self._part(b"IDAT", data)

    def _begin(self, rows: np.ndarray) -> None:
        depth = 1 if rows.dtype == bool else 8
        colours = _COLOURS[1 if rows.ndim == 2 else rows.shape[2]]
        self._file.write(b"\x89PNG\r\n\x1a\n")
        self._part(b"IHDR", struct.pack(">IIBBBBB", rows.shape[1], self._height, depth, colours, 0, 0, 0))

    def _part(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind)
        self._file.write(data)
        self._file.write(struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(kind))))

    def finish(self) -> None:
        """All rows are written: end the file."""
        self._part(b"IDAT", self._compressor.flush())
        self._part(b"IEND", b"")
        self._file.flush()

    def close(self) -> None:
        """Let go of the file, whole or not."""
        self._file.close()


def encode(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG of H W (C) uint8, C of 1 to 4, or bool as 1 bit."""
    buffer = io.BytesIO()
    rows = PngRows(buffer, len(pixels))
    for top in range(0, len(pixels), _CHUNK):
        rows.write(pixels[top : top + _CHUNK])
    rows.finish()
    return buffer.getvalue()
