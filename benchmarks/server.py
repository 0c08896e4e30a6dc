"""Measure the server under load, beside the same work in one process or, on a GPU, the bare engine.

    python -m benchmarks.server [--output-dir out/benchmarks]

Serves two networks on ONNX Runtime: the demo's, as small as they come, and resdcn_18; or the plan in
`--model-repository`. For each kind of request, perf_analyzer sweeps the concurrency over gRPC, and Triton's
statistics say where each millisecond goes. Then server and process or engine take turns, `--repeats` times,
alone and at saturation: those are compared. Writes server.json, server.md and a plot for each of them.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from centernet_image import contract
from centernet_image.decode import decode
from centernet_image.description import Description
from centernet_image.geometry import warp
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from benchmarks import inprocess, networks, perf_analyzer, report, serving_report
from benchmarks.report import BenchmarkError, choices, numbers
from benchmarks.triton_server import GpuUsage, Server, Statistics, Usage, breakdown, running
from clients import local
from clients.local import LocalDetector
from export.errors import ExportError

NETWORK = "centernet_network"
NETWORKS = (str(networks.ROOT / "demo" / "coins.pth"), "resdcn_18")
SHARED_MEMORY = ("none", "system", "cuda")


@dataclass(frozen=True)
class Request:
    """A kind of request.

    Attributes:
        model: Who is asked.
        batch: Pictures in it.
        size: Of the JPEG; the frames are always the network's own size.
    """

    model: str
    batch: int = 1
    size: tuple[int, int] = (960, 1280)


REQUESTS = {
    "jpeg": Request("centernet"),
    "jpeg-640x480": Request("centernet", size=(480, 640)),
    "frame": Request("centernet_frames"),
    "frames-8": Request("centernet_frames", batch=8),
    "network-32": Request("centernet_network", batch=32),
}

Work = Callable[[int], object]
"""Handles a batch of so many pictures in this process."""

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        measure(options)
    except (BenchmarkError, ExportError, InferenceServerException, OSError, ValueError) as error:
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
    results: dict[str, Any] = {
        "environment": environment,
        "changes": options.set,
        "networks": {},
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, repository in _repositories(options, Path(folder)):
            with ExitStack() as stack:
                benches, facts = _benches(repository, options, stack)
                results["networks"][name] = facts
                for bench in benches:
                    for row in _rows(bench, options):
                        results["rows"].append({"network": name, "request": bench.name} | row)
                        _show(results["rows"][-1])
    results["minutes"] = (time.monotonic() - begin) / 60
    serving_report.write(options.output_dir, results)
    print(f"wrote {options.output_dir / 'server.md'}")
    if str(environment["revision"]).endswith("dirty"):
        print("benchmarks.server: measured with uncommitted changes: not for the record", file=sys.stderr)


def example_picture(size: tuple[int, int] = (960, 1280)) -> bytes:
    """A JPEG, as smooth and as noisy as a photograph: 240 kB for 1280x960 pixels."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (15, 20, 3), np.uint8)
    image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    noise = random.integers(-12, 13, image.shape, np.int16)
    noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


