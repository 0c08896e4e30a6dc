"""Pictures behind web addresses."""

import base64
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import clips
import numpy as np
import pytest
from pictures import encode, picture

from clients import detect, download, sources
from clients.client import Answer
from clients.detections import Detections
from clients.errors import SourceError
from clients.options import Program
from clients.output import OutputFolder
from clients.results import Results
from clients.sources import Picture
from clients.video.source import Video

PIXELS = picture(20, 30)
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), ())
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


def content(
    body: bytes,
    kind: str = "",
    *,
    length: int | None = None,
    status: int = 200,
    encoding: str = "",
    transfer: str = "",
) -> Callable:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        if kind:
            request.send_header("Content-Type", kind)
        if encoding:
            request.send_header("Content-Encoding", encoding)
        if transfer:
            request.send_header("Transfer-Encoding", transfer)
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


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (HEIC, ""),
        (b"<svg/>", "image/svg+xml"),
        (b"damaged", "image/jpeg"),
        (b"II+\0" + bytes(100), "application/octet-stream"),
        (b"MM\0+" + bytes(100), "application/octet-stream"),
        (b"P6#a comment\n2 2 255\n", "application/octet-stream"),
        (b"P7\nWIDTH 2\n", "application/octet-stream"),
        (base64.b64encode(encode(PIXELS)), "application/octet-stream"),
        (b"data:image/png;base64," + base64.b64encode(encode(PIXELS)), "text/plain"),
    ],
)
def test_pictures_that_only_the_server_judges(body: bytes, kind: str) -> None:
    with serving(content(body, kind)) as address:
        (found,) = sources.find([address])
        assert isinstance(found, Picture)
        assert str(found.relative) == "picture.png"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a%00b.png", r"a\x00b.png"),
        ("a%0Ab%1B.png", r"a\nb\x1b.png"),
        ("%2e%2e%2f%2e%2e", "picture.png"),
        ("a%2Fb.png", "b.png"),
        ("%E7%A1%AC" * 200 + ".png", "硬" * (sources.MAX_NAME - 4) + ".png"),
    ],
)
def test_a_drawings_name_is_one_for_files(tmp_path: Path, path: str, name: str) -> None:
    with serving(content(encode(PIXELS), "image/png")) as address:
        (found,) = sources.find([f"{address}/{path}"])
    assert str(found.relative) == name
    (tmp_path / found.relative).touch()


class Server:
    """Answers like the client: nothing is found in any picture."""

    camera = None

    def detect_many(self, pictures: list, *, load: Callable, threshold: None) -> Iterator[Answer]:
        for one in pictures:
            load(one)
            yield Answer(one, NOTHING, None)


def test_what_is_drawn_is_read_once(tmp_path: Path) -> None:
    """A pipe is empty then, and a web address slow; its first request only asks what it is."""
    requests = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        requests.append(request.path)
        content(encode(PIXELS), "image/png")(request)

    read, write = os.pipe()
    os.write(write, encode(PIXELS))
    os.close(write)
    results = Results(Program("detect.py"))
    results.folder = OutputFolder(tmp_path)
    with serving(answer) as address:
        pictures = [*sources.find([f"{address}/a.png", f"/dev/fd/{read}"])]
        detect.detect_pictures(Server(), pictures, results, detect.list_entries, None)
    os.close(read)
    assert results.failed == 0
    assert requests == ["/a.png"] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", f"{read}.png"}


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
        (
            content(encode(PIXELS), "image/png", encoding="gzip"),
            "content-encoding: gzip, but failed to decode",
        ),
        (content(encode(PIXELS), "image/png", encoding="br"), "content-encoding: br, but failed to decode"),
        (content(b"zz\r\n", "image/png", transfer="chunked"), "cannot be read: IncompleteRead"),
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


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"HTTP/1.0 200 OK\r\nContent-Type: image/png\r\n\r\n", b"\x89PNG"),
        (b"HTTP/1.0 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.0 200 OK\r\nX: ", b"y"),
    ],
    ids=["body", "headers", "line"],
)
def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch, begin: bytes, again: bytes) -> None:
    """However slowly it comes: a byte now and then is never silent for long."""
    monkeypatch.setattr(download, "DEADLINE_S", 0.2)
    done = threading.Event()

    def trickle(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(begin)
        while not done.wait(0.05):
            request.wfile.write(again)

    with serving(trickle) as address:
        (found,) = sources.find([address])
        with pytest.raises(SourceError, match=r"not complete after 0\.2 s"):
            found.read()  # type: ignore[union-attr]
        done.set()


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
