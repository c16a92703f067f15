"""What a training step does beside its arithmetic: waiting, layouts, compiled and recomputed networks, all the same."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from helpers import draw_shards
from paths import ROOT
from running import launch, losses, settings
from torch.utils._python_dispatch import TorchDispatchMode

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.config.schema import Config
from cssr.data.batch import Batch, send
from cssr.degradations import DEGRADATIONS
from cssr.models.export import read_tensors
from cssr.models.joint import build_model
from cssr.training.checks import check_strategy
from cssr.training.optim import skipping_part
from cssr.training.sharded_state import copy_to_cpu, gather_moments, scatter_moments
from cssr.training.step import Stepper
from cssr.training.task import Task
from cssr.utils import distributed as engines

CSBSR = [
    "model.sr={name: kbpn, stages: 2, width: 4, features: 4, kernel_size: 7, predicted_size: 3}",
    "model.seg={name: pspnet, encoder: resnet10t, width: 4, sizes: [1, 2]}",
    "loss.sr=blind", "degradation={name: gaussian, size: 7, sigma: [0.2, 1.5]}",
]  # fmt: skip
CSSR = [
    "model.sr={name: dbpn, stages: 2, width: 4, features: 4}",
    "model.seg={name: unet, encoder: resnet10t, width: 4, encoder_args: {channels: [8, 8, 16, 16]}}",
]
COMMON = ["optim.clip_norm=1.0", "optim.ema=0.9", "optim.lr=1e-3", "train.batch_size=2", "data.crop=32"]
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "unique_dim"}


def batches(device: str = "cpu"):
    """As the loader gives them."""
    draws = torch.Generator().manual_seed(0)
    for number in itertools.count():
        hr = torch.randint(0, 256, (2, 3, 32, 32), generator=draws, dtype=torch.uint8)
        mask = (torch.rand(2, 1, 32, 32, generator=draws) > 0.9).to(torch.uint8)
        distance = 10 * torch.randn(2, 1, 32, 32, generator=draws)
        yield Batch(hr, mask, distance, torch.tensor([2 * number, 2 * number + 1]), ["a", "b"])


def a_stepper(*overrides: str, recipe: list[str] = CSBSR, accumulation: int = 1) -> Stepper:
    config: Config = load_config(None, [*recipe, *COMMON, *overrides])
    engine = engines.start_engine()
    torch.manual_seed(0)
    task = Task(build_model(config.model), config).train()
    degrade = DEGRADATIONS.build(config.degradation, scale=config.model.scale)
    return Stepper(task, config, engine, degrade, 2 // accumulation, accumulation)


def taken(stepper: Stepper, count: int = 2) -> list[float]:
    """The losses of some steps."""
    stream, total = batches(), Progress(0, 100).total
    return [stepper.step(stream, Progress(2 * n, total), n + 1)["loss"].item() for n in range(count)]


# ---- waiting ----


class Operations(TorchDispatchMode):
    """Names of all operations."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.found.append(operation.overloadpacket.__name__)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", [CSBSR, CSSR], ids=["csbsr", "cssr"])
def test_a_step_waits_for_no_number(recipe):
    """Degradation, losses, clipping, fused update and average included, and whether the loss is finite."""
    stepper, stream = a_stepper(recipe=recipe), batches()
    stepper.step(stream, Progress(0, 100), 1)
    with Operations() as operations:
        stepper.step(stream, Progress(2, 100), 2)
    assert not [name for name in operations.found if name in WAITS]
    assert operations.found.count("_foreach_lerp_") == 1  # the average
    assert operations.found.count("_fused_adam_") == len(stepper.model.groups())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", [CSBSR, CSSR], ids=["csbsr", "cssr"])
