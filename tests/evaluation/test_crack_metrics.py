"""Centre lines and boundaries against plain re-implementations and figures worked out by hand."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, label
from scipy.spatial.distance import cdist
from test_metrics import soft_case

from cssr.cracks.skeleton import thin
from cssr.evaluation.crack_metrics import topology

NAMES = ("cldice", "cliou", "boundary_f1")


def measured(pred: np.ndarray, true: np.ndarray) -> dict[str, float]:
    pair = [torch.from_numpy(np.asarray(x, dtype=np.float32))[None, None] for x in (pred, true)]
    return {name: values[0] for name, values in topology(*pair).items()}


def stripe(top: int, thick: int = 5, size: int = 60) -> np.ndarray:
    image = np.zeros((size, size))
    image[top : top + thick, 10:50] = 1
    return image


# ---- thinning ----


def plain_thinning(mask: np.ndarray) -> np.ndarray:
    """Guo and Hall's rule pixel by pixel: a pass takes away all that it finds, until neither finds any."""
    m = np.pad(mask.astype(int), 1)
    while True:
        before = m.sum()
        for second in (False, True):
            gone = [at for at in zip(*np.nonzero(m)) if _goes(m, *at, second)]
            for at in gone:
                m[at] = 0
        if m.sum() == before:
            return m[1:-1, 1:-1] > 0


def _goes(m: np.ndarray, i: int, j: int, second: bool) -> bool:
    ring = [m[i - 1, j], m[i - 1, j + 1], m[i, j + 1], m[i + 1, j + 1]]
    ring = [bool(p) for p in (*ring, m[i + 1, j], m[i + 1, j - 1], m[i, j - 1], m[i - 1, j - 1])]
    pieces = sum(not ring[k] and (ring[k + 1] or ring[(k + 2) % 8]) for k in (0, 2, 4, 6))
    pairs = [sum(ring[k] or ring[(k + 1) % 8] for k in range(start, start + 8, 2)) for start in (1, 0)]
    if pieces != 1 or min(pairs) not in (2, 3):
        return False
    k = 4 if second else 0
    return not ((ring[k] or ring[k + 1] or not ring[k + 3]) and ring[k + 2])


@pytest.mark.parametrize("seed", range(3))
def test_thinning_equals_the_rule_pixel_by_pixel(seed):
    speckle = np.random.default_rng(seed).random((40, 33)) < 0.4 + 0.15 * seed
    for mask in (speckle, soft_case(seed)[1][0, 0].numpy() > 0):
        np.testing.assert_array_equal(thin(mask) > 0, plain_thinning(mask))


@pytest.mark.parametrize("seed", range(4))
def test_thinning_keeps_pieces_and_holes(seed):
    mask = np.random.default_rng(seed).random((60, 60)) < 0.3 + 0.1 * seed
    line = thin(mask) > 0
    assert not (line & ~mask).any() and line.sum() < mask.sum()
    for a, neighbours in ((mask, np.ones((3, 3))), (np.pad(~mask, 1, constant_values=True), None)):
        b = line if neighbours is not None else np.pad(~line, 1, constant_values=True)
        assert label(a, neighbours)[1] == label(b, neighbours)[1]


def test_centre_lines_of_stripes_are_in_their_middle():
    line = thin(stripe(20))
    rows, columns = np.nonzero(line)
    assert set(rows) == {22} and columns.min() <= 13 and columns.max() >= 46 and len(rows) == len(set(columns))
    i, j = np.mgrid[:60, :60]
    diagonal = thin((abs(i - j) <= 2) & (i + j > 20) & (i + j < 100))
    assert diagonal.sum() >= 36 and (np.abs(np.subtract(*np.nonzero(diagonal))) <= 1).all()


def test_thinning_leaves_its_input_alone():
    for mask in (stripe(20).astype(np.uint8), stripe(20).astype(bool), np.zeros((5, 7), np.uint8)):
        before = mask.copy()
        assert thin(mask).shape == mask.shape and (mask == before).all()
    assert not thin(np.zeros((5, 7))).any()


# ---- measures ----


def plain_measures(pred: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """By all pairs of points."""
    lines = [np.argwhere(plain_thinning(x)) for x in (pred, true)]
    inside = [other[tuple(line.T)].mean() for line, other in zip(lines, (true, pred))]
    pairs = cdist(*lines)
    hits, missed = (pairs.min(1) <= 4).sum(), (pairs.min(0) > 4).sum()
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    edges = cdist(*[np.argwhere((x > 0) & ~binary_erosion(x, cross)) for x in (pred, true)])
    right = [(edges.min(axis) <= 2).mean() for axis in (1, 0)]
    return {
        "cldice": 2 * inside[0] * inside[1] / sum(inside),
        "cliou": hits / (len(lines[0]) + missed),
        "boundary_f1": 2 * right[0] * right[1] / sum(right),
    }


@pytest.mark.parametrize("seed", range(6))
def test_measures_equal_all_pairs(seed):
    prob, mask = soft_case(seed, batch=1, height=50, width=60)
    pred, true = (prob > 0.5).numpy()[0, 0], mask.numpy()[0, 0] > 0
    assert pred.any() and true.any()
    found = {name: values[0] for name, values in topology(prob, mask).items()}
    assert found == pytest.approx(plain_measures(pred, true), abs=1e-12)
    assert min(found.values()) > 0 and max(found.values()) <= 1


@pytest.mark.parametrize("shift, near, edges", [(0, 1, 1), (2, 1, 1), (3, 1, None), (4, 1, None), (5, 0, None)])
def test_tolerances_of_shifted_stripes(shift, near, edges):
    found = measured(stripe(20, 5), stripe(20 + shift, 5))
    assert found["cliou"] == near
    assert (found["boundary_f1"] == 1) == (edges == 1)
    assert found["cldice"] == (1 if shift <= 2 else 0)


def test_a_line_twice_as_long_is_half_wrong():
    half, whole = np.zeros((2, 60, 120))
    half[30, 10:50], whole[30, 10:90] = 1, 1
    assert measured(whole, half)["cldice"] == pytest.approx(2 * 0.5 / 1.5)
    assert measured(half, whole)["cliou"] == pytest.approx(40 / 76)  # 36 of the other 40 are missed
    assert measured(whole, half)["cliou"] == pytest.approx(44 / 80)  # 44 hits, 36 false


def test_empty_masks():
    some, none = stripe(20), np.zeros((60, 60))
    assert measured(none, none) == dict.fromkeys(NAMES, 1)
    assert measured(none, some) == measured(some, none) == dict.fromkeys(NAMES, 0)
    apart = np.zeros((60, 60))
    apart[55, 10:50] = 1
    assert measured(some, apart) == dict.fromkeys(NAMES, 0)


def test_the_threshold_is_one_half_and_nan_is_background():
    prob = torch.from_numpy(stripe(20)).float()[None, None]
    assert topology(prob * 0.5, prob)["cldice"] == [0]
    assert topology(prob * 0.51, prob)["cldice"] == [1]
    assert topology(torch.full_like(prob, torch.nan), torch.zeros_like(prob))["cldice"] == [1]


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        topology(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
