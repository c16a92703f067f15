"""Recipes and launch files: this checkout's, or those installed with the package."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = {"configs": "recipes", "launch": "launch/files"}  # of the package, see [options.package_dir] in setup.cfg


def folder(name: str) -> Path:
    """The folder `configs` or `launch`: of the checkout around the package; without one, of the package."""
    checkout = _PACKAGE.parent
    return checkout / name if (checkout / "setup.cfg").is_file() else _PACKAGE / _INSTALLED[name]


def find_file(path: str | Path, name: str) -> Path:
    """`path`, where there is such a file; otherwise that of `folder(name)`, with or without `name/` and `.yaml`.

    A folder called `tiny` does not hide the recipe.

    Returns: `path` as it is where neither exists.
    """
    path = Path(path).expanduser()
    if path.is_absolute() or (path.exists() and not path.is_dir()):
        return path
    inner = Path(*path.parts[1:]) if path.parts[:1] == (name,) else path
    there = (folder(name) / candidate for candidate in (inner, f"{inner}.yaml"))
    return next((candidate for candidate in there if candidate.is_file()), path)
