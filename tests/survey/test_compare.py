"""Two surveys compared: which photographs are paired, what is written, and what a mistake is answered with."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from spots import STRAIGHT, camera, mask_of, results, seen, segmented, wall, with_cracks

from cssr.compare import main
from cssr.cracks.files import Georeference
from cssr.survey.comparison import COLUMNS
from cssr.survey.photographs import cracks_of, picture_of

EXTRA = "needs the extra survey: pip install 'cssr[survey]'"
CAMERA = camera()
OLD = [
    (((60, 80), (200, 120), (320, 70)), 3.0),
    (((80, 250), (380, 280)), 2.0),
    (((500, 60), (540, 420)), 5.0),
    (((150, 360), (210, 450)), 2.5),
]
NEW = [
    (((60, 80), (200, 120), (320, 70), (400, 90)), 3.0),
    (((80, 250), (380, 280)), 5.0),
    OLD[2],
    (((60, 400), (120, 460)), 2.0),
]
UTM32, UTM33 = "urn:ogc:def:crs:EPSG::25832", "urn:ogc:def:crs:EPSG::25833"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few features do for these walls."""
    monkeypatch.setattr("cssr.survey.registration._FEATURES", 800)
    yield
    cracks_of.cache_clear()
    picture_of.cache_clear()


@pytest.fixture(scope="module")
def walls() -> dict[str, np.ndarray]:
    """A wall with the old cracks; with the new ones from another place in other light; and another wall."""
    smooth = (150 + (wall() - 150.0) / 2).astype(np.uint8)
    return {
        "smooth old": cv2.GaussianBlur(with_cracks(smooth, mask_of(OLD)), (0, 0), 0.7),
        "smooth new": seen(with_cracks(smooth, mask_of(NEW)), CAMERA),
        "old": with_cracks(wall(), mask_of(OLD)),
        "new": seen(with_cracks(wall(), mask_of(NEW)), CAMERA),
        "other": wall(3),
    }


@pytest.fixture
def surveys(tmp_path, walls) -> tuple[Path, Path]:
    """One spot in both, by another name, and a spot of its own in each; the new camera is nearer."""
    old = results(tmp_path / "old", "a", walls["old"], mask_of(OLD), 0.2)
    results(tmp_path / "old", "b", walls["other"], mask_of(OLD[:1]), 0.2)
    new = results(tmp_path / "new", "c", walls["new"], mask_of(NEW, CAMERA), 0.2 / 1.08)
    results(tmp_path / "new", "d", None, mask_of(OLD[:1]), 0.2)
    return old, new


def compared(surveys, out: Path, *words: str) -> list[dict[str, str]]:
    main([*map(str, surveys), "--out", str(out), *words])
    with open(out / "changes.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_growth_is_in_the_table_the_pictures_and_the_page(surveys, tmp_path, capsys):
    rows = compared(surveys, tmp_path / "out")
    output = capsys.readouterr()
    assert "1 pairs of photographs: 1 new, 2 grown, 1 unchanged, 1 gone" in output.out
    lines = output.err.splitlines()
    assert len(lines) == 2 and all(re.search("not compared: .*(b|d).png: no photograph of", line) for line in lines)
    states = [(row["state"], row["differs"]) for row in rows]
    assert states == [("new", ""), ("grown", "longer"), ("grown", "wider"), ("unchanged", ""), ("gone", "")]
    assert all(row.keys() == COLUMNS.keys() for row in rows)
    longer, wider, same = rows[1:4]
    # A pixel of the old photograph is 0.2 mm, before the camera came nearer and was tilted.
    assert float(longer["length_change_mm"]) == pytest.approx(82.46 * 0.2, rel=0.05)
    assert float(wider["width_change_mm"]) == pytest.approx(3 * 0.2, abs=0.06)
    assert abs(float(same["length_change_mm"])) < 0.4 and abs(float(same["width_change_mm"])) < 0.05
    assert float(longer["length_uncertainty_mm"]) < 3 and float(wider["width_uncertainty_mm"]) < 0.4
    assert float(rows[0]["registration_px"]) < 1.5 and longer["mm_per_pixel_by"] == "typed"
    facts = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert facts["states"]["grown"] == 2 and len(facts["not_compared"]) == 2
    assert np.array(facts["pairs"][0]["old_to_new"]) == pytest.approx(CAMERA / CAMERA[2, 2], rel=0.05, abs=3e-5 + 0.5)
    with Image.open(tmp_path / "out" / "pair_001.jpg") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ("#d55e00", "#e69f00", "#009e73", "#0072b2"):
        assert (np.abs(pixels - [int(colour[n : n + 2], 16) for n in (1, 3, 5)]) < 12).all(1).sum() > 100
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="([^"]{0,10})', page)) == {"data:image"} and page.count("data:image/jpeg") == 1
    assert "grown: longer" in page and "2 → –" not in page and "4 → –" in page and "d.png" in page


