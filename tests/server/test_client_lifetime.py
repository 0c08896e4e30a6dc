"""Servers that go and come back, programs that are stopped, encrypted connections."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from pictures import encode, picture

from clients import CenterNetClient, RetryPolicy, Tls, UnavailableError, detect

pytestmark = pytest.mark.server

SHM = Path("/dev/shm")
COUNT = 500


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    # A few different ones, so that a mixed-up answer shows.
    contents = [encode(picture(48 + 8 * seed, 64, seed=seed)) for seed in range(10)]
    for number in range(COUNT):
        (folder / f"{number:04}.png").write_bytes(contents[number % 10])
    return folder


@contextmanager
def detecting(source: Path, results: Path, *arguments: object) -> Iterator[subprocess.Popen]:
    """A running detect.py that has answered some pictures, and not all."""
    command = [sys.executable, detect.__file__, source, "--json", results, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not (results.exists() and results.read_bytes().count(b"\n") >= 30):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


def regions(pid: int) -> list[str]:
    return [path.name for path in SHM.iterdir() if path.name.startswith(f"centernet-{pid}-")]


def kill_hard(process: subprocess.Popen) -> None:
    """As a crash or the kernel's memory killer ends a server; its own children do not outlive the test."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    process.kill()
    process.wait()
    for child in children:
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "memory", "names", "count"),
    [("crash", "none", "*.png", COUNT), ("stop", "system", "0[01]*.png", 200)],
    ids=["crash", "stop-shared-memory"],
)
def test_a_server_restarted_among_500_pictures_costs_waiting_not_results(
    serve, server, many: Path, tmp_path: Path, end: str, memory: str, names: str, count: int
) -> None:
    first = serve(server.repository)
    results = tmp_path / "out.jsonl"
    arguments = ("--url", first.grpc_url, "--threshold", 0.5, "--shared-memory", memory)
    with detecting(many / names, results, *arguments) as process:
        if end == "crash":
            kill_hard(first.process)
        else:
            first.process.terminate()
            first.process.wait()
        assert process.poll() is None
        second = serve(server.repository, f"--grpc-port={first.grpc_url.split(':')[1]}")
        _, errors = process.communicate(timeout=90)
    second.process.terminate()
    assert process.returncode == 0, errors
    assert len(errors.splitlines()) <= 1
    entries = [json.loads(line) for line in results.read_text().splitlines()]
    assert [Path(entry["image"]).name for entry in entries] == [f"{n:04}.png" for n in range(count)]
    with CenterNetClient(server.grpc_url) as client:
        for number in range(10):
            expected = client.detect((many / f"{number:04}.png").read_bytes(), threshold=0.5)
            for entry in entries[number::10]:
                assert [found["label"] for found in entry["detections"]] == list(expected.labels)
    assert regions(process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_program_leaves_no_shared_memory(
    server, many: Path, tmp_path: Path, number: signal.Signals
) -> None:
    results = tmp_path / "out.jsonl"
    with detecting(many, results, "--url", server.grpc_url, "--shared-memory", "system") as process:
        # One region for each request in flight.
        assert len(regions(process.pid)) == 8
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    until = time.monotonic() + 10
    # After SIGKILL Python's resource tracker cleans up, a moment later.
    while regions(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert regions(process.pid) == []
    if number != signal.SIGKILL:
        assert "Traceback" not in errors
        assert list(tmp_path.iterdir()) == [results]
        assert all(json.loads(line)["detections"] for line in results.read_text().splitlines())
        with grpc.InferenceServerClient(server.grpc_url) as client:
            known = client.get_system_shared_memory_status(as_json=True).get("regions", {})
        assert not [name for name in known if name.startswith(f"centernet-{process.pid}-")]


def test_a_server_that_does_not_come_back_ends_the_run_in_one_line(
    serve, server, many: Path, tmp_path: Path
) -> None:
    gone = serve(server.repository)
    results = tmp_path / "out.jsonl"
    arguments = ("--url", gone.grpc_url, "--shared-memory", "system", "--retries", 2)
    with detecting(many, results, *arguments) as process:
        kill_hard(gone.process)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "detect.py: the server has gone after" in errors.splitlines()[-1]
    assert f"of {COUNT} pictures" in errors
    assert "Traceback" not in errors
    assert regions(process.pid) == []


def test_shared_memory_gives_the_same_detections(server) -> None:
    pictures = [picture(60, 80), encode(picture(500, 700)), encode(picture(60, 80))]
    with (
        CenterNetClient(server.http_url, protocol="http", shared_memory="system") as shared,
        CenterNetClient(server.grpc_url) as plain,
    ):
        # The second picture needs a region larger than the first one's.
        noise = os.urandom(1_200_000)
        for content in [*pictures, encode(picture(30, 40)) + noise, pictures[2]]:
            found, expected = shared.detect(content), plain.detect(content)
            assert found.labels == expected.labels
            assert found.xyxy == pytest.approx(expected.xyxy, abs=0.01)
        assert len(regions(os.getpid())) == 1
    assert regions(os.getpid()) == []


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority `ca`, and a certificate for localhost by it."""
    folder = tmp_path_factory.mktemp("pem")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    openssl(
        *("req", "-x509", *new, "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "own.key", "-out", "own.pem"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
    )
    return folder


def test_tls_with_certificates_on_both_sides(serve, server, pem: Path) -> None:
    options = {"server-cert": "own.pem", "server-key": "own.key", "root-cert": "ca.pem"}
    encrypted = serve(
        server.repository,
        "--grpc-use-ssl-mutual=1",
        *(f"--grpc-{name}={pem / file}" for name, file in options.items()),
    )
    url = encrypted.grpc_url.replace("127.0.0.1", "localhost")
    own = Tls(ca=pem / "ca.pem", certificate=pem / "own.pem", key=pem / "own.key")
    with CenterNetClient(url, tls=own) as client:
        client.check_ready()
        assert len(client.detect(encode(picture(60, 80)))) > 0
    for refused in (None, Tls(), Tls(ca=pem / "ca.pem")):
        with (
            CenterNetClient(url, tls=refused, retry=RetryPolicy(timeout_s=5)) as client,
            pytest.raises(UnavailableError, match="no Triton server answers"),
        ):
            client.check_ready()
    encrypted.process.terminate()


@pytest.fixture
def tls_proxy(server, pem: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Triton has no TLS of its own for HTTP, a proxy has. Yields its address and what it saw."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem / "own.pem", pem / "own.key")
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = server.http_url.split(":")
    seen = bytearray()

    def forward(source: socket.socket, target: socket.socket, keep: bool) -> None:
        try:
            while data := source.recv(65536):
                if keep:
                    seen.extend(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                encrypted = context.wrap_socket(plain, server_side=True)
            except OSError:
                continue
            upstream = socket.create_connection((host, int(port)))
            for ends in ((encrypted, upstream, True), (upstream, encrypted, False)):
                threading.Thread(target=forward, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"localhost:{listener.getsockname()[1]}", lambda: bytes(seen)
    listener.close()


def test_https_and_headers_that_nobody_prints(
    tls_proxy, pem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    url, seen = tls_proxy
    (tmp_path / "a.png").write_bytes(encode(picture(60, 80)))

    def run(*options: object) -> int:
        words = ["detect.py", tmp_path / "a.png", tmp_path / "missing", "--protocol", "http", "--url", url]
        monkeypatch.setattr("sys.argv", [*map(str, [*words, "--header", "X-Api-Key=hunter2=", *options])])
        return detect.main()

    assert run("--ssl", "--ssl-ca", pem / "ca.pem") == 1
    assert b"x-api-key: hunter2=\r\n" in seen().lower()
    printed = capfd.readouterr()
    assert "a.png" in printed.out
    assert "hunter2" not in printed.out + printed.err
    # An authority that the system does not know.
    assert run("--ssl") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "certificate" in line
    assert "hunter2" not in line
