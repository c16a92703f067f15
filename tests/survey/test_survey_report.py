"""The document of a survey: what it says, that it is one file, and that it prints."""

import json
import re
import shutil

import pytest
from PIL import Image, ImageFile
from test_survey import Georeference, photograph

from cssr.report.__main__ import main
from cssr.survey import report
from cssr.survey.collect import collect
from cssr.survey.severity import load_limits
from cssr.survey.write import write_survey

FACTS = {"model": "small-x4", "threshold": 0.5, "tta": False, "width_uncertainty_px": 0.5, "least_length_px": 0}
MAP = Georeference((0.01, 0, 500_000, 0, -0.01, 5_500_000), "urn:ogc:def:crs:EPSG::25832")


@pytest.fixture
def results(tmp_path):
    """Three photographs, of which one has a name that HTML must not take for its own."""
    out = tmp_path / "out"
    out.mkdir()
    stems = [
        photograph(out, "<b>one", [1, 2, 6], 0.1),
        photograph(out, "two", [3]),
        photograph(out, "three", [2], 0.1, MAP),
    ]
    for stem in stems:
        Image.new("RGB", (800, 600), (90, 120, 150)).save(f"{stem}_cracks.png")
    facts = {**FACTS, "detectable_says": "cracks from 1.5 px on are found"}
    write_survey(collect(stems, load_limits(), 0.5), out / "survey", facts)
    return out


def test_the_page_says_what_was_found_and_loads_nothing(results, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "to_pdf", lambda page: None)
    main(["--survey", str(results), "--out", str(tmp_path / "report"), "--title", "Pier 3 & 4"])
    output = capsys.readouterr()
    assert "survey.html" in output.out and "pip install 'cssr[pdf]'" in output.err
    page = (tmp_path / "report" / "survey.html").read_text(encoding="utf-8")
    assert "<h1>Pier 3 &amp; 4</h1>" in page and "&lt;b&gt;one" in page and "<b>one" not in page
    assert "3 photographs · 5 cracks" in page and "cracks from 1.5 px on are found" in page
    assert set(re.findall(r'(?:src|href)="([^"]{0,10})', page)) == {"data:image"}
    assert page.count("data:image/jpeg") == 3 + 5 and page.count("<polyline") == 1  # one crack is on a map
    assert len(re.findall(r"<strong>1\.[123]</strong>", page)) == 3 and "<strong>2.1</strong>" in page
    widths = re.findall(r"mm long, ([0-9.]+) ± [0-9.]+ mm wide", page)
    assert [float(width) for width in widths] == pytest.approx([0.6, 0.2, 0.2, 0.1], abs=0.02)  # the widest first
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"survey.html"}


def test_it_prints_as_pdf(results, tmp_path):
    main(["--survey", str(results / "survey"), "--out", str(tmp_path / "report")])
    weasyprint = pytest.importorskip("weasyprint", reason="needs WeasyPrint and Pango", exc_type=(ImportError, OSError))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES  # its import would let images through that are cut off
    pdf = (tmp_path / "report" / "survey.pdf").read_bytes()
    page = (tmp_path / "report" / "survey.html").read_text(encoding="utf-8")
    pages = weasyprint.HTML(string=page).render().pages
    assert pdf.startswith(b"%PDF") and 3 <= len(pages) <= 6
    assert [round(pages[0].width), round(pages[0].height)] == [794, 1123]  # A4 at 96 dpi


def test_mistakes_are_one_line(results, tmp_path):
    for words, message in (
        ([], "--survey DIR"),
        (["--survey", str(tmp_path)], "no survey in "),
        (["more.json", "--survey", str(results)], "--survey takes no other results"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            main([*words, "--out", str(tmp_path / "report")])
    moved = tmp_path / "moved"
    shutil.move(results, moved)  # as a whole: nothing is lost
    main(["--survey", str(moved), "--out", str(tmp_path / "report")])
    lines = (moved / "two_cracks.geojson").read_text()
    (moved / "two_cracks.geojson").write_text(lines.replace('"photograph"', '"picture"', 1))
    with pytest.raises(SystemExit, match="the cracks of .*two cannot be read .*photograph.*: predict it again"):
        main(["--survey", str(moved), "--out", str(tmp_path / "report")])
    (moved / "two_cracks.geojson").unlink()
    with pytest.raises(SystemExit, match="results of 1 photographs are gone, .*two_cracks.geojson"):
        main(["--survey", str(moved), "--out", str(tmp_path / "report")])
    (moved / "survey" / "survey.json").write_text(json.dumps({"photographs": 3}))
    with pytest.raises(SystemExit, match="survey.json"):
        main(["--survey", str(moved), "--out", str(tmp_path / "report")])


@pytest.mark.parametrize(
    ("file", "place", "value", "named"),
    [
        ("two_cracks.geojson", ("photograph", "width"), 0, "photograph.width must be a whole number"),
        ("two_cracks.geojson", ("photograph", "mm_per_pixel_by"), 3, "photograph.mm_per_pixel_by must be a word"),
        (
            "two_cracks.geojson",
            ("features", 0, "properties", "p95_width_px"),
            None,
            "a crack whose p95_width_px is None",
        ),
        ("two_cracks.geojson", ("features", 0, "properties", "left"), float("nan"), "a crack whose left is nan"),
        ("two_cracks.geojson", ("features", 0, "properties", "right"), -5, "crack 1 has no box"),
        ("two_cracks.geojson", ("features", 0, "properties", "confidence"), "high", "whose confidence is 'high'"),
        ("survey/survey.json", ("width_uncertainty_px",), -1, "width_uncertainty_px must be a number of 0"),
        ("survey/survey.json", ("limits", "above"), [0.3, 0.1], "limits: "),
        ("survey/survey.json", ("limits", "width"), "median", "limits: width must be one of mean, p95, max"),
    ],
)
def test_what_was_edited_into_nonsense_is_named(results, tmp_path, file, place, value, named):
    """Numbers changed by hand between prediction and report ended in a traceback, or in an error of no file."""
    path = results / file
    content = json.loads(path.read_text(encoding="utf-8"))
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(["--survey", str(results), "--out", str(tmp_path / "report")])
    words = str(end.value)
    assert named in words and file.removesuffix("_cracks.geojson") in words and "predict" in words, words


def test_a_picture_that_was_cut_off_and_a_survey_that_is_gone_are_named(results, tmp_path):
    picture = results / "two_cracks.png"
    picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(SystemExit, match=r"cannot read .*two_cracks.png: .*; predict again"):
        main(["--survey", str(results), "--out", str(tmp_path / "report")])
    (results / "survey" / "survey.json").unlink()
    with pytest.raises(SystemExit, match=r"no survey in .*: run cssr.predict PHOTOGRAPHS --measure"):
        main(["--survey", str(results), "--out", str(tmp_path / "report")])
