"""Retries, errors, options: what needs no server."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import virtual_time
from tritonclient.utils import InferenceServerException

from clients import CenterNetClient, detect
from clients.errors import CenterNetError, DeadlineError, RejectedError, UnavailableError
from clients.retry import RetryPolicy, with_retries
from clients.transport import TRANSPORTS, GrpcTransport, HttpTransport

QUICK = RetryPolicy(retries=4, first_pause_s=0.001, longest_pause_s=0.004)


class Server:
    """Fails so many times, then answers."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.calls = 0
        self._failures = failures
        self._error = error

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error
        return "answer"


@pytest.mark.parametrize("failures", [0, 1, 4])
def test_an_absent_server_is_asked_again(failures: int) -> None:
    server = Server(failures, UnavailableError("away"))
    assert asyncio.run(with_retries(server, QUICK)) == "answer"
    assert server.calls == failures + 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_no_proxy_is_asked_for_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:2")
    with CenterNetClient(f"{host}:1") as client, pytest.raises(UnavailableError, match=r"[:\]]1:"):
        client.check_ready()


def test_retries_end() -> None:
    server = Server(99, UnavailableError("away"))
    with pytest.raises(UnavailableError, match="away"):
        asyncio.run(with_retries(server, QUICK))
    assert server.calls == 5


def test_a_rejection_is_final() -> None:
    server = Server(99, RejectedError("no picture"))
    with pytest.raises(RejectedError, match="no picture"):
        asyncio.run(with_retries(server, QUICK))
    assert server.calls == 1


def test_a_pause_beyond_the_deadline_is_not_begun() -> None:
    server = Server(99, UnavailableError("away"))
    policy = RetryPolicy(first_pause_s=500, longest_pause_s=500, deadline_s=5)
    error, took_s = virtual_time.run(with_retries(server, policy))
    assert isinstance(error, UnavailableError)
    assert (server.calls, took_s) == (1, 0)


def test_an_absent_server_is_asked_until_the_deadline() -> None:
    server = Server(999, UnavailableError("away"))
    policy = RetryPolicy(retries=900, first_pause_s=1, longest_pause_s=1, deadline_s=60)
    error, took_s = virtual_time.run(with_retries(server, policy))
    assert isinstance(error, UnavailableError)
    assert 59 <= took_s < 60
    assert 60 <= server.calls <= 120


def test_a_silent_server_is_asked_again_until_the_deadline() -> None:
    calls = 0

    async def hang() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(600)

    policy = RetryPolicy(timeout_s=10, deadline_s=45, first_pause_s=0.001, longest_pause_s=0.001)
    error, took_s = virtual_time.run(with_retries(hang, policy))
    assert isinstance(error, DeadlineError)
    assert str(error) == "no answer within 45.0 s"
    assert (calls, took_s) == (5, 45)


def test_an_answer_after_silence() -> None:
    server = Server(2, TimeoutError())
    assert asyncio.run(with_retries(server, QUICK)) == "answer"
    assert server.calls == 3


def test_silence_uses_up_the_retries_too() -> None:
    server = Server(99, TimeoutError())
    with pytest.raises(DeadlineError):
        asyncio.run(with_retries(server, QUICK))
    assert server.calls == 5


def test_pauses_double_up_to_a_limit_and_differ_between_clients() -> None:
    policy = RetryPolicy(retries=12, first_pause_s=0.1, longest_pause_s=5)
    runs = [list(policy.pauses_s()) for _ in range(20)]
    for pauses_s in runs:
        longest = [min(0.1 * 2**n, 5) for n in range(12)]
        assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses_s, longest, strict=True))
    assert len({tuple(pauses_s) for pauses_s in runs}) == 20
    assert max(RetryPolicy(retries=2000).pauses_s()) <= RetryPolicy().longest_pause_s


