"""Frozen benchmarks: what make_benchmark.py stores is what evaluation would have made, and nothing else changes."""

import dataclasses
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hand_made import mask_png, write_index, write_pairs, write_stored, write_tar
from helpers import png, spoil, write_set
from paths import ROOT
from PIL import Image
from serving import serving
from shard_helpers import read, same_bytes

from cssr.config.schema import ModelConfig
from cssr.data.checks import recorded_degradation
from cssr.data.dataset import eval_seed, read_sample
from cssr.data.loader import eval_stream
from cssr.data.shards import ShardSet, open_sets
from cssr.dataset_preparation import make as make_shards
from cssr.dataset_preparation import make_benchmark, writer
from cssr.dataset_preparation.benchmark import degrade_image, read_benchmark
from cssr.dataset_preparation.show import describe, draw_sheet
from cssr.degradations import DEGRADATIONS
from cssr.evaluate import main as evaluate_main
from cssr.evaluation.evaluator import evaluate
from cssr.models.joint import JointModel, build_model

FILES = sorted((ROOT / "configs" / "benchmarks").glob("*.yaml"))
BLUR = ROOT / "configs/benchmarks/sigma_0.2_4.0.yaml"
SIZES = ((50, 47), (48, 48), (48, 48))  # height, width: the first is cut to 48 x 44


