"""Load from NVIDIA's perf_analyzer, and what its CSV files say."""

import base64
import csv
import json
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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

NO_STATISTICS = "failed to find the requested model version"
"""What it says when the server's counters show no request of a window."""

SHARED_MEMORY_OFF = "shared memory is disabled"
"""In what a server answers that was started without."""

CLIENT = {"mean_ms": "Avg latency", "p50_ms": "p50 latency", "p95_ms": "p95 latency", "p99_ms": "p99 latency"}

Load = dict[str, float]
"""What clients saw: pictures a second (`throughput`), milliseconds by the names of `CLIENT`; and of the mean
request MODEL_queue and MODEL (input and computation) of each model that it went through, milliseconds."""


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
    seconds: float,
    clients: int = 1,
) -> Load:
    """Keep so many requests to a model in flight, by gRPC.

    Args:
        model: Name on the server.
        url: Host and port of the server's gRPC service.
        input_data: A file by `write_input`.
        concurrency: Requests in flight.
        batch: How many times the input is in each request.
        shared_memory: `none`, `system` or `cuda`.
        seconds: How long to measure; longer if no request ends in a third of it.
        clients: Processes that share the requests in flight. With shared memory it is one, since the names of
            its regions are perf_analyzer's.

    Raises:
        BenchmarkError: perf_analyzer failed, or a request did.
    """
    clients = min(clients, concurrency) if shared_memory == "none" else 1
    shares = [concurrency // clients + (index < concurrency % clients) for index in range(clients)]
    command = [str(EXECUTABLE), "-m", model, "-u", url, "-i", "grpc", "--async", "-b", str(batch)]
    command += ["--input-data", str(input_data), "--shared-memory", shared_memory, "--verbose-csv"]
    # Any spread counts as stable: repeats, and their medians, show the noise.
    command += ["--output-shared-memory-size", str(batch * 2**16), "-s", "1000000", "-r", str(WINDOWS)]
    with ThreadPoolExecutor(clients) as pool:
        loads = list(pool.map(lambda share: _run(command, share, model, url, seconds), shares))
    total = sum(load["throughput"] for load in loads)
    mean = {
        name: sum(load[name] * load["throughput"] for load in loads) / total
        for name in loads[0].keys() - {"throughput"}
    }
    return {"throughput": total} | mean


def _run(command: Sequence[str], concurrency: int, model: str, url: str, seconds: float) -> Load:
    window_ms = max(int(1000 * seconds / WINDOWS / WINDOW_STRETCH), 1)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(6):
            # The files of an ensemble's models lie where it runs.
            further = ["--concurrency-range", str(concurrency), "-p", str(window_ms), "-f", "load.csv"]
            done = subprocess.run([*command, *further], cwd=folder, capture_output=True, text=True)
            if done.returncode != NO_REQUEST_IN_WINDOW and NO_STATISTICS not in done.stderr:
                break
            window_ms *= 3
        if SHARED_MEMORY_OFF in done.stdout + done.stderr:
            raise BenchmarkError(
                f"{url} does not take shared memory: start the server with --allow-client-shm=true (off by "
                "default since Triton 26.04) or measure with --shared-memory none"
            )
        if done.returncode or not Path(folder, "load.csv").exists():
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
            raise BenchmarkError(f"perf_analyzer failed on {model} ({done.returncode}): {lines[-1]}")
        return read(Path(folder), model)


def read(folder: Path, model: str) -> Load:
    """What a run left there: load.csv, and for an ensemble MODEL_vVERSION.load.csv of each of its models."""
    row = _row(folder / "load.csv")
    load = {"throughput": float(row["Inferences/Second"])}
    load |= {name: float(row[column]) / 1000 for name, column in CLIENT.items()}
    steps = {path.name.rpartition("_v")[0]: _row(path) for path in sorted(folder.glob("*_v*.load.csv"))}
    for name, step in (steps or {model: row}).items():
        load[f"{name}_queue"] = float(step["Server Queue"]) / 1000
        # Not the output: that goes on while the next step, or the client, has it already.
        parts = ("Server Compute Input", "Server Compute Infer")
        load[name] = sum(float(step[part]) for part in parts) / 1000
    return load


def _row(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return row
