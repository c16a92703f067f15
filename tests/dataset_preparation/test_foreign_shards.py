"""Other people's tars in the tools: written anew by make_shards.py, checked, shown, degraded once and evaluated on."""

import gzip
import io
import json
import lzma
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from foreign_tars import by_tarfile, by_webdataset, coded, mask, picture, usual
from hand_made import write_pairs
from PIL import Image
from shard_helpers import read, refused, run

from cssr import evaluate
from cssr.config.schema import ModelConfig
from cssr.data.shards import ShardSet
from cssr.dataset_preparation import make_benchmark, show
from cssr.dataset_preparation.check import check
from cssr.dataset_preparation.sources import webdataset
from cssr.models.joint import build_model


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing is kept at home, or unpacked from one test to another."""
    monkeypatch.setenv("CSSR_CACHE", str(tmp_path / "cache"))
    yield
    while webdataset._unpacked:
        webdataset._unpacked.popitem()[1].close()


def masks_of(directory: Path) -> list[np.ndarray]:
    """H W bool each, in the order of the keys."""
    samples = sorted(read(directory), key=lambda sample: sample["__key__"])
    return [np.asarray(Image.open(io.BytesIO(sample["mask.png"]))) > 0 for sample in samples]


def make(root: Path, *words) -> Path:
    out = root.parent / "out"
    assert run("webdataset", "--root", root, "--out", out, "--workers", 2, *words) == 0
    assert check(out, True, 1)[0] == []
    return out


def packed(root: Path, suffix: str, pack) -> Path:
    for path in [*root.glob("*.tar")]:
        path.write_bytes(pack(path.read_bytes()))
        path.rename(path.with_name(path.name.removesuffix(".tar") + suffix))
    return root


@pytest.mark.parametrize("suffix, pack", [
    (".tar", lambda data: data), (".tar.gz", gzip.compress), (".tgz", gzip.compress), (".tar.xz", lzma.compress),
    (".tar", gzip.compress),
])  # fmt: skip
def test_packed_or_not_the_samples_are_the_same(suffix, pack, tmp_path):
    out = make(packed(by_webdataset(tmp_path / "set", per_tar=2), suffix, pack))
    samples = sorted(read(out), key=lambda sample: sample["__key__"])
    assert [sample["jpg"] for sample in samples] == [dict(usual(n))["jpg"] for n in range(12)]
    for number, found in enumerate(masks_of(out)):
        np.testing.assert_array_equal(found, mask(number))
    assert json.loads(samples[5]["json"])["origin"] == f"x-000002{suffix}/k005.jpg"


def jpeg_and(draw, suffix: str = "mask.png"):
    return lambda n: [("jpg", coded(picture(n), "JPEG")), (suffix, coded(draw(n)))]


@pytest.mark.parametrize("files, words", [
    (jpeg_and(lambda n: 255 - mask(n) * 255), ["--crack-values", 0]),
    (jpeg_and(lambda n: mask(n) * 3 + 1), ["--crack-values", 4]),
    (jpeg_and(lambda n: np.stack([mask(n) * 200, mask(n), mask(n)], 2)), ["--crack-colors", "200,1,1"]),
    (jpeg_and(lambda n: mask(n)[::2, ::2] * 255), ["--resize-masks"]),
    (jpeg_and(lambda n: mask(n) * 255, "damage.png"), ["--image-suffix", "jpg", "--mask-suffix", "damage.png"]),
    (lambda n: [("bmp", coded(picture(n), "BMP")), ("Mask.BMP", coded(mask(n), "BMP"))], []),
])  # fmt: skip
def test_what_is_not_read_in_place_is_written_anew(files, words, tmp_path):
    root = by_tarfile(tmp_path / "set", files, key="a.b/{}")
    for number, found in enumerate(masks_of(make(root, *words))[:3]):
        np.testing.assert_array_equal(found, mask([0, 1, 10][number]))


def test_unpaired_samples_are_refused_or_passed_over(tmp_path, capsys):
    root = by_tarfile(tmp_path / "set", lambda n: usual(n)[: 1 + (n != 5)])
    assert "1 samples lack their image or mask, the first is k005" in refused(
        capsys, tmp_path / "out", "webdataset", "--root", root
    )
    assert len(read(make(root, "--skip-unpaired"))) == 11


def test_images_alone_and_parts_by_folders(tmp_path):
    by_tarfile(tmp_path / "set" / "train")
    out = make(tmp_path / "set", "--split", "train", "--images-only")
    assert len(read(out)) == 12 and not ShardSet.open(out, "x").masks


def test_keys_that_several_tars_share_become_names_of_both(tmp_path):
    root = by_tarfile(tmp_path / "set", counts=(2,), name="a.tar")
    by_tarfile(root, counts=(2,), name="b.tar")
    keys = sorted(sample["__key__"] for sample in read(make(root)))
    assert keys == ["a_k000", "a_k001", "b_k000", "b_k001"]


@pytest.mark.parametrize("words, says", [
    (["--mask-suffix", "seg.png"], "give both"),
    (["--image-suffix", "jpg"], "give both"),
    (["--image-suffix", "jpg", "--mask-suffix", "gt.png"], "end in jpg, seg.png: say --image-suffix jpg --mask-suffix"),
    (["--split", "test"], "holds no tars of others"),
    (["--images-only", "--threshold", "0"], "--threshold 0 is about masks, of which --images-only takes none"),
    (["--images-only", "--dilate", "2"], "--dilate 2 is about masks"),
    (["--images-only", "--resize-masks"], "--resize-masks is about masks"),
])  # fmt: skip
def test_mistakes(words, says, tmp_path, capsys):
    assert says in refused(capsys, tmp_path / "out", "webdataset", "--root", by_tarfile(tmp_path / "set"), *words)


@pytest.mark.parametrize("root", ["pipe:cat x.tar", "https://example.org/x-{000..003}.tar", "s3://bucket/x.tar"])
def test_tars_elsewhere_are_to_be_downloaded_first(root, tmp_path, capsys):
    said = refused(capsys, tmp_path / "out", "webdataset", "--root", root)
    assert "is no folder: download the tars first, or train on them where they are (data.train)" in said


def test_damaged_tars_are_named(tmp_path, capsys):
    zstandard = tmp_path / "z" / "a.tar.zst"
    zstandard.parent.mkdir()
    zstandard.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(1000))
    said = refused(capsys, tmp_path / "out", "webdataset", "--root", zstandard.parent)
    assert f"{zstandard} is compressed by zstandard, which is not read: unpack it with `zstd -d` first" in said
    root = packed(by_tarfile(tmp_path / "set"), ".tar.gz", lambda data: gzip.compress(data)[:-200])
    assert "x-000000.tar.gz" in refused(capsys, tmp_path / "out", "webdataset", "--root", root)
    twice = by_tarfile(tmp_path / "twice", lambda n: usual(n) + usual(n)[:1])
    assert "k000.jpg of sample k000 is there twice" in refused(capsys, tmp_path / "out", "webdataset", "--root", twice)


class Bomb:
    """Does something when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = by_tarfile(
        tmp_path / "set", lambda n: [*usual(n), ("pkl", pickle.dumps(Bomb())), ("pyd", pickle.dumps(Bomb()))]
    )
    assert len(read(make(root))) == 12 and len(ShardSet.open(root, "x")) == 12 and check(root, True, 1)[0] == []
    assert not Path("unpickled").exists()


