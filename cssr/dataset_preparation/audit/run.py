"""Examine a whole dataset before it is sharded: all that is wrong with it, not the first thing only.

    python shards/doctor.py folder --root cracks --out report
    python shards/doctor.py folder --root cracks --split train --against val
    python shards/doctor.py khanhha --root crack_segmentation_dataset --workers 8

Pairs, sizes, damage, colour modes, EXIF orientation, mask values, empty and full masks, copies (the same pixels),
near-duplicates (a perceptual hash, however turned or mirrored) and images that show the same spot (overlapping tiles
and photographs), within and across the parts: all of them, where the layout has parts and --split names none. With
--out it writes doctor.json (all findings, by path) and doctor.png (pictures of it).

Exit status: 0 the set may be sharded, 1 it must not be as it is (there are errors; warnings do not count), 2 a mistake
on the command line or no way to finish, 130 interrupted.
"""

import argparse
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cssr import __version__
from cssr.dataset_preparation.audit import contact_sheet
from cssr.dataset_preparation.audit.examine import Crack, FileState, inspect_files, measure
from cssr.dataset_preparation.audit.figures import lines, tally
from cssr.dataset_preparation.audit.findings import (
    ERROR,
    NOTE,
    WARNING,
    Case,
    Finding,
    Part,
    of_copies,
    of_files,
    of_groups,
    of_links,
    of_masks,
    of_overlaps,
    of_pictures,
)
from cssr.dataset_preparation.audit.listing import check_keys, list_parts
from cssr.dataset_preparation.audit.similarity import BITS, check_library, find_links, find_overlaps, groups_of
from cssr.dataset_preparation.options import build_parser, check_source
from cssr.dataset_preparation.parallel import imap, with_progress
from cssr.dataset_preparation.sources import SOURCES, MaskRule
from cssr.dataset_preparation.split import DOCTOR_FORMAT
from cssr.utils.cli import check_bits, program, run_command
from cssr.utils.files import naming_path, write_atomic
from cssr.utils.images import encode_image
from cssr.utils.machine import check_processes, cores

NEAR = 40  # bits of 256: recompressed, resized, brightened copies differ in 25 at most, other photographs in 90 or more
MAX_COMPARED = 12_000  # images among which overlaps are looked for by default: 5 GB


def _add_common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--out", type=Path, metavar="DIR", help="folder for doctor.json and doctor.png; none are written without it")
    about = "compare with the images of another part, or of a folder laid out alike"
    add("--against", metavar="DIR_OR_SPLIT", help=about)
    add("--near", type=int, default=NEAR, metavar="N", help=f"near-duplicates differ in N of {BITS} bits (%(default)s)")
    about = f"look for images of the same spot (as a rule among up to {MAX_COMPARED} images)"
    add("--overlaps", action=argparse.BooleanOptionalAction, help=about)
    add("--workers", type=int, default=cores(), help="processes (%(default)s)")
    add("--seed", type=int, default=0, help="of drawn pictures (%(default)s)")


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse and check the command line; ValueError with a remedy for what makes no sense."""
    check_source(argv, program("doctor.py"))
    args = build_parser("doctor.py", __doc__, _add_common).parse_args(argv)
    check_processes(args.workers, "--workers", gib=0.2, least=1)
    if not -1 <= args.near <= BITS // 4:
        raise ValueError(f"--near is {args.near}; give 0 to {BITS // 4} bits, or -1 to look for none")
    if args.near >= 0:
        check_library()
    if args.out and args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} exists and is no folder; choose another name")
    return args


def examine(args: argparse.Namespace) -> tuple[list[Part], list[Case], list[Finding]]:
    """Do what the command line asks. Returns the parts, all samples, and the findings, the worst first."""
    options = {name: getattr(args, name) for name in inspect.signature(SOURCES.get(args.source)).parameters}
    check_bits(args.bits)
    parts, findings = list_parts(args.source, options, args.against)
    for part in parts:
        findings += check_keys(part)
    cases = [case for part in parts for case in part.cases]
    overlaps = len(cases) <= MAX_COMPARED if args.overlaps is None else args.overlaps
    findings += _inspect(parts, cases, args.near >= 0, overlaps, args.workers, args.bits)
    findings += [*of_files(cases), *of_pictures(cases)]
    findings += _measure(parts, cases, args.workers)
    for part in parts:
        findings += of_masks(part, cases, f" ({part.name})" if len(parts) > 1 else "")
    findings += _relate(cases, args.near, overlaps, args.workers)
    findings += _skipped_checks(args, overlaps, len(cases))
    return parts, cases, sorted(findings, key=lambda finding: (ERROR, WARNING, NOTE).index(finding.severity))


def _inspect(
    parts: list[Part], cases: list[Case], near: bool, overlaps: bool, workers: int, bits: int | None
) -> list[Finding]:
    """Read all files, fill in what they are, and let each part's source decide what in its masks is crack."""
    owner = [part for part in parts for _ in part.cases]

    def work(n: int) -> FileState:
        return inspect_files(cases[n].item, owner[n].prefix, near, overlaps, owner[n].compared, bits)

    for case, state in zip(cases, with_progress(imap(work, len(cases), workers), len(cases), "reading")):
        case.state = state
    return [finding for part in parts if part.source.decide and not part.compared for finding in _decide(part)]