def test_a_step_on_a_gpu_waits_for_no_number(recipe):
    """CUDA itself refuses to wait."""
    stepper, stream = a_stepper(recipe=recipe), batches()
    for number in range(2):
        stepper.step(stream, Progress(2 * number, 100), number + 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepper.step(stream, Progress(4, 100), 3)
        outcome = stepper.settle()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert outcome.skipped is None and math.isfinite(outcome.losses["loss"])


def test_what_is_sent_arrives_as_asked():
    tensor = torch.arange(4.0, dtype=torch.float64)
    assert send(tensor, "cpu") is tensor
    torch.testing.assert_close(send(tensor, torch.device("cpu"), torch.float32), tensor.float())


# ---- steps left out ----


class Bad(torch.nn.Module):
    """A segmentation loss that spoils itself and the images for one micro-batch."""

    def __init__(self, loss, at: int):
        super().__init__()
        self.loss, self.at, self.calls = loss, at, 0

    def forward(self, outputs, batch, progress):
        self.calls += 1
        value = self.loss(outputs, batch, progress)
        return value + outputs.logits.mean() / 0 if self.calls == self.at else value


def whole_state(stepper: Stepper) -> dict[str, torch.Tensor]:
    """Weights, statistics, average and moments."""
    moments, _ = gather_moments(stepper.module, stepper.model, stepper.optimizer)
    named = {**stepper.model.state_dict(), **{f"ema.{k}": v for k, v in stepper.ema.state_dict().items()}}
    return copy_to_cpu([*named.items(), *moments])


@pytest.mark.parametrize(
    "optimizer, accumulation, at",
    [("adam", 1, 2), ("adam", 2, 3), ("sgd", 2, 4), ("lamb", 1, 2), ("adamw, arguments: {fused: false}", 2, 4)],
)
def test_a_left_out_step_leaves_no_trace(optimizer, accumulation, at):
    """Neither in weights, moments, their counts, the average, nor BatchNorm; the samples are named."""
    stepper = a_stepper(f"optim={{optimizer: {optimizer}}}", "train.micro_batch=1", accumulation=accumulation)
    stepper.task.seg_loss = Bad(stepper.task.seg_loss, at)
    stream = batches()
    stepper.step(stream, Progress(0, 100), 1)
    assert stepper.settle().skipped is None
    before = whole_state(stepper)
    stepper.step(stream, Progress(2, 100), 2, stop=True)
    outcome, after = stepper.settle(), whole_state(stepper)
    assert [(rank["rank"], rank["finite"], rank["keys"]) for rank in outcome.skipped] == [(0, False, ["a", "b"])]
    assert outcome.stop and before.keys() == after.keys()
    assert not [name for name, value in before.items() if not value.equal(after[name])]
    stepper.step(stream, Progress(4, 100), 3)
    assert stepper.settle().skipped is None and stepper.settle() is None
    assert all(bool(value.isfinite().all()) for value in whole_state(stepper).values())


@pytest.mark.parametrize("optimizer", ["adam", "sgd, arguments: {momentum: 0.9}"])
def test_the_first_step_can_be_left_out(optimizer):
    """Moments that no step has filled yet do not come from what was in memory."""
    one, other = (a_stepper(f"optim={{optimizer: {optimizer}}}", "optim.ema=null") for _ in range(2))
    one.task.seg_loss, stream = Bad(one.task.seg_loss, 1), batches()
    one.step(iter([next(batches())]), Progress(0, 100), 1)
    assert one.settle().skipped
    batch = next(stream)
    for stepper in (one, other):
        stepper.step(iter([batch]), Progress(2, 100), 2)
        assert stepper.settle().skipped is None
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def deepspeed(stage: int, **zero) -> SimpleNamespace:
    """An engine of which only its settings are looked at."""
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": stage, **zero}})
    return SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, deepspeed_plugin=plugin)


def test_deepspeed_leaves_steps_out_by_the_norm_of_gradients():
    """Which it computes where it is not told otherwise, and in stages with ZeRO only."""
    optimizer, engine = torch.optim.Adam([torch.zeros(2)]), deepspeed(2, compute_grad_norm=False)
    assert skipping_part(engine, optimizer) == "engine"
    engines.configure_deepspeed(engine, optimizer, 1, 1, None)
    assert "compute_grad_norm" not in engine.deepspeed_plugin.deepspeed_config["zero_optimization"]
    with pytest.raises(ValueError, match="zero_stage: 0 is not supported"):
        engines.configure_deepspeed(deepspeed(0), optimizer, 1, 1, None)


# ---- the same numbers, however they are computed ----


@pytest.mark.parametrize("override", ["train.recompute=true", "train.channels_last=false"])
def test_losses_are_those_of_the_plain_step(override):
    assert taken(a_stepper(override)) == pytest.approx(taken(a_stepper()), rel=1e-4)


def test_channels_last_reaches_weights_images_and_average():
    stepper = a_stepper()
    batch = stepper.next(batches())
    weights = [p for m in (stepper.model, stepper.ema) for p in m.parameters() if p.dim() == 4]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in (batch.hr, batch.lq, *weights))
    assert not all(p.is_contiguous() for p in weights)


