"""CrackFormer's loss of fused and side maps against the golden vectors, and its balance."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.losses import LOSSES

START = Progress(0, 100)


def golden_case(arrays: dict) -> tuple[Outputs, Batch]:
    """Anything as the main map, the golden side maps as auxiliary ones."""
    sides = torch.from_numpy(arrays["side_probs"]).double().logit().float()
    mask = torch.from_numpy(arrays["target"])
    return Outputs(sr=mask, logits=sides[:, :1] * 0.5, aux=sides.split(1, 1)), Batch(hr=mask, mask=mask)


def side_loss(**settings) -> callable:
    return LOSSES.build({"name": "crackformer_side", **settings})


def test_the_mean_over_the_batch_equals_the_published_number(golden):
    """The number is that of the side maps: what they add to the loss of the main map."""
    arrays = golden("losses_degradation_metrics")
    outputs, batch = golden_case(arrays)
    with_sides, alone = (side_loss(aux_weight=w)(outputs, batch, START).double() for w in (1.0, 0.0))
    assert with_sides.shape == (4,)
    np.testing.assert_allclose((with_sides - alone).mean(), arrays["crackformer_side_loss"], rtol=1e-5)


def test_one_map_equals_the_published_number_of_the_same_map_five_times(golden):
    outputs, batch = golden_case(golden("losses_degradation_metrics"))
    main = Outputs(outputs.sr, outputs.logits)
    five = Outputs(outputs.sr, outputs.logits, aux=(outputs.logits,) * 5)
    torch.testing.assert_close(side_loss(aux_weight=0.4)(five, batch, START), 1.4 * side_loss()(main, batch, START))


@pytest.mark.parametrize("balance", ["batch", "image"])
def test_equals_weighted_cross_entropy(balance, golden):
    """Against torch's own, with weights counted in numpy."""
    outputs, batch = golden_case(golden("losses_degradation_metrics"))
    mask = batch.mask.numpy()
    crack = mask.mean((1, 2, 3), keepdims=True) if balance == "image" else np.full((4, 1, 1, 1), mask.mean())
    weight = torch.from_numpy(np.where(mask == 1, 1 - crack, 1.1 * crack)).float()
    expected = F.binary_cross_entropy_with_logits(outputs.logits, batch.mask, weight, reduction="none").mean((1, 2, 3))
    found = side_loss(balance=balance)(Outputs(outputs.sr, outputs.logits), batch, START)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_an_image_without_cracks_counts_by_the_cracks_of_the_others():
    """Balanced by image, it counts nothing, and no sample depends on its neighbours."""
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, 3] = 1
    outputs, batch = Outputs(mask, torch.randn(2, 1, 8, 8)), Batch(hr=mask, mask=mask)
    by_batch, by_image = (side_loss(balance=b)(outputs, batch, START) for b in ("batch", "image"))
    assert by_batch[1] > 0 and by_image[1] == 0
    first = side_loss()(Outputs(mask[:1], outputs.logits[:1]), Batch(hr=mask[:1], mask=mask[:1]), START)
    torch.testing.assert_close(by_image[:1], first)


def test_a_batch_without_cracks_gives_0():
    mask, logits = torch.zeros(2, 1, 8, 8), torch.randn(2, 1, 8, 8, requires_grad=True)
    value = side_loss()(Outputs(mask, logits, aux=(logits,)), Batch(hr=mask, mask=mask), START)
    value.sum().backward()
    assert value.tolist() == [0, 0] and not logits.grad.any()


def test_every_map_learns():
    mask = torch.eye(8)[None, None]
    main, *sides = (torch.randn(1, 1, 8, 8, requires_grad=True) for _ in range(4))
    side_loss()(Outputs(mask, main, aux=tuple(sides)), Batch(hr=mask, mask=mask), START).sum().backward()
    assert all(x.grad.abs().min() > 0 for x in (main, *sides))
    assert all(((x.grad < 0) == (mask > 0)).all() for x in (main, *sides))


def test_an_unknown_balance_is_refused():
    with pytest.raises(ValueError, match="balance must be batch or image, got 'pixel'"):
        side_loss(balance="pixel")
