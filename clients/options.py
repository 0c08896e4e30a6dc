"""The command-line options that every client has."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from clients import camera
from clients.blocking import CenterNetClient
from clients.client import AsyncCenterNetClient
from clients.errors import CenterNetError, DeadlineError, SharedMemoryError, UnavailableError
from clients.output import printable
from clients.retry import RetryPolicy
from clients.transport import PORTS, Tls
from export import errors
from export.errors import ExportError

Client = TypeVar("Client")

GRACE_S = 15.0
"""For cleaning up after a signal: longer than a stream may be silent, `video.source.TIMEOUT_S`."""


def add_connection_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds what `client` reads; with `several` servers, what `client_options` does."""
    add = parser.add_argument_group("server").add_argument
    add(
        "--url",
        type=_address,
        action="append" if several else "store",
        metavar="HOST:PORT",
        help="default: localhost:8001 (http: 8000)" + ("; several: each gets its share" if several else ""),
    )
    add("--protocol", choices=list(PORTS), default="grpc")
    add("--model", default="centernet", help="ensemble for pictures; videos go to MODEL_frames")
    add(
        "--camera",
        type=camera_file,
        metavar="FILE",
        help="for models that answer 3-D boxes: KITTI's calibration (P2), or the 3x4 numbers as text or JSON",
    )
    add("--concurrency", type=count, default=8, metavar="N", help="requests in flight (default: %(default)s)")
    add(
        "--timeout-s",
        type=_positive,
        default=10.0,
        metavar="S",
        help="for one answer, then it is asked again (default: %(default)g)",
    )
    add(
        "--retries",
        type=_natural,
        default=20,
        metavar="N",
        help="while the server is unavailable or silent (default: %(default)s)",
    )
    add(
        "--deadline-s",
        type=_positive,
        default=60.0,
        metavar="S",
        help="for one picture, retries included (default: %(default)g)",
    )
    add(
        "--shared-memory",
        choices=["none", "system", "cuda"],
        default="none",
        help="for a server on this machine",
    )
    add("--ssl", action="store_true", help="encrypt the connection")
    add("--ssl-ca", type=file, metavar="PEM", help="authorities to trust (default: the system's)")
    add("--ssl-cert", type=file, metavar="PEM", help="the client's certificate")
    add("--ssl-key", type=file, metavar="PEM", help="its private key")
    add(
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="sent along, never shown",
    )


