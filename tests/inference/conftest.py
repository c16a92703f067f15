"""What tests of prediction share."""

import one_convolution  # noqa: F401
import pytest

from cssr.config.schema import ModelConfig
from cssr.models.joint import build_model

MODEL = {"scale": 2, "sr": {"name": "bicubic"}, "seg": {"name": "one_convolution"}}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A model that works at once: bicubic enlargement by 2 and one convolution that finds dark lines."""
    out = tmp_path_factory.mktemp("model") / "export"
    build_model(ModelConfig(**MODEL)).save_pretrained(out)
    return out
