"""List the items of a source, part by part; an error becomes a finding, and the rest is listed all the same."""

import inspect
import re
from pathlib import Path
from typing import Any

from cssr.dataset_preparation.audit.examine import FileState
from cssr.dataset_preparation.audit.findings import ERROR, NOTE, WARNING, Case, Finding, Part
from cssr.dataset_preparation.make import with_safe_keys
from cssr.dataset_preparation.masks import IMAGE_SUFFIXES
from cssr.dataset_preparation.sources import SOURCES, Source
from cssr.utils.image_files import BESIDE, LIKE_IMAGES, filter_by_suffix, is_litter, lost_links_note, walk

_FAULT = re.compile(r"^missing|duplicate key|is empty|name no picture|a picture twice|is not in UTF-8")
_PARTS = re.compile(r"choose with --split from: ([^;]+)")


def list_parts(name: str, options: dict[str, Any], against: str | None) -> tuple[list[Part], list[Finding]]:
    """The parts of a dataset, unread, and the findings of their listing.

    Args:
        name: of the source; `options`: its own.
        against: a part, or another folder of the same layout, to compare the others with.
    Raises: ValueError where nothing can be listed for another reason than a fault of the dataset.
    """
    chosen = {part: {**options, "split": part} for part in _parts_of(name, options)} or {"": options}
    chosen.pop(against, None)
    parts, findings = [], []
    for label, part_options in chosen.items():
        source, faults = _open(name, part_options)
        findings += faults
        if source:
            parts.append(_part(label or options.get("split") or "", source, "", part_options))
            findings += _unused(parts[-1], part_options) if faults else []
    if masks := filter_by_suffix(walk(options["root"]), [BESIDE]) if options.get("root") else []:
        message = "not read, as they must be within the TIFF (GDAL_TIFF_INTERNAL_MASK=YES)"
        entries = [{"file": str(path)} for path in masks]
        findings.append(Finding(WARNING, "masks of missing pixels", message, entries))
    if lost := lost_links_note(options["root"]) if options.get("root") else "":
        findings.append(Finding(WARNING, "links", lost, []))
    return parts + (_compared(name, options, against) if against else []), findings


def _parts_of(name: str, options: dict[str, Any]) -> list[str]:
    """The parts to go through where none was chosen, and there are any: the source says so itself when it refuses."""
    if options.get("split", "") is not None:
        return []
    try:
        SOURCES.build({"name": name, **options})
    except ValueError as problem:
        parts = _PARTS.search(str(problem))
        return parts[1].split(", ") if parts else []
    return []


def _open(name: str, options: dict[str, Any]) -> tuple[Source | None, list[Finding]]:
    """A source, without unpaired files where it can pass over them, and findings; None if it cannot be listed.

    Raises: ValueError for a mistake on the command line.
    """
    try:
        source = SOURCES.build({"name": name, **options})
        return source, _notes(source)
    except ValueError as problem:
        if not _FAULT.search(str(problem)):
            raise
        findings = [Finding(ERROR, "listing", " ".join(str(problem).replace(root_prefix(options), "").split()))]
    if options.get("skip_unpaired") is not False:
        return None, findings
    try:
        source = SOURCES.build({"name": name, **options, "skip_unpaired": True})
    except ValueError:
        return None, findings
    return source, findings + _notes(source)


def _notes(source: Source) -> list[Finding]:
    return [Finding(NOTE, "source", note) for note in source.notes]


def root_prefix(options: dict[str, Any]) -> str:
    """The prefix of paths in messages; something that does not occur where there is no root."""
    return f"{options['root']}/" if options.get("root") else "\0"


def _part(label: str, source: Source, prefix: str, options: dict[str, Any], compared: bool = False) -> Part:
    cases = [Case(label, prefix + item.origin, item, FileState()) for item in source.items]
    return Part(label, cases, source, root_prefix(options), compared)


def _compared(name: str, options: dict[str, Any], against: str) -> list[Part]:
    """The parts of --against; ValueError where there are none."""
    parameters = inspect.signature(SOURCES.get(name)).parameters
    if "root" in parameters and Path(against).is_dir():
        options, prefix = {**options, "root": Path(against)}, f"{against}/"
        if "split" in parameters:
            options["split"] = None
    elif "split" in parameters:
        options, prefix = {**options, "split": against}, ""
    else:
        raise ValueError(f"--against {against} is no folder, and {name} has no parts; give a folder")
    parts = []
    for part in _parts_of(name, options) or [None]:
        source, faults = _open(name, {**options, "split": part} if part else options)
        if not source:
            raise ValueError(f"--against {against}: {faults[0].message}")
        label = "/".join(filter(None, (against, part)))
        parts.append(_part(label, source, prefix, options, compared=True))
    return parts


def _unused(part: Part, options: dict[str, Any]) -> list[Finding]:
    """Files beside those of the samples that belong to none: where pairs were missed, it is these."""
    root = options.get("root")
    if not root:
        return []
    used = {path for case in part.cases for path in case.item.files or ()}
    suffixes = {*IMAGE_SUFFIXES, *(path.suffix.lower() for path in used)}
    beside = (path for directory in sorted({path.parent for path in used}) for path in sorted(directory.iterdir()))
    beside = (path for path in beside if path.is_file() and not is_litter(path.name) and path not in used)
    beside = (path for path in beside if path.suffix.lower() in {*suffixes, *LIKE_IMAGES})
    entries = [
        {"file": path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)} for path in beside
    ]
    return [Finding(NOTE, "files of no sample", "beside the others, left out", entries)] if entries else []


def check_keys(part: Part) -> list[Finding]:
    """Names that become the same in a tar, or cannot be written down."""
    try:
        with_safe_keys(part.source)
    except ValueError as problem:
        return [Finding(ERROR, "names", str(problem).replace(part.prefix, ""))]
    return []