def client(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> CenterNetClient:
    """The client that the options describe."""
    return _client(CenterNetClient, parser, arguments)


def async_client(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> AsyncCenterNetClient:
    """The same for asyncio."""
    return _client(AsyncCenterNetClient, parser, arguments)


def _client(
    kind: Callable[..., Client], parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> Client:
    url = arguments.url or f"localhost:{PORTS[arguments.protocol]}"
    try:
        return kind(url, **client_options(parser, arguments))
    except SharedMemoryError as error:
        parser.error(str(error))


def client_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a client, but for its server's address."""
    if not arguments.ssl and (arguments.ssl_ca or arguments.ssl_cert or arguments.ssl_key):
        parser.error("--ssl-ca, --ssl-cert and --ssl-key need --ssl")
    if bool(arguments.ssl_cert) != bool(arguments.ssl_key):
        parser.error("--ssl-cert and --ssl-key belong together")
    tls = Tls(ca=arguments.ssl_ca, certificate=arguments.ssl_cert, key=arguments.ssl_key)
    return {
        "protocol": arguments.protocol,
        "model": arguments.model,
        "concurrency": arguments.concurrency,
        "retry": RetryPolicy(
            retries=arguments.retries, timeout_s=arguments.timeout_s, deadline_s=arguments.deadline_s
        ),
        "tls": tls if arguments.ssl else None,
        "headers": dict(arguments.header),
        "shared_memory": arguments.shared_memory,
        "camera": arguments.camera,
    }


def end_if_gone(client: CenterNetClient, error: Exception | None, done: str) -> None:
    """Ends the run when the server is gone for good: the others would fail alike, each after a long wait.

    Raises:
        UnavailableError: It is; `error` is what became of a picture, after `done`.
    """
    try:
        if isinstance(error, UnavailableError):
            raise error
        if isinstance(error, DeadlineError):  # Too slow for this picture, or gone?
            client.check_ready()
    except UnavailableError as gone:
        raise UnavailableError(f"the server has gone after {done}: {gone}") from error


@dataclass
class Program:
    """A command line at work: what it is called, where it speaks, and the exit code that it ends with."""

    name: str
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    code: int = 0

    def say(self, message: str) -> None:
        """Prints a message as one line, whatever names are in it."""
        self.console.print(f"{self.name}: {printable(message)}", markup=False, soft_wrap=True)


@contextmanager
def one_line_errors(name: str, grace_s: float = GRACE_S) -> Iterator[Program]:
    """Turns what ends a program early into one line and an exit code.

    SIGTERM and a closed terminal unwind the program as Ctrl-C does, so that files and shared memory are
    cleaned up, which may take `grace_s` seconds. What standard output's encoding does not have is escaped.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, _: _end(128 + number, grace_s))
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # What its core logs is in the error, too.
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:  # Closed by whoever started this (`<&-`).
            setattr(sys, stream, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    errors.escape_output()
    program = Program(name)
    try:
        yield program
        return
    except (CenterNetError, ExportError) as error:
        message, program.code = str(error), getattr(error, "exit_code", 1)
    except BrokenPipeError:  # Whoever read standard output has had enough.
        program.code = 1
        with suppress(OSError, ValueError):
            errors.discard_output()
        return
    except OSError as error:
        message, program.code = f"{error.filename or 'error'}: {error.strerror or error}", 1
    except KeyboardInterrupt:
        message, program.code = "interrupted", 128 + signal.SIGINT
        _end_in_time(program.code, grace_s)
    program.say(message)


def _end(code: int, grace_s: float) -> None:
    _end_in_time(code, grace_s)
    sys.exit(code)


def _end_in_time(code: int, grace_s: float) -> None:
    """Python would wait for ever for a thread that reads from a pipe or a disk that says nothing."""
    timer = threading.Timer(grace_s, os._exit, [code])
    timer.daemon = True
    timer.start()


def threshold(text: str) -> float:
    """A score, 0 to 1."""
    return _number(text, "a score from 0 to 1", lambda value: 0 <= value <= 1)


def _number(text: str, expected: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not fits(value):
        raise argparse.ArgumentTypeError(f"found '{text}', expected {expected}")
    return value


def _positive(text: str) -> float:
    return _number(text, "a positive number of seconds", lambda value: 0 < value < float("inf"))


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found '{text}', expected a whole number, 0 or more")
    return int(text)


def count(text: str) -> int:
    """A number of things, at least one."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a whole number, 1 or more")
    return int(text)


def file(text: str) -> Path:
    """A file that is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"no such file: {text}")
    return Path(text)


def camera_file(text: str) -> np.ndarray:
    """The projection in a camera's file, float32 [3, 4]."""
    try:
        return camera.read(file(text))
    except CenterNetError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def new_file(text: str) -> Path:
    """A file to write."""
    # The name of an unset shell variable is empty, and stands for the current folder.
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"found the folder '{text}', expected a file's name")
    return Path(text)


def check_not_read(
    parser: argparse.ArgumentParser, option: str, written: Path | None, read: Iterable[Path | None]
) -> None:
    """Refuses, as misuse, to write a file over one that is read."""
    if written and written.is_file() and any(path and _is_same(written, path) for path in read):
        parser.error(f"{option}: {written} is read, too: choose another name")


def _is_same(written: Path, path: Path) -> bool:
    with suppress(OSError):
        return written.samefile(path)
    return False


def new_folder(text: str) -> Path:
    """A folder to write to."""
    if not text or (Path(text).exists() and not Path(text).is_dir()):
        raise argparse.ArgumentTypeError(f"found '{text}', expected a folder's name")
    return Path(text)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if "/" in text or not host or not re.fullmatch(r"\d{1,5}", port) or not 1 <= int(port) <= 65535:
        raise argparse.ArgumentTypeError(
            f"found '{text}', expected HOST:PORT without a scheme, PORT from 1 to 65535, like localhost:8001"
        )
    return text


def _header(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    key = key.strip().lower()
    # gRPC knows no other characters, and says so by a traceback.
    if not separator or not re.fullmatch(r"[a-z0-9_.-]+", key) or not re.fullmatch(r"[ -~]*", value):
        # The text is not repeated: it may be a secret.
        raise argparse.ArgumentTypeError(
            "expected KEY=VALUE, KEY of letters, digits and _.-, VALUE of printable ASCII"
        )
    return key, value