def noise(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Seven pictures of noise in three shards, with masks and without LQ images."""
    return write_set(tmp_path_factory.mktemp("plain") / "plain", 7, 3, SIZES, noise)


def run(*words) -> int:
    return make_benchmark.main([str(word) for word in words])


def freeze(data, file: Path, out: Path, workers: int = 1) -> Path:
    """A benchmark, three samples a shard."""
    assert run("--data", data, "--degradation", file, "--out", out, "--shard-size", 3, "--workers", workers) == 0
    return out


@pytest.fixture(scope="module")
def frozen(plain, tmp_path_factory):
    return freeze(plain, BLUR, tmp_path_factory.mktemp("frozen") / "frozen")


def written(folder: Path, **changes) -> Path:
    """A benchmark file that differs from a small one by `changes`; None leaves a setting out."""
    values = {"name": "mine", "scale": 2, "degradation": {"name": "downsample"}, **changes}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return path


def refused(capsys, out: Path, *words) -> str:
    """Run what must fail, with nothing left behind; returns its one line of error."""
    before = sorted(out.parent.iterdir())
    assert run("--out", out, "--workers", 1, *words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert sorted(out.parent.iterdir()) == before
    return message


# ---- what is stored ----


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_stored_is_what_evaluation_makes(file, plain, tmp_path):
    """LQ images but for their rounding, kernels, masks and HR images exactly; its index says how it was made."""
    benchmark, out = read_benchmark(file), freeze(plain, file, tmp_path / "out")
    degrade, kernels = benchmark.build(), []
    fresh = eval_stream(open_sets(str(plain), "data.val"), benchmark.scale, 1, benchmark.seed, stored=False)
    for batch, stored in zip(fresh, eval_stream(open_sets(str(out), "data.val"), benchmark.scale, 1, 0), strict=True):
        assert stored.key == batch.key and torch.equal(stored.hr, batch.hr) and torch.equal(stored.mask, batch.mask)
        lq, kernel = degrade(batch.to("cpu").hr, batch.seed)
        assert stored.lq.dtype == torch.uint8 and torch.equal(stored.lq, (lq.clamp(0, 1) * 255).round().byte())
        assert (kernel is None and stored.kernel is None) or torch.equal(stored.kernel, kernel)
        kernels.append(kernel)
    index = ShardSet.open(out, "x").index
    side = None if kernels[0] is None else 21
    assert (index["kernel"], index["scale"], index["lq"]) == (side, 4, True)
    assert index["benchmark"] == file.stem == benchmark.name and index["degradation"] == benchmark.degradation
    assert index["resampler"] == degrade.resampler and index["degradation_seed"] == 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_says_what_it_is_and_how_to_use_it(file):
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    for part in ("Command", "Ranges", f"configs/benchmarks/{file.name}", "make_benchmark.py", "cssr/evaluate.py"):
        assert part in text
    assert max(map(len, file.read_text().splitlines())) <= 120


def test_the_batch_in_which_evaluation_degrades_does_not_matter(plain, frozen):
    degrade = read_benchmark(BLUR).build()
    fresh, stored = (
        eval_stream(open_sets(str(plain), "data.val"), 4, 7, 0, stored=False),
        eval_stream(open_sets(str(frozen), "data.val"), 4, 7, 0),
    )
    for batch, kept in zip(fresh, stored, strict=True):
        lq, kernel = degrade(batch.to("cpu").hr, batch.seed)
        assert torch.equal(kept.kernel, kernel)
        assert (lq.clamp(0, 1) * 255 - kept.lq).abs().max() <= 0.5 + 1e-3


def test_image_files_masks_and_facts_are_those_of_the_original(tmp_path):
    words = ["synthetic", "--count", "4", "--size", "48", "--seed", "3", "--ratio", "a=0.5", "b=0.5"]
    assert make_shards.main([*words, "--out", str(tmp_path / "set"), "--workers", "1"]) == 0
    original = tmp_path / "set/a"
    out = freeze(original, BLUR, tmp_path / "out")
    for before, after in zip(read(original), read(out), strict=True):
        assert after["jpg"] == before["jpg"] and after["mask.png"] == before["mask.png"]
        then, now = json.loads(before["json"]), json.loads(after["json"])
        sums = now.pop("crc32")
        assert {name: sums.pop(name) for name in ("jpg", "mask.png")} == then.pop("crc32") and now == then
        assert set(sums) == {"lq.png", "kernel.npy"}
    indexes = [ShardSet.open(root, "x").index for root in (original, out)]
    for name in ("source", "licence", "ratio", "part", "seed", "split_sha256", "options", "mask_rule", "crack_share"):
        assert indexes[0][name] == indexes[1][name], name


def test_groups_and_what_else_a_json_says_are_kept(tmp_path):
    words = ["synthetic", "--count", "2", "--size", "96", "--tile", "48", "--out", str(tmp_path / "set")]
    assert make_shards.main([*words, "--workers", "1"]) == 0
    for before, after in zip(read(tmp_path / "set"), read(freeze(tmp_path / "set", BLUR, tmp_path / "out"))):
        then, now = json.loads(before["json"]), json.loads(after["json"])
        assert now["group"] == then["group"] and now["tile"] == then["tile"] and now["origin"] == then["origin"]
    assert ShardSet.open(tmp_path / "out", "x").index["groups"] == 2


def test_an_image_that_must_be_cut_becomes_a_png(plain, frozen):
    samples = {root: {sample["__key__"]: sample for sample in read(root)} for root in (plain, frozen)}
    cut, whole = samples[frozen]["plain-000"], samples[frozen]["plain-001"]
    assert whole["png"] == samples[plain]["plain-001"]["png"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(cut["png"]))), noise(0, 50, 47)[:48, :44])
    assert Image.open(io.BytesIO(cut["mask.png"])).size == (44, 48) == Image.open(io.BytesIO(cut["png"])).size


def test_sets_without_masks(tmp_path):
    for n in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(noise(n, 24, 24)).save(tmp_path / f"photos/{n}.png")
    words = ["folder", "--root", str(tmp_path / "photos"), "--images-only", "--out", str(tmp_path / "set")]
    assert make_shards.main(words) == 0
    shards = ShardSet.open(freeze(tmp_path / "set", BLUR, tmp_path / "out"), "x")
    assert not shards.masks and shards.lq and read_sample(shards, 0, 1).lq.shape == (6, 6, 3)
    assert make_shards.main(["--check", str(tmp_path / "out"), "--decode"]) == 0


def test_sets_that_others_have_written(tmp_path):
    """Without json; the key is all that is known of a sample."""
    root = write_pairs(tmp_path / "pairs", [2, 1])
    samples = read(freeze(root, BLUR, tmp_path / "out"))
    assert [json.loads(sample["json"])["origin"] for sample in samples] == ["k-000", "k-001", "k-002"]
    assert samples[1]["png"] == read(root)[1]["png"]
    assert "source: unknown" in describe("out", ShardSet.open(tmp_path / "out", "x").index)


def test_shards_elsewhere_give_the_same_bytes(plain, frozen, tmp_path, monkeypatch):
    monkeypatch.setenv("CSSR_CACHE", str(tmp_path / "cache"))
    with serving(plain) as server:
        freeze(server.address, BLUR, tmp_path / "out")
    assert same_bytes(tmp_path / "out", frozen)


# ---- kernels ----


def kernels_of(root: Path) -> torch.Tensor:
    return torch.cat([batch.kernel[:, 0] for batch in eval_stream(open_sets(str(root), "data.val"), 4, 1, 0)]).double()


def fitted_sigmas(kernels: torch.Tensor) -> torch.Tensor:
    """Both standard deviations of Gaussian kernels, B 2, smallest first.

    In closed form: log k is a quadratic in the place, whose coefficients three neighbours of the centre give, however
    much of the tails is cut off or falls between pixels (second moments are biased by both).
    """
    log, centre = kernels.log(), kernels.shape[-1] // 2
    across, down, both = (log[:, centre, centre] - log[:, centre + y, centre + x] for y, x in ((0, 1), (1, 0), (1, 1)))
    mixed = (both - across - down) / 2
    form = torch.stack([torch.stack([across, mixed], 1), torch.stack([mixed, down], 1)], 1)
    return (2 * torch.linalg.eigvalsh(form)).rsqrt().flip(1)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Forty tiny pictures."""
    return write_set(tmp_path_factory.mktemp("many") / "many", 40, 40, ((8, 8),), noise)


@pytest.mark.parametrize("low, high", [(0.2, 1.3), (1.3, 2.6), (2.6, 4.0), (0.2, 4.0)])
def test_blurs_are_in_the_range_that_the_name_says_and_fill_it(low, high, many, tmp_path):
    file = ROOT / f"configs/benchmarks/sigma_{low}_{high}.yaml"
    sigmas = fitted_sigmas(kernels_of(freeze(many, file, tmp_path / "out")))
    assert low - 1e-3 < sigmas.min() < low + 0.15 * (high - low)
    assert high - 0.15 * (high - low) < sigmas.max() < high + 1e-3
    assert (sigmas[:, 1] - sigmas[:, 0]).max() > 0.4 * (high - low)  # anisotropic


def test_motion_is_straight_and_sums_to_one(many, tmp_path):
    kernels = kernels_of(freeze(many, ROOT / "configs/benchmarks/motion.yaml", tmp_path / "out"))
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(40).double(), rtol=0, atol=1e-6)
    axis = torch.arange(21).double() - 10
    xx, yy, xy = (
        torch.einsum("byx,y,x->b", kernels, a, b) for a, b in ((axis**0, axis**2), (axis**2, axis**0), (axis, axis))
    )
    moments = torch.linalg.eigvalsh(torch.stack([torch.stack([xx, xy], 1), torch.stack([xy, yy], 1)], 1))
    length = (12 * moments[:, 1]).sqrt()  # of an even line, whose second moment is length^2 / 12
    assert moments[:, 0].max() < 0.3 and 2 - 0.2 < length.min() < 4 and 18 < length.max() < 20.3


