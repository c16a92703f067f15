"""Turn a dataset on disk, or drawn pictures, into the tars and index.json that training reads.

    python shards/make_shards.py synthetic --out data/demo --ratio train=0.8 val=0.2 --count 400
    python shards/make_shards.py folder --root cracks --split train --out data/cracks/train
    python shards/make_shards.py folder --root photographs --images-only --out data/photographs
    python shards/make_shards.py folder --root bridges --out data/bridges --tile 512 --overlap 64
    python shards/make_shards.py khanhha --root crack_segmentation_dataset --split test --out data/khanhha/test
    python shards/make_shards.py folder --root walls --out data/walls --ratio a=0.9 b=0.1 --groups report/doctor.json
    python shards/make_shards.py --check data/demo --decode

Plain `webdataset.WebDataset` reads the result too. A mistake stops with one line that says what to do, and leaves
nothing behind; the output folder appears only once it is whole. After a kill or on a full disk the same command
continues from the shards that were finished. `make_shards.py SOURCE --help` lists a source's options.
"""

import argparse
import inspect
import re
import sys
from contextlib import closing
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cssr import __version__
from cssr.cracks.masks import MOSTLY
from cssr.dataset_preparation import check as checking
from cssr.dataset_preparation.encode import Form, form_of, measure
from cssr.dataset_preparation.groups import unmatched
from cssr.dataset_preparation.options import read_arguments, read_check_arguments
from cssr.dataset_preparation.pairing import omission_note
from cssr.dataset_preparation.parallel import imap, imap_unordered, with_progress
from cssr.dataset_preparation.show import summarize
from cssr.dataset_preparation.sources import SOURCES, Item, MaskRule, Source
from cssr.dataset_preparation.split import (
    FILE,
    Split,
    apply_split,
    draw_split,
    group_of,
    join_related,
    read_related,
    read_split,
)
from cssr.dataset_preparation.tiles import check_names
from cssr.dataset_preparation.workspace import Workspace, check_free, open_workspace, refuse_another
from cssr.dataset_preparation.writer import Shard, input_states, is_intact, pack, remove_shard, write_index, write_shard
from cssr.utils.cli import run_command
from cssr.utils.files import digest, replace_file
from cssr.utils.image_files import BESIDE, filter_by_suffix, lost_links_note, unread_note, walk


def with_safe_keys(source: Source) -> Source:
    """Keys as tars need them, printable and without dots and slashes, sorted.

    Raises: ValueError where two become the same, or a name cannot be written down.
    """
    named: dict[str, Item] = {}
    for item in source.items:
        key = _safe(item.key)
        try:
            f"{item.key}{item.origin}{group_of(item)}".encode()
        except UnicodeEncodeError:
            raise ValueError(f"the name of {item.origin!r} is not in UTF-8; rename the file") from None
        if key in named:
            raise ValueError(f"duplicate key {key!r}: {named[key].origin} and {item.origin}; rename one of them")
        named[key] = replace(item, key=key)
    return replace(source, items=[named[key] for key in sorted(named)])


def _safe(key: str) -> str:
    return "".join(letter if letter.isprintable() and letter not in "./\\" else "_" for letter in key)


def open_source(args: argparse.Namespace) -> tuple[Source, dict[str, Any]]:
    """List what the source has. Returns it with the options that it was given."""
    options = {option: getattr(args, option) for option in inspect.signature(SOURCES.get(args.source)).parameters}
    source = SOURCES.build({"name": args.source, **options})
    notes = unmatched(options.get("group_pattern"), [item.key for item in source.items])
    source = with_safe_keys(source)
    files = list(walk(options["root"])) if options.get("root") else []
    masks = filter_by_suffix(files, [BESIDE])
    notes += omission_note(
        "masks of missing pixels, which must be within the TIFF (GDAL_TIFF_INTERNAL_MASK=YES)", masks
    )
    warnings = [unread_note(files), lost_links_note(options["root"]) if options.get("root") else ""]
    if args.groups:
        related = read_related(args.groups, args.source, getattr(args, "split", None) or "")
        related = [[_safe(key) for key in group] for group in related]
        known = {item.key for item in source.items}
        notes += omission_note(
            f"images of --groups {args.groups} that are not here", sorted({*sum(related, [])} - known)
        )
        source = replace(source, items=join_related(source.items, related))
    source = replace(source, notes=(*source.notes, *notes, *filter(None, warnings)))
    if args.tiling:
        check_names(source.items)
    return source, options


