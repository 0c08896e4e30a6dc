"""Load from NVIDIA's perf_analyzer."""

import base64
import csv
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import BenchmarkError

EXECUTABLE = Path(__file__).resolve().parents[1] / "ci" / "perf-analyzer"
WINDOWS = 3
"""Measurement windows of one run; perf_analyzer needs so many."""

WINDOW_STRETCH = 1.2
"""A window's real length by the length asked for."""

NO_REQUEST_IN_WINDOW = 3
"""Exit code of perf_analyzer."""

SHARED_MEMORY_OFF = "shared memory is disabled"
"""In what a server answers that was started without."""
NO_STATISTICS = "failed to find the requested model version"
"""What it says when the server's counters show no request of a window."""

# Of the model that was asked; the models of an ensemble follow by name.
_SERVER_LATENCY = re.compile(r"^ *Server: *\n(?: .*\n)*? *Avg request latency: (\d+) usec", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a client saw: throughput in requests per second, latencies in milliseconds.

    Attributes:
        server_mean_ms: Of the mean, the time inside the server, by its own statistics of the same windows.
    """

    throughput: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    server_mean_ms: float


def write_input(path: Path, tensors: dict[str, bytes | np.ndarray]) -> None:
    """Write one request's inputs as perf_analyzer reads them; bytes become a BYTES tensor of shape [1]."""
    step = {}
    for name, value in tensors.items():
        if isinstance(value, bytes):
            content, shape = len(value).to_bytes(4, "little") + value, [1]
        else:
            content, shape = value.tobytes(), list(value.shape)
        step[name] = {"b64": base64.b64encode(content).decode(), "shape": shape}
    path.write_text(json.dumps({"data": [step]}), encoding="utf-8")


def run(
    model: str,
    *,
    url: str,
    input_data: Path,
    concurrency: int,
    batch: int = 1,
    shared_memory: str = "none",
    output_bytes: int = 2**16,
    seconds: float,
    clients: int = 1,
    options: Sequence[str] = (),
) -> Load:
    """Keep so many requests to a model in flight, by gRPC.

    Args:
        model: Name on the server.
        url: Host and port of the server's gRPC service.
        input_data: A file by `write_input`.
        concurrency: Requests in flight.
        batch: How many times the input is in each request.
        shared_memory: `none`, `system` or `cuda`.
        output_bytes: Upper bound of one output tensor's size for one picture.
        seconds: How long to measure; longer if no request ends in a third of it.
        clients: Processes that share the requests in flight. With shared memory it is one, since the names of
            its regions are perf_analyzer's.
        options: Further ones of perf_analyzer.

    Raises:
        BenchmarkError: perf_analyzer failed, or a request did.
    """
    clients = min(clients, concurrency) if shared_memory == "none" else 1
    shares = [concurrency // clients + (index < concurrency % clients) for index in range(clients)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(clients) as pool:

        def one(index: int) -> Load:
            command = [
                *(str(EXECUTABLE), "-m", model, "-u", url, "-i", "grpc", "--async", "-b", str(batch)),
                *("--input-data", str(input_data), "--concurrency-range", str(shares[index])),
                *("--shared-memory", shared_memory),
                *("--output-shared-memory-size", str(batch * output_bytes), "-r", str(WINDOWS)),
                # Any spread counts as stable: repeats, and their medians, show the noise.
                *("--verbose-csv", "-s", "1000000", *options),
            ]
            return _run(command, Path(folder) / f"{index}.csv", seconds=seconds)

        loads = list(pool.map(one, range(clients)))
    return _joined(loads)


def _run(command: Sequence[str], table: Path, *, seconds: float) -> Load:
    window_ms = max(int(1000 * seconds / WINDOWS / WINDOW_STRETCH), 1)
    for _ in range(4):
        done = subprocess.run(
            [*command, "-p", str(window_ms), "-f", str(table)], capture_output=True, text=True
        )
        if done.returncode != NO_REQUEST_IN_WINDOW and NO_STATISTICS not in done.stderr:
            break
        window_ms *= 3
    if SHARED_MEMORY_OFF in done.stdout + done.stderr:
        raise BenchmarkError(
            f"{command[command.index('-u') + 1]} does not take shared memory: start the server with "
            "--allow-client-shm=true (off by default since Triton 26.04) or measure with --shared-memory none"
        )
    if done.returncode or not table.exists():
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
        raise BenchmarkError(f"perf_analyzer failed on {command[2]} ({done.returncode}): {lines[-1]}")
    with table.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return Load(
        throughput=float(row["Inferences/Second"]),
        mean_ms=float(row["Avg latency"]) / 1000,
        p50_ms=float(row["p50 latency"]) / 1000,
        p95_ms=float(row["p95 latency"]) / 1000,
        p99_ms=float(row["p99 latency"]) / 1000,
        server_mean_ms=server_mean_ms(done.stdout),
    )


def _joined(loads: Sequence[Load]) -> Load:
    """What all clients saw: throughputs add up, latencies are the clients' weighted mean."""
    total = sum(load.throughput for load in loads)
    mean = {
        name: sum(getattr(load, name) * load.throughput for load in loads) / total
        for name in ("mean_ms", "p50_ms", "p95_ms", "p99_ms", "server_mean_ms")
    }
    return Load(throughput=total, **mean)


def server_mean_ms(printed: str) -> float:
    """Read from perf_analyzer's summary how long the mean request was inside the server.

    Raises:
        BenchmarkError: It does not say so.
    """
    found = _SERVER_LATENCY.search(printed)
    if not found:
        raise BenchmarkError("perf_analyzer printed nothing of the server's own statistics")
    return int(found[1]) / 1000