def _decide(part: Part) -> list[Finding]:
    """The rule of a part, from the values that its masks were seen to hold."""
    read = [case for case in part.cases if case.state.values]
    items = [replace(case.item, mask=lambda v=case.state.values: np.repeat([*v], [*v.values()])) for case in read]
    if not items:
        return []
    try:
        part.rule = part.source.decide(items)
    except ValueError as problem:
        middle = 127 if max(max(case.state.values) for case in read) > 127 else 0
        part.rule = MaskRule(f"undecided; for the figures below, value > {middle}", lambda values: values > middle)
        part.decided = False
        return [Finding(ERROR, "mask values" + (f" ({part.name})" if part.name else ""), str(problem))]
    return []


def _measure(parts: list[Part], cases: list[Case], workers: int) -> list[Finding]:
    rules = {part.name: part for part in parts if part.rule}
    chosen = [case for case in cases if case.state.values is not None and case.part in rules]

    def work(n: int) -> Crack:
        part = rules[chosen[n].part]
        return measure(chosen[n].item, part.rule, part.prefix)

    for case, crack in zip(chosen, with_progress(imap(work, len(chosen), workers), len(chosen), "measuring")):
        case.crack = crack
    sentences = {part.rule.sentence: name for name, part in rules.items()}
    if len(sentences) < 2:
        return []
    rules_of_parts = "; ".join(f"{name}: {sentence}" for sentence, name in sentences.items())
    return [Finding(WARNING, "mask rules of the parts", f"they differ: {rules_of_parts}")]


def _relate(cases: list[Case], near: int, overlaps: bool, workers: int) -> list[Finding]:
    """Copies, near-duplicates, overlaps. Of copies, and of near-duplicates, one is looked at further."""
    findings = of_copies(cases)
    first = {case.state.digest: n for n, case in reversed(list(enumerate(cases))) if case.state.digest}
    alone = sorted(first.values())
    if near >= 0:
        chosen = np.array([n for n in alone if cases[n].state.hashes is not None], np.int64)
        hashes = np.array([cases[n].state.hashes for n in chosen]).reshape(-1, 8, BITS // 8)
        links = find_links(hashes, near, workers)
        links = links._replace(first=chosen[links.first], second=chosen[links.second])
        findings += of_links(cases, links)
        alone = sorted(set(alone) - set(links.second.tolist()))
    if overlaps:
        chosen = [n for n in alone if cases[n].state.features is not None]
        pairs = find_overlaps([cases[n].state.features for n in chosen], workers)
        pairs = [pair._replace(first=chosen[pair.first], second=chosen[pair.second]) for pair in pairs]
        findings += of_overlaps(cases, pairs)
    return findings + of_groups(cases)


def _skipped_checks(args: argparse.Namespace, overlaps: bool, count: int) -> list[Finding]:
    """Notes about checks that were skipped."""
    skipped = []
    if args.near < 0:
        skipped.append("near-duplicates (--near)")
    if not overlaps:
        skipped.append(f"images of the same spot (--overlaps; {0.4 * count / 1000:.1f} GB of memory)")
    return [Finding(NOTE, "not looked for", check) for check in skipped]


def to_json(args: argparse.Namespace, parts: list[Part], cases: list[Case], findings: list[Finding]) -> dict[str, Any]:
    """Contents of doctor.json; paths are relative to the root."""
    options = {name: getattr(args, name) for name in inspect.signature(SOURCES.get(args.source)).parameters}
    return {
        "format": DOCTOR_FORMAT,
        "tool_version": __version__,
        "source": args.source,
        "options": {name: value for name, value in options.items() if name != "root"},
        "against": args.against,
        "near": args.near,
        "may_be_sharded": not any(finding.severity == ERROR for finding in findings),
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "message": finding.message,
                "count": len(finding.entries),
                "entries": finding.entries,
            }
            for finding in findings
        ],
        "related": _related(cases, findings),
        "parts": {part.name: tally(part, cases) for part in parts},
    }


def _related(cases: list[Case], findings: list[Finding]) -> list[list[dict[str, str]]]:
    """Groups of samples related by pixels, hash or spot: a fair split keeps each in one part."""
    groups = [
        group
        for finding in findings
        if finding.entries and "images" in finding.entries[0]
        for group in finding.pictures
    ]
    links = np.array([pair for group in groups for pair in zip(group, group[1:])], np.int64).reshape(-1, 2)
    together = groups_of(links[:, 0], links[:, 1], len(cases))
    return [[{"part": cases[n].part, "key": cases[n].item.key, "image": cases[n].path} for n in g] for g in together]


def report(args: argparse.Namespace, parts: list[Part], cases: list[Case], findings: list[Finding]) -> bool:
    """Print the findings, write what --out asks for. Returns whether the set may be sharded."""
    facts = to_json(args, parts, cases, findings)
    for name, figures in facts["parts"].items():
        print(*lines(name, figures), sep="\n")
    print(*(finding.line() for finding in findings), sep="\n")
    if args.out:
        with naming_path(args.out):
            args.out.mkdir(parents=True, exist_ok=True)
            write_atomic(args.out / "doctor.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
            sheet = contact_sheet.draw(cases, findings, {part.name: part for part in parts})
            write_atomic(args.out / "doctor.png", encode_image(sheet))
        print(f"all of it: {args.out / 'doctor.json'}; pictures: {args.out / 'doctor.png'}")
    errors, warnings = (sum(f.severity == severity for f in findings) for severity in (ERROR, WARNING))
    summary = f"{errors} kinds of errors, {warnings} of warnings"
    print(f"{'may' if facts['may_be_sharded'] else 'must not'} be sharded: {summary}")
    return facts["may_be_sharded"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code, see above."""
    return run_command(lambda words: _run(read_arguments(words)), argv, "run the command again")


def _run(args: argparse.Namespace) -> int:
    return 0 if report(args, *examine(args)) else 1
