"""Every recipe: its header, parts that fit each other, its size, and a small step in each of its phases."""

import functools
import itertools
import math
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.config.schema import Config, PhaseConfig
from cssr.data.batch import Batch
from cssr.data.transforms import signed_distance
from cssr.degradations import DEGRADATIONS
from cssr.models.joint import build_model
from cssr.training.optim import Hold, build_optimizer, held_groups
from cssr.training.task import Task

CONFIGS = ROOT / "configs"
RECIPES = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("real/*.yaml")])
SLOW = {"csbsr_hrnet_ocr", "csbsr_pspnet"}  # four seconds or more
WHOLE = {"csbsr_pspnet", "cssr"}  # the others train the same networks with fewer channels and layers
NARROW = {
    "kbpn": {"width": 16, "features": 16, "hidden": 8, "stages": 2},
    "dbpn": {"width": 8, "features": 16, "stages": 2},
    "pspnet": {"encoder": "test_resnet", "width": 8},
    "unet": {"width": 4},
    "dsrl": {"encoder": "resnet18"},
}
# Pixels: the smallest crop that all networks take; larger where BatchNorm would see a single place of each image, over
# which gradients grow until they overflow.
CROP, LARGER = 32, {"dsrl": 128, "hrnet_ocr": 64, "tf_efficientnet_lite0": 64}

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@functools.cache
def load(path: Path) -> Config:
    """The recipe's settings, to be read only."""
    return load_config(path)


# ---- what they say ----


@each_recipe
def test_the_header_says_how_to_run_it_on_what_and_what_to_expect(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert len(lines) <= 50
    for part in (
        "accelerate launch",
        f"configs/{path.relative_to(CONFIGS)}",
        load(path).train.run_dir,
        "Hardware",
        "umbers",
    ):
        assert part in header, part


def test_no_recipe_writes_where_another_does():
    """Or it would resume the other's run."""
    assert len({load(path).train.run_dir for path in RECIPES}) == len(RECIPES)


def test_sizes_are_counted(capsys):
    """The joint model needs less than the published code, which takes 282 GMAC for the same."""
    sizes = runpy.run_path(str(ROOT / "benchmarks" / "model_sizes.py"))
    joint, hr = CONFIGS / "csbsr_pspnet.yaml", CONFIGS / "hr_pspnet.yaml"
    parameters, macs = sizes["sizes"](load(joint).model)
    assert set(parameters) == {"sr", "kernel", "seg", "encoder"}
    assert parameters["seg"] == sizes["sizes"](load(hr).model)[0]["seg"]
    assert 30e9 < macs < 200e9
    sizes["main"]([str(hr)])
    output = capsys.readouterr().out.splitlines()[-1]
    assert output.replace("|", " ").split() == ["hr_pspnet", "6.81", "21.28", "28.09", "30.9"]
    sizes["main"](["--markdown", str(hr)])
    assert capsys.readouterr().out.splitlines()[-1] == "| hr_pspnet |  |  | 6.81 | 21.28 |  | 28.09 | 30.9 |"


# ---- what they set ----


def alpha_of(config: Config) -> Any:
    """The alpha schedule of the segmentation loss, or of the one that it wraps."""
    return config.loss.seg.get("loss", config.loss.seg).get("alpha")


@each_recipe
def test_alpha_falls_from_when_segmentation_is_trained(path):
    config, first = load(path), 0
    for phase in config.phases:
        if (config.loss.beta if phase.beta is None else phase.beta) != 0:
            break
        first = phase.until
    if isinstance(alpha_of(config), dict):
        assert alpha_of(config).get("begin", 0) == first


@each_recipe
def test_sr_is_degraded_again_as_hr_was(path):
    config = load(path)
    if config.loss.sr["name"] == "blind":
        for key in ("method", "antialias", "padding"):
            assert config.loss.sr.get(key) == config.degradation.get(key), key


# ---- what they train ----


def toy_batch(config: Config) -> Batch:
    """Two random images with a drawn crack each, degraded as the recipe says."""
    model = config.model
    crop = max(LARGER.get(name, CROP) for name in (model.form["name"], model.seg["name"], model.seg.get("encoder")))
    hr, mask = torch.rand(2, 3, crop, crop), torch.zeros(2, 1, crop, crop)
    mask[0, :, 10:14], mask[1, ..., 20:22] = 1, 1
    distance = torch.stack([torch.from_numpy(signed_distance(m.byte().numpy())) for m in mask[:, 0]])[:, None]
    lq, kernel = DEGRADATIONS.build(config.degradation, scale=config.model.scale)(hr, torch.arange(2))
    return Batch(hr=hr, mask=mask, distance=distance, lq=lq, kernel=kernel, seed=torch.arange(2))


def narrowed(config: Config) -> Config:
    """The same parts with fewer channels and layers."""
    parts = {}
    for part in ("form", "sr", "seg"):
        spec = getattr(config.model, part)
        parts[part] = {**spec, **NARROW.get(spec["name"], {})}
        if "net" in spec:  # the network that blur_skip changes
            parts[part]["net"] = {**spec["net"], **NARROW.get(spec["net"]["name"], {})}
    return replace(config, model=replace(config.model, **parts))


def toy_task(config: Config) -> Task:
    """The recipe's task with fresh weights; what starts at 0, and keeps all before it from learning at first, drawn."""
    torch.manual_seed(0)
    model = build_model(config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.01)
    return Task(model, config).train()


def inside_phases(config: Config) -> Iterator[tuple[PhaseConfig, Progress]]:
    """Each phase and a moment a tenth into it, when what begins with the phase has begun."""
    begin, total = 0, config.train.steps * config.train.batch_size
    for phase in config.phases:
        end = phase.until or total
        assert begin < end <= total, f"phase {phase.name} lies beyond the end of the run"
        yield phase, Progress(begin + (end - begin) // 10, total)
        begin = end


def trained(task: Task, phase: PhaseConfig, beta: float) -> set[str]:
    """Names of the parameters that a phase trains: not held still, and reached by a loss that counts."""
    unreached = {"seg", "encoder", "blur_skip"} if beta == 0 else set()
    unreached |= {"kernel"} if phase.true_kernel else set()
    groups = task.model.groups()
    return {name for group in groups.keys() - held_groups(groups, phase, 0) - unreached for name in groups[group]}


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in SLOW), id=p.stem) for p in RECIPES]
)
def test_each_phase_trains_what_it_should_and_keeps_all_in_the_graph(path):
    config = load(path) if path.stem in WHOLE else narrowed(load(path))
    task = toy_task(config)
    batch, parameters = toy_batch(config), dict(task.model.named_parameters())
    hold = Hold(task.model, build_optimizer(task.model, config))
    for phase, progress in inside_phases(config):
        hold.groups = held_groups(task.model.groups(), phase, 0)
        task.hold_still(hold.groups)
        losses = task(batch, progress)
        losses["loss"].backward()
        outside = [name for name, parameter in parameters.items() if parameter.grad is None]
        assert all(value.isfinite() for value in losses.values()), (phase.name, losses)
        assert outside == [], f"outside the graph in phase {phase.name}"
        largest = {name: torch.linalg.vector_norm(p.grad, math.inf).item() for name, p in parameters.items()}
        assert [name for name, value in largest.items() if not math.isfinite(value)] == [], phase.name
        wanted = trained(task, phase, task.beta(progress))
        assert wanted, f"nothing is trained in phase {phase.name}"
        assert {name for name, value in largest.items() if value > 0} ^ wanted == set(), phase.name
        task.zero_grad()
