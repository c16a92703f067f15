"""Losses against the golden vectors, and what they give in corner cases."""

import math

import numpy as np
import pytest
import torch

from cssr.batch import Batch, Outputs
from cssr.data import signed_distance
from cssr.losses import LOSSES
from cssr.losses.segmentation import normalized_distance
from cssr.schedules import Progress

CASES = {
    "bce_w1_1": {"name": "bce"},
    "bce_w20_1": {"name": "bce", "weight": [20, 1]},
    "dice": {"name": "dice"},
    "generalized_dice": {"name": "generalized_dice"},
    "combo_w1_1": {"name": "combo"},
    "combo_w20_1_6_1": {"name": "combo", "weight": [20, 1], "mix": [6, 1]},
    "boundary": {"name": "boundary"},
    **{
        f"{name}_alpha{alpha}": {"name": name, "alpha": alpha}
        for name in ("boundary_combo", "generalized_boundary_combo", "boundary_generalized_dice")
        for alpha in (1.0, 0.5, 0.01)
    },
}
START = Progress(samples=0, total=100)


def batch_of(mask: np.ndarray) -> Batch:
    distance = np.stack([signed_distance(m[0].astype(np.uint8)) for m in mask])[:, None]
    return Batch(
        hr=torch.zeros(len(mask), 3, *mask.shape[-2:]), mask=torch.from_numpy(mask), distance=torch.from_numpy(distance)
    )


@pytest.mark.parametrize("case", CASES)
def test_equals_the_published_loss(case, golden):
    arrays = golden("losses_degradation_metrics")
    logits = torch.from_numpy(arrays["prob"]).double().logit().float()
    batch = batch_of(arrays["target"])
    value = LOSSES.build(CASES[case])(Outputs(sr=batch.hr, logits=logits), batch, START)
    np.testing.assert_allclose(value, arrays[case], rtol=2e-5, atol=2e-6)


def test_distance_maps_equal_the_published_ones(golden):
    arrays = golden("losses_degradation_metrics")
    distance = batch_of(arrays["target"]).distance
    np.testing.assert_allclose(normalized_distance(distance), arrays["signed_distance"], atol=1e-5)
    np.testing.assert_allclose(distance.clamp(min=0), arrays["distance_to_crack"], atol=1e-4)


@pytest.mark.parametrize("name", LOSSES.names())
@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-80.0, 0.0, 80.0])
def test_finite_with_gradient_on_uniform_masks(name, fill, logit):
    """Empty and full masks, saturated logits: everything stays finite, so does the gradient."""
    batch = batch_of(np.full((2, 1, 16, 16), fill, np.float32))
    logits = torch.full((2, 1, 16, 16), logit, requires_grad=True)
    sr, kernel = torch.zeros(2, 3, 16, 16, requires_grad=True), torch.full((2, 1, 5, 5), 0.04)
    batch.lq, batch.kernel = torch.zeros(2, 3, 4, 4), kernel
    value = LOSSES.build(name)(Outputs(sr=sr, logits=logits, kernel=kernel, aux=(logits,)), batch, START)
    value.sum().backward()
    assert value.shape == (2,) and value.dtype == torch.float32 and torch.isfinite(value).all()
    assert all(x.grad is None or torch.isfinite(x.grad).all() for x in (logits, sr))


def test_auxiliary_heads_are_weighted():
    batch, main, aux = (
        batch_of(np.eye(8, dtype=np.float32)[None, None]),
        torch.randn(1, 1, 8, 8),
        torch.randn(1, 1, 8, 8),
    )
    alone = {x: LOSSES.build("dice")(Outputs(batch.hr, x), batch, START) for x in (main, aux)}
    both = LOSSES.build({"name": "dice", "aux_weight": 0.4})(Outputs(batch.hr, main, aux=(aux,)), batch, START)
    torch.testing.assert_close(both, alone[main] + 0.4 * alone[aux])


def test_alpha_falls_with_samples_seen():
    loss = LOSSES.build({"name": "boundary_combo", "alpha": {"name": "staircase", "every": 10, "begin": 50}})
    combo, edge = LOSSES.build("combo"), LOSSES.build("boundary")
    batch = batch_of(np.eye(8, dtype=np.float32)[None, None])
    outputs = Outputs(batch.hr, torch.randn(1, 1, 8, 8))
    for samples, alpha in {0: 1.0, 59: 1.0, 60: 0.99, 105: 0.95, 10**6: 0.01}.items():
        at = Progress(samples, 10**7)
        expected = alpha * combo(outputs, batch, at) + (1 - alpha) * edge(outputs, batch, at)
        torch.testing.assert_close(loss(outputs, batch, at), expected)


def test_sr_losses_are_means_per_sample():
    hr, sr = torch.zeros(2, 3, 4, 4), torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), -2.0)])
    outputs, batch = Outputs(sr, torch.zeros(2, 1, 4, 4)), Batch(hr=hr, mask=torch.zeros(2, 1, 4, 4))
    assert LOSSES.build("l1")(outputs, batch, START).tolist() == [0.5, 2.0]
    assert LOSSES.build("l2")(outputs, batch, START).tolist() == [0.25, 4.0]


def test_bce_closed_form():
    outputs = Outputs(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2))
    batch = Batch(hr=outputs.sr, mask=torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))
    value = LOSSES.build({"name": "bce", "weight": [3, 1]})(outputs, batch, START)
    assert value.item() == pytest.approx(math.log(2) * (3 * 1 + 3) / 4 / 4)