def make(args: argparse.Namespace) -> list[tuple[Path, dict[str, Any]]]:
    """Do what the command line asks. Returns the folders made and their indexes."""
    check_free(args.out)
    source, options = open_source(args)
    split = draw_split(source.items, args.ratio, args.seed) if args.ratio else None
    split = read_split(args.split_file) if args.split_file else split
    parts = apply_split(split, source.items) if split else {"": source.items}
    plan = _plan(args, source, options, split, parts)
    return write_set(source, parts, plan, _header(args, source, options, split), args, split)


def write_set(
    source: Source,
    parts: dict[str, list[Item]],
    plan: dict[str, Any],
    header: dict[str, Any],
    args: argparse.Namespace,
    split: Split | None = None,
) -> list[tuple[Path, dict[str, Any]]]:
    """Write the items of each part, "" where there is one only, or continue what was begun by the same plan.

    Args:
        plan: what must be the same for an unfinished set to be continued: names for people, values for JSON.
        header: what the index says about the whole.
        args: `out`, `tiling`, `shard_size`, `workers`, `keep`, as on the command line.
    Returns: the folders made and their indexes.
    """
    refuse_another(args.out, plan)
    rule = _decide(source, args.workers)
    print(f"masks: {rule.sentence if rule else 'none'}", *(f"note: {note}" for note in source.notes), sep="\n")
    if rule:
        print(*(f"warning: {note}\n" for note in rule.notes), sep="", end="", file=sys.stderr)
    bits, keep_blank = getattr(args, "bits", None), getattr(args, "keep_blank", True)
    form = form_of(source.items, source.name, rule, args.tiling, bits, keep_blank)
    shards = _shards(parts, args)
    plan |= {"the mask rule": rule.sentence if rule else None, "the shards": digest([s.samples for s in shards])[:16]}
    headers = {name: {**header, "part": name or header.get("part")} for name in parts}
    with open_workspace(args.out, plan, args.keep) as workspace:
        records = _write(shards, form, workspace, args.workers)
        tallies = [record["tally"] for part in records.values() for record in part]
        if rule:
            _warn_of_masks([share for tally in tallies for share in tally["shares"]])
        _warn_of_depths({reason for tally in tallies for reason in tally["converted"]})
        if split:
            replace_file(workspace.tree / FILE, split.to_json())
        return [
            (args.out / name, write_index(workspace.tree / name, records[name], items, form, headers[name]))
            for name, items in parts.items()
        ]


def _warn_of_masks(shares: list[float]) -> None:
    """Warn of masks for which the rule seems to take the wrong values as crack; `shares`: of crack pixels, 0..1."""
    mostly_crack = sum(share > MOSTLY for share in shares)
    if not any(shares):
        print(f"warning: all of {len(shares)} masks are empty; are these the masks?", file=sys.stderr)
    if mostly_crack:
        text = f"{mostly_crack} of {len(shares)} masks are crack by more than half; inverted? doctor.py shows them"
        print(f"warning: {text}", file=sys.stderr)


def _warn_of_depths(reasons: set[str]) -> None:
    """Warn of a set with images that seem to differ in bits: a dark one of 12 bits may show but 10."""
    matches = (re.match(r"(\d+)-bit", reason) for reason in reasons)
    depths = sorted({int(match[1]) for match in matches if match and int(match[1]) > 8})
    if len(depths) > 1:
        listed = " and ".join(map(str, depths))
        print(
            f"warning: values of {listed} bits in one set, by each file; if all have N, say --bits N", file=sys.stderr
        )


def _plan(
    args: argparse.Namespace, source: Source, options: dict[str, Any], split: Split | None, parts: dict[str, list[Item]]
) -> dict[str, Any]:
    names = ("seed", "tile", "overlap", "refuse_small", "bits", "keep_blank", "shard_size", "licence")
    chosen = {**options, **{name: getattr(args, name) for name in names}}
    return {
        "the version of this tool": __version__,
        "the source": source.name,
        **{
            f"--{name.replace('_', '-')}": str(value.absolute()) if isinstance(value, Path) else value
            for name, value in chosen.items()
        },
        "--ratio": split.ratio if split else None,
        "the list of samples": sample_list(parts),
    }


def sample_list(parts: dict[str, list[Item]]) -> str:
    """Number of samples, and a digest of their names and origins."""
    listed = [[name, item.key, item.origin, group_of(item), item.extra] for name in parts for item in parts[name]]
    return f"{len(listed)} ({digest(listed)[:16]})"


def _decide(source: Source, workers: int) -> MaskRule | None:
    """The rule of the set; the masks that its source wants to see are read ahead by several processes."""
    if source.decide is None:
        return None
    items = source.items
    with closing(
        with_progress(imap(lambda n: items[n].mask(), len(items), workers), len(items), "reading masks")
    ) as masks:
        return source.decide(replace(item, mask=lambda values=mask: values) for item, mask in zip(items, masks))


