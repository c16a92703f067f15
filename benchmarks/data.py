"""Reading data: `python benchmarks/data.py [--folder FOLDER]`, of images/ and masks/ of 448 x 448.

From bytes to a training sample, by one thread: JPEG and mask read from a shard and decoded, crop of 224 x 224, flip,
distance map of the crop; against the same by PIL and scipy over plain files. Each part by itself follows. Without a
folder, photographs are drawn. No crop is without a crack, as an empty one has no distance to compute; `--any` takes
them as they come.

Then the loader: images a second for a step that takes no time, by 1 and 2 workers against loading in the training
process, and what of a step the CPU recipes spend waiting for data.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from harness import Limit, Pair, Result, command
from machine import ROOT
from PIL import Image
from plain_step import by_scipy

from cssr.config.schema import DataConfig
from cssr.data.checks import open_train_sets
from cssr.data.dataset import read_sample
from cssr.data.decode import decode_image, decode_mask
from cssr.data.loader import train_stream
from cssr.data.sampler import MixedPlan, rng
from cssr.data.samples import TrainSamples
from cssr.data.shards import ShardSet
from cssr.data.tar_reader import Files, read_contents
from cssr.data.transforms import augment, signed_distance

SIDE, CROP, SEED = 448, 224, 0
RECIPES = ("tiny", "uav315_cpu", "uav315_csbsr_cpu")


def pairs(quick: bool, folder: Path | None = None, count: int = 48, every: bool = False) -> Iterable[Pair | Result]:
    """A whole sample, then its parts, then the loader."""
    count = min(count, 6) if quick else count
    with tempfile.TemporaryDirectory() as scratch:
        scratch_dir = Path(scratch)
        files = chosen(folder or drawn(scratch_dir / "drawn", count), count, scratch_dir)
        data = DataConfig(crop=CROP, crack_share=0.0 if every else 1.0)
        yield from measured(files, sharded(files, scratch_dir / "shards"), data)
        sharded(drawn(scratch_dir / "more", 40 if quick else 200), scratch_dir / "loaded")
        yield from loaded(scratch_dir / "loaded", scratch_dir, quick)


def drawn(folder: Path, count: int) -> Path:
    """Synthetic photographs of cracks, as JPEG of quality 95, and their masks."""
    from cssr.dataset_preparation.synthesis import render

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
    """Copy of the first pairs of a folder."""
    images = sorted((folder / "images").iterdir())[:count]
    masks = {path.stem: path for path in (folder / "masks").iterdir()}
    for part, paths in (("images", images), ("masks", [masks[path.stem] for path in images])):
        (scratch / "chosen" / part).mkdir(parents=True)
        for path in paths:
            (scratch / "chosen" / part / path.name).write_bytes(path.read_bytes())
    return scratch / "chosen"


def sharded(folder: Path, out: Path) -> ShardSet:
    """Shards of the same pairs."""
    command = [sys.executable, ROOT / "shards" / "make_shards.py", "folder", "--root", folder, "--out", out]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return ShardSet.open(out, "FOLDER")


def measured(folder: Path, shards: ShardSet, data: DataConfig) -> Iterable[Pair]:
    """The plain way draws its own crops; what both decode is compared, whole images and masks."""
    numbers = range(len(shards))
    samples = [read_sample(shards, *at(shards, n)) for n in numbers]
    paths = [sorted((folder / part).iterdir()) for part in ("images", "masks")]
    stored = [stored_files(shards, *at(shards, n)) for n in numbers]
    crops = [augment(sample.image, sample.mask, data, rng(SEED, n)) for n, sample in enumerate(samples)]
    stream = TrainSamples([shards], MixedPlan([shards.counts], [1], 1, SEED, 10**6), data, SEED, range(0), True)
    each = partial(pair, numbers)
    bare = Limit(bare=lambda: [both(stored[n]) for n in numbers], bare_name="decoding")
    yield each(
        "training sample, read to distance", "PIL and scipy over plain files",
        lambda n: by_pil_and_scipy(paths[0][n], paths[1][n], n), lambda n: stream.cut(stream.read(n)),
        differ=lambda a, b: 0.0, limit=bare,
    )  # fmt: skip
    yield each("JPEG, 448 x 448", "PIL", lambda n: by_pil(paths[0][n]), lambda n: decode_image(stored[n][0], print), 8)
    yield each("mask, 448 x 448", "PIL", lambda n: mask_by_pil(paths[1][n]), lambda n: decode_mask(stored[n][1]))
    yield each(
        "distance map of a crop", "scipy", lambda n: by_scipy(crops[n][1]), lambda n: signed_distance(crops[n][1]), 1e-4
    )


def pair(
    numbers: range,
    name: str,
    formulation: str,
    plain: Callable[[int], object],
    ours: Callable[[int], object],
    tolerance: float = 0.0,
    **rest: object,
) -> Pair:
    """A pair of two ways to do something with each sample."""
    calls = [lambda work=work: [work(n) for n in numbers] for work in (plain, ours)]
    return Pair(name, formulation, *calls, tolerance=tolerance, items=len(numbers), item="sample", threads=1, **rest)


def both(stored: tuple[bytes, bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask."""
    return decode_image(stored[0], print), decode_mask(stored[1])


