"""A Triton server as a child of this process: started on free ports, waited for, ended."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
SERVICES = ("http", "grpc", "metrics")
PORT_TAKEN = ("Unavailable - Socket", "failed to start")
"""What the log says when another process took a port between its choice and its use."""


class StartError(Exception):
    """A server that did not get ready."""


@dataclass(frozen=True)
class Server:
    """A running server, which answers this machine alone.

    Attributes:
        http_url: host:port.
        grpc_url: host:port.
        metrics_url: host:port.
        process: The server itself.
        log: What it prints.
    """

    http_url: str
    grpc_url: str
    metrics_url: str
    process: subprocess.Popen
    log: Path


def launch(
    repository: Path,
    *arguments: str,
    log: Path,
    host: str = HOST,
    ports: Sequence[int] | None = None,
    environment: Mapping[str, str] | None = None,
    new_session: bool = False,
) -> Server:
    """Starts `tritonserver` on a model repository without waiting for it.

    Args:
        repository: The model repository.
        arguments: Further ones for the server.
        log: File for what it prints.
        host: The address that it listens on.
        ports: HTTP, gRPC and metrics; free ones if not given.
        environment: Variables added to this process's own.
        new_session: Whether it outlives this process's terminal.

    Raises:
        StartError: There is no `tritonserver`.
    """
    # This environment's own comes first, also where the environment is not activated.
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = shutil.which("tritonserver", path=folders)
    if command is None:
        raise StartError("found no tritonserver on PATH: run ci/setup")
    ports = ports or free_ports(len(SERVICES))
    options = [f"--{name}-port={port}" for name, port in zip(SERVICES, ports, strict=True)]
    # Triton asks nobody who they are.
    options += [f"--{name}-address={host}" for name in SERVICES]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [command, f"--model-repository={repository}", *options, *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=new_session,
        )
    http, grpc, metrics = (f"{host}:{port}" for port in ports)
    return Server(http, grpc, metrics, process, log)


def start(repository: Path, *arguments: str, log: Path, timeout_s: float = 60, **options: Any) -> Server:
    """Starts a server as `launch` does, and waits until all its models are ready.

    Raises:
        StartError: It ended, or was not ready in time and was stopped; its log says more.
    """
    for _ in range(3):
        server = launch(repository, *arguments, log=log, **options)
        try:
            if wait_until_ready(server, timeout_s=timeout_s):
                return server
        except BaseException:
            stop(server.process, timeout_s=30)
            raise
        if server.process.poll() is None:
            stop(server.process, timeout_s=30)
            raise StartError(f"the server was not ready after {timeout_s:.0f} s; see {log}")
        said = log.read_text(encoding="utf-8", errors="replace")
        if options.get("ports") or not any(text in said for text in PORT_TAKEN):
            break
    failed = re.search(r'failed to load (.*?)(?:\\n|"$)', said, re.M)
    reason = f": {failed[1]}" if failed else ""
    raise StartError(f"the server ended with {server.process.returncode}{reason}; see {log}")


def wait_until_ready(server: Server, *, timeout_s: float) -> bool:
    """Waits until all models are ready; False if the server ended or time is up."""
    end = time.monotonic() + timeout_s
    # A proxy of the environment knows nothing of this machine's own ports.
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    while server.process.poll() is None and time.monotonic() < end:
        try:
            with ask(f"http://{server.http_url}/v2/health/ready", timeout=1):
                return True
        except OSError:
            time.sleep(0.05)
    return False


def stop(process: subprocess.Popen, *, timeout_s: float) -> None:
    """Ends a server: it may finish what it is at, and is killed after `timeout_s`."""
    process.terminate()
    try:
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        # The processes of its Python models would live on, and the shared memory that their arguments name.
        models = family(process.pid) - {process.pid}
        arguments = [name for pid in models for name in _arguments(pid)]
        process.kill()
        process.wait()
        for pid in models:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in arguments:
            if "_shm_region_" in name:
                Path("/dev/shm", name).unlink(missing_ok=True)  # noqa: S108


def family(pid: int) -> set[int]:
    """A process and all that it started, or those did: of a server, also its Python models."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(path.name)] = int(stat(int(path.name))[1])
    found = {pid}
    while children := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= children
    return found


def stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name before it may have spaces."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def _arguments(pid: int) -> list[str]:
    """Of a process; of one that has ended, none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]
