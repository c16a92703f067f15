"""Shapes as masks, and the annotation files that hold them: COCO and LabelMe.

The run lengths in text, and the areas of the polygons, are those of pycocotools 2.0.
"""

import base64
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from trees import crack, photo

from cssr.dataset_preparation.shapes import disc_to_mask, lines_to_mask, polygons_to_mask, runs_to_mask
from cssr.dataset_preparation.sources import SOURCES

SQUARE = np.array([[10, 10], [20, 10], [20, 20], [10, 20.0]])


def fill(*polygons, height=40, width=40) -> np.ndarray:
    return polygons_to_mask([np.reshape(polygon, (-1, 2)) for polygon in polygons], height, width)


def square(top: int, left: int, side: int, height=40, width=40) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


# ---- shapes ----


def test_a_polygon_holds_the_pixels_whose_centres_it_holds():
    assert (fill(SQUARE) == square(10, 10, 10)).all()
    assert (fill(SQUARE[::-1]) == square(10, 10, 10)).all()
    assert (fill(SQUARE + 0.4) == square(10, 10, 10)).all() and (fill(SQUARE + 0.6) == square(11, 11, 10)).all()
    triangle = fill([0, 0, 8, 0, 0, 8])
    rows, columns = np.mgrid[:40, :40] + 0.5
    assert (triangle == (rows + columns < 8)).all()


def test_random_polygons_against_the_angle_that_they_turn_by():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:30, :34] + 0.5
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        polygon = np.array([17.03, 15.01]) + (rng.uniform(8, 20, 9) * np.array([np.cos(angles), np.sin(angles)])).T
        x, y = polygon[:, 0, None, None] - columns, polygon[:, 1, None, None] - rows
        after_x, after_y = np.roll(x, -1, 0), np.roll(y, -1, 0)
        turn = np.arctan2(x * after_y - y * after_x, x * after_x + y * after_y).sum(0)
        assert (fill(polygon, height=30, width=34) == (np.abs(turn) > np.pi)).all()


def test_several_polygons_are_joined_and_one_that_crosses_itself_is_not():
    assert (fill(SQUARE, SQUARE + 5) == (square(10, 10, 10) | square(15, 15, 10))).all()
    bow = fill([4, 4, 20, 20, 20, 4, 4, 20])
    assert bow[12, 5] and bow[12, 18] and not bow[5, 12]


def test_polygons_end_where_the_image_does():
    assert (fill(SQUARE - 15) == square(0, 0, 5)).all()
    assert (fill(SQUARE + 25) == square(35, 35, 5)).all()
    assert not fill(SQUARE + 100).any() and not fill(SQUARE - 100).any()
    assert fill([-9, -9, 99, -9, 99, 99, -9, 99]).all()


def test_slivers_neither_break_nor_vanish():
    for sliver in ([2, 2, 30, 5, 30, 5.4, 2, 2.3], [3, 3.6, 33, 3.9, 33, 4.1], [7.1, 2, 7.3, 2, 20.2, 38, 20, 38]):
        mask = fill(sliver)
        assert cv2.connectedComponents(mask.astype(np.uint8))[0] == 2 and 20 <= mask.sum() <= 80
    assert fill([5, 5, 5, 5, 5, 5]).sum() == 1


def test_a_crack_keeps_its_width():
    rng = np.random.default_rng(1)
    for width in (1.5, 3, 6):
        areas = []
        for _ in range(40):
            angle = rng.uniform(0, np.pi)
            along, across = np.array([np.cos(angle), np.sin(angle)]) * 40, np.array([-np.sin(angle), np.cos(angle)])
            middle, across = rng.uniform(58, 62, 2), across * width / 2
            corners = [
                middle - along - across,
                middle + along - across,
                middle + along + across,
                middle - along + across,
            ]
            areas.append(fill(np.ravel(corners), height=120, width=120).sum())
        assert np.mean(areas) == pytest.approx(80 * width, rel=0.02)  # cv2.fillPoly: 80 more


def test_lines_are_as_wide_as_said():
    for thickness in (1, 3, 5):
        line = lines_to_mask([np.array([[-9, 10.5], [99, 10.5]])], 20, 30, thickness)
        assert (line.sum(0) == thickness).all()
    slanted = lines_to_mask([np.array([[10, 10], [90, 60]])], 70, 100, 4)
    assert slanted.sum() == pytest.approx(np.hypot(80, 50) * 4 + np.pi * 4, rel=0.02)
    corner = lines_to_mask([np.array([[2.5, 3.5], [12.5, 3.5], [12.5, 9.5]])], 20, 20, 1)
    assert corner.sum() == 17 and corner[3, 2:13].all() and corner[3:10, 12].all()


