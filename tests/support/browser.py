"""Headless Chromium for the tests of pages: what a page asks for, what it complains of, how wide it is on a phone.

A test asks for the fixture with `from browser import chromium`; it is skipped, with the reason, where there is no
Chromium on PATH (Debian: `apt-get install chromium chromium-driver`).
"""

import json
import shutil
from collections.abc import Iterator

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb"),
)
WITHIN = ("data:", "blob:", "chrome:", "about:")  # what no page fetches from anywhere: its own parts, the browser's


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator:
    """A selenium driver with an empty profile; skips where Chromium, its driver or selenium is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -e '.[test]'")
    browser, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs chromium and chromedriver on PATH, which are not here")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def requested(driver) -> list[str]:
    """The URLs that were asked for since the last call, the page's own file among them; `WITHIN` left out."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(WITHIN)]


def complaints(driver) -> list[str]:
    """Warnings and errors on the console since the last call: of scripts, of blocked content, of failed requests."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


def resize(driver, width: int, height: int = 800) -> None:
    """Give the page a viewport of so many CSS pixels: a window cannot be as narrow as a phone."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def overflow(driver) -> int:
    """By how many CSS pixels the page is wider than its viewport; 0 or less where it does not scroll sideways."""
    return driver.execute_script("return document.documentElement.scrollWidth - innerWidth")


def prefer(driver, scheme: str) -> None:
    """Ask for the page in "light" or "dark", as a reader's system does."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
