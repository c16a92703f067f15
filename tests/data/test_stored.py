"""Sets that store their LQ images: streams, training and evaluation with them, and what is refused."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import kernel_of, write_pairs, write_stored
from helpers import coordinates

from cssr.config.loading import load_config
from cssr.config.schema import DataConfig
from cssr.data.batch import Batch
from cssr.data.checks import check_kernels, check_lq, is_stored, open_train_sets, stored_or
from cssr.data.dataset import read_sample
from cssr.data.loader import eval_stream, train_stream
from cssr.data.shards import ShardSet, open_sets
from cssr.degradations import DEGRADATIONS
from cssr.evaluate import main as evaluate_main
from cssr.models.joint import JointModel, build_model
from cssr.train import main as train_main
from cssr.training.trainer import Run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Eight samples with LQ images of half the size and kernels of 5 x 5."""
    return write_stored(tmp_path_factory.mktemp("stored") / "set")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("plain") / "plain", [6])


def settings(train, **changes) -> DataConfig:
    return DataConfig(**{"train": str(train), "crop": 12, "lanes": 4, "workers": 0, "vflip": 0.5, **changes})


def batches(data: DataConfig, count: int = 4, **options) -> list[Batch]:
    stream = train_stream(open_train_sets(data, options.get("scale")), data, 3, 0, 4, **options)
    return list(itertools.islice(stream, count))


def refused(message: str, call, *arguments, **options) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)


# ---- samples and streams ----


def test_a_sample_comes_with_what_is_stored(root):
    shards = ShardSet.open(root, "x")
    assert shards.lq and shards.scale == 2 and shards.kernel == 5
    sample = read_sample(shards, 0, 3)
    np.testing.assert_array_equal(sample.lq, coordinates(3, 20, 24)[::2, ::2])
    np.testing.assert_array_equal(sample.kernel, kernel_of(3))
    bare = read_sample(shards, 0, 3, with_lq=False)
    assert bare.lq is None and bare.kernel is None


def test_a_set_without_lq_images_says_so(plain):
    shards = ShardSet.open(plain, "x")
    assert not shards.lq and shards.scale is None and shards.kernel is None
    assert read_sample(shards, 0, 0).lq is None


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_hold_crops_of_both(root, workers):
    for batch in batches(settings(root, workers=workers), scale=2):
        assert batch.lq.shape == (4, 3, 6, 6) and batch.lq.dtype == torch.uint8
        assert batch.kernel.shape == (4, 1, 5, 5) and batch.kernel.dtype == torch.float32
        for hr, lq, kernel, key in zip(batch.hr, batch.lq, batch.kernel, batch.key):
            across, upright = hr[1, 0, 0] > hr[1, 0, -1], hr[0, 0, 0] > hr[0, -1, 0]
            assert torch.equal(lq, hr[:, int(upright) :: 2, int(across) :: 2])
            true = torch.from_numpy(kernel_of(int(key[-3:])))
            flipped = true.flip([k for k, turned in ((0, upright), (1, across)) if turned])
            assert torch.equal(kernel[0], flipped)


def test_on_the_device_all_of_it_is_float(root):
    (batch,) = batches(settings(root), 1, scale=2)
    moved = batch.to("cpu")
    assert moved.lq.dtype == moved.hr.dtype == torch.float32 and torch.equal(moved.lq, batch.lq.float() / 255)
    assert torch.equal(moved.kernel, batch.kernel) and torch.equal(
        batch.to("meta").kernel.shape and moved.seed, batch.seed
    )


def test_the_degradation_seeds_and_crops_are_those_without_lq(root):
    """Where a run ignores what is stored, it is the run that it was before there was any."""
    one, other = batches(settings(root), 2), batches(settings(root), 2, scale=None)
    assert all(torch.equal(a.hr, b.hr) and a.lq is None and b.kernel is None for a, b in zip(one, other))


def test_kernels_are_left_out_where_not_every_set_has_them(root, tmp_path):
    bare = write_stored(tmp_path / "bare", kernel=None)
    data = settings(root)
    data.train = {str(root): 1, str(bare): 1}
    for batch in batches(data, scale=2):
        assert batch.lq.shape == (4, 3, 6, 6) and batch.kernel is None


