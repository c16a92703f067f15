"""SR alone, on images without masks: shards, streams, a whole run, its evaluation, and the joint run that follows."""

import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import coordinates, draw_shards, png, write_set
from PIL import Image
from safetensors.torch import load_file

from cssr.config.loading import load_config
from cssr.config.schema import ModelConfig, segments
from cssr.data.checks import open_train_sets
from cssr.data.loader import eval_stream, train_stream
from cssr.data.shards import DataError, ShardSet, open_sets
from cssr.dataset_preparation import make as make_shards
from cssr.dataset_preparation.extract import extract
from cssr.degradations import DEGRADATIONS
from cssr.evaluate import main as evaluate_main
from cssr.evaluation.aggregate import aggregate
from cssr.evaluation.definitions import IMAGE_KEYS, KEYS, SEGMENTATION_KEYS, UNRANKED_KEYS
from cssr.evaluation.evaluator import evaluate, measures_segmentation
from cssr.evaluation.results import compose
from cssr.evaluation.run import pictured_rows
from cssr.inference.predictor import predict
from cssr.models.joint import JointModel, build_model
from cssr.predict import main as predict_main
from cssr.report import report
from cssr.train import main as train_main
from cssr.training.checks import check_best, check_training
from cssr.training.trainer import Run

KBPN = "{name: kbpn, stages: 2, width: 4, features: 3, kernel_size: 7, predicted_size: 3}"
BLUR = "{name: gaussian, sigma: [0.2, 1.5], size: 7}"
UNET = {"name": "unet", "encoder": "vgg11", "depth": 2, "width": 4}
SR_ALONE = [
    f"model.sr={KBPN}", f"degradation={BLUR}", "loss.sr=blind", "model.seg=none", "loss.beta=0", "train.best=psnr",
    "data.crop=32", "data.workers=0", "train.batch_size=2", "train.steps=2", "train.val_every=2", "train.save_every=2",
    "train.tensorboard=false", "eval.limit=3",
]  # fmt: skip
JOINT = ["model.seg={name: unet, encoder: vgg11, depth: 2, width: 4}", "loss.beta=0.3", "train.best=iou_max"]


def draw(folder: Path, count: int = 6, size: int = 48) -> Path:
    """A folder of pictures `p0.png`, ... whose pixels say where they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"p{number}.png").write_bytes(png(coordinates(number, size, size)))
    return folder


def shard(*words) -> int:
    return make_shards.main([str(word) for word in words])


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """Shards of six pictures without masks."""
    root = tmp_path_factory.mktemp("bare")
    draw(root / "photographs")
    assert shard("folder", "--root", root / "photographs", "--images-only", "--out", root / "shards") == 0
    return root / "shards"


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> Path:
    """Six drawn photographs of 48 pixels with their masks."""
    return draw_shards(tmp_path_factory.mktemp("masked") / "shards", 6, 48)


@pytest.fixture(scope="module")
def run(bare, tmp_path_factory) -> Path:
    """Two steps of SR alone on images without masks."""
    run_dir = tmp_path_factory.mktemp("run") / "sr"
    train_main([*SR_ALONE, f"data.train={bare}", f"data.val={bare}", f"train.run_dir={run_dir}"])
    return run_dir


@pytest.fixture(scope="module")
def joint(tmp_path_factory) -> Path:
    """The export of a model that finds cracks."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("joint") / "export"
    build_model(ModelConfig(sr={"name": "bicubic"}, seg=UNET)).save_pretrained(out)
    return out


# ---- shards ----


def test_the_index_and_the_command_say_that_there_are_no_masks(tmp_path, capsys):
    draw(tmp_path / "in" / "images")
    assert shard("folder", "--root", tmp_path / "in", "--images-only", "--out", tmp_path / "out") == 0
    output = capsys.readouterr().out
    assert "masks: none" in output and "no masks: for super-resolution alone" in output
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert (index["masks"], index["mask_rule"], index["crack_share"], index["empty_masks"]) == (False, None, None, None)
    assert index["options"]["images_only"] is True and index["samples"] == 6
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        assert {member.name.partition(".")[2] for member in tar} == {"png", "json"}


