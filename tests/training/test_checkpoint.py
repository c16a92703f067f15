"""Checkpoints: a run that is taken up again is the run that was not interrupted; whole or not there; exports."""

import dataclasses
import json
import os

import pytest
import torch
from helpers import SMALL_MODEL
from timm.utils import ModelEmaV3

from cssr.config.loading import load_config
from cssr.config.schema import Config, ModelConfig
from cssr.models.export import load_weights
from cssr.models.joint import build_model
from cssr.models.load import checkpoints, choose, degradation_of, load_model, read_best, read_state, run_config
from cssr.training import checkpoint as store
from cssr.training.checkpoint import restore, take_snapshot, write
from cssr.training.log import append_line, truncate_lines
from cssr.training.optim import build_optimizer
from cssr.utils.files import write_atomic

LQ = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Training:
    """Model, optimizer and average, and steps on them whose data depend on the step alone."""

    def __init__(self, optimizer: str = "adam", ema: bool = False, seed: int = 0, **model):
        self.config: Config = load_config(
            None, [f"optim.optimizer={optimizer}", "optim.lr=1e-3", "optim.weight_decay=0.01"]
        )
        self.config.model = ModelConfig(**{**SMALL_MODEL, **model})
        torch.manual_seed(seed)
        self.model = build_model(self.config.model)
        self.optimizer = build_optimizer(self.model, self.config)
        self.ema = ModelEmaV3(self.model, decay=0.9, use_warmup=True) if ema else None
        self.step = 0

    @property
    def average(self):
        return self.ema.module if self.ema else None

    def run(self, count: int) -> "Training":
        for _ in range(count):
            lq = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(self.step))
            outputs = self.model(lq)
            (outputs.logits.square().mean() + outputs.sr.square().mean()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            if self.ema:
                self.ema.update(self.model, step=self.step)
        return self

    def save(self, run_dir):
        return write(
            run_dir, take_snapshot(self.step, 2 * self.step, self.config, self.model, self.optimizer, self.average)
        )

    def load(self, path) -> dict:
        state = restore(path, self.config, self.model, self.optimizer, self.average)
        self.step = state["step"]
        return state

    def tensors(self) -> dict[str, torch.Tensor]:
        found = dict(self.model.state_dict())
        return found | ({f"ema.{k}": v for k, v in self.ema.module.state_dict().items()} if self.ema else {})


@pytest.fixture(scope="module")
def trained():
    """Two steps of Adam with an average; tests only read it."""
    return Training(ema=True).run(2)


@pytest.fixture
def run_dir(trained, tmp_path):
    """A run directory with that checkpoint."""
    trained.save(tmp_path)
    return tmp_path


def one_line(caught) -> str:
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# ---- going on ----


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "momentum", "rmsprop", "lion", "nadamw", "lamb", "adan"])
def test_going_on_equals_not_having_stopped(tmp_path, optimizer, ema):
    """To the bit: 2 steps, saved, loaded into fresh objects with other weights, 3 more, against 5 straight."""
    path = Training(optimizer, ema).run(2).save(tmp_path)
    again = Training(optimizer, ema, seed=1)
    assert again.load(path)["samples"] == 4
    straight, resumed = Training(optimizer, ema).run(5).tensors(), again.run(3).tensors()
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []


