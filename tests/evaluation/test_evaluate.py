"""Evaluation as a whole: what results.json holds, and that neither batches, ranks nor tiles change it."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import draw_shards
from paths import ROOT
from PIL import Image
from scipy.ndimage import correlate
from shard_helpers import make_tree, run

from cssr.config.schema import ModelConfig
from cssr.data.batch import Batch, Outputs
from cssr.data.loader import eval_stream
from cssr.data.shards import open_sets
from cssr.degradations import DEGRADATIONS
from cssr.degradations.kernels import gaussian_kernel
from cssr.evaluate import main
from cssr.evaluation import metrics
from cssr.evaluation.evaluator import evaluate, measure
from cssr.evaluation.results import compose
from cssr.evaluation.run import pictured_rows
from cssr.evaluation.visualization import grey_to_levels, read_samples
from cssr.models.joint import build_model

MODEL = {"scale": 4, "sr": {"name": "bicubic"}, "seg": {"name": "unet", "encoder": "vgg11", "depth": 2, "width": 4}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Eleven drawn photographs of 48 pixels."""
    return draw_shards(tmp_path_factory.mktemp("shards") / "val", 11, 48)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("model") / "export"
    build_model(ModelConfig(**MODEL)).save_pretrained(out, degradation={"name": "gaussian"})
    return out


def found(shards, export, out, *more):
    main([str(export), "--data", str(shards), "--out", str(out), *more])
    return json.loads((out / "results.json").read_text())


def test_results_hold_what_users_rely_on(shards, export, tmp_path):
    results = found(shards, export, tmp_path, "--distances")
    wanted = {"iou_max", "iou_max_threshold", "aiu", "hd95_min", "ahd95", "msd_min", "amsd", "psnr", "ssim"}
    wanted |= {"kernel_psnr", "precision", "recall", "f1", "ods", "ois", "ap", "accuracy", "sensitivity", "specificity"}
    wanted |= {"cldice", "cliou", "boundary_f1", "lq_psnr", "width_error", "max_width_error", "length_error"}
    for aggregation in ("image", "pooled"):
        assert wanted <= results["metrics"][aggregation].keys()
    assert wanted <= results["definitions"].keys()
    assert "Gaussian" in results["resampler"] and "bicubic x1/4" in results["resampler"]
    assert len(results["per_image"]) == results["images"] == 11
    assert results["metrics"]["image"]["hd95_min"] > 0 and results["metrics"]["image"]["psnr"] > 10
    assert all(0 <= results["metrics"]["image"][name] <= 1 for name in ("cldice", "cliou", "boundary_f1"))
    assert all(results["metrics"]["image"][f"{name}_error"] > 0 for name in ("width", "max_width", "length"))
    low, high = results["intervals"]["image"]["psnr"]
    assert low < results["metrics"]["image"]["psnr"] < high
    parts = results["groups"]["blur"]
    assert sum(part["images"] for part in parts.values()) == 11 and len(parts) > 1
    assert set(parts) <= {f"{n}-{n + 1} px" for n in range(4)}
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"best.png", "median.png", "worst.png", "samples"}


def test_results_of_sets_of_one_name_and_of_checkpoints_are_kept_apart(shards, export, tmp_path):
    """`val` of two sets lie apart; the same set again takes the place of its own result."""
    model, others = shutil.copytree(export, tmp_path / "model"), draw_shards(tmp_path / "other" / "val", 3, 48)
    for data in (shards, others, others):
        main([str(model), "--data", str(data), "--limit", "2"])
    assert {path.name for path in (model / "evaluations").iterdir()} == {"val", "other_val"}
    assert json.loads((model / "evaluations/val/results.json").read_text())["data"] == str(shards)