def test_evaluation_takes_what_is_stored(root):
    whole = list(eval_stream(open_sets(str(root), "data.val"), 2, 3, 0))
    assert [len(b) for b in whole] == [3, 3, 2] and all(b.lq.shape[1:] == (3, 10, 12) for b in whole)
    for batch in whole:
        assert torch.equal(batch.lq, batch.hr[..., ::2, ::2]) and batch.kernel.shape[1:] == (1, 5, 5)
    assert all(
        b.lq is None and b.kernel is None for b in eval_stream(open_sets(str(root), "data.val"), 2, 3, 0, stored=False)
    )
    assert all(
        b.lq is None for b in eval_stream(open_sets(str(root), "data.val"), 1, 3, 0)
    )  # at scale 1 the model reads HR


def test_hr_images_are_cut_to_their_lq_images(tmp_path):
    root = write_stored(tmp_path / "set", extra=1)
    (batch,) = eval_stream(open_sets(str(root), "data.val"), 2, 8, 0)
    assert batch.hr.shape[-2:] == (20, 24) and batch.lq.shape[-2:] == (10, 12)


def test_a_batch_holds_samples_of_one_kind(root, plain):
    kinds = [(len(b), b.lq is None) for b in eval_stream(open_sets([str(root), str(plain)], "data.val"), 2, 16, 0)]
    assert kinds == [(8, False), (6, True)]


# ---- what is refused before work starts ----


def test_stored_wants_stored_images_of_the_right_scale(root, plain):
    refused("data.train: .*plain stores no LQ images.*another degradation", open_train_sets, settings(plain), 2)
    refused("of .*set are 2 times smaller, model.scale=4: give sets", open_train_sets, settings(root), 4)
    refused("data.resized_crop changes HR images", open_train_sets, settings(root, resized_crop=[0.6, 1.0]), 2)
    refused("data.photometric changes HR images", open_train_sets, settings(root, photometric=True), 2)
    refused(
        "data.val: .* 2 times smaller, model.scale=4",
        lambda: list(eval_stream(open_sets(str(root), "data.val"), 4, 1, 0)),
    )
    assert len(open_train_sets(settings(plain))) == 1


def test_kernels_where_they_are_needed(root, plain, tmp_path):
    shards, bare = ShardSet.open(root, "x"), ShardSet.open(write_stored(tmp_path / "bare", kernel=None), "x")
    check_kernels([shards], 5, "x")
    check_kernels([shards], None, "x")
    refused("x: .*bare stores no blur kernels", check_kernels, [shards, bare], 5, "x")
    refused("have 5 pixels a side, 21 are needed: set model.sr.kernel_size=5", check_kernels, [shards], 21, "x")
    check_lq([], 2, "x")


def test_which_degradation_an_evaluation_uses(root, plain):
    stores, none = ShardSet.open(root, "x"), ShardSet.open(plain, "x")
    blur, stored = {"name": "gaussian"}, {"name": "stored"}
    assert is_stored("stored") and is_stored(stored) and not is_stored(blur) and not is_stored("downsample")
    assert stored_or(blur, [stores], 2, "x", given=False) == stored == stored_or("stored", [stores], 2, "x", given=True)
    assert stored_or(blur, [stores], 2, "x", given=True) == blur == stored_or(blur, [none], 2, "x", given=False)
    assert stored_or(blur, [stores], 1, "x", given=False) == blur
    refused("stores no LQ images", stored_or, blur, [stores, none], 2, "x", given=False)
    refused("stores no LQ images", stored_or, stored, [none], 2, "x", given=False)


def test_the_degradation_itself_degrades_nothing():
    degrade = DEGRADATIONS.build("stored", scale=4)
    assert degrade.resampler == "stored"
    refused("takes LQ images from shards that store them", degrade, torch.zeros(1, 3, 8, 8), torch.zeros(1))


# ---- runs ----

