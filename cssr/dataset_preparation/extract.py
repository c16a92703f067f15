"""Write photographs of a shard set as files: `python shards/extract.py SHARDS --out DIR [--count 4] [--reduce 4]`."""

from pathlib import Path

from PIL import Image
from tqdm import tqdm

from cssr.data.dataset import read_sample
from cssr.data.shards import ShardSet
from cssr.utils.cli import ExitingParser, exit_on_error, program
from cssr.utils.files import naming_path, write_atomic
from cssr.utils.images import encode_image


def extract(shards: ShardSet, out: Path, count: int, reduce: int) -> list[Path]:
    """Write `count` samples, evenly spread over the set, as `key.png`, reduced by `reduce` (bicubic, antialiased)."""
    places = [(shard, index) for shard, samples in enumerate(shards.counts) for index in range(samples)]
    count = min(count, len(places))
    with naming_path(out):
        out.mkdir(parents=True, exist_ok=True)
    written = []
    for k in tqdm(range(count), disable=None):
        sample = read_sample(shards, *places[k * len(places) // count])
        picture = Image.fromarray(sample.image.copy())
        size = (max(1, picture.width // reduce), max(1, picture.height // reduce))
        picture = picture if reduce == 1 else picture.resize(size, Image.Resampling.BICUBIC)
        written.append(out / f"{sample.key}.png")
        write_atomic(written[-1], encode_image(picture))
    return written


def main() -> None:
    """Command line."""
    parser = ExitingParser(prog=program("shards/extract.py"), description=__doc__)
    parser.add_argument("shards", type=Path, help="shard directory")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--count", type=int, default=4, help="how many (4)")
    parser.add_argument("--reduce", type=int, default=1, help="reduce each side by this factor (1)")
    options = parser.parse_args()
    with exit_on_error():
        if min(options.count, options.reduce) < 1:
            raise ValueError("--count and --reduce must be at least 1")
        written = extract(ShardSet.open(options.shards, "SHARDS"), options.out, options.count, options.reduce)
    print(f"{len(written)} photographs in {options.out}")
