"""The layouts of published sets: which files belong together, which part, what is crack, which photograph."""

import numpy as np
import pytest
from PIL import Image
from trees import belong, crack, masks_of, pair, photo, truth

from cssr.dataset_preparation.groups import merged_group
from cssr.dataset_preparation.sources import SOURCES

# source, options, image and mask below the root, key and group; one pair each for number 1, 2, ...
SETS = [
    ("deepcrack", {"split": "train"}, "train_img/{}.jpg", "train_lab/{}.png",
     [("11125-1", "11125"), ("7Q3A-2", "7Q3A")]),
    ("deepcrack", {"split": "test"}, "DeepCrack/test_img/{}.jpg", "DeepCrack/test_lab/{}.png", [("a", "a")]),
    ("tut", {"split": "val"}, "val_img/{}.jpg", "val_lab/{}.png", [("1", None), ("2", None)]),
    ("crackvision12k", {"split": "val"}, "split_dataset_final/val/IMG/{}.png", "split_dataset_final/val/GT/{}.png",
     [("10810", None)]),
    ("crack500", {"split": "train"}, "traincrop/{}.jpg", "traincrop/{}.png",
     [("20160222_081011_1_361", "20160222_081011"), ("20160222_081011_641_361", "20160222_081011")]),
    ("crack500", {"split": "val"}, "valcrop/valcrop/{}.jpg", "valcrop/valcrop/{}.png",
     [("20160222_081031_1921_1081", "20160222_081031")]),
    ("crack500", {"split": "test"}, "test/images/{}.jpg", "test/masks/{}.png",
     [("20160222_080933_361_1", "20160222_080933")]),
    ("crack500", {"split": "train", "whole": True}, "traindata/traindata/{}.jpg", "traindata/traindata/{}_mask.png",
     [("20160222_081011", None)]),
    ("crackseg9k", {}, "Images/{}.png", "Masks/{}.png",
     [("CFD_001", "CFD_001"), ("Volker_DSC01604_207_156_1111_1253", "Volker_DSC01604")]),
    ("crackseg9k", {}, "images/{}.jpg", "masks/Masks/{}.png", [("GAPS384_train_0541_1_641", "GAPS384_train_0541")]),
    ("crackseg9k", {"split": "val"}, "img_dir/val/{}.png", "ann_dir/val/{}.png",
     [("DeepCrack_11170-1", "DeepCrack_11170")]),
    ("cracktree", {}, "cracktree200rgb/{}.jpg", "cracktree200_gt/{}.png", [("6192", None)]),
    ("cracktree", {}, "CrackTree260/{}.JPG", "gt/{}.bmp", [("6192", None), ("DSCN6428", None)]),
    ("cracktree", {}, "images/{}.jpg", "masks/{}.png", [("6192", None)]),
    ("chase_db1", {}, "Image_{}.jpg", "Image_{}_1stHO.png",
     [("01L", "child 01"), ("01R", "child 01"), ("14R", "child 14")]),
    ("chase_db1", {"observer": 2}, "images/Image_{}.png", "masks/Image_{}_2ndHO.png", [("02L", "child 02")]),
    ("massachusetts_roads", {"split": "train"}, "tiff/train/{}.tiff", "tiff/train_labels/{}.tif", [("1_15", None)]),
    ("massachusetts_roads", {"split": "valid"}, "mnih/valid/sat/{}.tiff", "mnih/valid/map/{}.tif", [("1", None)]),
    ("massachusetts_roads", {"split": "testing"}, "testing/input/{}.png", "testing/output/{}.png", [("img-1", None)]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "image", "mask", "keys"), SETS)
def test_pairs_of_published_layouts(tmp_path, name, options, image, mask, keys):
    for number, (key, _) in enumerate(keys, 1):
        pair(tmp_path / image.format(key), tmp_path / mask.format(key), number)
    (tmp_path / "README.md").write_text("not a picture")
    source = SOURCES.build({"name": name, **options}, root=tmp_path)
    assert [(item.key, item.group) for item in source.items] == sorted(keys)
    assert source.items[0].origin == image.format(source.items[0].key)
    assert belong(source) and source.name == name
    for item in source.items:
        files = {path.relative_to(tmp_path).as_posix() for path in item.files}
        assert files == {item.origin, mask.format(item.key)}


