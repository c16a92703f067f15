"""Parameter groups, learning rates and phases: what a phase holds still stays as it was, to the bit."""

import pytest
import torch
from helpers import SMALL_MODEL

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.config.schema import Config, ModelConfig, PhaseConfig
from cssr.data.batch import Batch
from cssr.models.joint import build_model
from cssr.training.optim import Hold, LearningRate, build_optimizer, held_groups
from cssr.training.task import Task

GROUPS = ("sr", "seg", "encoder")
HOLD_SEG = "phases=[{name: sr, until: 8, beta: 0, lr: {seg: 0}}, {name: joint, lr: {sr: 0.5}}]"


def settings(*overrides: str) -> Config:
    config = load_config(None, ["loss.seg=combo", "optim.lr=1e-2", *overrides])
    config.model = ModelConfig(**SMALL_MODEL)
    return config


def a_task(config: Config) -> Task:
    torch.manual_seed(0)
    return Task(build_model(config.model), config).train()


def a_batch(seed: int = 0) -> Batch:
    draws = torch.Generator().manual_seed(seed)
    hr, mask = torch.rand(2, 3, 32, 32, generator=draws), torch.rand(2, 1, 32, 32, generator=draws) > 0.8
    return Batch(hr=hr, mask=mask.float(), lq=torch.nn.functional.avg_pool2d(hr, 2))


def steps(task: Task, optimizer, config: Config, samples: list[int]) -> list[float]:
    """Training steps as the loop makes them; returns the gradient norms that clipping sees."""
    rates, norms, hold = LearningRate(config), [], Hold(task.model, optimizer)
    for seen in samples:
        progress = Progress(seen, 100)
        phase = task.phase(progress)
        held = held_groups(task.model.groups(), phase, seen // config.train.batch_size)
        task.hold_still(held)
        hold.groups = held
        rates.apply(optimizer, progress, phase)
        task(a_batch(seen), progress)["loss"].backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(task.parameters(), 1e9)))
        optimizer.step()
        optimizer.zero_grad()
    hold.groups = frozenset()
    return norms


def moved(before: dict, task: Task) -> set[str]:
    """The groups (sr, seg) of which any tensor, buffers too, has changed."""
    after = task.model.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def snapshot(task: Task) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


# ---- the optimizer ----


def test_every_parameter_is_in_one_group():
    model = build_model(ModelConfig(**SMALL_MODEL))
    groups = {g["group"]: g["params"] for g in build_optimizer(model, settings()).param_groups}
    expected = {"sr": [*model.sr.parameters()], "encoder": [*model.seg.encoder.parameters()]}
    expected["seg"] = [*model.seg.decoder.parameters(), *model.seg.head.parameters()]
    assert {name: [id(p) for p in of_group] for name, of_group in groups.items()} == {
        name: [id(p) for p in of_group] for name, of_group in expected.items()
    }


def test_a_network_without_parameters_has_no_group():
    config = settings()
    config.model.sr = {"name": "bicubic"}
    optimizer = build_optimizer(build_model(config.model), config)
    assert [g["group"] for g in optimizer.param_groups] == ["seg", "encoder"]


