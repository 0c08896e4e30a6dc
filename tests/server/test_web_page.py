"""The page in a real browser, headless, through the gateway to a real server."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import skimage.data
from gateway import Gateway, running
from network import Network
from page import FOUR_K, LAPTOP, PHONE, Page, missing
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys

from clients.drawing import palette

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def gateway(machine: Network) -> Iterator[Gateway]:
    with running(machine.url, "--retries", "1") as one:
        yield one


@pytest.fixture
def page(browser: webdriver.Chrome, gateway: Gateway, files: Path) -> Page:
    return Page(browser, gateway, files)


@pytest.fixture
def coins(page: Page) -> Page:
    """The page with the boxes of the coins."""
    page.choose("coins.png")
    page.expect("coins.png: 24 coin")
    page.wait(page.boxes)
    return page


def test_boxes_and_table_are_those_of_the_server(coins: Page, gateway: Gateway) -> None:
    found = gateway.ask("/detect", (coins.files / "coins.png").read_bytes()).json["detections"]
    assert len(coins.boxes()) == len(coins.rows()) == len(found) == 24
    assert "one class: coin" in coins.text("server")
    image = coins("#picture")[0].rect
    scale = image["width"] / skimage.data.coins().shape[1]
    color = palette()[0].colors[0]
    for box, row, expected in zip(coins.boxes(), coins.rows(), found, strict=True):
        x1, y1, x2, y2 = expected["xyxy"]
        sides = [x1 * scale + image["x"], y1 * scale + image["y"], (x2 - x1) * scale, (y2 - y1) * scale]
        assert [box.rect[side] for side in ("x", "y", "width", "height")] == pytest.approx(sides, abs=1.5)
        assert box.value_of_css_property("border-top-color") == f"rgba({color.r}, {color.g}, {color.b}, 1)"
        cells = [cell.text for cell in row.find_elements("css selector", "td")]
        assert cells[1:] == [
            "coin",
            f"{expected['score']:.2f}",
            *(str(int(v + 0.5)) for v in expected["xyxy"]),
        ]
    steps = [step.text for step in coins("#times dt")]
    assert steps == [
        "upload and answer",
        "preprocess",
        "network",
        "postprocess",
        "between the models",
        "whole",
    ]
    assert all(float(time.text.split()[0]) >= 0 for time in coins("#times dd"))
    assert not coins.complaints()


def test_the_slider_asks_for_nothing(coins: Page) -> None:
    coins.requests()
    scores = [float(row.find_elements("css selector", "td")[2].text) for row in coins.rows()]
    slider = coins("#threshold")[0]
    for _ in range(50):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert coins.text("score") == "0.80"
    few = len(coins.boxes())
    assert sum(score > 0.8 for score in scores) <= few <= sum(score >= 0.8 for score in scores) < 24
    assert len(coins.rows()) == few
    assert coins.text("summary") == f"coins.png: {few} coin"
    slider.send_keys(Keys.HOME)
    assert len(coins.boxes()) == len(coins.rows()) == 100
    assert not [url for url in coins.requests() if "/detect" in url]


def test_hover_and_keys_show_which_is_which(coins: Page) -> None:
    def lit() -> tuple[list[int], list[int]]:
        parts = coins.boxes(), coins.rows()
        return tuple(
            [i for i, one in enumerate(part) if "on" in one.get_attribute("class")] for part in parts
        )

    actions = ActionChains(coins.browser)
    actions.move_to_element(coins.rows()[3]).perform()
    assert lit() == ([3], [3])
    actions.move_to_element(coins.boxes()[7]).perform()
    assert lit() == ([7], [7])
    actions.move_to_element(coins("h1")[0]).perform()
    assert lit() == ([], [])
    stops = [row.get_attribute("tabindex") for row in coins.rows()]
    assert stops == ["0", *["-1"] * 23]
    coins("#threshold")[0].send_keys(Keys.TAB)
    assert lit() == ([0], [0])
    coins.browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    coins.browser.switch_to.active_element.send_keys(Keys.ARROW_UP)
    assert lit() == ([1], [1])
    coins.browser.switch_to.active_element.send_keys(Keys.END)
    assert lit() == ([23], [23])
    coins.browser.switch_to.active_element.send_keys(Keys.TAB)
    assert coins.browser.switch_to.active_element.get_attribute("id") == "download"


def test_paste_and_drop(page: Page, gateway: Gateway) -> None:
    grant = {"origin": gateway.url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.browser.execute_cdp_cmd("Browser.grantPermissions", grant)
    page.browser.execute_async_script(
        """const [bytes, done] = arguments;
        const blob = new Blob([new Uint8Array(bytes)], {type: "image/png"});
        navigator.clipboard.write([new ClipboardItem({"image/png": blob})]).then(() => done(), done);""",
        list((page.files / "coins.png").read_bytes()),
    )
    ActionChains(page.browser).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    page.expect("image.png: 24 coin")
    page.drop({"items": [], "files": [str(page.files / "coins.jpg")]})
    page.expect("coins.jpg: 24 coin")
    assert [span.text for span in page("#pictures button span:last-child")] == ["24 coin", "24 coin"]
    page.drop({"items": [{"mimeType": "text/uri-list", "data": "https://example.org/coins.jpg"}]})
    page.wait(lambda: "fetches nothing" in page.text("message"))


def test_problems_are_sentences_and_spoil_nothing_else(page: Page) -> None:
    page.choose("notes.txt", "large.png", "coins.png")
    page.expect("notes.txt: This is no picture that the server can read: found 6 bytes")
    for button, summary in zip(
        page("#pictures button"),
        (
            "notes.txt: This is",
            "large.png: The picture is too large: found a PNG picture of 10000x7000",
            "coins.png: 24 coin",
        ),
        strict=True,
    ):
        button.click()
        page.expect(summary)
    page("#clear")[0].click()
    assert not page("#pictures button")
    assert page.browser.switch_to.active_element.get_attribute("id") == "choose"


def test_a_file_beyond_the_limit_is_not_even_sent(page: Page, tmp_path: Path) -> None:
    (tmp_path / "huge.jpg").write_bytes(bytes(33 * 2**20))
    page.requests()
    page.choose(str(tmp_path / "huge.jpg"))
    page.expect("huge.jpg: The picture is too large: 33 MB, the server takes at most 32 MB.")
    assert not [url for url in page.requests() if "/detect" in url]


def test_a_server_that_goes_and_comes_back(page: Page, machine: Network) -> None:
    machine.refuse()
    try:
        page.choose("coins.png")
        page.wait(lambda: page.text("server").startswith("The server is away: "))
        page.expect("coins.png: waiting…")
    finally:
        machine.come_back()
    page.expect("coins.png: 24 coin")
    page.wait(lambda: page.text("server").startswith("The server is ready"))


def test_what_the_browser_cannot_show_the_server_draws(page: Page) -> None:
    for name, drawn in (("turned.jpg", False), ("coins.tif", True), ("turned.webp", True)):
        page.choose(name)
        page.expect(f"{name}: 24 coin")
        size = "return [picture.naturalWidth, picture.naturalHeight, overlay.hidden, note.hidden]"
        factor = 3 if drawn else 1
        expected = [384 * factor, 303 * factor, drawn, not drawn]
        page.wait(lambda: page.browser.execute_script(size) == expected)  # noqa: B023


def test_the_camera(page: Page) -> None:
    page("#camera")[0].click()
    page.wait(lambda: page.browser.execute_script("return video.videoWidth"))
    page("#shoot")[0].click()
    page.expect("camera-1.jpg: 24 coin")
    assert not page.browser.execute_script("return viewfinder.open || video.srcObject")


def test_the_download_is_the_json_of_detect_py(coins: Page, tmp_path: Path, gateway: Gateway) -> None:
    behavior = {"behavior": "allow", "downloadPath": str(tmp_path)}
    coins.browser.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
    coins("#download")[0].click()
    file = tmp_path / "detections.json"
    coins.wait(file.exists)
    answer = gateway.ask("/detect", (coins.files / "coins.png").read_bytes()).json
    assert json.loads(file.read_text(encoding="utf-8")) == [{**answer, "image": "coins.png"}]


@pytest.mark.parametrize("size", [PHONE, LAPTOP, FOUR_K], ids=["phone", "laptop", "4k"])
def test_it_fits_and_can_be_read(coins: Page, size: tuple[int, int]) -> None:
    coins.resize(*size)
    coins.wait(lambda: coins.browser.execute_script("return innerWidth") == size[0])
    assert coins.browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    picture = coins("#picture")[0].rect
    assert picture["width"] > 0.4 * min(size[0], 2400)
    assert picture["height"] < size[1]
    for box in coins.boxes():
        label = box.find_element("css selector", "span")
        assert label.is_displayed()
        assert label.rect["height"] >= 14
        assert label.rect["width"] <= box.rect["width"]
    coins.choose("tall.png")
    coins.wait(lambda: coins.browser.execute_script("return picture.naturalHeight") == 384)
    coins.wait(lambda: not coins.browser.execute_script("return document.getElementById('frame').hidden"))
    assert 100 < coins("#picture")[0].rect["height"] <= 0.86 * size[1]
    for button in coins("button"):
        assert not button.is_displayed() or button.rect["height"] >= 40


def serious(page: Page, axe: str) -> list[str]:
    page.browser.execute_script(axe)
    run = "const done = arguments[0]; axe.run(document).then(done, done)"
    results = page.browser.execute_async_script(run)
    assert len(results["passes"]) > 5, "axe-core has looked at nothing"
    return [
        f"{found['id']}: {node['html'][:200]}"
        for found in results["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(page: Page, parts: Path, machine: Network, scheme: str) -> None:
    if not (parts / "axe.min.js").exists():
        missing("found no axe-core: install npm")
    axe = (parts / "axe.min.js").read_text(encoding="utf-8")
    page.resize(*LAPTOP, scheme=scheme)
    assert serious(page, axe) == []
    page.choose("notes.txt", "coins.png")
    page.expect("notes.txt: This is no picture")
    assert serious(page, axe) == []
    page("#pictures button")[1].click()
    page.expect("coins.png: 24 coin")
    page.wait(page.boxes)
    page.rows()[2].click()
    assert serious(page, axe) == []
    page.resize(*PHONE, scheme=scheme)
    assert serious(page, axe) == []
    page("#camera")[0].click()
    page.wait(lambda: page.browser.execute_script("return viewfinder.open"))
    assert serious(page, axe) == []
    page("#close")[0].click()
    page.browser.execute_script("document.getElementById('server').classList.add('away')")
    assert serious(page, axe) == []


def test_no_request_leaves_the_machine(page: Page, gateway: Gateway) -> None:
    page.requests()
    page.browser.get(gateway.url)
    page.choose("coins.png", "coins.tif")
    page.expect("coins.png: 24 coin")
    page.browser.get(f"{gateway.url}/docs")
    page.wait(lambda: page(".opblock"))
    page(".opblock-post")[0].click()
    page.wait(lambda: "threshold" in page("body")[0].text)
    asked = [url for url in page.requests() if urlsplit(url).scheme not in ("blob", "data", "chrome")]
    assert {urlsplit(url).netloc for url in asked} == {urlsplit(gateway.url).netloc}
    assert any("/detect" in url for url in asked)
    assert any("swagger-ui-bundle.js" in url for url in asked)
    assert not page.complaints()