@pytest.mark.parametrize("arguments", ["{momentum: 0, nesterov: false}", "{momentum: 0.5}"])
def test_sgd_with_and_without_momentum_continues(tmp_path, arguments):
    def training():
        one = Training("sgd")
        one.config.optim.arguments = load_config(None, [f"optim.arguments={arguments}"]).optim.arguments
        one.optimizer = build_optimizer(one.model, one.config)
        return one

    path, again = training().run(2).save(tmp_path), training()
    again.load(path)
    straight, resumed = training().run(4).tensors(), again.run(2).tensors()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_checkpoint_before_the_first_step(tmp_path):
    path, again = Training().save(tmp_path), Training(seed=1)
    again.load(path)
    straight, resumed = Training().run(1).tensors(), again.run(1).tensors()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_checkpoint_is_by_name_and_says_where_it_stands(run_dir, trained):
    (path,) = checkpoints(run_dir)
    assert path.name == "step_00000002"
    assert sorted(p.name for p in path.iterdir()) == [
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    state = read_state(path)
    assert (state["step"], state["samples"]) == (2, 4) and set(state["versions"]) >= {"cssr", "torch"}
    assert run_config(path) == trained.config


def test_the_order_of_the_parameters_does_not_matter(run_dir, trained):
    """Moments are found by the parameter's name, whatever its number in the optimizer."""
    other = Training()
    other.optimizer.param_groups.reverse()
    restore(checkpoints(run_dir)[0], other.config, other.model, other.optimizer)
    for (name, mine), theirs in zip(trained.model.named_parameters(), other.model.parameters()):
        expected, found = trained.optimizer.state[mine], other.optimizer.state[theirs]
        assert torch.equal(expected["exp_avg"], found["exp_avg"]), name


# ---- whole or not there ----


@pytest.mark.parametrize("at", ["save_file", "sync", "rename"])
def test_an_interrupted_write_leaves_no_checkpoint(tmp_path, trained, monkeypatch, at):
    def full(*args, **kwargs):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os if at == "rename" else store, at, full)
        with pytest.raises(ValueError, match="no space left .*GiB are free there.*the same command again"):
            trained.save(tmp_path)
    assert checkpoints(tmp_path) == []
    with pytest.raises(ValueError, match="none"):
        choose(tmp_path, "last")
    assert read_state(trained.save(tmp_path))["step"] == 2  # what is left does not stand in the way


def test_what_is_there_already_stays(run_dir, trained):
    (path,) = checkpoints(run_dir)
    before = (path / "state.json").stat().st_mtime_ns
    assert trained.save(run_dir) == path and (path / "state.json").stat().st_mtime_ns == before


def test_leftovers_are_no_checkpoints_and_go_with_the_next_start(run_dir):
    folder = run_dir / "checkpoints"
    (folder / "step_00000009.partial").mkdir()
    (folder / "step_00000009.partial" / "model.safetensors").write_text("half")
    (folder / "best.json.partial-123").write_text("{")
    (folder / "step_9.old").mkdir()
    assert [path.name for path in checkpoints(run_dir)] == ["step_00000002"]
    assert store.newest_intact(run_dir).name == "step_00000002"
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000002", "step_9.old"]


@pytest.mark.parametrize("file", ["state.json", "model.safetensors", "optimizer.safetensors", "ema.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_checkpoint_is_named_in_one_line(run_dir, file, damage):
    (path,) = checkpoints(run_dir)
    if damage == "gone":
        (path / file).unlink()
    else:
        (path / file).write_bytes((path / file).read_bytes()[:60])
    with pytest.raises(ValueError) as caught:
        Training(ema=True).load(path)
    assert str(path) in one_line(caught)


@pytest.mark.parametrize("text", ["{}", "[]", "null"])
def test_a_state_without_what_it_should_hold_is_damaged(run_dir, text):
    (path,) = checkpoints(run_dir)
    (path / "state.json").write_text(text)
    with pytest.raises(ValueError, match="damaged"):
        Training(ema=True).load(path)


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("gone")))
        with pytest.raises(OSError, match="gone"):
            write_atomic(path, "new")
    assert path.read_text() == "old"
    write_atomic(path, "new")
    assert path.read_text() == "new"


# ---- what does not fit ----


def test_another_architecture_is_named_by_its_keys_and_nothing_is_loaded(run_dir):
    other = Training(sr={**SMALL_MODEL["sr"], "stages": 3})
    before = {name: value.clone() for name, value in other.tensors().items()}
    with pytest.raises(ValueError, match=r"another architecture.*missing \(sr\.") as caught:
        other.load(checkpoints(run_dir)[0])
    one_line(caught)
    assert all(torch.equal(before[name], value) for name, value in other.tensors().items())


