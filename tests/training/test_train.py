"""Whole runs of the command, as a user starts them: resume, kill, two processes, mistakes."""

import json
import os
import shutil
import signal
import subprocess
import threading

import numpy as np
import psutil
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from helpers import draw_shards, spoil, write_set
from paths import SUPPORT
from running import ROOT, kill_all, launch, logged, losses, settings, start, wait_for_step

from cssr.config.loading import changed_settings, load_config, save_config
from cssr.evaluate import main as evaluate
from cssr.inference.predictor import predict
from cssr.models.load import checkpoints, load_model, read_best
from cssr.train import main
from cssr.training import checkpoint
from cssr.training.log import has_step
from cssr.training.trainer import Run


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Forty drawn photographs of 64 pixels, in two shards."""
    return draw_shards(tmp_path_factory.mktemp("shards") / "set", 40, 64, "--shard-size", "24")


@pytest.fixture(scope="session")
def straight(shards, tmp_path_factory):
    """A run of ten steps that nothing has interrupted."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    main(settings(shards, run_dir, "train.steps=10"))
    return run_dir


def test_run_directory_holds_what_users_rely_on(straight):
    there = {path.name for path in straight.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "validation.jsonl", "checkpoints", "export", "samples", "log.txt"} <= there
    line = logged(straight)[5]
    assert line["samples"] == 20
    assert {
        "loss",
        "sr_loss",
        "seg_loss",
        "images_per_s",
        "data_wait",
        "memory_gib",
        "lr",
        "beta",
        "phase",
    } <= line.keys()
    assert sorted(logged(straight)) == list(range(1, 11))
    assert sorted(p.name for p in (straight / "samples").iterdir()) == [f"step_{s:08d}.png" for s in (4, 8, 10)]
    assert load_config(straight / "config.yaml").train.steps == 10


def test_checkpoints_rotate_and_the_best_stays(straight):
    best = json.loads((straight / "checkpoints" / "best.json").read_text())["checkpoint"]
    there = {path.name for path in (straight / "checkpoints").iterdir() if path.is_dir()}
    assert there == {"step_00000009", "step_00000010", best}


def test_export_is_the_best_average(straight):
    from safetensors.torch import load_file

    best = json.loads((straight / "checkpoints" / "best.json").read_text())["checkpoint"]
    export, ema = (load_file(straight / p) for p in ("export/model.safetensors", f"checkpoints/{best}/ema.safetensors"))
    assert all(torch.equal(export[name], ema[name]) for name in ema)
    facts = json.loads((straight / "export" / "config.json").read_text())
    assert facts["averaged_weights"] is True and facts["step"] == int(best[5:])


def test_export_has_the_temperature_of_its_own_validation(straight, shards, tmp_path):
    """And evaluated on the same images again, nothing more is to be fitted."""
    facts = json.loads((straight / "export" / "config.json").read_text())
    lines = map(json.loads, (straight / "validation.jsonl").read_text().splitlines())
    fitted = {line["step"]: line["temperature"] for line in lines}
    assert facts["model"]["temperature"] == fitted[facts["step"]] != 1 and len(set(fitted.values())) == 3
    evaluate([str(straight), "--data", str(shards), "--out", str(tmp_path)])
    again = json.loads((tmp_path / "results.json").read_text())["calibration"]["temperature"]
    assert again == pytest.approx(facts["model"]["temperature"], rel=0.02)


def test_a_finished_run_says_so(straight, shards, capsys):
    main(settings(shards, straight, "train.steps=10"))
    assert "is finished: 10 steps" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_resume_equals_the_uninterrupted_run(stop, straight, shards, tmp_path):
    """Stopped between or at checkpoints, dropout and EMA on: the losses that follow are the same, bit for bit."""
    main(settings(shards, tmp_path / "run", f"train.steps={stop}"))
    main(settings(shards, tmp_path / "run", "train.steps=10"))
    assert losses(tmp_path / "run") == losses(straight)


@pytest.mark.slow
def test_resume_with_other_workers(straight, shards, tmp_path):
    main(settings(shards, tmp_path / "run", "train.steps=6", "data.workers=0"))
    main(settings(shards, tmp_path / "run", "train.steps=10", "data.workers=4"))
    assert losses(tmp_path / "run") == losses(straight)


