"""Folders as people keep them: links, litter, other suffixes, names with accents, results among photographs."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from shard_helpers import draw, draw_mask, make_tree, read, run

from cssr.cracks.run import masks_at
from cssr.dataset_preparation.audit.run import main as doctor
from cssr.dataset_preparation.sources.folder import folder
from cssr.inference.sources import photographs, unread_files_note
from cssr.utils.image_files import IMAGE_SUFFIXES, masks_beside, unread_note, walk


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path.with_suffix(".png"))
    return path.with_suffix(".png").rename(path)


def test_links_are_followed_and_loops_are_not(tmp_path):
    for name in "AB":
        put(tmp_path / f"real/{name}/x.jpg")
    root = tmp_path / "links"
    put(root / "own.jpg")
    for name in "AB":
        (root / name).symlink_to(tmp_path / "real" / name)
    (root / "A" / "up").symlink_to(root)
    (root / "self").symlink_to(root)
    (root / "above").symlink_to(tmp_path)
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere")
    for name in ("loop", "loop.jpg"):
        (root / name).symlink_to(name)
    os.mkfifo(root / "pipe.jpg")
    assert [path.relative_to(root).as_posix() for path in walk(root)] == ["A/x.jpg", "B/x.jpg", "own.jpg"]
    assert set(photographs(root)) == {"own", "A/x", "B/x"}
    assert "passed over 3 links that lead nowhere" in unread_files_note([root])


def test_sharding_and_layouts_follow_links(tmp_path):
    make_tree(tmp_path / "real", 3)
    (tmp_path / "set").mkdir()
    for name in ("images", "masks"):
        (tmp_path / "set" / name).mkdir()
        (tmp_path / "set" / name / "A").symlink_to(tmp_path / "real" / name)
    assert run("folder", "--root", tmp_path / "set", "--out", tmp_path / "out") == 0
    assert len(read(tmp_path / "out")) == 3
    for name, target in (("train_img", "images"), ("train_lab", "masks")):
        (tmp_path / "deepcrack").mkdir(exist_ok=True)
        (tmp_path / "deepcrack" / name).symlink_to(tmp_path / "real" / target)
    words = ("deepcrack", "--root", tmp_path / "deepcrack", "--split", "train")
    assert run(*words, "--out", tmp_path / "deep") == 0 and len(read(tmp_path / "deep")) == 3


def test_files_whose_links_lead_nowhere_are_told(tmp_path, capsys):
    """As those of git-annex and DVC before they are fetched."""
    make_tree(tmp_path, 2)
    for name in ("images", "masks"):
        (tmp_path / name / "gone.png").symlink_to(tmp_path / "nowhere")
    assert run("folder", "--root", tmp_path, "--out", tmp_path / "out") == 0
    assert "passed over 2 links that lead nowhere" in capsys.readouterr().out
    assert [*masks_at([tmp_path / "masks"])] == ["p0", "p1"]
    assert "passed over 1 links that lead nowhere" in capsys.readouterr().err


def test_litter_is_left_alone(tmp_path):
    put(tmp_path / "a.jpg")
    for name in (
        "._a.jpg",
        "@eaDir/a.jpg/T.jpg",
        ".ipynb_checkpoints/a-checkpoint.jpg",
        "__MACOSX/a.jpg",
        ".git/a.png",
    ):
        put(tmp_path / name)
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    for found in (photographs(tmp_path), photographs(tmp_path / "*"), photographs(tmp_path / "**" / "*")):
        assert set(found) == {"a"}
    assert set(masks_at([tmp_path])) == {"a"}


def test_masks_of_missing_pixels_that_are_not_read_are_named(tmp_path, capsys):
    """GDAL's are called after the whole name of the file; in shards they must be within it."""
    draw(tmp_path / "images/a.jpg")
    draw_mask(tmp_path / "masks/a.png")
    (tmp_path / "images/a.jpg.msk").touch()
    assert unread_files_note([tmp_path]) == ""
    (tmp_path / "images/a.MSK").touch()
    assert "1 masks of missing pixels" in unread_files_note([tmp_path]) and "a.MSK" in unread_files_note([tmp_path])
    assert run("folder", "--root", tmp_path, "--out", tmp_path.with_name("out")) == 0
    assert "passed over 2 masks of missing pixels, which must be within the TIFF" in capsys.readouterr().out
    assert doctor(["folder", "--root", str(tmp_path)]) == 0
    assert "2  masks of missing pixels: not read" in capsys.readouterr().out