# ---- the other tools, in place ----


def test_a_sound_set_of_others_has_no_faults(tmp_path):
    root = by_tarfile(tmp_path / "set", form=tarfile.USTAR_FORMAT)
    for place in (root, root / "x-{000000..000002}.tar"):
        assert check(place, True, 2) == ([], "12 samples in 3 shards")
    assert check(root / "x-000001.tar", False, 1) == ([], "3 samples in 1 shards")
    assert check(write_pairs(tmp_path / "hand", [3], image_sizes={"24x20": 3}), True, 1)[0] == []


def test_damage_of_others_is_reported_by_key(tmp_path):
    def files(number: int):
        if number == 2:
            return usual(number)[:1] * 2 + usual(number)[1:]
        spoilt = usual(number)[1][1][:60] + bytes(8) + usual(number)[1][1][68:]
        return [usual(number)[0], ("seg.png", spoilt)] if number == 9 else usual(number)

    root = by_tarfile(tmp_path / "set", files)
    for decode in (False, True):  # only decoding shows the damage of k009
        found = check(root, decode, 1)[0]
        assert found[0] == "x-000000.tar: k002: its jpg is there twice"
        assert [fault.split(": ")[1] for fault in found] == ["k002", "k009"]
    assert run("--check", root) == 1


def test_a_set_of_others_is_shown(tmp_path, capsys, monkeypatch):
    root = by_tarfile(tmp_path / "set")
    monkeypatch.setattr("sys.argv", ["show.py", str(root), "--out", str(tmp_path / "sheet.png")])
    assert show.main() == 0
    output = capsys.readouterr().out
    assert "12 samples in 3 shards" in output and "written by another program" in output and "crack = 255" in output
    assert Image.open(tmp_path / "sheet.png").size[0] > 100


def test_a_model_is_evaluated_on_a_set_of_others(tmp_path):
    root, model = by_tarfile(tmp_path / "set", key="a/b.c/{}"), tmp_path / "run"
    seg = {"name": "unet", "encoder": "vgg11", "depth": 2, "width": 4}
    config = ModelConfig(scale=2, sr={"name": "bicubic"}, seg=seg)
    build_model(config).save_pretrained(model / "export", degradation={"name": "downsample"})
    evaluate.main([str(model), "--data", f"{root}/x-{{000000..000002}}.tar", "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "a/b.c/11" in json.dumps(result) or "a/b.c/11" in (tmp_path / "out" / "per_image.csv").read_text()


def test_a_benchmark_is_made_of_a_set_of_others(tmp_path):
    root, recipe = by_tarfile(tmp_path / "set", key="a/{}"), tmp_path / "half.yaml"
    recipe.write_text(yaml.safe_dump({"name": "half", "scale": 2, "degradation": "downsample"}))
    words = ["--data", root, "--degradation", recipe, "--out", tmp_path / "out", "--workers", 1]
    assert make_benchmark.main([str(word) for word in words]) == 0
    shards = ShardSet.open(tmp_path / "out", "x")
    assert len(shards) == 12 and shards.scale == 2 and check(tmp_path / "out", True, 1)[0] == []