def test_accumulation_equals_a_larger_batch(shards, tmp_path):
    """Without dropout, batch statistics or rounding differences beyond float32's."""
    seg = "model.seg={name: unet, encoder: vgg11, depth: 2, width: 4}"
    for name, micro in (("whole", 4), ("pieces", 1)):
        main(settings(shards, tmp_path / name, seg, "train.steps=4", "train.val_every=0", f"train.micro_batch={micro}"))
    whole, pieces = losses(tmp_path / "whole"), losses(tmp_path / "pieces")
    for step in whole:
        assert pieces[step] == pytest.approx(whole[step], rel=1e-5)


@pytest.mark.slow
def test_killed_between_naming_and_writing_the_best(straight, shards, tmp_path, monkeypatch):
    """The step of the first validation is done again after the resume, and named again."""
    write = checkpoint.write

    def killed(run_dir, taken):
        if taken.step == 4:
            raise InterruptedError("killed")
        return write(run_dir, taken)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="killed"):
        patch.setattr(checkpoint, "write", killed)
        main(settings(shards, tmp_path / "run", "train.steps=10"))
    assert read_best(tmp_path / "run")["checkpoint"] == "step_00000004"
    main(settings(shards, tmp_path / "run", "train.steps=10"))
    assert losses(tmp_path / "run") == losses(straight)
    assert read_best(tmp_path / "run") == read_best(straight)


HOLDS = "; changed: what data.val holds"


@pytest.mark.slow
def test_the_best_is_chosen_anew_where_validation_has_changed(shards, tmp_path):
    """By sets of another content under the same path, or by how they are measured; else it is kept."""
    val, run_dir = shutil.copytree(shards, tmp_path / "val"), tmp_path / "run"
    best, words = run_dir / "checkpoints" / "best.json", [f"data.val={val}", "train.val_every=2"]
    main(settings(shards, run_dir, *words, "train.steps=2"))
    best.write_text(json.dumps({**json.loads(best.read_text()), "value": 2.0}))  # which nothing exceeds
    main(settings(shards, run_dir, *words, "train.steps=4"))
    assert read_best(run_dir)["checkpoint"] == "step_00000002" and HOLDS not in (run_dir / "log.txt").read_text()
    shutil.rmtree(val)
    draw_shards(val, 8, 64, "--seed", "5")
    main(settings(shards, run_dir, *words, "train.steps=6"))
    now = read_best(run_dir)
    assert now["checkpoint"] == "step_00000006" and now["value"] <= 1
    assert HOLDS in (run_dir / "log.txt").read_text()
    best.write_text(json.dumps({**now, "value": 2.0}))
    main(settings(shards, run_dir, *words, "eval.limit=5", "train.steps=8"))
    assert read_best(run_dir)["checkpoint"] == "step_00000008"


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def test_a_run_leaves_nothing_behind_in_its_process(shards, tmp_path):
    """No watchdog, which would end whatever the process does after it, no handler of signals, no lock."""
    before = signal.getsignal(signal.SIGTERM)
    for steps in (1, 2):
        run = Run(load_config(None, settings(shards, tmp_path / "run", f"train.steps={steps}")))
        run.train()
    watchdogs = [thread for thread in threading.enumerate() if thread.name == "watchdog"]
    for thread in watchdogs:
        thread.join(10)
    assert run.step == 2 and not any(thread.is_alive() for thread in watchdogs)
    assert signal.getsignal(signal.SIGTERM) == before


def test_phases_hold_groups_still(shards, tmp_path):
    """Independent training as data: SR alone for 8 samples, then segmentation alone."""
    phases = "phases=[{name: sr, until: 8, beta: 0, lr: {seg: 0}}, {name: seg, beta: 1, lr: {sr: 0}}]"
    states = []
    for steps in (2, 4):
        arguments = settings(shards, tmp_path / "run", phases, f"train.steps={steps}", "optim.ema=null")
        run = Run(load_config(None, arguments))
        states += [] if states else [weights(run)]
        run.train()
        states.append(weights(run))
    start, after_sr, after_seg = states
    for name in start:
        group = name.split(".")[0]
        moved = (not torch.equal(start[name], after_sr[name]), not torch.equal(after_sr[name], after_seg[name]))
        if group == "sr":
            assert moved == (True, False), name
        elif "running" in name or name.endswith("num_batches_tracked"):
            assert moved == (False, True), name
        else:
            assert not moved[0], name


