"""Tiles of large photographs, LQ images and kernels beside them, and parts that no photograph straddles."""

import io
import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from helpers import png
from PIL import Image
from shard_helpers import draw, draw_mask, make_tree, read, refused, run, same_bytes, write_part

from cssr.dataset_preparation import encode as samples
from cssr.dataset_preparation.encode import encode, form_of
from cssr.dataset_preparation.sources import Item, MaskRule
from cssr.dataset_preparation.split import draw_split, group_of, parse_ratio
from cssr.dataset_preparation.tiles import Tiling

RULE = MaskRule("as drawn", lambda values: values > 0)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("side", "starts"),
    [(10, [0]), (16, [0]), (17, [0, 1]), (28, [0, 12]), (29, [0, 12, 13]), (50, [0, 12, 24, 34])],
)
def test_tiles_cover_a_side_and_the_last_ends_with_it(side, starts):
    assert Tiling(16, 4).starts(side) == starts


def test_tiles_put_together_are_the_photograph_and_its_mask(tmp_path):
    draw(tmp_path / "root/images/big.jpg", size=(50, 37))
    draw_mask(tmp_path / "root/masks/big.png", size=(50, 37))
    words = ("folder", "--root", tmp_path / "root", "--tile", 16, "--overlap", 4)
    assert run(*words, "--out", tmp_path / "out") == 0
    image, mask = np.zeros((37, 50, 3), np.uint8), np.full((37, 50), 7, np.uint8)
    found = read(tmp_path / "out")
    assert len(found) == 4 * 3
    for sample in found:
        facts = json.loads(sample["json"])
        place = facts["tile"]
        assert sample["__key__"] == facts["key"] == f"big__y{place['y']:06d}_x{place['x']:06d}"
        assert (place["width"], place["height"], place["of"], facts["group"]) == (16, 16, [50, 37], "big")
        area = np.s_[place["y"] : place["y"] + 16, place["x"] : place["x"] + 16]
        image[area], mask[area] = pixels(sample["png"]), pixels(sample["mask.png"]) > 0
        assert facts["crack_share"] == (pixels(sample["mask.png"]) > 0).mean() and facts["origin"] == "images/big.jpg"
    assert (image == np.asarray(Image.open(tmp_path / "root/images/big.jpg"))).all()
    assert (mask == (np.asarray(Image.open(tmp_path / "root/masks/big.png")) > 127)).all()
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert (index["groups"], index["tile"], index["image_sizes"]) == (1, {"size": 16, "overlap": 4}, {"16x16": 12})


def test_small_photographs_stay_whole_or_are_refused(tmp_path, capsys):
    for name, size in (("small", (12, 16)), ("narrow", (10, 30))):
        draw(tmp_path / f"root/{name}.jpg", size=size)
    words = ("folder", "--root", tmp_path / "root", "--images-only", "--tile", 16)
    assert run(*words, "--out", tmp_path / "out") == 0
    first, second, third = read(tmp_path / "out")
    assert third["__key__"] == "small" and third["jpg"] == (tmp_path / "root/small.jpg").read_bytes()
    assert json.loads(third["json"])["tile"] == {"x": 0, "y": 0, "width": 12, "height": 16, "of": [12, 16]}
    assert [pixels(tile["png"]).shape for tile in (first, second)] == [(16, 10, 3)] * 2
    assert second["__key__"] == "narrow__y000014_x000000"
    message = refused(capsys, tmp_path / "other", *words, "--refuse-small")
    assert "narrow.jpg: 10x30 pixels are fewer than --tile 16, against --refuse-small" in message


def test_a_photograph_lying_on_its_side_is_cut_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(tmp_path / "root/a.jpg", size=(30, 20), exif=exif)
    assert run("folder", "--root", tmp_path / "root", "--images-only", "--tile", 20, "--out", tmp_path / "out") == 0
    tiles = [json.loads(sample["json"])["tile"] for sample in read(tmp_path / "out")]
    assert [(tile["x"], tile["y"], tile["of"]) for tile in tiles] == [(0, 0, [20, 30]), (0, 10, [20, 30])]


def test_a_photograph_is_read_and_decoded_once(monkeypatch):
    calls = defaultdict(int)

    def counting(name, function):
        def call(*args):
            calls[name] += 1
            return function(*args)

        return call

    item = pair("a", 40, 40)
    item = replace(item, image=counting("read", item.image), mask=counting("mask", item.mask))
    monkeypatch.setattr(samples, "open_picture", counting("decoded", samples.open_picture))
    found = list(encode(item, samples.Form("test", RULE, tiling=Tiling(16, 4))))
    assert len(found) == 9 and calls == {"read": 1, "mask": 1, "decoded": 1}


