"""Task-driven joint training: features of SR against HR's, patches of HR among SR's, and what neither costs."""

import pytest
import torch
from helpers import SMALL_MODEL

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.config.schema import ModelConfig
from cssr.data.batch import Batch, Outputs
from cssr.losses import LOSSES
from cssr.models.joint import build_model
from cssr.training.task import Task, build_mix

START = Progress(0, 100)
TASK_DRIVEN = "loss.extra=[{loss: task_perceptual, weight: 0.5}]"
SEGMENTATION = {
    "unet": SMALL_MODEL["seg"],
    "pspnet": {"name": "pspnet", "encoder": "resnet10t", "width": 2, "encoder_args": {"channels": [8, 8, 16, 16]}},
    "smp": {"name": "smp", "architecture": "fpn", "encoder": "tu-resnet10t"},
    "hrnet_ocr": {"name": "hrnet_ocr", "encoder": "hrnet_w18_small", "width": 8, "hidden": 4},
    "dpt": {"name": "smp", "architecture": "dpt", "encoder": "tu-vit_tiny_patch16_224", "dynamic_img_size": True},
}


def a_task(*overrides: str, seg: str = "unet") -> Task:
    torch.manual_seed(0)
    config = load_config(None, ["loss.seg=combo", "train.batch_size=2", *overrides])
    config.model = ModelConfig(**{**SMALL_MODEL, "seg": SEGMENTATION[seg]})
    return Task(build_model(config.model), config).train()


def a_batch(side: int = 64) -> Batch:
    draws = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, side, side, generator=draws)
    lq = torch.nn.functional.avg_pool2d(hr, 2)
    return Batch(hr=hr, mask=(hr[:, :1] > 0.8).float(), lq=lq, seed=torch.tensor([3, 4]))


def outputs_of(sr: list[torch.Tensor], hr: list[torch.Tensor]) -> Outputs:
    image = torch.zeros(2, 3, 8, 8)
    return Outputs(sr=image, logits=image[:, :1], sr_features=tuple(sr), hr_features=tuple(hr))


# ---- the loss ----


def test_equal_features_cost_nothing_and_others_their_relative_difference():
    loss, shallow, deep = LOSSES.build("task_perceptual"), torch.full((2, 3, 4, 4), 2.0), torch.full((2, 5, 2, 2), 4.0)
    assert loss(outputs_of([shallow, deep], [shallow, deep]), a_batch(), START).tolist() == [0, 0]
    found = loss(outputs_of([shallow + 1, deep + 1], [shallow, deep]), a_batch(), START)
    assert found.tolist() == pytest.approx([(1 / 2 + 1 / 4) / 2] * 2, rel=1e-5)


def test_levels_count_from_the_deepest():
    loss, a, b = LOSSES.build({"name": "task_perceptual", "levels": 1}), torch.ones(2, 1, 4, 4), torch.ones(2, 1, 2, 2)
    assert loss(outputs_of([a + 9, b], [a, b]), a_batch(), START).tolist() == [0, 0]


@pytest.mark.parametrize("seg", SEGMENTATION)
def test_features_are_those_of_the_encoder_on_sr_and_on_hr(seg):
    task, batch = a_task(TASK_DRIVEN, seg=seg).eval(), a_batch()
    model = task.model
    with torch.no_grad():
        outputs = model(batch.lq, hr=batch.hr, features=True)
        plain = model(batch.lq)
        again = model.encoder_features(model.normalize(batch.hr))
    torch.testing.assert_close(outputs.logits, plain.logits)
    assert len(outputs.sr_features) == len(outputs.hr_features) == len(again) > 1
    for of_sr, of_hr, expected in zip(outputs.sr_features, outputs.hr_features, again):
        assert of_sr.shape == of_hr.shape
        torch.testing.assert_close(of_hr, expected)


def test_the_loss_reaches_the_sr_network_and_hr_features_are_constants():
    task, batch = a_task(TASK_DRIVEN, "loss.beta=0"), a_batch()
    outputs = task.model(batch.lq, hr=batch.hr, features=True)
    assert not any(features.requires_grad for features in outputs.hr_features)
    terms = task(batch, START)
    terms["task_perceptual"].backward()
    assert sum(p.grad.abs().sum() for p in task.model.sr.parameters() if p.grad is not None) > 0
    assert all(parameter.grad is None for parameter in task.model.seg.parameters())
    torch.testing.assert_close(terms["loss"], terms["sr_loss"] + 0.5 * terms["task_perceptual"])


