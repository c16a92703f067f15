"""The report's page without a browser: its policy, escaping, budget of bytes, curves, groups and published figures."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_results import HOSTILE, HR, calibrated, facts, rows, spread, with_samples, write

from cssr.evaluation.results import load
from cssr.evaluation.visualization import FILES
from cssr.report import main, report
from cssr.report.page import gallery, images_of, parts_of
from cssr.report.plots import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    curves_of,
    iou_plot,
    precision_recall_plot,
    reliability_plot,
)
from cssr.report.published_results import FIGURES, same_protocol

HTTP = re.compile(r"https?://")


class Page(HTMLParser):
    """Elements as (tag, attributes), and the content of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.raw: list[tuple[dict, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, text: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style") and self.cdata_elem:
            self.raw.append((self.elements[-1][1], text))


@pytest.fixture
def page(tmp_path):
    paths = [
        with_samples(write(tmp_path / "a", spread(60), facts("CSBSR"))),
        write(tmp_path / "b", spread(90), facts(HOSTILE)),
        write(tmp_path / "hr", spread(99), facts("HR", **HR)),
    ]
    report(paths, tmp_path / "out", title=HOSTILE)
    return (tmp_path / "out" / "report.html").read_text()


def test_the_policy_allows_our_own_style_and_script_and_nothing_from_elsewhere(page):
    parsed = Page(page)
    (policy,) = [
        more["content"] for tag, more in parsed.elements if more.get("http-equiv") == "Content-Security-Policy"
    ]
    style, data, script = (text for _, text in parsed.raw)
    for text in (style, script):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy and "http" not in policy
    links = [v for tag, more in parsed.elements for k, v in more.items() if k in ("src", "href", "action", "data")]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert not any(k == "style" or k.startswith("on") for _, more in parsed.elements for k in more)
    assert set(HTTP.findall(style)) == set() and json.loads(data)["results"][1]["name"] == HOSTILE


def test_what_users_wrote_opens_no_element(page):
    tags = [tag for tag, _ in Page(page).elements]
    assert tags.count("script") == 2 and tags.count("img") == 2  # our own
    assert HOSTILE not in page and "&lt;script&gt;" in page and "\\u003cscript\\u003e" in page


def test_nothing_that_is_shown_is_shown_twice(page):
    ids = [more["id"] for _, more in Page(page).elements if "id" in more]
    assert len(ids) == len(set(ids))
    described = [more["aria-labelledby"] for _, more in Page(page).elements if "aria-labelledby" in more]
    assert {name for names in described for name in names.split()} <= set(ids)
    labels = {more["for"] for tag, more in Page(page).elements if tag == "label"}
    assert labels <= set(ids)


def test_warnings_stand_in_the_page(tmp_path):
    paths = [write(tmp_path / n, rows(40), facts(n, data=d)) for n, d in (("a", "x<y"), ("b", "z"))]
    report(paths, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert '<p class="note warning"><strong>WARNING:</strong> not comparable: the results differ in data (' in text
    assert "<code>x&lt;y</code>: a; <code>z</code>: b" in text


def test_what_the_page_shows_is_defined_in_it(page):
    section = page[page.index('<section id="definitions"') :]
    for label in ("IoU_max", "precision", "recall", "By source", "By width of the blur kernel", "blur sigma"):
        assert section.count(f"<dt>{label}</dt>") == 1
    assert "width bias" not in section and "not in the file" not in section


# ---- sample images ----


def test_a_file_is_held_once_and_the_budget_is_kept(tmp_path):
    paths = [with_samples(write(tmp_path / n, spread(60), facts(n))) for n in "ab"]
    whole = gallery(load(paths))
    assert [len(own) for own in whole.samples] == [2, 2] and whole.left_out == 0
    assert len(whole.uris) <= 2 * len(FILES)  # both results have the same files
    first = whole.samples[0][0]
    assert (first["key"], first["kinds"], first["quality"]) == ("CFD_69", ["best 1", "worst 1"], "IoU 0.600")
    content = (tmp_path / "a" / "pictures" / "samples" / "00-CFD_69" / "sr.webp").read_bytes()
    assert base64.b64decode(whole.uris[first["files"]["sr"]].removeprefix("data:image/webp;base64,")) == content
    room = sum(len(whole.uris[name]) for name in set(first["files"].values()))
    less = gallery(load(paths), budget=room)
    assert [[sample["key"] for sample in own] for own in less.samples] == [["CFD_69"]] * 2 and less.left_out == 2
    assert gallery(load(paths), budget=0) == ({}, [[], []], 4)


def test_damaged_samples_are_answered_in_one_line_before_anything_is_written(tmp_path):
    path = with_samples(write(tmp_path / "a", rows(40), facts("a")))
    (path / "pictures" / "samples" / "index.json").write_text("{")
    with pytest.raises(SystemExit, match="^error: .*samples/index.json is damaged, no JSON: Expecting"):
        main([str(path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# ---- curves ----


def test_curves_are_those_of_the_counts(tmp_path):
    (result,) = load([write(tmp_path / "a", spread(60), facts("a"))])
    found = curves_of(result)
    tp = np.array([row["tp"][0] for row in spread(60)])
    assert found["pooled"]["recall"][:50] == pytest.approx([tp.sum() / 7000] * 50)
    assert found["image"]["recall"][:50] == pytest.approx([tp.mean() / 100] * 50)
    assert found["pooled"]["precision"][:50] == [1] * 50 and found["pooled"]["precision"][50:] == [None] * 49
    assert found["image"]["precision"][50:] == [0] * 49 and found["image"]["iou"] == result.data["curves"]["image_iou"]


def test_points_are_within_the_axes_and_the_maximum_is_marked(tmp_path):
    results = load([write(tmp_path / n, rows(h), facts(n, **more)) for n, h, more in (("a", 43, {}), ("hr", 20, HR))])
    curves = [curves_of(result) for result in results]
    plot = iou_plot(results, curves)
    assert plot.top == 0.5 and [text for _, text in plot.up] == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    assert [(s.colour, s.marker) for s in plot.series] == [(0, 0), (None, None)]  # a bound is black
    width, height = WIDTH - LEFT - 12, HEIGHT - TOP - BOTTOM
    first = plot.series[0].lines[0].points.split()[0]
    assert first == f"{LEFT + 0.01 * width:.1f},{HEIGHT - BOTTOM - 0.43 / 0.5 * height:.1f}"
    assert plot.series[0].peak == pytest.approx((LEFT + 0.01 * width, HEIGHT - BOTTOM - 0.86 * height))
    assert "a: 0.430 per image at 0.01, 0.430 pooled at 0.01" in plot.words
    for drawn in (plot, precision_recall_plot(results, curves)):
        points = [p.split(",") for s in drawn.series for line in s.lines for p in line.points.split()]
        assert all(LEFT <= float(x) <= WIDTH - 12 and TOP <= float(y) <= HEIGHT - BOTTOM for x, y in points)


def test_reliability_is_drawn_and_listed_where_files_have_it(tmp_path):
    of = [[*map(dict.__or__, rows(40, images=9), calibrated(9, surely))] for surely in (1.0, 3.0)]
    paths = [write(tmp_path / name, own, facts(name)) for name, own in zip("ab", of)]
    old = write(tmp_path / "old", rows(40, images=9), facts("old"))
    results = load([*paths, old])
    plot = reliability_plot(results)
    curve = results[0].data["calibration"]["reliability"]
    assert [series.name for series in plot.series] == ["a", "b"] and reliability_plot(results[2:]) is None
    full = np.count_nonzero(curve["pixels"])
    assert len(plot.series[0].dots) == full == len(plot.series[0].lines[0].points.split())
    width, height = WIDTH - LEFT - 12, HEIGHT - TOP - BOTTOM
    first = LEFT + curve["prob"][0] * width, HEIGHT - BOTTOM - curve["crack"][0] * height
    assert plot.series[0].dots[0] == pytest.approx(first)
    report([*paths, old], tmp_path / "out")
    html, markdown = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert f'<td>pixels</td><td class="number">{curve["pixels"][0]:,}</td>' in html and 'id="plot-3"' in html
    assert f"{results[1].data['metrics']['image']['ece']:.4f}" in html and " ECE |" in markdown
    assert "temperature</dt><dd>the temperature (the model" in html.replace("\n", "")
    report([old], tmp_path / "alone")
    html = (tmp_path / "alone" / "report.html").read_text()
    assert "plot-3" not in html and ">ECE" not in html


def test_without_counts_there_is_no_curve_of_precision(tmp_path):
    path = write(tmp_path / "a", rows(40), facts("a")) / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "per_image": None}))
    (result,) = load([path])
    assert precision_recall_plot([result], [curves_of(result)]) is None
    report([path], tmp_path / "out")
    assert "plot-2" not in re.sub("<script>.*", "", (tmp_path / "out" / "report.html").read_text(), flags=re.DOTALL)


# ---- groups and images ----


def test_groups_of_all_results_are_side_by_side(tmp_path):
    paths = [write(tmp_path / n, spread(best), facts(n)) for n, best in (("a", 60), ("b", 90))]
    old = write(tmp_path / "old", rows(40), facts("old"))  # all of one source
    source, blur = parts_of(load([*paths, old]))
    assert (source.title, source.measure, source.names, source.limit) == ("By source", "IoU", ["a", "b"], 1.0)
    assert [(part.name, part.images) for part in source.parts] == [("CFD", 35), ("rissbilder", 35)]
    expected = [np.mean([row["tp"][0] / 100 for row in spread(best)[1::2]]) for best in (60, 90)]
    assert source.parts[0].values == pytest.approx(expected, abs=1e-6)
    assert [part.name for part in blur.parts] == ["0-1 px", "1-2 px", "2-3 px"]


def test_groups_of_sr_alone_are_measured_by_psnr(tmp_path):
    plain = [{k: v for k, v in row.items() if k not in ("tp", "fp", "fn")} for row in spread(60)]
    source, _ = parts_of(load([write(tmp_path / "a", plain, facts("a"))]))
    assert source.measure == "PSNR [dB]" and source.limit == max(part.values[0] for part in source.parts) > 25


def test_every_image_has_the_columns_that_any_result_has(tmp_path):
    some = [{**row, "cldice": 0.123456789} for row in rows(40)]
    found = images_of(load([write(tmp_path / "a", some, facts("a")), write(tmp_path / "b", rows(60), facts("b"))]))
    assert [column["key"] for column in found["columns"]] == ["iou", "cldice", "psnr", "ssim"]
    assert (
        found["results"][0]["values"]["cldice"] == [0.123457] * 3
        and found["results"][1]["values"]["cldice"] == [None] * 3
    )
    assert found["results"][1]["keys"] == ["image_0", "image_1", "image_2"]


# ---- published figures ----


def test_published_shares_are_those_of_the_paper():
    by_model = {figure.model: figure for figure in FIGURES}
    assert f"{by_model['CSBSR, PSPNet, beta 0.3'].share:.1f}" == "93.0" and FIGURES[0].share == 100
    assert len(by_model) == 11 and all(figure.iou_max >= figure.aiu for figure in FIGURES)


@pytest.mark.parametrize(
    "about, alike",
    [
        ({"data": "shards/khanhha/test"}, True),
        ({"data": "shards/uav"}, False),
        ({"data": "shards/khanhha/test", "scale": 2}, False),
        ({"data": "shards/khanhha/test", "degradation": {"name": "gaussian", "sigma": [0.2, 1.3]}}, False),
        ({"data": "shards/khanhha/test", "degradation": "gaussian"}, True),  # its defaults are the paper's
        ({"data": "shards/khanhha/test", "degradation": {"name": "gaussian", "isotropic": True}}, False),
        ({"data": "shards/khanhha/test", "degradation": {"name": "gaussian", "theta": [0, 10]}}, False),
        ({"data": "shards/khanhha/test", "limit": 5}, False),
        ({"data": "shards/khanhha/train"}, False),
    ],
)
def test_published_figures_are_set_apart_whatever_the_setting(tmp_path, about, alike):
    paths = [write(tmp_path / "a", rows(40), facts("ours", **about))]
    assert bool(same_protocol(load(paths))) == alike
    text = (report(paths, tmp_path / "out").parent / "report.html").read_text()
    assert ("ours were evaluated in this setting too" in text) == alike == ("do not compare" not in text)
    assert "SrcNet" not in (tmp_path / "out" / "report.md").read_text() + (tmp_path / "out" / "table.tex").read_text()
    assert text.count("SrcNet") == 1 and "<strong>0.573" not in text