PARTED = ["deepcrack", "tut", "crackvision12k", "crack500", "uav75", "s2ds", "massachusetts_roads"]


@pytest.mark.parametrize("name", PARTED)
def test_parts_are_named(tmp_path, name):
    layout = {
        "crackvision12k": "{0}/IMG/{1}",
        "crack500": "{0}crop/{1}",
        "s2ds": "{0}/{1}",
        "massachusetts_roads": "tiff/{0}/{1}",
    }.get(name, "{0}_img/{1}")
    mask = layout.replace("_img", "_lab").replace("IMG", "GT").replace("tiff/{0}", "tiff/{0}_labels")
    suffix = {"s2ds": ("x.png", "x_lab.png")}.get(name, ("x.jpg", "x.png"))
    for split in ("train", "test"):
        pair(tmp_path / layout.format(split, suffix[0]), tmp_path / mask.format(split, suffix[1]), 3)
    with pytest.raises(ValueError, match="choose with --split from: test, train$"):
        SOURCES.build(name, root=tmp_path)
    with pytest.raises(ValueError, match="unknown split 'trian': choose with --split from: test, train$"):
        SOURCES.build(name, root=tmp_path, split="trian")
    assert [item.key for item in SOURCES.build(name, root=tmp_path, split="train").items] == ["x"]


ALL = sorted({*PARTED, "crackseg9k", "cracktree", "chase_db1", "nha12d", "pairs", "coco", "labelme", "csbsr_test"})


@pytest.mark.parametrize("name", ALL)
def test_what_is_no_such_set_is_refused_in_a_line(tmp_path, name):
    photo(tmp_path / "elsewhere/a.gif", 1)
    cases = [(tmp_path, {}), (tmp_path / "nowhere", {})]
    cases += [(tmp_path, {"split": "train"})] * ("split" in SOURCES.parameters(name))
    for root, options in cases:
        with pytest.raises(ValueError, match="--root|--split") as caught:
            SOURCES.build({"name": name, **options}, root=root)
        assert "\n" not in str(caught.value)


def test_files_without_partner_are_refused(tmp_path):
    for number, key in enumerate("abc"):
        pair(tmp_path / f"train_img/{key}.jpg", tmp_path / f"train_lab/{key}.png", number)
    (tmp_path / "train_lab/b.png").unlink()
    with pytest.raises(
        ValueError, match=r"missing mask: 1 of 3 images .*b.jpg; add train_lab/b.\* or remove the image$"
    ):
        SOURCES.build("deepcrack", root=tmp_path, split="train")
    (tmp_path / "train_img/b.jpg").unlink()
    (tmp_path / "train_img/c.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"missing image: 1 of 2 masks .*c.png; add train_img/c.\* or remove the mask$"
    ):
        SOURCES.build("deepcrack", root=tmp_path, split="train")


def test_hidden_files_and_archives_litter_do_not_count(tmp_path):
    pair(tmp_path / "train_img/a.jpg", tmp_path / "train_lab/a.png", 1)
    for litter in ("train_img/.a.jpg", "__MACOSX/train_img/a.jpg", "train_img/Thumbs.db"):
        (tmp_path / litter).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / litter).write_bytes(b"")
    assert len(SOURCES.build("deepcrack", root=tmp_path, split="train").items) == 1


def test_crackseg9k_lists_and_bad_pairs(tmp_path):
    for number, key in enumerate("abcd"):
        pair(tmp_path / f"Images/{key}.png", tmp_path / f"Masks/{key}.png", number)
    (tmp_path / "Masks/d.png").unlink()
    (tmp_path / "train.txt").write_text("a.png\nc.png\n")
    (tmp_path / "test.txt").write_text("b.png\nd.png\ngone.png\n")
    train = SOURCES.build("crackseg9k", root=tmp_path, split="train")
    assert [item.key for item in train.items] == ["a", "c"] and belong(train) and not train.notes
    with pytest.raises(ValueError, match="there is no val.txt; choose with --split from: test, train"):
        SOURCES.build("crackseg9k", root=tmp_path, split="val")
    with pytest.raises(ValueError, match="1 of 3 lines name no picture .*'gone.png'.*--skip-unpaired"):
        SOURCES.build("crackseg9k", root=tmp_path, split="test")
    test = SOURCES.build({"name": "crackseg9k", "skip_unpaired": True}, root=tmp_path, split="test")
    assert [item.key for item in test.items] == ["b"]
    assert test.notes == (
        "passed over 1 names of test.txt without file, the first is gone.png",
        "passed over 1 images without mask, the first is Images/d.png",
    )
    with pytest.raises(ValueError, match="missing mask: 1 of 4 .*--skip-unpaired"):
        SOURCES.build("crackseg9k", root=tmp_path)


