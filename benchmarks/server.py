"""Measure the ensembles under load, beside the same work in one process.

    python -m benchmarks.server [--output-dir out/benchmarks]

Serves two networks on ONNX Runtime: the demo's, as small as they come, and resdcn_18. For each ensemble,
perf_analyzer sweeps the concurrency over gRPC, and Triton's statistics say where each millisecond goes. Then
server and process take turns, `--repeats` times, alone and at saturation: those are compared. Writes
server.json, server.md and a plot per network and ensemble.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from centernet_image import NetworkDescription, decode, warp
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from benchmarks import inprocess, networks, perf_analyzer, report, serving_report
from benchmarks.report import BenchmarkError, choices, numbers
from benchmarks.triton_server import Server, Statistics, Usage, breakdown, running
from export import contract
from export.networks import ARCHITECTURES

NETWORK = "centernet_network"
NETWORKS = (str(networks.ROOT / "demo" / "coins.pth"), "resdcn_18")
ENSEMBLES = ("centernet", "centernet_frames")
SHARED_MEMORY = ("none", "system")

Work = Callable[[int], object]
"""Handles a batch of so many pictures in this process."""

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        measure(options)
    except (BenchmarkError, InferenceServerException, OSError, ValueError) as error:
        print(f"benchmarks.server: {error}", file=sys.stderr)
        return 1
    return 0


def measure(options: argparse.Namespace) -> None:
    """Measure what the options ask for and write the report.

    Raises:
        BenchmarkError: The server or perf_analyzer failed, or a network could not be exported.
        FileNotFoundError: There is no network in the repository, or no picture.
    """
    environment, begin = report.environment(), time.monotonic()
    picture = options.picture.read_bytes() if options.picture else example_picture()
    results: dict[str, Any] = {
        "environment": environment,
        "picture": {"bytes": len(picture), "size": decode(picture).shape[:2]},
        "networks": {},
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, repository in _repositories(options, Path(folder)):
            with ExitStack() as stack:
                benches, facts = _benches(repository, picture, options, stack)
                results["networks"][name] = facts
                for bench in benches:
                    for row in _rows(bench, options):
                        results["rows"].append({"network": name, "model": bench.model} | row)
                        _show(results["rows"][-1])
    results["minutes"] = (time.monotonic() - begin) / 60
    serving_report.write(options.output_dir, results)
    print(f"wrote {options.output_dir / 'server.md'}")
    if str(environment["revision"]).endswith("dirty"):
        print("benchmarks.server: measured with uncommitted changes: not for the record", file=sys.stderr)


def example_picture() -> bytes:
    """A JPEG of 1280x960 pixels and about 200 kB, as a photograph has: smooth, with some noise."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (15, 20, 3), np.uint8)
    image = cv2.resize(coarse, (1280, 960), interpolation=cv2.INTER_CUBIC)
    noise = random.integers(-12, 13, image.shape, np.int16)
    noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


