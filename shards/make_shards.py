#!/usr/bin/env python
"""Turn a dataset on disk, or drawn pictures, into the tars and index.json that training reads.

    python shards/make_shards.py synthetic --out data/demo --ratio train=0.8 val=0.2 --count 400
    python shards/make_shards.py folder --root cracks --split train --out data/cracks/train
    python shards/make_shards.py folder --root photographs --images-only --out data/photographs
    python shards/make_shards.py khanhha --root crack_segmentation_dataset --split test --out data/khanhha/test

Plain `webdataset.WebDataset` reads the result too. A mistake stops with one line that says what to do, and leaves
nothing behind; the output folder appears only once it is whole. `make_shards.py SOURCE --help` lists its options.
"""

import argparse
import inspect
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
from sources import SOURCES, Item, Source
from tqdm import tqdm
from writer import check_free, whole_or_nothing, write_part

from cssr import __version__


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are exceptions, so that all mistakes end alike."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` lists the options")


def build_parser() -> argparse.ArgumentParser:
    """One sub-command per source; its own options come from the signature of the source's function."""
    parser = Parser(
        prog="make_shards.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for name in SOURCES.names():
        about = inspect.getdoc(SOURCES.get(name)).splitlines()[0]
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        _add_common(command)
        _add_from_signature(command, name)
    return parser


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, help="folder to make; must not exist, or be empty")
    command.add_argument("--ratio", nargs="+", metavar="PART=SHARE", help="cut into OUT/PART, e.g. train=0.8 val=0.2")
    command.add_argument("--shard-size", type=int, default=256, help="samples per tar (%(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the cut, and of drawn pictures (%(default)s)")
    command.add_argument("--licence", metavar="TEXT", help="of the images, kept in the index")


def _add_from_signature(command: argparse.ArgumentParser, name: str) -> None:
    for option, parameter in inspect.signature(SOURCES.get(name)).parameters.items():
        if option == "seed":  # common to all
            continue
        plain = getattr(parameter.annotation, "__origin__", parameter.annotation)  # what Annotated wraps
        kind = next((part for part in get_args(plain) if part is not type(None)), plain)
        required = parameter.default is inspect.Parameter.empty
        flag, note = f"--{option.replace('_', '-')}", " ".join(getattr(parameter.annotation, "__metadata__", ()))
        if kind is bool:
            command.add_argument(flag, action="store_true", help=note)
            continue
        note += "" if required or parameter.default is None else f" ({parameter.default})"
        command.add_argument(
            flag,
            type=kind,
            required=required,
            help=note.strip(),
            metavar=kind.__name__.upper(),
            default=None if required else parameter.default,
        )


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse and check the command line; ValueError with a remedy for what makes no sense."""
    if not argv:
        raise ValueError(f"give a source: one of {', '.join(SOURCES.names())}; `make_shards.py --help` explains")
    if not argv[0].startswith("-"):
        SOURCES.get(argv[0])  # its error has the closest name
    args = build_parser().parse_args(argv)
    if args.shard_size < 1:
        raise ValueError(f"--shard-size is {args.shard_size}; give at least 1")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; give 0 or more")
    args.ratio = parse_ratio(args.ratio) if args.ratio else None
    args.out = args.out.absolute()
    return args


def parse_ratio(words: list[str]) -> dict[str, float]:
    """["train=0.8", "val=0.2"] -> {"train": 0.8, "val": 0.2}; ValueError unless positive shares add up to 1."""
    found: dict[str, float] = {}
    for word in words:
        match = re.fullmatch(r"([A-Za-z0-9_-]+)=([0-9]*\.?[0-9]+)", word)
        if not match or float(match[2]) <= 0 or match[1] in found:
            raise ValueError(f"--ratio has {word!r}; write parts with positive shares, each once, as train=0.8 val=0.2")
        found[match[1]] = float(match[2])
    if abs(sum(found.values()) - 1) > 1e-6:
        raise ValueError(f"--ratio adds up to {sum(found.values()):g}; make the shares add up to 1")
    return found


def cut(items: list[Item], ratio: dict[str, float], seed: int) -> dict[str, list[Item]]:
    """Deal the items, in a seeded order, into parts of rounded sizes; each part comes back in the order of its keys."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(items))
    bounds = np.rint(np.cumsum([0, *ratio.values()]) * len(items)).astype(int)
    parts = {
        name: [items[place] for place in sorted(order[first:last])]
        for name, first, last in zip(ratio, bounds[:-1], bounds[1:])
    }
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise ValueError(
            f"of {len(items)} samples none is left for the part {empty[0]!r} of --ratio; give it a larger share"
        )
    return parts


