"""Exports on the Hugging Face Hub: find in the local cache, fetch, stage with a model card, push.

Only `config.json` and `model.safetensors` are ever fetched: no pickles, no code. huggingface_hub's PyTorchModelHubMixin
is not used: its `from_pretrained` always downloads, and builds whatever untrusted settings name.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from cssr.models.export import SETTINGS, WEIGHTS, read_export, write_export
from cssr.models.model_card import without_paths, write_card
from cssr.utils.files import identity, naming_path, write_atomic, write_together

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_PATIENCE = 10  # seconds for the Hub's first answer
_CACHED = "models--"  # how the folders of the Hub's cache begin
SAMPLES = "samples.png"

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def is_hub_name(source: str | Path) -> bool:
    """True if `source` has the form `owner/name` of a model on the Hub and is no local path."""
    return bool(NAME.fullmatch(str(source))) and not Path(source).exists()


def came_from_hub(directory: Path) -> bool:
    """True if a directory is in a cache of the Hub, so that its contents are not trusted."""
    paths = directory.absolute(), Path(os.path.realpath(directory))
    return any(part.startswith(_CACHED) for path in paths for part in path.parts)


def check_untrusted(model: Mapping[str, Any], imports: Any, source: str) -> None:
    """Raise ValueError for untrusted settings that run code or read further files; one line, with the remedy.

    Args:
        model, imports: of the `config.json`. source: named in the error.
    """
    paths = [text for text in _strings(model) if "/" in text or "\\" in text or ":" in text]
    action = f"import {imports}, which runs their code" if imports else f"read {paths[0]}" if paths else None
    if action:
        raise ValueError(
            f"{source} comes from the Hub and wants to {action}: if you have looked at it and trust it, pass trust=True"
        )


def _strings(settings: Any) -> Iterator[str]:
    """All strings in nested settings, except `pretrained`, which has no effect on a loaded model."""
    if isinstance(settings, Mapping):
        settings = [value for key, value in settings.items() if key != "pretrained"]
    if isinstance(settings, list):
        for value in settings:
            yield from _strings(value)
    elif isinstance(settings, str):
        yield settings


def fetch(name: str, download: bool = False, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Directory of a model of the Hub in the local cache, downloaded if asked for.

    Args:
        name: `owner/name`.
        download: query the Hub; otherwise only the local cache.
        revision: branch, tag or commit; None: main.
        token: access token for private models; None: that of `hf auth login`.
    Raises: ValueError, one line: not in the cache, not on the Hub, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download

    options = {"revision": revision, "token": token, "local_files_only": not download, "library_name": "cssr"}
    try:
        if download:  # asked once, where a file is asked for six times before the library gives up
            HfApi(endpoint=constants.ENDPOINT, token=token).model_info(name, revision=revision, timeout=_PATIENCE)
        directory = Path(hf_hub_download(name, SETTINGS, **options)).parent
        options["revision"] = directory.name  # both files of one commit
        return Path(hf_hub_download(name, WEIGHTS, **options)).parent
    except Exception as error:  # of the library, of its HTTP client, of the disk
        raise ValueError(_explain(name, download, revision, error)) from None


def _explain(name: str, download: bool, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants, errors

    what = name if revision is None else f"{name} at {revision}"
    if not download:
        return (
            f"no export at {name}: there is no such directory, and {what} is not in this machine's cache of the Hub; "
            "to fetch it, pass download=True or run: python -m cssr.hub pull " + name
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        where = constants.ENDPOINT
        return f"{name} is not on {where}, or is private: check the name, pass token=..., or log in (hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision}: give a branch, a tag or a commit of it"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"{what} is no export of cssr: it lacks {SETTINGS} or {WEIGHTS}"
    return f"{what} cannot be fetched from {constants.ENDPOINT}: {reason(error)}"


def reason(error: Exception) -> str:
    """One-line message of the error's cause, or of the error if it has none."""
    cause = error.__cause__ or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:300]