def test_noise_and_jpeg_leave_kernels_as_they_were(plain, frozen, tmp_path):
    spoilt = freeze(plain, ROOT / "configs/benchmarks/noise_jpeg.yaml", tmp_path / "out")
    assert torch.equal(kernels_of(spoilt), kernels_of(frozen))
    differences = [
        (a.lq.float() - b.lq.float()).abs().mean()
        for a, b in zip(
            eval_stream(open_sets(str(spoilt), "data.val"), 4, 1, 0),
            eval_stream(open_sets(str(frozen), "data.val"), 4, 1, 0),
        )
    ]
    assert min(differences) > 1  # grey levels


# ---- golden vectors ----


def test_what_is_stored_equals_what_the_published_code_computes(golden, tmp_path, monkeypatch):
    """The blur of given widths and directions, then reduction; HR and LQ images are rounded to 8 bits on the way."""
    vectors = golden("losses_degradation_metrics")
    hr, parameters = vectors["hr"], torch.from_numpy(vectors["kernel_sigma1_sigma2_theta_deg"])
    root = write_set(
        tmp_path / "set", 4, 4, ((48, 48),), lambda n, *_: np.rint(hr[n].transpose(1, 2, 0) * 255).astype("u1")
    )
    monkeypatch.setattr("cssr.dataset_preparation.benchmark.eval_seed", lambda seed, key: int(key[-1]))
    number = lambda rng: int(rng.bit_generator.state["state"]["key"][0])  # noqa: E731
    drawn = lambda rngs, *_: torch.stack([parameters[number(rng)] for rng in rngs])  # noqa: E731
    monkeypatch.setattr("cssr.degradations.kernels.uniform", drawn)
    for file, expected in ((BLUR, "lr"), (ROOT / "configs/benchmarks/bicubic.yaml", "bicubic_down_x4")):
        for batch in eval_stream(open_sets(str(freeze(root, file, tmp_path / expected)), "data.val"), 4, 1, 0):
            n = int(batch.key[0][-1])
            error = np.abs(batch.lq[0].numpy() - vectors[expected][n] * 255)
            assert error.max() < 1.5 and error.mean() < 0.5  # grey levels: half of one for LQ, less for HR
            if batch.kernel is not None:
                np.testing.assert_allclose(batch.kernel[0], vectors["kernels"][n], rtol=1e-4, atol=1e-7)