def test_test_time_augmentation_has_a_result_of_its_own(shards, export, tmp_path):
    model = shutil.copytree(export, tmp_path / "model")
    main([str(model), "--data", str(shards)])
    main([str(model), "--data", str(shards), "--tta"])
    plain, averaged = (
        json.loads((model / "evaluations" / name / "results.json").read_text()) for name in ("val", "val+tta")
    )
    assert [result["tta"] for result in (plain, averaged)] == [False, True] and averaged["options"]["tta"]
    images = [result["metrics"]["image"] for result in (plain, averaged)]
    assert images[0]["psnr"] == images[1]["psnr"] and images[0]["aiu"] != images[1]["aiu"]


@pytest.mark.parametrize(
    "name, error, output",
    [
        ("write_atomic", OSError(28, "No space left on device"), SystemExit),
        ("write_samples", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_an_evaluation_that_ends_early_leaves_the_result_before_it(name, error, output, shards, export, tmp_path):
    """No disk space, Ctrl-C: pictures and result are those of before, and nothing else is there."""
    found(shards, export, tmp_path, "--limit", "2")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_):
        raise error

    with pytest.MonkeyPatch.context() as patched, pytest.raises(output) as end:
        patched.setattr(f"cssr.evaluation.run.{name}", fail)
        found(shards, export, tmp_path, "--limit", "3")
    assert output is KeyboardInterrupt or "cannot be written: No space left on device" in str(end.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_no_result_is_beside_the_pictures_of_another(shards, export, tmp_path, monkeypatch):
    found(shards, export, tmp_path, "--limit", "2")
    replace = os.replace

    def fail(source, target):
        if Path(target).parent == tmp_path / "pictures":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("cssr.evaluation.run.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        found(shards, export, tmp_path, "--limit", "3")
    assert not (tmp_path / "results.json").exists()


def test_samples_that_are_kept_give_the_very_numbers_of_their_rows(shards, export, tmp_path):
    results = found(shards, export, tmp_path)
    kinds, samples = read_samples(tmp_path / "pictures" / "samples")
    assert kinds == pictured_rows(results["per_image"]) and len(kinds["best"]) == 3
    rows = {row["key"]: row for row in results["per_image"]}
    level = round(100 * results["metrics"]["image"]["iou_max_threshold"])
    for key, sample in samples.items():
        prob, mask = (np.asarray(Image.open(io.BytesIO(sample.files[name]))) for name in ("prob", "mask"))
        crack = grey_to_levels(prob) >= level
        iou = ((crack & mask).sum() + 1e-5) / ((crack | mask).sum() + 1e-5)
        assert iou == pytest.approx(rows[key]["iou"], abs=1e-9) and np.sum(sample.about["kernel"]) == pytest.approx(1)


def test_measures_equal_a_plain_loop(shards, export, tmp_path):
    """IoU, PSNR and the confusion counts again, image by image and threshold by threshold, in numpy."""
    from cssr.models.joint import JointModel

    results = found(shards, export, tmp_path)
    model, degrade = JointModel.from_pretrained(export), DEGRADATIONS.build("gaussian", scale=4)
    table, psnrs = [], []
    for batch in eval_stream(open_sets(shards, "data.val"), 4, 1, 0):
        batch = batch.to("cpu")
        with torch.no_grad():
            outputs = model(degrade(batch.hr, batch.seed)[0])
        prob, mask = outputs.logits.sigmoid().numpy(), batch.mask.numpy() > 0.5
        row = [((prob > t) & mask).sum() + 1e-5 for t in metrics.THRESHOLDS.numpy()]
        table.append([r / (((prob > t) | mask).sum() + 1e-5) for r, t in zip(row, metrics.THRESHOLDS.numpy())])
        psnrs.append(-10 * np.log10(((outputs.sr - batch.hr) ** 2).mean().item()))
    mean = np.mean(table, axis=0)
    assert results["metrics"]["image"]["iou_max"] == pytest.approx(mean.max(), rel=1e-6)
    assert results["metrics"]["image"]["aiu"] == pytest.approx(mean.mean(), rel=1e-6)
    assert results["metrics"]["image"]["psnr"] == pytest.approx(np.mean(psnrs), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_do_not_change_the_rows(batch_size, shards, export):
    from cssr.models.joint import JointModel

    model, degrade = JointModel.from_pretrained(export), DEGRADATIONS.build("gaussian", scale=4)
    device = torch.device("cpu")
    whole, parts = (
        evaluate(model, eval_stream(open_sets(shards, "data.val"), 4, n, 0), degrade, device) for n in (11, batch_size)
    )
    assert [row["key"] for row in whole] == [row["key"] for row in parts]
    for a, b in zip(whole, parts):
        assert a["psnr"] == pytest.approx(b["psnr"], rel=1e-4)
        assert np.abs(np.subtract(a["tp"], b["tp"])).max() <= 2  # a pixel may lie within rounding of a threshold


def batch_of(kernel: torch.Tensor, hr: torch.Tensor, scale: int) -> Batch:
    size = hr.shape[-1] // scale
    return Batch(hr, torch.zeros_like(hr[:, :1]), key=["a", "b"], lq=torch.zeros(2, 3, size, size), kernel=kernel)


def test_a_predicted_kernel_is_measured_by_what_it_makes_of_the_hr_image():
    """Again with scipy's correlation, image by image and channel by channel."""
    hr = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([[1.0, 1.5, 30.0], [2.0, 2.0, 0.0]]), torch.tensor([[1.2, 1.5, 30.0], [1.0, 1.0, 0.0]])
    true, predicted = (gaussian_kernel(s, 15).float() for s in sigmas)
    outputs = Outputs(hr, torch.zeros(2, 1, 24, 24), predicted)
    rows = measure(batch_of(true, hr, 4), outputs, distances=False)
    for i, row in enumerate(rows):
        lq = [
            [correlate(channel, kernel, mode="nearest")[::4, ::4] for channel in hr[i].double().numpy()]
            for kernel in (true[i, 0].double().numpy(), predicted[i, 0].double().numpy())
        ]
        expected = -10 * np.log10(np.mean(np.square(np.subtract(*lq))))
        assert row["lq_psnr"] == pytest.approx(expected, abs=1e-3) and row["kernel_psnr"] > 20
    assert rows[0]["lq_psnr"] > rows[1]["lq_psnr"]
    assert [row["blur_sigma"] for row in rows] == pytest.approx([np.sqrt((1 + 1.5**2) / 2), 2.0], rel=0.01)


def test_a_kernel_that_is_right_or_cannot_be_compared():
    hr = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    true = gaussian_kernel(torch.tensor([[1.0, 1.5, 30.0]] * 2), 15).float()
    right = measure(batch_of(true, hr, 4), Outputs(hr, torch.zeros(2, 1, 24, 24), true), distances=False)
    assert [row["lq_psnr"] for row in right] == [float("inf")] * 2
    for kernel in (None, true[..., 1:-1, 1:-1]):
        rows = measure(batch_of(true, hr, 4), Outputs(hr, torch.zeros(2, 1, 24, 24), kernel), distances=False)
        assert [(row["lq_psnr"], row["kernel_psnr"]) for row in rows] == [(None, None)] * 2
    rows = measure(batch_of(None, hr, 4), Outputs(hr, torch.zeros(2, 1, 24, 24), true), distances=False)
    assert [(row["lq_psnr"], row["blur_sigma"]) for row in rows] == [(None, None)] * 2


def test_the_hr_bound_has_no_psnr(shards, tmp_path):
    """SR equals HR: an infinite PSNR is null, in the file and in the means."""
    build_model(ModelConfig(**{**MODEL, "scale": 1, "sr": {"name": "none"}})).save_pretrained(tmp_path / "hr")
    results = found(shards, tmp_path / "hr", tmp_path / "out")
    image = results["metrics"]["image"]
    assert image["psnr"] is None and image["psnr_infinite"] == 11 and image["ssim"] == pytest.approx(1)
    assert all(row["psnr"] is None for row in results["per_image"])


def test_pictures_show_the_ranking():
    rows = [{"key": f"k{i}", "iou": i / 10, "tp": [5], "fn": [5]} for i in range(8)]
    rows.append({"key": "empty", "iou": 1.0, "tp": [0], "fn": [0]})
    assert pictured_rows(rows)["best"] == ["k7", "k6", "k5"] and pictured_rows(rows)["worst"] == ["k0", "k1", "k2"]


def test_infinite_values_are_null():
    row = {"key": "a", "tp": [1] * 99, "fp": [0] * 99, "fn": [0] * 99, "pixels": 4, "psnr": float("inf"), "mse": 0.0,
           "ssim": 1.0, "kernel_psnr": None}  # fmt: skip
    text = json.dumps(compose([row], {"name": "x"}), allow_nan=False)
    assert json.loads(text)["per_image"][0]["psnr"] is None


@pytest.mark.parametrize("arguments, message", [
    (["nowhere", "--data", "nowhere"], "no run or export at nowhere"),
    (["EXPORT", "--data", "nowhere"], "--data: no shards in nowhere"),
    (["EXPORT", "--data", "SHARDS", "--degradation", "{name: gausian}"], "did you mean gaussian"),
    (["EXPORT", "--data", "SHARDS", "--batch-size", "0"], "--batch-size must be at least 1"),
    (["EXPORT", "--data", "SHARDS", "--limit", "0"], "--limit must be at least 1"),
    (["EXPORT", "--data", "SHARDS", "--workers", "-1"], "--workers must be at least 0"),
    (["EXPORT", "--data", "SHARDS", "--seed", "-1"], "--seed must be at least 0"),
    (["EXPORT", "--data", "SHARDS", "--seed", "4294967296"], "--seed must be at most 4294967295"),
    (["EXPORT", "--data", "SHARDS", "--degradation", "{"], "--degradation: the value is not valid YAML"),
    (["EXPORT", "--data", "SHARDS", "--degradation", "3"], "a degradation is a name"),
    (["EXPORT", "--data", "SHARDS", "--checkpoint", "best"], "no checkpoint 'best'"),
    (["EXPORT", "--data", "SHARDS", "--tile", "16"], "--tile must be 0 or exceed"),
    (["EXPORT", "--data", "SHARDS", "--out", "SHARDS/index.json"], "cannot be written: File exists; choose another"),
    (["EXPORT", "--data", "SHARDS", "--out", "SHARDS/index.json/x"], "cannot be written: Not a directory"),
])  # fmt: skip
def test_mistakes_are_one_line(arguments, message, shards, export):
    places = {"EXPORT": str(export), "SHARDS": str(shards)}
    with pytest.raises(SystemExit) as caught:
        main([re.sub("^(EXPORT|SHARDS)", lambda m: places[m[0]], argument) for argument in arguments])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(shards, export, tmp_path):
    for processes, name in ((1, "cpu"), (2, "cpu_2proc")):
        launch = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--quiet",
            "--config_file",
            ROOT / f"launch/{name}.yaml",
        ]
        port = ["--main_process_port", "0"] if processes > 1 else []
        command = [*launch, *port, ROOT / "cssr/evaluate.py", export, "--data", shards, "--batch-size", "1"]
        subprocess.run(
            [*map(str, command), "--out", str(tmp_path / name)], check=True, capture_output=True, timeout=200
        )
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("cpu", "cpu_2proc"))
    assert one["metrics"] == two["metrics"] and one["per_image"] == two["per_image"]


def test_images_smaller_than_an_lq_pixel_are_refused_before_any_is_evaluated(export, tmp_path):
    make_tree(tmp_path / "tree", 2, size=(3, 3))
    run("folder", "--root", tmp_path / "tree", "--out", tmp_path / "tiny")
    with pytest.raises(SystemExit, match="an image of 3 pixels a side, less than one LQ pixel at model.scale=4"):
        found(tmp_path / "tiny", export, tmp_path / "out")
