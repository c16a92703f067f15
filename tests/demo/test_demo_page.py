"""The page in headless Chromium: a photograph goes in, its cracks are seen, measured and saved."""

import base64
import csv
import io
import json
import re
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="needs starlette and uvicorn: pip install -e '.[demo]'")
pytest.importorskip("selenium", reason="needs selenium: pip install -e '.[test]'")

from browser import chromium, complaints, overflow, requested, resize  # noqa: E402, F401
from demo_server import Held, cracked, dark_model, encoded, serving_page  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

DROP = """
const [kind, data, name] = arguments, bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], name, { type: "image/png" }));
if (kind === "drop") document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true }));
else document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: files, bubbles: true }));
"""


class Page:
    """What a reader does with the page, and sees of it."""

    def __init__(self, driver, address: str):
        self.driver, self.address = driver, address
        resize(driver, 1200)
        driver.get(address)
        self.until(lambda: "wall" in self["about"].text)

    def __getitem__(self, name: str):
        return self.driver.find_element(By.ID, name)

    def until(self, condition, seconds: float = 30) -> None:
        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: condition())

    def give(self, body: bytes, kind: str = "drop", name: str = "pier.7.png") -> None:
        self.driver.execute_script(DROP, kind, base64.b64encode(body).decode(), name)

    def rows(self) -> list[list[str]]:
        rows = self["table"].find_elements(By.CSS_SELECTOR, "tbody tr")
        return [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in rows]

    def measured(self, count: int) -> None:
        """Wait until so many cracks are in the table."""
        ready = lambda: self["results"].is_displayed() and not self["table"].get_attribute("aria-busy")  # noqa: E731
        self.until(lambda: ready() and len(self.rows()) == count)

    def press(self, name: str, key: str, times: int = 1) -> None:
        self[name].send_keys(key * times)


@pytest.fixture(scope="module")
def address():
    with serving_page(dark_model(), bytes=200_000, pixels=20_000) as place:
        yield place


@pytest.fixture
def page(chromium, address):  # noqa: F811
    requested(chromium), complaints(chromium)  # of earlier tests
    return Page(chromium, address)


def fainter() -> np.ndarray:
    """The cracked wall, whose second crack has a probability of about 0.7 only."""
    wall = cracked()
    wall[40:42, 10:40] = 95
    return wall


def test_the_threshold_moves_by_keyboard_and_the_table_follows(page):
    page.give(encoded(fainter()))
    page.measured(2)
    first, second = page.rows()
    assert first[0] == "1" and float(first[1]) == pytest.approx(80, abs=1) and first[4] == "0°"
    assert float(first[2]) == pytest.approx(5, abs=0.2) and float(second[1]) == pytest.approx(29, abs=0.2)
    page.press("threshold", Keys.ARROW_RIGHT, 45)
    page.measured(1)
    assert page["threshold-shown"].text == "0.95" and page["summary"].text.startswith("1 crack, ")
    page["mm"].send_keys("0.5")
    page.until(lambda: "mm" in page["summary"].text)
    assert float(page.rows()[0][1]) == pytest.approx(80 * 0.5, abs=0.5)
    assert complaints(page.driver) == []


def canvas_yellow(page: Page) -> int:
    """How many pixels the marks of points have."""
    data = page.driver.execute_script("return document.getElementById('view').toDataURL().split(',')[1]")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
    return int((np.abs(pixels - (255, 212, 0)).max(-1) < 30).sum())


def click(page: Page, x: float, y: float) -> None:
    """At a share of the canvas's width and height, from its middle."""
    size = page["view"].size
    chain = ActionChains(page.driver)
    chain.move_to_element_with_offset(
        page["view"], round(x * size["width"]), round(y * size["height"])
    ).click().perform()


def test_two_clicked_points_of_known_distance_give_millimetres(page):
    page.give(encoded(cracked()))  # 100 x 100 pixels or so
    page.measured(2)
    pixels = [float(row[1]) for row in page.rows()]
    page["take"].click()
    assert page["take"].get_attribute("aria-pressed") == "true" and "first point" in page["take-help"].text
    click(page, -0.25, -0.2)
    page.until(lambda: "second point" in page["take-help"].text)
    click(page, 0.25, -0.2)
    page.until(lambda: "pixels of the photograph apart" in page["take-help"].text)
    assert (
        page["take"].get_attribute("aria-pressed") == "false" and page.driver.switch_to.active_element == page["known"]
    )
    apart = float(re.search(r"are ([0-9.]+) pixels", page["take-help"].text)[1])
    page["known"].send_keys("25")
    page.until(lambda: "mm (two points)" in page["summary"].text)
    lengths = [float(row[1]) for row in page.rows()]
    assert lengths == pytest.approx([25 / apart * length for length in pixels], rel=0.02)
    assert canvas_yellow(page) > 100
    page["drop-points"].click()
    page.until(lambda: "two points" not in page["summary"].text and "px long" in page["summary"].text)
    page.until(lambda: canvas_yellow(page) == 0)
    page["take"].click()  # the same by keyboard: the middle of the canvas, twice
    page.press("view", Keys.ENTER, 2)
    page.until(lambda: "are 0.0 pixels" in page["take-help"].text)
    page.until(lambda: "take points at least 10 pixels apart" in page["summary"].text)


