"""Losses against the golden vectors, and what they give in corner cases."""

import math

import numpy as np
import pytest
import torch

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.data.transforms import signed_distance
from cssr.losses import LOSSES
from cssr.losses.segmentation import normalized_distance

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
    outputs = Outputs(sr=sr, logits=logits, kernel=kernel, features=(sr, sr + 1))
    outputs.sr_features, outputs.hr_features = (sr + 1,), (torch.zeros(2, 3, 16, 16),)
    if name == "at_lq":
        outputs.lq_logits = logits[..., ::4, ::4]
    else:
        outputs.aux, outputs.mask_sr = (logits,), logits
    value = LOSSES.build(name)(outputs, batch, START)
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


@pytest.mark.parametrize("settings", [
    {"name": "bce", "weight": 20}, {"name": "bce", "weight": [0, 0]}, {"name": "combo", "mix": [1, 2, 3]},
    {"name": "boundary_combo", "weight": [-1, 1]}, {"name": "generalized_boundary_combo", "mix": ["a", 1]},
])  # fmt: skip
def test_impossible_pairs_are_refused_when_the_loss_is_built(settings):
    with pytest.raises(ValueError, match="(weight|mix) (needs two numbers|must be a list, each a number)"):
        LOSSES.build(settings)


# ---- the super-resolved mask, and segmentation at low resolution ----


def test_mask_l1_closed_form():
    mask = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    batch, mask_sr = Batch(hr=mask, mask=mask), torch.full((2, 1, 4, 4), 0.25, requires_grad=True)
    value = LOSSES.build("mask_l1")(Outputs(sr=mask, logits=mask, mask_sr=mask_sr), batch, START)
    assert value.tolist() == [0.25, 0.75]
    value.sum().backward()
    assert mask_sr.grad[0].min() > 0 > mask_sr.grad[1].max()


def crack_at_both_sizes(method: str = "area") -> tuple[Outputs, Batch, Batch]:
    """LQ logits, with a mask of whole blocks of 4 x 4 pixels, and the same mask drawn at LQ size."""
    small = torch.zeros(2, 1, 6, 6)
    small[0, :, :, 1:4] = 1  # the second mask is empty
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    outputs = Outputs(large, torch.randn(2, 1, 24, 24), lq_logits=torch.randn(2, 1, 6, 6, requires_grad=True))
    return outputs, batch_of(large.numpy()), batch_of(small.numpy())


def test_at_lq_compares_with_the_reduced_mask():
    outputs, batch, small = crack_at_both_sizes()
    for inner in ("dice", "bce", "crackformer_side"):
        found = LOSSES.build({"name": "at_lq", "loss": {"name": inner}, "method": "area"})(outputs, batch, START)
        at_lq = Outputs(small.hr, outputs.lq_logits)
        torch.testing.assert_close(found, LOSSES.build(inner)(at_lq, small, START))
    found.sum().backward()
    assert outputs.lq_logits.grad.abs().max() > 0


def test_at_lq_hands_on_shares_and_distances_in_lq_pixels(monkeypatch):
    """The bicubic mask overshoots and is clipped; within a pixel, distances are those of the mask drawn at LQ size."""
    seen = []
    spy = lambda outputs, batch, progress: seen.append((outputs, batch)) or outputs.logits.mean((1, 2, 3))  # noqa: E731
    assert "dice" in LOSSES.names()  # all are imported by now
    monkeypatch.setitem(LOSSES._factories, "dice", lambda: spy)
    outputs, batch, small = crack_at_both_sizes()
    assert LOSSES.build({"name": "at_lq", "loss": "dice"})(outputs, batch, START).shape == (2,)
    (inner_outputs, inner), = seen  # fmt: skip
    assert inner_outputs.logits is outputs.lq_logits and batch.mask.shape[-1] == 24
    assert inner.mask.shape == inner.distance.shape == (2, 1, 6, 6)
    assert inner.mask.min() == 0 and inner.mask.max() == 1 and not inner.mask[1].any()
    torch.testing.assert_close(inner.mask.round(), small.mask)
    assert (inner.distance - small.distance).abs().max() < 1 and not inner.distance[1].any()
    assert (inner.distance[0, 0, :, 2] < 0).all() and (inner.distance[0, 0, :, 5] > 1).all()


