"""Calibration: the error against torchmetrics, temperatures of logits made with one, and what exports keep."""

import json

import numpy as np
import one_convolution  # noqa: F401, registers
import onnxruntime
import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError

from cssr import JointModel
from cssr.config.loading import load_config
from cssr.config.schema import ModelConfig
from cssr.data.batch import Batch, Outputs
from cssr.evaluation.aggregate import aggregate, intervals
from cssr.evaluation.calibration import (
    BINS,
    LOGIT_BINS,
    TEMPERATURES,
    expected_calibration_error,
    fit_temperature,
    logit_histogram,
    reliability,
)
from cssr.evaluation.evaluator import measure
from cssr.evaluation.results import compose
from cssr.models.deployment import deploy
from cssr.models.joint import build_model

MODEL = {"scale": 2, "sr": {"name": "bicubic"}, "seg": {"name": "one_convolution"}}
DBPN = {"name": "dbpn", "stages": 2, "width": 2, "features": 2}
UNET = {"name": "unet", "encoder": "vgg11", "depth": 2, "width": 2}


def drawn(temperature: float, mean: float = -2.0, deviation: float = 2.5, side: int = 500) -> tuple:
    """Logits that are too large by a factor, and a mask that follows those without it: 2 1 S S each."""
    random = torch.Generator().manual_seed(0)
    true = mean + deviation * torch.randn(2, 1, side, side, generator=random)
    return temperature * true, torch.rand(true.shape, generator=random) < true.sigmoid()


def histogram(logits: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    return logit_histogram(logits, mask).sum(0).numpy()


# ---- the histogram and what follows from it ----


def test_every_pixel_is_counted_once_with_its_class():
    logits = torch.tensor([[[[-1e9, -40.0, -0.01, 0.01, 40.0, torch.inf, torch.nan, -torch.inf]]]]).repeat(2, 1, 1, 1)
    mask = torch.tensor([[[[0, 0, 0, 1, 1, 1, 0, 1.0]]], [[[0.0] * 8]]])
    found = logit_histogram(logits, mask)
    assert found.shape == (2, 2, LOGIT_BINS) and found.dtype == torch.int64
    assert found.sum((2,)).tolist() == [[4, 4], [8, 0]]
    ends = found[0, :, [0, -1]].tolist()
    assert ends == [[3, 0], [1, 2]]
    middle = found[0].nonzero()[:, 1].tolist()
    assert sorted(middle)[2:4] == [LOGIT_BINS // 2 - 1, LOGIT_BINS // 2]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0, 4.0])
def test_error_equals_torchmetrics(temperature):
    logits, mask = drawn(temperature)
    reference = BinaryCalibrationError(n_bins=BINS, norm="l1")(logits.sigmoid().flatten(), mask.flatten().int())
    assert expected_calibration_error(histogram(logits, mask)) == pytest.approx(float(reference), abs=1.5e-3)


def test_curve_of_probabilities_with_known_shares_of_crack():
    """Of p = .1 the share .3 is crack, of p = .9 the share .8: the error is (.2 + .1) / 2."""
    logits = torch.tensor([0.1, 0.9]).logit().repeat_interleave(1000).view(1, 1, 1, 2000)
    mask = torch.cat([torch.arange(1000) < 300, torch.arange(1000) < 800]).view(1, 1, 1, 2000)
    found = reliability(histogram(logits, mask))
    full = np.flatnonzero(found.pixels)
    assert full.tolist() == [1, 13] and found.pixels[full].tolist() == [1000, 1000]
    np.testing.assert_allclose(found.prob[full], [0.1, 0.9], atol=0.01)
    np.testing.assert_allclose(found.crack[full], [0.3, 0.8])
    assert np.isnan(found.crack[[0, 7, 14]]).all()
    assert expected_calibration_error(histogram(logits, mask)) == pytest.approx(0.15, abs=0.005)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.5, 3.0, 5.0])
def test_the_temperature_of_logits_is_recovered(temperature):
    assert fit_temperature(histogram(*drawn(temperature))) == pytest.approx(temperature, rel=0.02)


def test_nothing_is_fitted_to_one_class_and_little_to_a_perfect_one():
    logits, mask = drawn(2.0, side=50)
    assert fit_temperature(histogram(logits, torch.zeros_like(mask))) == 1
    assert fit_temperature(histogram(logits, torch.ones_like(mask))) == 1
    assert fit_temperature(histogram(logits, logits > 0)) == pytest.approx(TEMPERATURES[0], rel=0.01)