def test_what_is_beside_the_masks_is_none(tmp_path):
    pair(tmp_path / "images/a.jpg", tmp_path / "masks/Masks/a.png", 1)
    truth(tmp_path / "masks/Heads/a.png", crack(2))
    source = SOURCES.build("crackseg9k", root=tmp_path)
    assert [item.key for item in source.items] == ["a"] and belong(source)


def test_masks_of_half_the_size(tmp_path):
    photo(tmp_path / "Images/a.png", 1)
    truth(tmp_path / "Masks/a.png", np.array([[0, 0, 255, 0], [0, 0, 0, 0], [0, 255, 0, 0]], np.uint8))
    source = SOURCES.build("crackseg9k", root=tmp_path)
    with pytest.raises(
        ValueError, match="Images/a.png is 8x6, but its mask is 4x3; give both the same.*--resize-masks"
    ):
        source.decide(source.items)
    source = SOURCES.build({"name": "crackseg9k", "resize_masks": True}, root=tmp_path)
    found = masks_of(source)["a"]
    assert found.sum() == 8 and found[:2, 4:6].all() and found[4:, 2:4].all()
    truth(tmp_path / "Masks/a.png", np.zeros((6, 4), np.uint8))
    with pytest.raises(ValueError, match="8x6, but its mask is 4x6; .*differ in shape"):
        source.items[0].mask()


def test_a_picture_that_is_on_its_side_has_an_upright_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(tmp_path / "train_img/a.jpg", 1, (8, 6), exif=exif)
    truth(tmp_path / "train_lab/a.png", (crack(1) * 255).astype(np.uint8))
    assert masks_of(SOURCES.build("deepcrack", root=tmp_path, split="train"))["a"].sum() == 1


def rgba(grey: np.ndarray) -> np.ndarray:
    return np.dstack([grey, grey, grey, np.full_like(grey, 255)])


def test_uav75_planking_is_background(tmp_path):
    levels = np.zeros((6, 8), np.uint8)
    levels[0], levels[3, 2] = 204, 255
    for key in ("DSC00550", "DSC00550b"):
        photo(tmp_path / f"train_img/{key}.jpg", 1)
        truth(tmp_path / f"train_lab/{key}.png", rgba(levels))
    source = SOURCES.build("uav75", root=tmp_path, split="train")
    assert {item.group for item in source.items} == {"DSC00550"}
    assert all((mask == (levels == 255)).all() for mask in masks_of(source).values())
    assert "204 is planking" in source.decide(source.items).sentence
    wide = masks_of(SOURCES.build({"name": "uav75", "dilate": 1}, root=tmp_path, split="train"))["DSC00550"]
    assert wide.sum() == 5 and wide[3, 1:4].all() and wide[2:5, 2].all()
    levels[1, 1] = 100
    truth(tmp_path / "train_lab/DSC00550.png", rgba(levels))
    with pytest.raises(ValueError, match="mask of train_img/DSC00550.jpg holds 100, but this set knows 255 crack"):
        source.decide(source.items)


def test_s2ds_cracks_are_white(tmp_path):
    colours = np.zeros((6, 8, 3), np.uint8)
    colours[0], colours[1], colours[2, 3] = (255, 0, 0), (0, 255, 255), (255, 255, 255)
    photo(tmp_path / "test/201.png", 1)
    truth(tmp_path / "test/201_lab.png", colours)
    source = SOURCES.build("s2ds", root=tmp_path, split="test")
    assert np.argwhere(masks_of(source)["201"]).tolist() == [[2, 3]]
    assert source.decide(source.items).sentence.startswith("crack = 255,255,255 (other colours are")
    colours[2, 3] = 0
    truth(tmp_path / "test/201_lab.png", colours)
    with pytest.raises(ValueError, match="no mask holds 255,255,255 .*they hold 0,0,0, 0,255,255, 255,0,0"):
        source.decide(source.items)


