"""Pixels without data change nothing of what is predicted, measured and learned elsewhere."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cssr.config.loading import from_dict
from cssr.config.schedules import Progress
from cssr.cracks.run import read_mask
from cssr.data.batch import Batch, Outputs
from cssr.evaluation.evaluator import evaluate
from cssr.inference.predictor import predict
from cssr.losses import LOSSES
from cssr.models.joint import build_model
from cssr.models.tiling import Moments, moments_of
from cssr.predict import main
from cssr.utils import geotiff
from cssr.utils.photographs import read_with_valid

SEG = {"name": "unet", "encoder": "resnet10t", "width": 4, "encoder_args": {"channels": [8, 8, 16, 16]}}
NETWORKS = {
    "dbpn": {"name": "dbpn", "stages": 2, "width": 2, "features": 4},
    "kbpn": {"name": "kbpn", "stages": 2, "width": 4, "features": 4, "hidden": 4, "kernel_size": 9},
}
WHOLE, BOX = (72, 64), np.s_[20:60, 8:48]  # of the photograph, and where it holds data


@pytest.fixture(params=NETWORKS)
def model(request):
    torch.manual_seed(0)
    return build_model(from_dict({"model": {"scale": 2, "sr": NETWORKS[request.param], "seg": SEG}}).model).eval()


@pytest.fixture
def framed(tmp_path):
    """A photograph alone and in frames without data, marked in several ways."""
    pixels = np.random.default_rng(0).integers(1, 255, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "crop.png")
    for value in (0, 255):
        layers = np.full((*WHOLE, 4), value, np.uint8)
        layers[..., 3] = 0
        layers[BOX] = np.dstack([pixels, np.full((40, 40), 255, np.uint8)])
        Image.fromarray(layers).save(tmp_path / f"alpha{value}.png")
        if geotiff.installed():
            import rasterio

            how = {"driver": "GTiff", "height": WHOLE[0], "width": WHOLE[1], "count": 3, "dtype": "uint8"}
            how |= {"crs": "EPSG:25832", "transform": rasterio.Affine(0.1, 0, 5e5, 0, -0.1, 5.6e6)}
            with rasterio.open(tmp_path / f"nodata{value}.tif", "w", **how, nodata=value) as file:
                file.write(layers[..., :3].transpose(2, 0, 1))
    return tmp_path


def inside(array: np.ndarray) -> np.ndarray:
    return array[40:120, 16:96]


@pytest.mark.parametrize("tile", [0, 32])
def test_a_frame_without_data_changes_nothing(model, framed, tile):
    expected = predict(model, framed / "crop.png", tile, 8)
    assert expected.valid is None
    for path in [*framed.glob("alpha*"), *framed.glob("nodata*")]:
        found = predict(model, path, tile, 8)
        assert inside(found.valid).all() and found.valid.sum() == 80 * 80
        assert np.abs(inside(found.prob) - expected.prob).max() < 1e-5
        assert np.abs(inside(found.sr).astype(int) - expected.sr).max() <= 1
        assert not found.prob[~found.valid].any() and not found.sr[~found.valid].any()
        assert (found.kernel is None) or np.allclose(found.kernel, expected.kernel, atol=1e-6)


def test_a_corner_without_data_has_no_part_in_moments_and_kernel(model):
    """What stands in missing pixels is arbitrary: only what lies near them sees what is put there."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    pixels[:20, :20, 3] = 0
    pixels[:20, :20, :3] = 0
    other = pixels.copy()
    other[:20, :20, :3] = 255
    for tile in (0, 32):
        found, same = predict(model, pixels, tile, 8), predict(model, other, tile, 8)
        assert np.array_equal(found.prob, same.prob) and np.array_equal(found.sr, same.sr)
        assert not found.prob[:40, :40].any()


def test_tiles_of_a_mask_super_resolved_have_the_moments_of_the_whole():
    """A dark half and a bright one, and a corner without data in the dark one."""
    torch.manual_seed(0)
    form = {"scale": 2, "form": {"name": "seg_then_sr"}, "sr": NETWORKS["dbpn"], "seg": SEG}
    model = build_model(from_dict({"model": form}).model).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (96, 64, 4)).astype(np.uint8)
    pixels[:48, :, :3] //= 8
    pixels[..., 3] = 255
    pixels[:40, :40, 3] = 0
    seen = []
    model.seg.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., -16:, :].mean().item()))
    predict(model, pixels, 0, 8)
    predict(model, pixels, 64, 8)
    assert seen[-1] == pytest.approx(seen[0], abs=0.01) and len(seen) > 2


def test_warnings_are_of_the_pixels_that_hold_data(model):
    """Dark pixels beside those that are missing would be continued into most of the image."""
    model.trained_on = {"brightness": [0.4, 0.6], "contrast": [0.0, 1.0], "blur": None, "smallest": 8}
    pixels = np.full((64, 64, 4), 128, np.uint8)
    pixels[:, :40] = 0, 0, 0, 0
    pixels[0, 0] = 128, 128, 128, 255
    pixels[:, 40:42] = 0, 0, 0, 255
    assert predict(model, pixels).warnings == ()


def test_moments_are_of_the_pixels_that_count():
    image, valid = torch.rand(2, 3, 20, 10), torch.zeros(2, 1, 20, 10)
    valid[0, :, 4:, :7] = valid[1, :, :9] = 1
    mean, variance = moments_of(image, valid)
    parts = Moments()
    for top in range(0, 20, 6):
        parts.add(image[..., top : top + 6, :], valid[..., top : top + 6, :])
    for sample, part in enumerate((image[0, :, 4:, :7], image[1, :, :9])):
        expected = torch.var_mean(part.flatten(1), 1, correction=0)[::-1]
        for found in ((mean, variance), parts.result()):
            for one, other in zip(found, expected):
                assert torch.allclose(one[sample].flatten(), other, atol=1e-6)


