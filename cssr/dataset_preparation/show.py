"""Summary of a shard set, and a picture of some samples: `python shards/show.py DIR --out a.png`.

Cracks are outlined in red; LQ image (pixels enlarged) and blur kernel (white = its maximum) are shown beside an image
that has them, keys below.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cssr.data.dataset import Sample, read_sample
from cssr.data.shards import ShardSet
from cssr.dataset_preparation.images import outlined
from cssr.utils.cli import ExitingParser, program
from cssr.utils.files import naming_path, write_atomic
from cssr.utils.images import encode_image, join_images
from cssr.utils.json_files import misfit
from cssr.utils.text import message_of

_SIDE = 256  # pixels of the longer side of a picture on the sheet
_GAP, _TEXT = 8, 18
# what is shown of an index; the rest of it is checked where it is opened
_SHAPE = {
    "image_sizes": dict[str, int],
    **dict.fromkeys(("?converted", "?options", "?ratio"), dict[str, Any] | None),
    "?tile": dict[str, int] | None,
    **dict.fromkeys(("?crack_share", "?empty_masks"), float | None),
}


def summarize(directory: Path | str, index: dict[str, Any]) -> str:
    """A few lines for people about one index.json."""
    size = sum(shard["bytes"] for shard in index["shards"]) / 1e6
    converted = ", ".join(f"{count} {reason}" for reason, count in (index.get("converted") or {}).items())
    return "\n".join(
        [
            f"{directory}: {_samples(index)} samples in {len(index['shards'])} shards, {size:.1f} MB",
            f"  image sizes: {_sizes(index['image_sizes'])}",
            *_about_tiles(index),
            *_about_masks(index),
            *_about_lq(index),
            *([f"  converted: {converted}"] if converted else []),
            *_about_missing(index),
        ]
    )


def _samples(index: dict[str, Any]) -> int:
    return sum(shard["samples"] for shard in index["shards"])


def _about_missing(index: dict[str, Any]) -> list[str]:
    lines = []
    if index.get("valid"):
        lines.append(f"  samples with pixels without data: {index.get('samples_with_missing_pixels', 'some')}")
    if index.get("blank_left_out"):
        lines.append(
            f"  left out: {index['blank_left_out']} images or tiles without any data (--keep-blank keeps them)"
        )
    return lines


def describe(directory: Path | str, index: dict[str, Any]) -> str:
    """All that an index.json says, as lines for people."""
    lines = [summarize(directory, index)]
    for name in ("source", "split", "licence", "benchmark"):
        if index.get(name):
            lines.append(f"  {name}: {index[name]}")
    options = ", ".join(f"{name}={value}" for name, value in (index.get("options") or {}).items() if value)
    if options:
        lines.append(f"  options: {options}")
    if index.get("ratio"):
        cut = " ".join(f"{part}={share}" for part, share in index["ratio"].items())
        lines.append(f"  part {index.get('part')} of {cut}, seed {index.get('seed')}")
    counts = [shard["samples"] for shard in index["shards"]]
    written = f"version {index['tool_version']}" if "tool_version" in index else "another program"
    lines.append(f"  shards: {min(counts)} to {max(counts)} samples; written by {written}")
    return "\n".join(lines)


def _sizes(counts: dict[str, int]) -> str:
    sizes = sorted(counts.items(), key=lambda entry: -entry[1])
    shown = ", ".join(f"{name} ({count})" for name, count in sizes[:4])
    return shown + (f" and {len(sizes) - 4} more" if len(sizes) > 4 else "")


def _about_tiles(index: dict[str, Any]) -> list[str]:
    groups, tile = index.get("groups", _samples(index)), index.get("tile")
    if tile:
        size, overlap = map(tile.get, ("size", "overlap"))
        return [f"  tiles of {size} pixels, neighbours share {overlap}; photographs (groups): {groups}"]
    return [f"  groups: {groups}"] if groups != _samples(index) else []


def _about_masks(index: dict[str, Any]) -> list[str]:
    if not index.get("masks", True):
        return ["  no masks: for super-resolution alone (loss.beta=0 with model.seg=none)"]
    if None in map(index.get, ("crack_share", "empty_masks", "mask_rule")):
        rule = index.get("mask_rule", "crack = every value above 0 (the index says nothing of masks)")
        return [f"  mask rule: {rule}"]
    cracks = f"  crack pixels: {100 * index['crack_share']:.2f} %; empty masks: {index['empty_masks']}"
    return [cracks, f"  mask rule: {index['mask_rule']}"]


def _about_lq(index: dict[str, Any]) -> list[str]:
    if not index.get("lq"):
        return []
    side = index.get("kernel")
    kernel = f"; blur kernels of {side} x {side}" if side else ""
    lines = [f"  LQ images: {index['scale']} times smaller{kernel}"]
    if index.get("degradation"):
        from cssr.config.yaml_loader import to_inline_yaml  # slow to import

        seed = f", seed {index['degradation_seed']}" if "degradation_seed" in index else ""
        lines.append(f"  degradation: {to_inline_yaml(index['degradation'])}{seed}")
        lines += [f"  resampler: {index['resampler']}"] if index.get("resampler") else []
    return lines


def draw_sheet(shards: ShardSet, count: int, seed: int) -> Image.Image:
    """A sheet of `count` samples drawn by `seed`, in the order of the set."""
    places = [(shard, number) for shard, samples in enumerate(shards.counts) for number in range(samples)]
    chosen = np.random.Generator(np.random.Philox(seed)).choice(len(places), min(count, len(places)), replace=False)
    cells = [_cell(read_sample(shards, *places[k])) for k in sorted(chosen)]
    width, height = max(c.width for c in cells), max(c.height for c in cells)
    columns = max(1, min(len(cells), round(math.sqrt(len(cells) * height / width * 1.6))))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), "white")
    for k, cell in enumerate(cells):
        sheet.paste(cell, (_GAP + k % columns * (width + _GAP), _GAP + k // columns * (height + _GAP)))
    return sheet


def _cell(sample: Sample) -> Image.Image:
    """One sample: its pictures side by side, its key below."""
    picture = Image.fromarray(np.ascontiguousarray(sample.image))
    scale = _SIDE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST)
    panels = [outlined(picture, sample.mask)]
    if getattr(sample, "lq", None) is not None:
        panels.append(Image.fromarray(sample.lq).resize(panels[0].size, Image.Resampling.NEAREST))
    if getattr(sample, "kernel", None) is not None:
        side = panels[0].height // 2
        shown = np.rint(255 * np.clip(sample.kernel / max(sample.kernel.max(), 1e-12), 0, 1)).astype(np.uint8)
        panels.append(Image.fromarray(shown).convert("RGB").resize((side, side), Image.Resampling.NEAREST))
    row = join_images(panels, gap=_GAP)
    cell = Image.new("RGB", (row.width, row.height + _TEXT), "white")
    cell.paste(row, (0, 0))
    font = ImageFont.load_default(12)
    text = _shorten(sample.key, font, row.width)
    ImageDraw.Draw(cell).text((0, cell.height - _TEXT + 2), text, fill="black", font=font)
    return cell


def _shorten(text: str, font: Any, width: int) -> str:
    """The text, its middle left out where it is wider than `width` pixels: keys differ at both ends."""
    length = len(text)
    while font.getlength(text) > width and length > 4:
        length -= 1
        text = f"{text[: length // 2]}…{text[-(length // 2) :]}"
    return text


def main() -> int:
    """Command line."""
    parser = ExitingParser(
        prog=program("shards/show.py"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", metavar="DIR", help="a folder of shards, a brace pattern, or an address")
    parser.add_argument("--count", type=int, default=24, help="samples in the picture (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which samples (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="picture to write, .png or .jpg; none without it")
    options = parser.parse_args()
    try:
        if options.count < 1 or options.seed < 0:
            raise ValueError("--count must be at least 1, --seed at least 0")
        if options.out and options.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise ValueError(f"--out is {options.out}; name a picture: FILE.png or FILE.jpg")
        shards = ShardSet.open(options.shards, "DIR")
        if fault := misfit(shards.index, _SHAPE):
            raise ValueError(f"the index of {options.shards} is damaged: {fault}; write the shards again")
        print(describe(options.shards, shards.index))
        if options.out:
            sheet = draw_sheet(shards, options.count, options.seed)
            with naming_path(options.out):
                options.out.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(
                    options.out, encode_image(sheet, "PNG" if options.out.suffix.lower() == ".png" else "JPEG")
                )
            print(f"{min(options.count, len(shards))} samples in {options.out}")
    except (ValueError, OSError) as problem:
        print("error:", message_of(problem), file=sys.stderr)
        return 1
    return 0
