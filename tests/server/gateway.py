"""The gateway of clients.web as a process of its own, and one way to ask it."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from servers import ROOT, stop


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one sentence of an error."""
        (key,) = self.json
        sentence = self.json[key]
        assert key == "error"
        assert sentence.endswith(".")
        assert "\n" not in sentence
        return sentence


@dataclass(frozen=True)
class Gateway:
    url: str
    process: subprocess.Popen

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Answer:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers = {"Content-Type": "application/octet-stream", **headers} if body is not None else headers
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, _lower(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, _lower(error.headers), error.read())

    def metric(self, line: str) -> float:
        for found in self.ask("/metrics").body.decode().splitlines():
            if found.startswith(line + " "):
                return float(found.split()[-1])
        return 0.0


@contextmanager
def running(url: str, *options: str) -> Iterator[Gateway]:
    """Starts `python -m clients.web` on a free port."""
    command = [sys.executable, "-m", "clients.web", "--url", url, "--port", "0", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield Gateway(process.stdout.readline().strip(), process)
    finally:
        stop(process)
        process.stdout.close()


def form(picture: bytes, name: str = "coins.png", boundary: str = "limit") -> tuple[bytes, str]:
    """A form with a file, and its content type."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="picture"; filename="{name}"\r\n\r\n'
    return (
        head.encode() + picture + f"\r\n--{boundary}--\r\n".encode(),
        f"multipart/form-data; boundary={boundary}",
    )


def _lower(headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
