"""One headless Chromium for the tests of the page."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement


class Browser:
    """Chromium with a page open, and what it said and asked for since."""

    def __init__(self, driver: Chrome, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def open(self, page: Path, size: tuple[int, int] = (1280, 800)) -> None:
        """Open a page from disk and wait until it stands: drawn, or the rows have no height yet."""
        self.forget()
        self.metrics(*size)
        self.driver.get(page.resolve().as_uri())
        self.wait("Boolean(window.mstemba)")
        self.painted()

    def forget(self) -> None:
        self.js("if (window.mstemba) mstemba.corrections.saved = mstemba.corrections.items")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)

    def metrics(self, width: int, height: int, scale: float = 1.0) -> None:
        """Size of the window's inside, in CSS pixels."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False},
        )

    def dark(self, on: bool) -> None:
        value = "dark" if on else "light"
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": value}]},
        )

    def js(self, expression: str, *arguments: Any) -> Any:
        """Run statements; `return` gives a value."""
        return self.driver.execute_script(expression, *arguments)

    def get(self, expression: str, *arguments: Any) -> Any:
        """The value of an expression."""
        return self.js(f"return {expression}", *arguments)

    def wait(self, condition: str, seconds: float = 20.0) -> None:
        """Until an expression is true; a failure shows what the browser said."""
        until = time.monotonic() + seconds
        while not self.get(condition):
            assert time.monotonic() < until, (condition, self.driver.get_log("browser"))
            time.sleep(0.02)

    def painted(self) -> None:
        """Until the next frame is on the screen."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )

    def find(self, id: str) -> WebElement:
        return self.driver.find_element("id", id)

    def press(self, *keys: str) -> None:
        """Press keys on the page itself."""
        self.driver.switch_to.active_element.send_keys(*keys)
        self.painted()

    def text(self, id: str) -> str:
        return str(self.get("document.getElementById(arguments[0]).textContent", id))

    def texts(self, selector: str) -> list[str]:
        """What the elements of a CSS selector say."""
        script = "[...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return [str(text) for text in self.get(script, selector)]

    def set(self, id: str, value: Any) -> None:
        """Give a field a value as a user does: it tells of `input` and `change`."""
        self.js(
            "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
            "for (const kind of ['input', 'change'])"
            "  field.dispatchEvent(new Event(kind, { bubbles: true }))",
            id,
            str(value),
        )
        self.painted()

    def items(self) -> list[tuple[int, float, float]]:
        """The segments on show: class id, start, end."""
        found = self.get("mstemba.corrections.items.map((s) => [s.classId, s.start, s.end])")
        return [(c, float(start), float(end)) for c, start, end in found]

    def complaints(self) -> list[str]:
        """What the page logged as an error or a warning since it was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        """The addresses that the page asked for since it was opened."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        return {
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }

    def downloaded(self, before: Callable[[], object]) -> Path:
        """The file that an act downloads."""
        known = set(self.downloads.iterdir())
        before()
        until = time.monotonic() + 20
        while True:
            new = set(self.downloads.iterdir()) - known
            done = [f for f in new if f.suffix not in (".crdownload", ".tmp")]
            # The name is taken by an empty file first.
            done = [f for f in done if not f.name.startswith(".") and f.stat().st_size]
            if done:
                return done[0]
            assert time.monotonic() < until, "nothing was downloaded"
            time.sleep(0.05)

    def slider_seconds(self, thresholds: list[float]) -> list[float]:
        """From the slider's event until what it changes is on the screen, for each threshold."""
        script = """
          const [values, done] = arguments;
          const slider = document.getElementById("threshold");
          const frame = () => new Promise(requestAnimationFrame);
          const after = () => new Promise((resolve) => setTimeout(resolve));
          (async () => {
            const seconds = [];
            for (const value of values) {
              await frame(); await after();
              const begin = performance.now();
              slider.value = value;
              slider.dispatchEvent(new Event("input", { bubbles: true }));
              await frame(); // computed and drawn, by what the event asked for before this
              await after(); // on the screen
              seconds.push((performance.now() - begin) / 1000);
            }
            done(seconds);
          })();
        """
        return [float(s) for s in self.driver.execute_async_script(script, thresholds)]


def programs() -> tuple[str, str] | None:
    """Chromium and its driver; None where there are none."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (binary, driver) if binary and driver else None


def need_browser() -> None:
    """Skip where there is no browser; fail if MSTEMBA_BROWSER_REQUIRED is set, as .ci/run does."""
    missing = ""
    if programs() is None:
        missing = "no chromium and chromedriver here: apt-get install chromium-driver"
    if importlib.util.find_spec("selenium") is None:
        missing = "no selenium here: pip install 'mstemba[dev]'"
    if missing and os.environ.get("MSTEMBA_BROWSER_REQUIRED"):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


@contextlib.contextmanager
def browse(downloads: Path) -> Iterator[Browser]:
    """Chromium without a window, which keeps its downloads in this folder."""
    from selenium.webdriver import Chrome
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    found = programs()
    assert found
    options = Options()
    options.binary_location = found[0]
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio")
    for flag in (*flags, "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--autoplay-policy=no-user-gesture-required")
    options.add_argument("--force-color-profile=srgb")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(executable_path=found[1]))
    driver.set_script_timeout(60)
    try:
        yield Browser(driver, downloads)
    finally:
        driver.quit()


@pytest.fixture(scope="package")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of the page."""
    need_browser()
    with browse(tmp_path_factory.mktemp("downloads")) as browser:
        yield browser