class Bench:
    """One ensemble of a running server, and the same work in this process."""

    def __init__(
        self,
        model: str,
        *,
        client: InferenceServerClient,
        server: Server,
        input_data: Path,
        work: Work | None,
        seconds: float,
    ) -> None:
        self.model, self.client, self.server = model, client, server
        self.input_data, self.work, self.seconds = input_data, work, seconds
        self.request_s = 0.0

    def served(self, concurrency: int, shared_memory: str) -> Row:
        """Load on the server: windows as long as a request takes at least."""
        before, cpu_s = Statistics.read(self.client), self.server.cpu_s()
        load = perf_analyzer.run(
            self.model,
            url=self.server.url,
            input_data=self.input_data,
            concurrency=concurrency,
            shared_memory=shared_memory,
            seconds=max(self.seconds, perf_analyzer.WINDOWS * concurrency * self.request_s),
        )
        usage, used_s = self._usage(before), self.server.cpu_s()
        self.request_s = 1 / load.throughput
        return {
            "concurrency": concurrency,
            "shared_memory": shared_memory,
            "batch": usage[NETWORK].batch,
            "throughput": load.throughput,
            "mean_ms": load.mean_ms,
            "p50_ms": load.p50_ms,
            "p95_ms": load.p95_ms,
            "p99_ms": load.p99_ms,
            "cpu_ms": 1000 * (used_s - cpu_s) / usage[self.model].requests if cpu_s and used_s else None,
            "breakdown_ms": breakdown(self.model, usage, transport_ms=load.mean_ms - load.server_mean_ms),
        }

    def _usage(self, before: Statistics) -> dict[str, Usage]:
        """What the load's requests cost, once the last of them is through every step."""
        for _ in range(100):
            usage = Statistics.read(self.client).since(before)
            if self.model in usage and len({one.requests for one in usage.values()}) == 1:
                return usage
            time.sleep(0.05)
        counts = ", ".join(f"{one.requests} of {name}" for name, one in usage.items())
        raise BenchmarkError(f"found {counts}, expected as many of each: does another client ask the server?")

    def in_process(self, batch: int) -> Row:
        """The same work without a server; there must be some."""
        work = self.work
        assert work is not None
        work(batch)
        cpu_s = time.process_time()
        durations = inprocess.times_ms(lambda: work(batch), seconds=self.seconds)
        cpu_s = time.process_time() - cpu_s
        p50, p95, p99 = np.percentile(durations, [50, 95, 99]).tolist()
        return {
            "batch": batch,
            "throughput": 1000 * batch * len(durations) / sum(durations),
            "mean_ms": float(np.mean(durations)),
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "cpu_ms": 1000 * cpu_s / batch / len(durations),
        }


def _rows(bench: Bench, options: argparse.Namespace) -> Iterator[Row]:
    """The sweep, then the repeats: process and server in turn, alone and where the sweep was fastest."""
    process, best_concurrency = [], {}
    for batch in options.batch if bench.work else ():
        process.append(bench.in_process(batch))
        yield {"load": "sweep"} | process[-1]
    best_batch = max(process, key=_throughput)["batch"] if process else 1
    for memory in options.shared_memory:
        swept = []
        for concurrency in options.concurrency:
            swept.append(bench.served(concurrency, memory))
            yield {"load": "sweep"} | swept[-1]
        best_concurrency[memory] = max(swept, key=_throughput)["concurrency"]
    alone = dict.fromkeys(options.shared_memory, 1)
    for repeat in range(options.repeats):
        for load, batch, loads in (("alone", 1, alone), ("saturation", best_batch, best_concurrency)):
            labels = {"load": load, "repeat": repeat}
            if bench.work:
                yield labels | bench.in_process(batch)
            for memory, concurrency in loads.items():
                yield labels | bench.served(concurrency, memory)


def _throughput(row: Row) -> float:
    return row["throughput"]


