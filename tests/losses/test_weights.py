"""Weights on the pixels of losses: golden vectors, closed forms, and what impossible settings say."""

import math

import numpy as np
import pytest
import torch

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.data.transforms import signed_distance
from cssr.losses import LOSSES
from cssr.losses.pixel_weights import PixelWeight, build_weight
from cssr.losses.segmentation import dice_term

START = Progress(0, 100)
PIXEL_LOSSES = ["l1", "l2", "blind", "bce", "boundary", "boundary_combo", "crackformer_side"]
ALL = [*PIXEL_LOSSES, "dice", "generalized_dice", "combo", "generalized_boundary_combo", "boundary_generalized_dice"]


def golden_case(arrays: dict) -> tuple[Outputs, Batch]:
    """The golden samples as a model would give them; the fourth mask is empty."""
    x = {name: torch.from_numpy(arrays[name]) for name in ("sr", "hr", "lr", "kernels", "kernel_pred", "target")}
    distance = np.stack([signed_distance(m[0].astype(np.uint8)) for m in arrays["target"]])[:, None]
    batch = Batch(hr=x["hr"], mask=x["target"], distance=torch.from_numpy(distance), lq=x["lr"], kernel=x["kernels"])
    logits = torch.from_numpy(arrays["prob"]).double().logit().float()
    return Outputs(sr=x["sr"], logits=logits, kernel=x["kernel_pred"]), batch


def drawn_case(seed: int = 0, size: int = 16) -> tuple[Outputs, Batch]:
    """Two samples with a crack of two columns, anything predicted."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.zeros(2, 1, size, size)
    mask[..., 5:7] = 1
    distance = torch.from_numpy(np.stack([signed_distance(m[0].numpy().astype(np.uint8)) for m in mask]))[:, None]
    kernel = torch.full((2, 1, 3, 3), 1 / 9)
    sr, hr = torch.rand(2, 2, 3, size, size, generator=draw)
    batch = Batch(hr=hr, mask=mask, distance=distance, lq=torch.rand(2, 3, 4, 4, generator=draw), kernel=kernel)
    logits = torch.randn(2, 1, size, size, generator=draw)
    return Outputs(sr=sr, logits=logits, kernel=kernel + 0.01), batch


@pytest.mark.parametrize("case, setting", {
    "crack2": {"crack": 2.0}, "fail1": {"failure": 1.0}, "crack2_fail1": {"crack": 2.0, "failure": 1.0},
}.items())  # fmt: skip
def test_blind_with_weights_equals_the_published_loss(case, setting, golden):
    arrays = golden("losses_degradation_metrics")
    value = LOSSES.build({"name": "blind", "pixel_weight": setting})(*golden_case(arrays), START)
    np.testing.assert_allclose(value, arrays[f"blind_sr_loss_weights_{case}"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name, measure", [("l1", np.abs), ("l2", np.square)])
def test_sr_losses_are_means_of_weighted_errors(name, measure, golden):
    """Against the weights computed from the golden distances and probabilities."""
    arrays = golden("losses_degradation_metrics")
    weight = 2 * np.exp(-0.5 * arrays["distance_to_crack"]) * np.exp(3 * np.abs(arrays["prob"] - arrays["target"]))
    expected = (weight * measure(arrays["sr"] - arrays["hr"])).mean((1, 2, 3))
    loss = LOSSES.build({"name": name, "pixel_weight": {"crack": 0.5, "failure": 3}})
    np.testing.assert_allclose(loss(*golden_case(arrays), START), expected, rtol=1e-5)


def test_segmentation_terms_are_weighted_pixel_by_pixel_and_dice_by_the_mean(golden):
    arrays = golden("losses_degradation_metrics")
    prob, mask = arrays["prob"].astype(np.float64), arrays["target"]
    weight = np.exp(2 * np.abs(prob - mask))
    cross_entropy = -np.where(mask > 0, np.log(prob), np.log1p(-prob)) / 2
    expected = {
        "bce": (weight * cross_entropy).mean((1, 2, 3)),
        "boundary": (weight * prob * arrays["signed_distance"]).mean((1, 2, 3)),
        "dice": weight.mean((1, 2, 3)) * arrays["dice"],
        "generalized_dice": weight.mean((1, 2, 3)) * arrays["generalized_dice"],
    }
    expected["combo"] = (expected["bce"] + expected["dice"]) / 2
    expected["boundary_combo"] = 0.3 * expected["combo"] + 0.7 * expected["boundary"]
    for name, values in expected.items():
        more = {"alpha": 0.3} if name == "boundary_combo" else {}
        loss = LOSSES.build({"name": name, "pixel_weight": {"failure": 2.0}, **more})
        np.testing.assert_allclose(loss(*golden_case(arrays), START), values, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ALL)
def test_a_loss_is_unweighted_before_begin_and_weighted_from_it_on(name):
    plain, weighted = LOSSES.build(name), LOSSES.build({"name": name, "pixel_weight": {"failure": 1.0, "begin": 50}})
    case = drawn_case()
    torch.testing.assert_close(weighted(*case, Progress(49, 100)), plain(*case, Progress(49, 100)))
    at = Progress(50, 100)
    assert not torch.isclose(weighted(*case, at), plain(*case, at), rtol=1e-3).any()


@pytest.mark.parametrize("name", ALL)
def test_an_even_weight_scales_the_whole_loss(name):
    """On empty masks the crack weight is 2 everywhere; the kernel's own error is no error of pixels."""
    outputs, batch = drawn_case()
    batch.mask, batch.distance, outputs.kernel = batch.mask * 0, batch.distance * 0, batch.kernel
    plain, doubled = (
        LOSSES.build({"name": name, "pixel_weight": w})(outputs, batch, START) for w in (None, {"crack": 3})
    )
    torch.testing.assert_close(doubled, 2 * plain)