# ---- evaluation ----


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("model") / "export"
    seg = {"name": "unet", "encoder": "vgg11", "depth": 2, "width": 4}
    build_model(ModelConfig(scale=4, sr={"name": "bicubic"}, seg=seg)).save_pretrained(
        out, degradation={"name": "downsample"}
    )
    return out


def results(export: Path, data: Path, out: Path, *more: str) -> dict:
    evaluate_main([str(export), "--data", str(data), "--out", str(out), *more])
    return json.loads((out / "results.json").read_text())


def test_results_name_the_benchmark(plain, frozen, export, tmp_path, capsys):
    found, benchmark = results(export, frozen, tmp_path / "a", "--seed", "5"), read_benchmark(BLUR)
    assert found["benchmark"] == "sigma_0.2_4.0" and found["degradation"] == benchmark.degradation
    assert found["resampler"] == benchmark.build().resampler and found["seed"] == 0
    assert "(benchmark sigma_0.2_4.0)" in capsys.readouterr().out
    other = results(export, frozen, tmp_path / "b", "--seed", "5", "--degradation", "downsample")
    assert other["benchmark"] is None and other["degradation"] == "downsample" and other["seed"] == 5
    assert "bicubic" in other["resampler"] and "Gaussian" not in other["resampler"]
    assert results(export, plain, tmp_path / "c")["benchmark"] is None


def test_indexes_are_believed_only_where_they_can_be_and_agree(frozen, tmp_path):
    sets = [ShardSet.open(frozen, "x")]
    facts = {"benchmark": 3, "degradation": "gaussian", "resampler": ["x"], "degradation_seed": True}
    odd = [ShardSet.open(write_stored(tmp_path / "odd", **facts), "x")]
    bare = [ShardSet.open(write_stored(tmp_path / "bare"), "x")]
    assert recorded_degradation(sets + sets) == recorded_degradation(sets) and recorded_degradation(sets)["seed"] == 0
    for disagreeing in (odd, bare, sets + bare):
        assert recorded_degradation(disagreeing) == {"benchmark": None}