def canvas_red(page: Page) -> float:
    """Share of the picture's pixels that are tinted as cracks."""
    data = page.driver.execute_script("return document.getElementById('view').toDataURL().split(',')[1]")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
    return float((pixels[..., 0] - pixels[..., 2] > 60).mean())


def test_the_picture_shows_cracks_right_of_the_line_and_zooms(page):
    page.give(encoded(cracked()))
    page.measured(2)
    whole = pytest.approx((5 * 80 + 2 * 30) / (60 * 80), rel=0.2)
    page.press("wipe", Keys.HOME)
    page.until(lambda: canvas_red(page) == whole)
    page.press("wipe", Keys.END)
    page.until(lambda: canvas_red(page) == 0)
    page.press("wipe", Keys.HOME)
    page["show-mask"].send_keys(Keys.SPACE)
    page.until(lambda: canvas_red(page) == 0)
    page["show-mask"].send_keys(Keys.SPACE)
    page.driver.find_elements(By.CSS_SELECTOR, "#table tbody button")[1].send_keys(Keys.ENTER)
    page.until(lambda: "zoomed" in page["view"].get_attribute("class") and canvas_red(page) > 0)
    page.press("view", "0")
    page.until(lambda: "zoomed" not in page["view"].get_attribute("class"))
    assert canvas_red(page) == whole


def saved(folder, name: str) -> bytes:
    for _ in range(200):
        if (folder / name).is_file():
            return (folder / name).read_bytes()
        time.sleep(0.05)
    raise AssertionError(f"{name} was not saved: {[path.name for path in folder.iterdir()]}")


def test_results_are_saved_one_by_one_and_as_a_zip(page, tmp_path):
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    page.give(encoded(cracked()), "paste")
    page.measured(2)
    page["zip"].click()
    with zipfile.ZipFile(io.BytesIO(saved(tmp_path, "pier.7.zip"))) as found:
        assert found.testzip() is None
        files = {name: found.read(name) for name in found.namelist()}
    stem = "pier.7_0.5"
    written = (f"{stem}_mask.png", f"{stem}_cracks.csv", f"{stem}_cracks.geojson")
    assert set(files) == {"pier.7_sr.png", "pier.7_prob.png", *written}
    sr, prob, mask = (Image.open(io.BytesIO(data)) for name, data in files.items() if name.endswith("png"))
    assert sr.size == prob.size == mask.size == (160, 120) and mask.mode == "1"
    assert np.array_equal(mask, np.asarray(prob) > 127)
    assert len(list(csv.DictReader(io.StringIO(files[f"{stem}_cracks.csv"].decode())))) == 2
    assert len(json.loads(files[f"{stem}_cracks.geojson"])["features"]) == 2
    page.driver.find_element(By.PARTIAL_LINK_TEXT, "mask").click()
    assert saved(tmp_path, f"{stem}_mask.png") == files[f"{stem}_mask.png"]


def test_a_bad_file_is_one_sentence_and_the_next_is_taken(page):
    page.give(b"no picture", name="notes.txt")
    page.until(lambda: page["error"].is_displayed())
    assert "no picture of a kind that can be read" in page["error"].text
    page.give(encoded(cracked()))
    page.measured(2)
    assert not page["error"].is_displayed()


def test_of_a_large_photograph_a_part_is_chosen_by_keyboard(page):
    wall = np.full((300, 200, 3), 200, np.uint8)
    wall[5:12] = 0  # above the frame, which begins in the middle
    page.give(encoded(wall))
    page.until(lambda: page["part"].is_displayed())
    assert "300" in page["part-text"].text and "141 x 141" in page["part-text"].text
    page.press("part-canvas", Keys.ARROW_UP, 9)
    page.press("part-canvas", Keys.ENTER)
    page.measured(1)
    assert page["notes"].text.startswith("141 x 141 pixels, super-resolved to 282 x 282")
    assert float(page.rows()[0][1]) == pytest.approx(141, abs=0.5) and "pier.7_x29_y0_sr.png" in page["downloads"].text


def test_the_page_fits_a_phone_and_asks_nobody_else(page, address):
    page.give(encoded(cracked()))
    page.measured(2)
    resize(page.driver, 360, 740)
    page.until(lambda: overflow(page.driver) <= 0)
    asked = requested(page.driver)
    assert f"{address}/predict" in asked and all(url.startswith(f"{address}/") for url in asked)
    assert complaints(page.driver) == []


def test_cancel_ends_the_work(chromium):  # noqa: F811
    held = Held()
    with serving_page(dark_model(held), tile=96) as address:
        page = Page(chromium, address)
        page.give(encoded(cracked(100, 150)))
        page.until(lambda: "4 of 8 tiles" in page["elapsed"].text and held.tiles == 1)
        assert page["state"].text == "Working"
        page["cancel"].click()
        assert not page["work"].is_displayed() and not page["error"].is_displayed()
        time.sleep(0.6)  # for the server to see it
        held.go.set()
        page.give(encoded(cracked()))
        page.measured(2)
    assert held.tiles == 2
