"""An export on the Hugging Face Hub: from the cache on this machine or, when told so, from there.

Only `config.json` and `model.safetensors` are ever fetched: no pickles, no code.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cssr.models.export import SETTINGS, WEIGHTS

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_PATIENCE = 10  # seconds for the Hub's first answer
_CACHED = "models--"  # how the folders of the Hub's cache begin


def is_hub_name(source: str | Path) -> bool:
    """Whether `source` can only be a model of the Hub, `owner/name`: nothing lies at that path."""
    return bool(NAME.fullmatch(str(source))) and not Path(source).exists()


def came_from_hub(directory: Path) -> bool:
    """Whether a directory lies in a cache of the Hub, so that somebody else may have written what is in it."""
    return any(part.startswith(_CACHED) for part in (*directory.absolute().parts, *directory.resolve().parts))


def check_untrusted(model: Mapping[str, Any], imports: Any, source: str) -> None:
    """Refuse settings of somebody else's that run code or read further files; ValueError, one line, names the remedy.

    Args:
        model, imports: of the `config.json`. source: what is told of.
    """
    found = [text for text in _texts(model) if "/" in text or "\\" in text or ":" in text]
    asked = f"import {imports}, which runs their code" if imports else f"read {found[0]}" if found else None
    if asked:
        raise ValueError(
            f"{source} comes from the Hub and wants to {asked}: if you have looked at it and trust it, pass trust=True"
        )


def _texts(settings: Any) -> Iterator[str]:
    """The texts in settings, but for `pretrained`, which has no effect on a model that is loaded."""
    if isinstance(settings, Mapping):
        settings = [value for key, value in settings.items() if key != "pretrained"]
    if isinstance(settings, list):
        for value in settings:
            yield from _texts(value)
    elif isinstance(settings, str):
        yield settings


def fetch(name: str, download: bool = False, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The directory with the two files of a model on the Hub.

    Args:
        name: `owner/name`.
        download: whether to ask the Hub; otherwise only the cache on this machine is looked at.
        revision: branch, tag or commit; None: main.
        token: of a private model; None: the one with which `hf auth login` has logged in.
    Raises: ValueError, one line: what is not in the cache, not on the Hub, not to be reached.
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
        raise ValueError(_told(name, download, revision, error)) from None


def _told(name: str, download: bool, revision: str | None, error: Exception) -> str:
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
    """What an error says, in one line, with the one that caused it."""
    cause = error.__cause__ or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
