"""From bytes to a training sample: `python benchmarks/decode.py [FOLDER]`, FOLDER/images and FOLDER/masks of 448 x 448.

Pairs a second on one core, by this process's CPU time, so that other work on the machine matters little: JPEG and mask
read from a shard and decoded, crop of 224 x 224, flip, distance map of the crop; the share of each part; and the ratio
to the same by PIL and scipy over plain files. Without a folder, photographs are drawn. No crop is without a crack, as
an empty one has no distance to compute; `--any` takes them as they come.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from cssr.augment import augment
from cssr.config import DataConfig
from cssr.contents import Files, contents
from cssr.data import _TrainSamples
from cssr.decode import decode_image, decode_mask
from cssr.distance_map import signed_distance
from cssr.lanes import MixedPlan, rng
from cssr.tars import ShardSet, read_sample

ROOT = Path(__file__).parents[1]
SIDE, CROP, SEED = 448, 224, 0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="folder with images/ and masks/")
    parser.add_argument("--count", type=int, default=48, help="pairs (48)")
    parser.add_argument("--repeat", type=int, default=7, help="rounds, of which the fastest counts (7)")
    parser.add_argument("--any", action="store_true", help="crops without cracks too")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen(options.folder or drawn(Path(scratch) / "drawn", options.count), options.count, Path(scratch))
        shards = sharded(folder, Path(scratch) / "shards")
        data = DataConfig(crop=CROP, crack_share=0.0 if options.any else 1.0)
        report(*measure(folder, shards, data, options.repeat))


def drawn(folder: Path, count: int) -> Path:
    """Photographs of drawn cracks, as JPEG of quality 95, and their masks."""
    sys.path.append(str(ROOT / "shards"))
    from synthesis import render

    for n in range(count):
        photo, mask = render(SEED, n, SIDE, empty_share=0)
        save(folder, f"{n}.jpg", Image.fromarray(photo), Image.fromarray(mask.astype(np.uint8) * 255))
    return folder


def save(folder: Path, name: str, photo: Image.Image, mask: Image.Image) -> None:
    """A pair, the mask as datasets have it, a PNG of 0 and 255."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    photo.save(folder / "images" / name, quality=95)
    mask.save((folder / "masks" / name).with_suffix(".png"))


def chosen(folder: Path, count: int, scratch: Path) -> Path:
    """The first pairs of a folder, byte for byte."""
    images = sorted((folder / "images").iterdir())[:count]
    masks = {path.stem: path for path in (folder / "masks").iterdir()}
    for part, paths in (("images", images), ("masks", [masks[path.stem] for path in images])):
        (scratch / "chosen" / part).mkdir(parents=True)
        for path in paths:
            (scratch / "chosen" / part / path.name).write_bytes(path.read_bytes())
    return scratch / "chosen"


def sharded(folder: Path, out: Path) -> ShardSet:
    """The same as shards."""
    command = [sys.executable, ROOT / "shards" / "make_shards.py", "folder", "--root", folder, "--out", out]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return ShardSet.open(out, "FOLDER")


def measure(folder: Path, shards: ShardSet, data: DataConfig, repeat: int) -> tuple[dict[str, float], float, float]:
    """Seconds a pair: of each part, of a whole sample, of the same by PIL and scipy."""
    places = range(len(shards))
    samples = [read_sample(shards, *at(shards, n)) for n in places]
    paths = [sorted((folder / part).iterdir()) for part in ("images", "masks")]
    stored = [stored_files(shards, *at(shards, n)) for n in places]
    crops = [augment(sample.image, sample.mask, data, rng(SEED, n)) for n, sample in enumerate(samples)]
    plan = MixedPlan([shards.counts], [1], 1, SEED, 10**6)
    stream = _TrainSamples([shards], plan, data, SEED, range(0), True)
    work = {
        "JPEG": lambda n: decode_image(stored[n][0], print),
        "mask": lambda n: decode_mask(stored[n][1]),
        "crop, flip": lambda n: augment(samples[n].image, samples[n].mask, data, rng(SEED, n)),
        "distance": lambda n: signed_distance(crops[n][1]),
        "whole": stream.load,
        "plain": lambda n: by_pil_and_scipy(paths[0][n], paths[1][n], n),
    }
    parts = fastest(work, places, repeat)
    return parts, parts.pop("whole"), parts.pop("plain")


def stored_files(shards: ShardSet, shard: int, index: int) -> tuple[bytes, bytes]:
    """The bytes of image and mask as a shard holds them."""
    with shards.file(shard, print) as file:
        held = contents((shards.address(shard),), file, shards.counts[shard])
        files = Files(file, held.places[index], 1 << 25)
        return files.read("jpg", "png"), files.read("mask.png")


def at(shards: ShardSet, number: int) -> tuple[int, int]:
    """(shard, index) of a sample of the set."""
    ends = np.cumsum(shards.counts)
    shard = int(np.searchsorted(ends, number, side="right"))
    return shard, number - int(ends[shard] - shards.counts[shard])


def by_pil_and_scipy(image: Path, mask: Path, seed: int) -> tuple[np.ndarray, ...]:
    """A sample as it is usually made: a pair of files, a crop with cracks, mirrored in half of the cases, distances."""
    draws = rng(SEED, seed)
    photo, cracks = np.asarray(Image.open(image).convert("RGB")), np.asarray(Image.open(mask)) > 0
    found = np.argwhere(cracks)
    row, column = np.clip(found[draws.integers(len(found))] - CROP // 2, 0, SIDE - CROP) if len(found) else (0, 0)
    photo, cracks = photo[row : row + CROP, column : column + CROP], cracks[row : row + CROP, column : column + CROP]
    if draws.random() < 0.5:
        photo, cracks = photo[:, ::-1], cracks[:, ::-1]
    distance = distance_transform_edt(~cracks) - distance_transform_edt(cracks) if cracks.any() else cracks
    return np.ascontiguousarray(photo.transpose(2, 0, 1)), cracks[None].copy(), distance[None].astype(np.float32)


def fastest(work: dict[str, Callable[[int], object]], places: range, repeat: int) -> dict[str, float]:
    """Seconds of CPU time for a call of each, in the fastest of its rounds; they take turns, as conditions change."""
    seconds = dict.fromkeys(work, float("inf"))
    for _ in range(repeat):
        for name, call in work.items():
            began = time.process_time()
            for n in places:
                call(n)
            seconds[name] = min(seconds[name], (time.process_time() - began) / len(places))
    return seconds


def report(parts: dict[str, float], whole: float, plain: float) -> None:
    """Print the table."""
    rest = {"reading, drawing, planes": max(0.0, whole - sum(parts.values()))}
    for name, seconds in (parts | rest).items():
        print(f"{name:<26}{1e6 * seconds:6.0f} us  {100 * seconds / whole:3.0f} %")
    print(f"{'a sample':<26}{1e6 * whole:6.0f} us  {1 / whole:.0f} pairs/s on one core")
    print(f"{'by PIL and scipy':<26}{1e6 * plain:6.0f} us  {1 / plain:.0f} pairs/s: {plain / whole:.2f} times as long")


if __name__ == "__main__":
    main()
