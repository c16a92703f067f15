"""What docs/ says beside its commands: names, the plan's example, equations, against the code."""

import json
import math
import re
import tarfile

import numpy as np
import pytest
import torch
from helpers import draw_shards
from paths import ROOT
from scipy.ndimage import correlate

from cssr.config.schedules import Progress
from cssr.data.batch import Batch, Outputs
from cssr.data.sampler import LanePlan, MixedPlan
from cssr.data.transforms import signed_distance
from cssr.degradations.kernels import gaussian_kernel
from cssr.evaluation.definitions import DEFINITIONS, KEYS
from cssr.losses import LOSSES

DOCS = ROOT / "docs"


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def named(page: str) -> set[str]:
    """All that stands in backticks."""
    return set(re.findall(r"`([^`\n]+)`", page))


def tables(page: str, heading: str) -> list[dict[str, list[int]]]:
    """The tables of numbers below a heading whose first cell is `place`: rows by their names."""
    found: list[dict[str, list[int]]] = []
    for line in page.split(heading)[1].splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name == "place":
            found.append({})
        if found and cells and all(cell.isdigit() for cell in cells):
            found[-1][name] = [int(cell) for cell in cells]
    return found


# ---- docs/metrics.md ----


@pytest.mark.parametrize("key", sorted({*KEYS, *DEFINITIONS}))
def test_every_measure_is_explained(key):
    assert key in named(text("metrics.md")), f"docs/metrics.md has no `{key}`: say what it is and where it is computed"


# ---- docs/shards.md ----


@pytest.mark.parametrize("number, counts, lanes, window", [(0, [3, 4], 3, 16384), (1, [3, 4, 5], 2, 4)])
def test_the_plans_example_is_what_the_plan_does(number, counts, lanes, window):
    rows = tables(text("shards.md"), "## The plan")[number]
    mixed, plan = MixedPlan([counts], [1], lanes, 0, window), LanePlan(counts, lanes, 0, window)
    starts = [sum(counts[:shard]) for shard in range(len(counts))]
    assert len(rows["place"]) == 12
    for column, place in enumerate(rows["place"]):
        _, shard, index = mixed.locate(place)
        row, lane = divmod(place, lanes)
        found = {
            "pass": row // plan.rows,
            "lane": lane,
            "sample": starts[shard] + index,
            "shard": shard,
            "in it": index,
        }
        assert {name: values[column] for name, values in rows.items() if name != "place"} == {
            name: value for name, value in found.items() if name in rows
        }


def test_the_index_and_the_json_hold_nothing_that_is_not_explained(tmp_path):
    out = draw_shards(tmp_path / "set", 4, 64, "--ratio", "train=0.5", "val=0.5")
    index = json.loads((out / "train/index.json").read_text())
    with tarfile.open(out / "train" / index["shards"][0]["name"]) as tar:
        facts = json.load(tar.extractfile(next(m for m in tar if m.name.endswith(".json"))))
    explained = named(text("shards.md"))
    assert {*index, *index["shards"][0], *facts, *json.loads((out / "split.json").read_text())} <= explained


# ---- docs/methods.md: its equations as they stand, in numpy ----


@pytest.fixture
def sample():
    """Logits, probability, mask and signed distance of 9 x 11 pixels, float64."""
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(9, 11)), np.zeros((9, 11))
    mask[2:7, 3:6] = 1
    return logits, 1 / (1 + np.exp(-logits)), mask, signed_distance(mask.astype(np.uint8)).astype(float)


def loss_of(name: str, sample: tuple, samples: int = 0, **settings) -> float:
    logits, _, mask, distance = (torch.from_numpy(array)[None, None].float() for array in sample)
    batch = Batch(hr=torch.zeros(1, 3, 9, 11), mask=mask, distance=distance)
    outputs = Outputs(sr=batch.hr, logits=logits)
    return LOSSES.build({"name": name, **settings})(outputs, batch, Progress(samples, 10**6)).item()


