"""Centre lines of masks: Guo and Hall's thinning (1989), all pixels of a pass at once."""

import cv2
import numpy as np

_AROUND = np.array([[128, 1, 2], [64, 0, 4], [32, 16, 8]], dtype=np.float32)  # p9 p2 p3 / p8 . p4 / p7 p6 p5 as bits


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """For either pass, by the code of its eight neighbours, whether a pixel stays: 256 uint8 each, 0 or 1."""
    p2, p3, p4, p5, p6, p7, p8, p9 = (np.arange(256)[:, None] >> np.arange(8) & 1).T
    runs = (1 - p2) * (p3 | p4) + (1 - p4) * (p5 | p6) + (1 - p6) * (p7 | p8) + (1 - p8) * (p9 | p2)
    pairs = np.minimum((p9 | p2) + (p3 | p4) + (p5 | p6) + (p7 | p8), (p2 | p3) + (p4 | p5) + (p6 | p7) + (p8 | p9))
    rim = (runs == 1) & (pairs >= 2) & (pairs <= 3)  # it joins nothing, and is no end of a line
    first, second = (p2 | p3 | (1 - p5)) & p4, (p6 | p7 | (1 - p9)) & p8
    return tuple((~(rim & (side == 0))).astype(np.uint8) for side in (first, second))


_STAYS = _tables()


def centre_line(mask: np.ndarray) -> np.ndarray:
    """Lines about a pixel wide in the middle of a mask: (H, W) in {0, 1} -> (H, W) uint8, a part of it.

    As many pieces (joined by sides or corners) and holes as the mask has; beyond the image is background. Each
    iteration takes a pixel off the rim: about 0.1 ms of a 448x448 image.
    """
    line = (np.asarray(mask) > 0).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(line)
    part = line[y : y + height, x : x + width]
    before, left = 0, int(part.sum())
    while before != left:
        for stays in _STAYS:
            part &= cv2.LUT(cv2.filter2D(part, cv2.CV_8U, _AROUND, borderType=cv2.BORDER_CONSTANT), stays)
        before, left = left, int(part.sum())
    return line


def stays_when_thinned(neighbours: np.ndarray) -> np.ndarray:
    """The same thinning of pixels in a list: which of them are in the centre line, N bool.

    neighbours: N 8 whole numbers, the pixels above, above to the right and so on clockwise; N where there is none.
    Only pixels whose neighbours have changed are looked at again, so that time grows with the pixels' number.
    """
    there, place = np.ones(len(neighbours) + 1, bool), np.empty(len(neighbours) + 1, np.int64)
    there[-1] = False
    changed = [np.flatnonzero((neighbours == len(neighbours)).any(1))] * 2  # the others are inside
    while any(map(len, changed)):
        for stays in _STAYS:
            gone = np.concatenate(changed)
            near = np.append(neighbours[gone], gone)
            near = near[there[near]]
            place[near] = np.arange(len(near))
            looked = near[place[near] == np.arange(len(near))]  # each once
            codes = np.packbits(there[neighbours[looked]], axis=1, bitorder="little")[:, 0]
            gone = looked[stays[codes] == 0]
            there[gone] = False
            changed = [changed[1], gone]
    return there[:-1]
