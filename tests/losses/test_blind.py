"""CSBSR's loss and joint model against the golden vectors."""

import numpy as np
import pytest
import torch

from cssr.config.schedules import Progress
from cssr.config.schema import ModelConfig
from cssr.data.batch import Batch, Outputs
from cssr.data.transforms import signed_distance
from cssr.losses import LOSSES
from cssr.models.export import assign_state
from cssr.models.joint import build_model
from cssr.models.published import convert_joint

START = Progress(0, 100)


def tensors(arrays: dict, *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(arrays[name]) for name in names]


def test_the_loss_equals_the_published_one(golden):
    arrays = golden("losses_degradation_metrics")
    sr, hr, lq, kernel, predicted, mask = tensors(arrays, "sr", "hr", "lr", "kernels", "kernel_pred", "target")
    batch = Batch(hr=hr, mask=mask, lq=lq, kernel=kernel)
    value = LOSSES.build("blind")(Outputs(sr=sr, logits=mask, kernel=predicted), batch, START)
    np.testing.assert_allclose(value, arrays["blind_sr_loss"], rtol=1e-5, atol=1e-7)


def test_weights_choose_the_terms():
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[..., 1, 1] = 1
    hr, sr = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)
    batch = Batch(hr=hr, mask=hr[:, :1], lq=torch.full((1, 3, 2, 2), 0.25), kernel=kernel)
    outputs = Outputs(sr=sr, logits=hr[:, :1], kernel=kernel + 0.1)
    terms = [LOSSES.build({"name": "blind", "weights": w, "method": "area"})(outputs, batch, START).item()
             for w in ([1, 0, 0], [0, 0, 1])]  # fmt: skip
    assert terms == pytest.approx([0.5, 0.01])


def test_joint_csbsr_equals_the_published_system(golden, reference_state):
    """KBPN and PSPNet together: SR, probability, kernel, both losses, their sum, and its gradient on the LQ image."""
    arrays = golden("csbsr_pspnet_joint")
    lq, hr, mask, kernel = tensors(arrays, "lr", "hr", "mask", "kernel_target")
    model = build_model(ModelConfig(sr={"name": "kbpn"}, seg={"name": "pspnet"}, clip="never")).eval()
    assign_state(model, convert_joint(reference_state("csbsr_pspnet_joint"), model.config), "golden")
    distance = np.stack([signed_distance(m[0].astype(np.uint8)) for m in arrays["mask"]])[:, None]
    batch = Batch(hr=hr, mask=mask, distance=torch.from_numpy(distance), lq=lq.requires_grad_(), kernel=kernel)
    outputs = model(batch.lq)
    for found, name in ((outputs.sr, "sr"), (outputs.logits.sigmoid(), "prob"), (outputs.kernel, "kernel")):
        np.testing.assert_allclose(found.detach(), arrays[name], rtol=1e-4, atol=1e-4)
    sr_loss = LOSSES.build("blind")(outputs, batch, START)
    seg_loss = LOSSES.build({"name": "boundary_combo", "alpha": 0.6, "aux_weight": 0.4})(outputs, batch, START)
    np.testing.assert_allclose(sr_loss.detach(), arrays["sr_loss"], rtol=1e-4)
    np.testing.assert_allclose(seg_loss.detach(), arrays["seg_loss"], rtol=1e-4)
    total = 0.7 * sr_loss.mean() + 0.3 * seg_loss.mean()
    assert total.item() == pytest.approx(float(arrays["total_loss"]), rel=1e-4)
    total.backward()
    scale = np.abs(arrays["grad_total_wrt_lr"]).max()
    np.testing.assert_allclose(lq.grad / scale, arrays["grad_total_wrt_lr"] / scale, atol=2e-3)


@pytest.mark.parametrize("kernel, true, message", [
    (None, torch.ones(1, 1, 3, 3), "predicts a blur kernel"),
    (torch.ones(1, 1, 3, 3), None, "degradation=gaussian"),
    (torch.ones(1, 1, 3, 3), torch.ones(1, 1, 5, 5), "kernel_size"),
])  # fmt: skip
def test_what_does_not_fit_is_named(kernel, true, message):
    image = torch.zeros(1, 3, 4, 4)
    batch = Batch(hr=image, mask=image[:, :1], lq=image[..., ::4, ::4], kernel=true)
    with pytest.raises(ValueError, match=message):
        LOSSES.build("blind")(Outputs(sr=image, logits=image[:, :1], kernel=kernel), batch, START)


@pytest.mark.parametrize("weights", [[1, 2], [1, 1, -1], 1.0, ["a", 1, 1], None])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="three numbers|a list, each a number"):
        LOSSES.build({"name": "blind", "weights": weights})


def test_the_true_kernel_is_asked_for():
    assert LOSSES.build("blind").needs_kernel


def test_an_unknown_resampler_is_refused_when_the_loss_is_built():
    with pytest.raises(ValueError, match="method must be"):
        LOSSES.build({"name": "blind", "method": "cubic"})


def test_the_kernel_alone_may_be_trained_and_sr_stays_in_the_graph():
    """CSBSR's kernel-only stretch: the published loss of it is the plain MSE; SR has a gradient, of 0."""
    sr, kernel = torch.rand(1, 3, 8, 8, requires_grad=True), torch.full((1, 1, 3, 3), 1 / 9, requires_grad=True)
    batch = Batch(
        hr=torch.rand(1, 3, 8, 8), mask=torch.zeros(1, 1, 8, 8), lq=torch.rand(1, 3, 2, 2), kernel=kernel.detach() + 0.1
    )
    outputs = Outputs(sr=sr, logits=batch.mask, kernel=kernel)
    value = LOSSES.build({"name": "blind", "weights": [0, 0, 1]})(outputs, batch, START)
    assert value.item() == pytest.approx(0.01)
    value.sum().backward()
    assert not sr.grad.any() and kernel.grad.abs().min() > 0
