"""The gateway's HTTP against a real server."""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import aiohttp
import cv2
import exported
import numpy as np
import pytest
import skimage.data
from centernet_image.decode import Limits
from gateway import Gateway, form, running
from network import Network
from pictures import bomb, encode, picture
from PIL import Image
from protocols import PROTOCOLS
from servers import ROOT

from clients import AsyncCenterNetClient, CenterNetClient, output
from clients.drawing import palette
from clients.web.upstream import Facts, Upstream

pytestmark = pytest.mark.server

FRIEND = "https://friend.example"
IN_FLIGHT = 8


@pytest.fixture(scope="module")
def coins() -> bytes:
    return cv2.imencode(".png", skimage.data.coins())[1].tobytes()


@pytest.fixture(scope="module")
def gateway(machine: Network) -> Iterator[Gateway]:
    options = ("--timeout-s", "120", "--deadline-s", "240", "--retries", "1", "--concurrency", str(IN_FLIGHT))
    with running(machine.url, *options, "--allow-origin", FRIEND, "--allow-host", "gateway.example") as one:
        yield one


def test_a_picture_gets_the_json_of_detect_py(gateway: Gateway, coins_server, coins: bytes) -> None:
    with CenterNetClient(coins_server.grpc_url) as client:
        expected = output.entry("coins.png", client.detect(coins))
        few = output.entry("picture", client.detect(coins, threshold=0.8))
    body, kind = form(coins)
    assert gateway.ask("/detect", body, Content_Type=kind).json == expected
    assert gateway.ask("/detect?threshold=0.8", coins).json == few
    assert 0 < len(few["detections"]) < len(expected["detections"]) == 24
    # What curl says of a body that it was told nothing about.
    urlencoded = "application/x-www-form-urlencoded"
    assert len(gateway.ask("/detect", coins, Content_Type=urlencoded).json["detections"]) == 24


def busy_ms(server) -> dict[str, tuple[int, float]]:
    """How often each model was asked, and its milliseconds, queues included, by Triton's own statistics."""
    with urllib.request.urlopen(f"http://{server.http_url}/v2/models/stats") as answer:
        models = json.load(answer)["model_stats"]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    return {
        model["name"]: (
            model["inference_stats"]["success"]["count"],
            sum(model["inference_stats"][part]["ns"] for part in parts) / 1e6,
        )
        for model in models
    }


def test_steps_are_timed_where_asked(gateway: Gateway, coins_server, coins: bytes) -> None:
    def steps(path: str) -> dict[str, float]:
        parts = gateway.ask(path, coins).headers["server-timing"].split(", ")
        return {name: float(ms) for name, ms in (part.split(";dur=") for part in parts)}

    assert set(steps("/detect")) == {"receive", "detect"}
    models = [f"centernet_{name}" for name in ("preprocess", "network", "postprocess")]
    before: dict[str, tuple[int, float]] = {}
    while before != (before := busy_ms(coins_server)):  # The last request's may still come.
        time.sleep(0.1)
    times = steps("/detect?steps=1")
    after = busy_ms(coins_server)
    assert set(times) == {"receive", "detect", *models}
    assert all(after[model][0] == before[model][0] + 1 for model in models)
    busy = {model: after[model][1] - before[model][1] for model in models}
    busy["centernet_preprocess"] -= busy["centernet_network"]  # It asks the network.
    assert {model: times[model] for model in models} == pytest.approx(busy, abs=0.06)


@pytest.mark.parametrize(("suffix", "media_type"), [(".png", "image/png"), (".jpg", "image/jpeg")])
def test_the_picture_with_boxes(gateway: Gateway, suffix: str, media_type: str) -> None:
    answer = gateway.ask("/detect?draw=1", cv2.imencode(suffix, skimage.data.coins())[1].tobytes())
    assert answer.headers["content-type"] == media_type
    drawn = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR)
    height, width = skimage.data.coins().shape
    assert drawn.shape == (3 * height, 3 * width, 3)
    away = np.abs(drawn.astype(int) - palette()[0].colors[0].as_bgr()).max(axis=2)
    assert (away < 40).sum() > 10_000


def test_what_the_server_tells(gateway: Gateway) -> None:
    told = gateway.ask("/model").json
    assert told["classes"] == ["coin"]
    assert told["threshold"] == 0.3
    assert told["limits"] == {"max_bytes": 33554432, "max_pixels": 67108864, "min_side": 8}
    assert told["colors"][1] == {
        "box": palette()[0].colors[1].as_hex(),
        "text": palette()[1].colors[1].as_hex(),
    }