def _shards(parts: dict[str, list[Item]], args: argparse.Namespace) -> list[Shard]:
    """The shards of all parts; the headers of the images say how many tiles each gives."""
    shards = []
    for name, items in parts.items():
        counts = [1] * len(items)
        if args.tiling:
            tiles = imap(lambda n, of=items: measure(of[n], args.tiling), len(items), args.workers)
            counts = list(with_progress(tiles, len(items), "measuring"))
        shards += pack(name, items, counts, args.shard_size)
    return shards


def _header(args: argparse.Namespace, source: Source, options: dict[str, Any], split: Split | None) -> dict[str, Any]:
    """Fields of the index about the whole set. The seed is that of drawn pictures or, without any, of the split."""
    cut = {"ratio": split.ratio, "split_sha256": split.sha256} if split else {"ratio": None}
    return {
        "tool_version": __version__,
        "source": source.name,
        "options": {name: _portable(value) for name, value in options.items() if name not in ("root", "split", "seed")},
        "licence": args.licence or source.licence,
        "split": getattr(args, "split", None),
        **cut,
        "seed": split.seed if split and "seed" not in options else args.seed,
    }


def _portable(value: Any) -> Any:
    """An option as the index has it: of an absolute path, the name."""
    path = isinstance(value, Path) or (isinstance(value, str) and value.startswith("/"))
    return Path(value).name if path else value


def _write(shards: list[Shard], form: Form, workspace: Workspace, workers: int) -> dict[str, list[dict[str, Any]]]:
    """Write the shards that are not finished yet. Returns the records of each part, in order."""
    for part in {shard.part for shard in shards}:
        (workspace.tree / part).mkdir(exist_ok=True)
    finished = _reusable_records(shards, workspace)

    def work(task: int, step: Any) -> tuple[dict[str, Any], bool]:
        shard = shards[task]
        record, directory = finished.get((shard.part, shard.number)), workspace.tree / shard.part
        if record and is_intact(directory, record):
            return record, True
        return write_shard(directory, shard, form, step), False

    reused, total = 0, sum(shard.samples for shard in shards)
    bar = tqdm(total=total, desc="writing", unit=" samples", leave=False, disable=None)
    with bar, closing(imap_unordered(work, len(shards), workers, bar.update)) as results:
        for _, (record, was_finished) in results:
            if was_finished:
                reused += 1
                _advance(bar, record["samples"])
            else:
                workspace.note(record)
    if reused:
        print(f"{reused} of {len(shards)} shards were finished before, and are kept")
    ordered = [workspace.finished[shard.part, shard.number] for shard in shards]
    return {part: [r for r in ordered if r["part"] == part] for part in {shard.part for shard in shards}}


def _reusable_records(shards: list[Shard], workspace: Workspace) -> dict[tuple[str, int], dict[str, Any]]:
    """The records of finished shards with unchanged inputs; the tars of the others are removed."""
    valid, changed, discarded = dict(workspace.finished), [], 0
    for shard in shards:
        record = valid.get((shard.part, shard.number))
        if record is None:
            continue
        states, known = input_states(shard.items), record.get("inputs")
        if states is None or [*states.values()] != known:
            changed += [
                path for path, state in zip_longest(states or (), known or ()) if path and states[path] != state
            ]
            del valid[shard.part, shard.number]
            remove_shard(workspace.tree / shard.part, record)
            discarded += 1
    if discarded:
        changed = [*dict.fromkeys(changed)]
        more = f" and {len(changed) - 1} other files" if changed[1:] else ""
        reason = f"{changed[0]}{more} changed since" if changed else "the source does not say which files it reads"
        print(f"{discarded} of {len(shards)} shards were finished before, but are written anew: {reason}")
    return valid


def _advance(bar: tqdm, samples: int) -> None:
    """Advance a progress bar without counting the samples in its rate."""
    if not bar.disable:
        bar.n, bar.initial, bar.last_print_n = (n + samples for n in (bar.n, bar.initial, bar.last_print_n))
        bar.refresh()


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns the exit code: 0, 1 where --check finds damage, 2 for a mistake of the user, 130 when interrupted.
    """
    return run_command(_run, argv, "nothing was written, run the command again")


def _run(argv: list[str]) -> int:
    if "--check" in argv:
        args = read_check_arguments(argv, checking.__doc__)
        return checking.report(args.check, args.decode, args.workers)
    for directory, index in make(read_arguments(argv, __doc__)):
        print(summarize(directory, index))
    return 0