def test_an_average_that_is_wanted_but_not_there(tmp_path):
    path = Training().run(1).save(tmp_path)
    with pytest.raises(ValueError, match="optim.ema is set, but.*no average"):
        Training(ema=True).load(path)


def test_an_average_that_is_not_wanted_is_left(run_dir):
    assert Training().load(checkpoints(run_dir)[0])["step"] == 2


@pytest.mark.parametrize("before, after", [("sgd", "adam"), ("lion", "adam")])
def test_another_optimizer_is_refused_or_begins_afresh(tmp_path, before, after):
    """Its moments are no use: an error of one line, or none at all; never a crash in the first step."""
    path, other = Training(before).run(1).save(tmp_path), Training(after)
    try:
        other.load(path)
    except ValueError as error:
        assert "optimizer" in str(error) and "\n" not in str(error)
    else:
        other.run(1)


# ---- keeping and choosing ----


def many(run_dir, *numbers: int, best: int | None = None) -> None:
    for number in numbers:
        (run_dir / "checkpoints" / f"step_{number:08d}").mkdir(parents=True)
    if best is not None:
        store.write_best(run_dir, best, "iou_max", 0.5)


def numbers(run_dir) -> list[int]:
    return [int(path.name[5:]) for path in checkpoints(run_dir)]