def test_dry_run_writes_nothing(shards, tmp_path, capsys):
    main(settings(shards, tmp_path / "run", "train.dry_run=true"))
    output = capsys.readouterr().out
    assert "parameters sr" in output and "lq (4, 3, 8, 8)" in output and not (tmp_path / "run").exists()


def test_init_from_an_export(straight, shards, tmp_path):
    config = load_config(None, settings(shards, tmp_path / "run", f"train.init_from={straight}", "train.steps=1"))
    from safetensors.torch import load_file

    state, export = Run(config).model.state_dict(), load_file(straight / "export" / "model.safetensors")
    assert all(torch.equal(state[name], export[name]) for name in export)


def test_help_prints_every_setting(capsys):
    main(["--help"])
    output = capsys.readouterr().out
    assert "shuffle_window: 16384" in output and "# samples a step over all processes" in output


@pytest.mark.parametrize("mistake, message", [
    ("train.batch_size=5 train.micro_batch=2", "train.micro_batch may be"),
    ("data.lanes=6 data.workers=4", "data.workers may be"),
    ("data.crop=128", "data.crop=128 exceeds"),
    ("data.crop=30", "not a multiple of model.scale"),
    ("data.train=nowhere", "data.train: no shards in nowhere"),
    ("data.train=null", "data.train is not set"),
    ("train.stepz=3", "Did you mean: 'steps'"),
    ("train.steps=many", "train.steps"),
    ("train.best=iou", "no measure 'iou'"),
    ("loss.seg=dise", "did you mean dice"),
    ("degradation=gausian", "did you mean gaussian"),
    ("optim.optimizer=adamm", "did you mean"),
    ("optim.schedule=cosin", "did you mean cosine"),
    ("phases=[{name: a, lr: {segg: 0}}]", "segg"),
    ("train.init_from=nowhere", "nowhere"),
    ("data.val=nowhere", "data.val: no shards in nowhere"),
])  # fmt: skip
def test_mistakes_are_one_line_before_anything_is_written(mistake, message, shards, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(
            settings(
                shards, tmp_path / "run", *([mistake] if mistake.count("=") == 1 or "[" in mistake else mistake.split())
            )
        )
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_resume_with_another_architecture_is_refused(straight, shards, tmp_path):
    with pytest.raises(SystemExit, match="another architecture"):
        main(settings(shards, straight, "train.steps=12", "model.sr={name: dbpn, stages: 3, width: 4, features: 8}"))


def test_resume_with_another_batch_size_is_refused(straight, shards):
    with pytest.raises(SystemExit, match="train.batch_size=2.*was trained with 4"):
        main(settings(shards, straight, "train.steps=12", "train.batch_size=2"))


def test_changed_settings_are_listed():
    assert changed_settings({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: 2 -> 3"]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(shards, tmp_path):
    """configs/tiny.yaml has no BatchNorm and no dropout, so that this can hold."""
    same = [
        "train.steps=6",
        "train.val_every=6",
        "data.crop=32",
        "train.log_every=1",
        f"data.train={shards}",
        f"data.val={shards}",
    ]
    for processes in (1, 2):
        done = launch([str(ROOT / "configs/tiny.yaml"), *same, f"train.run_dir={tmp_path / str(processes)}"], processes)
        assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert sorted(two) == sorted(one) == list(range(1, 7))
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=1e-4)
    validation = [json.loads((tmp_path / n / "validation.jsonl").read_text()) for n in "12"]
    assert validation[1]["psnr"] == pytest.approx(validation[0]["psnr"], rel=1e-4)
    assert "2 x cpu" in (tmp_path / "2" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.thorough), 2])
