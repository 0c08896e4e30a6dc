"""Servers that come and go, and pictures that flow as a test lets them."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from container import HEALTH, Container
from servers import ROOT

from server.launcher import HOST, free_ports

LOOPBACK = [f"--{name}-address={HOST}" for name in ("http", "grpc", "metrics")]
DRAIN = ["--drain-delay-s=4", "--drain-quiet-s=1"]


class Replica:
    """A place that servers come and go at: the ports stay, processes and repositories do not.

    Attributes:
        running: The server that is there, or was.
    """

    def __init__(self, folder: Path, onnx: Path, name: str) -> None:
        self.name, self._folder, self._onnx = name, folder, onnx
        self.ports = free_ports(3)
        self.running: Container | None = None
        self._starts = 0
        spec = importlib.util.spec_from_file_location("health", HEALTH)
        self._health = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._health)
        self._answered: Container | None = None  # Health is of one server, not of its successor.
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self, classes: list[str] | None = None) -> None:
        """Starts a server, with a second version of the network if that has names of its own."""
        self._starts += 1
        folder = self._folder / f"{self.name}-{self._starts}"
        folder.mkdir()

        def second_version(repository: Path) -> None:
            first = repository / "centernet_network/1"
            second = first.with_name("2")
            second.mkdir()
            (second / "model.onnx").symlink_to(first / "model.onnx")
            facts = json.loads((first / "model.json").read_text(encoding="utf-8")) | {"classes": classes}
            (second / "model.json").write_text(json.dumps(facts), encoding="utf-8")

        self.running = Container(
            folder,
            self._onnx,
            *LOOPBACK,
            *DRAIN,
            ports=self.ports,
            prepare=second_version if classes else None,
            WATCH_INTERVAL_S="0.5",
        )

    def _watch(self) -> None:
        """Says what ci/container/health.py would; a lack of time alone is no illness."""
        while True:
            time.sleep(0.3)
            one = self.running
            if one is None or one.draining.exists():
                continue
            try:
                self._health.infer(f"http://{HOST}:{self.ports[0]}/v2/models/centernet/infer")
                self._answered = one
            except self._health.UnhealthyError as error:
                if not error.busy:
                    self._answered = None

    @property
    def ready(self) -> bool:
        """What a balancer is told."""
        one = self.running
        answered = one is not None and self._answered is one
        return answered and one.process.poll() is None and not one.draining.exists()


def health_endpoint(replica: Replica) -> ThreadingHTTPServer:
    """Answers 200 or 503 on every path, as the readiness of Triton 26 does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if replica.ready else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((HOST, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Flow:
    """detect.py on named pipes: each picture comes when the test lets it, so a run is as long as wanted.

    Attributes:
        process: detect.py, with no retries of its own.
    """

    def __init__(self, folder: Path, pictures: list[bytes], *, url: str, protocol: str = "grpc") -> None:
        folder.mkdir()
        self.protocol = protocol
        self.names = [str(folder / f"{number:04}.png") for number in range(len(pictures))]
        for name in self.names:
            os.mkfifo(name)
        self._let = threading.Semaphore(0)
        self._left = len(pictures)
        self._done = threading.Event()
        self.output = folder / "out.jsonl"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "clients/detect.py", *self.names, "--url", url, "--protocol", protocol),
                *("--retries", "0", "--concurrency", "32", "--timeout-s", "100", "--deadline-s", "100"),
                *("--json", self.output),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._write, args=(pictures,), daemon=True).start()
        threading.Thread(target=self._trickle, daemon=True).start()

    def burst(self, count: int = 48) -> None:
        """More than fit into the client's window, at once."""
        self._release(count)

    def finish(self) -> list[dict]:
        """Lets the rest come; every picture was answered, exactly once, and none failed."""
        assert self._left > 0, "the pictures were used up before the servers had changed"
        self._done.set()
        self._release(self._left)
        said, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, said
        rows = [json.loads(line) for line in self.output.read_text(encoding="utf-8").splitlines()]
        assert [row["image"] for row in rows] == self.names
        return rows

    def _release(self, count: int) -> None:
        self._left -= count
        self._let.release(count)

    def _trickle(self) -> None:
        while not self._done.wait(0.15):
            if self._left > 60:
                self._release(1)

    def _write(self, pictures: list[bytes]) -> None:
        for name, content in zip(self.names, pictures, strict=True):
            self._let.acquire()
            Path(name).write_bytes(content)


def version_of(row: dict, expected: dict, versions: list[tuple[str, ...]]) -> int:
    """Which version's names the detections have; they are what they should be otherwise."""
    found, alone = row["detections"], expected["detections"]
    used = [
        number
        for number, names in enumerate(versions)
        if [one["label"] for one in found] == [names[one["class_id"]] for one in alone]
    ]
    assert used, row
    for one, other in zip(found, alone, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=2e-4)
        assert one["xyxy"] == pytest.approx(other["xyxy"], abs=0.05)
    return used[0]