@pytest.mark.parametrize(
    "keep, best, left",
    [
        (1, None, [1000]),
        (2, None, [90, 1000]),
        (2, 20, [20, 90, 1000]),
        (2, 1000, [90, 1000]),
        (9, 20, [5, 20, 90, 1000]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path, keep, best, left):
    many(tmp_path, 90, 5, 1000, 20, best=best)
    store.rotate(tmp_path, keep)
    assert numbers(tmp_path) == left


@pytest.mark.parametrize("which, number", [("last", 30), ("best", 20), ("10", 10), ("0010", 10)])
def test_choosing(tmp_path, which, number):
    many(tmp_path, 10, 20, 30, best=20)
    assert choose(tmp_path, which).name == f"step_{number:08d}"


@pytest.mark.parametrize("which", ["11", "newest", "-1", "", "best"])
def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(tmp_path, which):
    many(tmp_path, 10, 20)
    with pytest.raises(ValueError, match="there are: step_00000010, step_00000020") as caught:
        choose(tmp_path, which)
    one_line(caught)


def test_a_best_that_has_gone_is_answered_with_those_that_are(tmp_path):
    many(tmp_path, 10, 20, best=5)
    with pytest.raises(ValueError, match="there are: step_00000010, step_00000020"):
        choose(tmp_path, "best")


@pytest.mark.parametrize("which", ["last", "best", "3"])
def test_an_empty_run_has_no_checkpoint(tmp_path, which):
    with pytest.raises(ValueError, match="there are: none"):
        choose(tmp_path, which)


def test_the_best_is_reported_as_it_was_written(tmp_path):
    assert read_best(tmp_path) is None
    many(tmp_path, 7, best=7)
    assert read_best(tmp_path) == {"checkpoint": "step_00000007", "measure": "iou_max", "value": 0.5}


# ---- exports ----


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(LQ).logits


@pytest.mark.parametrize("averaged", [False, True])
def test_an_export_gives_the_model_back(run_dir, trained, averaged):
    config = load_config(None, [f"train.export_ema={averaged}", "degradation=gaussian"])
    config.model = trained.config.model
    store.export(run_dir, config, choose(run_dir, "last"), "by hand")
    expected = build_model(config.model)
    load_weights(expected, checkpoints(run_dir)[0] / f"{'ema' if averaged else 'model'}.safetensors")
    for path in (run_dir, run_dir / "export"):
        assert torch.equal(logits(load_model(path)), logits(expected))
        assert degradation_of(path) == {"name": "gaussian"}
    facts = json.loads((run_dir / "export" / "config.json").read_text())
    assert (facts["averaged_weights"], facts["step"], facts["samples"]) == (averaged, 2, 4)
    assert facts["resampler"] == "by hand"


def test_averaged_and_last_weights_differ(run_dir, trained):
    """Else the test above would prove nothing."""
    assert not torch.equal(logits(trained.model), logits(trained.ema.module))
    trained.model.train()


def test_a_checkpoint_gives_the_weights_that_it_would_export(run_dir, trained):
    found = load_model(run_dir, "last")
    assert not found.training and torch.equal(logits(found), logits(trained.ema.module))
    assert degradation_of(run_dir, "2") == {"name": "downsample"}


@pytest.mark.parametrize("calibrate, expected", [(True, 1.7), (False, 1.25)])
def test_an_export_has_the_temperature_of_the_validation_of_its_step(run_dir, trained, calibrate, expected):
    config = load_config(None, [f"train.calibrate={calibrate}", "model.temperature=1.25"])
    config.model = dataclasses.replace(trained.config.model, temperature=1.25)
    lines = [{"step": 1, "temperature": 3.0}, {"step": 2, "temperature": 1.7}, {"step": 12, "temperature": 4.0}]
    (run_dir / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2, "temp')
    store.export(run_dir, config, choose(run_dir, "last"), "by hand")
    assert load_model(run_dir).config.temperature == expected


def test_a_checkpoint_has_it_too(run_dir, trained):
    assert load_model(run_dir, "last").config.temperature == 1
    (run_dir / "validation.jsonl").write_text(json.dumps({"step": 2, "temperature": 2.0}))
    assert load_model(run_dir, "last").config.temperature == 2


def test_a_second_export_replaces_the_first(run_dir, trained):
    for resampler in ("one", "two"):
        store.export(run_dir, trained.config, choose(run_dir, "last"), resampler)
    assert json.loads((run_dir / "export" / "config.json").read_text())["resampler"] == "two"
    assert [path.name for path in run_dir.glob("export*")] == ["export"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "no run or export at"),
        (lambda path: path.mkdir(), "no export in"),
        (lambda path: (path.mkdir(), (path / "config.yaml").touch()), "no export yet.*--checkpoint last or best"),
    ],
)
def test_what_is_no_export_is_answered_in_one_line(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(ValueError, match=message) as caught:
        load_model(tmp_path / "run")
    one_line(caught)


# ---- logs of a run that is taken up again ----


def test_lines_after_the_step_and_half_a_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 10, 20, 30):
        append_line(path, {"step": step, "loss": 0.5})
    path.write_bytes(path.read_bytes() + b'{"step": 2, "lo')
    truncate_lines(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 10, 20]
    append_line(path, {"step": 21})
    assert path.read_text().endswith('0.5}\n{"step": 21}\n')
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("line", [b"", b"[1]", b'"step"', b'{"loss": 1}', b'{"step": null}'])
def test_lines_that_are_none_of_ours_are_dropped(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n")
    truncate_lines(path, 5)
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_run_without_a_log_has_none_to_cut(tmp_path):
    truncate_lines(tmp_path / "metrics.jsonl", 5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["state.json", "model.safetensors", "optimizer.safetensors", "ema.safetensors"])
def test_a_flipped_bit_in_the_newest_is_found_and_the_one_before_taken(run_dir, file, capsys):
    (before,) = checkpoints(run_dir)
    newest = Training(ema=True).run(3).save(run_dir)
    data = bytearray((newest / file).read_bytes())
    data[len(data) // 2] ^= 1
    (newest / file).write_bytes(data)
    assert store.newest_intact(run_dir) == before and store.newest_intact(run_dir) == before
    output = capsys.readouterr().err
    assert output.count("warning: ") == 1 and f"is damaged ({file})" in output
    assert (run_dir / "checkpoints" / f"{newest.name}.damaged").is_dir()
