"""All benchmarks: `python benchmarks/run.py [--only PART ...] [--quick] [--out DIR]`, one table of ratios.

Each part runs in a process of its own, in which each pair, the plain formulation of a thing and ours, is timed in turn
once their results are equal. DIR (default: benchmarks/results) gets report.json, with machine, versions, revision and
settings. A part that fails is named, the others run, and the exit status is 1.

    --markdown [FILE]   only print a table as in docs/speed.md, from FILE (default: DIR/report.json)
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
from harness import parser, write
from tables import markdown, table

HERE = Path(__file__).parent
PARTS = ("startup", "data", "degradation", "losses", "training_step", "evaluation", "inference")
TIMEOUT = 3600  # seconds for a part


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parse_arguments(arguments)
    if options.markdown:
        print("\n".join(markdown(json.loads(options.markdown.read_text(encoding="utf-8")))))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    combined: dict[str, Any] = {"machine": machine.facts(), "settings": {}, "rates": [], "results": [], "failures": []}
    for part in options.only or PARTS:
        print(f"---- {part}", flush=True)
        add_report(combined, part, run(part, part_options(options)))
        write(combined, options.out / "report.json")
    if options.json:
        write(combined, options.json)
    print("\n".join(["", *table(combined), "", f"{options.out}/report.json"]))
    return 1 if combined["failures"] else 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    arg_parser = parser(__doc__)
    arg_parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    arg_parser.add_argument("--out", type=Path, default=HERE / "results", help="directory (benchmarks/results)")
    arg_parser.add_argument("--markdown", nargs="?", type=Path, const=Path(), metavar="FILE", help="see above")
    options = arg_parser.parse_args(arguments)
    if options.markdown == Path():
        options.markdown = options.out / "report.json"
    if options.markdown and not options.markdown.is_file():
        arg_parser.error(f"--markdown: no {options.markdown}; run the benchmarks first, or name a report")
    return options


def part_options(options: argparse.Namespace) -> list[str]:
    """Options that are passed to each part."""
    quick = ["--quick"] if options.quick else []
    return [*quick, "--threads", str(options.threads), "--clock", options.clock]


def run(part: str, options: Sequence[str]) -> dict[str, Any]:
    """Run a part; its report, or one with the failure if it left none."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "report.json"
        command = [sys.executable, str(HERE / f"{part}.py"), *options, "--json", str(path)]
        try:
            status = f"exit status {subprocess.run(command, timeout=TIMEOUT).returncode}"
        except subprocess.TimeoutExpired:
            status = f"not done after {TIMEOUT} s"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    reason = f"no report ({status})"
    return {"settings": {}, "rates": [], "results": [], "failures": [{"name": part, "reason": reason}]}


def add_report(combined: dict[str, Any], part: str, facts: dict[str, Any]) -> None:
    """Add a part's report to that of all parts."""
    combined["settings"] |= facts["settings"]
    known = combined["rates"]
    known += [rate for rate in facts["rates"] if not any(same_setup(rate, other) for other in known)]
    combined["results"] += [{"part": part, **line} for line in facts["results"]]
    combined["failures"] += [{"part": part, **line} for line in facts["failures"]]


def same_setup(rate: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two rates are of one device, clock and number of threads; only the first is shown."""
    return all(rate[key] == other[key] for key in ("device", "clock", "threads"))


if __name__ == "__main__":
    sys.exit(main())
