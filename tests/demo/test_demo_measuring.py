"""POST /measure: cracks of a probability picture at a threshold, and what is refused."""

import base64
import contextlib
import csv
import io
import json
import time
from functools import partial

import numpy as np
import psutil
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="needs starlette and uvicorn: pip install -e '.[demo]'")
httpx = pytest.importorskip("httpx", reason="needs httpx: pip install -e '.[test]'")

from demo_server import dark_model, encoded, serving_page  # noqa: E402

from cssr.cracks.measure import measure_cracks  # noqa: E402
from cssr.cracks.pixel_size import parse_size  # noqa: E402
from cssr.demo.measure_process import measure_probability, read_probability  # noqa: E402


@pytest.fixture(scope="module")
def page():
    """A server of a model of scale 2 that takes photographs of 20,000 pixels, so probabilities of 80,000."""
    with serving_page(dark_model(), pixels=20_000) as address:
        yield address


def drawn() -> np.ndarray:
    """A probability: a level crack, 100 x 6 pixels, of 200/255, and an upright one, 4 x 40, of 100/255."""
    prob = np.full((120, 160), 20, np.uint8)
    prob[20:26, 30:130] = 200
    prob[60:100, 50:54] = 100
    return prob


def post(page: str, query: str, body: bytes | None = None) -> httpx.Response:
    return httpx.post(f"{page}/measure{query}", content=encoded(drawn()) if body is None else body, timeout=60)


def test_cracks_are_measured_at_the_threshold(page):
    both, one, none = (post(page, f"?threshold={t}").json() for t in (0.3, 0.5, 0.8))
    assert [len(found["cracks"]) for found in (both, one, none)] == [2, 1, 0]
    level, upright = both["cracks"]
    assert level["length"] == pytest.approx(50, abs=0.5) and level["mean_width"] == pytest.approx(3, abs=0.05)
    assert upright["length"] == pytest.approx(20, abs=0.5) and upright["max_width"] == pytest.approx(2, abs=0.25)
    assert (level["number"], upright["number"]) == (1, 2) and upright["orientation"] == pytest.approx(90, abs=1)
    assert level["box"] == [30, 20, 130, 26]
    assert (level["confidence"], upright["confidence"]) == pytest.approx((200 / 255, 100 / 255))
    assert both["total"] == pytest.approx(70, abs=1) and both["unit"] == "px"
    assert both["share"] == pytest.approx((600 + 160) / (120 * 160)) and none["share"] == none["widest"] == 0


def test_what_is_left_out_is_reported(monkeypatch):
    monkeypatch.setattr("cssr.demo.measure_process.measure_cracks", partial(measure_cracks, max_cracks=1))
    found = measure_probability(drawn(), 0.3, 1)
    assert len(found["cracks"]) == 1 and found["notes"][0].startswith("left out 1 components of at most ")
    assert found["notes"][0].endswith(" pixels: the 1 largest are measured")


def test_millimetres_are_those_of_the_photographs_pixels(page):
    found = post(page, "?threshold=0.5&mm=0.3").json()
    assert found["unit"] == "mm" and found["cracks"][0]["box"] == [30, 20, 130, 26]
    assert found["cracks"][0]["length"] == found["total"] == pytest.approx(50 * 0.3, abs=0.15)
    assert found["widest"] == pytest.approx(3 * 0.3, abs=0.1)
    assert found["pixel"] == "0.3 +- 0.003 mm (typed)"


def test_two_points_of_known_distance_say_the_size_of_a_pixel(page):
    """A hundred pixels apart, each known to a pixel."""
    found = post(page, "?threshold=0.5&known=0,0,60,80,30").json()
    assert found["unit"] == "mm" and found["total"] == pytest.approx(50 * 0.3, abs=0.15) and found["notes"] == []
    assert found["pixel"] == "0.3 +- 0.0042 mm (two points)"
    (row,) = csv.DictReader(io.StringIO(found["csv"]))
    assert float(row["mm_per_pixel"]) == 0.3 and float(row["mm_per_pixel_uncertainty"]) == pytest.approx(
        0.3 * 2**0.5 / 100
    )


def test_a_typed_size_is_taken_before_two_points_and_their_disagreement_reported(page):
    found = post(page, "?threshold=0.5&mm=0.5&known=0,0,60,80,30").json()
    assert found["total"] == pytest.approx(50 * 0.5, abs=0.25)
    assert len(found["notes"]) == 1 and "differ by more than their uncertainty" in found["notes"][0]


def test_two_points_too_near_are_refused_in_a_sentence(page):
    for numbers in ("10,10,14,10,30", "10,10,90,10,0"):
        answer = post(page, f"?threshold=0.5&known={numbers}")
        assert answer.status_code == 422 and "take points at least 10 pixels apart" in answer.json()["error"]