# ---- of a set ----


def rows_of(logits: torch.Tensor, mask: torch.Tensor) -> list[dict]:
    image = torch.rand(len(logits), 3, *logits.shape[-2:])
    batch = Batch(image, mask.float(), key=[f"k{n}" for n in range(len(logits))], lq=image)
    return measure(batch, Outputs(sr=image, logits=logits), distances=False)


def test_errors_of_a_set_are_a_mean_of_images_and_that_of_all_pixels():
    """Two images that err to both sides: together they are calibrated, each by itself is not."""
    logits = torch.full((2, 1, 20, 20), 0.5).logit()
    mask = torch.stack([torch.ones(1, 20, 20), torch.zeros(1, 20, 20)])
    rows = rows_of(logits, mask)
    found = aggregate(rows)
    assert found["image"]["ece"] == pytest.approx(0.5, abs=0.01) and found["pooled"]["ece"] < 0.01
    low, high = intervals(rows)["pooled"]["ece"]
    assert low < 0.01 and high == pytest.approx(0.5, abs=0.01)
    with_old = aggregate([{k: v for k, v in row.items() if k not in ("ece", "histogram")} for row in rows])
    assert with_old["image"]["ece"] is None and with_old["pooled"]["ece"] is None


def test_results_keep_the_curve_and_the_temperature_of_the_raw_logits():
    """Logits that were divided by 2 already and are too large by 1.5 still: 3 in all."""
    rows = rows_of(*drawn(1.5, side=200))
    found = compose(rows, {"model_settings": {"temperature": 2.0}})
    assert found["calibration"]["temperature"] == pytest.approx(3, rel=0.02)
    curve = found["calibration"]["reliability"]
    assert sum(curve["pixels"]) == 80_000 and [len(values) for values in curve.values()] == [BINS] * 3
    assert found["per_image"][0]["ece"] > 0.01 and "histogram" not in found["per_image"][0]
    assert {"calibration.temperature", "calibration.reliability", "ece"} <= found["definitions"].keys()


# ---- the model ----


@torch.no_grad()
@pytest.mark.parametrize("form", [
    MODEL,
    {"scale": 2, "form": {"name": "seg_then_sr"}, "sr": DBPN, "seg": UNET},
    {"scale": 2, "form": {"name": "dsrl", "encoder": "resnet18", "width": 4}},
])  # fmt: skip
@pytest.mark.parametrize("orientations", [1, 8])
def test_logits_of_every_form_are_divided_by_the_temperature(form, orientations):
    torch.manual_seed(0)
    plain = build_model(ModelConfig(**form)).eval()
    calibrated = build_model(ModelConfig(**form, temperature=2.5)).eval()
    calibrated.load_state_dict(plain.state_dict())
    plain.orientations = calibrated.orientations = orientations
    lq = torch.rand(2, 3, 80, 16)
    torch.testing.assert_close(2.5 * calibrated(lq).logits, plain(lq).logits)
    torch.testing.assert_close(calibrated.infer(lq, 70, 32).logits * 2.5, plain.infer(lq, 70, 32).logits)
    assert torch.equal(calibrated(lq).sr, plain(lq).sr)
    calibrated.train(), plain.train()
    torch.manual_seed(0)
    trained = plain(lq).logits
    torch.manual_seed(0)
    assert torch.equal(calibrated(lq).logits, trained)


@pytest.mark.parametrize("value", ["0", "-1", ".inf", ".nan"])
def test_temperatures_that_divide_nothing_are_refused(value):
    with pytest.raises(ValueError, match="^model.temperature must be .*, got"):
        load_config(overrides=[f"model.temperature={value}"])


@pytest.mark.slow
@torch.no_grad()
def test_exports_and_onnx_keep_it(tmp_path):
    build_model(ModelConfig(**MODEL, temperature=1.75)).save_pretrained(tmp_path / "export")
    model, lq = JointModel.from_pretrained(tmp_path / "export"), torch.rand(1, 3, 20, 24)
    assert model.config.temperature == 1.75
    expected = (model.seg(model.normalize(model(lq).sr))[0] / 1.75).sigmoid()
    deploy(model, ["onnx"], tmp_path / "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    prob = session.run(["prob"], {"lq": lq.numpy()})[0]
    np.testing.assert_allclose(prob, expected.numpy(), atol=1e-4)
    assert any("temperature 1.75" in line for line in json.loads((tmp_path / "onnx/model.json").read_text())["inside"])
