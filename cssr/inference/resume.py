"""Resume of predictions: a record beside the results of each photograph, written last."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cssr import __version__
from cssr.models.joint import JointModel
from cssr.utils.files import write_atomic
from cssr.utils.json_files import read_json

ENDING = "_prediction.json"


def model_digest(model: JointModel) -> str:
    """sha256 of the weights, the model settings and this package's version."""
    digest = hashlib.sha256(f"{__version__} {json.dumps(asdict(model.config), sort_keys=True)}".encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """Facts by which a photograph is known again: size and time of change."""
    stat = path.stat()
    return {"bytes": stat.st_size, "changed": stat.st_mtime_ns}


def is_done(record: Path, facts: dict[str, Any]) -> bool:
    """Return whether the results were made from these facts (model, options, photograph) and are all there."""
    earlier = read(record)
    if earlier is None or earlier["facts"] != json.loads(json.dumps(facts)):
        return False
    return all(_file_size(record.with_name(name)) == size for name, size in earlier["files"].items())


def read(record: Path) -> dict[str, Any] | None:
    """{"facts", "files": {name: bytes}, "found"}; None without a valid record."""
    try:
        return read_json(record, {"facts": dict, "files": dict[str, int], "found": dict})
    except ValueError:
        return None


def write(record: Path, facts: dict[str, Any], files: dict[str, int], summary: dict[str, Any]) -> None:
    """Mark a photograph as done: `files` by size, `summary`: facts of the photograph's results."""
    write_atomic(record, json.dumps({"facts": facts, "files": files, "found": summary}, indent=1))


def mark_unfinished(record: Path) -> dict[str, Any] | None:
    """Mark a photograph as unfinished, keeping the list of its files. Returns what the record held."""
    earlier = read(record)
    if earlier is None:
        record.unlink(missing_ok=True)
    else:
        write(record, {}, earlier["files"], {})
    return earlier


def remove_stale(record: Path, earlier: dict[str, Any] | None, files: dict[str, int]) -> None:
    """Remove the files of an earlier record that have not been written anew."""
    for name in (earlier or {"files": {}})["files"].keys() - files.keys():
        record.with_name(Path(name).name).unlink(missing_ok=True)


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
