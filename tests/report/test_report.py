"""Reports from results made by hand: tables, bold, shares, warnings, curves, pictures, CSV and mistakes."""

import csv
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from made_results import HR, facts, rows, write
from PIL import Image

from cssr.evaluation.definitions import KEYS
from cssr.evaluation.results import load
from cssr.report import caveats, main, report


@pytest.fixture
def three(tmp_path) -> list[Path]:
    """Two systems and the HR upper bound."""
    distances = {"hd95": [20.0] * 98 + [8.126], "msd": [3.0] * 99}
    return [
        write(tmp_path / "a", rows(40, psnr=29.0), facts("CSSR")),
        write(tmp_path / "b", rows(60, psnr=28.0, **distances), facts("CSBSR")),
        write(tmp_path / "hr", rows(80, psnr=float("inf"), mse=0.0, ssim=1.0), facts("HR", **HR)),
    ]


def table(text: str, number: int = 0) -> dict[str, dict[str, str]]:
    """The Markdown table of that number: rows by result, cells by heading."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in blocks[number]]
    return {line[0]: dict(zip(head, line)) for line in lines}


def test_table_numbers_bold_and_share(three, tmp_path):
    text = report(three, tmp_path / "out").read_text()
    found = table(text)
    assert list(found) == ["CSSR", "CSBSR", "HR"]
    assert [row["IoU_max (threshold)"] for row in found.values()] == [
        "0.400 (0.01)",
        "**0.600** (0.01)",
        "0.800 (0.01)",
    ]
    assert [row["share of HR"] for row in found.values()] == ["50.0 %", "**75.0 %**", "100.0 %"]
    assert [row["AIU"] for row in found.values()] == ["0.202", "**0.303**", "0.404"]
    assert [row["F1"] for row in found.values()] == ["0.571", "**0.750**", "0.889"]
    assert [row["PSNR [dB]"] for row in found.values()] == ["**29.00**", "28.00", "-"]
    assert [row["SSIM"] for row in found.values()] == ["**0.700**", "**0.700**", "1.000"]
    assert [row["HD95_min [px]"] for row in found.values()] == ["-", "8.13", "-"]
    assert not any("kernel PSNR" in heading for heading in found["CSSR"])


def test_less_is_better_for_distances(tmp_path):
    near, far = ({"hd95": [d] * 99, "msd": [d] * 99} for d in (2.0, 3.0))
    runs = [write(tmp_path / n, rows(40, **d), facts(n)) for n, d in (("near", near), ("far", far))]
    found = table(report(runs, tmp_path / "out").read_text())
    assert (found["near"]["AHD95 [px]"], found["far"]["AHD95 [px]"]) == ("**2.00**", "3.00")


def test_pooled_table_and_kernel_psnr(tmp_path):
    large = {**rows(90)[0], "key": "large", "tp": [900] * 99, "fn": [100] * 99, "pixels": 4096, "kernel_psnr": 45.678}
    run = write(tmp_path / "a", [*rows(50, images=1), large], facts("one"))
    text = report([run], tmp_path / "out").read_text()
    assert table(text)["one"]["kernel PSNR [dB]"] == "45.68"
    assert table(text)["one"]["IoU_max (threshold)"] == "0.700 (0.01)"
    assert table(text, 1)["one"]["IoU_max (threshold)"] == "0.864 (0.01)"  # (50 + 900) of 1100
    shown = ["result", "IoU_max (threshold)", "95 % of IoU_max", "AIU", "F1", "ODS", "AP", "PSNR [dB]"]
    assert table(text)["one"]["OIS"] == "0.807"  # (2 * 50 / 150 + 2 * 900 / 1900) / 2
    assert list(table(text, 1)["one"]) == shown
    assert table(text, 1)["one"]["AP"] == "0.864"  # nothing false: the recall, 950 of 1100
    assert "**" not in text[: text.index("## Definitions")]  # nothing is best where there is nothing to beat
    assert "share of" not in text


def test_intervals_are_behind_the_measure_and_in_the_csv(three, tmp_path):
    spread = [{**rows(10 * i)[0], "key": f"image_{i}"} for i in range(10)]
    old = write(tmp_path / "old", spread, facts("old"))
    data = json.loads((old / "results.json").read_text())
    del data["intervals"], data["groups"]
    (old / "results.json").write_text(json.dumps(data))
    runs = [*three, write(tmp_path / "spread", spread, facts("spread")), old]
    found = table(report(runs, tmp_path / "out").read_text())
    assert found["CSSR"]["95 % of IoU_max"] == "0.400 to 0.400"  # all images alike
    low, high = json.loads((runs[-2] / "results.json").read_text())["intervals"]["image"]["iou_max"]
    assert 0.2 < low < 0.45 < high < 0.7
    assert found["spread"]["95 % of IoU_max"] == f"{low:.3f} to {high:.3f}" and found["old"]["95 % of IoU_max"] == "-"
    with open(tmp_path / "out" / "table.csv", encoding="utf-8", newline="") as file:
        lines = {(line["name"], line["aggregation"]): line for line in csv.DictReader(file)}
    line = lines["spread", "image"]
    assert (float(line["iou_max_low"]), float(line["iou_max_high"])) == (low, high)
    assert lines["old", "image"]["iou_max_low"] == ""


def test_centre_lines_have_columns_where_any_result_has_them(tmp_path):
    more = {"cldice": 0.5, "cliou": 0.25, "boundary_f1": 0.75, "lq_psnr": 33.333}
    runs = [write(tmp_path / n, rows(40, **m), facts(n)) for n, m in (("with", more), ("without", {}))]
    found = table(report(runs, tmp_path / "out").read_text())
    names = ("clDice", "clIoU", "boundary F1", "LQ PSNR of the kernel [dB]")
    assert [found["with"][name] for name in names] == ["0.500", "0.250", "0.750", "33.33"]
    assert [found["without"][name] for name in names] == ["-"] * 4
    found = table(report(runs[1:], tmp_path / "other").read_text())
    assert not set(names) & found["without"].keys()


def test_errors_of_width_and_length_are_less_the_better(tmp_path):
    errors = {"width_error": (1.5, 2.5), "max_width_error": (3.0, 2.0), "length_error": (12.34, 20.0)}
    runs = [write(tmp_path / n, rows(40, **{k: v[i] for k, v in errors.items()}), facts(n)) for i, n in enumerate("ab")]
    found = table(report(runs, tmp_path / "out").read_text())
    names = ("width error [px]", "greatest width error [px]", "length error [px]")
    assert [found["a"][name] for name in names] == ["**1.50**", "3.00", "**12.3**"]
    assert [found["b"][name] for name in names] == ["2.50", "**2.00**", "20.0"]
    assert "- **length error**: absolute error" in (tmp_path / "out" / "report.md").read_text()


def test_reference_by_name(three, tmp_path):
    found = table(report(three, tmp_path / "out", reference="CSBSR").read_text())
    assert found["CSSR"]["share of CSBSR"] == "66.7 %"


# ---- comparability ----


def test_upper_bound_is_no_reason_to_warn(three, tmp_path):
    text = report(three, tmp_path / "out").read_text()
    assert "WARNING" not in text
    assert "HR segments the HR image itself; another scale and degradation and resampler is expected there" in text


@pytest.mark.parametrize(
    "images, about, expected",
    [
        (3, {"data": "shards/val"}, "data (`shards/test`: a; `shards/val`: b; though names and crack areas"),
        (4, {}, "number of images (3: a; 4: b)"),
        (3, {"degradation": {"name": "downsample"}}, "degradation (`{name: gaussian, sigma: [0.2, 4.0]}`: a; "),
        (3, {"resampler": "bilinear x1/4"}, "resampler (bicubic x1/4: a; bilinear x1/4: b)"),
        (3, {"scale": 2}, "scale (4: a; 2: b)"),
        (3, {"seed": 1}, "seed (0: a; 1: b)"),
    ],
)
def test_differences_are_warned_of(tmp_path, images, about, expected):
    runs = [
        write(tmp_path / "a", rows(40), facts("a")),
        write(tmp_path / "b", rows(50, images=images), facts("b", **about)),
    ]
    (line,) = caveats(load(runs))
    assert line.startswith("**WARNING:** not comparable: the results differ in ") and expected in line
    assert line.count("(") == expected.count("(")  # nothing else differs


def test_other_images_under_the_same_path_are_warned_of(tmp_path):
    others = [{**row, "key": f"other_{i}"} for i, row in enumerate(rows(40))]
    runs = [write(tmp_path / "a", rows(40), facts("a")), write(tmp_path / "b", others, facts("b"))]
    (line,) = caveats(load(runs))
    assert line.startswith("**WARNING:**") and "the images themselves" in line


def test_definitions_are_given_once_unless_they_differ(three, tmp_path):
    text = report(three, tmp_path / "out").read_text()
    assert text.count("- **AIU**") == 1 and "kernel" not in text and "amsd" not in text
    changed = json.loads((three[0] / "results.json").read_text())
    changed["definitions"]["aiu"] = "another | one"
    (three[0] / "results.json").write_text(json.dumps(changed))
    text = report(three, tmp_path / "out").read_text()
    assert "**WARNING:** the results define these differently (see Definitions): AIU.\n" in text
    assert "- **AIU** (CSSR): another \\| one" in text and "- **AIU** (CSBSR, HR): IoU" in text


# ---- files ----


def test_csv_holds_every_number(three, tmp_path):
    report(three, tmp_path / "out")
    with open(tmp_path / "out" / "table.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["name"], line["aggregation"]) for line in lines[:2]] == [("CSSR", "image"), ("CSSR", "pooled")]
    assert set(KEYS) < set(lines[0]) and len(lines) == 6
    expected = json.loads((three[1] / "results.json").read_text())["metrics"]["image"]
    assert [float(lines[2][key]) if lines[2][key] else None for key in KEYS] == [expected[key] for key in KEYS]


def test_curves_are_a_readable_picture(three, tmp_path):
    long = write(tmp_path / "c", rows(20), facts("_a very long name of a system with $2 and %s " * 3))
    report([*three, long], tmp_path / "out")
    with Image.open(tmp_path / "out" / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == 1200 and 600 < pixels.shape[0] < 1200
    assert all((pixels == colour).all(2).any() for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115), (0, 0, 0)))
    assert (pixels[:, -4:] == 255).all()  # nothing runs out of the picture


def test_pictures_are_copied_where_there_are_any(three, tmp_path):
    (three[0] / "pictures" / "median.png").unlink()
    text = report(three, tmp_path / "out").read_text()
    links = [
        line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![") and "pictures/" in line
    ]
    assert links[:2] == ["pictures/cssr/best.png", "pictures/cssr/worst.png"] and len(links) == 8
    for link in links:
        with Image.open(tmp_path / "out" / link) as image:
            assert image.size == (8, 8)


def test_again_gives_the_same_bytes_and_leaves_no_other_files(three, tmp_path):
    def content() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}

    report(three, tmp_path / "out", title="Table 1")
    first = content()
    report(three, tmp_path / "out", title="Table 1")
    assert content() == first and len(first) == 5 + 9
    assert (tmp_path / "out" / "report.md").read_text().startswith("# Table 1\n")


# ---- where results come from, and what they are called ----


def test_a_run_gives_all_its_evaluations_each_once_under_names_that_differ(tmp_path):
    for data in ("val", "test"):
        write(tmp_path / "run" / "evaluations" / data, rows(40), facts("run", data=f"shards/{data}"))
    found = load([tmp_path / "run", tmp_path / "run" / "evaluations" / "val" / "results.json"])
    assert [(r.name, r.slug) for r in found] == [("run (test)", "run-test"), ("run (val)", "run-val")]


def test_equal_names_on_equal_data_are_distinguished_by_place(tmp_path):
    found = load([write(tmp_path / n, rows(40), facts("run | 1")) for n in "ab"])
    assert [r.name for r in found] == [f"run | 1 ({tmp_path / n})" for n in "ab"]
    assert "run \\| 1" in report([r.path for r in found], tmp_path / "out").read_text()


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot read .*: No such file"),
        ("{", "is damaged, no JSON: Expecting"),
        ("[1]", "its format is None, expected 'cssr-results-1'"),
        ('{"format": "cssr-results-0"}', "its format is 'cssr-results-0'"),
        ('{"format": "cssr-results-1", "name": "a"}', "the whole has no data"),
    ],
)
def test_bad_files_are_answered_in_one_line(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as caught:
        main([str(tmp_path / "results.json"), "--out", str(tmp_path / "out")])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "place, value, message",
    [
        ("images", "a", "images must be a whole number, got 'a'"),
        ("definitions", [], "definitions must be a mapping"),
        ("metrics.image", None, "metrics.image must be a mapping, each a number or null, got None"),
        ("metrics.image.psnr", "a", "metrics.image must be a mapping"),
        ("curves", None, "curves must be an object"),
        ("curves.thresholds", [], "curves have no points, or not all as many"),
        ("curves.image_iou", [0.5], "curves have no points, or not all as many"),
        ("intervals.image.psnr", "ab", "intervals must be a mapping"),
        ("groups", {"blur": {"0-1 px": {"images": "a"}}}, "groups.blur.0-1 px.images must be a whole number"),
        ("calibration", {"temperature": 1, "reliability": 5}, "calibration.reliability must be an object"),
        ("model_settings", {"sr": 5}, "model_settings.sr must be a word or a mapping or null"),
        ("degradation", [3], "degradation must be a word or a mapping or null"),
        ("per_image", "abc", "per_image must be a list"),
        ("per_image", [{"key": 1}], r"per_image\[0\].key must be a word"),
    ],
)
def test_values_that_cannot_be_are_answered_in_one_line(place, value, message, three, tmp_path):
    data = load(three)[0].data
    *above, name = place.split(".")
    functools.reduce(dict.__getitem__, above, data)[name] = value
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(SystemExit, match=f"^error: .*results.json is damaged, evaluate again: {message}"):
        main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_other_mistakes_are_answered_in_one_line(three, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    out, paths = ["--out", str(tmp_path / "out")], [str(path) for path in three]
    for arguments, message in (
        ([str(tmp_path / "empty"), *out], "no results in"),
        ([*paths, *out, "--reference", "CSBSRR"], r"no result is called 'CSBSRR' \(did you mean CSBSR"),
        ([*paths, "--out", str(tmp_path / "file")], "File exists"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}") as caught:
            main(arguments)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_command_prints_the_table_and_the_place(three, tmp_path, capsys):
    main([*map(str, three), "--out", str(tmp_path / "deep" / "out")])
    printed = capsys.readouterr().out
    assert table(printed) == table((tmp_path / "deep" / "out" / "report.md").read_text())
    assert printed.rstrip().endswith("report.html (0.1 MB), report.md, table.tex, table.csv")


def test_no_share_is_taken_of_a_bound_on_other_images(tmp_path):
    """Nor is one refused where the bound sees the pixels at the edges that the scale cuts off."""
    bound = write(tmp_path / "hr", [row | {"pixels": 1056} for row in rows(80)], facts("hr", **HR, data_sha256="a"))
    same = write(tmp_path / "same", rows(40), facts("same", data_sha256="a"))
    other = write(tmp_path / "other", rows(60, images=4), facts("other", data_sha256="b", data="shards/else"))
    hr, one, two = load([bound, same, other])
    assert one.numbers("image", hr)["share"] == pytest.approx(50) and two.numbers("image", hr)["share"] is None
    assert caveats([hr, one])[0].startswith("HR upper bound") and "not comparable" in caveats([hr, two])[0]


def test_test_time_augmentation_is_reported(tmp_path):
    """Files of older versions do not say: they have none."""
    how = {"old": {}, "plain": {"tta": False}, "mean": {"tta": True}}
    old, plain, mean = load([write(tmp_path / name, rows(40), facts(name, **more)) for name, more in how.items()])
    assert caveats([old, plain]) == []
    assert caveats([plain, mean])[0].endswith("the results differ in tta (no: plain; yes: mean).")


def test_other_tiles_are_reported(tmp_path):
    results = load([write(tmp_path / str(tile), rows(40), facts(str(tile), tile=tile)) for tile in (0, 64)])
    assert caveats(results) == ["**WARNING:** not comparable: the results differ in tile (0: 0; 64: 64)."]
