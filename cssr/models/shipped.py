"""Models that come with the package: `small-x4` (blind, x4) and `small-x1` (sharp photographs, not enlarged)."""

from pathlib import Path

DEFAULT = "small-x4"  # of prediction
DIRECTORY = Path(__file__).parent / "pretrained"  # of exports with their model cards


def shipped_models() -> list[str]:
    """Names of the models in this package."""
    return sorted(path.parent.name for path in DIRECTORY.glob("*/config.json"))


def is_shipped(source: str | Path | bool) -> bool:
    """True if `source` names a model of the package; an existing path of that name takes precedence."""
    return str(source) in shipped_models() and not Path(source).exists()


def shipped_directory(name: str | Path) -> Path:
    """Export directory of a model of the package."""
    return DIRECTORY / str(name)