def test_killed_at_any_step_it_resumes_exactly(processes, straight, shards, tmp_path):
    """kill -9 of all processes in the middle of a run, three times; then the same command until the end."""
    run_dir, arguments = tmp_path / "run", settings(shards, tmp_path / "run", "train.steps=10")
    for until in (2, 5, 8):
        process = start(arguments, processes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_step(run_dir, until, process)
        kill_all(process)
    done = launch(arguments, processes)
    assert done.returncode == 0, done.stderr
    assert sorted(logged(run_dir)) == list(range(1, 11))
    if processes == 1:
        assert losses(run_dir) == losses(straight)
    assert not list((run_dir / "checkpoints").glob("*partial*"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.thorough), 2])
def test_sigterm_writes_a_checkpoint(processes, shards, tmp_path):
    run_dir, arguments = (
        tmp_path / "run",
        settings(shards, tmp_path / "run", "train.steps=400", "train.save_every=1000", "train.val_every=0"),
    )
    process = start(arguments, processes, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_step(run_dir, 4, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert psutil.wait_procs(family, timeout=40)[1] == []
    there = [path.name for path in (run_dir / "checkpoints").iterdir() if path.is_dir()]
    assert len(there) == 1 and 4 <= int(there[0][5:]) < 400, output


def test_recipe_settings_round_trip(tmp_path):
    config = load_config(ROOT / "configs" / "tiny.yaml")
    save_config(config, tmp_path / "c.yaml")
    assert yaml.safe_load((tmp_path / "c.yaml").read_text()) and load_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    "where, said",
    [
        ("cssr.training.trainer.Stepper", r"out of memory before the first batch: make the model smaller \(model.sr="),
        ("cssr.training.step.Stepper.step", r"out of memory: lower train.micro_batch \(here 4"),
    ],
)
def test_memory_that_does_not_suffice_is_one_line_while_building_too(where, said, shards, tmp_path, monkeypatch):
    def none_left(*args, **kwargs):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(where, none_left)
    with pytest.raises(SystemExit, match=said):
        main(settings(shards, tmp_path / "run", "train.steps=1"))


def test_a_single_value_for_batch_norm_names_the_settings(shards, tmp_path):
    encoder = "encoder_args: {channels: [8, 8, 8, 8], norm_layer: batchnorm2d}"
    norm = f"model.seg={{name: unet, encoder: resnet10t, width: 4, {encoder}}}"
    with pytest.raises(SystemExit, match="BatchNorm sees a single value of each channel: raise data.crop=32"):
        main(settings(shards, tmp_path / "run", norm, "train.steps=1", "train.batch_size=1"))


# ---- what is tried before the first step, and what is no training ----


@pytest.mark.parametrize(
    "override, said",
    [
        ("model.seg={name: smp, architecture: fpn, encoder: tu-swin_tiny_patch4_window7_224}", "images of every size"),
        ("train.best=kernel_psnr", "predicts kernels"),
        ("train.best=width_bias", "no measure 'width_bias'"),
        ("train.best=iou_max_threshold", "no measure 'iou_max_threshold'"),
        ("train.micro_batch=100000000", "train.micro_batch"),
        ("model.seg={name: smp, arch: fpn}", "does not take 'arch' .did you mean architecture"),
        ("model.seg={name: smp, architecture: fpn, encoder: tu-resnet10t, decoder_width: 3}", "decoder_width=3"),
        ("loss.beta=2", "loss.beta must be 0 to 1, got 2"),
        ("loss.beta={name: linear, until: 8, end: -1}", "loss.beta must be 0 to 1, got -1 at 8 samples"),
        ("loss.extra=[{loss: 5, weight: 1}]", "a loss is a name"),
        ("loss.extra=[{loss: l1, weight: -1}]", "weight of l1 must be 0"),
        ("optim.schedule={name: constant, value: -1}", "optim.schedule must be 0"),
        ("optim.arguments={betas: []}", "optim: adam refuses its settings"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(override, said, shards, tmp_path):
    with pytest.raises(SystemExit, match=said) as caught:
        main(settings(shards, tmp_path / "run", "train.steps=4", override))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_what_accelerate_would_compile_is_refused(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit, match="dynamo_backend INDUCTOR renames the weights.*train.compile=true"):
        main(settings(shards, tmp_path / "run", "train.steps=4"))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_slow_measure_is_measured_where_it_chooses_the_best(shards, tmp_path):
    run_dir = tmp_path / "run"
    main(settings(shards, run_dir, "train.steps=2", "train.val_every=1", "train.best=hd95_min"))
    best = json.loads((run_dir / "checkpoints" / "best.json").read_text())
    assert best["measure"] == "hd95_min" and best["value"] > 0


def test_a_run_of_which_every_step_was_left_out_fails(shards, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SUPPORT)
    fault = "loss.seg={name: faulty, kind: nan, samples: [0, 4, 8]}"
    with pytest.raises(SystemExit, match="every step was left out"):
        main(settings(shards, tmp_path / "run", "train.steps=3", "imports=[faulty_loss]", fault))
    assert not (tmp_path / "run" / "export").exists()


def test_a_damaged_validation_image_costs_no_step(shards, tmp_path):
    """The checkpoint comes first; repaired, the run goes on with the validation that it missed."""
    val = write_set(tmp_path / "val", 4, sizes=((64, 64),))
    whole = {path: path.read_bytes() for path in val.glob("*.tar")}
    spoil(val, "val-002")
    run_dir = tmp_path / "run"
    words = settings(shards, run_dir, "train.steps=4", "train.val_every=2", "eval.limit=null", f"data.val={val}")
    with pytest.raises(SystemExit, match="val-002|sample 2"):
        main(words)
    assert [path.name for path in checkpoints(run_dir)] == ["step_00000002"]
    for path, data in whole.items():
        path.write_bytes(data)
    main(words)
    steps = [json.loads(line)["step"] for line in (run_dir / "validation.jsonl").read_text().splitlines()]
    assert steps == [2, 4]


@pytest.mark.slow
def test_a_validation_of_which_not_all_was_written_is_made_again(shards, tmp_path, monkeypatch):
    """Its picture had no room: the resumed run measures again, and the best is not forgotten."""
    words = settings(shards, tmp_path / "run", "train.steps=1", "train.val_every=1", "data.workers=0")

    def full(*_) -> None:
        raise ValueError("no room")

    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="no room"):
        patched.setattr("cssr.training.validation.save_picture", full)
        main(words)
    assert not has_step(tmp_path / "run" / "validation.jsonl", 1) and not (tmp_path / "run" / "export").exists()
    main(words)
    assert has_step(tmp_path / "run" / "validation.jsonl", 1)
    assert read_best(tmp_path / "run")["checkpoint"] == "step_00000001"


def test_a_scale_that_does_not_divide_the_default_crop(shards, tmp_path):
    """An export loads by what it needs alone: 224 is no multiple of 3."""
    main(settings(shards, tmp_path / "run", "train.steps=1", "model.scale=3", "model.sr=bicubic", "data.crop=30"))
    model = load_model(tmp_path / "run")
    assert model.scale == 3 and predict(model, np.zeros((8, 9, 3), np.uint8)).sr.shape == (24, 27, 3)


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_log_that_cannot_grow_is_named(name, shards, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to("/dev/full")
    with pytest.raises(SystemExit, match=f"{name} cannot be written: No space left on device .*make room"):
        main(settings(shards, tmp_path / "run", "train.steps=1"))


def test_damaged_logs_do_not_end_a_resume(shards, tmp_path):
    run_dir = tmp_path / "run"
    main(settings(shards, run_dir, "train.steps=2"))
    with open(run_dir / "metrics.jsonl", "ab") as file:
        file.write(b'\xff\xfe{"step": \n')
    (run_dir / "checkpoints" / "best.json").write_text("[]")
    with pytest.raises(SystemExit, match="best.json is damaged.*delete it"):
        main(settings(shards, run_dir, "train.steps=3"))
    (run_dir / "checkpoints" / "best.json").unlink()
    main(settings(shards, run_dir, "train.steps=3"))
    assert sorted(logged(run_dir)) == [1, 2, 3]
