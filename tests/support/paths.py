"""Where tests find the checkout, their own helpers, golden vectors and real photographs."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent
SHARED = ROOT.parent / "shared"


def need(path: Path) -> Path:
    """`path`, or the test is skipped with the reason."""
    if not path.exists():
        pytest.skip(f"needs {path.relative_to(SHARED.parent)}, which is not here")
    return path
