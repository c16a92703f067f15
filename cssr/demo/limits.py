"""What one request may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that keep one request from taking the server."""

    bytes: int = 32_000_000  # of a photograph's file
    pixels: int = 1_000_000  # of a photograph
    seconds: float = 300.0  # of work on it, from its turn on
    waiting: int = 4  # requests that wait while one is worked on
    tile: int = 256  # LQ pixels a side that are worked at once; a request is ended between two tiles