def facts_of(server, protocol: str, model: str) -> Facts:
    async def ask() -> Facts:
        url = getattr(server, f"{protocol}_url")
        async with AsyncCenterNetClient(url, protocol=protocol, model=model) as client:
            return await Upstream(client).facts()

    return asyncio.run(ask())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_limits_and_names_come_from_the_server(strict_server, protocol: str) -> None:
    told = facts_of(strict_server, protocol, "centernet")
    assert told.classes == exported.SMALL_CLASSES
    assert told.limits == Limits(max_bytes=100_000, max_pixels=1_000_000, min_side=32)
    assert told.models == tuple(f"centernet_{name}" for name in ("preprocess", "network", "postprocess"))


def test_a_server_that_does_not_tell(coins_server) -> None:
    assert facts_of(coins_server, "grpc", "centernet_network") == Facts()


def chunked(gateway: Gateway, size: int) -> http.client.HTTPResponse:
    """Sends bytes without saying how many."""
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=60)
    parts = (b"x" * 2**16 for _ in range(size // 2**16))
    connection.request(
        "POST", "/detect", body=parts, encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    return connection.getresponse()


def test_wrong_requests_get_a_sentence(gateway: Gateway, coins: bytes) -> None:
    large = bytes(33 * 2**20)
    wrong_form = {"Content_Type": "multipart/form-data; boundary=limit"}
    body, kind = form(large)
    for status, words, path, content, headers in [
        (400, "no picture that the server can read: found 5 bytes", "/detect", b"hello", {}),
        (400, "found 0 bytes", "/detect", b"", {}),
        (400, "damaged or truncated PNG", "/detect", coins[:1000], {}),
        (413, "70000000, limit max_pixels is 67108864", "/detect", bomb(7000, 10000), {}),
        (413, "found 34603008 bytes, the server takes at most 33554432", "/detect", large, {}),
        (413, "at most 33554432", "/detect", body, {"Content_Type": kind}),
        (400, "without a file", "/detect", b"--limit--\r\n", wrong_form),
        (400, "cannot be read", "/detect", b"nothing", wrong_form),
        (400, "Missing boundary", "/detect", b"nothing", {"Content_Type": "multipart/form-data"}),
        (400, "threshold: found '2', expected a number from 0 to 1", "/detect?threshold=2", coins, {}),
        (400, "threshold: found 'nan'", "/detect?threshold=nan", coins, {}),
        (400, "draw: found 'perhaps', expected 0 or 1", "/detect?draw=perhaps", coins, {}),
        (404, "Not Found: GET /nothing", "/nothing", None, {}),
        (405, "Method Not Allowed: GET /detect", "/detect", None, {}),
    ]:
        answer = gateway.ask(path, content, **headers)
        assert (answer.status, words in answer.error) == (status, True), answer
    refused = chunked(gateway, 33 * 2**20)
    assert refused.status == 413
    assert "more than 33554432 bytes" in json.load(refused)["error"]
    # The gateway and its server are as well as before.
    assert len(gateway.ask("/detect", coins).json["detections"]) == 24


def test_pages_of_other_sites_are_refused(gateway: Gateway, coins: bytes) -> None:
    host = gateway.url.removeprefix("http://")
    for name in ("evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", ""):
        answer = gateway.ask("/detect", coins, Host=name)
        assert answer.status == 421
        assert "--allow-host" in answer.error
    for name in (
        host,
        "127.0.0.1",
        "192.168.1.5:8080",
        "[::1]:8080",
        "gateway.example:8080",
        "Gateway.Example",
    ):
        assert gateway.ask("/model", Host=name).status == 200
    for origin in ("https://evil.example", "null", f"http://{host}.evil.example"):
        answer = gateway.ask("/detect", coins, Origin=origin)
        assert answer.status == 403
        assert "--allow-origin" in answer.error
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert gateway.ask("/detect", coins, Origin=gateway.url).status == 200
    friend = gateway.ask("/detect", coins, Origin=FRIEND)
    assert (friend.status, friend.headers["access-control-allow-origin"]) == (200, FRIEND)


def test_every_answer_carries_the_safe_headers(gateway: Gateway, coins: bytes) -> None:
    answers = [
        *(gateway.ask(path) for path in ("/", "/docs", "/static/page.js", "/health", "/metrics", "/nothing")),
        gateway.ask("/detect", coins),
        gateway.ask("/detect", b"hello"),
        gateway.ask("/health", Host="evil.example"),
    ]
    for answer in answers:
        policy = dict(
            part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
    assert all(answer.headers["cache-control"] == "no-store" for answer in answers[-3:])


def test_two_hundred_uploads_at_once(gateway: Gateway, coins: bytes) -> None:
    async def upload(session: aiohttp.ClientSession):
        async with session.post(f"{gateway.url}/detect", data=coins) as answer:
            return answer.status, answer.headers.get("Retry-After"), await answer.json()

    async def uploads():
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.gather(*(upload(session) for _ in range(200)))

    answers = asyncio.run(uploads())
    good = [content for status, _, content in answers if status == 200]
    refused = [(again, content) for status, again, content in answers if status == 503]
    assert len(good) + len(refused) == 200
    assert len(good) >= IN_FLIGHT
    assert all(len(content["detections"]) == 24 for content in good)
    assert refused
    assert all(again == "1" and "in flight" in content["error"] for again, content in refused)
    assert gateway.metric("centernet_web_pictures_in_flight") == 0
    assert len(gateway.ask("/detect", coins).json["detections"]) == 24


def wait_for_health(gateway: Gateway, status: int) -> None:
    deadline = time.monotonic() + 120
    while gateway.ask("/health").status != status:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_server_that_goes_and_comes_back(gateway: Gateway, machine: Network, coins: bytes) -> None:
    assert gateway.ask("/health").json == {"status": "ready"}
    machine.refuse()
    try:
        away = gateway.ask("/detect", coins)
        assert (away.status, away.headers["retry-after"]) == (503, "2")
        assert away.error.startswith("The server is away: ")
        wait_for_health(gateway, 503)
        assert gateway.ask("/health").headers["retry-after"] == "2"
    finally:
        machine.come_back()
    wait_for_health(gateway, 200)
    assert len(gateway.ask("/detect", coins).json["detections"]) == 24


def test_a_server_that_is_silent(gateway: Gateway, machine: Network, coins: bytes) -> None:
    with running(machine.url, "--timeout-s", "1", "--deadline-s", "2", "--retries", "1") as hasty:
        wait_for_health(hasty, 200)
        machine.vanish()
        try:
            silent = hasty.ask("/detect", coins)
            assert silent.status == 504
            assert silent.error.startswith("The server is silent: no answer within")
        finally:
            machine.refuse()  # The silent connection would stay.
            machine.come_back()
    wait_for_health(gateway, 200)


def test_a_client_that_goes_cancels_its_request(gateway: Gateway, machine: Network, coins: bytes) -> None:
    gone = 'centernet_web_requests_total{path="/detect",status="499"}'
    before = gateway.metric(gone)
    machine.vanish()
    try:
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(coins)}\r\n\r\n"
            connection.sendall(head.encode() + coins)
            while gateway.metric("centernet_web_pictures_in_flight") != 1:
                time.sleep(0.01)
        deadline = time.monotonic() + 120
        while gateway.metric("centernet_web_pictures_in_flight") != 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        machine.refuse()
        machine.come_back()
    assert gateway.metric(gone) == before + 1  # Not 504: the server's silence was not noticed.
    wait_for_health(gateway, 200)


def test_metrics_count_requests_and_no_strangers_names(gateway: Gateway, coins: bytes) -> None:
    counter = 'centernet_web_requests_total{path="/detect",status="200"}'
    before, size = gateway.metric(counter), gateway.metric("centernet_web_picture_bytes_total")
    gateway.ask("/detect", coins)
    gateway.ask("/wp-admin")
    assert gateway.metric(counter) == before + 1
    assert gateway.metric("centernet_web_picture_bytes_total") == size + len(coins)
    assert gateway.metric('centernet_web_requests_total{path="other",status="404"}') >= 1
    assert b"wp-admin" not in gateway.ask("/metrics").body


def test_the_description_says_what_is_answered(gateway: Gateway) -> None:
    description = gateway.ask("/openapi.json").json
    assert set(description["paths"]) == {"/detect", "/model", "/health", "/metrics"}
    detect = description["paths"]["/detect"]["post"]
    assert set(detect["requestBody"]["content"]) == {"application/octet-stream", "multipart/form-data"}
    assert set(detect["responses"]) == {"200", "400", "408", "413", "502", "503", "504"}
    assert {parameter["name"] for parameter in detect["parameters"]} == {"threshold", "draw", "steps"}
    assert b"http" not in gateway.ask("/docs").body


def test_misuse_is_one_line(gateway: Gateway) -> None:
    port = gateway.url.rsplit(":", 1)[1]
    for code, words, options in [
        (1, "Address already in use", ("--port", port)),
        (2, "expected a port", ("--port", "99999")),
        (2, "expected scheme and host", ("--allow-origin", "*")),
        (2, "without a port", ("--allow-host", "a:80")),
        (2, "HOST:PORT", ("--url", "http://localhost:8001")),
    ]:
        command = [sys.executable, "-m", "clients.web", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (code, "")
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_a_turned_webp_is_announced(gateway: Gateway) -> None:
    turned = cv2.rotate(picture(60, 80), cv2.ROTATE_90_COUNTERCLOCKWISE)
    exif = Image.Exif()
    exif[0x112] = 6
    answer = gateway.ask("/detect", encode(turned, "WEBP", exif=exif))
    assert answer.headers["webp-orientation"] == "6"
    assert "webp-orientation" not in gateway.ask("/detect", encode(turned, "WEBP")).headers
