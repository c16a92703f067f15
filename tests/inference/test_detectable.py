"""Least width that is found: drawn cracks, the curve through hits and misses, and models whose answer is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cssr.inference.detectable import CONTRAST, WIDTHS, CentreLine, detectable, draw, fit
from cssr.utils.photographs import open_photograph


@pytest.mark.parametrize("width", [0.25, 1.0, 4.0])
def test_a_drawn_crack_takes_as_much_light_as_its_area(width):
    """Area = width x length, as the line runs through the whole part; the rest of the part stays as it was."""
    for seed in range(5):
        course = CentreLine.drawn(64, np.random.default_rng(seed))
        drawn, line = draw(np.full((64, 64, 3), 200, np.uint8), course, width, 0.6), course.points()
        inner = np.zeros((64, 64), bool)
        inner[4:60, 4:60] = True
        taken = ((200 - drawn[..., 0].astype(float)) / (200 * CONTRAST))[inner].sum()
        length = np.linalg.norm(np.diff(line, axis=0), axis=1).sum()
        assert taken == pytest.approx(width * length, rel=0.12)
        x, y = line.astype(int).T
        far = np.ones((64, 64), bool)
        for dx in range(-6, 7):
            for dy in range(-6, 7):
                far[np.clip(y + dy, 0, 63), np.clip(x + dx, 0, 63)] = False
        assert (drawn[4:60, 4:60][far[4:60, 4:60]] == 200).all()


def test_the_curve_gives_back_that_of_the_hits():
    """Logit 3 (log w - log 0.8): 50 % at 0.8, 90 % at 0.8 x 9^(1/3)."""
    tries = 4000
    hits = [round(tries / (1 + math.exp(-3 * (math.log(w) - math.log(0.8))))) for w in WIDTHS]
    p50, p90, upper = fit(WIDTHS, hits, tries, np.random.default_rng(0))
    assert p50 == pytest.approx(0.8, rel=0.01) and p90 == pytest.approx(0.8 * 9 ** (1 / 3), rel=0.01)
    assert p90 < upper < 1.05 * p90


def test_probabilities_that_no_width_reaches_are_none():
    assert fit(WIDTHS, [0] * len(WIDTHS), 8, np.random.default_rng(0)) == (None, None, None)


class Thresholding:
    """A model of scale 2 for which is crack what is darker than `level`."""

    scale, mean = 2, torch.zeros(1)

    def __init__(self, level: float):
        self._level = level

    def __call__(self, lq: torch.Tensor) -> SimpleNamespace:
        large = lq.mean(1, keepdim=True).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return SimpleNamespace(logits=100 * (self._level - large), kernel=None)


def wall() -> np.ndarray:
    return np.full((200, 300, 3), 200, np.uint8)


def test_a_model_that_sees_dark_pixels_finds_cracks_that_make_pixels_dark():
    """Blurred by 0.6 px, a crack of width w takes CONTRAST x (2 Phi(w / 1.2) - 1) of the light in its middle."""
    for loss, between in ((0.1, (0.15, 0.6)), (0.4, (1.5, 2.7))):
        found = detectable(Thresholding(200 / 255 * (1 - loss)), [lambda: open_photograph(wall())], tries=6)
        assert between[0] < found.p90 < between[1] and found.hits[0] == 0 and found.hits[-1] == 6
        assert found.p50 <= found.p90 and "with a probability of 90 %" in found.sentence(0.2)
        again = detectable(Thresholding(200 / 255 * (1 - loss)), [lambda: open_photograph(wall())], tries=6)
        assert again == found


def test_a_model_that_sees_nothing_says_so():
    found = detectable(Thresholding(-1), [lambda: open_photograph(wall())], tries=4)
    assert found.p90 is None and found.sentence().startswith("of cracks 4 px wide 0% would be found")


def test_photographs_without_room_have_no_answer():
    assert detectable(Thresholding(2), [lambda: open_photograph(wall())], tries=2) is None  # crack all over
    assert detectable(Thresholding(0), [lambda: open_photograph(wall()[:40])], tries=2) is None  # too small