def test_measures_are_those_of_evaluation_but_for_the_rounding(plain, frozen, export):
    """With the same rounding the counts are the same; without it the error of SR moves by what half a level can do."""
    model, degrade, device = JointModel.from_pretrained(export), read_benchmark(BLUR).build(), torch.device("cpu")

    def rounded(hr, seeds):
        lq, kernel = degrade(hr, seeds)
        return (lq.clamp(0, 1) * 255).round() / 255, kernel

    def rows(data, how):
        batches = eval_stream(open_sets(str(data), "data.val"), 4, 1, 0, stored=data is frozen)
        return [{**row, "histogram": row["histogram"].tolist()} for row in evaluate(model, batches, how, device)]

    stored = rows(frozen, None)
    assert len(stored) == 7
    np.testing.assert_equal(stored, rows(plain, rounded))  # histograms of logits are arrays
    gain = 1.375**2  # largest sum of a bicubic enlargement's absolute weights, along both axes
    for kept, free in zip(stored, rows(plain, degrade), strict=True):
        assert kept["key"] == free["key"] and kept["mse"] != free["mse"]
        assert abs(kept["mse"] ** 0.5 - free["mse"] ** 0.5) <= gain * 0.5 / 255 + 1e-6


# ---- the same bytes ----


@pytest.mark.slow
def test_neither_workers_nor_the_environment_show(plain, frozen, tmp_path):
    freeze(plain, BLUR, tmp_path / "two", workers=2)
    script = [
        sys.executable,
        ROOT / "shards/make_benchmark.py",
        "--data",
        plain,
        "--degradation",
        BLUR,
        "--shard-size",
        3,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [*map(str, script), "--out", "apart"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and not done.stderr
    assert same_bytes(tmp_path / "two", frozen) and same_bytes(tmp_path / "apart", frozen)


HANGING = """
import sys, time
from cssr.dataset_preparation import make_benchmark, writer

def hanging(file, samples, write=writer._write_tar):
    if file.file.name.endswith("2.tar.partial"):
        file.write(b"half of a tar")
        file.file.flush()
        time.sleep(600)
    write(file, samples)

writer._write_tar = hanging
sys.exit(make_benchmark.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_run_continues_from_what_was_finished(plain, frozen, tmp_path, capsys):
    words = ["--data", plain, "--degradation", BLUR, "--shard-size", 3, "--workers", 2]
    command = [sys.executable, "-c", HANGING, *map(str, words), "--out", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    journal = tmp_path / "out.partial/journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL and not (tmp_path / "out").exists()
    freeze(plain, BLUR, tmp_path / "out")
    assert "2 of 3 shards were finished before" in capsys.readouterr().out
    assert same_bytes(tmp_path / "out", frozen)


def test_a_full_disk_leaves_what_is_whole_and_another_command_is_refused(plain, many, tmp_path, capsys, monkeypatch):
    write = writer._write_tar

    def failing(file, samples):
        if file.file.name.endswith("2.tar.partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, samples)

    words = ("--degradation", BLUR, "--out", tmp_path / "out", "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write_tar", failing)
        assert run("--data", plain, "--shard-size", 3, *words) == 2
    assert "2 finished shards are kept" in capsys.readouterr().err
    assert run("--data", many, "--shard-size", 3, *words) == 2
    assert "begun by another command: the index of --data was" in capsys.readouterr().err
    assert run("--data", plain, "--shard-size", 4, *words) == 2
    assert "--shard-size was 3 and is now 4" in capsys.readouterr().err


# ---- people ----


def test_the_summary_says_what_was_made_and_how_to_use_it(plain, tmp_path, capsys):
    freeze(plain, BLUR, tmp_path / "out")
    output = capsys.readouterr().out
    for part in ("7 samples", "4 times smaller", "blur kernels of 21 x 21", "sigma: [0.2, 4.0]", "seed 0",
                 "resampler: 21x21",
                 "benchmark: sigma_0.2_4.0", f"cssr/evaluate.py RUN --data {tmp_path / 'out'}",
                 "images of 47x50 pixels are cut"):  # fmt: skip
        assert part in output, part


def test_checks_and_pictures_of_a_benchmark(frozen):
    assert make_shards.main(["--check", str(frozen), "--decode"]) == 0
    shards = ShardSet.open(frozen, "x")
    assert "benchmark: sigma_0.2_4.0" in describe(frozen, shards.index)
    sheet = draw_sheet(shards, 1, 0)
    assert sheet.width > 235 + 235 + 120  # HR image, LQ image and kernel side by side


# ---- mistakes ----


@pytest.mark.parametrize("changes, message", [
    ({"nmae": "x"}, "unknown setting 'nmae' (did you mean name?)"),
    ({"name": None}, "name is missing"),
    ({"name": "a b"}, "name needs letters"),
    ({"name": 3}, "name needs letters"),
    ({"scale": None}, "scale is missing"),
    ({"scale": 1}, "scale needs a whole number, 2 to 64; got 1"),
    ({"scale": 2.0}, "scale needs a whole number"),
    ({"scale": True}, "scale needs a whole number"),
    ({"seed": -1}, "seed needs a whole number"),
    ({"seed": 2**31}, "seed needs a whole number"),
    ({"seed": "1"}, "seed needs a whole number"),
    ({"degradation": None}, "degradation is missing"),
    ({"degradation": 3}, "degradation needs a mapping with a name"),
    ({"degradation": {"sigma": [1, 2]}}, "degradation needs a mapping with a name"),
    ({"degradation": {"name": "gausian"}}, "unknown degradation 'gausian' (did you mean gaussian?)"),
    ({"degradation": {"name": "gaussian", "sgma": [1, 2]}}, "does not take 'sgma' (did you mean sigma?)"),
    ({"degradation": {"name": "gaussian", "sigma": ["a", "b"]}}, "sigma must be a list, each a number"),
    ({"degradation": {"name": "gaussian", "isotropic": "no"}}, "degradation.isotropic needs true or false; got 'no'"),
    ({"degradation": {"name": "gaussian", "size": "21"}}, "size must be a whole number of 1 to 101, got '21'"),
    ({"degradation": {"name": "gaussian", "padding": ["zero"]}}, "padding must be zero, reflect or replicate"),
    ({"degradation": {"name": "downsample", "antialias": 1}}, "degradation.antialias needs true or false"),
    ({"degradation": {"name": "downsample", "scale": 2}}, "does not take 'scale'"),
    ({"degradation": "stored"}, "degradation=stored degrades nothing"),
])  # fmt: skip
def test_a_wrong_file_is_refused_by_the_setting(changes, message, plain, tmp_path, capsys):
    file = written(tmp_path, **changes)
    output = refused(capsys, tmp_path / "out", "--data", plain, "--degradation", file)
    assert message in output and f"--degradation {file}: " in output


@pytest.mark.parametrize("text, message", [(None, "no recipe at"), ("[", "not valid YAML"), ("- 1", "by name")])
def test_a_file_that_is_none(text, message, plain, tmp_path, capsys):
    file = tmp_path / "file.yaml"
    if text:
        file.write_text(text)
    assert message in refused(capsys, tmp_path / "out", "--data", plain, "--degradation", file)


@pytest.mark.parametrize("words, message", [
    (("--data", "nowhere"), "--data: no shards in nowhere"),
    (("--data", "PLAIN", "--workers", 0), "--workers is given 2 times"),
    (("--data", "PLAIN", "--shard-size", 0), "--shard-size is 0; give at least 1"),
    (("--data", "PLAIN", "--shrad-size", 1), "--shrad-size"),
    (("--data", "STORED"), "stores LQ images already: evaluate on it, or give the set that it was made of"),
    (("--data", "SMALL"), "images of 24x1 pixels, too small for scale 2"),
    (("--data", "DAMAGED"), "key damaged-002"),
])  # fmt: skip
def test_a_wrong_command_is_refused(words, message, plain, tmp_path, capsys):
    folder = tmp_path / "sets"
    places = {"PLAIN": plain, "STORED": write_stored(folder / "stored"), "DAMAGED": folder / "damaged",
              "SMALL": write_set(folder / "small", 3, 3, ((20, 24), (1, 24)))}  # fmt: skip
    spoil(write_set(folder / "damaged", 4, 2), "damaged-002")
    words = [places.get(word, word) for word in words]
    assert message in refused(capsys, tmp_path / "out", *words, "--degradation", written(tmp_path))


def test_half_an_image_is_not_frozen(tmp_path, capsys):
    buffer = io.BytesIO()
    Image.fromarray(noise(0, 20, 24)).save(buffer, "JPEG", quality=95)
    half = [("a.jpg", buffer.getvalue()[:-400]), ("a.mask.png", mask_png(np.zeros((20, 24))))]
    (tmp_path / "sets").mkdir()
    write_tar(tmp_path / "sets/s0.tar", half)
    root = write_index(tmp_path / "sets", {"s0.tar": 1})
    output = refused(capsys, tmp_path / "out", "--data", root, "--degradation", BLUR)
    assert "damaged sample" in output and "s0.tar key a: " in output and f"make_shards.py --check {root}" in output


def test_a_grey_image_becomes_rgb_and_nothing_else(tmp_path):
    pixels = noise(0, 20, 24)[..., 0]
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set/s0.tar", [("a.png", png(pixels)), ("a.mask.png", mask_png(pixels > 99))])
    (sample,) = read(freeze(write_index(tmp_path / "set", {"s0.tar": 1}), BLUR, tmp_path / "out"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample["png"]))), pixels[..., None].repeat(3, 2))


def test_a_degradation_that_an_image_is_too_small_for(many, tmp_path, capsys):
    file = written(tmp_path, degradation={"name": "gaussian", "padding": "reflect"})
    output = refused(capsys, tmp_path / "out", "--data", many, "--degradation", file)
    assert "has images of 8x8 pixels, which the degradation cannot take" in output


def test_an_output_that_exists_is_left_alone(plain, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years")
    output = refused(capsys, tmp_path / "out", "--data", plain, "--degradation", BLUR)
    assert "exists and is not empty" in output and [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_levels_are_rounded_and_clipped():
    levels, kernel = degrade_image(
        np.zeros((1, 3, 3), np.uint8),
        0,
        lambda hr, seeds: (torch.tensor([-1, 0.499 / 255, 2]).expand(1, 3, 1, 3), None),
    )
    assert kernel is None and levels[0, :, 0].tolist() == [0, 0, 255]
    levels, _ = degrade_image(
        np.zeros((1, 1, 3), np.uint8), 0, lambda hr, seeds: (torch.full((1, 3, 1, 1), 7.6 / 255), None)
    )
    assert levels.tolist() == [[[8, 8, 8]]]  # not cut off to 7


def test_the_seed_of_a_file_is_the_evaluations(plain, tmp_path):
    file = written(tmp_path, seed=7, degradation={"name": "gaussian", "size": 17})
    batch = next(iter(eval_stream(open_sets(str(freeze(plain, file, tmp_path / "out")), "data.val"), 2, 1, 0)))
    expected = DEGRADATIONS.build({"name": "gaussian", "size": 17}, scale=2)(
        torch.zeros(1, 3, 8, 8), torch.tensor([eval_seed(7, batch.key[0])])
    )[1]
    assert torch.equal(batch.kernel, expected) and dataclasses.asdict(read_benchmark(file))["seed"] == 7