def test_shards_hold_whole_photographs_of_tiles(tmp_path):
    words = ("folder", "--root", make_tree(tmp_path / "root", 7), "--tile", 12)  # 4 tiles each
    assert run(*words, "--shard-size", 9, "--out", tmp_path / "out") == 0
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert [shard["samples"] for shard in index["shards"]] == [8, 8, 8, 4] and index["groups"] == 7
    assert run(*words, "--shard-size", 1, "--out", tmp_path / "one") == 0
    index = json.loads((tmp_path / "one/index.json").read_text())
    assert [shard["samples"] for shard in index["shards"]] == [4] * 7


def test_an_image_called_like_a_tile_is_refused(tmp_path, capsys):
    for name in ("a", "a__y000000_x000000"):
        draw(tmp_path / f"root/{name}.jpg")
    words = ("folder", "--root", tmp_path / "root", "--images-only")
    assert "duplicate key 'a__y000000_x000000'" in refused(capsys, tmp_path / "out", *words, "--tile", 12)
    assert run(*words, "--out", tmp_path / "out") == 0


# ---- LQ images and kernels


def pair(key: str, width: int, height: int, scale: int | None = None, kernel: int | None = None, **more) -> Item:
    """A picture with its mask; its LQ image, which is its every `scale`-th pixel, and its kernel."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.full_like(rows, 9)], 2).astype(np.uint8)
    return Item(
        key,
        f"{key}.png",
        lambda: png(image),
        lambda: (rows + columns) % 3 == 0,
        lq=(lambda: png(image[::scale, ::scale])) if scale else None,
        kernel=(lambda: np.full((kernel, kernel), 1 / kernel**2)) if kernel else None,
        **more,
    )


def test_lq_images_and_kernels_go_along(tmp_path):
    header = {"source": "test", "degradation": {"name": "gaussian"}}
    items = [pair("a", 32, 16, 4, 5), pair("b", 16, 16, 4, 5)]
    index = write_part(tmp_path / "out", items, RULE, 8, header)
    assert (index["lq"], index["scale"], index["kernel"], index["degradation"]["name"]) == (True, 4, 5, "gaussian")
    sample = read(tmp_path / "out")[0]
    assert (pixels(sample["lq.png"]) == pixels(sample["png"])[::4, ::4]).all()
    kernel = np.load(io.BytesIO(sample["kernel.npy"]), allow_pickle=False)
    assert kernel.dtype == np.float32 and kernel.shape == (5, 5) and kernel.sum() == pytest.approx(1)
    plain = write_part(tmp_path / "plain", [pair("a", 8, 8)], RULE, 8, header)
    assert (plain["lq"], plain["scale"], plain["kernel"]) == (False, None, None)


def test_lq_images_are_cut_at_the_same_places():
    items = [pair("a", 48, 40, 4, 3)]
    form = form_of(items, "test", RULE, Tiling(16, 4))
    found = list(encode(items[0], form))
    assert len(found) == 4 * 3
    for _, members, facts in found:
        place, lq = facts["tile"], pixels(members["lq.png"])
        assert lq.shape == (4, 4, 3) and lq[0, 0].tolist() == [place["y"], place["x"], 9]
        assert (lq == pixels(members["png"])[::4, ::4]).all() and "kernel.npy" in members


@pytest.mark.parametrize(
    ("items", "tiling", "says"),
    [
        ([pair("a", 16, 16, 4), pair("b", 16, 16, 2)], None, "b.png is 16x16, but its LQ image 8x8"),
        ([pair("a", 16, 16, 4), pair("b", 18, 16, 4)], None, "b.png is 18x16, but its LQ image 5x4"),
        ([pair("a", 18, 16, 4)], None, "a.png is 18x16, not 1 to 64 times its LQ image's 5x4"),
        ([pair("a", 16, 16, 4), pair("b", 16, 16)], None, "b.png has no lq, but 1 of 2 have one"),
        ([pair("a", 16, 16, 4, 3), pair("b", 16, 16, 4, 5)], None, "b.png: its kernel has 5 pixels a side"),
        ([pair("a", 16, 16, 4, 3), pair("b", 16, 16, 4)], None, "b.png has no kernel"),
        ([replace(pair("a", 16, 16), kernel=lambda: np.ones((2, 3)))], None, "give finite floats"),
        ([replace(pair("a", 16, 16), kernel=lambda: np.full((3, 3), np.nan))], None, "give finite floats"),
        ([replace(pair("a", 16, 16), lq=lambda: b"none")], None, "a.png, its LQ image: cannot read the image"),
        ([pair("a", 64, 64, 4)], Tiling(18), "--tile 18 is no multiple of 4"),
        ([pair("a", 64, 64, 4)], Tiling(16, 2), "--overlap 2 is no multiple of 4"),
    ],
)
def test_refuses_what_does_not_go_together(items, tiling, says):
    with pytest.raises(ValueError) as caught:
        form = form_of(items, "test", RULE, tiling)
        for item in items:
            list(encode(item, form))
    assert says in str(caught.value) and "\n" not in str(caught.value)


# ---- parts


def frames(groups: dict[str, int]) -> list[Item]:
    return [pair(f"{group}-{k}", 8, 8, group=group) for group, count in groups.items() for k in range(count)]


def test_frames_of_one_photograph_stay_together():
    items = frames({f"g{k:02d}": 1 + k % 4 for k in range(40)})
    split = draw_split(items, {"train": 0.7, "val": 0.2, "test": 0.1}, 5)
    assert sorted(sum(split.parts.values(), [])) == sorted({group_of(item) for item in items})
    counts = {name: sum(group_of(item) in groups for item in items) for name, groups in split.parts.items()}
    assert all(abs(counts[name] - share * len(items)) <= 2 for name, share in split.ratio.items())
    assert draw_split(items, split.ratio, 5) == split != draw_split(items, split.ratio, 6)
    with pytest.raises(ValueError, match="of 1 groups none is left"):
        draw_split(frames({"a": 9}), {"train": 0.5, "val": 0.5}, 0)


def test_without_groups_parts_have_the_rounded_sizes():
    items = [pair(f"k{k:03d}", 8, 8) for k in range(101)]
    split = draw_split(items, parse_ratio(["train=0.8", "val=0.1", "test=0.1"]), 0)
    assert [len(groups) for groups in split.parts.values()] == [81, 10, 10]


def test_a_split_is_kept_and_can_be_used_again(tmp_path, capsys):
    words = ("folder", "--root", make_tree(tmp_path / "root"), "--tile", 12, "--shard-size", 8)
    assert run(*words, "--ratio", "train=0.5", "val=0.3", "test=0.2", "--seed", 3, "--out", tmp_path / "a") == 0
    split = json.loads((tmp_path / "a/split.json").read_text())
    assert (split["seed"], split["ratio"]) == (3, {"train": 0.5, "val": 0.3, "test": 0.2})
    for name, groups in split["parts"].items():
        samples = [json.loads(sample["json"]) for sample in read(tmp_path / "a" / name)]
        assert sorted({facts["group"] for facts in samples}) == groups and len(samples) == 4 * len(groups)
    assert run(*words, "--split-file", tmp_path / "a/split.json", "--out", tmp_path / "b") == 0
    assert same_bytes(tmp_path / "a", tmp_path / "b")
    draw(tmp_path / "root/images/p99.jpg")
    draw_mask(tmp_path / "root/masks/p99.png")
    use = ("--split-file", tmp_path / "a/split.json")
    assert "1 groups are in no part of the split, the first is 'p99'" in refused(capsys, tmp_path / "c", *words, *use)
    for name in ("p99", "p3"):
        (tmp_path / f"root/images/{name}.jpg").unlink()
        (tmp_path / f"root/masks/{name}.png").unlink()
    assert "1 groups are in the split, but not in the source" in refused(capsys, tmp_path / "c", *words, *use)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda split: split.update(format="another"),
        lambda split: split["parts"].update(val=[]),
        lambda split: split["parts"]["val"].append(split["parts"]["train"][0]),
        lambda split: split["parts"].update({"../val": split["parts"].pop("val")}),
        lambda split: split.pop("parts"),
        lambda split: split["parts"].update(val=7),
    ],
)
def test_refuses_a_spoilt_split_file(tmp_path, capsys, spoil):
    words = ("folder", "--root", make_tree(tmp_path / "root", 4))
    assert run(*words, "--ratio", "train=0.5", "val=0.5", "--out", tmp_path / "a") == 0
    split = json.loads((tmp_path / "a/split.json").read_text())
    spoil(split)
    (tmp_path / "s.json").write_text(json.dumps(split))
    assert "--split-file" in refused(capsys, tmp_path / "b", *words, "--split-file", tmp_path / "s.json")
