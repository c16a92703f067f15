"""cssr: joint training of super-resolution and crack segmentation, from one photograph to many nodes."""

__version__ = "0.1.0"

_PUBLIC = {
    "JointModel": "cssr.models.joint",
    "build_model": "cssr.models.joint",
    "load_config": "cssr.config.loading",
    "load_model": "cssr.models.load",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    """Public names are imported when first used, so that `import cssr` costs nothing."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cssr' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
