"""Pixels without data from image files through shards to batches; blank images and tiles."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from shard_helpers import draw_mask, make_tree, read, run

from cssr.config.schema import DataConfig
from cssr.data.dataset import read_sample
from cssr.data.loader import eval_stream, train_stream
from cssr.data.shards import ShardSet, open_sets
from cssr.utils.photographs import read_photograph

SIZE = (64, 48)  # width, height


def put(root, name: str, left: int, right: int) -> np.ndarray:
    """A photograph with data from column `left` to `right` only, and its mask. Returns its pixels, H W 4."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    layers = np.random.default_rng(len(name)).integers(1, 255, (SIZE[1], SIZE[0], 4)).astype(np.uint8)
    layers[..., 3] = 0
    layers[:, left:right, 3] = 255
    Image.fromarray(layers).save(root / f"images/{name}.png")
    draw_mask(root / f"masks/{name}.png", size=SIZE)
    return layers


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_shards_tell_missing_pixels_from_black(tmp_path, capsys):
    layers = put(tmp_path / "tree", "a", 0, 40)
    put(tmp_path / "tree", "bb", 0, 64)
    assert run("folder", "--root", tmp_path / "tree", "--out", tmp_path / "out") == 0
    assert "samples with pixels without data: 1" in capsys.readouterr().out
    first, second = read(tmp_path / "out")
    assert "valid.png" not in second and (pixels_of(first["valid.png"]) == layers[..., 3]).all()
    assert (pixels_of(first["png"]) == read_photograph(tmp_path / "tree/images/a.png")).all()
    assert not pixels_of(first["png"])[:, 40:].any() and (pixels_of(first["png"]) == layers[..., :3])[:, :40].all()
    assert json.loads(first["json"])["valid_share"] == 40 / 64
    assert run("--check", tmp_path / "out", "--decode") == 0
    shards = ShardSet.open(tmp_path / "out", "data")
    sample = read_sample(shards, 0, 0)
    assert shards.valid and (sample.valid == (layers[..., 3] > 0)).all() and read_sample(shards, 1, 0).valid is None
    assert (sample.image[:, 40:] == sample.image[:, 39:40]).all()  # continued, for networks


def test_missing_pixels_are_no_crack(tmp_path):
    put(tmp_path / "tree", "a", 8, 64)  # the mask has its crack in columns 0 to 15
    assert run("folder", "--root", tmp_path / "tree", "--out", tmp_path / "out") == 0
    mask = pixels_of(read(tmp_path / "out")[0]["mask.png"])
    assert not mask[:, :8].any() and mask[:, 8:16].all()


def test_batches_hold_valid_pixels_cut_and_mirrored_with_the_image(tmp_path):
    put(tmp_path / "tree", "a", 0, 40)
    put(tmp_path / "tree", "bb", 0, 64)
    assert run("folder", "--root", tmp_path / "tree", "--out", tmp_path / "out") == 0
    sets = open_sets(str(tmp_path / "out"), "data")
    data = DataConfig(train=str(tmp_path / "out"), crop=32, lanes=1, photometric=False, hflip=0.5)
    seen = set()
    for batch, _ in zip(train_stream(sets, data, 0, 0, 2), range(12)):
        assert batch.valid.shape == batch.mask.shape and batch.valid.dtype == batch.mask.dtype
        assert not (batch.mask & ~batch.valid & 1).any()
        seen |= set(batch.valid.flatten(1).float().mean(1).tolist())
        assert batch.to("cpu").valid.is_floating_point()
    assert 1.0 in seen and min(seen) < 1
    (batch,) = eval_stream(sets, 1, 2, 0)
    assert batch.valid.flatten(1).float().mean(1).tolist() == [40 / 64, 1]
    plain = make_tree(tmp_path / "plain", 2)
    assert run("folder", "--root", plain, "--out", tmp_path / "whole") == 0
    (batch,) = eval_stream(open_sets(str(tmp_path / "whole"), "data"), 1, 2, 0)
    assert batch.valid is None


@pytest.mark.parametrize("tiles", [(), ("--tile", 16, "--overlap", 0)])
def test_what_is_blank_is_left_out_and_counted(tmp_path, tiles, capsys):
    for name, left, right in (("a", 0, 32), ("blank", 0, 0), ("ccc", 0, 64)):
        put(tmp_path / "tree", name, left, right)
    words = ("folder", "--root", tmp_path / "tree", "--shard-size", 1, *tiles)
    assert run(*words, "--out", tmp_path / "out") == 0
    lost = 12 + 6 if tiles else 1
    assert f"left out: {lost} images or tiles" in capsys.readouterr().out
    assert run("--check", tmp_path / "out", "--decode") == 0
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["samples"] == (18 if tiles else 2)
    assert (index["blank_left_out"], index["blank_groups"]) == (lost, ["blank"])
    assert run(*words, "--keep-blank", "--out", tmp_path / "all") == 0
    assert json.loads((tmp_path / "all/index.json").read_text())["samples"] == (36 if tiles else 3)
    for path in (tmp_path / "tree/images").glob("[ac]*.png"):
        path.unlink()
        (tmp_path / "tree/masks" / path.name).unlink()
    capsys.readouterr()
    assert run("folder", "--root", tmp_path / "tree", "--out", tmp_path / "none") == 2
    assert "none of its 1 images holds data" in capsys.readouterr().err


def test_a_cut_with_blank_images_is_as_it_was_drawn(tmp_path):
    for number in range(6):
        put(tmp_path / "tree", "x" * (number + 1), 0, 64 * (number % 2))
    words = ("folder", "--root", tmp_path / "tree", "--ratio", "a=0.5", "b=0.5", "--out", tmp_path / "out")
    assert run(*words) == 0
    assert run("--check", tmp_path / "out", "--decode") == 0


def test_a_set_of_several_depths_is_reported(tmp_path, capsys):
    for name, top in (("a", 700), ("b", 4000)):
        values = np.linspace(0, top, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(np.uint16)
        (tmp_path / "tree/images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(tmp_path / f"tree/images/{name}.png")
        draw_mask(tmp_path / f"tree/masks/{name}.png", size=SIZE)
    assert run("folder", "--root", tmp_path / "tree", "--out", tmp_path / "out") == 0
    output = capsys.readouterr()
    assert "1 10-bit to 8-bit RGB" in output.out and "1 12-bit to 8-bit RGB" in output.out
    assert "warning: values of 10 and 12 bits in one set" in output.err
    assert run("folder", "--root", tmp_path / "tree", "--bits", 12, "--out", tmp_path / "twelve") == 0
    output = capsys.readouterr()
    assert "2 12-bit to 8-bit RGB" in output.out and not output.err
    assert pixels_of(read(tmp_path / "twelve")[0]["png"]).max() == round(700 * 255 / 4095)
    assert run("folder", "--root", tmp_path / "tree", "--bits", 7, "--out", tmp_path / "seven") == 2
