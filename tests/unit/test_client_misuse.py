"""What people get wrong on the clients' command lines: one line, and nothing is overwritten."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from clients import detect, evaluate, options, output, roll_out
from clients.client import AsyncCenterNetClient
from clients.errors import CenterNetError, RejectedError
from clients.results import Results
from clients.tensors import detections

COCO = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "coin"}]}
PROGRAMS = {"detect.py": detect.main, "evaluate.py": evaluate.main}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs a client's command line: its exit code, and its last line of errors."""

    def run(program: str, *words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", list(map(str, [program, *words, "--retries", 0])))
        try:
            code = PROGRAMS[program]()
        except SystemExit as stop:
            code = stop.code
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        return code, errors.splitlines()[-1]

    return run


@pytest.mark.parametrize("form", ["link", "same"])
def test_results_never_replace_what_is_read(run, tmp_path: Path, form: str) -> None:
    annotations, picture = tmp_path / "instances.json", tmp_path / "a.jpg"
    annotations.write_text(json.dumps({**COCO, "images": [{"id": 1, "file_name": "a.jpg"}]}))
    picture.write_bytes(b"picture")
    before = annotations.read_bytes()
    written = {path: path for path in (annotations, picture)}
    if form == "link":
        written = {path: tmp_path / f"{path.stem}.link" for path in written}
        for path, link in written.items():
            link.symlink_to(path)
    coco = ("--annotations", annotations, "--images", tmp_path)
    for program, words, path in (
        ("detect.py", (picture, "--json"), picture),
        (
            "detect.py",
            (picture, "--json-format", "coco", "--annotations", annotations, "--json"),
            annotations,
        ),
        ("evaluate.py", (*coco, "--output"), annotations),
        ("evaluate.py", (*coco, "--output"), picture),
    ):
        code, line = run(program, *words, written[path])
        assert code == 2
        assert line.endswith(f"{written[path]} is read, too: choose another name")
    assert (annotations.read_bytes(), picture.read_bytes()) == (before, b"picture")


def test_an_evaluations_results_are_not_where_its_progress_is(run, tmp_path: Path) -> None:
    annotations = tmp_path / "instances.json"
    annotations.write_text(json.dumps(COCO))
    words = ("--annotations", annotations, "--images", tmp_path)
    code, line = run("evaluate.py", *words, "--output", tmp_path / "out.jsonl")
    assert code == 2
    assert line.endswith("out.jsonl is where progress is kept, expected FILE.json")
    code, line = run("evaluate.py", *words, "--output", tmp_path / "out.json")
    assert code == 1
    assert line.endswith("instances.json lists no pictures, expected some under 'images'")


def test_a_link_stays_and_a_long_name_fits(tmp_path: Path) -> None:
    target, link = tmp_path / "folder" / "target.json", tmp_path / "link.json"
    target.parent.mkdir()
    link.symlink_to(target)
    with output.json_writer(link, "list") as write:
        write([1])
    assert link.is_symlink()
    assert json.loads(target.read_text()) == [1]
    with output.beside(link) as part:
        part.write_text("2")
    assert link.is_symlink()
    assert target.read_text() == "2"
    long = tmp_path / ("n" * 251 + ".png")
    with output.beside(long) as part:
        part.write_text("3")
    assert long.read_text() == "3"
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "link.json", long.name}


def test_what_is_no_file_is_written_itself(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # Else opening it for writing would wait for a reader.
    try:
        with output.beside(pipe) as part:
            part.write_text("results")
        assert os.read(end, 100) == b"results"
    finally:
        os.close(end)
    assert list(tmp_path.iterdir()) == [pipe]
    assert pipe.is_fifo()


class Stranger(BaseHTTPRequestHandler):
    """Answers everything with 200 and what is no JSON, or not Triton's."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("body", [b"# HELP nv_gpu", b"\xff\xfe\x00", b"[]", b"{}", b"null", b'{"a": 1}'])
def test_a_server_that_is_not_triton(run, stranger: HTTPServer, tmp_path: Path, body: bytes) -> None:
    Stranger.body = body
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"picture")
    url = f"127.0.0.1:{stranger.server_port}"
    code, line = run("detect.py", picture, "--protocol", "http", "--url", url)
    assert code == 1
    assert f"{url} does not answer as Triton does, expected its HTTP port" in line


def test_a_model_that_answers_no_detections() -> None:
    with pytest.raises(RejectedError, match=r"answers no num_detections, expected an ensemble of detections"):
        detections({"peaks": np.zeros((1, 2))})


def test_bytes_of_another_type_are_sent_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []

    async def inputs(self: object, picture: object) -> None:
        sent.append(picture)
        raise CenterNetError("enough")

    async def signature(self: object) -> object:
        return type("Any", (), {"check_camera": lambda *_: None, "takes_frames": True, "remembers": False})()

    monkeypatch.setattr(AsyncCenterNetClient, "_inputs", inputs)
    monkeypatch.setattr(AsyncCenterNetClient, "signature", signature)

    async def main() -> None:
        async with AsyncCenterNetClient("localhost:9") as client:
            with pytest.raises(CenterNetError, match="enough"):
                await client.detect(np.bytes_(b"picture"))

    asyncio.run(main())
    assert type(sent[0]) is bytes
    assert sent == [b"picture"]


def test_the_systems_errors_have_no_number(capsys: pytest.CaptureFixture) -> None:
    results = Results(options.Program("detect.py"))
    results.report("a.jpg", OSError(28, "No space left on device", "out/a.jpg"))
    results.report("b.jpg", CenterNetError("damaged"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["detect.py: a.jpg: No space left on device: out/a.jpg", "detect.py: b.jpg: damaged"]
    assert results.failed == 2


def test_closed_standard_streams_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with options.one_line_errors("detect.py"):
        assert sys.stdin.buffer.read() == b""
        print("nobody reads this")
        print("nor this", file=sys.stderr)
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            stream.close()


def test_a_load_that_never_ends_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_out, "LOAD_S", 0.01)

    class Client:
        async def control(self, *_: str) -> None:
            await asyncio.sleep(60)

    one = roll_out.RollOut.__new__(roll_out.RollOut)
    one._client = Client()  # type: ignore[assignment]
    with pytest.raises(CenterNetError, match=r"^load_model of centernet_network: no answer within 0.01 s$"):
        asyncio.run(one._call("load_model", "centernet_network"))


def test_an_infinite_id_is_one_line(run, tmp_path: Path) -> None:
    annotations = tmp_path / "instances.json"
    annotations.write_text('{"images": [{"id": Infinity, "file_name": "a.jpg"}], "categories": []}')
    code, line = run("evaluate.py", "--annotations", annotations, "--images", tmp_path)
    assert code == 1
    assert "found the id inf, expected a whole number or a text" in line


def test_plain_text_where_tls_is_expected(run, stranger: HTTPServer, tmp_path: Path) -> None:
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"picture")
    url = f"127.0.0.1:{stranger.server_port}"
    for protocol in ("http", "grpc"):
        words = [sys.executable, "clients/detect.py", picture, "--ssl", "--url", url, "--protocol", protocol]
        done = subprocess.run(
            [*map(str, words), "--retries", "0"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert not line.rstrip().endswith(":")
