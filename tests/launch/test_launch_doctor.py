"""The launch doctor: what it refuses, what it says would run, and its estimate of memory beside what was measured."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from helpers import draw_shards
from paths import ROOT
from torch import nn
from torch.profiler import ProfilerActivity, profile

from cssr.config.loading import load_config
from cssr.config.schedules import Progress
from cssr.data.batch import Batch
from cssr.launch import dry_run as dry_run
from cssr.launch import memory as estimate
from cssr.launch.doctor import main
from cssr.launch.launch_file import LaunchFile, Machine, faults, notes, read_launch_file
from cssr.launch.memory import FakeTask, LiveStorages, bytes_on_cpu, make_optimizer, needs, state_values_per_parameter
from cssr.models.joint import build_model
from cssr.training.task import Task

TINY = str(ROOT / "configs" / "tiny.yaml")
GIB = 2**30
CPU = Machine(memory=64 * GIB)
GPUS = Machine("cuda", 8, "A GPU", 80 * GIB)
PLACE = {"machine_rank": 1, "main_process_ip": "10.0.0.1"}
FILES = sorted(path.stem for path in (ROOT / "launch").glob("*.yaml"))


def promised(folder: Path, name: str, changes: dict, options: dict | None = None) -> LaunchFile:
    """A launch file with other values, as accelerate's options leave it."""
    fields = {**yaml.safe_load((ROOT / "launch" / f"{name}.yaml").read_text()), **changes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in fields.items() if value is not None}))
    return read_launch_file(path, options or {})


# ---- what is refused ----

