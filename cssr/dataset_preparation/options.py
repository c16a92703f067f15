"""The command line of make_shards.py: one sub-command per source, with options that all have and some of its own."""

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from cssr.dataset_preparation.sources import SOURCES
from cssr.dataset_preparation.split import parse_ratio
from cssr.dataset_preparation.tiles import Tiling
from cssr.utils.cli import Parser, check_bits, program
from cssr.utils.machine import check_processes, cores


def build_parser(script: str, about: str, add_common: Callable[[argparse.ArgumentParser], None]) -> Parser:
    """One sub-command per source; its own options come from the signature of the source's function."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=program(script), description=about, formatter_class=raw, allow_abbrev=False)
    commands = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for name in SOURCES.names():
        line = inspect.getdoc(SOURCES.get(name)).splitlines()[0]
        command = commands.add_parser(name, help=line, description=line, allow_abbrev=False)
        add_common(command)
        command.add_argument("--bits", type=int, metavar="N", help="of image values stored in 16 bits (by each file)")
        _add_imports(command)
        _add_from_signature(command, name)
    return parser


def _add_common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--out", type=Path, required=True, help="folder to make; must not exist, or be empty")
    add("--ratio", nargs="+", metavar="PART=SHARE", help="split into OUT/PART, as train=0.8 val=0.2; see split.json")
    add("--split-file", type=Path, metavar="FILE", help="cut as an earlier run did, by its split.json")
    add("--groups", type=Path, metavar="FILE", help="doctor.json: images that are related by it stay in one part")
    add("--tile", type=int, metavar="N", help="cut large images into tiles of N x N pixels")
    add("--overlap", type=int, metavar="N", help="pixels that neighbouring tiles share (0)")
    add("--refuse-small", action="store_true", help="refuse images smaller than a tile, which are kept whole otherwise")
    add("--keep-blank", action="store_true", help="keep images and tiles without any pixel that holds data")
    add("--shard-size", type=int, help="samples per tar (256, less where a part would have fewer than 16 tars)")
    add("--seed", type=int, default=0, help="of the cut, and of drawn pictures (%(default)s)")
    add("--licence", metavar="TEXT", help="of the images, kept in the index")
    add("--workers", type=int, default=cores(), help="processes; the result is the same for any number (%(default)s)")
    add("--keep", action="store_true", help="when interrupted or stopped by a mistake, keep finished shards")


def check_source(argv: list[str], script: str) -> None:
    """Import what `--imports` names, so that its layouts are known; ValueError unless `argv` begins with a source."""
    early = Parser(prog=script, add_help=False, allow_abbrev=False)
    _add_imports(early)
    imports = early.parse_known_args(argv[1:])[0].imports
    if imports:
        from cssr.config.loading import import_modules  # slow to import

        import_modules(imports, "--imports")
    if not argv:
        raise ValueError(f"give a source: one of {', '.join(SOURCES.names())}; `{script} --help` explains")
    if not argv[0].startswith("-"):
        SOURCES.get(argv[0])  # its error has the closest name


def _add_imports(command: argparse.ArgumentParser) -> None:
    """The option by which a user's own layouts are registered."""
    about = "modules of yours that register SOURCE, from here or the Python path"
    command.add_argument("--imports", nargs="+", default=[], metavar="MODULE", help=about)


def _add_from_signature(command: argparse.ArgumentParser, name: str) -> None:
    """The options of a source, from the signature of its function."""
    for option, parameter in inspect.signature(SOURCES.get(name)).parameters.items():
        if option == "seed":  # common to all
            continue
        plain = getattr(parameter.annotation, "__origin__", parameter.annotation)  # what Annotated wraps
        kind = next((part for part in get_args(plain) if part is not type(None)), plain)
        required = parameter.default is inspect.Parameter.empty
        flag = f"--{option.replace('_', '-')}"
        note = " ".join(n for n in getattr(parameter.annotation, "__metadata__", ()) if isinstance(n, str))
        if kind is bool:
            command.add_argument(flag, action="store_true", help=note)
            continue
        default = None if required else parameter.default
        note += "" if default is None else f" ({default})"
        how = {"type": kind, "required": required, "default": default, "metavar": kind.__name__.upper()}
        command.add_argument(flag, help=note.strip(), **how)


def read_arguments(argv: list[str], about: str) -> argparse.Namespace:
    """Parse and check the command line; ValueError with a remedy for what makes no sense. `about` is for --help."""
    check_source(argv, program("make_shards.py"))
    args = build_parser("make_shards.py", about, _add_common).parse_args(argv)
    check_processes(args.workers, "--workers", gib=0.2, least=1)
    for option, least in (("shard_size", 1), ("seed", 0)):
        if getattr(args, option) is not None and getattr(args, option) < least:
            raise ValueError(f"--{option.replace('_', '-')} is {getattr(args, option)}; give at least {least}")
    if args.ratio and args.split_file:
        raise ValueError("--ratio draws a split, --split-file has one; leave one of them out")
    if args.tile is None and (args.overlap is not None or args.refuse_small):
        raise ValueError(
            f"{'--refuse-small' if args.refuse_small else '--overlap'} is about tiles; give --tile as well"
        )
    check_bits(args.bits)
    args.tiling = None if args.tile is None else Tiling(args.tile, args.overlap or 0, args.refuse_small)
    args.ratio = parse_ratio(args.ratio) if args.ratio else None
    args.out = args.out.absolute()
    return args


def read_check_arguments(argv: list[str], about: str) -> argparse.Namespace:
    """The command line of --check; `about` is for --help."""
    parser = Parser(prog=program("make_shards.py"), description=about, allow_abbrev=False)
    parser.add_argument("--check", type=Path, nargs="+", required=True, metavar="DIR", help="shard sets or their parts")
    parser.add_argument("--decode", action="store_true", help="decode every image, mask and kernel as well")
    parser.add_argument("--workers", type=int, default=cores(), help="processes (%(default)s)")
    args = parser.parse_args(argv)
    check_processes(args.workers, "--workers", gib=0.2, least=1)
    return args