@pytest.mark.parametrize("layout, words", [
    ("in", ()), ("in/sub", ()), ("in/images", ()), ("in/train/images", ("--split", "train")),
    ("in/train", ("--split", "train")),
])  # fmt: skip
def test_images_may_be_in_the_root_or_in_a_folder_of_theirs(layout, words, tmp_path):
    draw(tmp_path / layout)
    assert shard("folder", "--root", tmp_path / "in", *words, "--images-only", "--out", tmp_path / "out") == 0
    assert len(ShardSet.open(tmp_path / "out", "x")) == 6


def test_masks_are_left_out_and_never_taken_for_images(tmp_path, capsys):
    draw(tmp_path / "in" / "images")
    draw(tmp_path / "in" / "masks", 3)
    assert shard("folder", "--root", tmp_path / "in", "--images-only", "--out", tmp_path / "out") == 0
    assert len(ShardSet.open(tmp_path / "out", "x")) == 6
    draw(tmp_path / "other" / "masks")
    draw(tmp_path / "other")
    assert shard("folder", "--root", tmp_path / "other", "--images-only", "--out", tmp_path / "no") == 2
    assert "there is no folder" in capsys.readouterr().err and not (tmp_path / "no").exists()


@pytest.mark.parametrize("layout, words, message", [
    ("in/images", (), "masks; create it, point --root at the folder above it, or take the images alone"),
    ("in/images", (), "--images-only"),
    ("in/train/images", ("--images-only",), "choose with --split from: train"),
    ("in", ("--images-only", "--threshold", 3), "--threshold 3 is about masks"),
    ("in", ("--images-only", "--split", "tran"), "unknown split 'tran'"),
    ("elsewhere", ("--images-only",), "in is not a folder"),
])  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(layout, words, message, tmp_path, capsys):
    draw(tmp_path / layout)
    assert shard("folder", "--root", tmp_path / "in", *words, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_sets_with_masks_say_so_and_older_ones_are_taken_to_have_them(tmp_path):
    path = write_set(tmp_path / "set") / "index.json"
    index = json.loads(path.read_text())
    assert index.pop("masks") is True and ShardSet.open(tmp_path / "set", "x").masks
    path.write_text(json.dumps(index))
    assert ShardSet.open(tmp_path / "set", "x").masks
    path.write_text(json.dumps({**index, "masks": "no"}))
    with pytest.raises(DataError, match="x: .* is damaged"):
        ShardSet.open(tmp_path / "set", "x")


def test_photographs_come_out_of_such_shards(bare, tmp_path):
    assert len(extract(ShardSet.open(bare, "x"), tmp_path, 2, 1)) == 2


# ---- streams ----


def test_masks_and_distances_are_zero_and_images_as_they_are(bare):
    data = load_config(None, [f"data.train={bare}", "data.crop=32", "data.workers=0"]).data
    batch = next(train_stream(open_train_sets(data), data, 0, 0, 4))
    assert batch.hr.shape == (4, 3, 32, 32) and batch.mask.shape == batch.distance.shape == (4, 1, 32, 32)
    assert not batch.mask.any() and not batch.distance.any()
    (whole,) = eval_stream(open_sets(bare, "data.val"), 4, 6, 0)
    assert whole.mask.shape == (6, 1, 48, 48) and not whole.mask.any()
    assert all((image.permute(1, 2, 0).numpy() == coordinates(n, 48, 48)).all() for n, image in enumerate(whole.hr))


def test_sets_of_both_kinds_train_sr_together(bare, tmp_path):
    other = write_set(tmp_path / "set", sizes=((48, 48),))
    data = load_config(None, ["data.crop=32", "data.workers=0"]).data
    data.train = {str(bare): 1, str(other): 1}
    batch = next(train_stream(open_train_sets(data), data, 0, 0, 16))
    has = {key.startswith("set"): bool(mask.any()) for key, mask in zip(batch.key, batch.mask)}
    assert has == {True: True, False: False}


# ---- what is refused before work starts ----


@pytest.mark.parametrize("settings, message", [
    (["loss.beta=0.3", "model.seg=unet"], r"data.train: \S+shards has no masks, which loss.beta=0.3 needs: set loss"),
    (["phases=[{name: a, until: 4}, {name: b, beta: 0.1}]", "model.seg=unet"], "which b.beta=0.1 needs"),
    (["loss.beta={name: linear, begin: 1, until: 6}", "model.seg=unet"], "which loss.beta=.*linear.* needs"),
    (["loss.sr_times_seg=4", "model.seg=unet"], "which loss.sr_times_seg=4 needs"),
    (["loss.extra=[{loss: dice, weight: 1}]", "model.seg=unet"], "which loss.extra=dice needs"),
    (["loss.extra=[{loss: {name: at_lq}, weight: 1}]", "model.seg=unet"], "which loss.extra=at_lq needs"),
    (["loss.sr={name: l1, pixel_weight: {crack: 2}}"], "which loss.sr.pixel_weight needs"),
    (["phases=[{name: a, sr: {name: l2, pixel_weight: {failure: 1}}}]"], "which a.sr.pixel_weight needs"),
    (["loss.beta=0.3"], "model.seg=none has nothing to train, but loss.beta=0.3: set loss.beta=0 in every phase"),
    (["loss.beta={name: linear, begin: 1, until: 6}"], "model.seg=none has nothing to train, but loss.beta="),
    (["model.form=seg_then_sr", "model.sr=dbpn"], "model.form=seg_then_sr super-resolves masks"),
])  # fmt: skip
def test_segmentation_is_not_trained_without_masks_or_network(settings, message, bare):
    config = load_config(None, [*SR_ALONE, *settings])
    with pytest.raises(ValueError, match=message) as caught:
        check_training(config, [ShardSet.open(bare, "data.train")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [
    [], ["model.seg=unet"], ["model.form=dsrl"], ["phases=[{name: a, until: 2}, {name: b, beta: 0}]", "loss.beta=0.0"],
    ["loss.beta={name: linear, until: 9, end: 0}"],  # 0 throughout
    ["loss.beta={name: linear, begin: 2, until: 6}"],  # 0 before each of the run's two steps, at 0 and 2 samples
    ["loss.beta={name: linear, begin: 1, until: 9}", "phases=[{name: a, until: 2}, {name: b, beta: 0}]"],
    ["phases=[{name: a, until: 2}, {name: b, beta: {name: cosine, until: 2}}]"],  # 1 at the run's beginning, 0 in b
    ["loss.extra=[{loss: l2, weight: 1}]"], ["loss.sr={name: l1, pixel_weight: {crack: 0}}"],
])  # fmt: skip
def test_sr_alone_is_trained_on_images_without_masks(settings, bare):
    check_training(load_config(None, [*SR_ALONE, *settings]), [ShardSet.open(bare, "data.train")])


def test_one_set_without_masks_among_others_is_named(bare, masked):
    sets = [ShardSet.open(path, "data.train") for path in (masked, bare)]
    with pytest.raises(ValueError, match=f"data.train: {bare} has no masks"):
        check_training(load_config(None, []), sets)
    with pytest.raises(ValueError, match=f"data.val: {bare} has no masks, other sets have"):
        measures_segmentation(ModelConfig(), sets, "data.val")
    assert not measures_segmentation(ModelConfig(seg={"name": "none"}), sets, "data.val")
    assert measures_segmentation(ModelConfig(), sets[:1], "data.val")
    check_training(load_config(None, []), sets[:1])


@pytest.mark.parametrize("settings, message", [
    (["train.best=iou_max"], "train.best=iou_max measures segmentation.*set train.best=psnr"),
    (["train.best=ahd95"], "train.best=ahd95 measures segmentation"),
    (["train.best=iou"], "no measure 'iou' by which"),
    (["loss.beta=0.5"], "model.seg=none has nothing to train"),
])  # fmt: skip
def test_mistakes_stop_a_run_before_anything_is_written(settings, message, bare, tmp_path):
    places = [f"data.train={bare}", f"data.val={bare}", f"train.run_dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit, match=message) as caught:
        train_main([*SR_ALONE, *places, *settings])
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_the_best_by_segmentation_needs_masks_where_a_run_validates(bare, masked, tmp_path):
    places = [f"data.train={masked}", f"data.val={bare}", f"train.run_dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match="data.val has no masks: set train.best=psnr"):
        Run(load_config(None, [*SR_ALONE, *JOINT, *places]))
    Run(load_config(None, [*SR_ALONE, *JOINT, *places, "train.val_every=0"]))


def test_what_is_a_measure_of_segmentation():
    assert set(IMAGE_KEYS) == {"psnr", "psnr_infinite", "ssim", "kernel_psnr", "lq_psnr"}
    for key in IMAGE_KEYS:
        if key not in UNRANKED_KEYS:
            check_best(key, segmentation=False)
    for key in set(SEGMENTATION_KEYS) - set(UNRANKED_KEYS):
        check_best(key, segmentation=True)
        with pytest.raises(ValueError, match=f"train.best={key} "):
            check_best(key, segmentation=False)
    assert set(KEYS) == {*IMAGE_KEYS, *SEGMENTATION_KEYS}


# ---- a run, and the joint run that starts from it ----


def test_the_run_validates_and_keeps_the_best_by_psnr(run):
    (line,) = map(json.loads, (run / "validation.jsonl").read_text().splitlines())
    assert {"psnr", "ssim", "kernel_psnr"} <= line.keys() and not set(SEGMENTATION_KEYS) & line.keys()
    assert json.loads((run / "checkpoints" / "best.json").read_text())["measure"] == "psnr"
    with Image.open(run / "samples" / "step_00000002.png") as strip:
        assert strip.width == 3 * (48 + 4) + 4  # LQ, SR and HR: no probability, no mask


@pytest.mark.slow
def test_an_export_fills_the_sr_network_of_a_joint_run_and_leaves_the_fresh_segmentation(run, masked, tmp_path):
    places = [f"data.train={masked}", f"data.val={masked}", f"train.run_dir={tmp_path / 'run'}"]
    settings = [*SR_ALONE, *JOINT, *places, "loss.sr=l1"]
    fresh, filled = (Run(load_config(None, [*settings, *more])) for more in ([], [f"train.init_from={run}"]))
    export, state = load_file(run / "export" / "model.safetensors"), filled.model.state_dict()
    assert export and all(name.startswith("sr.") for name in export)
    for name, value in fresh.model.state_dict().items():
        assert torch.equal(state[name], export.get(name, value))
    changed = [name for name, value in fresh.model.state_dict().items() if not torch.equal(value, state[name])]
    assert changed and {name.split(".")[0] for name in changed} == {"sr"}
    filled.train()
    assert (tmp_path / "run" / "export" / "config.json").is_file()


# ---- evaluation ----


def test_sr_is_measured_and_the_kernel_and_segmentation_is_not(run, masked, tmp_path, capsys):
    evaluate_main([str(run), "--data", str(masked), "--out", str(tmp_path), "--distances"])
    found = json.loads((tmp_path / "results.json").read_text())
    image, pooled = found["metrics"]["image"], found["metrics"]["pooled"]
    assert all(image[key] is None and pooled[key] is None for key in SEGMENTATION_KEYS)
    assert image["psnr"] > 5 and pooled["psnr"] > 5 and 0 < image["ssim"] < 1
    assert found["curves"] is None and not {"tp", "iou", "hd95"} & found["per_image"][0].keys()
    assert found["definitions"]["segmentation"].startswith("not measured (null)")
    assert not {"iou_max", "thresholds", "per_image.iou"} & found["definitions"].keys()
    assert "segmentation: not measured" in (output := capsys.readouterr().out) and "kernel_psnr" in output
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "best.png",
        "median.png",
        "worst.png",
        "samples",
    }
    assert image["kernel_psnr"] == pytest.approx(np.mean(_kernel_psnrs(run, masked)))


def _kernel_psnrs(run: Path, shards: Path) -> list[float]:
    """Peak 1, both kernels clipped to 0..1, an image at a time."""
    model = JointModel.from_pretrained(run / "export")
    degrade = DEGRADATIONS.build(load_config(None, [f"degradation={BLUR}"]).degradation, scale=4)
    found = []
    for batch in eval_stream(open_sets(shards, "data.val"), 4, 1, 0):
        lq, kernel = degrade(batch.to("cpu").hr, batch.seed)
        error = model.infer(lq).kernel.clamp(0, 1) - kernel.clamp(0, 1)
        found.append(10 * np.log10(1 / error.double().square().mean().item()))
    return found


def test_a_joint_model_on_images_without_masks(joint, bare, tmp_path):
    evaluate_main([str(joint), "--data", str(bare), "--out", str(tmp_path)])
    image = json.loads((tmp_path / "results.json").read_text())["metrics"]["image"]
    assert image["iou_max"] is None and image["psnr"] > 5 and image["kernel_psnr"] is None


def test_rows_differ_by_the_counts_alone(joint, masked):
    model, device = JointModel.from_pretrained(joint), torch.device("cpu")
    degrade = DEGRADATIONS.build("downsample", scale=4)
    full, plain = (
        evaluate(model, eval_stream(open_sets(masked, "data.val"), 4, 6, 0), degrade, device, segmentation=flag)
        for flag in (True, False)
    )
    counted = ("tp", "fp", "fn", "histogram", "ece")
    assert [{k: v for k, v in row.items() if k not in counted} for row in full] == plain
    one, other = aggregate(full), aggregate(plain)
    for name in ("image", "pooled"):
        assert all(one[name][key] == other[name][key] for key in IMAGE_KEYS)
        assert all(other[name][key] is None for key in SEGMENTATION_KEYS)


def test_pictures_show_the_ranking_by_psnr():
    rows = [{"key": f"k{i}", "psnr": None if i == 7 else 20.0 + i} for i in range(8)]  # null: infinite
    assert pictured_rows(rows)["best"] == ["k7", "k6", "k5"] and pictured_rows(rows)["worst"] == ["k0", "k1", "k2"]


# ---- reports ----


def write_result(directory: Path, name: str, segmentation: bool, psnr: float) -> Path:
    rows = [{"key": f"i{n}", "pixels": 16, "psnr": psnr, "mse": 10 ** (-psnr / 10), "ssim": 0.5} for n in range(2)]
    counts = {"tp": [3] * 99, "fp": [1] * 99, "fn": [1] * 99} if segmentation else {}
    facts = {"name": name, "data": "test", "scale": 4, "model_settings": {"sr": {"name": "dbpn"}}}
    (directory / "pictures").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(directory / "pictures" / "best.png")
    (directory / "results.json").write_text(json.dumps(compose([{**row, **counts} for row in rows], facts)))
    return directory


def test_a_report_of_sr_alone_has_no_columns_of_segmentation(tmp_path):
    paths = [write_result(tmp_path / name, name, False, psnr) for name, psnr in (("a", 30.0), ("b", 31.0))]
    text = report(paths, tmp_path / "out").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| result"))
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["result", "PSNR [dB]", "SSIM"]
    assert "**31.00**" in text and "Best by PSNR:" in text and "**segmentation**: not measured" in text
    assert "IoU over the threshold" not in text and "WARNING" not in text
    assert not (tmp_path / "out" / "curves.png").exists()


def test_a_report_of_both_kinds(tmp_path):
    paths = [write_result(tmp_path / "sr", "sr", False, 31.0), write_result(tmp_path / "joint", "joint", True, 30.0)]
    text = report(paths, tmp_path / "out").read_text()
    assert "0.600 (0.01)" in text and "WARNING" not in text and (tmp_path / "out" / "curves.png").is_file()
    row = next(line for line in text.splitlines() if line.startswith("| sr"))
    assert [cell.strip() for cell in row.strip("|").split("|")][1:3] == ["-", "-"] and "**31.00**" in row
    assert "Best by PSNR:" in text and "Best by IoU:" in text
    with pytest.raises(ValueError, match="--reference: sr has no measures of segmentation"):
        report(paths, tmp_path / "out", reference="sr")


# ---- prediction ----


def test_prediction_writes_the_sr_image_and_the_kernel_only(run, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png(coordinates(0, 12, 16)))
    predict_main([str(run), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--device", "cpu"])
    written = {"a_sr.png", "a_kernel.npy", "a_kernel.png", "a_prediction.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written
    assert cv2.imread(str(tmp_path / "out" / "a_sr.png")).shape == (48, 64, 3)
    output = capsys.readouterr()
    assert "SR image and blur kernel only, as the model finds no cracks" in output.out
    assert "crack " not in output.out.splitlines()[0] + output.err
    found = predict(JointModel.from_pretrained(run / "export"), tmp_path / "a.png")
    assert found.prob is None and not segments(JointModel.from_pretrained(run / "export").config)
    with pytest.raises(ValueError, match="there is no mask"):
        found.mask()
