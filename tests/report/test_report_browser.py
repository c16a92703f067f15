"""The report's page in headless Chromium, opened from the disk: by keyboard, by pointer, on a phone, on paper."""

import base64
import json

import numpy as np
import pytest
from browser import chromium, complaints, overflow, prefer, requested, resize  # noqa: F401
from made_results import HOSTILE, HR, calibrated, draw, facts, rows, spread, with_samples, write
from test_report import table

from cssr.evaluation.aggregate import iou_curve
from cssr.evaluation.metrics import THRESHOLDS, iou, precision, recall, threshold_counts
from cssr.report import report

by = pytest.importorskip("selenium.webdriver.common.by", reason="needs selenium: pip install -e '.[test]'").By
keys = pytest.importorskip("selenium.webdriver.common.keys").Keys


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A report of two systems, one with a hostile name, and the HR upper bound."""
    folder = tmp_path_factory.mktemp("report")
    paths = [
        with_samples(write(folder / "a", [*map(dict.__or__, spread(60), calibrated(70, 2.0))], facts("CSBSR"))),
        write(folder / "b", spread(90), facts(HOSTILE)),
        write(folder / "hr", spread(99), facts("HR", **HR)),
    ]
    report(paths, folder / "out", title=f"Bridges {HOSTILE}")
    return folder / "out"


@pytest.fixture
def page(chromium, out):  # noqa: F811
    """The page, just opened; a test that leaves a request or a complaint behind fails."""
    resize(chromium, 1280)
    prefer(chromium, "light")
    requested(chromium), complaints(chromium)
    chromium.get((out / "report.html").as_uri())
    yield chromium
    assert requested(chromium) == [(out / "report.html").as_uri()] and complaints(chromium) == []


def texts(driver, selector: str) -> list[str]:
    return [element.text for element in driver.find_elements(by.CSS_SELECTOR, selector)]


def wait(driver, script: str):
    """What a script returns once it is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 10, poll_frequency=0.02).until(lambda d: d.execute_script(f"return {script}"))


def test_what_users_wrote_is_shown_and_never_run(page):
    assert page.title == f"Bridges {HOSTILE}" and "onerror" in page.find_element(by.TAG_NAME, "h1").text
    assert page.execute_script("return document.querySelectorAll('script, img:not([id])').length") == 2  # our own
    assert any(HOSTILE.split()[0] in text for text in texts(page, "#per-image th[scope=row]"))


def test_nothing_can_be_fetched_and_no_other_script_runs(page):
    ask = "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'), () => done('refused'))"
    assert page.execute_async_script(ask) == "refused"
    page.execute_script(
        "const own = document.createElement('script'); own.textContent = 'window.ran = 1'; document.body.append(own)"
    )
    assert page.execute_script("return window.ran") is None
    output = complaints(page)
    assert len(output) >= 2 and all("Content Security Policy" in line or "Fetch API" in line for line in output)