@pytest.mark.parametrize("name, kind", [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD"), ("lamb", "Lamb")])
def test_settings_reach_the_optimizer(name, kind):
    config = settings(f"optim.optimizer={name}", "optim.weight_decay=0.03")
    optimizer = build_optimizer(build_model(config.model), config)
    assert type(optimizer).__name__ == kind
    assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {(0.01, 0.03)}


@pytest.mark.parametrize("name, arguments, fused", [
    ("adam", "{}", True), ("adamw", "{betas: [0.5, 0.6]}", True), ("sgd", "{}", True),
    ("adam", "{fused: false}", False), ("adam", "{foreach: true}", None), ("lamb", "{}", None),
])  # fmt: skip
def test_updates_are_fused_where_they_can_be_unless_told_otherwise(name, arguments, fused):
    config = settings(f"optim.optimizer={name}", f"optim.arguments={arguments}")
    assert build_optimizer(build_model(config.model), config).defaults.get("fused") is fused


def test_further_arguments_reach_the_optimizer():
    config = settings("optim.arguments={betas: [0.5, 0.6]}")
    optimizer = build_optimizer(build_model(config.model), config)
    assert all(tuple(g["betas"]) == (0.5, 0.6) for g in optimizer.param_groups)


@pytest.mark.parametrize(
    "override, message",
    [
        ("optim.optimizer=adamm", "optim.optimizer: unknown 'adamm'.*adam"),
        ("optim.optimizer=''", "optim.optimizer: unknown ''"),
        ("optim.arguments={speed: 3}", "optim: adam refuses its settings.*speed"),
        ("optim.arguments={betas: [2, 3]}", "optim: adam refuses its settings"),
        ("optim.arguments={amsgrad: abc}", "optim: adam refuses its settings"),
        ("optim.arguments={lr: 3}", "optim"),
    ],
)
def test_what_the_optimizer_cannot_take(override, message):
    config = settings(override)
    with pytest.raises(ValueError, match=message) as caught:
        build_optimizer(build_model(config.model), config)
    assert "\n" not in str(caught.value)


# ---- learning rates ----


@pytest.mark.parametrize(
    "samples, base, sr, seg",
    [(0, 0.0, 0.0, 0.0), (5, 0.5, 0.5, 0.0), (8, 0.8, 0.4, 0.8), (10, 1.0, 0.5, 1.0), (50, 0.1, 0.05, 0.1)],
)
def test_the_rate_is_base_times_schedule_times_warm_up_times_the_phases_factor(samples, base, sr, seg):
    config = settings(HOLD_SEG, "optim.lr=1", "optim.warmup=10", "optim.schedule={name: steps, at: [50]}")
    task = a_task(config)
    optimizer, progress = build_optimizer(task.model, config), Progress(samples, 100)
    assert LearningRate(config).apply(optimizer, progress, task.phase(progress)) == pytest.approx(base)
    found = {g["group"]: g["lr"] for g in optimizer.param_groups}
    assert found == {"sr": pytest.approx(sr), "seg": pytest.approx(seg), "encoder": pytest.approx(seg)}


def test_a_rate_does_not_depend_on_the_one_before():
    config = settings(HOLD_SEG)
    optimizer, rates = build_optimizer(build_model(config.model), config), LearningRate(config)
    for phase in (*config.phases, *config.phases):
        rates.apply(optimizer, Progress(0, 100), phase)
    assert [g["lr"] for g in optimizer.param_groups] == [0.005, 0.01, 0.01]


@pytest.mark.parametrize(
    "factors, held",
    [
        ({}, set()),
        ({"sr": 0}, {"sr"}),
        ({"sr": 0.0, "seg": 1}, {"sr"}),
        ({"sr": 0, "seg": 0}, {"sr", "seg", "encoder"}),
        ({"encoder": 0}, {"encoder"}),
        ({"seg": 0, "encoder": 0.1}, {"seg"}),
    ],
)
def test_held_groups(factors, held):
    assert held_groups(GROUPS, PhaseConfig(lr=factors), 0) == held


@pytest.mark.parametrize(
    "turns, held",
    [
        ([["sr"], ["seg"]], [{"seg", "encoder"}, {"sr"}, {"seg", "encoder"}]),
        ([["sr", "seg"], ["encoder"]], [{"encoder"}, {"sr", "seg"}]),
        ([["seg"]], [set(), set()]),
    ],
)
def test_groups_are_trained_in_turn(turns, held):
    """What no turn names is always trained; the encoder goes with segmentation unless a turn names it."""
    phase = PhaseConfig(alternate=turns)
    assert [held_groups(GROUPS, phase, step) for step in range(len(held))] == held


def test_alternating_updates_move_one_network_a_step():
    config = settings("phases=[{alternate: [[sr], [seg]]}]", "train.batch_size=2")
    task = a_task(config)
    optimizer = build_optimizer(task.model, config)
    for samples, free in ((0, {"sr"}), (2, {"seg"}), (4, {"sr"})):
        before = snapshot(task)
        steps(task, optimizer, config, [samples])
        assert moved(before, task) == free


@pytest.mark.parametrize("hold, held", [("true", True), ("false", False)])
def test_statistics_of_a_frozen_encoder_are_kept_or_continue(hold, held):
    config = settings(f"phases=[{{lr: {{encoder: 0}}, hold_batch_norm: {hold}}}]")
    task = a_task(config)
    task.hold_still(frozenset({"encoder"}) if config.phases[0].hold_batch_norm else frozenset())
    before = snapshot(task)
    task(a_batch(), Progress(0, 100))
    name = next(name for name in before if name.startswith("seg.encoder") and "running_mean" in name)
    assert torch.equal(before[name], task.model.state_dict()[name]) == held


def test_statistics_of_the_encoder_alone_can_be_held():
    task = a_task(settings("optim.batch_norm=encoder_held"))
    norms = [m for m in task.model.seg.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms) and task.model.seg.decoder.training


def test_layers_of_the_encoder_have_rates_of_their_own():
    """timm's layer-wise decay: the deepest layer's factor is 1, each one before is multiplied by the decay."""
    config = settings("optim.layer_decay=0.5", "optim.lr=1")
    task = a_task(config)
    optimizer = build_optimizer(task.model, config)
    LearningRate(config).apply(optimizer, Progress(0, 100), config.phases[0])
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    encoder = dict(task.model.seg.encoder.named_parameters())
    first, last = rate[id(encoder["conv1.0.weight"])], rate[id(encoder["layer4.0.conv2.weight"])]
    assert last == 1 and first == 0.5 ** (len({g["factor"] for g in optimizer.param_groups}) - 1) < 0.1
    assert all(rate[id(p)] == 1 for p in task.model.sr.parameters())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len([*task.model.parameters()])


@pytest.mark.parametrize(
    "settings_, model, message",
    [
        (["optim.layer_decay=0"], {}, "optim.layer_decay must be above 0"),
        (["optim.layer_decay=0.5"], {"seg": {"name": "crackformer", "width": 16}}, "optim.layer_decay needs"),
        (["optim.layer_decay=0.5"], {"seg": {"name": "smp", "encoder": "resnet18"}}, "one of timm's encoders"),
        (["phases=[{alternate: [[sr], [segm]]}]"], {}, "alternate names the group 'segm'"),
        (["phases=[{mix: {share: 2}}]"], {}, "phases: joint.mix.share must be 0 to 1"),
        (["phases=[{mix: {shares: 1}}]"], {}, "phases: joint.mix takes no 'shares'.*did you mean share"),
        (["phases=[{mix: 3}]"], {}, "phases: joint.mix is null or a mapping"),
    ],
)
def test_mistakes_of_fine_tuning_are_answered_in_one_line(settings_, model, message):
    with pytest.raises(ValueError, match=message) as caught:
        config = settings(*settings_)
        config.model = ModelConfig(**{**SMALL_MODEL, **model})
        build_optimizer(Task(build_model(config.model), config).model, config)
    assert "\n" not in str(caught.value)


# ---- holding still ----


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "lamb", "nadamw", "lion", "rmsprop"])
@pytest.mark.parametrize("held, free", [("seg", "sr"), ("sr", "seg")])
def test_a_held_group_does_not_move_and_the_other_does(optimizer, held, free):
    """With weight decay, with momentum from before, and BatchNorm statistics included."""
    config = settings(
        f"optim.optimizer={optimizer}",
        "optim.weight_decay=0.1",
        f"phases=[{{name: a, until: 4}}, {{name: b, lr: {{{held}: 0}}}}]",
    )
    task = a_task(config)
    engine = build_optimizer(task.model, config)
    steps(task, engine, config, [0, 2])
    before = snapshot(task)
    steps(task, engine, config, [4, 6, 8])
    assert moved(before, task) == {free}


