"""Tiles of large photographs: their positions and keys."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from cssr.dataset_preparation.sources import Item

NAME = re.compile(r"(.+)__y\d{6,}_x\d{6,}", re.DOTALL)


class Tile(NamedTuple):
    """A rectangle of a photograph, pixels from its upper left corner."""

    x: int
    y: int
    width: int
    height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, upper, right, lower, as Pillow's crop takes them."""
        return self.x, self.y, self.x + self.width, self.y + self.height

    def divided(self, scale: int) -> "Tile":
        """The same place in an image `scale` times smaller."""
        return Tile(*(number // scale for number in self))


@dataclass(frozen=True)
class Tiling:
    """Square tiles of `size` pixels a side, neighbours sharing `overlap` pixels.

    The last tile of a row or column is shifted inwards to be of full size. A photograph that a tile covers is kept
    whole, or refused (`refuse_small`); one that is narrower than a tile in one direction is cut along the other only.
    """

    size: int
    overlap: int = 0
    refuse_small: bool = False

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"--tile is {self.size}; give the side of a tile in pixels, at least 1")
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"--overlap is {self.overlap}; give 0 or more, and less than --tile {self.size}")

    def starts(self, side: int) -> list[int]:
        """Starts of the tiles along a side of `side` pixels."""
        if side <= self.size:
            return [0]
        return [*range(0, side - self.size, self.size - self.overlap), side - self.size]

    def places(self, width: int, height: int) -> list[Tile]:
        """The tiles of a photograph, row by row; one that is the photograph itself if it is not larger than a tile."""
        size = min(self.size, width), min(self.size, height)
        return [Tile(x, y, *size) for y in self.starts(height) for x in self.starts(width)]

    def count(self, width: int, height: int) -> int:
        """Number of tiles, the same for a photograph on its side. ValueError for a small one that is refused."""
        if self.refuse_small and min(width, height) < self.size:
            raise ValueError(f"{width}x{height} pixels are fewer than --tile {self.size}, against --refuse-small")
        return len(self.starts(width)) * len(self.starts(height))

    def check_scale(self, scale: int) -> None:
        """ValueError unless tiles of the image begin and end at pixels of its LQ image."""
        for option, value in (("--tile", self.size), ("--overlap", self.overlap)):
            if value % scale:
                raise ValueError(
                    f"{option} {value} is no multiple of {scale}, the set's HR pixels per LQ pixel; "
                    f"give {max(scale, value // scale * scale)}, say"
                )


def tile_key(key: str, place: Tile) -> str:
    """The key of a tile: its photograph's, and where it begins."""
    return f"{key}__y{place.y:06d}_x{place.x:06d}"


def check_names(items: Iterable[Item]) -> None:
    """ValueError where an image has the key that a tile of another image would get."""
    origins = {item.key: item.origin for item in items}
    for key, origin in origins.items():
        name = NAME.fullmatch(key)
        if name and name[1] in origins:
            raise ValueError(
                f"duplicate key {key!r}: {origin}, and a tile of {origins[name[1]]}; rename or remove one of them"
            )
