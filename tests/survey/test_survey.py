"""A survey of photographs with drawn cracks: its table, and what the field's own readers find in its files."""

import csv
import json
import re
import resource
import warnings

import numpy as np
import pytest

from cssr.cracks.files import Georeference, Units, write_geojson, write_outlines
from cssr.cracks.measure import measure_cracks
from cssr.survey.collect import COLUMNS, collect
from cssr.survey.maps import write_dxf, write_geopackage
from cssr.survey.severity import load_limits
from cssr.survey.tables import write_csv, write_xlsx
from cssr.survey.write import write_files, write_survey

EXTRA = "needs the extra survey: pip install 'cssr[survey]'"
UTM32, UTM33 = "urn:ogc:def:crs:EPSG::25832", "urn:ogc:def:crs:EPSG::25833"


def photograph(folder, name: str, widths: list[int], mm: float | None = None, place: Georeference | None = None):
    """The results of a photograph of 400 x 300 pixels with upright cracks of 200 pixels; its stem."""
    mask = np.zeros((300, 400), bool)
    for number, width in enumerate(widths):
        mask[50:250, 50 + 60 * number : 50 + 60 * number + width] = True
    cracks, units = measure_cracks(mask), Units(1.0, mm, None if mm is None else 0.01 * mm)
    facts = {"name": name, "height": 300, "width": 400}
    facts |= (
        {} if mm is None else {"mm_per_pixel": mm, "mm_per_pixel_uncertainty": 0.01 * mm, "mm_per_pixel_by": "typed"}
    )
    facts |= {} if place is None else {"affine": list(place.affine)}
    write_geojson(cracks, folder / f"{name}_cracks.geojson", units, place, facts)
    write_outlines(cracks, folder / f"{name}_outlines.geojson", units, place)
    return folder / name


@pytest.fixture
def survey(tmp_path):
    """Two photographs with a known size of pixels, one of them without cracks, and one without."""
    stems = [
        photograph(tmp_path, "=1+1", [1, 2, 6], 0.1),
        photograph(tmp_path, "whole", [], 0.1),
        photograph(tmp_path, "unknown", [3]),
    ]
    return collect(stems, load_limits(), 0.5)


def test_rows_hold_what_was_measured_and_the_class_of_its_width(survey):
    rows = survey.rows
    assert [row["crack"] for row in rows] == [1, 2, 3, 4] and all(row.keys() == COLUMNS.keys() for row in rows)
    by_width = {round(row["mean_width_px"]): row for row in rows}
    wide = by_width[6]
    assert wide["length_mm"] == pytest.approx(20, abs=0.1) and wide["max_width_mm"] == pytest.approx(0.6, abs=0.01)
    assert wide["severity"] == "above 0.4 mm"
    # 2 x sqrt((0.5 x 0.1)^2 + (0.01 x 0.6)^2)
    assert wide["width_uncertainty_mm"] == pytest.approx(0.1007, abs=1e-3) and wide["severity_range"] is None
    assert by_width[2]["severity"].startswith("within") and "0.3" in by_width[2]["severity_range"]
    assert by_width[3]["severity"] is None and by_width[3]["length_mm"] is None
    assert survey.severities() == {**dict(zip(survey.limits.classes, (2, 0, 1))), "size of a pixel not known": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"coordinates": ["a"]},
        {"coordinates": [[1e308, 1], [2, 2]]},
        {"coordinates": [[1, None], [2, 2]]},
        {"coordinates": [[1, 2, 3], [2, 2, 3]]},
        {"coordinates": 5},
        {"type": "Point"},
        {"type": []},
    ],
)
def test_geometry_that_is_none_is_one_line(change, tmp_path):
    stem = photograph(tmp_path, "a", [3])
    path = tmp_path / "a_cracks.geojson"
    lines = json.loads(path.read_text())
    lines["features"][0]["geometry"] |= change
    path.write_text(json.dumps(lines))
    with pytest.raises(ValueError, match="the cracks of .*a cannot be read .*: predict it again"):
        collect([stem], load_limits(), 0.5)


