"""CrackForest, or CFD (github.com/cuilimeng/CrackForest-dataset): 480 x 320 photographs of streets in Beijing."""

from pathlib import Path

import numpy as np

from cssr.dataset_preparation.layout import pair_folders
from cssr.dataset_preparation.sources import SOURCES, MaskRule, Root, Source, Split

CRACK = 2  # of the labels 1 background, 2 crack, and 3 and 4, which also occur


@SOURCES.register
def crackforest(root: Root, split: Split = None) -> Source:
    """ROOT/image/NNN.jpg and ROOT/groundTruth/NNN.mat; there are no splits."""
    if split is not None:
        raise ValueError(f"unknown split {split!r}: crackforest has none; leave --split out (--ratio makes parts)")
    if not root.is_dir():
        raise ValueError(f"--root {root} is not a folder; give the folder that holds image/ and groundTruth/")
    pairs = pair_folders(root, root / "image", root / "groundTruth", (".mat",))
    rule = MaskRule("groundTruth.Segmentation: crack = 2 (1, 3 and 4 are background)", lambda values: values == CRACK)
    return Source("crackforest", "non-commercial research only", pairs.items(read_segmentation), lambda _: rule)


def read_segmentation(path: Path) -> np.ndarray:
    """The labels of a .mat file, H W; ValueError where it is no such file."""
    from scipy.io import loadmat  # slow to import, and this layout's alone

    try:
        return np.atleast_2d(loadmat(path, squeeze_me=True, struct_as_record=False)["groundTruth"].Segmentation)
    except Exception as problem:  # loadmat raises whatever its parser stumbles over
        raise ValueError(
            f"cannot read mask {path}: it holds no groundTruth.Segmentation ({problem}); download it again"
        ) from problem