class Bench:
    """One kind of request to a running server, and the same work without a server."""

    def __init__(
        self,
        name: str,
        *,
        client: InferenceServerClient,
        server: Server,
        input_data: Path,
        work: Work | None,
        options: argparse.Namespace,
    ) -> None:
        self.name, self.request = name, REQUESTS[name]
        self.client, self.server = client, server
        self.input_data, self.work = input_data, work
        self.seconds, self.clients = options.seconds, options.clients
        self.request_s = 0.0

    def served(self, concurrency: int, shared_memory: str) -> Row:
        """Load on the server: windows as long as a request takes at least."""
        before, cpu_s = Statistics.read(self.client), self.server.cpu_s()
        with GpuUsage() as gpu:
            load = perf_analyzer.run(
                self.request.model,
                url=self.server.url,
                input_data=self.input_data,
                concurrency=concurrency,
                batch=self.request.batch,
                shared_memory=shared_memory,
                seconds=max(self.seconds, perf_analyzer.WINDOWS * concurrency * self.request_s),
                clients=self.clients,
            )
        usage, used_s = self._usage(before), self.server.cpu_s()
        self.request_s = self.request.batch / load.throughput
        pictures = usage[self.request.model].requests * self.request.batch
        return {
            "concurrency": concurrency,
            "shared_memory": shared_memory,
            "batch": usage[NETWORK].batch,
            "throughput": load.throughput,
            "mean_ms": load.mean_ms,
            "p50_ms": load.p50_ms,
            "p95_ms": load.p95_ms,
            "p99_ms": load.p99_ms,
            "cpu_ms": 1000 * (used_s - cpu_s) / pictures if cpu_s and used_s else None,
            "breakdown_ms": breakdown(
                self.request.model, usage, transport_ms=load.mean_ms - load.server_mean_ms
            ),
            **gpu.figures,
        }

    def _usage(self, before: Statistics) -> dict[str, Usage]:
        """What the load's requests cost, once the last of them is through every step."""
        for _ in range(100):
            usage = Statistics.read(self.client).since(before)
            if self.request.model in usage and len({one.requests for one in usage.values()}) == 1:
                return usage
            time.sleep(0.05)
        counts = ", ".join(f"{one.requests} of {name}" for name, one in usage.items())
        raise BenchmarkError(f"found {counts}, expected as many of each: does another client ask the server?")

    def without_server(self, batch: int) -> Row:
        """The same work in this process, or the engine's part of it; there must be some."""
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
        process.append(bench.without_server(batch))
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
                yield labels | bench.without_server(batch)
            for memory, concurrency in loads.items():
                yield labels | bench.served(concurrency, memory)


def _throughput(row: Row) -> float:
    return row["throughput"]


