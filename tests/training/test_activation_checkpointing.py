"""Recomputed activations: the same losses, gradients and statistics as without, for every network; and less memory."""

import copy

import pytest
import torch
from torch import nn

from cssr.config.schema import ModelConfig
from cssr.models.joint import build_model
from cssr.training.activation_checkpointing import blocks_of, recompute_blocks

KBPN = {"name": "kbpn", "stages": 2, "width": 4, "features": 4, "kernel_size": 5, "predicted_size": 3}
PSPNET = {"name": "pspnet", "encoder": "resnet10t", "width": 4, "sizes": [1, 2]}
UNET = {"name": "unet", "encoder": "resnet10t", "width": 4, "encoder_args": {"channels": [8, 8, 16, 16]}}
MODELS = [
    {"sr": KBPN, "seg": PSPNET},
    {"sr": {"name": "dbpn", "stages": 2, "width": 4, "features": 4}, "seg": UNET},
    {"sr": {**KBPN, "error_space": "lq", "sft": False}, "seg": {"name": "blur_skip", "net": PSPNET, "kernel_size": 5}},
    {"sr": "bicubic", "seg": {"name": "hrnet_ocr", "encoder": "hrnet_w18_small", "width": 8, "hidden": 8}},
    {"sr": "bicubic", "seg": {"name": "crackformer", "width": 16, "window": 3}},
    {"sr": "bicubic", "seg": {"name": "smp", "architecture": "fpn", "encoder": "tu-resnet10t"}},
    {
        "sr": {"name": "srcnet", "groups": 2, "blocks": 2, "width": 4, "enlarged": 8},
        "seg": {"name": "segnet", "encoder": "vgg11_bn"},
    },
]  # fmt: skip


def model_of(parts: dict) -> nn.Module:
    named = {name: {"name": part} if isinstance(part, str) else part for name, part in parts.items()}
    torch.manual_seed(0)
    return build_model(ModelConfig(scale=4, **named)).train()


def passed(model: nn.Module, lq: torch.Tensor) -> list[torch.Tensor]:
    """A forward and backward pass: outputs, gradients, buffers."""
    torch.manual_seed(1)  # dropout
    outputs = model(lq)
    total = sum(x.square().mean() for x in (outputs.sr, outputs.logits, *outputs.aux))
    (total if outputs.kernel is None else total + outputs.kernel.square().sum()).backward()
    return [outputs.sr, outputs.logits, *(p.grad for p in model.parameters()), *model.buffers()]


@pytest.mark.parametrize("parts", MODELS, ids=lambda parts: parts["seg"]["name"])
def test_results_are_those_without(parts):
    """To the bit: dropout and BatchNorm's statistics too, which a second pass must not count."""
    plain, lq = model_of(parts), torch.rand(2, 3, 16, 16)
    other = copy.deepcopy(plain)
    assert recompute_blocks(other)
    for one, two in zip(passed(plain, lq), passed(other, lq), strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=0)
    assert plain.state_dict().keys() == other.state_dict().keys()


def test_statistics_count_each_batch_once():
    net = nn.ModuleList([nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))])
    recompute_blocks(net)
    for _ in range(3):
        net[0](torch.rand(2, 1, 4, 4)).sum().backward()
    assert net[0][1].num_batches_tracked == 3


def test_compiled_statistics_count_each_batch_once():
    """The compiler recomputes by itself what has no effect on anything else."""
    plain = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    other, x = nn.ModuleList([copy.deepcopy(plain)]), torch.rand(2, 1, 4, 4)
    assert recompute_blocks(other) == ["0"]
    compiled = torch.compile(other[0].forward, fullgraph=True, backend="aot_eager")
    for run in (plain, compiled):
        for _ in range(2):
            run(x).square().sum().backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad)
    torch.testing.assert_close(dict(other[0].named_buffers()), dict(plain.named_buffers()))
    torch._dynamo.reset()


def test_what_is_kept_shrinks():
    """Bytes that the backward pass finds saved, weights apart."""
    found = {}
    for recompute in (False, True):
        model = model_of(MODELS[0])
        if recompute:
            recompute_blocks(model)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        sizes: dict[int, int] = {}

        def note(tensor, weights=weights, sizes=sizes):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = model(torch.rand(1, 3, 16, 16))
        found[recompute] = sum(sizes.values())
        assert outputs.sr.requires_grad
    assert found[True] < 0.5 * found[False]


def test_blocks_do_not_overlap():
    for parts in MODELS:
        blocks = list(blocks_of(model_of(parts)))
        inside = [layer for block in blocks for layer in block.modules()]
        assert len(blocks) > 3 and len(inside) == len(set(inside))


def test_without_gradients_nothing_is_recomputed(monkeypatch):
    model = model_of(MODELS[0]).eval()
    expected = model(torch.ones(1, 3, 16, 16)).logits
    recompute_blocks(model)
    monkeypatch.setattr("cssr.training.activation_checkpointing.checkpoint", None)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.ones(1, 3, 16, 16)).logits, expected)
