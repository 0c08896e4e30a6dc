"""A Triton server to measure: starting one, and reading where its time goes."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc import InferenceServerClient

from backends import serving
from benchmarks.report import BenchmarkError

STEPS = {
    "preprocess": "centernet_preprocess",
    "network": "centernet_network",
    "postprocess": "centernet_postprocess",
}
PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Server:
    """Where a server answers gRPC (host:port), and its process if that is on this machine."""

    url: str
    pid: int | None = None

    def cpu_s(self) -> float | None:
        """Seconds of processor time that it and its Python models have taken so far."""
        if self.pid is None:
            return None
        ticks = 0
        for pid in family(self.pid):
            with suppress(OSError):  # It has ended.
                ticks += sum(map(int, _stat(pid)[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> set[int]:
    """A process and all that it started, or those did: of a server, also its Python models."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(path.name)] = int(_stat(int(path.name))[1])
    found = {pid}
    while children := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= children
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name before it may have spaces."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


@contextmanager
def running(repository: Path) -> Iterator["Server"]:
    """Start `tritonserver` on a model repository, at free ports of this machine alone.

    Yields:
        It, once every model is ready.

    Raises:
        BenchmarkError: There is no `tritonserver`, or it did not get ready.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        try:
            server = serving.start(repository, log=log, timeout_s=120)
        except serving.StartError as error:
            lines = log.read_text().splitlines() if log.exists() else []
            reasons = [line.strip() for line in lines if "rror" in line or "ailed" in line]
            raise BenchmarkError(": ".join([str(error).partition(";")[0], *reasons[-1:]])) from error
        try:
            yield Server(server.grpc_url, server.process.pid)
        finally:
            serving.stop(server.process, timeout_s=60)


@dataclass(frozen=True)
class Usage:
    """What a model did between two readings of its statistics.

    Attributes:
        requests: Answered ones.
        batch: Mean batch size of an execution.
        total_ms: Mean time of a request inside the server.
        parts_ms: The same by part: `queue`, `compute_input`, `compute_infer`, `compute_output`.
    """

    requests: int
    batch: float
    total_ms: float
    parts_ms: dict[str, float]


@dataclass(frozen=True)
class Statistics:
    """Triton's counters since the server's start: per model, per counter."""

    counters: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, client: InferenceServerClient) -> "Statistics":
        """Ask the server."""
        counters = {}
        for model in client.get_inference_statistics().model_stats:
            stats = model.inference_stats
            counters[model.name] = {
                "inferences": model.inference_count,
                "executions": model.execution_count,
                "requests": stats.success.count,
                "success": stats.success.ns,
                **{part: getattr(stats, part).ns for part in PARTS},
            }
        return cls(counters)

    def since(self, before: "Statistics") -> dict[str, Usage]:
        """What each model that answered a request did after `before` was read."""
        usage = {}
        for model, counters in self.counters.items():
            earlier = before.counters.get(model, {})
            delta = {name: value - earlier.get(name, 0) for name, value in counters.items()}
            if not delta["requests"]:
                continue
            milliseconds = {name: delta[name] / delta["requests"] / 1e6 for name in ("success", *PARTS)}
            usage[model] = Usage(
                requests=delta["requests"],
                batch=delta["inferences"] / max(delta["executions"], 1),
                total_ms=milliseconds.pop("success"),
                parts_ms=milliseconds,
            )
        return usage


def breakdown(ensemble: str, usage: dict[str, Usage], *, transport_ms: float) -> dict[str, float]:
    """Where the mean request's milliseconds went.

    Args:
        ensemble: The model that was asked.
        usage: Of all models, between two readings with no request in flight.
        transport_ms: From client to server and back.

    Returns:
        `transport`, `handover` (outputs on their way to the next step or to the answer), and `STEP_queue` and
        `STEP` for each step of the ensemble.
    """
    # Not compute_output: it goes on while the next step, or the client, has the outputs already.
    own = ("compute_input", "compute_infer")
    steps = {}
    for step, model in STEPS.items():
        if model in usage:
            steps[f"{step}_queue"] = usage[model].parts_ms["queue"]
            steps[step] = sum(usage[model].parts_ms[part] for part in own)
    handover_ms = usage[ensemble].total_ms - sum(steps.values())
    return {"transport": transport_ms, "handover": handover_ms} | steps
