"""How a profile of a training step is read."""

import sys
from types import SimpleNamespace

from paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import step_profile

IMAGE, SMALLER = [2, 16, 32, 32], [2, 24, 8, 8]


def backward(result: list[int], image: list[int], weight: list[int]) -> SimpleNamespace:
    shapes = [result, image, weight, []]
    return SimpleNamespace(
        name="aten::convolution_backward", input_shapes=shapes, cpu_time_total=step_profile.STEPS * 2e3
    )


def test_arithmetic_of_convolutions_and_transposed_ones():
    """A transposed convolution has the arithmetic of the convolution that it turns around."""
    events = [backward(SMALLER, IMAGE, [24, 16, 8, 8]), backward(IMAGE, SMALLER, [24, 16, 8, 8])]
    each = 3 * 2 * (2 * 24 * 8 * 8) * (16 * 8 * 8)
    output = step_profile.by_kind(events, rate=2 * each / 8e-3)
    assert "| 8 x 8 convolutions | 4 | 100% |" in output
    assert f"| {2 * each / step_profile.STEPS / 1e9:.1f} |" in output and "| 67% |" in output


def test_kinds_of_layers():
    depthwise = SimpleNamespace(name="aten::conv2d", input_shapes=[[2, 24, 8, 8], [24, 1, 5, 5]])
    assert step_profile.kind(depthwise) == "5 x 5 convolutions, depthwise"
    assert step_profile.kind(SimpleNamespace(name="aten::native_batch_norm_backward")) == "BatchNorm"
    assert step_profile.kind(SimpleNamespace(name="aten::_prelu_kernel_backward")) == "activations"


def test_backward_passes_are_told_by_the_part_that_they_derive():
    def event(name: str, number: int = -1, parent: SimpleNamespace | None = None) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, sequence_nr=number, cpu_parent=parent, cpu_time_total=step_profile.STEPS * 1e3
        )

    network = event(step_profile.SEG, parent=event(step_profile.LOSSES))
    node = event("autograd::engine::evaluate_function: ReluBackward0", 7)
    output = step_profile.by_part([event("aten::relu", 7, network), event("aten::threshold_backward", parent=node)])
    assert "| segmentation network | 1 | 50% |" in output and "| segmentation network, backward | 1 | 50% |" in output