@pytest.mark.parametrize("known", ["1,2,3,4", "1,2,3,4,5,6", "a,b,c,d,e", "-1,0,60,80,30", "0,0,nan,80,30",
                                   "0,0,1e9,0,3", "0,0,60,80,inf", "--help"])  # fmt: skip
def test_points_that_are_none_are_refused(known, page):
    answer = post(page, f"?known={known}")
    assert answer.status_code == 422 and answer.json()["error"].startswith("known must be x1,y1,x2,y2,mm")


def test_the_files_say_the_same_in_pixels_of_the_photograph():
    found = measure_probability(drawn(), 0.3, 2, [parse_size("0.3")])
    level, upright = csv.DictReader(io.StringIO(found["csv"]))
    assert float(level["length_mm"]) == pytest.approx(found["cracks"][0]["length"], abs=1e-3)
    assert float(level["length_mm"]) == pytest.approx(0.3 * float(level["length_px"]), abs=1e-3)
    assert [float(upright[side]) for side in ("left", "top", "right", "bottom")] == [25, 30, 27, 50]
    feature = json.loads(found["geojson"])["features"][1]
    assert feature["properties"]["orientation_deg"] == pytest.approx(90, abs=1)
    x, y = np.concatenate([np.array(line) for line in _lines(feature["geometry"])]).T
    assert (
        np.abs(x - 26).max() < 0.5 and y.min() == pytest.approx(30, abs=0.5) and y.max() == pytest.approx(50, abs=0.5)
    )


def _lines(geometry: dict) -> list:
    return geometry["coordinates"] if geometry["type"] == "MultiLineString" else [geometry["coordinates"]]


def test_a_picture_without_cracks_has_files_without_rows():
    found = measure_probability(np.zeros((8, 8), np.uint8), 0.5, 2)
    assert found["csv"].startswith("number") and len(found["csv"].splitlines()) == 1
    assert json.loads(found["geojson"])["features"] == []


def test_the_mask_is_what_was_measured(page):
    """A value of exactly the threshold is no crack: 51 / 255 = 0.2."""
    prob = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = post(page, "?threshold=0.2", encoded(prob)).json()
    mask = Image.open(io.BytesIO(base64.b64decode(found["mask"])))
    assert mask.mode == "1" and np.array_equal(mask, prob > 51)


@pytest.mark.parametrize("query", ["?threshold=0", "?threshold=1.5", "?threshold=much", "?threshold=nan", "?mm=-1",
                                   "?mm=0", "?mm=inf", "?mm=--help"])  # fmt: skip
def test_numbers_out_of_range_are_refused(query, page):
    answer = post(page, query)
    assert answer.status_code == 422 and "must be a number above 0" in answer.json()["error"]


BAD = {
    "no picture": b"no picture",
    "JPEG": encoded(drawn(), "JPEG"),
    "cut short": encoded(drawn())[:-60],
    "colour": encoded(np.zeros((4, 4, 3), np.uint8)),
    "too many pixels": encoded(np.zeros((300, 300), np.uint8)),
}


@pytest.mark.parametrize("kind", BAD)
def test_only_the_probability_of_a_prediction_is_read(kind):
    with pytest.raises(ValueError, match="must be the 8-bit grey PNG that came with the prediction.$"):
        read_probability(BAD[kind], 80_000)


@pytest.mark.parametrize("body, status", [(b"", 400), (b"no picture", 422), (bytes(99_000), 413)],
                         ids=["no bytes", "no picture", "too many bytes"])  # fmt: skip
def test_bodies_that_are_none_are_refused(body, status, page):
    answer = post(page, "", body)
    assert answer.status_code == status and list(answer.json()) == ["error"]


def test_other_pages_may_not_ask(page):
    answer = httpx.post(f"{page}/measure", content=encoded(drawn()), headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403


def children() -> list[psutil.Process]:
    """The processes that measure: a child that has just ended has no command line any more."""
    measuring = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # zombies too
            if "cssr.demo.measure_process" in " ".join(child.cmdline()):
                measuring.append(child)
    return measuring


def test_what_takes_too_long_is_ended(page, monkeypatch):
    monkeypatch.setattr("cssr.demo.server.MEASURE", 0.05)
    answer = post(page, "")
    assert answer.status_code == 422 and "too ragged" in answer.json()["error"]
    assert children() == []


def test_who_leaves_ends_the_measurement(page):
    noise = np.random.default_rng(0).integers(0, 255, (280, 280)).astype(np.uint8)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{page}/measure", content=encoded(noise), timeout=0.3)
    for _ in range(100):
        if not children():
            break
        time.sleep(0.02)
    assert children() == []
    assert post(page, "").status_code == 200