def _repositories(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """The name of each network to be measured, and a model repository with it."""
    if options.url or options.model_repository:
        repository = options.model_repository or Path("model_repository")
        yield _facts(repository).get("arch", "network"), repository
        return
    for network in options.networks:
        onnx = networks.export(network, options.work_dir)
        yield onnx.stem, networks.repository(onnx, folder / onnx.stem)


def _benches(
    repository: Path, picture: bytes, options: argparse.Namespace, stack: ExitStack
) -> tuple[list[Bench], dict[str, Any]]:
    """A bench for each ensemble, while the stack is open, and what the report says of the network."""
    network_dir = repository / NETWORK / "1"
    description = NetworkDescription.read(network_dir / "model.json")
    server = Server(options.url) if options.url else stack.enter_context(running(repository))
    client = stack.enter_context(InferenceServerClient(server.url))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    network, variant = _network(client, network_dir)
    pipeline = inprocess.Pipeline(network, description) if network else None

    image = decode(picture)
    frame, size = warp(image, description.frame_size), np.array(image.shape[:2], np.int32)
    inputs: dict[str, dict[str, bytes | np.ndarray]] = {
        "centernet": {contract.IMAGE.name: picture},
        "centernet_frames": {contract.FRAME.name: frame, contract.IMAGE_SIZE.name: size},
    }
    benches = []
    for model in options.models:
        perf_analyzer.write_input(folder / model, inputs[model])
        bench = Bench(
            model,
            client=client,
            server=server,
            input_data=folder / model,
            work=_work(pipeline, model, picture, frame, size) if pipeline else None,
            seconds=options.seconds,
        )
        benches.append(bench)
    facts = {"arch": _facts(repository).get("arch"), "input_size": description.frame_size, "variant": variant}
    return benches, facts


def _facts(repository: Path) -> dict[str, Any]:
    path = repository / NETWORK / "1" / "model.json"
    NetworkDescription.read(path)
    return json.loads(path.read_text(encoding="utf-8"))


def _network(client: InferenceServerClient, folder: Path) -> tuple[inprocess.Network | None, str]:
    """The server's network in this process, and what it is, or why it cannot be had."""
    config = client.get_model_config(NETWORK).config
    if config.backend == "onnxruntime":
        settings = {key: value.string_value for key, value in config.parameters.items()}
        network = inprocess.onnxruntime_network(
            folder / "model.onnx",
            threads=int(settings.get("intra_op_thread_count", 0)),
            session={key: value for key, value in settings.items() if key.startswith("session.")},
        )
        return network, "ONNX Runtime, CPU"
    try:
        return inprocess.tensorrt_network(folder / "model.plan"), "TensorRT"
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return None, f"TensorRT; in one process skipped: {lines[0]}"


def _work(
    pipeline: inprocess.Pipeline, model: str, picture: bytes, frame: np.ndarray, size: np.ndarray
) -> Work:
    if model == "centernet":
        return lambda batch: pipeline.detect([picture] * batch)
    batches: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def detect_frames(batch: int) -> object:
        if batch not in batches:
            batches[batch] = np.stack([frame] * batch), np.stack([size] * batch)
        return pipeline.detect_frames(*batches[batch])

    return detect_frames


def _show(row: Row) -> None:
    if "concurrency" in row:
        what = f"concurrency {row['concurrency']}, shared memory {row['shared_memory']}"
    else:
        what = f"in one process, batch {row['batch']}"
    when = f"repeat {row['repeat'] + 1}, {row['load']}" if "repeat" in row else row["load"]
    print(
        f"{row['network']}, {row['model']}, {when}, {what}: "
        f"{row['throughput']:.1f}/s, p50 {row['p50_ms']:.1f} ms",
        file=sys.stderr,
    )


def _networks(text: str) -> list[str]:
    """An argparse type: checkpoints and architectures, separated by commas."""
    found = text.split(",")
    for network in found:
        if network not in ARCHITECTURES and not (Path(network).suffix and Path(network).is_file()):
            known = ", ".join(ARCHITECTURES)
            raise argparse.ArgumentTypeError(f"found {network!r}, expected a checkpoint or one of {known}")
    return found


def _positive(kind: type) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.server", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("out/benchmarks"))
    parser.add_argument(
        "--networks",
        type=_networks,
        default=NETWORKS,
        help="checkpoints, and architectures with random weights, separated by commas",
    )
    parser.add_argument("--work-dir", type=Path, default=Path("out/benchmarks/models"), help="of --networks")
    parser.add_argument("--model-repository", type=Path, help="with a network, in place of --networks")
    parser.add_argument("--url", help="gRPC service of a running server; one is started without it")
    parser.add_argument("--models", type=choices(ENSEMBLES), default=ENSEMBLES, help="separated by commas")
    parser.add_argument("--shared-memory", type=choices(SHARED_MEMORY), default=SHARED_MEMORY)
    parser.add_argument("--concurrency", type=numbers, default=(1, 2, 4, 16, 64), help="of the sweep")
    parser.add_argument("--batch", type=numbers, default=(1, 2, 4, 8), help="in one process, of the sweep")
    parser.add_argument("--seconds", type=_positive(float), default=1.2, help="of each measurement")
    parser.add_argument("--repeats", type=_positive(int), default=5, help="of what is compared")
    parser.add_argument("--picture", type=Path, help="in place of a made-up one of 1280x960")
    return parser


if __name__ == "__main__":
    sys.exit(main())