def test_growth_is_recovered_from_pictures_in_other_light_and_blur(tmp_path, walls):
    """Masks by the pictures' own darkness: lengths within 2 px, widths within half a pixel."""
    folders = [
        results(tmp_path / name, "a", walls[f"smooth {name}"], segmented(walls[f"smooth {name}"]))
        for name in ("old", "new")
    ]
    rows = [row for row in compared(folders, tmp_path / "out") if row["state"] not in ("unclear", "out of view")]
    assert [row["state"] for row in rows] == ["new", "grown", "grown", "unchanged", "gone"]
    longer, wider, same = rows[1:4]
    tip = cv2.perspectiveTransform(np.array([NEW[0][0][-2:]], float), CAMERA)[0]
    assert longer["differs"] == "longer" and wider["differs"] == "wider"
    assert float(longer["length_change_px"]) == pytest.approx(np.linalg.norm(tip[1] - tip[0]), abs=2)
    assert float(wider["width_change_px"]) == pytest.approx(3 * 1.08, abs=0.5)
    assert abs(float(longer["width_change_px"])) < 0.5 and abs(float(wider["length_change_px"])) < 2
    assert abs(float(same["length_change_px"])) < 2 and abs(float(same["width_change_px"])) < 0.5


def test_a_spreadsheet_library_reads_the_workbook(surveys, tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="needs openpyxl")
    pytest.importorskip("xlsxwriter", reason=EXTRA)
    rows = compared(surveys, tmp_path / "out")
    book = openpyxl.load_workbook(tmp_path / "out" / "changes.xlsx")
    assert book.sheetnames == ["changes", "pairs", "not compared", "columns", "about"]
    header, *cells = book["changes"].iter_rows(values_only=True)
    assert header == tuple(COLUMNS) and len(cells) == len(rows)
    assert [row[2] for row in cells] == [row["state"] for row in rows]
    assert book["not compared"].max_row == 3 and book["pairs"]["E2"].value == 2  # grown


def test_the_same_survey_twice_has_no_changes(surveys, tmp_path):
    rows = compared((surveys[0], surveys[0]), tmp_path / "out")
    assert {row["state"] for row in rows} == {"unchanged"} and len(rows) == 5
    assert {float(row["length_change_px"]) for row in rows} == {0}


