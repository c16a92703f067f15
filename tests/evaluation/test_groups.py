"""Parts of a set: by source, blur and crack width, each measured as a set of its own."""

import numpy as np
import pytest
import torch
from test_intervals import rows_of

from cssr.degradations.kernels import gaussian_kernel
from cssr.evaluation.aggregate import aggregate, breakdown, in_order
from cssr.evaluation.results import compose
from cssr.models.training_range import blur_sigma


def named(keys: list[str], sigmas: list[float | None] | None = None) -> list[dict]:
    rows = rows_of(len(keys))
    return [row | {"key": key, "blur_sigma": s} for row, key, s in zip(rows, keys, sigmas or [None] * len(keys))]


def test_sources_are_measured_as_sets_of_their_own():
    rows = named(["CFD_001", "CFD_002", "DeepCrack-3", "0001", "CRACK500_2016_1", "photo"])
    at = aggregate(rows)["image"]["iou_max_threshold"]
    found = breakdown(rows, at)["source"]
    assert {name: part["images"] for name, part in found.items()} == {
        **{"CFD": 2, "CRACK500": 1},
        **{"DeepCrack": 1, "others": 2},
    }
    part = found["CFD"]
    assert {kind: part[kind] for kind in ("image", "pooled")} == aggregate(rows[:2])
    best = round(100 * at) - 1
    ious = [row["tp"][best] / (row["tp"][best] + row["fp"][best] + row["fn"][best]) for row in rows[:2]]
    assert part["iou"] == pytest.approx(np.mean(ious), abs=1e-6) and part["iou"] <= part["image"]["iou_max"]


def test_blur_is_grouped_by_whole_pixels():
    empty = blur_sigma(torch.zeros(1, 1, 3, 3)).item()
    rows = named([f"a_{i}" for i in range(6)], [0.2, 0.99, 1.0, 3.7, None, empty])
    found = breakdown(rows, 0.5)
    assert {name: part["images"] for name, part in found["blur"].items()} == {
        **{"0-1 px": 2, "1-2 px": 1},
        **{"3-4 px": 1, "unknown": 2},
    }
    assert found["source"] is None  # one part is the set itself


def test_cracks_are_grouped_by_doubling_width():
    widths = [0, 0.8, 2.0, 3.9, 4.0, 8.5, 16.0, 60.0, None]
    rows = [row | {"crack_width": width} for row, width in zip(named([f"a_{i}" for i in range(9)]), widths)]
    parts = {name: part["images"] for name, part in breakdown(rows, 0.5)["crack_width"].items()}
    assert parts == {
        **{"no crack": 1, "0-2 px": 1, "2-4 px": 2, "4-8 px": 1},
        **{"8-16 px": 1, "16 px or more": 2, "unknown": 1},
    }
    assert list(parts) == ["0-2 px", "2-4 px", "4-8 px", "8-16 px", "16 px or more", "no crack", "unknown"]


def test_what_tells_nothing_is_null():
    assert breakdown(named(["a_1", "a_2"]), 0.5) == {"source": None, "blur": None, "crack_width": None}
    names = [f"{a}{b}_1" for a in "abcdef" for b in "abcdef"]
    assert breakdown(named(names), 0.5)["source"] is None  # 36 names: of photographs
    assert len(breakdown(named(names[:30]), 0.5)["source"]) == 30


def test_without_segmentation_there_is_no_iou():
    rows = [{k: v for k, v in row.items() if k not in ("tp", "fp", "fn")} for row in named(["a_1", "b_1"])]
    part = compose(rows, {"name": "x"})["groups"]["source"]["a"]
    assert part["iou"] is None and part["image"]["iou_max"] is None and part["image"]["psnr"] == rows[0]["psnr"]


def test_width_of_gaussians_is_their_sigma():
    parameters = torch.tensor([[0.8, 0.8, 0.0], [2.0, 2.0, 0.0], [1.0, 2.0, 40.0]])
    expected = [0.8, 2.0, np.sqrt(2.5)]
    np.testing.assert_allclose(blur_sigma(gaussian_kernel(parameters, 31)), expected, rtol=5e-3)


def test_width_of_other_kernels():
    delta, pair, sharpening = torch.zeros(3, 1, 7, 7)
    delta[0, 3, 3] = 1
    pair[0, 3, 1] = pair[0, 3, 5] = 0.5  # variance 4 along one axis, 0 along the other
    sharpening[0, 3, 3], sharpening[0, 3, 2], sharpening[0, 3, 4] = 2, -0.5, -0.5
    moved = torch.roll(pair, 2, dims=1)
    found = blur_sigma(torch.stack([delta, pair, moved, sharpening]))
    np.testing.assert_allclose(found, [0, np.sqrt(2), np.sqrt(2), 0], atol=1e-7)
    assert found.dtype == torch.float64


def test_groups_are_in_the_order_of_their_numbers():
    names = ["unknown", "10-11 px", "2-3 px", "CFD", "1-2 px"]
    assert in_order(names) == ["1-2 px", "2-3 px", "10-11 px", "CFD", "unknown"]