@pytest.mark.parametrize("name", ALL)
def test_distance_maps_are_asked_for_where_they_are_needed(name):
    distance = "boundary" in name
    assert getattr(LOSSES.build(name), "needs_distance", False) == distance
    assert LOSSES.build({"name": name, "pixel_weight": {"failure": 1}}).needs_distance == distance
    assert LOSSES.build({"name": name, "pixel_weight": {"crack": 1, "begin": 10}}).needs_distance


def test_maps_have_the_stated_values():
    """In the crack 2, beside it 2 exp(-crack); where the prediction is right 1, where it is wrong exp(failure)."""
    outputs, batch = drawn_case()
    outputs.logits = torch.where(torch.arange(16) < 6, -100.0, 100.0).expand(
        2, 1, 16, 16
    )  # wrong in column 5, right in 6
    crack, failure = PixelWeight(crack=0.5, failure=2.0)(outputs, batch, START)
    column = [round(v, 4) for v in crack[1, 0, 3, 3:9].tolist()]
    assert column == [round(2 * math.exp(-0.5 * d), 4) for d in (2, 1, 0, 0, 1, 2)]
    assert failure[0, 0, 0, 4:7].tolist() == pytest.approx([1, math.exp(2), 1])


def test_no_gradient_flows_through_the_weight():
    """The weight of a wrong pixel is no reason to be right: only the error itself teaches."""
    outputs, batch = drawn_case()
    outputs.logits.requires_grad_(), outputs.sr.requires_grad_()
    LOSSES.build({"name": "l1", "pixel_weight": {"failure": 2.0}})(outputs, batch, START).sum().backward()
    assert outputs.logits.grad is None and outputs.sr.grad.abs().min() > 0
    loss = LOSSES.build({"name": "dice", "pixel_weight": {"failure": 2.0}})(outputs, batch, START)
    mean = torch.exp(2 * (outputs.logits.sigmoid() - batch.mask).abs()).mean((1, 2, 3)).detach()
    expected = torch.autograd.grad((mean * dice_term(outputs.logits, batch.mask)).sum(), outputs.logits)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), outputs.logits), expected)


def test_auxiliary_heads_are_weighted_by_the_main_heads_errors():
    outputs, batch = drawn_case()
    other = torch.randn(2, 1, 16, 16)
    alone, both = (Outputs(outputs.sr, outputs.logits, aux=aux) for aux in ((), (other,)))
    loss = LOSSES.build({"name": "bce", "aux_weight": 1.0, "pixel_weight": {"failure": 1.0}})
    weight = torch.exp((outputs.logits.sigmoid() - batch.mask).abs())
    expected = torch.nn.functional.binary_cross_entropy_with_logits(other, batch.mask, weight, reduction="none") / 2
    torch.testing.assert_close(loss(both, batch, START) - loss(alone, batch, START), expected.mean((1, 2, 3)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_finite_with_gradient_on_uniform_masks(name, fill):
    outputs, batch = drawn_case()
    batch.mask = torch.full_like(batch.mask, fill)
    distance = signed_distance(np.full((16, 16), fill, np.uint8))
    batch.distance = torch.from_numpy(distance).expand(2, 1, 16, 16)
    outputs.logits.requires_grad_(), outputs.sr.requires_grad_()
    value = LOSSES.build({"name": name, "pixel_weight": {"crack": 2.0, "failure": 1.0}})(outputs, batch, START)
    value.sum().backward()
    assert value.shape == (2,) and value.dtype == torch.float32 and torch.isfinite(value).all()
    assert all(x.grad is None or torch.isfinite(x.grad).all() for x in (outputs.logits, outputs.sr))


@pytest.mark.parametrize("setting, message", [
    (2.0, "a mapping or null, got 2.0"),
    ([1, 2], "mapping"),
    ({"cracks": 1}, r"does not take 'cracks' \(did you mean crack\?\)"),
    ({"crack": -1}, r"crack must be a number of 0 to 1e\+06"),
    ({"failure": "much"}, "failure must be a number"),
    ({"failure": None}, "failure must be a number"),
    ({"begin": True}, "begin must be a whole number"),
    ({"crack": 10**20}, "crack must be a number"),
    ({"crack": math.nan}, "crack must be a number"),
    ({"crack": math.inf}, "crack must be a number"),
])  # fmt: skip
def test_impossible_weights_are_refused_when_the_loss_is_built(setting, message):
    for name in ALL:
        with pytest.raises(ValueError, match=message) as error:
            LOSSES.build({"name": name, "pixel_weight": setting})
        assert "\n" not in str(error.value)


def test_what_is_not_set_weighs_nothing():
    case = drawn_case()
    for setting in (None, {}, {"crack": 0.0, "failure": 0.0, "begin": 5}):
        assert build_weight(setting)(*case, Progress(10, 100)) == ()