def with_safe_keys(source: Source) -> Source:
    """Keys as tars need them, without dots and slashes, sorted; ValueError where two become the same."""
    named: dict[str, Item] = {}
    for item in source.items:
        key = re.sub(r"[./\\]", "_", item.key)
        if key in named:
            raise ValueError(f"duplicate key {key!r}: {named[key].origin} and {item.origin}; rename one of them")
        named[key] = replace(item, key=key)
    return replace(source, items=[named[key] for key in sorted(named)])


def open_source(args: argparse.Namespace) -> tuple[Source, dict[str, Any]]:
    """List what the source has. Returns it with the options that it was given, but for the root, for the index."""
    taken = {option: getattr(args, option) for option in inspect.signature(SOURCES.get(args.source)).parameters}
    source = with_safe_keys(SOURCES.build({"name": args.source, **taken}))
    return source, {option: value for option, value in taken.items() if option not in ("root", "split", "seed")}


def make(args: argparse.Namespace) -> list[tuple[Path, dict[str, Any]]]:
    """Do what the command line asks. Returns the folders made and their indexes."""
    check_free(args.out)
    source, options = open_source(args)
    parts = cut(source.items, args.ratio, args.seed) if args.ratio else {None: source.items}
    rule = source.decide(_watch(source.items, "reading masks")) if source.decide else None
    print(f"masks: {rule.sentence if rule else 'none'}")
    header = {
        "tool_version": __version__,
        "source": source.name,
        "options": options,
        "licence": args.licence or source.licence,
        "split": getattr(args, "split", None),
        "ratio": args.ratio,
        "seed": args.seed,
    }
    made = []
    with whole_or_nothing(args.out) as directory:
        for name, items in parts.items():
            index = write_part(directory / (name or ""), items, rule, args.shard_size, {**header, "part": name}, _watch)
            made.append((args.out / (name or ""), index))
    return made


def _watch(items: Iterable[Item], what: str = "writing") -> Iterator[Item]:
    """Pass items on under a progress bar; elsewhere than on a terminal, silently."""
    yield from tqdm(items, desc=what, unit="", leave=False, disable=not sys.stderr.isatty())


def summarize(directory: Path, index: dict[str, Any]) -> str:
    """A few lines for people about one index.json."""
    size = sum(shard["bytes"] for shard in index["shards"]) / 1e6
    sizes = sorted(index["image_sizes"].items(), key=lambda entry: -entry[1])
    shown = ", ".join(f"{name} ({count})" for name, count in sizes[:4])
    shown += f" and {len(sizes) - 4} more" if len(sizes) > 4 else ""
    converted = ", ".join(f"{count} {why}" for why, count in index["converted"].items())
    return "\n".join(
        [
            f"{directory}: {index['samples']} samples in {len(index['shards'])} shards, {size:.1f} MB",
            f"  image sizes: {shown}",
            *_about_masks(index),
            *([f"  converted: {converted}"] if converted else []),
        ]
    )


def _about_masks(index: dict[str, Any]) -> list[str]:
    if not index["masks"]:
        return ["  no masks: for super-resolution alone (loss.beta=0 with model.seg=none)"]
    cracks = f"  crack pixels: {100 * index['crack_share']:.2f} %; empty masks: {index['empty_masks']}"
    return [cracks, f"  mask rule: {index['mask_rule']}"]


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 2 for a mistake of the user, 130 when interrupted."""
    try:
        for directory, index in make(read_arguments(sys.argv[1:] if argv is None else argv)):
            print(summarize(directory, index))
    except (ValueError, OSError) as problem:
        print("error:", " ".join(str(problem).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written, run the command again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
