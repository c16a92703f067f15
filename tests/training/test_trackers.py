"""Trackers that accelerate knows: MLflow's local store holds what metrics.jsonl does, in one run."""

import errno
import threading

import pytest
from helpers import draw_shards
from running import logged, settings

from cssr.train import main


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return draw_shards(tmp_path_factory.mktemp("shards") / "set", 24, 64)


@pytest.mark.slow
def test_mlflow_holds_one_run_however_often_it_was_stopped(shards, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for steps in (4, 8):
        main(settings(shards, tmp_path / "run", f"train.steps={steps}", "train.trackers=[mlflow]"))
    client = mlflow.MlflowClient()
    (experiment,) = [one for one in client.search_experiments() if one.name == "cssr"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    seen = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert seen == {step: pytest.approx(line["loss"]) for step, line in logged(tmp_path / "run").items()}
    assert len(seen) == 8 and "val/iou_max" in run.data.metrics


def test_a_tracker_without_disk_space_is_one_line(shards, tmp_path, monkeypatch, capsys):
    """TensorBoard's writer fails in a thread of its own, and again where the next value is logged."""
    record_writer = pytest.importorskip("tensorboard.summary.writer.record_writer", reason="needs tensorboard")

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(record_writer.RecordWriter, "write", full)
    words = settings(shards, tmp_path / "run", "train.steps=40", "train.tensorboard=true", "data.workers=0")
    with pytest.raises(SystemExit, match="run cannot be written: No space left on device .*make room"):
        main([*words, "train.val_every=0", "train.save_every=40"])
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, message",
    [
        ("mlfow", "unknown tracker 'mlfow' .did you mean mlflow"),
        ("aim", "tracker aim is not installed: pip install aim"),
    ],
)
def test_trackers_that_cannot_be_are_one_line(name, message, shards, tmp_path, monkeypatch):
    monkeypatch.setattr("cssr.training.log.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=message):
        main(settings(shards, tmp_path / "run", f"train.trackers=[{name}]"))
    assert not (tmp_path / "run").exists()
