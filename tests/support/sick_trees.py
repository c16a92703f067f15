"""Datasets on disk for the doctor to examine, and its report in short."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from cssr.dataset_preparation.audit import run as doctor
from cssr.dataset_preparation.synthesis import render

SIZE = 96


def photograph(index: int, size: int = SIZE) -> tuple[Image.Image, np.ndarray]:
    """A drawn photograph and its mask (bool), with crack; each index another."""
    pixels, mask = render(5, index, size, 0.0)
    return Image.fromarray(pixels), mask


def put(root: Path, name: str, image: Image.Image, mask: np.ndarray | None = None, levels=(0, 255), **options) -> None:
    """Write root/images/NAME and root/masks/STEM.png; a mask of True and False gets the two levels."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    image.save(root / "images" / name, **({"quality": 95} if name.endswith("jpg") else {}), **options)
    if mask is not None:
        mask = np.where(mask, levels[1], levels[0]).astype(np.uint8) if mask.dtype == bool else mask
        Image.fromarray(mask).save(root / "masks" / f"{Path(name).stem}.png")


def fill(root: Path, first: int, count: int = 4) -> Path:
    for index in range(first, first + count):
        put(root, f"p{index}.jpg", *photograph(index))
    return root


def run(out: Path, *words) -> tuple[int, dict]:
    """The exit status, and doctor.json."""
    status = doctor.main([*map(str, words), "--workers", "1", "--out", str(out)])
    return status, json.loads((out / "doctor.json").read_text())


def found(report: dict) -> dict[str, list]:
    """Findings as "severity kind" -> the images or files concerned, a tuple where several belong together."""
    return {
        f"{finding['severity']} {finding['kind']}": [
            tuple(entry["images"]) if "images" in entry else entry.get("image", entry.get("file"))
            for entry in finding["entries"]
        ]
        for finding in report["findings"]
    }
