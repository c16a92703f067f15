"""Bootstrap intervals against a plain loop over resamples, and against what statistics says of a mean."""

import numpy as np
import pytest

from cssr.evaluation import aggregate as module
from cssr.evaluation.aggregate import aggregate, intervals

SURFACES = {"hd95": ("hd95_min", "ahd95"), "msd": ("msd_min", "amsd")}


def rows_of(images: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(images):
        tp = np.sort(rng.integers(0, 50, 99))[::-1]
        fp = np.sort(rng.integers(0, 40, 99))[::-1]
        counts = {"tp": tp.tolist(), "fp": fp.tolist(), "fn": (50 - tp).tolist()}
        psnr = rng.uniform(20, 30)
        more = {"psnr": psnr, "mse": 10 ** (-psnr / 10), "ssim": rng.random(), "kernel_psnr": None}
        more |= {"hd95": rng.random(99).tolist(), "msd": rng.random(99).tolist(), "cldice": rng.random()}
        more |= {"width_error": rng.random()}
        rows.append({"key": f"k{i:03d}", "pixels": 200, **counts, **more})
    return rows


def test_intervals_equal_percentiles_of_a_plain_loop(monkeypatch):
    """Every resample as a set of its own, with images that come as often as they were drawn."""
    monkeypatch.setattr(module, "RESAMPLES", 40)
    rows = rows_of(7)
    rows[2] |= {"hd95": None, "msd": None, "cldice": None, "psnr": float("inf"), "mse": 0.0}
    draws = np.random.default_rng(3).multinomial(7, [1 / 7] * 7, 40)
    sets = [aggregate([row for row, n in zip(rows, drawn) for _ in range(n)]) for drawn in draws]
    found = intervals(rows, seed=3)
    keys = {"iou_max", "aiu", "f1", "ods", "hd95_min", "ahd95", "msd_min", "amsd", "psnr", "ssim", "cldice"}
    keys |= {"width_error"}
    assert set(found["image"]) == keys and set(found["pooled"]) == {"iou_max", "aiu", "f1", "ods"}
    for kind, values in found.items():
        for key, interval in values.items():
            expected = np.percentile([one[kind][key] for one in sets], [2.5, 97.5])
            assert interval == pytest.approx(expected, abs=1e-9), (kind, key)


def test_width_is_what_statistics_says_of_a_mean():
    rows = rows_of(200)
    low, high = intervals(rows)["image"]["psnr"]
    values = [row["psnr"] for row in rows]
    assert (low + high) / 2 == pytest.approx(np.mean(values), abs=0.05)
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / np.sqrt(200), rel=0.1)


def test_neither_order_nor_parts_of_the_draws_change_them(monkeypatch):
    rows = rows_of(9)
    expected = intervals(rows)
    assert intervals(rows[::-1]) == expected and intervals(rows, seed=1) != expected
    monkeypatch.setattr(module, "_CHUNK", 9 * 7)  # seven resamples at a time
    for kind, values in intervals(rows).items():
        for key, interval in values.items():
            assert interval == pytest.approx(expected[kind][key], abs=1e-12)


def test_without_segmentation_and_of_one_image():
    dropped = ("tp", "fp", "fn", "hd95", "msd", "cldice", "width_error")
    rows = [{k: v for k, v in row.items() if k not in dropped} for row in rows_of(5)]
    found = intervals(rows)
    assert set(found["image"]) == {"psnr", "ssim"} and found["pooled"] == {}
    assert intervals(rows[:1]) is None


def test_empty_masks_and_a_measure_of_one_image_give_numbers():
    empty = {"tp": [0] * 99, "fp": [0] * 99, "fn": [0] * 99, "pixels": 9}
    rows = [{"key": k, **empty, "kernel_psnr": v} for k, v in (("a", 40.0), ("b", None), ("c", float("inf")))]
    found = intervals(rows)
    assert found["image"] == dict.fromkeys(("iou_max", "f1", "aiu", "ods"), [1, 1]) | {"kernel_psnr": [40, 40]}