def test_headings_are_in_order_and_every_control_has_a_name(page):
    levels = page.execute_script("return [...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    unnamed = "[...document.querySelectorAll('input, select')].filter((c) => !c.labels.length).map((c) => c.id)"
    assert page.execute_script(f"return {unnamed}") == []
    assert page.execute_script("return [...document.querySelectorAll('button')].every((b) => b.textContent.trim())")


def test_the_threshold_is_moved_by_keyboard_and_scores_are_those_of_the_evaluation(page):
    batch, outputs = draw(48, 64)
    counts = threshold_counts(outputs.logits.sigmoid(), batch.mask)
    slider = page.find_element(by.ID, "threshold")
    wait(page, "document.getElementById('scores').textContent")
    before = page.execute_script("return document.getElementById('mask').toDataURL()")
    for pressed, level in ((keys.HOME, 1), (keys.ARROW_RIGHT, 2), (keys.END, 99), (keys.ARROW_LEFT, 98)):
        slider.send_keys(pressed)
        tp, fp, fn = (int(c[0, level - 1]) for c in counts[:3])
        scores = [float(f([tp], [fp], [fn])[0]) for f in (iou, precision, recall)]
        words = "at {:.2f}: IoU {:.3f}, precision {:.3f}, recall {:.3f}".format(THRESHOLDS[level - 1], *scores)
        wait(page, f"document.getElementById('scores').textContent === {json.dumps(words)}")
    wait(page, f"document.getElementById('mask').toDataURL() !== {json.dumps(before)}")
    assert words.removeprefix("at 0.98: ") in page.find_element(by.ID, "mask").get_attribute("aria-label")


def painted(driver) -> np.ndarray:
    """The canvas, H W 3."""
    script = (
        "const c = document.getElementById('mask');"
        "return [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
    )
    height, width, content = driver.execute_script(script)
    return np.reshape(content, (height, width, 4))[..., :3]


@pytest.mark.parametrize("paint, words", [("mask", "the mask of"), ("true", "the true mask of")])
def test_the_canvas_shows_the_very_pixels_over_the_enlarged_lq_image(page, paint, words):
    batch, outputs = draw(48, 64)
    wait(page, "document.getElementById('scores').textContent")
    page.execute_script(
        "for (const [id, value] of [['under', 'lq'], ['paint', arguments[0]], ['threshold', 50]]) {"
        "const own = document.getElementById(id); own.value = value; own.dispatchEvent(new Event('input')) }",
        paint,
    )
    wait(page, f"document.getElementById('mask').getAttribute('aria-label').startsWith('{words}')")
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    crack = {"mask": outputs.logits[0, 0].sigmoid() > THRESHOLDS[49], "true": batch.mask[0, 0] > 0.5}[paint].numpy()
    expected = np.kron(batch.lq[0].permute(1, 2, 0).numpy() * 255, np.ones((4, 4, 1)))
    expected[crack] = 0.3 * expected[crack] + 0.7 * np.array([230, 85, 0])
    assert np.abs(painted(page) - expected).max() <= 1


def test_another_image_is_chosen_by_keyboard(page):
    wait(page, "document.querySelectorAll('.card').length === 2")
    page.find_element(by.CSS_SELECTOR, ".card input").send_keys(keys.ARROW_DOWN)
    assert "rissbilder_68 (best 2)" in page.find_element(by.ID, "about").text
    assert page.find_element(by.ID, "kernel-true-words").text == "true kernel, 3 x 3, maximum 0.1111"
    assert page.find_element(by.ID, "kernel-predicted-words").text == "estimated kernel, 3 x 3, maximum 0.1250"


def test_the_wipe_by_keyboard_and_by_pointer(page):
    from selenium.webdriver.common.action_chains import ActionChains

    border = page.find_element(by.ID, "wipe")
    clip = "document.getElementById('wipe-right').style.clipPath"
    border.send_keys(keys.END)
    assert page.execute_script(f"return {clip}") == "inset(0px 0px 0px 100%)"
    border.send_keys(keys.ARROW_LEFT)
    assert page.find_element(by.ID, "wipe-at").text == "99 %"
    box = page.find_element(by.ID, "wipe-box")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    left = -box.size["width"] // 4
    ActionChains(page, duration=0).move_to_element(box).click_and_hold().move_by_offset(left, 0).release().perform()
    assert abs(int(border.get_attribute("value")) - 25) <= 1
    page.find_element(by.ID, "left").send_keys("HR")
    left, right = (page.find_element(by.ID, f"wipe-{side}") for side in ("left", "right"))
    assert (left.get_attribute("alt"), right.get_attribute("alt")) == ("HR of CFD_69", "SR of CFD_69")
    assert left.size == right.size and left.size["width"] == box.size["width"]


def test_tables_are_sorted_by_a_button(page, out):
    found = table((out / "report.md").read_text())
    expected = sorted((float(row["AIU"].strip("*")) for row in found.values()), reverse=True)
    column = next(i for i, text in enumerate(texts(page, "#per-image thead th")) if text.startswith("AIU"))
    heading = page.find_elements(by.CSS_SELECTOR, "#per-image thead th")[column]
    shown = []
    for order in ("descending", "ascending"):
        heading.find_element(by.TAG_NAME, "button").send_keys(keys.ENTER)
        assert heading.get_attribute("aria-sort") == order
        cells = page.find_elements(by.CSS_SELECTOR, f"#per-image tbody td:nth-child({column + 1})")
        shown.append([float(cell.text.split()[0]) for cell in cells])
    assert shown == [expected, expected[::-1]]


def test_curves_are_read_by_keyboard_and_by_pointing(page):
    slider = page.find_element(by.ID, "read")
    slider.send_keys(keys.HOME)
    curve = iou_curve(spread(60))
    read = "[...document.getElementById('reading').tBodies[0].rows[0].cells].map((c) => c.textContent)"
    cells = page.execute_script(f"return {read}")
    assert cells[:3] == ["CSBSR", f"{curve['image_iou'][0]:.3f}", f"{curve['pooled_iou'][0]:.3f}"]
    assert cells[3] == "1.000" and float(cells[6]) == pytest.approx(curve["pooled_iou"][0], abs=6e-4)  # nothing false
    from selenium.webdriver.common.action_chains import ActionChains

    plot = page.find_element(by.ID, "plot-1")
    ActionChains(page, duration=0).move_to_element(plot).perform()
    assert abs(int(slider.get_attribute("value")) - 46) <= 2  # the middle of the drawing is left of 0.5
    assert page.execute_script("return document.querySelectorAll('#plot-2 .cursor circle').length") > 0


def test_every_image_is_found_and_paged(page):
    place, search = page.find_element(by.ID, "place"), page.find_element(by.ID, "search")
    assert place.text == "1 to 50 of 70 images"
    page.find_element(by.ID, "after").send_keys(keys.ENTER)
    assert place.text == "51 to 70 of 70 images" and len(page.find_elements(by.CSS_SELECTOR, "#list tbody tr")) == 20
    search.send_keys("cfd_1")
    assert texts(page, "#list tbody th") == ["CFD_1", "CFD_11", "CFD_13", "CFD_15", "CFD_17", "CFD_19"]
    page.find_elements(by.CSS_SELECTOR, "#list thead button")[1].send_keys(keys.ENTER)
    assert texts(page, "#list tbody th")[0] == "CFD_19"
    search.send_keys("nowhere")
    assert place.text == "no image has such a key"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_page_does_not_scroll_sideways(page, scheme):
    prefer(page, scheme)
    resize(page, 360)
    assert overflow(page) <= 0
    page.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
    assert overflow(page) <= 0
    ink, paper = page.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    dark = [sum(int(n) for n in colour[4:-1].split(",")) < 384 for colour in (ink, paper)]
    assert dark == ([True, False] if scheme == "light" else [False, True])


def test_it_prints(page):
    wait(page, "document.getElementById('scores').textContent")
    assert base64.b64decode(page.print_page()).startswith(b"%PDF")


def test_without_pictures_and_segmentation(chromium, tmp_path):  # noqa: F811
    plain = [{key: value for key, value in row.items() if key not in ("tp", "fp", "fn")} for row in rows(40)]
    report([write(tmp_path / "a", plain, facts("SR alone"))], tmp_path / "out")
    requested(chromium), complaints(chromium)
    chromium.get((tmp_path / "out" / "report.html").as_uri())
    assert texts(chromium, "h2") == ["Measures", "Every image", "How it was evaluated", "Definitions"]
    assert complaints(chromium) == [] and len(requested(chromium)) == 1
