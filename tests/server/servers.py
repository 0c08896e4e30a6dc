"""Real Triton servers: a repository of their own, free ports, and only their own process is ended."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends import tritonserver

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
COMMAND = Path(sys.prefix) / "bin" / "tritonserver"
START_TIMEOUT_S = 90


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        grpc_url: host:port.
        http_url: host:port.
        metrics_url: host:port.
        repository: Its model repository.
        log: What it prints.
        process: The server itself.
        start_s: From its start to its readiness.
    """

    grpc_url: str
    http_url: str
    metrics_url: str
    repository: Path
    log: Path
    process: subprocess.Popen
    start_s: float

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


def make_repository(folder: Path, onnx: Path) -> Path:
    """Copies the model repository with `onnx` and the description beside it as its network."""
    ignore = shutil.ignore_patterns("model.onnx*", "model.plan", "model.json", "__pycache__")
    repository = shutil.copytree(REPOSITORY, folder / "model_repository", symlinks=True, ignore=ignore)
    version = repository / "centernet_network" / "1"
    for suffix in (".onnx", ".json"):
        (version / f"model{suffix}").symlink_to(onnx.with_suffix(suffix).resolve())
    return repository


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def launch(repository: Path, log: Path, *arguments: str) -> tuple[subprocess.Popen, list[str]]:
    """Starts a server without waiting for it; returns it and its HTTP, gRPC and metrics addresses."""
    ports = free_ports(3)
    names = ("http", "grpc", "metrics")
    options = [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
    addresses = [f"--{name}-address=127.0.0.1" for name in names]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [COMMAND, f"--model-repository={repository}", *options, *addresses, *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            # Other tests run beside this one: threads that wait by spinning would slow them down.
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )
    return process, [f"127.0.0.1:{port}" for port in ports]


def start(repository: Path, folder: Path, *arguments: str) -> Server:
    """Starts a server and waits until it is ready."""
    log = folder / "server.log"
    for _ in range(3):
        begin = time.monotonic()
        process, (http_url, grpc_url, metrics_url) = launch(repository, log, *arguments)
        while process.poll() is None:
            elapsed = time.monotonic() - begin
            if elapsed > START_TIMEOUT_S:
                stop(process)
                pytest.fail(f"server not ready after {START_TIMEOUT_S} s:\n{log.read_text()[-4000:]}")
            try:
                with urllib.request.urlopen(f"http://{http_url}/v2/health/ready", timeout=1):
                    return Server(grpc_url, http_url, metrics_url, repository, log, process, elapsed)
            except OSError:
                time.sleep(0.05)
        text = log.read_text()
        # Another process took a port between its choice and its use.
        if "Unavailable - Socket" not in text and "failed to start" not in text:
            break
    pytest.fail(f"server ended with {process.returncode}:\n{text[-4000:]}")


def stop(process: subprocess.Popen) -> None:
    tritonserver.stop(process, timeout_s=40)
