"""What is read and written by windows: TIFFs, their place on the map, memory, full disks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import one_convolution  # noqa: F401, registers
import pytest
from paths import ROOT, SUPPORT
from PIL import Image

from cssr import JointModel
from cssr.config.schema import ModelConfig
from cssr.inference.predictor import predict
from cssr.models.joint import build_model
from cssr.predict import main
from cssr.utils import geotiff, photographs

rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install 'cssr[large]'")
MODEL = {"scale": 4, "sr": {"name": "bicubic"}, "seg": {"name": "one_convolution"}}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "export"
    build_model(ModelConfig(**MODEL)).save_pretrained(out, imports=["one_convolution"])
    return out


def pixels(height: int, width: int) -> np.ndarray:
    """Grey plaster with a dark line all across."""
    found = np.random.default_rng(0).integers(120, 200, (height, width, 3)).astype(np.uint8)
    for x in range(width):
        y = 10 + x * (height - 30) // width
        found[y : y + 4, x] = 20
    return found


def write_tiff(path: Path, values: np.ndarray, **how) -> Path:
    """H W 3 of any kind that GDAL writes."""
    height, width, bands = values.shape
    with rasterio.open(path, "w", "GTiff", width, height, bands, dtype=values.dtype, **how) as file:
        file.write(values.transpose(2, 0, 1))
    return path


MAP = {"crs": "EPSG:25832", "transform": rasterio.Affine(0.05, 0, 691000, 0, -0.05, 5335000)}
KINDS = {
    "tiled": {"tiled": True, "blockxsize": 64, "blockysize": 48},
    "striped": {"blockysize": 3},
    "bigtiff": {"bigtiff": "yes", "compress": "deflate", "predictor": 2},
    "lzw": {"compress": "lzw", "interleave": "band"},
    "zstd": {"compress": "zstd", "tiled": True, "blockxsize": 64, "blockysize": 64},
}


@pytest.mark.parametrize("kind", KINDS)
def test_tiffs_of_every_kind_by_windows(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "_SMALL", 0)
    expected = pixels(130, 170)
    path = write_tiff(tmp_path / "a.tif", expected, photometric="rgb", **KINDS[kind])
    with photographs.open_photograph(path) as photograph:
        assert isinstance(photograph._source, geotiff.TiffFile) and photograph.place is None
        assert np.array_equal(photograph.pixels(7, 11, 100, 150), expected[7:107, 11:161])


def test_16_bits_and_more_than_three_bands(tmp_path):
    values = np.concatenate([pixels(40, 50), pixels(40, 50)[..., :2]], 2).astype(np.uint16) * 257
    write_tiff(tmp_path / "a.tif", values, **MAP)
    assert np.array_equal(photographs.read_photograph(tmp_path / "a.tif"), pixels(40, 50))


@pytest.mark.parametrize("size, scale", [("sr", 4), ("photo", 1)])
def test_results_keep_the_place_on_the_map(export, tmp_path, size, scale):
    write_tiff(tmp_path / "a.tif", pixels(90, 120), photometric="rgb", **MAP)
    main([str(export), str(tmp_path / "a.tif"), "--out", str(tmp_path / "out"), "--size", size, "--device", "cpu"])
    with rasterio.open(tmp_path / "a.tif") as photograph, rasterio.open(tmp_path / "out" / "a_mask.tif") as mask:
        assert mask.crs == photograph.crs and mask.bounds == photograph.bounds
        assert mask.shape == (90 * scale, 120 * scale)
        assert mask.transform.a == pytest.approx(0.05 / scale)
    with rasterio.open(tmp_path / "out" / "a_sr.tif") as sr:
        assert sr.bounds == rasterio.coords.BoundingBox(691000, 5335000 - 4.5, 691006, 5335000)


def test_cracks_are_on_the_map(export, tmp_path):
    """The line from the photograph's upper left to its lower right, on the map in metres."""
    write_tiff(tmp_path / "a.tif", pixels(90, 120), photometric="rgb", **MAP)
    how = ["--out", str(tmp_path / "out"), "--size", "photo", "--measure", "--write", "mask", "--device", "cpu"]
    main([str(export), str(tmp_path / "a.tif"), *how])
    lines = json.loads((tmp_path / "out" / "a_cracks.geojson").read_text())
    assert lines["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::25832"
    points = np.array(lines["features"][0]["geometry"]["coordinates"])
    points = points[points[:, 0].argsort()]
    np.testing.assert_allclose(points[[0, -1]], [[691000, 5334999.4], [691006, 5334996.4]], atol=0.15)


def test_tiffs_hold_what_is_predicted_in_memory(export, tmp_path):
    """Over several tiles and blocks."""
    Image.fromarray(pixels(150, 171)).save(tmp_path / "a.png")
    options = ["--format", "tiff", "--tile", "100", "--float", "--device", "cpu"]
    main([str(export), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *options])
    found = predict(JointModel.from_pretrained(export), tmp_path / "a.png", tile=100)
    read = {}
    for name in ("sr", "prob", "mask", "overlay"):
        with rasterio.open(tmp_path / "out" / f"a_{name}.tif") as file:
            assert file.crs is None and file.profile["tiled"] and file.profile["compress"] == "deflate"
            read[name] = file.read().transpose(1, 2, 0)
    assert np.abs(read["sr"].astype(int) - found.sr).max() <= 1
    np.testing.assert_allclose(read["prob"][..., 0], found.prob, atol=1e-6)
    assert np.array_equal(read["mask"][..., 0], np.where(read["prob"][..., 0] > 0.5, 255, 0)) and found.mask().any()
    assert (read["overlay"] != read["sr"]).any(2).sum() == found.mask().sum()


def test_large_results_are_tiffs_and_need_no_option(export, tmp_path, monkeypatch):
    monkeypatch.setattr("cssr.inference.result_rows.PNG_PIXELS", 100_000)
    Image.fromarray(pixels(90, 120)).save(tmp_path / "a.png")
    main([str(export), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--size", "photo", "--device", "cpu"])
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"a_sr.tif", "a_prob.png", "a_mask.png", "a_overlay.png", "a_prediction.json"}


@pytest.mark.parametrize("bytes_, expected", [(1 << 29, "classic"), (5 << 30, "big")])
def test_files_that_may_pass_4_gb_are_bigtiffs(tmp_path, bytes_, expected):
    """By their first bytes; nothing is written, so that the file stays small."""
    rows = geotiff.TiffRows(tmp_path / "a.tif", (bytes_ // 30000, 10000), 3, "uint8", None)
    rows.close()
    assert (tmp_path / "a.tif").read_bytes()[2] == {"classic": 42, "big": 43}[expected]


def python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """A program in a process of its own."""
    path = os.pathsep.join([str(ROOT), str(SUPPORT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


MEASURE = """
import sys
import torch
from cssr.predict import main
from cssr.utils.machine import peak_memory
torch.set_num_threads(1)
export, small, large, out = sys.argv[1:]
how = ["--tile", "96", "--device", "cpu", "--format", "tiff"]
main([export, small, "--out", out, *how])  # what is loaded once
before = peak_memory()
main([export, large, "--out", out, *how, "--memory", "0.3"])
print("GREW", (peak_memory() - before) / 2**20)
"""


@pytest.mark.slow
def test_the_memory_stays_below_what_is_stated(export, tmp_path):
    """A photograph of 1500 x 1100, whose SR image of 26 megapixels takes 317 MB (float32) and its results 211 MB."""
    write_tiff(tmp_path / "small.tif", pixels(100, 100), **MAP)
    write_tiff(tmp_path / "large.tif", pixels(1100, 1500), **MAP)
    done = python(MEASURE, export, tmp_path / "small.tif", tmp_path / "large.tif", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("GREW")[1]) < 0.3 * 1024
    with rasterio.open(tmp_path / "out" / "large_mask.tif") as mask:
        assert mask.shape == (4400, 6000) and mask.read(1).any(0).all()  # the line is found all across


FULL = """
import resource, sys
from cssr.predict import main
sys.dont_write_bytecode = True  # it would be cut off
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main([*sys.argv[1:3], "--out", sys.argv[3], "--device", "cpu", "--format", "tiff"])
"""


@pytest.mark.slow
def test_files_that_cannot_grow_are_one_line_and_leave_nothing(export, tmp_path):
    """As on a full disk."""
    Image.fromarray(pixels(60, 70)).save(tmp_path / "a.png")
    done = python(FULL, export, tmp_path / "a.png", tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert f"a.png: {tmp_path}/out cannot be written: File too large" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


FULL_TIFF = """
import resource, sys
from pathlib import Path
import numpy as np
from cssr.utils.geotiff import TiffRows
sys.dont_write_bytecode = True  # it would be cut off
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    rows = TiffRows(Path(sys.argv[1]), (600, 500), 3, "uint8", None)
    rows.write(np.random.default_rng(0).integers(0, 255, (600, 500, 3)).astype(np.uint8))
    rows.finish()
except OSError as error:
    print("OSError")
"""


@pytest.mark.parametrize(
    "room, output", [(100, "OSError"), (300_000, "OSError"), (850_000, "OSError"), (2_000_000, "")]
)
def test_a_tiff_that_cannot_grow_is_an_error(tmp_path, room, output):
    """In its first blocks, or where it ends; with room enough there is none."""
    done = python(FULL_TIFF, tmp_path / "a.tif", room)
    assert done.returncode == 0 and done.stdout.strip() == output, done.stderr
