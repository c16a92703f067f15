"""A small CSBSR through its phases under every strategy: the same samples and losses, each other's checkpoints."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import draw_shards
from running import command, environment, logged, losses
from safetensors.torch import load_file

from cssr.models.load import checkpoints

SMALL = [
    "model.scale=2",
    "model.sr={name: kbpn, stages: 2, width: 4, features: 4, hidden: 4, kernel_size: 7, predicted_size: 3}",
    "model.seg={name: unet, encoder: resnet10t, width: 4, encoder_args: {channels: [8, 8, 16, 16]}}",
    "degradation={name: gaussian, size: 7, sigma: [0.2, 1.5]}",
    "loss.sr=blind", "loss.seg=combo", "data.crop=32", "data.workers=1",
    "phases=[{name: sr, until: 16, beta: 0, true_kernel: true, lr: {seg: 0, kernel: 0}}, "
    "{name: kernel, until: 32, beta: 0, lr: {seg: 0, sr: 0}}, {name: both, until: 48, beta: 0, lr: {seg: 0}}, "
    "{name: joint}]",
    "optim.lr=1e-3", "optim.clip_norm=1.0", "optim.batch_norm=held", "eval.limit=5",
    "train.steps=20", "train.batch_size=4", "train.log_every=1", "train.val_every=10", "train.save_every=10",
    "train.tensorboard=false",
]  # fmt: skip
FILES = ["cpu_2proc.yaml", "zero1.yaml", "zero2.yaml", "zero3.yaml", "zero2_offload.yaml"]
pytestmark = pytest.mark.slow


def thorough(*values):
    """The parameters of a test that is run before a release only."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def each(often: set[str], files: list[str] = FILES) -> list:
    """Launch files as parameters, of which some are tried often, the others before a release."""
    return [file if file in often else thorough(file) for file in files]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A directory for runs, with shards in it."""
    root = tmp_path_factory.mktemp("runs")
    draw_shards(root / "set", 60, 96, "--shard-size", "20")
    return root


def run(root: Path, name: str, file: str, *more: str, precision: str = "no") -> Path:
    """A run by a launch file, until it ends."""
    if file.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: pip install 'cssr[deepspeed]'")
    places = [f"data.train={root / 'set'}", f"data.val={root / 'set'}", f"train.run_dir={root / name}"]
    words = command([*SMALL, *places, *more], 1 if file == "cpu.yaml" else 2, file)
    at = words.index("--config_file")
    words[at:at] = ["--mixed_precision", precision]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=400)
    exported = (root / name / "export" / "model.safetensors").is_file()
    assert exported, done.stderr[-3000:]  # DeepSpeed may abort on its way out, after all is written
    return root / name


@pytest.fixture(scope="module")
def one(runs) -> Path:
    """The run of one process."""
    return run(runs, "one", "cpu.yaml")


@pytest.fixture(scope="module", params=each({"cpu_2proc.yaml", "zero3.yaml"}))
def several(request, runs) -> Path:
    """The run of two processes, by each strategy."""
    return run(runs, request.param, request.param)


def assert_same_losses(found: Path, expected: Path, steps: range = range(1, 21)) -> None:
    for step in steps:
        assert losses(found)[step] == pytest.approx(losses(expected)[step], rel=1e-5), step


def test_losses_are_those_of_one_process(several, one):
    assert [line["phase"] for line in logged(several).values()] == [line["phase"] for line in logged(one).values()]
    assert_same_losses(several, one)


def test_validation_is_that_of_one_process(several, one):
    found, expected = (
        [json.loads(line) for line in (path / "validation.jsonl").read_text().splitlines()] for path in (several, one)
    )
    assert [line["psnr"] for line in found] == pytest.approx([line["psnr"] for line in expected], rel=1e-4)


def test_the_export_is_whole_and_float32(several, one):
    found, expected = (load_file(path / "export" / "model.safetensors") for path in (several, one))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype and value.shape == expected[name].shape
        if value.is_floating_point():
            assert value.dtype == torch.float32
            assert (value - expected[name]).abs().max() <= 1e-3 * expected[name].abs().max() + 1e-6, name


def test_a_checkpoint_has_the_moments_of_one_process(several, one):
    found, expected = (load_file(checkpoints(path)[-1] / "optimizer.safetensors") for path in (several, one))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert (found[name] - value).abs().max() <= 0.05 * value.abs().max() + 1e-9, name


@pytest.mark.parametrize("before, file", [
    ("cpu_2proc.yaml", "zero2.yaml"), ("zero3.yaml", "cpu.yaml"),
    thorough("cpu.yaml", "zero3.yaml"), thorough("zero2.yaml", "cpu_2proc.yaml"),
])  # fmt: skip
def test_any_strategy_continues_from_any_others_checkpoint(before, file, runs, one):
    """Within the tolerance of the strategies themselves: losses equal to 1e-5."""
    source = one if before == "cpu.yaml" else runs / before
    if not source.is_dir():
        run(runs, before, before)
    target = runs / f"{before}-{file}"
    there = checkpoints(source)[0]
    shutil.copytree(there, target / "checkpoints" / there.name)
    run(runs, target.name, file)
    assert_same_losses(target, one, range(11, 21))


@pytest.mark.parametrize("file", ["cpu.yaml", thorough("zero2.yaml")])
def test_accumulation_is_a_larger_batch(file, runs, one):
    assert_same_losses(run(runs, f"accumulation-{file}", file, "train.micro_batch=1"), one)


@pytest.mark.parametrize("file", each({"zero2.yaml"}, FILES[1:]))
def test_a_left_out_step_leaves_nothing_behind(file, runs):
    """A loss that is not finite in the second of two micro-batches, whose first has been accumulated already."""
    same = ["imports=[faulty_loss]", "train.steps=16", "train.micro_batch=1", "train.val_every=0"]
    fault = "loss.seg={name: faulty, kind: nan_second, samples: [52], rank: 0}"
    plain = runs / "left-out"
    if not plain.is_dir():
        run(runs, plain.name, "cpu_2proc.yaml", *same, fault)
    found = run(runs, f"left-out-{file}", file, *same, fault)
    assert sorted(logged(found)) == sorted(logged(plain)) == [s for s in range(1, 17) if s != 14]
    assert_same_losses(found, plain, [15, 16])


@pytest.mark.thorough
@pytest.mark.parametrize("file", ["cpu.yaml", "zero2.yaml"])
def test_bf16_stays_near_float32(file, runs):
    """Autocast, or DeepSpeed's, which the launch files' bf16 means: the mean loss of the last 50 of 200 steps."""
    same = ["train.steps=200", "train.val_every=0", "train.save_every=1000"]
    full = runs / "float32"
    if not full.is_dir():
        run(runs, full.name, "cpu.yaml", *same)
    half = run(runs, f"bf16-{file}", file, *same, precision="bf16")
    means = [sum(losses(path)[step][0] for step in range(151, 201)) / 50 for path in (full, half)]
    assert means[1] == pytest.approx(means[0], rel=0.02) and means[1] != means[0]
    weights = load_file(half / "export" / "model.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
