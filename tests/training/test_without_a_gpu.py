"""Every recipe's degradation, forward pass and losses as on a GPU, without one: tensors have a device and no values.

An operation on tensors of two devices raises then, and so does one that reads a value on the host. A GPU that is there
computes nothing either. The backward pass needs a real one.
"""

import dataclasses
from unittest.mock import MagicMock

import kornia.enhance.jpeg
import pytest
import torch
import yaml
from paths import ROOT
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.config.schema import Config
from cssr.data.batch import Batch
from cssr.degradations import DEGRADATIONS
from cssr.models.joint import build_model
from cssr.training.task import Task

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
RECIPES = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "real").glob("*.yaml")])
# The others are slow tests: they take seconds each, or differ by settings.
QUICK = {"real/small_x4", "dsrl", "cssr"}


class Copies(TorchDispatchMode):
    """Copies from a device to another for which the host waits. Operations on values, on the CPU, are done there."""

    def __init__(self):
        super().__init__()
        self.waited_for: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors) and kwargs.get("device", CPU) == CPU:
            with unset_fake_temporarily():
                return operation(*args, **kwargs)
        out, name = operation(*args, **kwargs), operation.overloadpacket.__name__
        if name in ("_to_copy", "copy_") and not (kwargs.get("non_blocking") or (*args, None, None)[2]):
            source = args[1] if name == "copy_" else args[0]
            if isinstance(source, Tensor) and source.device.type != out.device.type:
                self.waited_for.append(f"{name} of {tuple(source.shape)} from {source.device} to {out.device}")
        return out


def name_of(path) -> str:
    return str(path.relative_to(ROOT / "configs").with_suffix(""))


@pytest.fixture
def no_kept_tables(monkeypatch):
    """Pinned memory and streams need a GPU; what kornia keeps for later calls must not be without values."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "current_stream", MagicMock())
    for name in [name for name in vars(kornia.enhance.jpeg) if name.endswith("_CACHE")]:
        monkeypatch.setattr(kornia.enhance.jpeg, name, {})


def batch_of(config: Config, task: Task, count: int = 2) -> Batch:
    """As the loader gives it; with values are the seeds alone, which stay on the CPU."""
    side, stored = config.data.crop, {"dtype": torch.uint8, "device": "cpu"}
    distance = torch.empty(count, 1, side, side, device="cpu") if task.needs_distance else None
    hr, mask = (torch.empty(count, channels, side, side, **stored) for channels in (3, 1))
    return Batch(hr, mask, distance, key=["a", "b"])


def ends(config: Config) -> list[Progress]:
    """The last step of each phase; of the last phase twice."""
    size, total = config.train.batch_size, config.train.steps * config.train.batch_size
    samples = {min(phase.until or total, total) - size for phase in config.phases}
    return [Progress(max(at, 0), total) for at in [*sorted(samples), max(samples)]]


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(p, id=name_of(p), marks=() if name_of(p) in QUICK else pytest.mark.slow) for p in RECIPES],
)
def test_a_recipe_stays_on_its_device_and_the_host_waits_for_nothing(recipe, no_kept_tables):
    config, seeds = load_config(recipe), torch.arange(2)
    if isinstance(config.model.seg, dict) and "pretrained" in config.model.seg:
        config.model.seg["pretrained"] = False
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    degrade = DEGRADATIONS.build(config.degradation, scale=config.model.scale)
    with mode, CUDA:
        task = Task(build_model(config.model), config).train()
    with mode:
        loaded = batch_of(config, task)
    with mode, Copies() as copies:
        for progress in ends(config):
            copies.waited_for.clear()  # tables that are made once are made in the first turn
            terms = task(degraded(loaded, degrade, seeds), progress)
            assert {value.device for value in terms.values()} == {CUDA}
            assert all(value.dtype == torch.float32 and not value.shape for value in terms.values())
    assert not copies.waited_for


def degraded(batch: Batch, degrade, seeds: Tensor) -> Batch:
    batch = batch.to(CUDA)
    lq, kernel = degrade(batch.hr, seeds)
    return dataclasses.replace(batch, seed=seeds, lq=lq, kernel=kernel)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "benchmarks").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_degradation_stays_on_its_device_and_the_host_waits_for_nothing(path, no_kept_tables):
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    degrade = DEGRADATIONS.build(settings["degradation"], scale=settings["scale"])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        hr = torch.empty(2, 3, 64, 64, device=CUDA)
    with mode, Copies() as copies:
        for seeds in (torch.arange(2), torch.arange(2, 4)):
            copies.waited_for.clear()  # tables that are made once are made in the first turn
            lq, _ = degrade(hr, seeds)
    assert lq.device == CUDA and lq.shape == (2, 3, 64 // settings["scale"], 64 // settings["scale"])
    assert not copies.waited_for


def test_a_wait_is_seen(no_kept_tables):
    with FakeTensorMode(allow_non_fake_inputs=True):
        here = torch.zeros(2)
    with here.fake_mode, Copies() as copies:
        there = here.to(CUDA)
        here.to(CUDA, non_blocking=True)
        here.copy_(there)
        assert torch.ones(3).sum().item() == 3
        with pytest.raises(Exception, match="_local_scalar_dense"):
            there.sum().item()
    assert [found.partition(" ")[0] for found in copies.waited_for] == ["_to_copy", "copy_"]
