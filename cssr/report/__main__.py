"""Report of evaluations side by side: `python -m cssr.report RESULTS... --out DIR`."""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.handle_signals()

import argparse
import sys
from pathlib import Path

from cssr.utils.cli import ExitingParser, exit_on_error, program


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = _parser().parse_args(arguments)
    if options.survey is None:
        _report(options)
    else:
        _survey(options)


def _survey(options: argparse.Namespace) -> None:
    from cssr.survey.report import write_report

    with exit_on_error():
        if options.results:
            raise ValueError(
                f"--survey takes no other results, got {options.results[0]}: compare those in another call"
            )
        written = write_report(options.survey, options.out, options.title)
    print(*(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in written), sep="\n")
    if len(written) == 1:
        print("no PDF: pip install 'cssr[pdf]' (and the system's Pango), or print the page", file=sys.stderr)


def _report(options: argparse.Namespace) -> None:
    if not options.results:
        sys.exit("error: name results.json files or directories of results, or --survey DIR")
    # Imported here, as these take seconds: --help and mistakes are answered without.
    from cssr.evaluation.results import load
    from cssr.report.columns import find_reference
    from cssr.report.facts import caveats
    from cssr.report.markdown import image_table
    from cssr.report.write import write

    with exit_on_error():
        results = load(options.results)
        base = find_reference(results, options.reference)
        path = write(results, base, options.out, options.title)
    size = path.with_suffix(".html").stat().st_size / 1e6
    written = f"written to {path.parent}: report.html ({size:.1f} MB), report.md, table.tex, table.csv"
    print(image_table(results, base), *caveats(results), written, sep="\n\n")


def _parser() -> argparse.ArgumentParser:
    description = "Results side by side: one page of HTML that opens offline, and Markdown, LaTeX and CSV."
    parser = ExitingParser(prog=program("python -m cssr.report"), description=description)
    parser.add_argument("results", nargs="*", type=Path, help="results.json files, or run or evaluation directories")
    parser.add_argument("--survey", type=Path, metavar="DIR", help="instead: a document to print, HTML and PDF, of the "
        "survey that cssr.predict --measure has written")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="directory for the report's files")
    parser.add_argument("--title", help="heading of the report")
    parser.add_argument("--reference", help="result with the IoU_max that is 100 %% (default: the only HR upper bound)")
    return parser


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
