"""Predicted cracks as annotations: read by the field's own tools, and back through the sources of shards."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cssr.annotate import main
from cssr.cracks.files import Georeference, Units, write_geojson, write_outlines
from cssr.cracks.measure import measure_cracks
from cssr.dataset_preparation.sources.coco import coco as coco_source
from cssr.survey import annotate, annotations

MAP = Georeference((0.01, 0.002, 500, 0.002, -0.01, 900), "urn:ogc:def:crs:EPSG::25832")


def results(folder, photos, name: str, mask: np.ndarray, scale: int = 1, place: Georeference | None = None):
    """A photograph, and results of prediction at so many mask pixels for one of its own; its stem."""
    height, width = (side // scale for side in mask.shape)
    photos.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(photos / f"{name}.png")
    prob = mask.astype(np.uint8) * 204
    cracks = measure_cracks(prob, prob=prob)
    facts = {"name": str(photos / f"{name}.png"), "height": height, "width": width}
    fine = None
    if place:
        a, b, c, d, e, f = place.affine
        fine, facts["affine"] = (
            Georeference((a / scale, b / scale, c, d / scale, e / scale, f), place.crs),
            [*place.affine],
        )
    folder.mkdir(exist_ok=True)
    write_geojson(cracks, folder / f"{name}_cracks.geojson", Units(scale), fine, facts)
    write_outlines(cracks, folder / f"{name}_outlines.geojson", Units(scale), fine)
    Image.fromarray(prob).save(folder / f"{name}_prob.png")
    Image.fromarray(prob).save(folder / f"{name}_cracks.png")
    (folder / f"{name}_prediction.json").write_text("{}")
    return folder / name


def noise(seed: int, size=(40, 60)) -> np.ndarray:
    return np.random.default_rng(seed).random(size) < 0.4


def ring() -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[5:30, 8:50], mask[8:27, 11:47], mask[12:14, :] = True, False, True
    return mask


@pytest.fixture
def written(tmp_path):
    """Annotations of three photographs: noise, a crack with holes on a map, and nothing."""
    masks = {"noise": noise(1), "ring": ring(), "nothing": np.zeros((40, 60), bool)}
    for name, mask in masks.items():
        results(tmp_path / "out", tmp_path / "photos", name, mask, place=MAP if name == "ring" else None)
    main([str(tmp_path / "out"), "--out", str(tmp_path / "annotations"), "--prefix", "/x/"])
    return tmp_path, masks


@pytest.mark.parametrize("file", ["coco.json", "coco_polygons.json"])
def test_the_coco_library_reads_the_same_pixels(written, file):
    library = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")
    folder, masks = written
    found = library.COCO(folder / "annotations" / file)
    for image in found.imgs.values():
        mask = masks[image["file_name"].removesuffix(".png")]
        own = found.imgToAnns[image["id"]]
        assert np.array_equal(sum((found.annToMask(one) for one in own), np.zeros(mask.shape)) > 0, mask)
        assert all(
            one["score"] == pytest.approx(0.8, abs=1e-3) and one["area"] == found.annToMask(one).sum() for one in own
        )
    assert len(found.imgs) == 3


@pytest.mark.parametrize("file", ["coco.json", "coco_polygons.json"])
def test_corrected_annotations_come_back_as_shards(written, file):
    """One crack is deleted, as an annotator would; the others come back to the pixel."""
    folder, masks = written
    given = json.loads((folder / "annotations" / file).read_text())
    gone = given["annotations"].pop(0)
    (folder / "photos" / "annotations.json").write_text(json.dumps(given))
    left, top, width, height = (int(n) for n in gone["bbox"])
    back = {item.key: item.mask() > 0 for item in coco_source(folder / "photos").items}
    assert np.array_equal(back["ring"], masks["ring"]) and not back["nothing"].any()
    inside = np.zeros((40, 60), bool)
    inside[top : top + height, left : left + width] = True
    assert np.array_equal(back["noise"][~inside], masks["noise"][~inside])
    assert back["noise"].sum() == masks["noise"].sum() - gone["area"] and gone["area"] > 0


def test_label_studio_polygons_are_percent_of_the_photograph(written):
    folder, masks = written
    tasks = json.loads((folder / "annotations" / "label_studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["/x/noise.png", "/x/nothing.png", "/x/ring.png"]
    for task in tasks:
        mask = masks[task["data"]["image"][3:].removesuffix(".png")]
        found = np.zeros(mask.shape, bool)
        for result in task["predictions"][0]["result"]:
            assert result["value"]["polygonlabels"] == ["crack"] and result["original_width"] == 60
            ring = np.round(np.array(result["value"]["points"]) * (0.6, 0.4)).astype(int)
            found |= annotations._filled([np.r_[ring, ring[:1]]], *mask.shape)
        assert np.array_equal(found, mask)


def test_what_label_studio_exports_as_coco_comes_back(tmp_path):
    """As its converter writes it: each polygon an annotation, images by the address that it was given, quoted."""
    folder = tmp_path / "photos"
    results(tmp_path / "out", folder, "pier #3 é", noise(2))
    main([str(tmp_path / "out"), "--out", str(tmp_path / "annotations")])
    (task,) = json.loads((tmp_path / "annotations" / "label_studio.json").read_text())
    polygons = [(np.array(one["value"]["points"]) * (0.6, 0.4)).ravel() for one in task["predictions"][0]["result"]]
    image = {"id": 0, "file_name": task["data"]["image"], "height": 40, "width": 60}
    shapes = [{"id": n, "image_id": 0, "category_id": 0, "segmentation": [[*p]]} for n, p in enumerate(polygons)]
    contents = {"images": [image], "annotations": shapes, "categories": [{"id": 0, "name": "crack"}]}
    (folder / "annotations.json").write_text(json.dumps(contents))
    (item,) = coco_source(folder).items
    assert np.array_equal(item.mask() > 0, noise(2))


def test_cvat_masks_are_run_lengths_of_their_boxes(written):
    folder, masks = written
    images = ElementTree.parse(folder / "annotations" / "cvat.xml").getroot().findall("image")
    assert [image.get("name") for image in images] == ["noise.png", "nothing.png", "ring.png"]
    for image in images:
        found = np.zeros((40, 60), bool)
        for mask in image.findall("mask"):
            left, top, width, height = (int(mask.get(side)) for side in ("left", "top", "width", "height"))
            runs = [int(n) for n in mask.get("rle").split(", ")]
            flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
            found[top : top + height, left : left + width] |= flat.reshape(height, width)
        assert np.array_equal(found, masks[image.get("name").removesuffix(".png")])


def test_hairlines_of_a_finer_mask_stay_whole(tmp_path):
    """A line a quarter of a pixel wide is no half of any pixel."""
    mask = np.zeros((160, 240), bool)
    mask[80, 20:200] = True
    photograph = annotations.read(results(tmp_path / "out", tmp_path / "photos", "a", mask, scale=4))
    (instance,) = photograph.instances
    assert (photograph.height, photograph.width) == (40, 60)
    assert instance.mask.shape[0] == 1 and instance.top == 20 and instance.mask.all() and instance.mask.shape[1] == 45


def test_wide_cracks_of_a_finer_mask_cover_what_they_half_cover(tmp_path):
    mask = np.kron(ring(), np.ones((4, 4), bool))
    (instance,) = annotations.read(results(tmp_path / "out", tmp_path / "photos", "a", mask, 4, MAP)).instances
    whole = np.zeros((40, 60), bool)
    whole[instance.top :, instance.left :][: instance.mask.shape[0], : instance.mask.shape[1]] = instance.mask
    assert np.array_equal(whole, ring())


def test_uncertain_photographs_come_first(tmp_path, capsys):
    stems = [results(tmp_path / "out", tmp_path / "photos", name, noise(2)) for name in "abc"]
    for stem, prob in zip(stems, (255, 128, 10)):
        Image.fromarray(np.full((40, 60), prob, np.uint8)).save(f"{stem}_prob.png")
    main([str(tmp_path / "out"), "--out", str(tmp_path / "annotations"), "--rank"])
    rows = (tmp_path / "annotations" / "rank.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["b.png", "c.png", "a.png"]
    assert Image.open(tmp_path / "annotations" / "rank.jpg").width == 3 * annotate._CELL
    assert "label first b.png, last a.png" in capsys.readouterr().out


def test_entropy_is_in_bits():
    assert annotate.entropy(np.array([0, 255], np.uint8)) == 0
    assert annotate.entropy(np.array([0.5, 1.0])) == pytest.approx(0.5, abs=1e-4)


def test_mistakes_are_one_line(tmp_path):
    results(tmp_path / "out", tmp_path / "photos", "a", noise(3))
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "nowhere"], "no directory"),
        ([tmp_path / "empty"], "run cssr.predict PHOTOGRAPHS --measure"),
        ([tmp_path / "out", "--least-confidence", "2"], "--least-confidence must be in 0..1"),
        ([tmp_path / "out", "--root", tmp_path / "empty"], "--root: .*a.png is not below"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            main([*map(str, words), "--out", str(tmp_path / "annotations")])
    (tmp_path / "out" / "a_prob.png").unlink()
    with pytest.raises(SystemExit, match="--rank: no probabilities"):
        main([str(tmp_path / "out"), "--out", str(tmp_path / "annotations"), "--rank"])
    lines = tmp_path / "out" / "a_cracks.geojson"
    whole = lines.read_text()
    for name in ("number", "coordinates"):
        lines.write_text(whole.replace(f'"{name}"', '"other"', 1))
        with pytest.raises(SystemExit, match="error: the cracks of .*a cannot be read .*: predict it again"):
            main([str(tmp_path / "out"), "--out", str(tmp_path / "annotations")])
    (tmp_path / "out" / "a_prediction.json").write_text('{"files": {"a_cracks.geojson": 7}}')
    lines.unlink()
    with pytest.raises(SystemExit, match="results of 1 photographs are gone, .*a_cracks.geojson first"):
        main([str(tmp_path / "out"), "--out", str(tmp_path / "annotations")])
    lines.write_text('{"photograph": 3}')
    with pytest.raises(SystemExit, match="a_cracks.geojson"):
        main([str(tmp_path / "out"), "--out", str(tmp_path / "annotations")])


def test_names_that_are_no_text_or_hold_control_characters_are_written_out(tmp_path):
    """Bytes that are no UTF-8 ended the command, and control characters made of `cvat.xml` what no tool reads."""
    results(tmp_path / "out", tmp_path / "photos", "odd\x1b\x01\udcff", ring())
    main([str(tmp_path / "out"), "--out", str(tmp_path / "annotations"), "--prefix", "/x/"])
    image = ElementTree.parse(tmp_path / "annotations" / "cvat.xml").getroot().find("image")
    assert image.get("name") == r"odd\x1b\x01\udcff.png"
    (task,) = json.loads((tmp_path / "annotations" / "label_studio.json").read_text())
    assert task["data"]["image"] == "/x/odd%1B%01%FF.png"


def _cut(path):
    path.write_bytes(path.read_bytes()[:60])


def _of_another_size(path):
    Image.new("L", (10, 10)).save(path)


def _of_16_bits(path):
    Image.fromarray(np.full((40, 60), 40_000, np.uint16)).save(path)


def _of_floats(value):
    def edit(path):
        path.unlink()
        np.save(path.with_suffix(".npy"), np.full((40, 60), value, np.float32))

    return edit


@pytest.mark.parametrize(
    ("ending", "edit", "message"),
    [
        ("_prob.png", _cut, r"cannot read .*a_prob.png: .*; predict again"),
        ("_cracks.png", _cut, r"cannot read .*a_cracks.png: .*; predict again"),
        ("_cracks.png", lambda path: path.unlink(), r"cannot read .*a_cracks.png: No such file or directory; predict"),
        (
            "_prob.png",
            _of_another_size,
            r"--rank: .*a, \[10, 10\], are of another size than its photograph, \[40, 60\]",
        ),
        ("_prob.png", _of_16_bits, r"cannot read .*a_prob.png: its values are uint16 \[40, 60\], no probabilities"),
        ("_prob.png", _of_floats(7), r"--rank: the probabilities of .*a are not within 0 to 1"),
        ("_prob.png", _of_floats(np.nan), r"--rank: the probabilities of .*a are not within 0 to 1, or none"),
    ],
)
def test_pictures_of_the_results_that_were_changed_are_named(tmp_path, ending, edit, message):
    """Errors named no file, and probabilities that were none were ranked: of NaN first."""
    stem = results(tmp_path / "out", tmp_path / "photos", "a", noise(2))
    edit(stem.with_name(stem.name + ending))
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path / "out"), "--out", str(tmp_path / "annotations"), "--rank"])


def test_two_results_of_one_photograph_are_refused(tmp_path):
    """Its image was written twice, each with the cracks of one."""
    (tmp_path / "out").mkdir()
    for folder in "xy":
        results(tmp_path / "out" / folder, tmp_path / "photos", "a", noise(2))
    with pytest.raises(SystemExit, match=r"2 of these results are of one photograph, .*a.png"):
        main([str(tmp_path / "out"), "--out", str(tmp_path / "annotations")])