def stage(
    name: str, licence: str, export: Path, out: Path, run: Path | None = None, results: Iterable[Path] = ()
) -> list[Path]:
    """Write the files to push to `out`: `model.safetensors`, `config.json`, `README.md`, and samples of the run.

    Local paths are removed from the settings.

    Returns: the files.
    Raises: ValueError, one line, for a name or licence that the Hub does not take, no export, or damaged results.
    """
    check(name, licence)
    settings = read_export(export)
    if not (export / WEIGHTS).is_file():
        raise ValueError(f"no weights at {export / WEIGHTS}")
    settings = {**settings, "sha256": identity(export / WEIGHTS)["sha256"]}  # which exports of before do not carry
    card = write_card(name, licence, settings, run, results)
    samples = sorted((run / "samples").glob("*.png"))[-1:] if run else []
    if samples:
        card += f"\n## Samples\n\nValidation images: LQ, SR, HR, probability, mask.\n\n![samples]({SAMPLES})\n"
    with naming_path(out):
        out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(without_paths(settings), indent=2) + "\n"
    contents: dict[str, str | bytes] = {WEIGHTS: (export / WEIGHTS).read_bytes(), SETTINGS: text, "README.md": card}
    if samples:
        contents[SAMPLES] = samples[0].read_bytes()
    files = {out / name: content for name, content in contents.items()}
    write_together(files)
    return [*files]


def pack(
    model: nn.Module,
    name: str,
    licence: str,
    export: Path,
    out: Path,
    run: Path | None = None,
    results: Iterable[Path] = (),
    notes: Path | None = None,
) -> list[Path]:
    """Write an export in half precision with its model card, as the package holds its models.

    Args:
        model: of the export. name: of the model, in its card.
        results: evaluations of these very weights, which are in `out` after a first call.
        notes: Markdown that the card takes in (training data, licences).
    Returns: the files.
    Raises: ValueError, one line, for a licence that is none, no export, damaged results, notes that cannot be read.
    """
    _check_licence(licence)
    text = "" if notes is None else _read_notes(notes)
    settings = without_paths(read_export(export))
    write_export(model, settings, out, half=True)
    card = write_card(name, licence, read_export(out), run, results)
    write_atomic(out / "README.md", f"{card}\n{text}" if text else card)
    return [out / file for file in (WEIGHTS, SETTINGS, "README.md")]


def _read_notes(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"--notes: {path} cannot be read as text: {reason(error)}") from None


def check(name: str, licence: str) -> None:
    """Raise ValueError, one line, for a name or licence that the Hub would refuse."""
    if not NAME.fullmatch(name) or "--" in name or ".." in name:
        raise ValueError(f"the name on the Hub must be owner/name, of letters, digits, - _ and ., got {name!r}")
    _check_licence(licence)


def _check_licence(licence: str) -> None:
    if not _LICENCE.fullmatch(licence):
        raise ValueError(
            f"the licence must be one as the Hub names them (apache-2.0, cc-by-4.0, other), got {licence!r}"
        )


def push(files: Sequence[Path], name: str, private: bool = True, token: str | None = None) -> str:
    """Push the files of `stage` in one commit; the model repository is created if missing.

    Args:
        private: visible to the owner only. Pushing to an existing public model as a private one is refused.
        token: access token; None: that of `hf auth login`.
    Returns: the address of the commit.
    Raises: ValueError, one line, for what the Hub or the network refuses.
    """
    from huggingface_hub import HfApi

    api, folder = HfApi(token=token, library_name="cssr"), files[0].parent
    what = {"commit_message": "Push an export of cssr", "allow_patterns": [path.name for path in files]}
    try:
        api.create_repo(name, private=private, exist_ok=True)
        public = private and not api.repo_info(name).private
        if not public:
            return str(api.upload_folder(repo_id=name, folder_path=folder, **what))
    except Exception as error:  # of the library, of its HTTP client
        hint = ": log in (hf auth login) or pass a token that may write" if "401" in str(error) else ""
        raise ValueError(f"{name} cannot be pushed to the Hub{hint}: {reason(error)}") from None
    raise ValueError(f"{name} is there already and public: choose another name, or push it as public")