def _repositories(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """The name of each network to be measured, and a model repository with it."""
    if options.url:
        yield _name(options.model_repository or Path("model_repository"))
        return
    if options.model_repository:
        name, repository = _name(options.model_repository)
        yield name, networks.changed(repository, options.set, folder / name)
        return
    for network in options.networks:
        onnx = networks.export(network, options.work_dir)
        repository = networks.repository(onnx, folder / onnx.stem)
        yield onnx.stem, networks.changed(repository, options.set, folder / f"{onnx.stem}-changed")


def _name(repository: Path) -> tuple[str, Path]:
    return _facts(repository).get("arch", "network"), repository


def _benches(
    repository: Path, options: argparse.Namespace, stack: ExitStack
) -> tuple[list[Bench], dict[str, Any]]:
    """A bench for each kind of request, while the stack is open, and what the report says of the network."""
    network_dir = repository / NETWORK / "1"
    description = Description.read(network_dir / "model.json")
    environment = {"LD_PRELOAD": str(options.plugin.resolve())} if options.plugin else {}
    server = (
        Server(options.url)
        if options.url
        else stack.enter_context(running(repository, *options.server_option, environment=environment))
    )
    client = stack.enter_context(InferenceServerClient(server.url))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    works, variant = _works(client, network_dir, description, options)
    benches = []
    for name in options.requests:
        perf_analyzer.write_input(folder / name, _inputs(REQUESTS[name], description.input_size))
        bench = Bench(
            name, client=client, server=server, input_data=folder / name, work=works(name), options=options
        )
        benches.append(bench)
    facts = {"arch": _facts(repository).get("arch"), "input_size": description.input_size, "variant": variant}
    return benches, facts


def _inputs(request: Request, frame_size: tuple[int, int]) -> dict[str, bytes | np.ndarray]:
    picture = example_picture(request.size)
    if request.model == "centernet":
        return {contract.IMAGE.name: picture}
    frame = {contract.FRAME.name: warp(decode(picture), frame_size)}
    if request.model == NETWORK:
        return {**frame}
    return {**frame, contract.IMAGE_SIZE.name: np.array(request.size, np.int32)}


def _facts(repository: Path) -> dict[str, Any]:
    path = repository / NETWORK / "1" / "model.json"
    Description.read(path)
    return json.loads(path.read_text(encoding="utf-8"))


def _works(
    client: InferenceServerClient, folder: Path, description: Description, options: argparse.Namespace
) -> tuple[Callable[[str], Work | None], str]:
    """What each kind of request is compared with, and what the network runs on."""
    config = client.get_model_config(NETWORK).config
    if config.backend == "onnxruntime":
        settings = {key: value.string_value for key, value in config.parameters.items()}
        network = local.onnxruntime_network(
            folder / "model.onnx",
            threads=int(settings.get("intra_op_thread_count", 0)),
            session={key: value for key, value in settings.items() if key.startswith("session.")},
        )
        detector = LocalDetector(network, classes=description.classes, frame_size=description.input_size)
        return lambda name: _work(detector, REQUESTS[name], description.input_size), "ONNX Runtime, CPU"
    if options.only_server:
        return lambda _: None, "TensorRT"
    try:
        engine = inprocess.Engine(folder / "model.plan", options.plugin)
    except (ExportError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return lambda _: None, f"TensorRT; the bare engine was skipped: {reason}"
    return lambda _: engine, "TensorRT; beside it the bare engine"


def _work(detector: LocalDetector, request: Request, frame_size: tuple[int, int]) -> Work | None:
    picture = example_picture(request.size)
    if request.model == "centernet":
        return lambda batch: detector.detect_each([picture] * batch)
    frame, size = warp(decode(picture), frame_size), np.array(request.size, np.int32)
    batches: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def detect_frames(batch: int) -> object:
        if batch not in batches:
            batches[batch] = np.stack([frame] * batch), np.stack([size] * batch)
        return detector.detect_frames(*batches[batch])

    return detect_frames


def _show(row: Row) -> None:
    if "concurrency" in row:
        what = f"concurrency {row['concurrency']}, shared memory {row['shared_memory']}"
    else:
        what = f"without a server, batch {row['batch']}"
    when = f"repeat {row['repeat'] + 1}, {row['load']}" if "repeat" in row else row["load"]
    print(
        f"{row['network']}, {row['request']}, {when}, {what}: "
        f"{row['throughput']:.1f}/s, p50 {row['p50_ms']:.1f} ms",
        file=sys.stderr,
    )


def _networks(text: str) -> list[str]:
    """An argparse type: checkpoints and architectures, separated by commas."""
    from export.networks import ARCHITECTURES  # needs PyTorch, which nothing else here does

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
    parser.add_argument("--requests", type=choices(REQUESTS), default=("jpeg", "frame"), help="kinds of them")
    parser.add_argument("--shared-memory", type=choices(SHARED_MEMORY), default=SHARED_MEMORY[:2])
    parser.add_argument("--clients", type=_positive(int), default=1, help="processes that send requests")
    parser.add_argument("--only-server", action="store_true", help="measure nothing beside it")
    parser.add_argument("--plugin", type=Path, help="libdcnv2.so, preloaded into the server that is started")
    parser.add_argument(
        "--server-option", action="append", default=[], help="for tritonserver, once for each"
    )
    parser.add_argument(
        "--set",
        type=networks.change,
        action="append",
        default=[],
        metavar="MODEL:TEXT",
        help="replace what TEXT, in config.pbtxt's form, says of MODEL's configuration",
    )
    parser.add_argument("--concurrency", type=numbers, default=(1, 2, 4, 16, 64), help="of the sweep")
    parser.add_argument("--batch", type=numbers, default=(1, 2, 4, 8), help="without a server, of the sweep")
    parser.add_argument("--seconds", type=_positive(float), default=1.2, help="of each measurement")
    parser.add_argument("--repeats", type=_positive(int), default=5, help="of what is compared")
    return parser


if __name__ == "__main__":
    sys.exit(main())