def test_other_suffixes_are_read_or_named(tmp_path, capsys):
    for name in ("a.jfif", "b.JPE", "c.jp2", "d.avif", "e.jpg"):
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            Image.new("RGB", (64, 64)).save(tmp_path / name)
    for name in ("f.dng", "g.DNG", "h.gif", "notes.txt"):
        (tmp_path / name).touch()
    assert {"a", "b", "e"} <= set(photographs(tmp_path)) and not {"f", "h"} & set(photographs(tmp_path))
    output = "passed over 3 files that look like photographs (2 .dng, 1 .gif): convert them to JPEG, PNG or TIFF"
    assert unread_files_note([tmp_path]) == unread_files_note([tmp_path / "*"]) == output
    for name in ("images/x.jpg", "images/y.dng"):
        draw(tmp_path / "set" / name) if name.endswith("jpg") else (tmp_path / "set" / name).touch()
    draw_mask(tmp_path / "set/masks/x.png")
    assert run("folder", "--root", tmp_path / "set", "--out", tmp_path / "out") == 0
    assert "note: passed over 1 files that look like photographs (1 .dng)" in capsys.readouterr().out
    assert unread_note([Path("a.HEIC"), Path("b.heic")]).endswith(
        "pip install pillow-heif, or convert them to JPEG"
    ) or (".heic" in IMAGE_SUFFIXES)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.dng").touch()
    with pytest.raises(ValueError, match="no photograph in .*raw: passed over 1 files that look like photographs"):
        photographs(tmp_path / "raw")


def test_composed_and_decomposed_letters_are_the_same(tmp_path):
    name = "Br\u00fccke"
    draw(tmp_path / f"images/{unicodedata.normalize('NFD', name)}.jpg")
    draw_mask(tmp_path / f"masks/{unicodedata.normalize('NFC', name)}.png")
    assert run("folder", "--root", tmp_path, "--out", tmp_path / "out") == 0
    patterns = ("--image-pattern", "images/{stem}.jpg", "--mask-pattern", "masks/{stem}.png")
    assert run("folder", "--root", tmp_path, *patterns, "--out", tmp_path / "second") == 0
    assert [sample["__key__"] for sample in read(tmp_path / "out") + read(tmp_path / "second")] == [name] * 2


def test_results_of_earlier_predictions_are_no_photographs(tmp_path):
    for name in ("a.jpg", "old/a_sr.png", "old/a_mask.png", "old/mine.png"):
        put(tmp_path / name)
    record = {"facts": {}, "files": {"a_sr.png": 1, "a_mask.png": 1}, "found": {}}
    (tmp_path / "old/a_prediction.json").write_text(json.dumps(record))
    assert set(photographs(tmp_path)) == {"a", "old/mine"} == set(photographs(tmp_path / "**" / "*.*"))


@pytest.mark.parametrize(
    "names, masks",
    [
        (["a.jpg", "a_mask.png", "b.jpg"], ["a_mask.png"]),
        (["a.png", "a-GT.png", "a.Masks.tif", "a label.png"], ["a-GT.png", "a.Masks.tif", "a label.png"]),
        (["a.jpg", "a.jpg.png"], ["a.jpg.png"]),
        (["a.jpg", "b/a_mask.png", "b_mask.png", "mask.png", "a_masked.png", "a.1.jpg", "a2.png"], []),
        (["a.b.jpg", "a.png", "unmask.png"], []),
        (["c.jpg.png", "d.jpg.png", "d.png"], []),  # of no c.jpg or d.jpg
    ],
)
def test_masks_beside_their_photographs_are_no_photographs(names, masks, tmp_path):
    (tmp_path / "b").mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert masks_beside(map(Path, names)) == [Path(name) for name in masks]
    expected = {tmp_path / name for name in {*names} - {*masks}}
    assert {*photographs(tmp_path).values()} == expected
    assert {*photographs(tmp_path / "**" / "*.*").values()} == expected
    said = f"passed over {len(masks)} masks beside their photographs" if masks else ""
    assert unread_files_note([tmp_path]).startswith(said) and bool(unread_files_note([tmp_path])) == bool(masks)
    source = folder(tmp_path, images_only=True)
    assert {tmp_path / item.origin for item in source.items} == expected and len(source.notes) == bool(masks)
    if masks:
        with pytest.raises(ValueError, match=f"{len(masks)} masks are beside their images.*--mask-pattern"):
            folder(tmp_path)
    for name in masks:  # by its own name it is
        assert [*photographs(tmp_path / name).values()] == [tmp_path / name]