def test_statistics_do_not_see_hr():
    """BatchNorm of the encoder counts the images that are segmented, and those alone."""
    with_features, without = a_task(TASK_DRIVEN), a_task()
    for task in (with_features, without):
        task(a_batch(), START)
    for (name, ours), theirs in zip(with_features.model.named_buffers(), without.model.buffers()):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_nothing_is_computed_where_it_is_not_asked_for(monkeypatch):
    task = a_task()
    monkeypatch.setattr(type(task.model), "encoder_features", lambda *_: pytest.fail("features"))
    terms = task(a_batch(), START)
    assert set(terms) == {"loss", "sr_loss", "seg_loss"}


@pytest.mark.parametrize(
    "seg", [{"name": "crackformer", "width": 16}, {"name": "segnet"}, {"name": "blur_skip", "kernel_size": 21}], ids=str
)
def test_a_network_without_an_encoder_is_refused(seg):
    config = load_config(None, [TASK_DRIVEN])
    sr = {"name": "kbpn", "stages": 1, "width": 2, "features": 4, "hidden": 2}
    config.model = ModelConfig(**{**SMALL_MODEL, "sr": sr, "seg": seg})
    with pytest.raises(ValueError, match="compares features of an encoder") as caught:
        Task(build_model(config.model), config)
    assert "\n" not in str(caught.value)


def test_ms_ssim_is_0_for_equal_images_and_grows_with_the_difference():
    loss, batch = LOSSES.build("ms_ssim"), a_batch()
    values = [loss(Outputs(sr=batch.hr + shift, logits=None), batch, START) for shift in (0.0, 0.05, 0.3)]
    assert values[0].abs().max() < 1e-5 and (values[0] < values[1]).all() and (values[1] < values[2]).all()


# ---- patches of HR ----


def test_patches_are_drawn_by_the_seeds_alone_and_whole():
    mix, hr = build_mix({"share": 0.5, "size": 16}, "mix"), torch.zeros(2, 3, 64, 48)
    first, again = (mix(hr, torch.tensor([1, 2]), START) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first[0], first[1]) and first.shape == (2, 1, 64, 48)
    patches = first.unfold(2, 16, 16).unfold(3, 16, 16).flatten(4)
    assert set(first.unique().tolist()) == {0, 1} and (patches == patches[..., :1]).all()


def test_the_share_of_patches_is_the_settings_and_may_be_a_schedule():
    hr, seeds = torch.zeros(64, 3, 64, 64), torch.arange(64)
    assert build_mix({"share": 0.3, "size": 8}, "mix")(hr, seeds, START).mean() == pytest.approx(0.3, abs=0.03)
    falling = build_mix({"share": {"name": "linear", "until": 100, "start": 1, "end": 0}}, "mix")
    assert [falling(hr, seeds, Progress(n, 100)).mean().item() for n in (0, 100)] == [1, 0]


def test_segmentation_sees_hr_in_the_patches_and_sr_elsewhere():
    task, batch = a_task().eval(), a_batch()
    model = task.model
    mask = torch.zeros(2, 1, 64, 64)
    mask[..., :32] = 1
    with torch.no_grad():
        sr = model(batch.lq).sr
        mixed = model(batch.lq, hr=batch.hr, mix=mask)
        expected = model.segment(model.normalize(torch.cat((batch.hr[..., :32], sr[..., 32:]), 3)))[0]
    torch.testing.assert_close(mixed.logits, expected)
    torch.testing.assert_close(mixed.sr, sr)


def test_a_phase_mixes_and_the_next_one_does_not():
    task, batch = a_task("phases=[{name: a, until: 50, mix: {share: 1}}, {name: b}]"), a_batch()
    with torch.no_grad():
        task(batch, START)  # statistics
    task.eval()
    of_hr = task.seg_loss(
        Outputs(sr=batch.hr, logits=task.model.segment(task.model.normalize(batch.hr))[0]), batch, START
    )
    torch.testing.assert_close(task(batch, START)["seg_loss"], of_hr.mean())
    assert not torch.allclose(task(batch, Progress(50, 100))["seg_loss"], of_hr.mean())