def test_discs():
    disc = disc_to_mask((10, 10), 5, 20, 20)
    assert disc.sum() == pytest.approx(np.pi * 25, rel=0.05) and (disc == disc[::-1, ::-1]).all()


def test_run_lengths():
    mask = np.zeros((6, 9), bool)
    mask[1:4, 2:7] = mask[5, 0] = mask[0, 8] = True
    assert (runs_to_mask("5172L00000005NM", 6, 9) == mask).all()
    assert (runs_to_mask([5, 1, 7, *[3] * 9, 8, 1, 5], 6, 9) == mask).all()
    cross = np.zeros((40, 50), bool)
    cross[5:35, 20] = cross[7, 3:48] = True
    text = "o31W10000000000000000000000000000000Nm0WOSOk0000000000000000000000000000000000000000000000000000Y2"
    assert (runs_to_mask(text, 40, 50) == cross).all()
    assert not runs_to_mask([12], 3, 4).any() and runs_to_mask([0, 12], 3, 4).all()
    for wrong in ([11], [5, -1, 8], []):
        with pytest.raises(ValueError, match="run lengths make"):
            runs_to_mask(wrong, 3, 4)


# ---- COCO ----

POLYGON = [[1, 1, 4, 1, 4, 3, 1, 3]]  # rows 1 and 2, columns 1 to 3


def coco(root, place="annotations/instances_train.json", folder="train", **changes) -> dict:
    """Two pictures: the first with a polygon and run lengths, the second with nothing."""
    for number, name in enumerate(("a.jpg", "b.jpg")):
        photo(root / folder / name, number)
    found = {
        "images": [{"id": n, "file_name": name, "height": 6, "width": 8} for n, name in ((7, "a.jpg"), (3, "b.jpg"))],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": POLYGON},
            {"id": 2, "image_id": 7, "category_id": 1, "segmentation": {"counts": [40, 2, 6], "size": [6, 8]}},
        ],
        "categories": [{"id": 0, "name": "thing"}, {"id": 1, "name": "crack"}, {"id": 2, "name": "spalling"}],
        **changes,
    }  # fmt: skip
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(json.dumps(found))
    return found


def expected() -> np.ndarray:
    mask = np.zeros((6, 8), bool)
    mask[1:3, 1:4] = mask[4:6, 6] = True
    return mask


def read(root, **options):
    return SOURCES.build({"name": "coco", **options}, root=root)


@pytest.mark.parametrize(
    ("place", "images", "options"),
    [
        ("annotations/instances_train.json", "train", {"split": "train"}),
        ("annotations/instances_train.json", "images/train", {"split": "train"}),
        ("train/_annotations.coco.json", "train", {"split": "train"}),
        ("annotations/instances_default.json", "images", {}),
        ("_annotations.coco.json", "", {}),
        ("deep/mine.json", "deep/photos", {"annotations": "deep/mine.json", "images": "deep/photos"}),
    ],
)
def test_coco_in_its_usual_places(tmp_path, place, images, options):
    coco(tmp_path, place, images)
    source = read(tmp_path, **options)
    rule = source.decide(source.items)
    assert [item.key for item in source.items] == ["a", "b"] and rule.sentence.endswith("crack = inside crack")
    assert (rule.apply(source.items[0].mask()) == expected()).all() and not source.items[1].mask().any()
    assert source.items[0].origin == f"{images}/a.jpg".lstrip("/") and len(source.items[0].image()) > 100


def test_coco_categories(tmp_path):
    found = coco(tmp_path)
    found["annotations"][1]["category_id"] = 2
    coco(tmp_path, annotations=found["annotations"])
    with pytest.raises(ValueError, match="several categories: crack, spalling; say with --categories"):
        read(tmp_path, split="train")
    alone = read(tmp_path, split="train", categories="crack").items[0].mask()
    assert alone.sum() == 6 and read(tmp_path, split="train", categories="crack, spalling").items[0].mask().sum() == 8
    with pytest.raises(ValueError, match="there is no 'crak' .did you mean crack"):
        read(tmp_path, split="train", categories="crak")
    coco(tmp_path, annotations=found["annotations"], categories=[{"id": n, "name": "crack"} for n in (1, 2)])
    assert read(tmp_path, split="train").items[0].mask().sum() == 8  # of two categories with one name


