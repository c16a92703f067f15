"""The layout that users describe themselves: patterns, lists, colours, values, photographs."""

import os

import numpy as np
import pytest
from PIL import Image
from trees import belong, crack, masks_of, pair, photo, truth

from cssr.cracks.masks import NO_DATA, pack_colour, parse_colours, parse_values, read_colours, read_mask
from cssr.dataset_preparation.masks import nearest, upright_size, widen
from cssr.dataset_preparation.pairing import compile_pattern
from cssr.dataset_preparation.sources import SOURCES
from cssr.utils.photographs import read_photograph


def folder(root, **options):
    return SOURCES.build({"name": "folder", **options}, root=root)


def keys(source) -> list[str]:
    return [item.key for item in source.items]


# ---- patterns ----


@pytest.mark.parametrize(
    ("image", "mask", "files"),
    [
        ("{stem}.jpg", "{stem}_mask.png", ["a.jpg a_mask.png", "deep/b.jpg deep/b_mask.png"]),
        ("{stem}.png", "{stem}_lab.png", ["a.png a_lab.png", "deep/b.png deep/b_lab.png"]),
        (
            "photos/{stem}.*",
            "truth/{stem}-gt.*",
            ["photos/a.JPG truth/a-gt.bmp", "photos/deep/b.png truth/deep/b-gt.tif"],
        ),
        ("{stem}/image.jpg", "{stem}/{stem}.png", ["a/image.jpg a/a.png"]),
        ("**/{stem}.jpg", "masks?/{stem}.*", ["x/y/a.jpg masks1/a.png"]),
    ],
)
def test_patterns_pair_files(tmp_path, image, mask, files):
    for number, names in enumerate(files):
        pair(*(tmp_path / name for name in names.split()), number)
    source = folder(tmp_path, image_pattern=image, mask_pattern=mask)
    assert keys(source) == ["a", "deep/b"][: len(files)] and belong(source)


def test_patterns_hold_the_split(tmp_path):
    for number, split in enumerate(("train", "val")):
        pair(tmp_path / f"{split}/i_{number}.jpg", tmp_path / f"gt/{split}/i_{number}.png", number)
    patterns = {"image_pattern": "{split}/{stem}.jpg", "mask_pattern": "gt/{split}/{stem}.png"}
    assert keys(folder(tmp_path, split="val", **patterns)) == ["i_1"]
    with pytest.raises(ValueError, match="choose with --split from: train, val$"):
        folder(tmp_path, **patterns)
    with pytest.raises(ValueError, match="--split val has no place in --mask-pattern"):
        folder(tmp_path, split="val", **{**patterns, "mask_pattern": "gt/train/{stem}.png"})