def test_a_group_moves_again_after_its_rest():
    config = settings(HOLD_SEG)
    task = a_task(config)
    optimizer = build_optimizer(task.model, config)
    steps(task, optimizer, config, [0, 2, 4])
    before = snapshot(task)
    steps(task, optimizer, config, [8, 10])
    assert moved(before, task) == {"sr", "seg"}
    assert any("running_mean" in n and not torch.equal(before[n], v) for n, v in task.model.state_dict().items())


def test_the_first_update_after_a_rest_is_as_large_as_any_first_one():
    """Adam's first update is the learning rate, whatever the gradient; it is so after two steps of rest as well."""
    config = settings(HOLD_SEG, "optim.optimizer=adam", "optim.lr=1e-3", "optim.clip_norm=null")
    task = a_task(config)
    optimizer = build_optimizer(task.model, config)
    steps(task, optimizer, config, [0, 2])
    before = snapshot(task)
    steps(task, optimizer, config, [8])
    weight = next(name for name, p in task.model.named_parameters() if name.startswith("seg.") and p.ndim == 4)
    largest = (dict(task.model.named_parameters())[weight] - before[weight]).abs().max().item()
    assert largest == pytest.approx(1e-3, rel=1e-2)


def test_gradients_of_held_groups_do_not_count_in_the_norm():
    """Both groups have gradients (beta 0.3); clipping sees those of the SR network alone."""
    both, alone = settings("phases=[{}]"), settings("phases=[{lr: {seg: 0}}]")
    task = a_task(alone)
    (norm,) = steps(task, build_optimizer(task.model, alone), alone, [0])
    reference = a_task(both)
    reference.hold_still(frozenset({"seg", "encoder"}))
    reference(a_batch(0), Progress(0, 100))["loss"].backward()
    squares = {
        g: sum(float(p.grad.square().sum()) for p in getattr(reference.model, g).parameters()) for g in ("sr", "seg")
    }
    assert norm == pytest.approx(squares["sr"] ** 0.5, rel=1e-5) and squares["seg"] > 1e-6


