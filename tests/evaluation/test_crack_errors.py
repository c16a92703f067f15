"""Errors of crack width and length of whole images, against drawn cracks."""

import time

import pytest
import torch

from cssr.evaluation.aggregate import aggregate
from cssr.evaluation.crack_metrics import crack_errors
from cssr.evaluation.definitions import CRACK_KEYS


def bars(*bars_: tuple[int, int, int]) -> torch.Tensor:
    """1 1 100 200: bars of (top, length, width) that begin in column 10."""
    mask = torch.zeros(1, 1, 100, 200)
    for top, length, width in bars_:
        mask[..., top : top + width, 10 : 10 + length] = 1
    return mask


def test_errors_of_widths_and_length_of_an_image():
    true, pred = bars((10, 100, 4), (40, 60, 2)), bars((10, 120, 6))
    found = {name: value for name, (value,) in crack_errors(pred, true).items()}
    mean = (100 * 4 + 60 * 2) / 160
    expected = {"width_error": 6 - mean, "max_width_error": 2, "length_error": 40}
    expected |= {"width_bias": 6 - mean, "length_bias": -40, "crack_width": mean}
    assert found == pytest.approx(expected, abs=0.2) and tuple(found) == (*CRACK_KEYS, "crack_width")
    back = {name: value for name, (value,) in crack_errors(true, pred).items()}
    found["crack_width"] = back["crack_width"]  # now of the other mask
    assert back == pytest.approx({n: -v if n.endswith("bias") else v for n, v in found.items()})
    assert back["crack_width"] == pytest.approx(6, abs=0.2)


def test_without_cracks_widths_and_length_are_zero():
    empty, bar = bars(), bars((10, 100, 4))
    found = crack_errors(torch.cat([empty, empty, bar, bar]), torch.cat([empty, bar, empty, bar]))
    assert found["width_error"] == pytest.approx([0, 4, 4, 0], abs=0.1)
    assert found["max_width_error"] == pytest.approx([0, 4, 4, 0], abs=0.1)
    assert found["length_error"] == pytest.approx([0, 100, 100, 0], abs=0.2)
    assert found["length_bias"] == pytest.approx([0, -100, 100, 0], abs=0.2)
    assert found["crack_width"] == pytest.approx([0, 4, 0, 4], abs=0.1)


def test_the_threshold_is_one_half_and_nan_is_background():
    bar = bars((10, 100, 4))
    for prob, length in ((bar * 0.5, 0), (bar * 0.51, 100), (torch.where(bar > 0, torch.nan, 0.0), 0)):
        assert crack_errors(prob, torch.zeros_like(bar))["length_error"] == pytest.approx([length], abs=0.2)


def test_noise_is_answered_at_once():
    noise = (torch.rand(1, 1, 600, 600, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    began = time.process_time()
    found = crack_errors(torch.cat([noise, bars_of(600)]), torch.cat([bars_of(600), bars_of(600)]))
    assert time.process_time() - began < 5
    assert found["width_error"] == [None, 0] and found["length_bias"] == [None, 0]


def bars_of(side: int) -> torch.Tensor:
    """1 1 side side: a bar of 4 pixels."""
    mask = torch.zeros(1, 1, side, side)
    mask[..., 10:14, 10:110] = 1
    return mask


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        crack_errors(bars(), bars()[..., :50])


def test_means_over_images_are_what_results_hold():
    row = {"key": "a", "pixels": 9, "psnr": 20.0, "mse": 0.01}
    rows = [row | {"width_error": error, "width_bias": -error} for error in (1.0, 2.0)]
    found = aggregate(rows)
    assert found["image"]["width_error"] == 1.5 and found["image"]["width_bias"] == -1.5
    assert found["pooled"]["width_error"] is None and found["image"]["length_error"] is None