def test_at_lq_asks_for_what_its_loss_needs():
    assert LOSSES.build("at_lq").needs_distance
    assert not LOSSES.build({"name": "at_lq", "loss": "dice"}).needs_distance
    assert LOSSES.build({"name": "at_lq", "loss": {"name": "bce", "pixel_weight": {"crack": 1}}}).needs_distance


def test_at_lq_takes_a_weight_of_lq_pixels():
    outputs, batch, small = crack_at_both_sizes()
    inner = {"name": "bce", "pixel_weight": {"failure": 1.0}}
    found = LOSSES.build({"name": "at_lq", "loss": inner, "method": "area"})(outputs, batch, START)
    torch.testing.assert_close(found, LOSSES.build(inner)(Outputs(small.hr, outputs.lq_logits), small, START))


# ---- DSRL's feature affinity ----


def test_feature_affinity_equals_the_published_sum_over_the_samples(golden):
    """The released code adds up the entries of all samples; its number is ours times the samples of the batch."""
    arrays = golden("dsrl_x4")
    features = [arrays[name].astype(np.float64) for name in ("seg_feature", "sr_feature")]
    blocks = [x.reshape(2, 3, 8, 16, 8, 16).mean((3, 5)).reshape(2, 3, 64) for x in features]
    of_seg, of_sr = (np.einsum("bci,bcj->bij", x, x) for x in blocks)
    published = np.abs(of_sr - of_seg).sum() / 64**2
    outputs = Outputs(None, None, features=tuple(torch.from_numpy(x).float() for x in features))
    value = LOSSES.build("feature_affinity")(outputs, None, START)
    assert value.shape == (2,) and value.dtype == torch.float32
    assert value.sum().item() == pytest.approx(published, rel=1e-5)


def test_feature_affinity_of_unit_features_is_that_of_their_angles():
    """Normalised, the length of a feature says nothing; without, it does."""
    features = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 8, 8, requires_grad=True)
    longer = Outputs(None, None, features=(features[0], 5 * features[1]))
    plain, unit = (LOSSES.build({"name": "feature_affinity", "pool": 2, "normalize": n}) for n in (False, True))
    outputs = Outputs(None, None, features=features)
    torch.testing.assert_close(unit(outputs, None, START), unit(longer, None, START))
    assert (unit(outputs, None, START) < 2).all() and not torch.isclose(
        *(plain(o, None, START).sum() for o in (outputs, longer))
    )
    unit(outputs, None, START).sum().backward()
    assert all(x.grad.abs().max() > 0 for x in features)


def test_features_may_vanish():
    zero = torch.zeros(1, 3, 16, 16, requires_grad=True)
    for normalize in (False, True):
        outputs = Outputs(None, None, features=(zero, zero * 2))
        value = LOSSES.build({"name": "feature_affinity", "normalize": normalize})(outputs, None, START)
        value.sum().backward()
        assert value.item() == 0 and torch.isfinite(zero.grad).all()


@pytest.mark.parametrize("name, outputs, message", [
    ("mask_l1", {}, "loss 'mask_l1' needs .* model.form=seg_then_sr"),
    ("at_lq", {}, "loss 'at_lq' needs .* model.form=seg_then_sr"),
    ("feature_affinity", {}, "loss 'feature_affinity' needs .* model.form=dsrl"),
    ("feature_affinity", {"features": (torch.zeros(1, 3, 8, 32),) * 2}, "pool=16 exceeds features of 8x32"),
])  # fmt: skip
def test_what_the_model_does_not_give_is_named(name, outputs, message):
    image = torch.zeros(1, 3, 8, 8)
    batch = Batch(hr=image, mask=image[:, :1], distance=image[:, :1])
    with pytest.raises(ValueError, match=message) as error:
        LOSSES.build(name)(Outputs(sr=image, logits=image[:, :1], **outputs), batch, START)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings, message", [
    ({"name": "feature_affinity", "pool": 0}, "pool must be a whole number"),
    ({"name": "feature_affinity", "pool": 2.5}, "pool must be a whole number"),
    ({"name": "at_lq", "loss": {"name": "dise"}}, "unknown loss 'dise'"),
    ({"name": "at_lq", "loss": {"name": "bce", "pixel_weight": {"crack": -1}}}, "crack must be"),
    ({"name": "at_lq", "method": "cubic"}, "method must be"),
])  # fmt: skip
def test_impossible_settings_are_refused_when_the_loss_is_built(settings, message):
    with pytest.raises(ValueError, match=message):
        LOSSES.build(settings)
