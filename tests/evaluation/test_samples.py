"""Samples kept for reports: cut to their crack, exact at every threshold, read back as they were, damage named."""

import io
import json

import numpy as np
import pytest
import torch
from made_results import draw
from PIL import Image

from cssr.evaluation.metrics import threshold_counts, thresholds_below
from cssr.evaluation.visualization import (
    FILES,
    crack_window,
    grey_to_levels,
    levels_to_grey,
    read_samples,
    take_sample,
    write_samples,
)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_sample_holds_what_was_evaluated_at_every_threshold():
    batch, outputs = draw()
    sample = take_sample(batch, outputs, 1)
    levels, mask = grey_to_levels(pixels(sample.files["prob"])), pixels(sample.files["mask"])
    counts = threshold_counts(outputs.logits.sigmoid(), batch.mask)
    for number in range(1, 100):
        found = levels >= number
        assert (found & mask).sum() == counts.tp[1, number - 1] and (found & ~mask).sum() == counts.fp[1, number - 1]
    lq = np.round(batch.lq[1].permute(1, 2, 0).numpy() * 255)
    assert (pixels(sample.files["lq"]) == lq).all()
    assert np.abs(pixels(sample.files["hr"]) - batch.hr[1].permute(1, 2, 0).numpy() * 255).mean() < 60  # noise, in WebP
    assert sample.about["kernel"] == [[0.111111] * 3] * 3 and sample.about["predicted_kernel"] == [[0.125] * 3] * 3
    assert (sample.about["key"], sample.about["scale"], sample.about["window"]) == ("../c", 4, [0, 0, 24, 32])


def test_grey_and_levels_are_inverse_and_nan_is_background():
    levels = np.arange(100, dtype=np.uint8)
    assert (grey_to_levels(levels_to_grey(levels)) == levels).all() and levels_to_grey(levels).max() == 255
    assert thresholds_below(torch.tensor([float("nan"), 0.0, 1.0])).tolist() == [0, 0, 99]


def test_without_segmentation_and_kernels():
    sample = take_sample(*draw(kernel=False), 0, segmentation=False)
    assert (
        set(sample.files) == {"lq", "sr", "hr"} and sample.about["kernel"] is sample.about["predicted_kernel"] is None
    )


@pytest.mark.parametrize("top, left", [(0, 0), (13, 90), (70, 117), (60, 3)])
def test_the_window_holds_most_crack_and_starts_at_a_multiple_of_the_scale(top, left):
    """Against every window, one by one."""
    mask = np.zeros((80, 120))
    mask[top : top + 9, left : left + 2] = mask[40, 50] = 1
    found = crack_window(mask, 32, 4)
    sums = {(y, x): mask[y : y + 32, x : x + 32].sum() for y in range(0, 49, 4) for x in range(0, 89, 4)}
    assert sums[found[0], found[1]] == max(sums.values()) and found[2:] == [32, 32]


def test_windows_without_crack_and_of_small_images():
    assert crack_window(np.zeros((80, 120)), 32, 4) == [24, 44, 32, 32]
    assert crack_window(np.ones((20, 120)), 32, 4)[2:] == [20, 32]


def test_large_images_are_cut_alike(monkeypatch):
    monkeypatch.setattr("cssr.evaluation.visualization.SIDE", 19)
    sample = take_sample(*draw(), 0)
    assert [pixels(sample.files[name]).shape[:2] for name in FILES] == [(4, 4), *[(16, 16)] * 4]
    assert sample.about["window"] == [0, 4, 16, 16]  # 3:32 holds crack: from 4 on, all of a window does


def written(folder, kinds=None):
    batch, outputs = draw()
    samples = {key: take_sample(batch, outputs, i) for i, key in enumerate(batch.key)}
    write_samples(samples, kinds or {"best": ["../c"], "worst": ["a/b", "../c"]}, folder)
    return samples


def test_what_is_written_is_read_and_replaced(tmp_path):
    samples = written(tmp_path / "p" / "samples")
    assert sorted(path.name for path in (tmp_path / "p" / "samples").iterdir()) == ["00-c", "01-a-b", "index.json"]
    kinds, found = read_samples(tmp_path / "p" / "samples")
    assert kinds == {"best": ["../c"], "worst": ["a/b", "../c"]} and found == samples
    written(tmp_path / "p" / "samples", {"best": ["a/b"]})
    assert set(read_samples(tmp_path / "p" / "samples")[1]) == {"a/b"}
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["samples"]


def test_a_full_disk_leaves_what_was_there_and_nothing_half_written(tmp_path, monkeypatch):
    samples = written(tmp_path / "p" / "samples")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            written(tmp_path / "p" / "samples", {"best": ["a/b"]})
    assert read_samples(tmp_path / "p" / "samples")[1] == samples
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["samples"]


def test_missing_and_damaged_samples(tmp_path):
    assert read_samples(tmp_path) == ({}, {})
    written(tmp_path / "samples")
    index = tmp_path / "samples" / "index.json"
    good = json.loads(index.read_text())
    elsewhere = [{**good["samples"][0], "folder": "../.."}]
    for bad, message in (
        ("{", "no JSON: Expecting"),
        ("[]", "or something else: the whole must be an object, got"),
        ('{"format": "x"}', "evaluate again: its format is 'x', expected 'cssr-samples-1'"),
        (json.dumps({"format": "cssr-samples-1"}), "the whole has no samples"),
        (json.dumps({**good, "samples": elsewhere}), "'../..' is no folder of it"),
    ):
        index.write_text(bad)
        with pytest.raises(ValueError, match=rf"index.json is damaged, .*{message}") as caught:
            read_samples(tmp_path / "samples")
        assert "\n" not in str(caught.value)
    index.write_text(json.dumps(good))
    (tmp_path / "samples" / "00-c" / "sr.webp").unlink()
    with pytest.raises(ValueError, match="No such file"):
        read_samples(tmp_path / "samples")