RUN = ["train.steps=2", "train.batch_size=2", "train.save_every=2", "train.val_every=2", "train.log_every=1",
       "data.workers=0", "data.crop=16", "data.lanes=4", "model.scale=2", "train.tensorboard=false",
       "model.sr={name: dbpn, stages: 2, width: 2, features: 4}", "eval.batch_size=4",
       "model.seg={name: unet, encoder: resnet10t, width: 4, encoder_args: {channels: [8, 8, 16, 16]}}"]  # fmt: skip


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    train_main([*RUN, f"data.train={root}", f"data.val={root}", f"train.run_dir={out}", "degradation=stored"])
    return out


def test_a_run_on_stored_images(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(np.isfinite(line["loss"]) for line in lines)
    assert json.loads((run / "validation.jsonl").read_text())["psnr"] > 0
    assert (run / "export" / "config.json").is_file()


def test_the_task_sees_what_is_stored(root, tmp_path):
    config = load_config(None, [*RUN, f"data.train={root}", f"train.run_dir={tmp_path}", "degradation=stored"])
    one = Run(config)
    batch = one.stepper.next(iter(batches(config.data, 1, scale=2)))
    assert torch.equal(batch.lq, batches(config.data, 1, scale=2)[0].lq.float() / 255)


def test_another_degradation_ignores_what_is_stored_in_training(root, tmp_path):
    config = load_config(None, [*RUN, f"data.train={root}", f"train.run_dir={tmp_path}", "degradation=downsample"])
    one = Run(config)
    batch = one.stepper.next(one._stream())
    expected = DEGRADATIONS.build("downsample", scale=2)(batch.hr, batch.seed)[0]
    assert one.setup.lq_scale is None and torch.equal(batch.lq, expected)


@pytest.mark.parametrize("changes, message", [
    (["data.photometric=true"], "error: data.photometric changes HR images"),
    (["data.train={plain}"], "error: data.train: .*plain stores no LQ images"),
    (["data.val={plain}"], "error: data.val: .*plain stores no LQ images"),
    (["model.scale=4"], "error: data.train: .* model.scale=4"),
    (["degradation=downsample", "data.train={plain}", "model.scale=4"], "error: data.val: .* model.scale=4"),
    (["model.sr={{name: kbpn, stages: 2, width: 2, features: 8}}", "loss.sr=blind"], "error: data.train: the kernels"),
])  # fmt: skip
def test_a_run_that_cannot_be_stops_before_it_writes(changes, message, root, plain, tmp_path):
    places = [f"data.train={root}", f"data.val={root}", f"train.run_dir={tmp_path / 'run'}", "degradation=stored"]
    with pytest.raises(SystemExit, match=message) as caught:
        train_main([*RUN, *places, *(change.format(plain=plain) for change in changes)])
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    torch.manual_seed(0)
    build_model(load_config(None, RUN).model).save_pretrained(path := tmp_path_factory.mktemp("model"))
    return path


def results(export: Path, data: Path, out: Path, *more: str) -> dict:
    evaluate_main([str(export), "--data", str(data), "--out", str(out), *more])
    return json.loads((out / "results.json").read_text())


def test_evaluation_measures_on_what_is_stored_unless_told_otherwise(root, export, tmp_path):
    found = results(export, root, tmp_path / "a")
    assert found["degradation"] == {"name": "stored"} and found["resampler"] == "stored"
    model = JointModel.from_pretrained(export)
    expected = []
    for batch in eval_stream(open_sets(str(root), "data.val"), 2, 1, 0):
        sr = model.infer(batch.lq.float() / 255).sr.clamp(0, 1)
        expected.append(-10 * np.log10(((sr - batch.hr.float() / 255) ** 2).mean().item()))
    assert found["metrics"]["image"]["psnr"] == pytest.approx(np.mean(expected), rel=1e-5)
    other = results(export, root, tmp_path / "b", "--degradation", "{name: downsample}")
    assert other["degradation"]["name"] == "downsample"
    assert other["metrics"]["image"]["psnr"] != pytest.approx(np.mean(expected), rel=1e-4)


def test_evaluation_of_a_run_on_stored_images_needs_some(run, root, plain, tmp_path):
    assert results(run, root, tmp_path / "a")["images"] == 8
    with pytest.raises(SystemExit, match="error: --data: .*plain stores no LQ images.*another degradation"):
        results(run, plain, tmp_path / "b")
    assert results(run, plain, tmp_path / "c", "--degradation", "downsample")["images"] == 6
