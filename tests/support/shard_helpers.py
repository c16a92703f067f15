"""What the tests of make_shards.py share: folders of small pictures, and runs of the command."""

from pathlib import Path

import numpy as np
import webdataset
from paths import ROOT
from PIL import Image

from cssr.dataset_preparation import make as make_shards
from cssr.dataset_preparation.encode import form_of
from cssr.dataset_preparation.sources import Item, MaskRule
from cssr.dataset_preparation.writer import pack, write_index, write_shard

SCRIPT = ROOT / "shards" / "make_shards.py"


def draw(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 16), seed: int = 0, **options) -> None:
    """Write a picture of noise; `size` is width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    noise = noise if "A" in mode else noise[..., :3]
    Image.fromarray(noise).convert(mode).save(path, **options)


def draw_mask(path: Path, levels: tuple[int, int] = (0, 255), size: tuple[int, int] = (20, 16)) -> None:
    """Write a mask whose left quarter is crack."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((size[1], size[0]), levels[0], np.uint8)
    values[:, : size[0] // 4] = levels[1]
    Image.fromarray(values).save(path)


def make_tree(root: Path, count: int = 10, size: tuple[int, int] = (20, 16)) -> Path:
    """A folder of pairs, p0, p1, ..."""
    for number in range(count):
        draw(root / f"images/p{number}.jpg", seed=number, size=size)
        draw_mask(root / f"masks/p{number}.png", size=size)
    return root


def run(*words) -> int:
    """make_shards.py, here; with one worker unless the words say how many, as each is a fork of a large process."""
    workers = () if "--workers" in words else ("--workers", 1)
    return make_shards.main([str(word) for word in (*words, *workers)])


def refused(capsys, out: Path, *words) -> str:
    """Run what must fail; returns its one line of error."""
    before = sorted(out.parent.iterdir())
    assert run(*words, "--out", out) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and message.endswith("\n")
    assert sorted(out.parent.iterdir()) == before  # neither the output nor a partial folder
    return message


def read(directory: Path) -> list[dict]:
    urls = [str(path) for path in sorted(directory.glob("*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


def shard(directory: Path, number: int = 0) -> Path:
    """A tar of a set, by its number."""
    (path,) = directory.glob(f"*-{number:06d}.tar")
    return path


def same_bytes(first: Path, second: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    held = [{p.relative_to(d): p.read_bytes() for p in d.rglob("*") if p.is_file()} for d in (first, second)]
    return bool(held[0]) and held[0] == held[1]


def write_part(directory: Path, items: list[Item], rule: MaskRule | None, shard_size: int, header: dict) -> dict:
    """Write items as shards with an index.json into `directory`, in this process. Returns the index."""
    directory.mkdir(parents=True, exist_ok=True)
    form = form_of(items, header["source"], rule)
    shards = pack("", items, [1] * len(items), shard_size)
    return write_index(directory, [write_shard(directory, shard, form) for shard in shards], items, form, header)
