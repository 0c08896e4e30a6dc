"""Pictures behind web addresses."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import clips
import pytest
from pictures import encode, picture

from clients import download, sources
from clients.errors import SourceError
from clients.sources import Picture
from clients.video.source import Video

PIXELS = picture(20, 30)
HEIC = b"\0\0\0\x18ftypheic" + bytes(100)


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address of a web server that answers every request so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # The client has had enough.
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def content(body: bytes, kind: str = "", *, length: int | None = None, status: int = 200) -> Callable:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        if kind:
            request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        request.end_headers()
        request.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "IMAGE/PNG; charset=x", "application/octet-stream", "text/html", ""]
)
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_a_picture_is_one_whatever_it_is_called(kind: str, name: str) -> None:
    body = encode(PIXELS, name)
    with serving(content(body, kind)) as address:
        (found,) = sources.find([f"{address}/clip.mp4?size=big"])
        assert isinstance(found, Picture)
        assert found.name == f"{address}/clip.mp4?size=big"
        assert str(found.relative) == "clip.mp4"
        assert found.read() == body


def test_pictures_that_only_the_server_judges() -> None:
    for body, kind in ((HEIC, ""), (b"<svg/>", "image/svg+xml"), (b"damaged", "image/jpeg")):
        with serving(content(body, kind)) as address:
            (found,) = sources.find([address])
            assert isinstance(found, Picture)
            assert str(found.relative) == "picture.png"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"--frame", "multipart/x-mixed-replace; boundary=frame"),
        (b"", "video/mp4"),
        (b"#EXTM3U", "application/vnd.apple.mpegurl"),
        (b"\0\0\0\x18ftypisom" + bytes(100), "application/octet-stream"),
    ],
)
def test_videos_stay_videos(body: bytes, kind: str) -> None:
    with serving(content(body, kind)) as address:
        (found,) = sources.find([f"{address}/picture.jpg"])
        assert isinstance(found, Video)
        assert found.live


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (content(b"gone", "image/png", status=404), "the web server answered 404"),
        (content(b"<html>", "text/html; charset=utf-8"), "found text/html, expected a picture or a video"),
        (content(encode(PIXELS)[:100], "image/png", length=5000), "cannot be read: "),
        (content(bytes(5000), "image/png"), "more than 4000 bytes"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch, answer: Callable, message: str
) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 4000)
    with serving(answer) as address:
        (found,) = sources.find([f"{address.replace('//', '//user:secret@')}/a.png"])
        assert isinstance(found, Picture)
        with pytest.raises(SourceError, match=message) as caught:
            found.read()
    assert "secret" not in f"{found.name} {caught.value}"
    assert "\n" not in str(caught.value)


def test_nobody_answers() -> None:
    with serving(content(b"")) as address:
        pass
    (found,) = sources.find([f"{address}/a.png"])
    with pytest.raises(SourceError, match="cannot be read: Connection refused"):
        found.read()  # type: ignore[union-attr]


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly it comes: a byte now and then is never silent for long."""
    monkeypatch.setattr(download, "DEADLINE_S", 0.2)

    def trickle(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "image/png")
        request.end_headers()
        while True:
            request.wfile.write(b"\x89PNG")
            time.sleep(0.02)

    with serving(trickle) as address:
        (found,) = sources.find([address])
        with pytest.raises(SourceError, match=r"not complete after 0\.2 s"):
            found.read()  # type: ignore[union-attr]


def test_silence_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE_S", 0.2)
    done = threading.Event()
    with serving(lambda request: bool(done.wait(60))) as address:
        (found,) = sources.find([address])
        done.set()
    with pytest.raises(SourceError, match=r"no answer within 0\.2 s"):
        found.read()  # type: ignore[union-attr]


def test_a_live_camera_without_times_is_timed_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=itertools.count(100, 7).__next__)
    monkeypatch.setattr("clients.video.source.time", clock)
    with clips.stream(5) as address:
        (found,) = sources.find([address])
        assert isinstance(found, Video)
        with found.open() as stream:
            assert [frame.time_s for frame in stream] == [0, 7, 14, 21, 28]