@pytest.mark.parametrize(
    ("protocol", "status", "message", "expected"),
    [
        ("grpc", "StatusCode.UNAVAILABLE", "Exceeds maximum queue size", UnavailableError),
        ("grpc", "StatusCode.CANCELLED", "CANCELLED", UnavailableError),
        ("grpc", "StatusCode.NOT_FOUND", "unknown model: 'm' has no available versions", UnavailableError),
        ("grpc", "StatusCode.NOT_FOUND", "unknown model: 'm' is not found", RejectedError),
        ("grpc", "StatusCode.INVALID_ARGUMENT", "found 3 bytes", RejectedError),
        ("http", "503", "Exceeds maximum queue size", UnavailableError),
        ("http", "400", "found 3 bytes", RejectedError),
    ],
)
def test_what_the_server_answers_is_told_apart(
    protocol: str, status: str, message: str, expected: type[CenterNetError]
) -> None:
    transport = TRANSPORTS[protocol]("localhost:1", tls=None, headers={})
    error = transport._translated(InferenceServerException(msg=message, status=status))
    assert type(error) is expected
    assert str(error) == message


@pytest.mark.parametrize("transport", [GrpcTransport, HttpTransport])
def test_a_programming_error_is_not_hidden(transport: type) -> None:
    assert transport("localhost:1", tls=None, headers={})._translated(KeyError("bug")) is None


def test_messages_are_one_line() -> None:
    assert str(RejectedError("first\n  second\tthird ")) == "first second third"


def run_detect(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["detect.py", *arguments])
    return detect.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "1.5"], "a score from 0 to 1"),
        (["--threshold", "nan"], "a score from 0 to 1"),
        (["--timeout-s", "0"], "a positive number of seconds"),
        (["--concurrency", "0"], "1 or more"),
        (["--retries", "-1"], "0 or more"),
        (["--url", "http://localhost:8000"], "HOST:PORT without a scheme"),
        (["--url", "localhost"], "HOST:PORT"),
        (["--url", "localhost:0"], "PORT from 1 to 65535"),
        (["--url", "localhost:65536"], "PORT from 1 to 65535"),
        (["--ssl-ca", __file__], "need --ssl"),
        (["--ssl", "--ssl-cert", __file__], "belong together"),
        (["--ssl", "--ssl-ca", "nowhere.pem"], "no such file: nowhere.pem"),
        (["--header", "hunter2"], "expected KEY=VALUE"),
        (["--header", "api key=hunter2"], "KEY of letters"),
        (["--header", "key=hunter2é"], "VALUE of printable ASCII"),
        (["clip.mp4", "--json", "x", "--json-format", "coco"], "COCO's results have no frames"),
        (["--json-format", "lines"], "--json-format belongs to --json"),
        (["--annotations", __file__, "--json", "x"], "--annotations belongs to --json-format coco"),
        (["--annotations", "nowhere.json"], "no such file: nowhere.json"),
        (["--json", "."], "found the folder '.'"),
        (["--json", ""], "expected a file's name"),
        (["--output-dir", "clip.mp4"], "expected a folder's name"),
        (["--output-dir", ""], "expected a folder's name"),
    ],
)
def test_misuse(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(SystemExit) as stop:
        run_detect(monkeypatch, "picture.png", *arguments)
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "hunter2" not in errors


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_no_server_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, protocol: str
) -> None:
    arguments = ["x.png", "--url", "127.0.0.1:9", "--protocol", protocol, "--header", "key=hunter2"]
    assert run_detect(monkeypatch, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"detect.py: no Triton server answers at 127.0.0.1:9 ({protocol})")
    assert line.endswith("Connection refused")
    assert "ssl" not in line
    assert "hunter2" not in line


def test_imports_are_not_the_servers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for protocol, module in (("grpc", "tritonclient.grpc"), ("http", "tritonclient.http")):
        monkeypatch.delitem(sys.modules, f"{module}.aio", raising=False)
        TRANSPORTS[protocol]("localhost:1", tls=None, headers={})
        assert f"{module}.aio" in sys.modules


def test_the_package_is_light() -> None:
    code = "import sys, clients; print(*{'torch', 'supervision', 'cv2', 'grpc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