def by_pil(path: Path) -> np.ndarray:
    """H W 3 uint8; decoders of JPEG may round differently, by a few levels."""
    return np.asarray(Image.open(path).convert("RGB"))


def mask_by_pil(path: Path) -> np.ndarray:
    """H W, 1 on cracks."""
    return (np.asarray(Image.open(path)) > 0).astype(np.uint8)


def stored_files(shards: ShardSet, shard: int, index: int) -> tuple[bytes, bytes]:
    """Bytes of image and mask as stored in a shard."""
    with shards.file(shard, print) as file:
        held = read_contents((shards.address(shard),), file, shards.counts[shard], shards.naming)
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
    photo, cracks = by_pil(image), mask_by_pil(mask)
    pixels = np.argwhere(cracks)
    row, column = np.clip(pixels[draws.integers(len(pixels))] - CROP // 2, 0, SIDE - CROP) if len(pixels) else (0, 0)
    photo, cracks = photo[row : row + CROP, column : column + CROP], cracks[row : row + CROP, column : column + CROP]
    if draws.random() < 0.5:
        photo, cracks = photo[:, ::-1], cracks[:, ::-1]
    return np.ascontiguousarray(photo.transpose(2, 0, 1)), cracks[None].copy(), by_scipy(cracks)[None]


# ---- the loader ----


def loaded(shards: Path, scratch: Path, quick: bool) -> Iterable[Result]:
    """Pairs by workers, then by recipes."""
    batches, steps, recipes = (20, 6, RECIPES[:1]) if quick else (150, 30, RECIPES)
    none, one, two = (1 / limit(shards, workers, batches) for workers in (0, 1, 2))
    for name, seconds in (("one worker", one), ("two workers", two)):
        yield Result(f"loader alone, {name}", "in the training process", none, seconds)
    for recipe in recipes:
        wait, seconds = waiting(recipe, shards, scratch / recipe, steps)
        yield Result(f"waiting for data, {recipe}", "the whole step", seconds, max(wait, 1e-6), item="step")


def limit(shards: Path, workers: int, batches: int) -> float:
    """Images a second that the loader gives to nobody; the first ten batches fill the pipes."""
    data = DataConfig(train=str(shards), workers=workers, crop=224)
    with closing(train_stream(open_train_sets(data), data, 0, 0, 8)) as stream:
        list(islice(stream, 10))
        began = time.monotonic()
        list(islice(stream, batches))
        return 8 * batches / (time.monotonic() - began)


def waiting(recipe: str, shards: Path, run_dir: Path, steps: int) -> tuple[float, float]:
    """Mean seconds of wait and of a step, from what the run itself logs; the first tenth is start-up."""
    settings = [f"data.train={shards}", f"train.run_dir={run_dir}", f"train.steps={steps}", "train.val_every=0"]
    more = ["train.log_every=1", "train.tensorboard=false", "train.save_every=100000"]
    command = [sys.executable, ROOT / "cssr" / "train.py", ROOT / "configs" / f"{recipe}.yaml", *settings, *more]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steady = lines[max(1, steps // 10) :]
    batch = lines[0]["samples"]
    return (
        sum(line["data_wait"] for line in steady) / len(steady),
        sum(batch / line["images_per_s"] for line in steady) / len(steady),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    arg_parser = argparse.ArgumentParser(add_help=False)
    arg_parser.add_argument("--folder", type=Path, help="folder with images/ and masks/")
    arg_parser.add_argument("--count", type=int, default=48, help="samples (48)")
    arg_parser.add_argument("--any", action="store_true", help="crops without cracks too")
    options, rest = arg_parser.parse_known_args(arguments)
    command(__doc__, partial(pairs, folder=options.folder, count=options.count, every=options.any), rest, [arg_parser])


if __name__ == "__main__":
    main()
