"""The gateway's own parts, without a server of models."""

import asyncio
import socket
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from starlette.types import Message

from clients.errors import RejectedError
from clients.web import __main__ as command
from clients.web import body, guard, listen
from clients.web.body import RequestError, Upload, read_picture
from clients.web.guard import Guard, Metrics
from clients.web.upstream import _largest

Connect = Callable[[], socket.socket]
WAIT_S = 30
HEAD = b"POST /%s HTTP/1.1\r\nHost: localhost\r\n"
LARGE = 64 * 2**20
"""Bytes of an answer, more than the system's own buffers take."""


async def count(request: Request) -> PlainTextResponse:
    try:
        return PlainTextResponse(str(len((await read_picture(request, 100)).picture)))
    except RequestError as error:
        return PlainTextResponse(str(error), error.status)


async def slow(_: Request) -> PlainTextResponse:
    await asyncio.sleep(3 * listen.SILENCE_S)
    return PlainTextResponse("done")


async def large(_: Request) -> PlainTextResponse:
    return PlainTextResponse("x" * LARGE)


@contextmanager
def serving() -> Iterator[tuple[Connect, listen.uvicorn.Server]]:
    """The gateway's HTTP server; yields what connects to it, and itself."""
    app = FastAPI()
    for endpoint in (count, slow, large):
        app.add_route(f"/{endpoint.__name__}", endpoint, ["POST"])
    app.add_middleware(Guard, hosts=frozenset(), origins=(), metrics=Metrics())
    listener = socket.create_server(("127.0.0.1", 0))
    server = listen.make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    connections: list[socket.socket] = []

    def connect() -> socket.socket:
        connections.append(socket.create_connection(listener.getsockname(), timeout=WAIT_S))
        return connections[-1]

    try:
        wait(lambda: server.started)
        yield connect, server
    finally:
        for connection in connections:
            connection.close()
        server.should_exit = True
        thread.join()


def wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side ends the connection."""
    received = b""
    try:
        while part := connection.recv(2**16):
            received += part
    except ConnectionResetError:
        pass
    return received


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Connect, listen.uvicorn.Server]]:
    monkeypatch.setattr(listen, "SILENCE_S", 0.3)
    monkeypatch.setattr(body, "READ_S", 0.3)
    monkeypatch.setattr(guard, "DRAIN_S", 10 * WAIT_S)
    with serving() as server:
        yield server


def test_a_head_that_never_ends_ends_the_connection(impatient) -> None:
    connect, _ = impatient
    assert everything(connect()) == b""
    dripping = connect()
    dripping.settimeout(0.01)
    ended = False
    for byte in HEAD % b"count" + b"X: " + b"x" * 3000:
        try:
            dripping.send(bytes([byte]))
            ended = dripping.recv(1) == b""
        except TimeoutError:
            continue
        except OSError:
            ended = True
        if ended:
            break
    assert ended
    # The second request of a connection, too.
    again = connect()
    again.sendall(HEAD % b"count" + b"Content-Length: 2\r\n\r\nab" + b"POST /cou")
    assert everything(again).endswith(b"\r\n\r\n2")


def test_a_body_that_never_ends_is_answered(impatient) -> None:
    connect, _ = impatient
    connection = connect()
    connection.sendall(HEAD % b"count" + b"Content-Length: 10\r\n\r\nab")
    answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 0.3 s" in answer


def test_a_request_at_work_has_time(impatient) -> None:
    connect, _ = impatient
    connection = connect()
    connection.sendall(HEAD % b"slow" + b"Content-Length: 0\r\n\r\n")
    assert everything(connection).endswith(b"done")


def test_an_answer_that_nobody_reads_is_dropped(impatient) -> None:
    connect, server = impatient
    connect().sendall(HEAD % b"large" + b"Content-Length: 0\r\n\r\n")
    wait(lambda: server.server_state.total_requests)
    wait(lambda: not server.server_state.connections)


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "MAX_CONNECTIONS", 2)
    with serving() as (connect, server):
        first, second = connect(), connect()
        wait(lambda: len(server.server_state.connections) == 2)
        assert b"503 Service Unavailable\r\nRetry-After: 1\r\n" in everything(connect())
        for one in (first, second):
            one.sendall(HEAD % b"count" + b"Connection: close\r\nContent-Length: 1\r\n\r\na")
            assert everything(one).endswith(b"1")


def test_a_refused_body_is_read_so_that_its_sender_hears_why(monkeypatch: pytest.MonkeyPatch) -> None:
    head = HEAD % b"count" + b"Connection: close\r\nContent-Length: %d\r\n" % LARGE
    with serving() as (connect, _):
        connection = connect()
        connection.sendall(head + b"\r\n" + bytes(LARGE))
        assert b"413" in everything(connection)
        # Who asks first is spared the sending.
        connection = connect()
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 413")
        # There is an end to it.
        monkeypatch.setattr(guard, "DRAIN_S", 0.3)
        connection = connect()
        connection.sendall(head + b"\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 413")


def read(content: bytes, kind: str, max_bytes: int) -> Upload:
    parts = [content[start : start + 65536] for start in range(0, len(content), 65536)]

    async def receive() -> Message:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", kind.encode())]}
    return asyncio.run(read_picture(Request(scope, receive), max_bytes))


KIND = "multipart/form-data; boundary=limit"


def form(*parts: bytes) -> bytes:
    return (
        b"".join(b"--limit\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
        + b"--limit--"
    )


def file(picture: bytes, name: str = "a.png") -> bytes:
    return f'name="picture"; filename="{name}"\r\n\r\n'.encode() + picture


def field(value: bytes) -> bytes:
    return b'name="x"\r\n\r\n' + value


def test_a_form_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a picture was written to disk")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    picture = bytes(range(256)) * 20_000
    content = form(field(b"a"), file(picture, "Käfer.png"))
    assert read(content, KIND, len(picture)) == ("Käfer.png", picture)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (form(file(bytes(1001))), "found 1001 bytes, the server takes at most 1000"),
        (form(file(bytes(10**6))), "found more than 1000 bytes"),
        (form(file(b"a"), file(b"b")), "Too many files"),
        (form(*[field(b"")] * 100), "Too many fields"),
        (form(field(bytes(65_600))), "found more than 1000 bytes|Part exceeded"),
        (form(field(b"")), "without a file"),
    ],
)
def test_forms_are_bounded(content: bytes, words: str) -> None:
    assert read(form(file(bytes(1000))), KIND, 1000).picture == bytes(1000)
    with pytest.raises(RequestError, match=words):
        read(content, KIND, 1000)


@pytest.mark.parametrize("known", [1, 2, 3, 4, 5, 80, 199, 200, 201, 1000])
def test_how_many_classes_there_are_is_found_by_halving(known: int) -> None:
    asked = []

    async def ask(count: int) -> tuple[str, ...]:
        asked.append(count)
        if count > known:
            raise RejectedError(f"found {count}")
        return tuple(map(str, range(count)))

    assert asyncio.run(_largest(ask, 200)) == tuple(map(str, range(min(known, 200))))
    assert max(asked) <= 200
    assert len(asked) <= 16


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["clients.web"])
    monkeypatch.setattr(command, "NEEDED", ("fastapi", "no-such-package"))
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("packages are missing: pip install no-such-package")


def test_what_is_needed_is_what_the_project_declares() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert list(command.NEEDED) == project["project"]["optional-dependencies"]["web"]


@pytest.mark.parametrize(
    ("charset", "name"),
    [("punycode", b"\xff"), ("nothing", b"a"), ("raw_unicode_escape", b"\\ud800"), ("utf-7", b"+2AA-")],
)
def test_a_name_is_unicode_whatever_its_charset_makes_of_it(charset: str, name: bytes) -> None:
    content = form(b'name="picture"; filename="' + name + b'"\r\n\r\npicture')
    found = read(content, f"{KIND}; charset={charset}", 1000)
    assert found.name.encode()
    assert found.picture == b"picture"


def test_a_charset_that_cannot_be_is_the_forms_fault() -> None:
    with pytest.raises(RequestError, match=r"^The form's names cannot be read: ") as refused:
        read(form(file(b"picture")), f"{KIND}; charset=undefined", 1000)
    assert refused.value.status == 400