def test_segmentation_losses_are_as_written(sample):
    _, p, m, phi = sample
    bce = -(2 * m * np.log(p) + 3 * (1 - m) * np.log(1 - p)).mean() / (2 + 3)
    dice = 1 - (2 * (p * m).sum() + 1e-6) / ((p**2).sum() + (m**2).sum() + 1e-6)
    v = 1 / (m.sum() + 1e-10) ** 2
    gdice = 1 - 2 * (v * (p * m).sum() + 1e-5) / (v * (p.sum() + m.sum()) + 1e-5)
    scaled = np.where(phi > 0, phi / phi.max(), np.where(phi == -1, 0, phi / abs(phi.min())))
    boundary = (p * scaled).mean()
    combo, alpha = (bce + 4 * dice) / 5, max(0.01, 1 - 0.01 * (max(2500 - 500, 0) // 100))
    schedule = {"name": "staircase", "every": 100, "begin": 500}
    settings = {"weight": [2, 3], "mix": [1, 4], "alpha": schedule}
    expected = {
        "bce": bce, "dice": dice, "generalized_dice": gdice, "boundary": boundary, "combo": combo,
        "boundary_combo": alpha * combo + (1 - alpha) * boundary,
        "generalized_boundary_combo": alpha * (bce + 4 * gdice) / 5 + (1 - alpha) * boundary,
        "boundary_generalized_dice": alpha * gdice + (1 - alpha) * boundary,
    }  # fmt: skip
    for name, value in expected.items():
        taken = {key: setting for key, setting in settings.items() if key in LOSSES.parameters(name)}
        assert loss_of(name, sample, 2500, **taken) == pytest.approx(value, abs=2e-6), name


def test_the_side_loss_is_as_written(sample):
    _, p, m, _ = sample
    r = m.mean()
    expected = -((1 - r) * m * np.log(p) + 1.1 * r * (1 - m) * np.log(1 - p)).mean()
    assert loss_of("crackformer_side", sample) == pytest.approx(expected, abs=1e-6)


def test_weights_and_the_blind_loss_are_as_written(sample):
    logits, p, m, phi = sample
    rng = np.random.default_rng(1)
    sr, hr = rng.random((2, 3, 9, 11))
    true, predicted = rng.random((2, 3, 3))
    weight = 2 * np.exp(-0.5 * phi.clip(0)) * np.exp(0.7 * abs(p - m))
    blurred = np.stack([correlate(channel, predicted, mode="constant") for channel in sr])
    lq = rng.random((3, 9, 11))
    expected = (weight * abs(sr - hr)).mean() * 0.4 + (weight * abs(blurred - lq)).mean() * 0.4
    expected += 0.2 * ((predicted - true) ** 2).mean()
    tensors = {name: torch.from_numpy(array)[None].float() for name, array in {"hr": hr, "lq": lq}.items()}
    mask, distance, kernel, logits = (torch.from_numpy(a)[None, None].float() for a in (m, phi, true, logits))
    batch = Batch(**tensors, mask=mask, distance=distance, kernel=kernel)
    outputs = Outputs(torch.from_numpy(sr)[None].float(), logits, torch.from_numpy(predicted)[None, None].float())
    loss = LOSSES.build({"name": "blind", "pixel_weight": {"crack": 0.5, "failure": 0.7}})
    assert loss(outputs, batch, Progress(0, 1)).item() == pytest.approx(expected, abs=1e-6)


def test_kernels_are_as_written():
    s1, s2, theta = 1.5, 3.0, math.radians(30)
    a = math.cos(theta) ** 2 / (2 * s1**2) + math.sin(theta) ** 2 / (2 * s2**2)
    b = math.sin(theta) * math.cos(theta) * (1 / (2 * s2**2) - 1 / (2 * s1**2))
    c = math.sin(theta) ** 2 / (2 * s1**2) + math.cos(theta) ** 2 / (2 * s2**2)
    y, x = np.mgrid[-10:11, -10:11]
    k = np.exp(-(a * x**2 + 2 * b * x * y + c * y**2))
    found = gaussian_kernel(torch.tensor([[s1, s2, 30.0]]), 21)[0, 0]
    np.testing.assert_allclose(found, k / k.sum(), atol=1e-12)
