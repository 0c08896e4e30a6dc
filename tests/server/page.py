"""The page for tests: a headless browser, the files that it may be given, and what a person does with it."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from gateway import Gateway
from pictures import bomb
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement
from servers import ROOT

WAIT_S = 120
# Nothing but this machine has an address: what a page asked elsewhere would fail, and show in the log.
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # Chromium refuses root without it; a container has no other user.
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
PHONE, LAPTOP, FOUR_K = (320, 640), (1280, 900), (3840, 2160)


def missing(what: str) -> None:
    """A part that could not be fetched: somebody's machine may lack it, continuous integration may not."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


def parts() -> Path:
    """The folder with chromium, chromedriver and axe.min.js."""
    done = subprocess.run([ROOT / "ci/browser"], capture_output=True, text=True)
    if done.returncode:
        missing(done.stderr.strip())
    return Path(done.stdout.strip())


def write_files(folder: Path) -> Path:
    """Pictures to choose from, and what is none."""
    coins = skimage.data.coins()
    for suffix in (".png", ".jpg", ".tif"):
        cv2.imwrite(str(folder / f"coins{suffix}"), coins)
    cv2.imwrite(str(folder / "tall.png"), np.rot90(coins))
    exif = Image.Exif()
    exif[0x112] = 6
    turned = Image.fromarray(np.rot90(coins)).convert("RGB")
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    turned.save(folder / "turned.webp", exif=exif, quality=95)
    (folder / "notes.txt").write_text("hello\n", encoding="ascii")
    (folder / "large.png").write_bytes(bomb(7000, 10000))
    # What the fake camera shows; it wants even sides.
    even = cv2.copyMakeBorder(coins, 0, 1, 0, 0, cv2.BORDER_REPLICATE)
    frame = cv2.cvtColor(even, cv2.COLOR_GRAY2BGR)
    encoded = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    (folder / "camera.mjpeg").write_bytes(encoded.tobytes())
    return folder


@contextmanager
def browser(parts: Path, files: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(parts / "chromium")
    for flag in (*FLAGS, f"--use-file-for-fake-video-capture={files / 'camera.mjpeg'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(str(parts / "chromedriver"))) as driver:
        yield driver


class Page:
    """What a person does on the page, and sees."""

    def __init__(self, browser: webdriver.Chrome, gateway: Gateway, files: Path) -> None:
        self.browser = browser
        self.files = files
        browser.get("about:blank")  # The page before may still ask a gateway that has ended.
        browser.get_log("browser")
        self.resize(*LAPTOP)
        browser.get(gateway.url)
        self.wait(lambda: "ready" in self.text("server"))

    def __call__(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements("css selector", selector)

    def text(self, name: str) -> str:
        return self.browser.find_element("id", name).text

    def wait(self, until: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not until():
            assert time.monotonic() < deadline, self.browser.find_element("css selector", "body").text
            time.sleep(0.1)

    def choose(self, *names: str) -> None:
        paths = "\n".join(str(self.files / name) for name in names)
        self.browser.find_element("id", "files").send_keys(paths)

    def drop(self, data: dict) -> None:
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": 300, "y": 300, "data": {**data, "dragOperationsMask": 1}}
            self.browser.execute_cdp_cmd("Input.dispatchDragEvent", event)

    def expect(self, summary: str) -> None:
        self.wait(lambda: self.text("summary").startswith(summary))

    def boxes(self) -> list[WebElement]:
        return self("#overlay .box:not([hidden])")

    def rows(self) -> list[WebElement]:
        return self("#rows tr:not([hidden])")

    def resize(self, width: int, height: int, *, scheme: str = "light") -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def requests(self) -> list[str]:
        """Addresses that were asked since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]

    def complaints(self) -> list[str]:
        """What the console says, of the policy for content for example."""
        return [entry["message"] for entry in self.browser.get_log("browser")]