def test_the_table_can_be_read_by_anything(survey, tmp_path):
    write_survey(survey, tmp_path / "survey", {"model": "small-x4"})
    with open(tmp_path / "survey" / "cracks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["photograph"] for row in rows] == ["=1+1"] * 3 + ["unknown"]
    assert rows[3]["length_mm"] == "" and float(rows[0]["length_px"]) == survey.rows[0]["length_px"]
    facts = json.loads((tmp_path / "survey" / "survey.json").read_text())
    assert facts["cracks"] == 4 and facts["model"] == "small-x4" and len(facts["photographs"]) == 3


def test_a_spreadsheet_library_reads_the_workbook(survey, tmp_path):
    pytest.importorskip("xlsxwriter", reason=EXTRA)
    openpyxl = pytest.importorskip("openpyxl", reason="needs openpyxl")
    write_survey(survey, tmp_path / "survey", {"model": "=cmd()"})
    book = openpyxl.load_workbook(tmp_path / "survey" / "cracks.xlsx")
    header, *rows = book["cracks"].iter_rows(values_only=True)
    assert header == tuple(COLUMNS) and [dict(zip(header, row)) for row in rows] == survey.rows
    assert all(cell.data_type != "f" for sheet in book for row in sheet.iter_rows() for cell in row)
    names, *photographs = book["photographs"].iter_rows(values_only=True)
    assert [dict(zip(names, row))["cracks"] for row in photographs] == [3, 0, 1]


def test_gdal_reads_the_geopackage(survey, tmp_path):
    pyogrio = pytest.importorskip("pyogrio", reason=EXTRA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert write_survey(survey, tmp_path / "survey", {}) == []
    path = tmp_path / "survey" / "cracks.gpkg"
    assert {name for name, _ in pyogrio.list_layers(path)} == {"crack_lines_px", "crack_areas_px"}
    lines, areas = (pyogrio.read_dataframe(path, layer=f"crack_{kind}_px") for kind in ("lines", "areas"))
    assert list(lines["photograph"]) == ["=1+1"] * 3 + ["unknown"] and lines["length_mm"].isna().sum() == 1
    assert lines.total_bounds[1] < -200 and lines.total_bounds[3] < 0  # y upwards
    assert areas.area.to_list() == [200 * round(row["mean_width_px"]) for row in survey.rows] and areas.is_valid.all()


def test_maps_of_two_projections_are_one(tmp_path):
    pyogrio = pytest.importorskip("pyogrio", reason=EXTRA)
    pyproj = pytest.importorskip("pyproj", reason=EXTRA)
    east, north = pyproj.Transformer.from_crs(25832, 25833, always_xy=True).transform(500_000, 5_500_000)
    stems = [
        photograph(tmp_path, "a", [2], 10, Georeference((0.01, 0, 500_000, 0, -0.01, 5_500_000), UTM32)),
        photograph(tmp_path, "b", [2], 10, Georeference((0.01, 0, east, 0, -0.01, north), UTM33)),
        photograph(tmp_path, "c", [2], 10, Georeference((0.01, 0, 7, 0, -0.01, 8), None)),
    ]
    survey = collect(stems, load_limits(), 0.5)
    assert write_survey(survey, tmp_path / "survey", {}) == [f"cracks in {UTM33} were reprojected to {UTM32}"]
    lines = pyogrio.read_dataframe(tmp_path / "survey" / "cracks.gpkg", layer="crack_lines")
    assert lines.crs.to_epsg() == 25832 and len(lines) == 2
    first, second = (shape.centroid for shape in lines.geometry)
    # The same spot; grids of neighbouring zones are turned against each other by some degrees.
    assert first.distance(second) < 0.2
    assert survey.rows[0]["map_x"] == pytest.approx(500_000 + 0.01 * survey.rows[0]["x_px"])
    other = pyogrio.read_dataframe(tmp_path / "survey" / "cracks.gpkg", layer="crack_lines_unnamed_map")
    assert other.crs is None and other.total_bounds[0] == pytest.approx(7.5, abs=0.02)


def test_ezdxf_finds_no_fault_in_the_drawing(survey, tmp_path):
    ezdxf = pytest.importorskip("ezdxf", reason=EXTRA)
    write_survey(survey, tmp_path / "survey", {})
    drawing = ezdxf.readfile(tmp_path / "survey" / "cracks.dxf")
    assert not drawing.audit().has_errors
    lines = [line for line in drawing.modelspace().query("LWPOLYLINE") if line.dxf.layer.startswith("severity")]
    lengths = sorted(abs(line[-1][1] - line[0][1]) for line in lines)
    assert lengths == pytest.approx([20, 20, 20, 200], abs=0.2)  # mm, and pixels where their size is not known
    assert len(drawing.modelspace().query("TEXT")) == 4 + 3


def test_outlines_in_the_drawing_have_no_stairs_and_are_left_out_where_they_are_too_many(tmp_path, monkeypatch):
    ezdxf = pytest.importorskip("ezdxf", reason=EXTRA)
    rows, columns = np.mgrid[:300, :400]
    mask = (np.abs(rows - columns / 3 - 60) < 4) & (columns > 40) & (columns < 340)
    stem = tmp_path / "slant"
    facts = {"name": "slant", "height": 300, "width": 400}
    write_geojson(measure_cracks(mask), tmp_path / "slant_cracks.geojson", Units(), None, facts)
    write_outlines(measure_cracks(mask), tmp_path / "slant_outlines.geojson", Units())
    survey = collect([stem], load_limits(), 0.5)
    assert write_survey(survey, tmp_path / "survey", {}) == []
    drawing = ezdxf.readfile(tmp_path / "survey" / "cracks.dxf")
    (outline,) = drawing.modelspace().query('LWPOLYLINE[layer=="crack_outlines"]')
    assert 4 <= len(outline) < 20 < 200 < len(survey.areas[0]["coordinates"][0][0])
    x, y = np.array([point[:2] for point in outline]).T
    assert abs((x * np.roll(y, 1) - y * np.roll(x, 1)).sum()) / 2 == pytest.approx(mask.sum(), rel=0.03)
    monkeypatch.setattr("cssr.survey.maps._CORNERS", 3)
    (note,) = write_survey(survey, tmp_path / "survey", {})
    assert note.startswith("cracks.dxf is without outlines, as few programs draw ") and note.endswith(
        "cracks.gpkg has them"
    )
    drawing = ezdxf.readfile(tmp_path / "survey" / "cracks.dxf")
    assert {line.dxf.layer for line in drawing.modelspace().query("LWPOLYLINE")} == {"severity_4", "photographs"}


def test_a_survey_without_cracks_has_all_files(tmp_path):
    pytest.importorskip("pyogrio", reason=EXTRA)
    write_survey(collect([photograph(tmp_path, "a", [])], load_limits(), 0.5), tmp_path / "survey", {})
    names = {path.name for path in (tmp_path / "survey").iterdir()}
    assert names == {"cracks.csv", "cracks.xlsx", "cracks.gpkg", "cracks.dxf", "survey.json"}


@pytest.mark.parametrize(
    "name, writer",
    [
        ("cracks.csv", write_csv),
        ("cracks.xlsx", lambda survey, path: write_xlsx(survey, path, [])),
        ("cracks.gpkg", write_geopackage),
        ("cracks.dxf", write_dxf),
    ],
)
def test_what_has_no_room_leaves_what_was_there_and_is_named(name, writer, survey, tmp_path, monkeypatch):
    """A limit of the size of files stands for a disk that is full: libraries have errors of their own for it."""
    pytest.importorskip("geopandas", reason=EXTRA)
    out = tmp_path / "survey"
    out.mkdir()
    (out / name).write_text("of before")
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # what is imported here would be compiled and cut off
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(ValueError, match=rf"{re.escape(name)} cannot be written"):
            write_files(out, {name: lambda path: writer(survey, path)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == "of before"


def test_without_the_extra_the_table_is_written_and_the_remedy_said(survey, tmp_path, monkeypatch):
    out = tmp_path / "survey"
    write_survey(survey, out, {})
    monkeypatch.setattr("cssr.survey.write.find_spec", lambda name: None)
    (note,) = write_survey(survey, out, {})
    assert "pip install 'cssr[survey]'" in note
    assert {path.name for path in out.iterdir()} == {"cracks.csv", "survey.json"}  # nothing of another survey


@pytest.mark.parametrize("name, shown", [("bad\udcff", "bad\\udcff"), ("two\nlines", "two\\nlines")])
def test_names_that_are_no_text_or_have_line_ends_lose_no_survey(name, shown, tmp_path):
    survey = collect([photograph(tmp_path, name, [2], 0.1)], load_limits(), 0.5)
    write_survey(survey, tmp_path / "survey", {})
    assert survey.rows[0]["photograph"] == shown
    with open(tmp_path / "survey" / "cracks.csv", encoding="utf-8", newline="") as file:
        assert [row["photograph"] for row in csv.DictReader(file)] == [shown]
    if (tmp_path / "survey" / "cracks.dxf").is_file():
        ezdxf = pytest.importorskip("ezdxf", reason=EXTRA)
        texts = ezdxf.readfile(tmp_path / "survey" / "cracks.dxf").modelspace().query("TEXT")
        assert shown in [text.dxf.text for text in texts]