@pytest.mark.parametrize("size", ["sr", "photo"])
def test_files_mark_what_has_no_data(model, framed, tmp_path, size):
    model.save_pretrained(tmp_path / "export")
    paths = [path for path in (framed / "alpha0.png", framed / "nodata255.tif") if path.exists()]
    for path in [framed / "crop.png", *paths]:
        words = [
            str(path),
            "--model",
            str(tmp_path / "export"),
            "--out",
            str(tmp_path / "out"),
            "--size",
            size,
            "--measure",
        ]
        main([*words, "--tile", "66", "--threshold", "0.3", "--device", "cpu"])
    scale = 2 if size == "sr" else 1
    rows, columns = slice(20 * scale, 60 * scale), slice(8 * scale, 48 * scale)
    crop = np.asarray(Image.open(tmp_path / "out/crop_prob.png")).astype(int)
    for path in paths:
        found, valid = read_with_valid(tmp_path / f"out/{path.stem}_prob{path.suffix}")
        assert found.shape[:2] == (WHOLE[0] * scale, WHOLE[1] * scale)
        assert valid[rows, columns].all() and valid.sum() == (40 * scale) ** 2
        assert np.abs(found[rows, columns, 0].astype(int) - crop).max() <= 1
        for name in ("sr", "overlay"):
            valid = read_with_valid(tmp_path / f"out/{path.stem}_{name}{path.suffix}")[1]
            assert valid.sum() == (40 * (2 if name == "sr" else scale)) ** 2
        mask = read_mask(tmp_path / f"out/{path.stem}_mask{path.suffix}")[0]
        assert mask.sum() == mask[rows, columns].sum()
        output = [json.loads((tmp_path / f"out/{p}_prediction.json").read_text())["found"] for p in ("crop", path.stem)]
        assert output[0]["crack"] == pytest.approx(output[1]["crack"], abs=2e-3)


class Fixed(torch.nn.Module):
    """A model whose outputs are given."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def infer(self, lq, tile, valid=None):
        return self.outputs


def test_measures_leave_pixels_without_data_out():
    torch.manual_seed(0)
    hr, mask, valid = torch.rand(2, 3, 24, 24), (torch.rand(2, 1, 24, 24) > 0.8).float(), torch.zeros(2, 1, 24, 24)
    valid[0, :, :, :12] = 1
    mask = mask * valid
    sr, logits = hr + 0.1 * torch.rand_like(hr), torch.randn(2, 1, 24, 24)

    def rows(part, valid):
        batch = Batch(hr[part], mask[part], key=["a", "blank"][: len(hr[part])], lq=hr[part], valid=valid)
        return evaluate(Fixed(Outputs(sr[part], logits[part])), [batch], None, torch.device("cpu"))

    (alone,) = rows(np.s_[:1, :, :, :12], None)
    (found,) = rows(np.s_[:], valid)  # the blank image gives none
    assert found["key"] == "a" and found["pixels"] == alone["pixels"] == 24 * 12
    assert [found[name] for name in ("tp", "fp", "fn")] == [alone[name] for name in ("tp", "fp", "fn")]
    assert found["mse"] == pytest.approx(alone["mse"]) and found["psnr"] == pytest.approx(alone["psnr"])
    assert found["ece"] == pytest.approx(alone["ece"])


def test_losses_have_no_gradient_where_there_are_no_data():
    torch.manual_seed(0)
    valid = (torch.rand(2, 1, 8, 8) > 0.5).float()
    sr, logits = torch.rand(2, 3, 8, 8, requires_grad=True), torch.randn(2, 1, 8, 8, requires_grad=True)
    hr, mask = torch.rand(2, 3, 8, 8), (torch.rand(2, 1, 8, 8) > 0.5).float() * valid
    seen = Outputs(sr, logits).where_valid(Batch(hr, mask, lq=hr, valid=valid))
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(seen.logits, mask, reduction="none")
    (entropy.sum() + (seen.sr - hr).square().sum()).backward()
    for tensor in (sr, logits):
        assert torch.equal((tensor.grad != 0).any(1, keepdim=True), valid > 0)
    assert entropy[valid == 0].max() < 1e-6


@pytest.mark.parametrize("loss", ["task_perceptual", "feature_affinity"])
def test_losses_of_features_leave_out_places_without_data(loss):
    torch.manual_seed(0)
    valid, hr = torch.zeros(2, 1, 64, 64), torch.rand(2, 3, 64, 64)
    valid[:, :, :, :32] = 1
    batch, loss = Batch(hr, valid, lq=hr, valid=valid), LOSSES.build(loss)
    maps = [torch.rand(2, 3, 64, 64, requires_grad=True) for _ in range(2)]

    def value(*maps):
        names = {"features": maps, "sr_features": maps[:1], "hr_features": maps[1:]}
        return loss(Outputs(hr, valid, **names).where_valid(batch), batch, Progress(0, 1))

    expected = value(*maps)
    expected.sum().backward()
    assert expected.min() > 0 and maps[0].grad[..., :32].abs().sum() > 0 and not maps[0].grad[..., 32:].any()
    others = [torch.where(valid > 0, x.detach(), 9 * torch.rand_like(x)) for x in maps]
    assert torch.equal(value(*others), expected)