def test_letters_of_a_pattern_are_themselves():
    assert compile_pattern("a.b+(c)/{stem}.png").fullmatch("A.b+(c)/x/y.PNG")["stem"] == "x/y"
    assert not compile_pattern("a.png/{stem}").fullmatch("a_png/x")
    assert (
        not compile_pattern("**/{stem}.png").fullmatch("x/y.jpg")
        and compile_pattern("**/{stem}.png").fullmatch("x/y.png")["stem"] == "y"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_pattern": "{stem}.jpg"}, "--mask-pattern is missing; say where"),
        ({"mask_pattern": "{stem}.png"}, "--image-pattern is missing"),
        ({"image_pattern": "*.jpg", "mask_pattern": "{stem}.png"}, r"--image-pattern is '\*.jpg'; say where"),
        ({"image_pattern": "no/{stem}.jpg", "mask_pattern": "{stem}.png"}, "holds no no/NAME.jpg with NAME.png; point"),
        (
            {"image_pattern": "{stem}.jpg", "mask_pattern": "{stem}_m.png"},
            "missing mask: 1 of 1 .* add a_m.png or remove",
        ),
        ({"image_pattern": "**/{stem}.*", "mask_pattern": "{stem}_m.png"}, "duplicate key 'a'"),
        ({"image_pattern": "{stem}.jpg", "images_only": True, "mask_pattern": "x"}, "--mask-pattern x is about masks"),
        ({"image_pattern": "{stem}.gif", "images_only": True}, "no image below .* fits --image-pattern"),
        ({"threshold": 3, "crack_values": "1"}, "--threshold and --crack-values both say what is crack"),
        ({"group_pattern": "("}, "--group-pattern '\\(' is no regular expression"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(tmp_path, options, message):
    pair(tmp_path / "a.jpg", tmp_path / "a.png", 1)
    if "image_pattern" not in options:
        pair(tmp_path / "images/x.jpg", tmp_path / "masks/x.png", 1)
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, **options)


def test_images_alone_by_pattern(tmp_path):
    photo(tmp_path / "a/1.jpg", 1)
    photo(tmp_path / "b/2.jpg", 2)
    source = folder(tmp_path, images_only=True, image_pattern="b/{stem}.jpg")
    assert keys(source) == ["2"] and source.decide is None and source.items[0].mask is None


# ---- lists ----


@pytest.fixture
def four(tmp_path):
    for number, key in enumerate(("a", "b", "sub/c", "d.e")):
        pair(tmp_path / f"images/{key}.jpg", tmp_path / f"masks/{key}.png", number)
    return tmp_path


@pytest.mark.parametrize(
    "lines",
    ["a\nsub/c\n", "a.jpg\nc.jpg\n", "\ufeffimages/a.jpg masks/a.png\r\n\n# rest\nimages/sub/c.jpg masks/sub/c.png",
     "/far/away/a.jpg /far/a.png\n/far/away/c.jpg /far/c.png", "./images/a.jpg\nimages\\sub\\c.jpg", "A\nSUB/C.JPG"],
)  # fmt: skip
def test_a_list_names_pictures_in_many_ways(four, lines):
    (four / "list.txt").write_text(lines, encoding="utf-8")
    source = folder(four, name_list="list.txt")
    assert keys(source) == ["a", "sub/c"] and belong(source)


@pytest.mark.parametrize("place", ["images/{}.jpg", "train/images/{}.jpg"])
@pytest.mark.parametrize(
    ("pictures", "line", "key"),
    [
        (["my", "other"], "my photo.jpg", None),
        (["my", "my photo"], "my photo.jpg", "my photo"),
        (["my photo"], "my photo.jpg masks/my photo.png", "my photo"),
        (["my"], "my.jpg masks/other.png", None),
        (["my"], "my.jpg 1", "my"),
        (["my"], "my.jpg # blurred", "my"),
        (["#1", "2"], "#1.jpg", "#1"),
        (["001", "2"], "val/001.jpg", None),
        (["001", "2"], "./001.jpg", "001"),
        (["a/001", "b/001"], "b/001.jpg", "b/001"),
        (["a/001", "b/001"], "/far/b/001.jpg", None),
        (["A", "a"], "a.jpg", "a"),
        (["A", "a"], "A", "A"),
        (["a.b"], "a", None),
    ],
)
def test_a_line_takes_the_picture_that_it_names_or_none(tmp_path, place, pictures, line, key):
    for number, name in enumerate(pictures):
        image = place.format(name)
        pair(tmp_path / image, tmp_path / image.replace("images", "masks").replace(".jpg", ".png"), number)
    (tmp_path / "list.txt").write_text(f"# pictures\n{line}\n")
    how = {"image_pattern": "train/images/{stem}.jpg", "mask_pattern": "train/masks/{stem}.png"}
    how = how if place.startswith("train") else {}
    if key is None:
        with pytest.raises(ValueError, match=f"1 of 1 lines name no picture of the set, the first is '{line}'"):
            folder(tmp_path, name_list="list.txt", **how)
    else:
        assert keys(folder(tmp_path, name_list="list.txt", **how)) == [key]


def test_a_far_path_takes_no_picture_of_another_part(tmp_path):
    pair(tmp_path / "train/images/001.jpg", tmp_path / "train/masks/001.png", 0)
    patterns = {"image_pattern": "train/images/{stem}.jpg", "mask_pattern": "train/masks/{stem}.png"}
    (tmp_path / "list.txt").write_text("/far/val/images/001.jpg\n")
    with pytest.raises(ValueError, match="1 of 1 lines name no picture"):
        folder(tmp_path, name_list="list.txt", **patterns)
    (tmp_path / "list.txt").write_text("/far/train/001.jpg\n")
    assert keys(folder(tmp_path, name_list="list.txt", **patterns)) == ["001"]


def test_a_list_for_each_split(four):
    (four / "lists").mkdir()
    (four / "lists/val.txt").write_text("d.e\n")
    assert keys(folder(four, name_list="lists/{split}.txt", split="val")) == ["d.e"]
    with pytest.raises(ValueError, match="asks for a split; name it with --split"):
        folder(four, name_list="lists/{split}.txt")
    assert keys(folder(four, name_list="lists/val.txt", images_only=True)) == ["d.e"]
    patterns = {"image_pattern": "images/{stem}.jpg", "mask_pattern": "masks/{stem}.png"}
    assert keys(folder(four, name_list="lists/val.txt", **patterns)) == ["d.e"]


def test_a_list_takes_only_what_it_names(four):
    (four / "masks/b.png").unlink()
    (four / "list.txt").write_text("a")
    assert keys(folder(four, name_list="list.txt")) == ["a"]
    (four / "list.txt").write_text("a\nb")
    with pytest.raises(ValueError, match="missing mask: 1 of 2 "):
        folder(four, name_list="list.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nnone\nnaught", "2 of 3 lines name no picture of the set, the first is 'none'; .*--skip-unpaired"),
        ("a\nb\nimages/a.jpg", "names a picture twice: 'images/a.jpg'"),
        ("\n\n", "is empty"),
        (None, "cannot read the list .*list.txt"),
    ],
)
def test_lists_that_do_not_fit_are_refused(four, text, message):
    if text is not None:
        (four / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        folder(four, name_list="list.txt")


def test_lists_of_another_encoding_are_read_and_pipes_refused(four):
    (four / "list.txt").write_text("a\n", encoding="utf-16")
    assert keys(folder(four, name_list="list.txt")) == ["a"]
    os.mkfifo(four / "pipe.txt")
    with pytest.raises(ValueError, match="cannot read the list pipe.txt: .* is no regular file"):
        folder(four, name_list="pipe.txt")


def test_a_list_is_named_below_the_root_as_the_index_keeps_it(four):
    with pytest.raises(ValueError, match="absolute path; give it relative to --root"):
        folder(four, name_list=str(four / "list.txt"))


def test_a_name_that_two_pictures_have_is_none(four):
    pair(four / "images/other/c.jpg", four / "masks/other/c.png", 9)
    (four / "list.txt").write_text("c")
    with pytest.raises(ValueError, match="1 of 1 lines name no picture"):
        folder(four, name_list="list.txt")


def test_what_has_no_partner_can_be_passed_over(four):
    (four / "masks/a.png").unlink()
    (four / "images/b.jpg").unlink()
    with pytest.raises(ValueError, match="--skip-unpaired"):
        folder(four)
    source = folder(four, skip_unpaired=True)
    assert keys(source) == ["d.e", "sub/c"] and belong(source)
    assert source.notes == (
        "passed over 1 images without mask, the first is images/a.jpg",
        "passed over 1 masks without image, the first is masks/b.png",
    )
    for path in (four / "images").rglob("*.jpg"):
        path.rename(path.with_name("x" + path.name))
    with pytest.raises(ValueError, match="missing mask: 3 of 3"):
        folder(four, skip_unpaired=True)


# ---- what is crack ----


def coloured(path, number: int) -> None:
    colours = np.zeros((6, 8, 3), np.uint8)
    colours[0], colours[crack(number)] = (0, 0, 255), (255, 0, 0)
    truth(path, colours)


@pytest.mark.parametrize("text", ["255,0,0", "#FF0000", "255,0,0 #102030", "255,0,0;16,32,48"])
def test_cracks_by_colour(tmp_path, text):
    photo(tmp_path / "images/a.jpg", 20)
    coloured(tmp_path / "masks/a.png", 20)
    source = folder(tmp_path)
    with pytest.raises(
        ValueError, match="coloured .0,0,0 0,0,255 255,0,0.; name the colours of cracks with --crack-colors R,G,B"
    ):
        source.decide(source.items)
    source = folder(tmp_path, crack_colors=text)
    assert belong(source) and source.decide(source.items).sentence.startswith("crack = 255,0,0")
    assert ("(16,32,48 occurs in no mask)" in source.decide(source.items).sentence) == (len(parse_colours(text)) == 2)


def test_a_colour_that_no_mask_has_is_refused(tmp_path):
    photo(tmp_path / "images/a.jpg", 20)
    coloured(tmp_path / "masks/a.png", 20)
    source = folder(tmp_path, crack_colors="254,0,0")
    with pytest.raises(ValueError, match="no mask holds 254,0,0 .--crack-colors.; they hold 0,0,0, 0,0,255, 255,0,0"):
        source.decide(source.items)


@pytest.mark.parametrize("text", ["1,2", "1,2,256", "red", "", "#FF00", "1,2,-3"])
def test_colours_written_wrongly_are_refused(text):
    with pytest.raises(ValueError, match="--crack-colors has .*; write R,G,B"):
        parse_colours(text)


def test_cracks_by_value(tmp_path):
    labels = np.zeros((6, 8), np.uint8)
    labels[0], labels[1], labels[2] = 1, 2, 3
    photo(tmp_path / "images/a.jpg", 1)
    truth(tmp_path / "masks/a.png", labels)
    found = masks_of(folder(tmp_path, crack_values="1, 3"))["a"]
    assert found[[0, 2]].all() and not found[[1, 3]].any()
    source = folder(tmp_path, crack_values="7")
    with pytest.raises(ValueError, match="no mask holds 7 .--crack-values.; they hold 0, 1, 2, 3"):
        source.decide(source.items)
    with pytest.raises(ValueError, match="--crack-values is '1;3'"):
        parse_values("1;3")


def test_masks_are_resized_and_widened_when_asked_to(tmp_path):
    photo(tmp_path / "images/a.jpg", 1)
    truth(tmp_path / "masks/a.png", np.array([[0, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 0]], np.uint8))
    with pytest.raises(ValueError, match="8x6, but its mask is 4x3; .*--resize-masks"):
        folder(tmp_path).items[0].mask()
    resized = masks_of(folder(tmp_path, resize_masks=True))["a"]
    assert resized.sum() == 4 and resized[2:4, 2:4].all()
    assert masks_of(folder(tmp_path, resize_masks=True, dilate=1))["a"].sum() == 12


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_colours_of_masks_of_many_kinds(tmp_path, mode):
    path = truth(tmp_path / "m.png", (crack(9) * 255).astype(np.uint8), mode)
    assert (read_colours(path) == np.where(crack(9), pack_colour(255, 255, 255), 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_upright_as_photographs_are(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    drawn = Image.fromarray((crack(9)[:6] * 255).astype(np.uint8))
    drawn.putpixel((1, 1), 255)  # of no symmetry
    drawn.save(tmp_path / "m.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "m.png"), read_photograph(tmp_path / "m.png")[..., 0])
    assert (read_colours(tmp_path / "m.png") > 0).sum() == (np.asarray(drawn) > 0).sum()


def test_transparent_masks_are_refused(tmp_path):
    planes = np.zeros((6, 8, 4), np.uint8)
    planes[2] = (0, 0, 0, 255)
    path = truth(tmp_path / "m.png", planes)
    with pytest.raises(ValueError, match="partly transparent; name what is drawn in it with --crack-colors"):
        read_mask(path)
    assert (read_colours(path) == np.where(np.arange(6)[:, None] == 2, 0, NO_DATA)).all()
    assert (read_mask(path, transparent=True) == read_colours(path)).all()


def test_widened_cracks_end_where_the_distance_does():
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    rows, columns = np.mgrid[-4:5, -4:5]
    for radius in (1, 2, 3):
        assert (widen(mask, radius) == (rows**2 + columns**2 <= radius**2)).all()
    assert not widen(np.zeros((3, 3), bool), 2).any() and widen(np.ones((3, 3), bool), 2).all()


def test_nearest_takes_the_value_under_the_centre():
    values = np.arange(12).reshape(3, 4)
    assert (nearest(values, 6, 8) == np.kron(values, np.ones((2, 2), int))).all()
    assert (nearest(nearest(values, 9, 12), 3, 4) == values).all()
    assert nearest(values, 1, 1).tolist() == [[6]]


def test_the_size_of_a_picture_is_its_upright_one(tmp_path):
    exif = Image.Exif()
    for turn, size in ((1, (6, 8)), (3, (6, 8)), (6, (8, 6)), (8, (8, 6))):
        exif[0x0112] = turn
        assert upright_size(photo(tmp_path / "a.jpg", 1, (6, 8), exif=exif)) == size
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="a.jpg: cannot read the image"):
        upright_size(tmp_path / "a.jpg")


# ---- photographs ----


def test_groups_by_expression(tmp_path):
    for number, key in enumerate(("bridge1_0_1", "bridge1_0_2", "wall")):
        pair(tmp_path / f"images/{key}.jpg", tmp_path / f"masks/{key}.png", number)
    assert [item.group for item in folder(tmp_path).items] == [None] * 3
    for pattern in (r"^(.+?)_\d+_\d+$", r"^[a-z]+\d"):
        found = folder(tmp_path, group_pattern=pattern).items
        assert [item.group for item in found] == ["bridge1", "bridge1", "wall"]
    only = folder(tmp_path, images_only=True, group_pattern="^[a-z]+").items
    assert [item.group for item in only] == ["bridge", "bridge", "wall"]


@pytest.mark.parametrize("threshold", [300, 255, -1])
def test_a_threshold_that_no_grey_value_crosses_is_refused(tmp_path, threshold):
    with pytest.raises(ValueError, match=f"threshold must be a whole number or null of 0 to 254, got {threshold}"):
        SOURCES.build({"name": "folder", "root": tmp_path, "threshold": threshold})