def test_coco_that_cannot_be_used_is_refused(tmp_path):
    found = coco(tmp_path)
    box = [{"id": 9, "image_id": 7, "category_id": 1, "segmentation": [], "bbox": [1, 1, 2, 2]}]
    for changes, message in (
        ({"annotations": box}, "annotation 9 of image 7 has no outline"),
        ({"annotations": [{**box[0], "segmentation": [[1, 2, 3, 4]]}]}, "has no outline"),
        ({"images": []}, "lists no images"),
        ({"images": [{"id": 1}]}, r"images\[0\] has no file_name"),
        ({"categories": None}, "categories must be a list, got None"),
        ({"images": [*found["images"], {**found["images"][0], "id": 8}]}, "duplicate key 'a'"),
        ({"images": [*found["images"], {**found["images"][0], "file_name": "c.jpg"}]}, "two images the same id"),
        ({"images": [*found["images"], {**found["images"][0], "id": 8, "file_name": "c.jpg"}]}, "1 of 3 .*--skip-unp"),
    ):
        coco(tmp_path, **changes)
        with pytest.raises(ValueError, match=message):
            read(tmp_path, split="train")
    coco(tmp_path, images=[found["images"][0], {**found["images"][1], "file_name": "c.jpg"}])
    source = read(tmp_path, split="train", skip_unpaired=True)
    assert [item.key for item in source.items] == ["a"] and source.notes == (
        "passed over 1 listed images without file, the first is c.jpg",
        f"1 images of {tmp_path / 'train'} are not listed in instances_train.json, the first is "
        f"{tmp_path / 'train/b.jpg'}",
    )
    with pytest.raises(ValueError, match="choose with --annotations from: annotations/instances_train.json"):
        read(tmp_path)
    with pytest.raises(ValueError, match="--images /x is an absolute path"):
        read(tmp_path, images="/x")
    (tmp_path / "annotations/instances_train.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged, no JSON: .*export it again as COCO annotations"):
        read(tmp_path, split="train")


def test_coco_ids_are_the_same_as_text_and_as_numbers(tmp_path):
    found = coco(tmp_path)
    for one in found["annotations"]:
        one.update(image_id=str(one["image_id"]), category_id=f" {one['category_id']}")
    coco(tmp_path, annotations=found["annotations"])
    source = read(tmp_path, split="train", categories="crack")
    assert (source.items[0].mask() == expected()).all() and not source.items[1].mask().any()


def test_coco_categories_that_no_annotation_is_of(tmp_path):
    found = coco(tmp_path)
    with pytest.raises(ValueError, match="--categories thing: of 2 annotations of .*json none is of it.*of: crack"):
        read(tmp_path, split="train", categories="thing")
    both = read(tmp_path, split="train", categories="crack,thing")
    assert both.items[0].mask().sum() == 8 and both.notes == ("no annotation is of category 'thing'",)
    found["annotations"][1]["category_id"] = 2
    coco(tmp_path, annotations=found["annotations"])
    notes = read(tmp_path, split="train", categories="crack").notes
    assert notes == ("left out 1 annotations of other categories: spalling (1)",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 8}, "1 of 2 annotations are of images that it does not list.*annotation 5 with image_id 8"),
        ({"category_id": 9}, "1 of 2 annotations are of categories .*annotation 5 with category_id 9"),
        ({"segmentation": {"counts": [40, 2, 6], "size": [8, 6]}}, r"annotation 5 of image 7 .*\[8, 6\].*\[6, 8\]"),
        ({"segmentation": {"counts": [40, 2, 6]}}, "annotation 5 of image 7 has run lengths of size None"),
        ({"segmentation": {"counts": [40, 2, 7], "size": [6, 8]}}, "annotation 5 .*make 49 pixels, not the 8x6"),
        ({"segmentation": {"counts": [40, None], "size": [6, 8]}}, "annotation 5 .*neither text nor whole numbers"),
        ({"segmentation": {"counts": "o" * 99999, "size": [6, 8]}}, "annotation 5 .*text with 'o'"),
        ({"segmentation": [[1, 1, float("nan"), 1, 4, 3]]}, "annotation 5 .*no list of polygons .*nan.*finite numbers"),
        ({"segmentation": [[1, 1, 10**400, 1, 4, 3]]}, "annotation 5 .*no list of polygons .*finite numbers"),
        ({"segmentation": [[1, 1, None, 1, 4, 3]]}, "annotation 5 .*no list of polygons .*None"),
        ({"segmentation": [["1", "1", "4", "1", "4", "3"]]}, "annotation 5 .*no list of polygons"),
        ({"segmentation": [[[1, 1], [4, 1], [4, 3]]]}, "annotation 5 .*no list of polygons"),
        ({"segmentation": [1, 1, 4, 1, 4, 3]}, "annotation 5 .*no list of polygons"),
        ({"segmentation": [[0.1, 0.2, 0.5, 0.2, 0.5, 0.9]]}, "annotation 5 .*relative .*0.1 to 0.5.*by 8x6"),
        ({"segmentation": [[1e308, 1, -1e308, 1, 2, 3]]}, "annotation 5 .*goes too far beyond its image of 8x6"),
        ({"segmentation": [[9, 1, 12, 1, 12, 3]]}, "annotation 5 .*outside of its image of 8x6 pixels .x 9 to 12"),
    ],
)  # fmt: skip
def test_coco_annotations_that_match_nothing_are_named(tmp_path, change, message):
    found = coco(tmp_path)
    coco(tmp_path, annotations=[found["annotations"][0], {**found["annotations"][0], "id": 5, **change}])
    with pytest.raises(ValueError, match=f"instances_train.json: .*{message}"):
        read(tmp_path, split="train")


