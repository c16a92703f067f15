"""List the recipes and launch files that come with the package, or copy them to a folder of one's own."""

import argparse
import os
import shutil
from pathlib import Path

from cssr.utils.cli import Parser, run_command
from cssr.utils.files import PARTIAL, naming_path
from cssr.utils.installed import folder

FOLDERS = ("configs", "launch")


def main(arguments: list[str] | None = None) -> int:
    """Command line of `cssr recipes`."""
    return run_command(_run, arguments)


def _run(arguments: list[str]) -> int:
    parser = Parser(prog="cssr recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", help="copy them to DIR/configs and DIR/launch")
    out = parser.parse_args(arguments).out
    for name in FOLDERS:
        if out is not None and (out / name).exists():
            raise ValueError(f"--out {out}: {name} is there already; choose another folder, so that nothing is lost")
    for name in FOLDERS:
        if out is None:
            files = sorted(path for kind in ("yaml", "sh") for path in folder(name).rglob(f"*.{kind}"))
            print(*(f"{name}/{path.relative_to(folder(name))}  {_title(path)}" for path in files), sep="\n")
        else:
            _copy(folder(name), out / name)
            print(f"{out / name} written")
    return 0


def _copy(source: Path, target: Path) -> None:
    """Copy a folder, whole or not at all."""
    partial = target.with_name(f"{target.name}{PARTIAL}-{os.getpid()}")
    with naming_path(target):
        try:
            for path in source.rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    copy = partial / path.relative_to(source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(path.read_bytes())
                    shutil.copymode(path, copy)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _title(path: Path) -> str:
    """The first comment of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = (line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith("#!"))
    return next(comments, "")
