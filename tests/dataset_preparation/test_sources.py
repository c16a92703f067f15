"""The dataset layouts, the rules that turn mask values into crack, and the drawn photographs."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from paths import SHARED, need
from PIL import Image
from scipy.io import savemat

from cssr.cracks.masks import decide_by_levels, read_mask
from cssr.dataset_preparation.sources import SOURCES, Item
from cssr.dataset_preparation.synthesis import meander, render


def pair(root: Path, name: str, mask: np.ndarray, folders=("images", "masks"), suffix: str = "png") -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(root / folders[0] / f"{name}.jpg")
    Image.fromarray(mask).save(root / folders[1] / f"{name}.{suffix}")


def items(*masks) -> list[Item]:
    return [
        Item(str(number), "", bytes, lambda m=mask: np.asarray(m, np.uint8).reshape(1, -1))
        for number, mask in enumerate(masks)
    ]


@pytest.mark.parametrize(
    ("masks", "sentence", "crack"),
    [
        (([0, 255], [0, 0]), "values {0, 255}: crack = 255", {255}),
        (([0, 1], [0, 0]), "values {0, 1}: crack = 1", {1}),
        (([1, 1],), "values {1}: crack = 1", {1}),
        (([0, 0],), "values {0}: crack = value > 127", set()),
        (([0, 200],), "values {0, 200}: crack = value > 127", {200}),
        ((range(256),), "values 0..255: crack = value > 127", set(range(128, 256))),
    ],
)
def test_one_rule_from_the_values_of_the_whole_set(masks, sentence, crack):
    rule = decide_by_levels(items(*masks))
    assert rule.sentence == sentence
    seen = np.unique(np.concatenate([np.ravel(mask) for mask in masks]))
    assert set(seen[rule.apply(seen)].tolist()) == crack


@pytest.mark.parametrize("masks", [([0, 100],), ([0, 2], [0, 1]), ([0, 204, 255],), ([0, 1], [0, 255])])
def test_unclear_values_need_a_threshold(masks):
    with pytest.raises(ValueError, match="--threshold"):
        decide_by_levels(items(*masks))
    rule = decide_by_levels(items(*masks), threshold=1)
    assert "crack = value > 1 (as chosen" in rule.sentence
    assert rule.apply(np.array([0, 1, 2, 255])).tolist() == [False, False, True, True]


def soft(highest: int) -> np.ndarray:
    """A mask with levels between, up to the highest."""
    return np.r_[np.zeros(64), np.linspace(0, highest, 36)]


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("low", [[0] * 90 + [1] * 10, [0] * 90 + [100] * 10, soft(90)])
def test_masks_that_the_others_rule_would_empty_are_an_error(low, lossy):
    masks = items(soft(255), low, soft(255))
    with pytest.raises(ValueError, match="1 mask has values above 0 but none above 127 .*; say with --threshold N"):
        decide_by_levels(masks, lossy=lossy)
    rule = decide_by_levels(masks, threshold=127, lossy=lossy)
    assert rule.notes and "1 mask has values above 0" in rule.notes[0]
    assert not decide_by_levels(masks, threshold=0, lossy=lossy).notes


def test_the_rim_of_a_crack_beside_the_picture_is_none():
    rim = np.zeros(10_000, np.uint8)
    rim[:15] = np.arange(15)
    assert not decide_by_levels(items(soft(255), rim)).notes


@pytest.mark.parametrize("threshold", [-1, 255, 300])
def test_a_threshold_that_takes_all_or_nothing_is_refused(threshold, tmp_path):
    pair(tmp_path, "a", np.full((4, 4), 255, np.uint8))
    with pytest.raises(ValueError, match=f"--threshold is {threshold}; give 0 to 254"):
        SOURCES.build("folder", root=tmp_path, threshold=threshold)


def test_jpeg_masks_of_0_and_1_are_unclear(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 20:40] = 1
    for name in "ab":
        pair(tmp_path, name, mask, suffix="jpg")
    source = SOURCES.build("folder", root=tmp_path)
    Image.fromarray(np.full((64, 64), 2, np.uint8)).save(tmp_path / "masks" / "b.jpg")
    with pytest.raises(ValueError, match="--threshold"):
        source.decide(source.items)


def test_jpeg_masks_have_values_between(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 5:14] = 255
    pair(tmp_path, "a", mask, suffix="jpg")
    source = SOURCES.build("folder", root=tmp_path)
    rule = source.decide(source.items)
    assert rule.sentence.endswith("crack = value > 127")
    assert (rule.apply(source.items[0].mask()) == (mask > 0)).all()


def test_mask_files_of_many_kinds(tmp_path):
    grey = np.tile(np.array([0, 255, 0, 255], np.uint8), (4, 1))
    path, opaque = tmp_path / "m.png", np.full((4, 4), 255, np.uint8)
    palette = Image.fromarray((grey > 0).astype(np.uint8))
    palette.putpalette([0, 0, 0, 255, 255, 255])
    for image in (
        Image.fromarray(grey),
        Image.fromarray(grey > 0),
        Image.fromarray(np.dstack([grey] * 3)),
        Image.fromarray(np.dstack([grey, grey, grey, opaque])),
        palette,
    ):
        image.save(path)
        assert (read_mask(path) == grey).all()
    for planes, why in (((grey, grey, grey, grey), "transparent"), ((grey, opaque, grey), "coloured")):
        Image.fromarray(np.dstack(planes)).save(path)
        with pytest.raises(ValueError, match=why):
            read_mask(path)
    Image.fromarray(grey.astype(np.uint16)).save(path)
    with pytest.raises(ValueError, match="8-bit"):
        read_mask(path)


def test_folder_ignores_what_is_no_image(tmp_path):
    pair(tmp_path / "val", "a", np.full((4, 4), 255, np.uint8))
    for name in ("images/Thumbs.db", "images/.hidden.jpg", "masks/notes.txt"):
        (tmp_path / "val" / name).write_bytes(b"")
    source = SOURCES.build("folder", root=tmp_path, split="val")
    assert [(item.key, item.origin) for item in source.items] == [("a", "val/images/a.jpg")]


def test_khanhha_names_its_sets(tmp_path):
    names = {
        "CRACK500_2016_1": "CRACK500",
        "noncrack_noncrack_wall_1": "noncrack",
        "CFD001": "CFD",
        "cracktree200_62": "cracktree200",
    }
    for name in names:
        pair(tmp_path / "test", name, np.zeros((4, 4), np.uint8), suffix="jpg")
    source = SOURCES.build("khanhha", root=tmp_path, split="test")
    assert {item.key: item.extra["set"] for item in source.items} == names
    assert source.decide(source.items).sentence == "JPEG masks, values 0..255: crack = value > 127"
    with pytest.raises(ValueError, match="choose with --split from: test"):
        SOURCES.build("khanhha", root=tmp_path)


def test_crackforest_takes_label_two(tmp_path):
    labels = np.array([[1, 2, 3], [4, 2, 1]], np.uint8)
    pair(tmp_path, "001", labels, ("image", "groundTruth"))
    (tmp_path / "groundTruth/001.png").unlink()
    savemat(tmp_path / "groundTruth/001.mat", {"groundTruth": {"Segmentation": labels, "Boundaries": labels * 0}})
    source = SOURCES.build("crackforest", root=tmp_path)
    rule = source.decide(source.items)
    assert "3 and 4" in rule.sentence and (rule.apply(source.items[0].mask()) == (labels == 2)).all()
    (tmp_path / "groundTruth/001.mat").write_bytes(b"no mat file")
    with pytest.raises(ValueError, match="001.mat"):
        source.items[0].mask()


def test_real_crackforest():
    source = SOURCES.build("crackforest", root=need(SHARED / "data/crackforest"))
    masks = [source.decide([]).apply(item.mask()) for item in source.items[:5]]
    assert len(source.items) == 24 and all(mask.shape == (320, 480) and 0 < mask.mean() < 0.1 for mask in masks)


def test_real_folder():
    source = SOURCES.build("folder", root=need(SHARED / "data/uav315"), split="val")
    assert len(source.items) == 63 and source.decide(source.items).sentence == "values {0, 255}: crack = 255"


def test_real_folder_by_patterns():
    root = need(SHARED / "data/uav315")
    named = SOURCES.build("folder", root=root, split="val")
    patterns = {"image_pattern": "{split}/images/{stem}.*", "mask_pattern": "{split}/masks/{stem}.*"}
    found = SOURCES.build({"name": "folder", **patterns}, root=root, split="val")
    assert [(item.key, item.origin) for item in found.items] == [(item.key, item.origin) for item in named.items]
    assert (found.items[5].mask() == named.items[5].mask()).all()


def test_drawn_pictures_depend_on_seed_and_number_alone():
    first, mask = render(5, 3, 96)
    render(5, 4, 96)
    again, same = render(5, 3, 96)
    assert first.dtype == np.uint8 and first.shape == (96, 96, 3) and mask.dtype == bool and mask.shape == (96, 96)
    assert (first == again).all() and (mask == same).all()
    assert (render(6, 3, 96)[0] != first).any() and (render(5, 4, 96)[0] != first).any()


def test_drawn_cracks_are_plausible():
    masks = [render(0, number)[1] for number in range(60)]
    cracked = [mask for mask in masks if mask.any()]
    assert 1 <= len(masks) - len(cracked) <= 20  # 15 % are meant to be empty
    widths = [
        2 * cv2.distanceTransform(np.pad(mask, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5).max() - 1
        for mask in cracked
    ]
    assert min(widths) >= 1 and max(widths) <= 12 and np.median(widths) < 7
    assert 0.005 < np.mean([mask.mean() for mask in masks]) < 0.04 and max(mask.mean() for mask in masks) < 0.12


def test_drawn_cracks_are_darker_than_their_surroundings():
    for number in range(12):
        photo, mask = render(2, number, empty_share=0)
        beside = cv2.dilate(mask.astype(np.uint8), np.ones((13, 13))).astype(bool) & ~mask
        assert photo[mask].mean() < 0.93 * photo[beside].mean()


def test_share_of_empty_pictures():
    assert not any(render(0, number, 48, empty_share=1)[1].any() for number in range(5))
    assert all(render(0, number, 64, empty_share=0)[1].any() for number in range(20))


def test_meander_keeps_its_ends_and_steps():
    path = meander(np.random.default_rng(0), np.zeros(2), np.array([100.0, 0]), 0.1, 0.9)
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [100, 0]
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() < 8 and np.abs(path[:, 1]).max() > 1


def test_synthetic_items_pair_picture_and_mask(tmp_path):
    source = SOURCES.build({"name": "synthetic", "count": 3, "size": 64, "seed": 1})
    for number, item in enumerate(source.items):
        photo, mask = render(1, number, 64)
        decoded = cv2.imdecode(np.frombuffer(item.image(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert (item.mask() == mask).all() and np.abs(decoded.astype(int) - photo).mean() < 6
    assert json.dumps(source.licence)


@pytest.mark.parametrize("size", [1, 4097, 10**9])
def test_drawn_photographs_have_a_size_that_fits_in_memory(size):
    with pytest.raises(ValueError, match=f"--size is {size} pixels; give 32 to 4096"):
        SOURCES.build({"name": "synthetic", "size": size})