def test_nha12d_any_colour_is_crack(tmp_path):
    for number, part in enumerate(("Asphalt_pavement_FD", "Concrete_pavement_VD")):
        colours = np.zeros((6, 8, 3), np.uint8)
        colours[number] = ((84, 105, 77), (191, 156, 138))[number]
        photo(tmp_path / f"NHA12D_dataset/{part}/Raw_images/X_{number}.jpg", 1)
        truth(tmp_path / f"NHA12D_dataset/{part}/Masks/X_{number}.png", colours)
    masks = masks_of(SOURCES.build("nha12d", root=tmp_path))
    assert all(mask[number].all() and mask.sum() == 8 for number, mask in enumerate(masks.values())) and len(masks) == 2
    part = SOURCES.build("nha12d", root=tmp_path, split="Concrete_pavement_VD")
    assert [item.key for item in part.items] == ["X_1"]
    with pytest.raises(ValueError, match="choose with --split from: Asphalt_pavement_FD, Concrete_pavement_VD"):
        SOURCES.build("nha12d", root=tmp_path, split="FD")


def test_cracktree_lines_can_be_widened(tmp_path):
    pair(tmp_path / "image/1.jpg", tmp_path / "gt/1.bmp", 18)
    source = SOURCES.build("cracktree", root=tmp_path)
    assert masks_of(source)["1"].sum() == 1 and "--dilate" in source.notes[0]
    source = SOURCES.build({"name": "cracktree", "dilate": 2}, root=tmp_path)
    assert masks_of(source)["1"].sum() == 13 and not source.notes  # a disc of radius 2
    assert source.decide(source.items).sentence.endswith("crack = 255, widened by 2 pixels on each side")
    with pytest.raises(ValueError, match="dilate must be a whole number of 0 to 1000"):
        SOURCES.build({"name": "cracktree", "dilate": -1}, root=tmp_path)


def test_chase_db1_parts_keep_children_whole(tmp_path):
    for child in (1, 10, 11, 14):
        for eye in "LR":
            for mark in ("1stHO", "2ndHO"):
                pair(tmp_path / f"Image_{child:02}{eye}.jpg", tmp_path / f"Image_{child:02}{eye}_{mark}.png", child)
    parts = {part: SOURCES.build("chase_db1", root=tmp_path, split=part).items for part in ("train", "test")}
    assert [item.key for item in parts["train"]] == ["01L", "01R", "10L", "10R"]
    assert [item.key for item in parts["test"]] == ["11L", "11R", "14L", "14R"]
    assert len(SOURCES.build("chase_db1", root=tmp_path).items) == 8
    for options, part in (({"observer": 3}, "--observer is 3"), ({"split": "val"}, "from: train, test")):
        with pytest.raises(ValueError, match=part):
            SOURCES.build({"name": "chase_db1", **options}, root=tmp_path)


def test_a_road_photograph_without_mask(tmp_path):
    for number, key in enumerate("ab"):
        pair(tmp_path / f"training/input/{key}.png", tmp_path / f"training/output/{key}.png", number)
    (tmp_path / "training/output/a.png").unlink()
    options = {"name": "massachusetts_roads", "split": "training"}
    with pytest.raises(ValueError, match="missing mask: 1 of 2 .*--skip-unpaired"):
        SOURCES.build(options, root=tmp_path)
    source = SOURCES.build({**options, "skip_unpaired": True}, root=tmp_path)
    assert [item.key for item in source.items] == ["b"] and source.notes[0].startswith(
        "passed over 1 images without mask, the first is "
    )


@pytest.mark.parametrize(
    ("key", "photograph"),
    [
        ("CRACK500_20160222_080850_1281_361", "CRACK500_20160222_080850"),
        ("Rissbilder_for_Florian_9S6A2782_20_1_2_3", "Rissbilder_for_Florian_9S6A2782"),
        ("noncrack_noncrack_concrete_wall_9_27.jpg", "noncrack_noncrack_concrete_wall_9"),
        ("DeepCrack_11170-1", "DeepCrack_11170"),
        ("cracktree200_6192", "cracktree200_6192"),
        ("CFD_002", "CFD_002"),
        ("017_24", "017"),
    ],
)
def test_photographs_of_merged_sets(key, photograph):
    assert merged_group(key) == photograph
