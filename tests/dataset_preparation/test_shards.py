"""make_shards.py end to end: what it writes, what it refuses, and that a refusal leaves nothing behind."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from shard_helpers import SCRIPT, draw, draw_mask, make_tree, read, refused, run, same_bytes
from torch.utils.data import DataLoader

from cssr.data.dataset import read_sample
from cssr.data.shards import ShardSet
from cssr.dataset_preparation.audit.examine import inspect_files
from cssr.dataset_preparation.images import store_picture
from cssr.dataset_preparation.sources import SOURCES, Item
from cssr.dataset_preparation.split import join_related


@pytest.fixture
def tree(tmp_path):
    """A folder of ten pairs."""
    return make_tree(tmp_path / "root")


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(tree, tmp_path):
    for out in ("a", "deep/er/b"):
        words = [
            "folder",
            "--root",
            tree,
            "--out",
            tmp_path / out,
            "--shard-size",
            "4",
            "--ratio",
            "train=0.7",
            "val=0.3",
        ]
        done = subprocess.run([sys.executable, SCRIPT, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr
        assert "7 samples in 2 shards" in done.stdout and "values {0, 255}: crack = 255" in done.stdout
    first = tmp_path / "a"
    assert same_bytes(first, tmp_path / "deep/er/b")
    assert sum(path.is_file() for path in first.rglob("*")) == 3 + 2 + 1  # shards, indexes, split.json


@pytest.mark.parametrize("words", [(), ("--tile", 12, "--overlap", 4, "--ratio", "train=0.7", "val=0.3")])
def test_the_number_of_workers_does_not_show(tree, tmp_path, words):
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        assert run("folder", "--root", tree, "--out", out, "--shard-size", 3, "--workers", workers, *words) == 0
    assert same_bytes(tmp_path / "out1", tmp_path / "out3")
    assert len(list(tmp_path.glob("out1/**/*.tar"))) >= 4


def test_index_tells_what_is_there(tree, tmp_path):
    draw_mask(tree / "masks/p3.png", (0, 0))
    assert run("folder", "--root", tree, "--out", tmp_path / "out", "--shard-size", 4, "--licence", "CC0") == 0
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert (index["format"], index["samples"], index["licence"]) == ("cssr-shards-1", 10, "CC0")
    assert index["empty_masks"] == 1
    assert index["ratio"] is None and index["image_sizes"] == {"20x16": 10} and index["converted"] == {}
    assert index["crack_share"] == pytest.approx(0.9 * 0.25)
    assert [shard["samples"] for shard in index["shards"]] == [4, 4, 2]
    for shard in index["shards"]:
        data = (tmp_path / "out" / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert str(tmp_path) not in (tmp_path / "out/index.json").read_text()


def test_plain_webdataset_reads_the_samples(tree, tmp_path):
    draw(tree / "images/sub/a.b.png", seed=77)
    draw_mask(tree / "masks/sub/a.b.png")
    assert run("folder", "--root", tree, "--out", tmp_path / "out", "--shard-size", 4) == 0
    samples = read(tmp_path / "out")
    assert [sample["__key__"] for sample in samples] == [f"p{number}" for number in range(10)] + ["sub_a_b"]
    assert samples[2]["jpg"] == (tree / "images/p2.jpg").read_bytes()  # kept as it was
    mask = Image.open(io.BytesIO(samples[2]["mask.png"]))
    assert mask.mode == "L" and np.asarray(mask)[:, :5].all() and not np.asarray(mask)[:, 5:].any()
    facts = json.loads(samples[-1]["json"])
    assert facts == {
        "key": "sub_a_b",
        "source": "folder",
        "origin": "images/sub/a.b.png",
        "width": 20,
        "height": 16,
        "crack_share": 0.25,
        "converted": None,
        "crc32": {name: zlib.crc32(samples[-1][name]) for name in ("png", "mask.png")},
    }


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize(
    ("count", "size", "shards"),
    [(10, None, 10), (16, None, 16), (47, None, 24), (20, 256, 1), (20, 7, 3)],
    ids=["few", "sixteen", "some", "one, as told", "several, as told"],
)
def test_a_small_set_has_shards_for_every_worker(tmp_path, count, size, shards):
    words = () if size is None else ("--shard-size", size)
    make = ("synthetic", "--count", count, "--size", 64, "--workers", 2)
    assert run(*make, "--out", tmp_path / "out", *words) == 0
    urls = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert len(urls) == shards
    if shards > 1:
        loader = DataLoader(webdataset.WebDataset(urls, shardshuffle=False), batch_size=None, num_workers=2)
        assert len({sample["__key__"] for sample in loader}) == count


def test_shards_are_named_after_their_set(tree, tmp_path):
    """webdataset and wids cache by base name: no two sets may share one; equal sets may."""
    other = make_tree(tmp_path / "other")
    draw(other / "images/p3.jpg", seed=99)
    words = ("--ratio", "train=0.6", "val=0.4", "--shard-size", 2)
    for root, out in ((tree, "out"), (tree, "again"), (other, "another")):
        assert run("folder", "--root", root, "--out", tmp_path / out, *words) == 0
    names = {out: {p.name for p in (tmp_path / out).rglob("*.tar")} for out in ("out", "again", "another")}
    assert names["out"] == names["again"] and len(names["out"]) == 5
    assert all(re.fullmatch(r"folder-(train|val)-[0-9a-f]{8}-00000\d\.tar", name) for name in names["out"])
    assert len(names["out"] & names["another"]) in (2, 3)  # the part in which nothing differs


def test_the_index_is_one_of_wids_too(tree, tmp_path):
    """Its names and numbers are those of the tars, in order."""
    assert run("folder", "--root", tree, "--out", tmp_path / "out", "--shard-size", 4) == 0
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["wids_version"] == 1 and [entry["nsamples"] for entry in index["shardlist"]] == [4, 4, 2]
    for entry in index["shardlist"]:
        assert (tmp_path / "out" / entry["url"]).stat().st_size == entry["filesize"]


def test_long_and_odd_names_survive(tmp_path):
    names = {
        "Müller_" + "x" * 150: None,
        "with space 裂缝": None,
        "a;$(b)'\"": None,
        "line\nbreak\tand\u200bmore": "line_break_and_more",
        "-flag": None,
        "__meta__": None,
        "%2e": None,
    }
    for name in names:
        draw(tmp_path / f"root/images/{name}.jpg")
        draw_mask(tmp_path / f"root/masks/{name}.png")
    assert run("folder", "--root", tmp_path / "root", "--out", tmp_path / "out") == 0
    samples = read(tmp_path / "out")
    assert sorted(sample["__key__"] for sample in samples) == sorted(key or name for name, key in names.items())
    assert {json.loads(sample["json"])["origin"] for sample in samples} == {f"images/{name}.jpg" for name in names}
    shards = ShardSet.open(tmp_path / "out", "test")
    assert all(read_sample(shards, number, 0).mask.any() for number in range(len(names)))


def test_refuses_names_that_are_no_text(tree, tmp_path, capsys):
    os.rename(tree / "images/p3.jpg", os.fsencode(tree) + b"/images/\xff.jpg")
    os.rename(tree / "masks/p3.png", os.fsencode(tree) + b"/masks/\xff.png")
    assert "not in UTF-8" in refused(capsys, tmp_path / "out", "folder", "--root", tree)


def test_ratio_parts_are_disjoint_complete_and_repeatable(tree, tmp_path):
    words = ("folder", "--root", tree, "--ratio", "train=0.5", "val=0.25", "test=0.25")
    keys = {}
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(*words, "--out", tmp_path / out, "--seed", seed) == 0
        keys[out] = [[sample["__key__"] for sample in read(tmp_path / out / part)] for part in ("train", "val", "test")]
    assert keys["a"] == keys["b"] != keys["c"]
    assert sorted(sum(keys["a"], [])) == [f"p{number}" for number in range(10)]
    assert len(keys["a"][0]) == 5 and all(part == sorted(part) for part in keys["a"])
    index = json.loads((tmp_path / "a/val/index.json").read_text())
    assert (index["ratio"], index["seed"], index["part"]) == ({"train": 0.5, "val": 0.25, "test": 0.25}, 1, "val")


def test_pictures_of_several_frames_are_told():
    """Of which the first alone is stored."""
    file, frames = io.BytesIO(), [Image.new("RGB", (20, 16), (n, n, n)) for n in range(3)]
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    assert store_picture(file.getvalue()).converted == "TIFF to PNG; the first of its frames alone"


@pytest.mark.parametrize(
    ("mode", "suffix", "reason"),
    [
        ("RGBA", "png", "RGBA to RGB; pixels without data, black"),
        ("L", "png", "grey to RGB"),
        ("L", "jpg", "grey to RGB"),
        ("P", "png", "palette to RGB"),
        ("1", "png", "1-bit to RGB"),
        ("CMYK", "jpg", "CMYK to RGB"),
        ("RGB", "tif", "TIFF to PNG"),
        ("RGB", "bmp", "BMP to PNG"),
        ("I;16", "png", "16-bit to 8-bit RGB"),
        ("RGB", "png", None),
        ("RGB", "jpg", None),
    ],
)
def test_every_picture_is_stored_as_rgb(tmp_path, mode, suffix, reason):
    path = tmp_path / f"a.{suffix}"
    if mode == "I;16":
        Image.fromarray((np.arange(320).reshape(16, 20) * 200).astype(np.uint16)).save(path)
    else:
        draw(path, mode)
    stored = store_picture(path.read_bytes())
    assert stored.converted == reason and (stored.width, stored.height) == (20, 16)
    assert (stored.data == path.read_bytes()) == (reason is None)
    image = Image.open(io.BytesIO(stored.data))
    assert image.mode == "RGB" and image.format == {"jpg": "JPEG", "png": "PNG"}[stored.suffix]
    if mode == "I;16":
        assert np.asarray(image)[..., 0].max() == round(319 * 200 / 257)
    elif mode == "RGBA":
        colours, alpha = np.split(np.asarray(Image.open(path)), [3], 2)
        assert (np.asarray(image) == np.where(alpha >= 128, colours, 0)).all()
        assert (stored.valid == (alpha[..., 0] >= 128)).all()


def test_exif_orientation_is_applied(tree, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(tree / "images/p4.jpg", size=(16, 20), exif=exif)  # lies on its side: upright it is 20 x 16
    assert run("folder", "--root", tree, "--out", tmp_path / "out") == 0
    assert "converted: 1 EXIF orientation applied" in capsys.readouterr().out
    image = Image.open(io.BytesIO(read(tmp_path / "out")[4]["png"]))
    lying = np.asarray(Image.open(tree / "images/p4.jpg"))
    assert not image.getexif() and (np.asarray(image) == np.rot90(lying, -1)).all()


def test_refuses_what_does_not_pair_up(tree, tmp_path, capsys):
    out, words = tmp_path / "out", ("folder", "--root", tree)
    (tree / "masks/p1.png").rename(tmp_path / "kept.png")
    assert "missing mask: 1 of 10" in (message := refused(capsys, out, *words)) and "p1.jpg" in message
    (tree / "images/p1.jpg").rename(tmp_path / "kept.jpg")
    draw_mask(tree / "masks/more.png")
    assert "missing image: 1 of 10" in (message := refused(capsys, out, *words)) and "more.png" in message
    (tree / "masks/more.png").unlink()
    draw(tree / "images/p2.png")
    assert "duplicate key 'p2'" in refused(capsys, out, *words)
    (tree / "images/p2.png").unlink()
    for name in ("a_b", "a.b"):
        draw(tree / f"images/{name}.jpg")
        draw_mask(tree / f"masks/{name}.png")
    assert "duplicate key 'a_b'" in refused(capsys, out, *words)


def test_refuses_what_it_cannot_read(tree, tmp_path, capsys):
    out, words = tmp_path / "deep/out", ("folder", "--root", tree, "--shard-size", 2)
    out.parent.mkdir()
    draw_mask(tree / "masks/p5.png", size=(10, 8))
    assert "p5.jpg is 20x16, but its mask is 10x8" in refused(capsys, out, *words)
    (tree / "masks/p5.png").write_bytes(b"no image")
    assert "cannot read mask" in (message := refused(capsys, out, *words)) and "p5.png" in message
    draw_mask(tree / "masks/p5.png")
    data = (tree / "images/p7.jpg").read_bytes()
    (tree / "images/p7.jpg").write_bytes(data[: len(data) // 2])
    assert "images/p7.jpg: cannot read the image" in refused(capsys, out, *words)


def test_refuses_a_png_without_its_end(tree, tmp_path, capsys):
    """Pillow reads it, training does not; the doctor says it in the same words."""
    draw(tree / "images/p2.png", seed=2)
    (tree / "images/p2.jpg").unlink()
    data = (tree / "images/p2.png").read_bytes()
    (tree / "images/p2.png").write_bytes(data[:-12])
    message = refused(capsys, tmp_path / "out", "folder", "--root", tree)
    item = next(item for item in SOURCES.build("folder", root=tree).items if item.key == "p2")
    words = inspect_files(item, "", near=False, overlaps=False).faults["damaged images"]
    assert f"images/p2.png: cannot read the image: {words}" in message and "truncated" in words


def write_groups(path: Path, *groups: tuple[str, ...], part: str = "", source: str = "folder") -> Path:
    """A doctor.json that finds these keys to be related."""
    related = [[{"part": part, "key": key, "image": f"{key}.jpg"} for key in group] for group in groups]
    found = {"format": "cssr-doctor-1", "source": source, "related": related, "parts": {part: {}}}
    path.write_text(json.dumps(found))
    return path


def test_related_images_stay_in_one_part(tree, tmp_path):
    for name in ("a.b", "a.c"):
        draw(tree / f"images/{name}.jpg", seed=40)
        draw_mask(tree / f"masks/{name}.png")
    groups = write_groups(tmp_path / "doctor.json", ("p1", "p5", "gone"), ("p5", "p8"), ("a.b", "a.c"), ("p0", "p0"))
    straddling = 0
    for seed in range(6):
        parts = {}
        for name, more in (("with", ("--groups", groups)), ("without", ())):
            out = tmp_path / f"{name}{seed}"
            words = ("folder", "--root", tree, "--ratio", "a=0.5", "b=0.5", "--seed", seed, "--workers", 1)
            assert run(*words, *more, "--out", out) == 0
            parts[name] = [{sample["__key__"] for sample in read(out / part)} for part in "ab"]
            assert len(parts[name][0] | parts[name][1]) == 12
        for together in ({"p1", "p5", "p8"}, {"a_b", "a_c"}):
            assert any(together <= part for part in parts["with"])
            straddling += not any(together <= part for part in parts["without"])
    assert straddling > 0  # without the groups they are separated now and then
    facts = {
        sample["__key__"]: json.loads(sample["json"]).get("group")
        for part in "ab"
        for sample in read(out.parent / "with0" / part)
    }
    assert {facts[key] for key in ("p5", "p8")} == {"p1"} and facts["p0"] is None
    assert run("--check", tmp_path / "with0") == 0


def test_groups_join_what_shares_a_photograph_already():
    items = [Item(key, key, bytes, None, group=key[0]) for key in ("a1", "a2", "b1", "b2", "c1")]
    joined = join_related(items, [["b2", "a1"], ["x", "y"]])
    assert [item.group for item in joined] == ["a", "a", "a", "a", "c"]


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"source": "khanhha"}, "is about 'khanhha', not 'folder'"),
        ({"part": "train"}, "is about the parts 'train', not ''"),
        ({}, "'x1' and all its others"),
    ],
)
def test_refuses_groups_of_other_images(tree, tmp_path, capsys, about, says):
    groups = write_groups(tmp_path / "doctor.json", ("x1", "x2"), **about)
    words = ("folder", "--root", tree, "--groups", groups)
    assert says in refused(capsys, tmp_path / "out", *words)
    (tmp_path / "odd.json").write_text('{"format": "cssr-doctor-1"}')
    assert "odd.json is damaged" in refused(capsys, tmp_path / "new", *words[:-1], tmp_path / "odd.json")


def test_names_that_match_no_image_are_counted(tree, tmp_path, capsys):
    groups = write_groups(tmp_path / "doctor.json", ("p1", "p5", "gone"), ("far", "p2"))
    assert run("folder", "--root", tree, "--groups", groups, "--out", tmp_path / "a") == 0
    assert f"passed over 2 images of --groups {groups} that are not here, the first is far" in capsys.readouterr().out
    draw(tree / "images/odd.jpg")
    draw_mask(tree / "masks/odd.png")
    assert run("folder", "--root", tree, "--group-pattern", r"^p[0-4]", "--out", tmp_path / "b") == 0
    output = "--group-pattern fits 5 of 11 names, the others are groups of their own, the first is 'odd'"
    assert output in capsys.readouterr().out
    message = refused(capsys, tmp_path / "c", "folder", "--root", tree, "--group-pattern", "^q(.+)_[0-9]+$")
    assert "fits none of 11 names, the first is 'odd'" in message


def test_refuses_missing_and_empty_folders(tree, tmp_path, capsys):
    out = tmp_path / "out"
    assert "is not a folder" in refused(capsys, out, "folder", "--root", tmp_path / "nowhere")
    assert "unknown split 'tran'" in (message := refused(capsys, out, "folder", "--root", tree, "--split", "tran"))
    assert "no splits" in message
    tree.rename(tmp_path / "train")
    assert "choose with --split from: train" in refused(capsys, out, "folder", "--root", tmp_path)
    (tmp_path / "bare/images").mkdir(parents=True)
    assert "bare/images is empty" in refused(capsys, out, "folder", "--root", tmp_path / "bare")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("foldr",), "did you mean folder?"),
        (("folder",), "--root"),
        (("crackforest", "--root", ".", "--split", "x"), "split 'x'"),
        (("synthetic", "--cuont", 3), "--cuont"),
        (("synthetic", "--count", 0), "--count"),
        (("synthetic", "--seed", -1), "--seed"),
        (("synthetic", "--empty-share", 2), "--empty-share"),
        (("synthetic", "--count", 3, "--shard-size", 0), "--shard-size"),
        (("synthetic", "--count", 3, "--workers", 0), "--workers"),
        (("synthetic", "--tile", 0), "--tile is 0"),
        (("synthetic", "--tile", 64, "--overlap", 64), "--overlap is 64"),
        (("synthetic", "--overlap", 4), "give --tile"),
        (("synthetic", "--ratio", "train=1", "--split-file", "x"), "leave one of them out"),
        (("synthetic", "--ratio", "train"), "'train'"),
        (("synthetic", "--ratio", "train=0.8", "val=0.1"), "adds up to 0.9"),
        (("synthetic", "--count", 2, "--ratio", "train=0.9", "val=0.1"), "'val'"),
        (("synthetic", "--ratio", "a=0.5", "--ratio", "b=0.5"), "--ratio is given 2 times; give it once"),
        (("folder", "--root", "x", "--root=y"), "--root is given 2 times; give it once"),
        (("synthetic", "--groups", "nowhere.json"), "--groups: cannot read nowhere.json"),
    ],
)
def test_refuses_a_wrong_command_line(tmp_path, capsys, words, part):
    assert part in refused(capsys, tmp_path / "out", *words)


def test_refuses_an_output_that_exists(tree, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    assert run("folder", "--root", tree, "--out", out) == 0  # an empty folder is welcome
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert "exists and is not empty" in refused(capsys, out, "folder", "--root", tmp_path / "nowhere")
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    assert "is no folder" in refused(capsys, tree / "images/p1.jpg", "folder", "--root", tree)


def test_new_parents_go_when_the_run_fails(tree, tmp_path, capsys):
    (tree / "images/p7.jpg").write_bytes(b"no image")
    assert run("folder", "--root", tree, "--out", tmp_path / "new/er/out") == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing(tmp_path, kind):
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "synthetic", "--count", "100000", "--out", "out"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("out.partial/tree/*")) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, kind)
    message = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and message.startswith("error: interrupted") and message.count("\n") == 1
    assert not list(tmp_path.iterdir())
