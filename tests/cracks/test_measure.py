"""Measured cracks as tables, GeoJSON and pictures, and the command that writes them."""

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cssr.cracks.files import Georeference, Units, annotate_picture, write_geojson, write_picture, write_table
from cssr.cracks.measure import measure_cracks
from cssr.cracks.run import Criterion, masks_at, read_mask
from cssr.measure import main


def mask_of_two() -> np.ndarray:
    """A bar of 200 x 8 pixels and a T of 100 + 60 pixels, 4 wide."""
    mask = np.zeros((300, 400), np.uint8)
    mask[20:28, 50:250] = 1
    mask[100:104, 50:150] = mask[104:162, 100:104] = 1
    return mask


def save(mask: np.ndarray, path) -> None:
    Image.fromarray(mask.astype(bool)).save(path)


def rows_of(path) -> list[dict[str, float | None]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [{name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(file)]


# ---- files ----


def test_a_table_is_in_pixels_of_the_photograph_and_in_millimetres(tmp_path):
    cracks = measure_cracks(mask_of_two())
    rows = rows_of(write_table(cracks, tmp_path / "a.csv"))
    assert [row["number"] for row in rows] == [1, 2] and not any("mm" in name for name in rows[0])
    first = {"length_px": 200, "mean_width_px": 8, "max_width_px": 8, "orientation_deg": 0, "area_px": 1600}
    first |= {"left": 50, "top": 20, "right": 250, "bottom": 28}
    assert {name: rows[0][name] for name in first} == pytest.approx(first, abs=0.2)
    assert rows[0]["widest_y"] == pytest.approx(24, abs=0.51)  # the row of pixels next to the middle
    halves = rows_of(write_table(cracks, tmp_path / "b.csv", Units(scale=4, mm_per_pixel=0.5)))
    expected = {"length_px": 50, "mean_width_px": 2, "area_px": 100, "left": 12.5, "length_mm": 25, "mean_width_mm": 1}
    expected |= {"max_width_mm": 1, "area_mm2": 25}
    assert {name: halves[0][name] for name in expected} == pytest.approx(expected, abs=0.05)
    assert rows_of(write_table([], tmp_path / "c.csv")) == [] and (tmp_path / "c.csv").read_text().startswith("number,")


def check_geojson(path) -> dict:
    """RFC 7946, as far as it concerns lines."""
    data = json.loads(path.read_text())
    assert data["type"] == "FeatureCollection" and isinstance(data["features"], list)
    for feature in data["features"]:
        assert feature["type"] == "Feature" and isinstance(feature["properties"], dict)
        kind, lines = feature["geometry"]["type"], feature["geometry"]["coordinates"]
        assert kind in ("LineString", "MultiLineString")
        for line in lines if kind == "MultiLineString" else [lines]:
            assert len(line) > 1 and all(len(p) == 2 and all(math.isfinite(x) for x in p) for p in line)
    return data


def length_of(geometry: dict) -> float:
    lines = geometry["coordinates"] if geometry["type"] == "MultiLineString" else [geometry["coordinates"]]
    return sum(np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in lines)


def test_geojson_holds_lines_as_long_as_the_table_says(tmp_path):
    mask = mask_of_two()
    y, x = np.mgrid[:300, :400] + 0.5
    mask |= abs(np.hypot(x - 280, y - 200) - 40) < 3  # a closed ring
    cracks = measure_cracks(mask)
    units = Units(scale=2, mm_per_pixel=3)
    data, rows = check_geojson(write_geojson(cracks, tmp_path / "a.geojson", units)), None
    rows = rows_of(write_table(cracks, tmp_path / "a.csv", units))
    assert [feature["properties"] for feature in data["features"]] == rows
    assert [f["geometry"]["type"] for f in data["features"]] == ["LineString", "LineString", "MultiLineString"]
    for feature in data["features"]:
        assert length_of(feature["geometry"]) == pytest.approx(feature["properties"]["length_px"], rel=0.01)
    ring = np.array(data["features"][0]["geometry"]["coordinates"])
    assert np.array_equal(ring[0], ring[-1]) and len(ring) < 80
    assert np.hypot(*(ring - (140, 100)).T) == pytest.approx(20, abs=0.6)
    assert check_geojson(write_geojson([], tmp_path / "b.geojson"))["features"] == [] and "crs" not in data


def test_confidence_is_in_files_where_probabilities_are_known(tmp_path):
    mask = mask_of_two()
    for prob, expected in ((None, None), (np.full(mask.shape, 51, np.uint8), 0.2)):
        cracks = measure_cracks(mask, prob=prob)
        data = check_geojson(write_geojson(cracks, tmp_path / "a.geojson"))
        found = [*rows_of(write_table(cracks, tmp_path / "a.csv")), *(f["properties"] for f in data["features"])]
        assert [row["confidence"] for row in found] == [expected] * 4


def test_geojson_on_a_map(tmp_path):
    place = Georeference((0.1, 0.0, 500000.0, 0.0, -0.1, 5600000.0), "urn:ogc:def:crs:EPSG::25832")
    data = check_geojson(write_geojson(measure_cracks(mask_of_two()), tmp_path / "a.geojson", Units(2), place))
    assert data["crs"] == {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::25832"}}
    line = np.array(sorted(data["features"][0]["geometry"]["coordinates"]))
    assert line[[0, -1]] == pytest.approx(np.array([[500005, 5599997.6], [500025, 5599997.6]]), abs=0.051)
    turned = Georeference((0.0, 2.0, 10.0, 3.0, 0.0, 20.0))
    assert turned.place(np.array([[1.0, 5.0]])).tolist() == [[20.0, 23.0]]


def test_the_picture_shows_lines_in_the_cracks_and_labels_beside_them(tmp_path):
    mask = mask_of_two()
    cracks = measure_cracks(mask)
    picture = np.asarray(annotate_picture(mask, cracks))
    assert picture.shape == (600, 800, 3)
    red = (picture[..., 0] > 180) & (picture[..., 1] < 120)
    inside = np.kron(mask, np.ones((2, 2))) > 0
    assert red[inside].any() and not red[~inside].any()
    assert red[:, 110:490].any(0).mean() > 0.9  # along the whole bar
    plain = np.asarray(annotate_picture(mask, []))
    assert set(np.unique(plain)) == {190, 255} and (picture != plain)[~inside].any()
    assert max(annotate_picture(np.zeros((50, 9000), bool), []).size) == 4000
    photograph = np.full((300, 400, 3), 77, np.uint8)
    assert np.median(annotate_picture(photograph, cracks)) == 77
    assert [p.name for p in [write_picture(mask, cracks, tmp_path / "new" / "a.png")]] == ["a.png"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_labels_cover_no_crack_and_a_tenth_of_the_picture():
    mask = np.zeros((1200, 1200), np.uint8)
    mask[20:-20:40, 20:-20] = np.tile(np.repeat([1, 0], [30, 10]), 29)
    cracks = measure_cracks(mask)
    picture = np.asarray(annotate_picture(np.full((1200, 1200, 3), 77, np.uint8), cracks))
    white = (picture == 255).all(-1)
    assert len(cracks) == 29 * 29 and not white[mask > 0].any()
    assert 0.05 < white.mean() < 0.11


def test_units_that_make_no_sense():
    for units in ({"scale": 0}, {"mm_per_pixel": -1.0}, {"mm_per_pixel": 1e-300}, {"scale": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(units))} must be a number above 0"):
            Units(**units)


# ---- the command ----


@pytest.mark.parametrize(
    "kind", ["1.png", "L.png", "L01.png", "RGB.png", "P.png", "1.tif", "L.bmp"], ids=lambda kind: kind
)
def test_masks_of_every_kind_are_read_alike(kind, tmp_path):
    mask, (mode, suffix) = mask_of_two(), kind.split(".")
    image = Image.fromarray(mask if mode == "L01" else mask * 255)
    path = tmp_path / f"a.{suffix}"
    (image if mode == "L01" else image.convert(mode)).save(path)
    read, place = read_mask(path)
    assert read.dtype == bool and np.array_equal(read, mask > 0) and place is None


def unclear_masks(folder) -> None:
    """Masks of which no rule says what is crack, by what clears them: the crack is that of `mask_of_two`."""
    mask = mask_of_two()
    for top in (2, 127):
        Image.fromarray(mask * np.uint8(top)).save(folder / f"threshold_1_{top}.png")
    missing = np.where(np.arange(300)[:, None] > 250, 255, mask).astype(np.uint8)
    Image.fromarray(missing).save(folder / "values_1_nodata.png")
    Image.fromarray(np.where(missing > 1, 2, missing).astype(np.uint8)).save(folder / "values_1_labels.png")
    palette = Image.fromarray(mask)
    palette.putpalette([0, 0, 0, 0, 128, 0])
    palette.save(folder / "colors_0,128,0_palette.png")
    palette.convert("RGB").save(folder / "colors_0,128,0_rgb.png")
    ground = np.zeros((300, 400, 4), np.uint8)
    for name, colour, alpha in (("black_on_none", 0, 255 * mask), ("white_on_none", 255, 255 * mask)):
        ground[..., :3], ground[..., 3] = colour, alpha
        Image.fromarray(ground).save(folder / f"colors_{colour},{colour},{colour}_{name}.png")


def test_unclear_masks_are_refused_with_the_option_that_clears_them(tmp_path, capsys):
    unclear_masks(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        option, value, _ = path.stem.split("_", 2)
        with pytest.raises(ValueError, match=rf"{path.name}.*--(crack-)?{option}"):
            read_mask(path)
        what = Criterion(int(value)) if option == "threshold" else Criterion(**{option: value})
        assert np.array_equal(read_mask(path, what)[0], mask_of_two() > 0), path.name
    with pytest.raises(SystemExit, match="8 of 8 masks failed"):
        main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert "no cracks" not in capsys.readouterr().out
    main([str(tmp_path / "values_1_labels.png"), "--out", str(tmp_path / "out"), "--crack-values", "1"])
    with pytest.raises(SystemExit, match="error: --threshold and --crack-values both say what is crack"):
        main([str(tmp_path), "--out", "o", "--crack-values", "1", "--threshold", "1"])
    with pytest.raises(SystemExit, match="error: --threshold is 300; give 0 to 254"):
        main([str(tmp_path), "--out", "o", "--threshold", "300"])


def test_a_mask_that_is_crack_by_more_than_half_is_measured_with_a_warning(tmp_path, capsys):
    save(1 - mask_of_two(), tmp_path / "inverted.png")
    main([str(tmp_path), "--out", str(tmp_path / "out")])
    assert "inverted.png is crack by 98%; if it is inverted" in capsys.readouterr().err
    assert np.array_equal(read_mask(tmp_path / "inverted.png", Criterion(values="0"))[0], mask_of_two() > 0)


def test_missing_data_of_a_geotiff_are_no_crack(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    values = mask_of_two()
    values[250:] = 255
    how = {"driver": "GTiff", "height": 300, "width": 400, "count": 1, "dtype": "uint8", "crs": "EPSG:25832"}
    for nodata, top in ((255, 1), (0, 1), (0, 255)):
        with rasterio.open(tmp_path / "a.tif", "w", **how, nodata=nodata) as file:
            file.write(values if nodata else mask_of_two() * top, 1)
        assert np.array_equal(read_mask(tmp_path / "a.tif")[0], mask_of_two() > 0)


def test_a_geotiff_is_placed_as_gdal_does(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    from rasterio.transform import Affine

    for k, transform in enumerate(
        (Affine(0.1, 0, 500000, 0, -0.1, 5600000), Affine(0.1, 0.02, 5e5, 0.03, -0.1, 5.6e6))
    ):
        for point in ("Area", "Point"):
            path = tmp_path / f"{k}{point}.tif"
            how = {"driver": "GTiff", "height": 300, "width": 400, "count": 1, "dtype": "uint8", "crs": "EPSG:25832"}
            with rasterio.open(path, "w", **how, transform=transform) as file:
                file.update_tags(AREA_OR_POINT=point)
                file.write(mask_of_two() * 255, 1)
            mask, place = read_mask(path)
            with rasterio.open(path) as file:
                assert place.affine == pytest.approx(tuple(file.transform)[:6], rel=1e-12)
            assert place.crs == "urn:ogc:def:crs:EPSG::25832" and np.array_equal(mask, mask_of_two() > 0)


def test_the_command_measures_masks_and_says_what_it_found(tmp_path, capsys):
    save(mask_of_two(), tmp_path / "bridge.png")
    save(np.zeros((40, 50)), tmp_path / "clean.png")
    main([str(tmp_path), "--out", str(tmp_path / "out"), "--mm-per-pixel", "0.5", "--least-length", "180"])
    output = capsys.readouterr().out
    assert "bridge.png: 1 crack, 100 mm long, at most 4 mm wide" in output and "clean.png: no cracks" in output
    names = {f"{stem}_cracks.{end}" for stem in ("bridge", "clean") for end in ("csv", "geojson", "png")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    (row,) = rows_of(tmp_path / "out" / "bridge_cracks.csv")
    assert row["length_mm"] == pytest.approx(100, abs=0.1)


def test_files_that_are_no_masks_are_reported_and_the_others_measured(tmp_path, capsys):
    save(mask_of_two(), tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SystemExit, match="3 of 4 masks failed: cut.png, deep.png, empty.png"):
        main([str(tmp_path), "--out", str(tmp_path / "out")])
    output = capsys.readouterr()
    lines = output.err.strip().splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert "deep.png is of mode I;16; store masks as 8-bit grey or 1-bit images" in output.err
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"good_cracks"}


def test_a_name_with_a_line_end_is_reported_in_one_line(tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8), bool)).save(tmp_path / "a\nerror.png")
    (tmp_path / "b\n.png").write_text("no image")
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", str(tmp_path / "out")])
    output = capsys.readouterr()
    assert "a\\nerror.png: no cracks" in output.out and len(output.err.splitlines()) == 1


def test_which_files_of_a_folder_are_masks(tmp_path):
    for name in ("a.png", "b/a.png", "a.tif", "c_cracks.png", "c_cracks.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(masks_at([tmp_path])) == ["a", "a.tif", "b/a"]
    assert list(masks_at([tmp_path / "a.png", tmp_path / "b" / "a.png", tmp_path / "a.png"])) == ["a", "a.png"]
    (tmp_path / "001_cracks.png").touch()  # not ours: no table beside it
    assert "001_cracks" in masks_at([tmp_path])
    (tmp_path / "x_mask.png").touch()
    assert list(masks_at([tmp_path])) == ["x_mask"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere", "--out", "o"], "no mask or folder at nowhere"),
        (["{folder}", "--out", "o"], "no mask in .*: none of its files ends with .jpg"),
        (["{folder}", "--out", "o", "--scale", "0"], "scale must be a number above 0, got 0"),
        (["{folder}", "--out", "o", "--least-length", "nan"], "--least-length must be 0 or more, got nan"),
        (
            ["{folder}", "--out", "o", "--mm-per-pixel", "-2"],
            r"mm_per_pixel must be a number above 0 \(1e-06 to 1e\+06\), got -2",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        main([text.format(folder=tmp_path) for text in arguments])


def test_the_command_needs_no_torch():
    """Which would take ten times its memory and its time."""
    code = "import sys, cssr.measure; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_results_that_cannot_be_written_are_one_line(tmp_path, capsys):
    save(mask_of_two(), tmp_path / "a.png")
    (tmp_path / "out").touch()
    with pytest.raises(SystemExit, match=f"error: {tmp_path / 'out'} cannot be written: File exists"):
        main([str(tmp_path / "a.png"), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().err == ""  # no line for each mask


def test_a_ragged_mask_costs_no_other_its_measures(tmp_path, capsys):
    noise = np.random.default_rng(0).random((700, 700))
    (tmp_path / "masks").mkdir()
    save(noise < 0.5, tmp_path / "masks/noise.png")
    save(noise < 0.02, tmp_path / "masks/specks.png")
    save(mask_of_two(), tmp_path / "masks/two.png")
    words = [str(tmp_path / "masks"), "--out", str(tmp_path / "out"), "--most-cracks", "500"]
    with pytest.raises(SystemExit, match="1 of 3 masks failed: noise.png"):
        main(words)
    output = capsys.readouterr().err
    assert "noise.png: too ragged to measure: " in output and ", or raise --most-cracks 500" in output
    assert "specks.png: left out " in output and "the 500 largest are measured; raise --most-cracks" in output
    assert (
        len(rows_of(tmp_path / "out/specks_cracks.csv")) == 500 and len(rows_of(tmp_path / "out/two_cracks.csv")) == 2
    )
    with pytest.raises(SystemExit, match="--most-cracks must be 1 or more, got 0"):
        main([*words[:-1], "0"])