def test_a_folder_named_survey_is_that_of_its_results(surveys, tmp_path):
    for folder in surveys:
        (folder / "survey").mkdir()
        facts = {"width_uncertainty_px": 0.4, "limits": {"width": "mean"}, "detectable": {"p90": 3.5}}
        (folder / "survey" / "survey.json").write_text(json.dumps(facts))
    rows = compared([folder / "survey" for folder in surveys], tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert facts["width_compared"] == "mean"
    # The new crack is 2 px wide, the one that has gone 2.5: narrower than what is found nine times of ten.
    assert {row["state"] for row in rows if row["may_be_missed"] == "yes"} == {"new", "unclear"}


def test_a_survey_that_would_miss_any_crack_tells_of_none_that_it_is_gone(surveys, tmp_path):
    (surveys[1] / "survey").mkdir()
    (surveys[1] / "survey" / "survey.json").write_text(json.dumps({"detectable": {"p90": None}}))
    assert [row["state"] for row in compared(surveys, tmp_path / "out")][-1] == "unclear"


def test_a_table_names_the_pairs(surveys, tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("old,new\na.png,c\n", encoding="utf-16")
    assert len(compared(surveys, tmp_path / "out", "--pairs", str(table))) == 5
    for text, message in (
        ("old,new\nx.png,c\n", "line 2: 'x.png' is no photograph of"),
        ("old,new\na,c\na,d\n", "names .*a.png twice under old"),
        ("a;b\n1;2\n", "needs columns old and new"),
        ("", "needs columns old and new"),
        ("old,new\na\n", "line 2: None is no photograph of"),
    ):
        table.write_text(text)
        with pytest.raises(SystemExit, match=f"error: --pairs: .*{message}"):
            compared(surveys, tmp_path / "out", "--pairs", str(table))


def test_photographs_of_no_common_spot_are_one_line_each(tmp_path, walls):
    old = results(tmp_path / "old", "a", walls["old"], mask_of(OLD))
    new = results(tmp_path / "new", "a", walls["other"], mask_of(OLD))
    with pytest.raises(SystemExit, match="error: no two photographs of .* show one spot: see above"):
        compared((old, new), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_survey_is_one_line(surveys, tmp_path):
    (tmp_path / "empty").mkdir()
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x_prediction.json").write_text("{}")
    for words, message in (
        ((tmp_path / "nowhere", surveys[1]), "no directory at"),
        ((tmp_path / "empty", surveys[1]), "holds no results: run cssr.predict PHOTOGRAPHS --measure"),
        ((surveys[0], bad), "holds 1 predicted photographs without measures"),
        ((*surveys, "--width-uncertainty", "-1"), "--width-uncertainty must be 0 or more, got -1"),
        ((*surveys, "--end-uncertainty", "nan"), "--end-uncertainty must be 0 or more"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            main([*map(str, words), "--out", str(tmp_path / "out")])
    (surveys[0] / "a_outlines.geojson").write_text("{")
    with pytest.raises(SystemExit, match="the cracks of .*a cannot be read .*: predict it again"):
        main([*map(str, surveys), "--out", str(tmp_path / "out")])
    (surveys[0] / "a_cracks.geojson").write_text("{")
    with pytest.raises(SystemExit, match="a_cracks.geojson is damaged, no JSON"):
        main([*map(str, surveys), "--out", str(tmp_path / "out")])


def test_sizes_of_pixels_that_disagree_are_reported(tmp_path, walls, capsys):
    old = results(tmp_path / "old", "a", walls["old"], mask_of(OLD), 0.2)
    new = results(tmp_path / "new", "a", walls["new"], mask_of(NEW, CAMERA), 0.3, uncertainty=0.02)
    compared((old, new), tmp_path / "out")
    assert re.search(r"warning: .*a.png: a pixel is 0.* they differ by more than their unc", capsys.readouterr().err)
    results(tmp_path / "old", "a", walls["old"], mask_of(OLD))  # a size that the new survey alone knows
    rows = compared((old, new), tmp_path / "out")
    assert {row["mm_per_pixel"] for row in rows} == {"0.3"} and "warning" not in capsys.readouterr().err


def test_maps_need_no_photographs(tmp_path, capsys):
    """Orthophotos that are gone: by the georeference, of two projections, too; cracks keep their place."""
    pytest.importorskip("rasterio.warp", reason="needs rasterio: pip install 'cssr[large]'")
    from cssr.utils.geotiff import reprojected

    ((east, north),) = reprojected(np.array([[700_000.0, 5_500_000.0]]), UTM32, UTM33)
    place = Georeference((0.01, 0, 700_000, 0, -0.01, 5_500_000), UTM32)
    old = results(tmp_path / "old", "x", None, mask_of(OLD), 10, place)
    corners = np.array([[0.0, 0.0], [640, 0], [640, 480], [0, 480]])
    on_map = reprojected(corners * [0.01, -0.01] + [700_000, 5_500_000], UTM32, UTM33)
    turned = cv2.getPerspectiveTransform(
        corners.astype(np.float32), ((on_map - (east, north)) / [0.01, -0.01]).astype(np.float32)
    )
    for name, there, matrix in (
        ("y", place, STRAIGHT),
        ("z", Georeference((0.01, 0, east, 0, -0.01, north), UTM33), turned),
    ):
        new = results(tmp_path / name, name, None, mask_of(OLD[1:], matrix), 10, there)
        rows = compared((old, new), tmp_path / "out")
        assert [row["state"] for row in rows].count("gone") == 1 and len(rows) == 4
        assert float(rows[-1]["map_x"]) == pytest.approx((700_000 if name == "y" else east) + 2, abs=1.5)
    far = Georeference((0.01, 0, 800_000, 0, -0.01, 5_500_000), UTM32)
    new = results(tmp_path / "far", "x", None, mask_of(OLD), 10, far)
    with pytest.raises(SystemExit, match="no two photographs"):
        compared((old, new), tmp_path / "out")
    assert "not compared: " in capsys.readouterr().err


def test_a_map_that_features_contradict_is_refused(tmp_path, walls, capsys):
    places = [Georeference((0.01, 0, 500 + shift, 0, -0.01, 900), UTM32) for shift in (0, 2)]
    folders = [results(tmp_path / f"{n}", "a", walls["old"], mask_of(OLD), 10, place) for n, place in enumerate(places)]
    with pytest.raises(SystemExit, match="no two photographs"):
        compared(folders, tmp_path / "out")
    assert "by features they are 200 pixels off" in capsys.readouterr().err
    for way, state in (("features", "unchanged"), ("georeference", "out of view")):
        assert state in {row["state"] for row in compared(folders, tmp_path / "out", "--by", way)}


def test_a_survey_without_cracks_has_new_ones_after_it(tmp_path, walls):
    nothing = mask_of([])
    old = results(tmp_path / "old", "a", walls["old"], nothing)
    new = results(tmp_path / "new", "a", walls["new"], mask_of(NEW, CAMERA))
    assert {row["state"] for row in compared((old, new), tmp_path / "out")} == {"new"}
    assert {row["state"] for row in compared((new, old), tmp_path / "out")} == {"gone"}
    assert compared((old, old), tmp_path / "out") == []


def test_nothing_is_lost_where_writing_fails(surveys, tmp_path, monkeypatch):
    compared(surveys, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cssr.survey.comparison.draw", fails)
    with pytest.raises(SystemExit, match="cannot be written: No space left on device"):
        compared((surveys[1], surveys[0]), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_pictures_of_an_earlier_comparison_go(surveys, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("pair_002.jpg", "mine.jpg"):
        (out / name).write_bytes(b"")
    compared(surveys, out)
    assert {path.name for path in out.glob("*.jpg")} == {"pair_001.jpg", "mine.jpg"}
