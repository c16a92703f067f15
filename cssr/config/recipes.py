"""List the recipes and launch files that come with the package, or copy them to a folder of one's own."""

import argparse
import shutil
from pathlib import Path

from cssr.utils.cli import Parser, run_command
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
            shutil.copytree(folder(name), out / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            print(f"{out / name} written")
    return 0


def _title(path: Path) -> str:
    """The first comment of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = (line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith("#!"))
    return next(comments, "")