DEEPSPEED = {"deepspeed_config": {"deepspeed_config_file": "zero.json"}}
STAGE_2 = {"deepspeed_config": {"zero_stage": 2}}
FORCED = Machine(environment={"ACCELERATE_USE_CPU": "true"})
NODES = ("multi_node", {}, PLACE)
REFUSED = {
    "multi_cpu": ("cpu_2proc", {"distributed_type": "MULTI_CPU"}, {}, CPU, "silently runs one process, not 2"),
    "no": ("cpu", {"num_processes": 2}, {}, CPU, 'distributed_type: "NO" silently runs one process'),
    "dynamo": ("cpu", {"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, {}, CPU, "inductor renames the weights"),
    "--dynamo_backend": ("cpu", {}, {"dynamo_backend": "eager"}, CPU, "no checkpoint can be written"),
    "--cpu": ("cpu_2proc", {}, {"cpu": True}, CPU, "--cpu silently runs one process"),
    "no, machines": ("cpu", {"num_machines": 2}, PLACE, CPU, "silently runs one process on each machine"),
    "use_cpu": ("multi_gpu", {"use_cpu": True}, {}, GPUS, "use_cpu: true does not reach"),
    "use_cpu, zero": ("zero2", {"use_cpu": True}, {}, GPUS, "use_cpu: true does not reach"),
    "forced": ("zero2", {}, {}, FORCED, "silently turns DeepSpeed into DDP: unset it"),
    "devices": ("multi_gpu", {}, {"num_processes": 9}, GPUS, "set --num_processes to at most 8"),
    "devices, zero": ("zero3", {"num_processes": 9}, {}, GPUS, "9 processes on a machine with 8 cuda devices"),
    "gpu_ids": ("multi_gpu", {"gpu_ids": "0,1", "num_processes": 3}, {}, GPUS, "a machine with 2 cuda devices"),
    "cores": ("cpu_2proc", {}, {"num_processes": 10**6}, CPU, "1000000 processes on a machine without accelerator"),
    "nodes' devices": ("multi_node", {}, {**PLACE, "num_processes": 32}, GPUS, "to at most 16"),
    "count": ("multi_gpu", {"num_processes": -1}, {}, GPUS, "add --num_processes N"),
    "kind": ("multi_gpu", {"distributed_type": "MEGATRON_LM"}, {}, GPUS, "MEGATRON_LM is not supported"),
    "json": ("zero2", DEEPSPEED, {}, GPUS, "deepspeed_config_file does not go with mixed_precision"),
    "stage": ("zero2", {"deepspeed_config": {"zero_stage": 0}}, {}, GPUS, "zero_stage: 0 is not supported"),
    "transformers": ("zero1", {}, {}, Machine(packages=frozenset({"deepspeed"})), "needs transformers: pip install"),
    "deepspeed": ("zero1", {}, {}, Machine("cuda", 2, packages=frozenset()), "needs deepspeed and transformers"),
    "g++": ("zero1", {}, {}, Machine(compiles=False), "install g++ and ninja"),
    "g++, offload": ("zero2_offload", {}, {}, Machine("cuda", 2, compiles=False), "install g++ and ninja"),
    "fp16, zero": ("zero2", {}, {"mixed_precision": "fp16"}, GPUS, "fp16 does not go with DeepSpeed"),
    "fp16, cpu": ("cpu", {"mixed_precision": "fp16"}, {}, CPU, "fp16 needs a GPU"),
    "fp8": ("multi_gpu", {"mixed_precision": "fp8"}, {}, GPUS, "fp8 is not supported"),
    "fsdp": ("fsdp2", {}, {}, CPU, "FSDP without a GPU"),
    "fsdp1": ("fsdp2", {"fsdp_config": {"fsdp_version": 1}}, {}, GPUS, "fsdp_version: 1 is not supported"),
    "ip": ("multi_node", {}, {"machine_rank": 0}, GPUS, "add --main_process_ip"),
    "rank": ("multi_node", {}, {"main_process_ip": "10.0.0.1"}, GPUS, "add --machine_rank R, 0 to 1"),
    "rank too high": ("multi_node", {}, {**PLACE, "machine_rank": 2}, GPUS, "--machine_rank 2 with num_machines: 2"),
    "rank of one": ("cpu_2proc", {}, {"machine_rank": 7}, CPU, "--machine_rank 7 with num_machines: 1"),
    "c10d": ("multi_node", {"rdzv_backend": "c10d"}, PLACE, GPUS, "rdzv_backend: c10d"),
    "odd": ("multi_node", {"num_processes": 15}, PLACE, GPUS, "would silently run 14"),
    "pdsh": ("multi_node_zero2", STAGE_2, PLACE, GPUS, "add deepspeed_multinode_launcher: standard"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_would_go_wrong_silently_or_late_is_refused_in_one_line(case, tmp_path):
    name, changes, options, machine, said = case
    (fault,) = faults(promised(tmp_path, name, changes, options), machine)
    assert said in fault and "\n" not in fault


@pytest.mark.parametrize("name", FILES)
def test_the_launch_files_pass_where_they_are_meant_for(name, tmp_path):
    options = PLACE if name.startswith("multi_node") else {}
    for machine in [CPU] if name.startswith("cpu") else [GPUS] if name == "fsdp2" else [CPU, GPUS]:
        assert faults(promised(tmp_path, name, {}, options), machine) == []


def test_what_works_otherwise_than_meant_is_noted(tmp_path):
    assert notes(promised(tmp_path, "multi_gpu", {}), CPU) == [
        "there is no GPU here: the processes would run on the CPU"
    ]
    assert len(notes(promised(tmp_path, "zero2", {"use_cpu": True}), CPU)) == 1
    assert notes(promised(tmp_path, "zero2", {}), GPUS) == notes(promised(tmp_path, "cpu", {}), CPU) == []


@pytest.mark.parametrize(
    "name, value", [("num_processes", -3), ("num_processes", 0), ("num_machines", 0), ("main_process_port", 99_999_999)]
)
def test_numbers_that_cannot_be_are_one_line(name, value, tmp_path):
    """accelerate answers them with a traceback, or takes another."""
    with pytest.raises(ValueError, match=f"^{name}: {value} cannot be: give --{name} a number of "):
        promised(tmp_path, "multi_gpu", {}, {name: value})


@pytest.mark.parametrize(
    "text, said",
    [
        ("distributed_type: NO\nnum_processes: 1", 'distributed_type: "NO"'),
        ('distributed_type: "NO"\nnum_processes: 1\nmixed_precision: no', 'mixed_precision: "no"'),
        ("distributed_type: MULTI_GPU\nprocesses: 2", "processes"),
        ("distributed_type: MULTI_GPUS\nnum_processes: 2", "MULTI_GPUS"),
        ("num_processes: 2", "distributed_type"),
        ("distributed_type: [", "--config_file"),
        ('distributed_type: "NO"\nnum_processes: 1\nnum_processes: 8', "'num_processes' is there twice"),
        ("", "the whole must be an object, got None"),
        ("- a", "the whole must be an object, got ['a']"),
        ("[" * 3000, "--config_file"),
        ("distributed_type: [1]", "distributed_type must be a word"),
        ("num_processes: {a: 1}", "num_processes must be a whole number"),
        ("num_processes: 100000000000", "of -1 to 1e+06"),
        ("deepspeed_config: {zero_stage: abc}", "deepspeed_config.zero_stage must be a whole number, got 'abc'"),
        ("fsdp_config: hello", "fsdp_config must be an object"),
        ("dynamo_config: {dynamo_backend: [1]}", "dynamo_config.dynamo_backend must be a word"),
    ],
)
def test_a_file_that_accelerate_cannot_read_is_one_line(text, said, tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="--config_file") as caught:
        read_launch_file(path, {})
    assert said in str(caught.value) and "\n" not in str(caught.value)


# ---- a recipe under a launch ----


def run_dry(*settings: str, machine: Machine = CPU, **launch) -> tuple[dict[str, str], list[str]]:
    """Rows by name, and faults."""
    found = LaunchFile(**{"kind": "MULTI_GPU", "processes": 2, **launch})
    sections, wrong = dry_run.run_dry([TINY, *settings], found, machine)
    return {name: text for _, rows in sections for name, text in rows}, wrong


ZERO3 = {"kind": "DEEPSPEED", "deepspeed": {"zero_stage": 3}}
OFFLOAD = {"kind": "DEEPSPEED", "deepspeed": {"zero_stage": 2, "offload_optimizer_device": "cpu"}}
SETTINGS = {
    "batch": ({}, ["train.batch_size=5"], "train.batch_size=5 cannot be split over 2 processes"),
    "lanes": ({"processes": 3}, ["train.batch_size=6"], "data.lanes=32 is not a multiple"),
    "ema": (ZERO3, [], "optim.ema=0.995 does not go with ZeRO-3 or FSDP"),
    "ema, fsdp": ({"kind": "FSDP"}, [], "optim.ema=0.995 does not go with ZeRO-3 or FSDP"),
    "sync": ({}, ["optim.batch_norm=sync"], "optim.batch_norm=sync needs GPUs"),
    "offload": (OFFLOAD, ["optim.optimizer=sgd"], "optim.optimizer=sgd would silently become DeepSpeed's Adam"),
    "optimizer": ({}, ["optim.optimizer=adamm"], "adamm"),
    "kernel": ({}, ["loss.sr=blind"], "no blur kernel"),
    "network": ({}, ["model.seg={name: blur_skip}"], "blur_skip"),
    "setting": ({}, ["train.stepz=1"], "Did you mean: 'steps'"),
}


@pytest.mark.parametrize("case", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_do_not_go_with_the_launch_are_refused(case):
    launch, settings, said = case
    (fault,) = run_dry(*settings, **launch)[1]
    assert said in fault and "\n" not in fault


def test_an_optimizer_that_deepspeed_has_is_offloaded():
    rows, wrong = run_dry("optim.ema=null", **OFFLOAD)
    assert wrong == [] and "on the CPU" in rows and rows["optimizer"].endswith("on the CPU")


def test_it_says_how_the_batch_is_split():
    rows, wrong = run_dry("train.batch_size=32", "train.micro_batch=4", "data.workers=4", processes=4, machines=2)
    assert wrong == []
    assert rows["batch"] == "32: ranks x micro-batch x accumulation = 4 x 4 x 2"
    assert rows["lanes"] == "32: ranks x workers x lanes of each = 4 x 4 x 2"


def test_data_are_looked_at_where_they_are(tmp_path):
    shards = draw_shards(tmp_path / "set", 4, 64)
    assert "not set" in run_dry()[0]["data"]
    rows, wrong = run_dry(f"data.train={tmp_path / 'elsewhere'}")
    assert wrong == [] and "is not here" in rows["data"]
    assert "data.crop=96 exceeds the smallest image" in run_dry(f"data.train={shards}")[1][0]
    rows, wrong = run_dry(f"data.train={shards}", "data.crop=64", "data.lanes=4")
    assert wrong == [] and rows["data"].startswith("4 samples")


def test_what_does_not_fit_is_refused_with_the_micro_batch_that_would():
    whole = {name: float(text.split()[0]) for name, text in run_dry()[0].items() if text[:1] == " "}
    small = Machine("cuda", 2, "small", int((whole["together"] - whole["activations"] / 3) * GIB))
    (fault,) = run_dry(machine=small)[1]
    assert fault.endswith("set train.micro_batch=2")
    assert run_dry("train.micro_batch=2", machine=small)[1] == []


# ---- memory ----


@pytest.fixture(scope="module")
def fake() -> FakeTask:
    return FakeTask(load_config(TINY))


@pytest.fixture(scope="module")
def parameters() -> int:
    return sum(parameter.numel() for parameter in build_model(load_config(TINY).model).parameters())


@pytest.mark.parametrize("kind, more, expected", [
    ("NO", {"processes": 1}, {"model": 1, "gradients": 1, "optimizer": 2}),
    ("MULTI_GPU", {}, {"model": 1, "gradients": 1, "optimizer": 2, "exchange": 1}),
    # a quarter of two moments and of the float32 weights that a rank steps
    ("DEEPSPEED", {"zero_stage": 1}, {"model": 1, "gradients": 1, "optimizer": 0.75, "exchange": 1}),
    ("DEEPSPEED", {"zero_stage": 2}, {"model": 1, "gradients": 0.25, "optimizer": 0.75, "exchange": 1}),
    ("DEEPSPEED", {"zero_stage": 3},
     {"model": 0.25, "gathered": 1, "gradients": 0.25, "optimizer": 0.75, "exchange": 1}),
    ("DEEPSPEED", {"zero_stage": 2, "offload_optimizer_device": "cpu"},
     {"model": 1, "gradients": 0, "optimizer": 0, "exchange": 1}),
    ("FSDP", {}, {"model": 0.25, "gathered": 2, "gradients": 0.25, "optimizer": 0.5}),
])  # fmt: skip
def test_memory_of_a_rank_of_four_by_closed_form(kind, more, expected, fake, parameters):
    """In multiples of the weights; the average of the weights is whole on every rank."""
    launch = LaunchFile(kind, more.get("processes", 4), deepspeed=more if kind == "DEEPSPEED" else {})
    found = {need.name: need.bytes for need in needs(launch, fake, make_optimizer(fake.config), 77)}
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in fake.model.buffers())
    assert found.pop("activations") == 77 and found.pop("average") == 4 * parameters + buffers
    found["model"] -= buffers
    assert found == pytest.approx({name: share * 4 * parameters for name, share in expected.items()})


def test_what_is_offloaded_is_counted_for_the_cpu(fake, parameters):
    launch = LaunchFile("DEEPSPEED", 4, deepspeed={"zero_stage": 2, "offload_optimizer_device": "cpu"})
    optimizer = make_optimizer(fake.config)
    assert bytes_on_cpu(launch, fake, optimizer) == pytest.approx(4 * parameters)  # (1 + 1 + 2) / 4 of the weights
    assert bytes_on_cpu(LaunchFile("MULTI_GPU", 4), fake, optimizer) == 0


@pytest.mark.parametrize("optimizer, each", [("adamw", 2), ("sgd", 1), ("momentum", 1), ("lion", 1), ("adagrad", 1)])
def test_the_optimizers_state_is_found_by_stepping_it(optimizer, each):
    assert state_values_per_parameter(make_optimizer(load_config(TINY, [f"optim.optimizer={optimizer}"]))) == each


def test_living_storages_are_counted_once_and_until_they_die():
    weight = nn.Parameter(torch.ones(1000))
    with LiveStorages([weight]) as live:
        first = weight.detach().view(10, 100)  # no memory of its own
        second = first * 2
        third = second[:5]  # holds all of the second
        assert (live.now, live.peak) == (4000, 4000)
        del second
        assert live.now == 4000
        fourth = third + 1
        del third, fourth
    assert (live.now, live.peak) == (0, 6000)


def test_activations_of_a_known_network():
    """Ten squares in a row keep what each squares, and the sum that is left."""

    class Squares(nn.Module):
        needs_distance = False

        def forward(self, batch: Batch, progress: Progress) -> dict:
            value = batch.hr
            for _ in range(10):
                value = (value * weight) ** 2
            return {"loss": value.sum()}

    found = FakeTask(load_config(TINY))
    with found._mode:
        weight = nn.Parameter(torch.ones(()))
    found.task = Squares()
    image = 4 * 3 * 96**2
    inputs = 4 * (3 + 1) * 96**2 + 4 * 3 * 24**2
    kept = found.activations(1, None, False) - inputs
    assert 19 * image <= kept <= 23 * image


@pytest.mark.parametrize("half", [False, True])
def test_activations_are_near_those_that_the_allocator_saw(half):
    """tiny.yaml; convolutions on a CPU have a workspace besides."""
    if half and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16: convolutions hold what they are turned into")
    config = load_config(TINY, ["data.crop=192"])
    estimated = FakeTask(config).activations(2, None, half)
    task = Task(build_model(config.model), config).train()
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    hr, mask = torch.rand(2, 3, 192, 192), torch.zeros(2, 1, 192, 192)
    batch = Batch(hr=hr, mask=mask, distance=torch.ones_like(mask), lq=torch.rand(2, 3, 48, 48))
    inputs = sum(tensor.numel() * 4 for tensor in (hr, mask, mask, batch.lq))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = task(batch, Progress(3992, 4000))["loss"]
        loss.backward()
    now = peak = 0
    events = (event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert estimated == pytest.approx(peak + inputs, rel=0.2)


def test_recomputed_activations_are_fewer():
    configs = (load_config(TINY, [f"train.recompute={on}"]) for on in ("false", "true"))
    kept, fewer = (FakeTask(config).activations(2, None, False) for config in configs)
    assert 0 < fewer < 0.8 * kept


def test_an_estimate_needs_no_memory_of_its_size():
    """A crop whose activations would be terabytes."""
    assert FakeTask(load_config(TINY, ["data.crop=16384"])).activations(64, None, False) > 2**40


def test_a_network_that_looks_at_its_values_is_left_out(monkeypatch):
    def look(self, *_):
        raise RuntimeError("no value is here")

    monkeypatch.setattr(estimate.FakeTask, "activations", look)
    rows, wrong = run_dry()
    assert wrong == [] and "no value is here" in rows["unknown"] and "together" not in rows


# ---- the command ----


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: exit status, what it printed, and its errors."""

    def call(*words: str) -> tuple[int, str, str]:
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


def test_the_command_says_what_would_run_here(run):
    status, printed, errors = run("--config_file", "cpu_2proc", "--num_processes", "4", TINY, "train.batch_size=8")
    assert status == 0 and errors == "" and printed.endswith("it would run\n")
    lines = dict(line.split(None, 1) for line in printed.splitlines() if line.startswith("  "))
    assert lines["world"].split() == ["size", "4"] and lines["type"] == "MULTI_GPU: DDP"
    assert lines["parameters"].startswith("sr 0.15 M, seg 2.53 M, encoder 1.26 M")
    assert {"model", "gradients", "optimizer", "activations", "together"} <= lines.keys()


def test_the_command_ends_with_two_and_a_line_for_each_fault(run, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    status, printed, errors = run("--config_file", "zero3", "--mixed_precision", "fp16", TINY, "train.batch_size=7")
    lines = errors.splitlines()
    assert status == 2 and len(lines) == 4 and all(line.startswith("error: ") for line in lines)
    assert "it would run" not in printed


def test_a_torchvision_that_does_not_fit_torch_is_named_with_the_cure(tmp_path):
    """As a CPU-only torch finds the registry's; in a process of its own, which imports nothing before."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(ROOT / "launch" / "doctor.py"), "--config_file", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "install torch and torchvision from the same place" in line


@pytest.mark.parametrize("words, said", [(["--config_file", "nowhere"], "nowhere"), ([], "--config_file")])
def test_mistakes_on_the_command_line_end_with_two(words, said, run):
    status, _, errors = run(*words)
    assert status == 2 and said in errors
