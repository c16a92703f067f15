"""Models to and from the Hub: `python -m cssr.hub push RUN owner/name --license L`, `pull owner/name`, `pack RUN NAME`.

A push holds the export's two files, a model card written from the run, and sample pictures; it is private by default.
`pack` writes an export in half precision with its card, as the package holds its own models.
A pull fetches the two files of an export into this machine's cache, where every command then finds `owner/name`.
"""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.handle_signals()

import argparse
import sys
import tempfile
from pathlib import Path

from cssr.utils.cli import ExitingParser, exit_on_error, program


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = _parser().parse_args(arguments)
    with exit_on_error():
        options.run(options)


# What follows imports where it begins, as that takes seconds: --help and mistakes are answered before.


def _push(options: argparse.Namespace) -> None:
    from cssr.models.hub import check, push, stage
    from cssr.models.joint import JointModel
    from cssr.models.load import export_in

    check(options.name, options.license)
    if options.dry_run and options.out is None:
        raise ValueError("--dry-run needs --out: where to write what would be pushed")
    export = export_in(options.model)
    JointModel.from_pretrained(export)  # what cannot be loaded is not pushed
    run = options.model if (options.model / "config.yaml").is_file() else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        files = stage(options.name, options.license, export, folder, run, options.results)
        names = ", ".join(path.name for path in files)
        if options.dry_run:
            print(f"{folder}: {names}; nothing was pushed")
            return
        address = push(files, options.name, not options.public)
    print(f"{address}: {names} ({'public' if options.public else 'private'})")


def _pull(options: argparse.Namespace) -> None:
    from cssr.models.hub import fetch
    from cssr.models.joint import JointModel

    directory = fetch(options.name, download=True, revision=options.revision)
    JointModel.from_pretrained(directory, trust=options.trust)
    print(f"{options.name} is in {directory}")


def _pack(options: argparse.Namespace) -> None:
    from cssr.models.hub import pack
    from cssr.models.joint import JointModel
    from cssr.models.load import export_in

    export = export_in(options.model)
    run = options.model if (options.model / "config.yaml").is_file() else None
    what = (options.name, options.license, export, options.out, run, options.results, options.notes)
    files = pack(JointModel.from_pretrained(export), *what)
    print(f"{options.out}: {', '.join(f'{path.name} ({path.stat().st_size / 1e6:.2f} MB)' for path in files)}")


def _parser() -> argparse.ArgumentParser:
    parser = ExitingParser(prog=program("python -m cssr.hub"), description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="push | pack | pull")
    pushing = commands.add_parser("push", help="push the export of a run, with a model card")
    pushing.set_defaults(run=_push)
    pushing.add_argument("model", type=Path, help="run directory or export directory")
    pushing.add_argument("name", help="owner/name on the Hub")
    pushing.add_argument(
        "--license", required=True, help="of the weights, as the Hub names it: apache-2.0, cc-by-4.0, other"
    )
    pushing.add_argument(
        "--results", type=Path, nargs="+", default=[], help="further results.json files, or folders of them"
    )
    pushing.add_argument("--public", action="store_true", help="for everybody to see (private)")
    pushing.add_argument("--dry-run", action="store_true", help="write what would be pushed to --out, and push nothing")
    pushing.add_argument("--out", type=Path, help="directory for what is pushed (a temporary one)")
    packing = commands.add_parser("pack", help="write an export in half precision with a model card")
    packing.set_defaults(run=_pack)
    packing.add_argument("model", type=Path, help="run directory or export directory")
    packing.add_argument("name", help="of the model, in its card")
    packing.add_argument("--license", required=True, help="of the weights: apache-2.0, cc-by-4.0, other")
    packing.add_argument("--out", type=Path, required=True, help="directory to write to")
    packing.add_argument("--results", type=Path, nargs="+", default=[], help="results.json files of what is in --out")
    packing.add_argument("--notes", type=Path, help="Markdown for the card: training data and licences")
    pulling = commands.add_parser("pull", help="fetch a model into this machine's cache of the Hub")
    pulling.set_defaults(run=_pull)
    pulling.add_argument("name", help="owner/name on the Hub")
    pulling.add_argument("--revision", help="branch, tag or commit (main)")
    pulling.add_argument("--trust", action="store_true", help="import the modules that its settings name")
    return parser


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
