"""Models made ready for prediction compute the same, at every size and near every edge."""

import copy

import pytest
import torch
from timm.layers import StdConv2d
from torch import nn

from cssr.config.schema import ModelConfig
from cssr.models.inference_form import fold_batch_norm, for_inference
from cssr.models.joint import build_model
from cssr.models.load import load_model
from cssr.models.sr.dbpn import dbpn
from cssr.models.sr.dbpn_folded import FoldedDBPN


def drawn(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def filled(network, weights=False):
    """Biases, slopes and BatchNorm's statistics as a training might leave them; `weights` too."""
    generator = torch.Generator().manual_seed(1)
    for value in [*network.parameters(), *network.buffers()]:
        if value.is_floating_point() and (weights or value.dim() == 1):
            value.data += 0.1 * torch.rand(value.shape, generator=generator)
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 8), (1, 24, 17)])
def test_dbpn_on_blocks_is_dbpn(stages, residual, size):
    network = filled(dbpn(4, stages, width=5, features=7, residual=residual), weights=True)
    lq = drawn(size[0], 3, *size[1:])
    expected = network(lq)[0]
    torch.testing.assert_close(FoldedDBPN(network)(lq)[0], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("name", ["small-x4", "small-x1"])
def test_shipped_models_find_the_same(name):
    model, lq = load_model(name), drawn(1, 3, 40, 33)
    before, expected = copy.deepcopy(model.state_dict()), model(lq)
    outputs = for_inference(model)(lq)
    torch.testing.assert_close(outputs.sr, expected.sr, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("seg", ["pspnet", "hrnet_ocr", "crackformer", "segnet"])
def test_other_networks_compute_the_same(seg):
    settings = {"pspnet": {"encoder": "resnet10t"}, "hrnet_ocr": {"encoder": "hrnet_w18_small"}}.get(seg, {})
    model = build_model(ModelConfig(scale=1, sr={"name": "none"}, seg={"name": seg, **settings}, normalize="none"))
    model, lq = filled(model).double(), drawn(1, 3, 64, 64).double()  # random networks amplify rounding
    torch.testing.assert_close(for_inference(model)(lq).logits, model(lq).logits)


class Twice(nn.Module):
    """A convolution with a BatchNorm, and its result once more beside it."""

    def __init__(self, again: bool):
        super().__init__()
        self.conv, self.norm, self.again = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), again

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y if self.again else self.norm(y)


@torch.no_grad()
@pytest.mark.parametrize("again, folded", [(False, 1), (True, 0)])
def test_only_what_no_other_layer_reads_is_folded(again, folded):
    network = filled(Twice(again))
    expected = network(drawn(1, 3, 9, 9))
    assert fold_batch_norm(network) == folded
    torch.testing.assert_close(network(drawn(1, 3, 9, 9)), expected)


class Doubled(nn.Conv2d):
    """A convolution of a user's own, which computes otherwise."""

    def forward(self, x):
        return super().forward(x) * 2


def normed(conv: nn.Module, **settings) -> nn.Module:
    return filled(nn.Sequential(conv, nn.BatchNorm2d(4, **settings)))


@torch.no_grad()
@pytest.mark.parametrize(
    "network",
    [
        normed(Doubled(3, 4, 3)),
        normed(StdConv2d(3, 4, 3)),
        normed(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))),
        normed(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))),
        normed(nn.Conv2d(3, 4, 3), track_running_stats=False),
    ],
    ids=["own", "standardised", "parametrised", "by a hook", "statistics of the batch"],
)
def test_convolutions_that_compute_otherwise_are_not_folded(network):
    x, expected = drawn(2, 3, 9, 9), copy.deepcopy(network)(drawn(2, 3, 9, 9))
    assert fold_batch_norm(network) == 0
    torch.testing.assert_close(network(x), expected)