def test_coco_outlines_beyond_the_image_are_counted_and_other_sizes_refused(tmp_path):
    found = coco(tmp_path)
    found["annotations"][0]["segmentation"] = [[1, 1, 40, 1, 40, 3, 1, 3]]
    coco(tmp_path, annotations=found["annotations"])
    (note,) = read(tmp_path, split="train").notes
    assert "cut 1 outlines off at the image's border, the first is " in note and "annotation 1 of image 7" in note
    for one in found["images"]:
        one.update(height=8, width=6)
    coco(tmp_path, images=found["images"], annotations=found["annotations"][:1])
    with pytest.raises(ValueError, match="a.jpg is 8x6, but .*instances_train.json says 6x8 of it"):
        read(tmp_path, split="train").items[0].mask()


def test_pictures_that_roboflow_multiplied_are_one_group(tmp_path):
    names = ("IMG_1_jpg.rf.0a1b.jpg", "IMG_1_jpg.rf.77.jpg", "IMG_2_png.rf.5.jpg")
    for name in names:
        photo(tmp_path / "train" / name, 1)
    images = [{"id": n, "file_name": name, "height": 6, "width": 8} for n, name in enumerate(names)]
    coco(tmp_path, "train/_annotations.coco.json", images=images, annotations=[])
    with pytest.raises(ValueError, match="several categories"):
        read(tmp_path, split="train")
    assert [i.group for i in read(tmp_path, split="train", categories="crack").items] == ["IMG_1", "IMG_1", "IMG_2"]


# ---- LabelMe ----


def shape(label="crack", kind="polygon", points=((1, 1), (4, 1), (4, 3), (1, 3)), **more) -> dict:
    return {"label": label, "shape_type": kind, "points": [list(point) for point in points], **more}


def labelled(root, key: str, *shapes, **more) -> None:
    photo(root / f"{key}.jpg", 1)
    text = json.dumps({"imageHeight": 6, "imageWidth": 8, "imageData": None, "shapes": list(shapes), **more})
    (root / f"{key}.json").write_text(text)


def drawn(root, **options) -> dict[str, np.ndarray]:
    source = SOURCES.build({"name": "labelme", **options}, root=root)
    rule = source.decide(source.items)
    return {item.key: rule.apply(item.mask()) for item in source.items}