def test_moments_come_back_in_the_order_of_their_weights():
    """A checkpoint holds them in rows; a fused update takes memory as it comes."""
    one, other = (a_stepper("optim.ema=null") for _ in range(2))
    taken(one, 1)
    moments, scalars = gather_moments(one.module, one.model, one.optimizer)
    other.model.load_state_dict(one.model.state_dict())
    scatter_moments(other.module, other.model, other.optimizer, {**copy_to_cpu(moments), **scalars})
    for stepper in (one, other):
        taken(stepper, 1)
    state = engines.base_optimizer(other.optimizer).state
    assert all(state[p]["exp_avg"].stride() == p.stride() for p in other.model.parameters())
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("recipe", [CSBSR, CSSR], ids=["csbsr", "cssr"])
def test_gradients_are_the_same_in_any_layout(recipe, images):
    """Of a single image too, with which torch's own instance normalisation goes wrong."""
    config, lq = load_config(None, recipe), torch.rand(images, 3, 8, 8)
    torch.manual_seed(0)
    model, found = build_model(config.model).eval(), []
    for layout in (torch.contiguous_format, torch.channels_last):
        engines.set_memory_format(model, layout)
        model(lq.contiguous(memory_format=layout)).logits.square().mean().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    for one, two in zip(*found, strict=True):
        assert (one - two).norm() <= 1e-3 * one.norm() + 1e-9


def test_weights_of_any_dimension_are_laid_out():
    layers = torch.nn.ModuleList([torch.nn.Conv2d(2, 3, 3), torch.nn.Conv3d(1, 2, 3), torch.nn.Linear(2, 3)])
    engines.set_memory_format(layers, torch.channels_last)
    assert layers[0].weight.is_contiguous(memory_format=torch.channels_last) and layers[1].weight.is_contiguous()


def test_the_plain_formulation_of_the_benchmark_gives_our_losses_and_gradients(monkeypatch):
    """Kernel maps at full size, scipy's distances, samples one by one, an update of one tensor after the other."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from training_step import SMALL, Step

    plain, ours = (Step(name, SMALL, count=2, keep=True)() for name in ("plain", "float32"))
    gradients, others = plain.pop("gradients"), ours.pop("gradients")
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
    assert (gradients - others).norm() < 5e-3 * gradients.norm()


# ---- compiled ----


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [CSBSR, CSSR], ids=["csbsr", "cssr"])
def test_the_network_compiles_without_a_break(recipe, monkeypatch):
    """One graph for the whole of it (else `fullgraph` raises), whose losses and statistics are those without."""
    compile_model = Task.compile_model
    monkeypatch.setattr(Task, "compile_model", lambda task: compile_model(task, fullgraph=True, backend="eager"))
    plain, compiled = a_stepper(recipe=recipe), a_stepper("train.compile=true", recipe=recipe)
    assert taken(compiled) == pytest.approx(taken(plain), rel=1e-4)
    ours, others = (dict(stepper.model.named_buffers()) for stepper in (compiled, plain))
    torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-5)
    assert compiled.module.state_dict().keys() == plain.module.state_dict().keys()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "in_parts, device, missing, message",
    [
        (True, "cpu", "", "train.compile=true does not go with ZeRO-3 or FSDP"),
        (False, "cpu", "g++", "train.compile=true needs a compiler, g\\+\\+ is not here"),
        (False, "cuda", "gcc", "train.compile=true needs a compiler, gcc is not here"),
        (False, "cpu", "Python.h", "train.compile=true needs Python's headers"),
    ],
)
def test_what_compilation_lacks_is_named(in_parts, device, missing, message, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("cssr.training.checks.shutil.which", lambda name: None if name == missing else name)
    monkeypatch.setattr("cssr.training.checks.Path.is_file", lambda path: path.name != missing)
    with pytest.raises(ValueError, match=message) as caught:
        check_strategy(load_config(None, ["train.compile=true"]), in_parts, device)
    assert "\n" not in str(caught.value)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_compiled_run_is_the_plain_one(tmp_path):
    """Two processes: phases, average, resume and export as ever; weights have their own names."""
    shards = draw_shards(tmp_path / "shards", 24, 64)
    phases = "phases=[{name: sr, until: 8, beta: 0, lr: {seg: 0}}, {name: joint}]"
    network = "model.seg={name: unet, encoder: resnet10t, width: 4, encoder_args: {channels: [8, 8, 16, 16]}}"
    found, ways = [], (["train.steps=4"], ["train.steps=4", "train.compile=true", "train.recompute=true"])
    for number, words in enumerate(ways):
        run_dir = tmp_path / str(number)
        for more in ([*words[1:], "train.steps=3"], words):
            done = launch(settings(shards, run_dir, phases, network, *more), processes=2)
            assert done.returncode == 0, done.stderr
        found.append((losses(run_dir), read_tensors(run_dir / "export" / "model.safetensors")))
    (plain, weights), (compiled, others) = found
    assert sorted(compiled) == [1, 2, 3, 4] and weights.keys() == others.keys()
    for step, values in plain.items():
        assert compiled[step] == pytest.approx(values, rel=1e-3)