def test_every_parameter_stays_in_the_graph_of_every_phase():
    config = settings(HOLD_SEG)
    task = a_task(config)
    task.hold_still(frozenset({"seg", "encoder"}))
    task(a_batch(), Progress(0, 100))["loss"].backward()
    assert all(p.requires_grad and p.grad is not None for p in task.parameters())


def test_validation_in_between_does_not_wake_held_statistics():
    task = a_task(settings(HOLD_SEG))
    norms = [m for m in task.model.seg.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    task.hold_still(frozenset({"seg", "encoder"}))
    task.model.eval()
    task.train()
    assert norms and not any(m.training for m in norms) and task.model.sr.training
    task.hold_still(frozenset())
    assert all(m.training for m in norms)
    task.eval()
    task.hold_still(frozenset({"seg", "encoder"}))
    assert not task.training and not any(m.training for m in norms)


# ---- the task ----


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_loss_is_the_weighted_sum_of_its_terms(beta):
    task = a_task(settings(f"loss.beta={beta}"))
    terms = task(a_batch(), Progress(0, 100))
    assert set(terms) == {"loss", "sr_loss", "seg_loss"}
    assert all(t.ndim == 0 and t.dtype == torch.float32 for t in terms.values())
    loss, sr, seg = (terms[name].item() for name in ("loss", "sr_loss", "seg_loss"))
    assert loss == pytest.approx((1 - beta) * sr + beta * seg) and min(sr, seg) > 0.01


def test_terms_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        terms = a_task(settings())(a_batch(), Progress(0, 100))
    assert all(t.dtype == torch.float32 for t in terms.values())


@pytest.mark.parametrize("samples, beta", [(0, 0.0), (9, 0.0), (10, 0.7), (19, 0.7), (20, 0.2), (40, 0.4)])
def test_beta_of_each_phase(samples, beta):
    """A phase without a beta of its own has loss.beta, here a schedule over the whole run."""
    config = settings(
        "loss.beta={name: linear, until: 100}",
        "phases=[{name: a, until: 10, beta: 0}, {name: b, until: 20, beta: 0.7}, {name: c}]",
    )
    assert a_task(config).beta(Progress(samples, 100)) == pytest.approx(beta)


def test_a_phase_that_names_no_group_of_the_model():
    with pytest.raises(ValueError, match="phases: warm.lr names the group 'segm'; the model has sr, seg"):
        a_task(settings("phases=[{name: warm, lr: {segm: 0}}]"))


@pytest.mark.parametrize(
    "seg, needed", [("boundary_combo", True), ("boundary", True), ("combo", False), ("bce", False)]
)
def test_the_task_says_whether_it_needs_distance_maps(seg, needed):
    assert a_task(settings(f"loss.seg={seg}")).needs_distance is needed
