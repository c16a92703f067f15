"""Test-time augmentation: the mean over flips and quarter turns, in every form of the model and by every way in."""

import itertools

import one_convolution  # noqa: F401, registers
import pytest
import torch
from torch import nn

from cssr.config.schema import ModelConfig
from cssr.models.deployment import Deployed, deploy
from cssr.models.joint import build_model
from cssr.models.tta import ORIENTATIONS, mean_logits, turned, turned_back

EQUIVARIANT = {"scale": 2, "sr": {"name": "bicubic"}, "seg": {"name": "one_convolution"}}
KBPN = {"name": "kbpn", "stages": 2, "width": 2, "features": 2, "hidden": 2, "kernel_size": 5, "predicted_size": 3}
DBPN = {"name": "dbpn", "stages": 2, "width": 2, "features": 2}
UNET = {"name": "unet", "encoder": "vgg11", "depth": 2, "width": 2}


@pytest.fixture
def uneven():
    """A model that finds another thing in each orientation: its one convolution is steeper to one side."""
    model = build_model(ModelConfig(**EQUIVARIANT)).eval()
    with torch.no_grad():
        model.seg.head.weight.copy_(torch.randn(1, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    return model


def tta(model: nn.Module, count: int = ORIENTATIONS) -> nn.Module:
    model.orientations = count
    return model


def by_hand(function, x: torch.Tensor) -> torch.Tensor:
    """The mean of probabilities over the dihedral group, by transposes and flips instead of turns."""
    total = 0
    for transposed, up, left in itertools.product((False, True), repeat=3):
        part = x.mT if transposed else x
        sides = [side for side, flipped in ((-2, up), (-1, left)) if flipped]
        prob = function(part.flip(sides)).double().sigmoid().flip(sides)
        total = total + (prob.mT if transposed else prob)
    return total / 8


@pytest.mark.parametrize("number", range(ORIENTATIONS))
def test_turning_back_is_the_inverse(number):
    x = torch.arange(24).view(1, 1, 4, 6)
    assert torch.equal(turned_back(turned(x, number), number), x)
    others = [turned(x[..., :4], n) for n in range(ORIENTATIONS) if n != number]
    assert not any(torch.equal(turned(x[..., :4], number), other) for other in others)


@torch.no_grad()
def test_an_equivariant_network_is_left_as_it_is():
    model, lq = build_model(ModelConfig(**EQUIVARIANT)).eval(), torch.rand(2, 3, 13, 20)
    plain = model(lq).logits
    torch.testing.assert_close(tta(model)(lq).logits, plain, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_another_one_gives_the_mean_of_all_orientations(uneven):
    lq = torch.rand(2, 3, 13, 20)
    plain = uneven(lq)
    image = uneven.normalize(plain.sr)
    expected = by_hand(lambda x: uneven.seg(x)[0], image)
    outputs = tta(uneven)(lq)
    torch.testing.assert_close(outputs.logits.double().sigmoid(), expected)
    assert (plain.logits.sigmoid() - expected).abs().max() > 0.1
    assert torch.equal(outputs.sr, plain.sr)


def test_training_has_one_orientation(uneven):
    lq = torch.rand(2, 3, 8, 8)
    plain = uneven.train()(lq).logits
    assert torch.equal(tta(uneven)(lq).logits, plain)


@pytest.mark.parametrize("logit", [-80.0, -20.0, 0.5, 30.0])
def test_sure_networks_keep_their_logits(logit):
    found = mean_logits(lambda x, _: x, torch.full((1, 1, 2, 3), logit), None, ORIENTATIONS)
    torch.testing.assert_close(found, torch.full((1, 1, 2, 3), logit))


@torch.no_grad()
def test_tiles_are_averaged_as_the_whole_is(uneven):
    lq = torch.rand(1, 3, 90, 150)
    whole, tiles = tta(uneven)(lq).logits, uneven.infer(lq, tile=70, overlap=32).logits
    torch.testing.assert_close(tiles, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_kernel_is_turned_with_the_image():
    """A network whose answer is the kernel's first row at the image's first rows: it turns with both or with none."""

    class Corner(nn.Module):
        stride, takes_kernel = 1, True

        def forward(self, x, kernel):
            logits = torch.zeros_like(x[:, :1])
            logits[..., :5, :5] = kernel
            return (logits,)

    model = build_model(ModelConfig(scale=2, sr=KBPN, seg=UNET)).eval()
    model.seg, kernel = Corner(), torch.rand(1, 1, 5, 5)
    (found,) = tta(model).segment(torch.zeros(1, 3, 5, 5), kernel)
    torch.testing.assert_close(found, kernel)


@torch.no_grad()
@pytest.mark.parametrize("form", [
    {"scale": 2, "sr": KBPN, "seg": UNET},
    {"scale": 2, "form": {"name": "seg_then_sr"}, "sr": DBPN, "seg": UNET},
    {"scale": 2, "form": {"name": "dsrl", "encoder": "resnet18", "width": 4}},
])  # fmt: skip
def test_every_form_segments_a_turned_image_alike(form):
    """What the average is for: bicubic aside, an image and the same one turned have the same cracks, turned."""
    torch.manual_seed(0)
    model, lq = build_model(ModelConfig(**form)).eval(), torch.rand(1, 3, 16, 16)
    images = model.normalize(model(lq).sr)
    if model.seg is None:
        found = [tta(model)(turned(lq, number)).logits for number in (0, 5)]
    else:
        kernel = torch.rand(1, 1, 5, 5)
        found = [tta(model).segment(turned(images, n), turned(kernel, n))[0] for n in (0, 5)]
    torch.testing.assert_close(turned_back(found[1], 5), found[0], rtol=1e-3, atol=1e-4)
    plain = tta(model, 1)(lq).logits
    assert not torch.allclose(tta(model)(lq).logits, plain, atol=1e-4)


def test_deployed_files_have_one_orientation(uneven, tmp_path):
    lq = torch.rand(1, 3, 20, 24)
    plain = Deployed(uneven)(lq)[1]
    deploy(tta(uneven), ["torch_export"], tmp_path)
    found = torch.export.load(tmp_path / "model.pt2").module()(lq)[1]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    assert uneven.orientations == ORIENTATIONS