def test_labelme_shapes(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(crack(9, (3, 4))).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    labelled(tmp_path, "polygon", shape())
    labelled(tmp_path, "rectangle", shape(kind="rectangle", points=((4, 3), (1, 1))), imageHeight=None)
    labelled(tmp_path, "circle", shape(kind="circle", points=((4, 3), (6, 3))))
    labelled(tmp_path, "line", shape(kind="linestrip", points=((0.5, 0.5), (7.5, 0.5), (7.5, 5.5))))
    labelled(tmp_path, "mask", shape(kind="mask", points=((2, 1), (5, 3)), mask=text))
    labelled(tmp_path, "empty")
    found = drawn(tmp_path)
    assert found["polygon"].sum() == 6 and (found["polygon"] == found["rectangle"]).all()
    assert found["circle"].sum() == 12 and found["line"].sum() == 13 and not found["empty"].any()
    assert np.argwhere(found["mask"]).tolist() == [[3, 3]]
    assert drawn(tmp_path, line_width=3)["line"].sum() > 20


def test_labelme_labels(tmp_path):
    (tmp_path / "val").mkdir()
    labelled(tmp_path / "val", "a", shape(), shape("rust", points=((5, 0), (8, 0), (8, 6), (5, 6))))
    with pytest.raises(ValueError, match=r"several labels: crack \(1\), rust \(1\); say with --labels"):
        drawn(tmp_path, split="val")
    assert drawn(tmp_path, split="val", labels="crack")["a"].sum() == 6
    assert drawn(tmp_path, split="val", labels="crack, rust")["a"].sum() == 24
    with pytest.raises(ValueError, match="there is no 'crck' .did you mean crack"):
        drawn(tmp_path, split="val", labels="crck")


def test_labelme_that_cannot_be_used_is_refused(tmp_path):
    labelled(tmp_path, "a", shape(kind="point", points=((1, 1),)))
    with pytest.raises(ValueError, match="'crack' of type point with 1 points has no area"):
        drawn(tmp_path)
    labelled(tmp_path, "a", shape())
    photo(tmp_path / "b.jpg", 2)
    with pytest.raises(ValueError, match="missing JSON: 1 of 2 images .*b.jpg.*--unlabelled-empty"):
        drawn(tmp_path)
    assert not drawn(tmp_path, unlabelled_empty=True)["b"].any()
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ValueError, match="missing image: 1 of 1 JSONs .*a.json"):
        drawn(tmp_path, unlabelled_empty=True)
    labelled(tmp_path, "a", {"label": "crack"})
    with pytest.raises(ValueError, match=r"a.json is damaged.* shapes\[0\] has no points; save it again as a LabelMe"):
        drawn(tmp_path, unlabelled_empty=True)
    with pytest.raises(ValueError, match="--line-width is 0"):
        drawn(tmp_path, line_width=0)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (
            [[1, 1, 2], [4, 1, 2], [4, 3, 2], [1, 3, 2]],
            r"a.json: shape 0 .'crack'. has a point of 3 numbers, \[1, 1, 2\]",
        ),
        ([[1, 1], [4], [4, 3]], "shape 0 .'crack'. has a point of 1 numbers"),
        ([[1, 1], [float("nan"), 1], [4, 3]], r"a.json is damaged.*shapes\[0\].points must be"),
        ([[1, 1], [None, 1], [4, 3]], r"a.json is damaged.*shapes\[0\].points must be"),
        ([[0.1, 0.1], [0.5, 0.1], [0.5, 0.9]], "shape 0 .'crack'. has coordinates relative to the image's sides"),
        ([[1, 1], [4, 1e300], [4, 3]], "shape 0 .'crack'. goes too far beyond its image of 8x6 pixels"),
        ([[1, 9], [4, 9], [4, 12]], "shape 0 .'crack'. is outside of its image of 8x6 pixels"),
    ],
)
def test_labelme_points_that_cannot_be_meant_are_named(tmp_path, points, message):
    labelled(tmp_path, "a", shape(points=points))
    with pytest.raises(ValueError, match=message):
        drawn(tmp_path)


def test_labelme_tells_what_it_leaves_out_and_of_other_images(tmp_path):
    labelled(tmp_path, "a", shape(), shape(label="rust"), imagePath="sub\\b.jpg")
    labelled(tmp_path, "b", shape(points=((1, 1), (40, 1), (40, 3))), imagePath="b.jpg")
    source = SOURCES.build({"name": "labelme", "labels": "crack"}, root=tmp_path)
    other, renamed, cut = source.decide(source.items).notes
    assert other == "left out 1 shapes of other labels: rust (1)"
    assert renamed.startswith("1 JSONs name another image than that beside them") and renamed.endswith("a.json of b")
    assert cut.startswith("cut 1 outlines off") and cut.endswith("b.json: shape 0 ('crack')")
    labelled(tmp_path, "b", shape(), imageHeight=8, imageWidth=6)
    with pytest.raises(ValueError, match="b.jpg is 8x6, but .*b.json says 6x8 of it"):
        drawn(tmp_path)
