"""Measure the server under load, beside the same work in one process or, on a GPU, the bare engine.

    python -m benchmarks.server [--output-dir out/benchmarks]

Serves two networks on ONNX Runtime: the demo's, as small as they come, and resdcn_18; or the plan in
`--model-repository`. For each kind of request, perf_analyzer sweeps the concurrency over gRPC, and says where
the mean request's milliseconds go. Then server and process or engine take turns, `--repeats` times, alone and
at saturation: those are compared. Writes server.json and server.md.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from centernet_image import contract
from centernet_image.decode import decode
from centernet_image.description import Description
from centernet_image.geometry import warp
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from benchmarks import networks, perf_analyzer, report, serving
from benchmarks.networks import NETWORK
from benchmarks.report import choices, numbers, positive
from benchmarks.tensorrt_engine import Engine
from benchmarks.timing import times_ms
from benchmarks.triton_server import GpuUsage, cpu_s, running
from clients import local
from clients.local import LocalDetector
from export.errors import ExportError

NETWORKS = (str(networks.ROOT / "demo" / "coins.pth"), "resdcn_18")
SHARED_MEMORY = ("none", "system", "cuda")

Work = Callable[[int], object]
"""Handles a batch of so many pictures in this process."""

Row = dict[str, Any]


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

    def inputs(self, frame_size: tuple[int, int]) -> dict[str, bytes | np.ndarray]:
        """The tensors of one picture."""
        picture = example_picture(self.size)
        if self.model == "centernet":
            return {contract.IMAGE.name: picture}
        frame = {contract.FRAME.name: warp(decode(picture), frame_size)}
        size = {contract.IMAGE_SIZE.name: np.array(self.size, np.int32)}
        return {**frame} if self.model == NETWORK else {**frame, **size}

    def in_process(self, detector: LocalDetector, frame_size: tuple[int, int]) -> Work:
        """The same work without a server."""
        picture, size = example_picture(self.size), np.array(self.size, np.int32)
        if self.model == "centernet":
            return lambda batch: detector.detect_each([picture] * batch)
        frame = warp(decode(picture), frame_size)
        batches: dict[int, tuple[np.ndarray, np.ndarray]] = {}

        def detect_frames(batch: int) -> object:
            if batch not in batches:
                batches[batch] = np.stack([frame] * batch), np.stack([size] * batch)
            return detector.detect_frames(*batches[batch])

        return detect_frames


REQUESTS = {
    "jpeg": Request("centernet"),
    "jpeg-640x480": Request("centernet", size=(480, 640)),
    "frame": Request("centernet_frames"),
    "frames-8": Request("centernet_frames", batch=8),
    "network-32": Request(NETWORK, batch=32),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return report.run("benchmarks.server", measure, options, InferenceServerException, ValueError)


def measure(options: argparse.Namespace) -> None:
    """Measure what the options ask for and write the report.

    Raises:
        BenchmarkError: The server or perf_analyzer failed.
        ExportError: A network could not be exported.
        FileNotFoundError: There is no network in the repository.
    """
    results: dict[str, Any] = {"environment": report.environment(), "changes": options.set}
    results |= {"networks": {}, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, repository in _repositories(options, Path(folder)):
            with ExitStack() as stack:
                benches, results["networks"][name] = _benches(repository, options, stack)
                for bench in benches:
                    for row in _rows(bench, options):
                        results["rows"].append({"network": name, "request": bench.name} | row)
                        shown = {key: row.get(key) for key in ("load", "concurrency", "batch", "throughput")}
                        print(f"{name}, {bench.name}: {shown}", file=sys.stderr)
    results["comparison"] = serving.compare(results["rows"])
    report.write(options.output_dir, "server", results, tables)
    print(f"wrote {options.output_dir / 'server.md'}")


def example_picture(size: tuple[int, int] = (960, 1280)) -> bytes:
    """A JPEG, as smooth and as noisy as a photograph: 240 kB for 1280x960 pixels."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (15, 20, 3), np.uint8)
    image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    noise = random.integers(-12, 13, image.shape, np.int16)
    noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


@dataclass
class Bench:
    """One kind of request to a running server, and the same work without a server."""

    name: str
    client: InferenceServerClient
    url: str
    pid: int | None
    input_data: Path
    work: Work | None
    options: argparse.Namespace
    request_s: float = 0.0

    def served(self, concurrency: int, shared_memory: str) -> Row:
        """Load on the server: windows as long as a request takes at least."""
        request, before, began_s = REQUESTS[self.name], self._counters(), cpu_s(self.pid)
        with GpuUsage() as gpu:
            load = perf_analyzer.run(
                request.model,
                url=self.url,
                input_data=self.input_data,
                concurrency=concurrency,
                batch=request.batch,
                shared_memory=shared_memory,
                seconds=max(self.options.seconds, perf_analyzer.WINDOWS * concurrency * self.request_s),
                clients=self.options.clients,
            )
        used_s, after = cpu_s(self.pid), self._counters()
        pictures, executions, requests, queue_ms, compute_ms = after - before
        self.request_s = request.batch / load["throughput"]
        figures = {name: load.pop(name) for name in ("throughput", *perf_analyzer.CLIENT)}
        parts = {name.removeprefix("centernet_"): ms for name, ms in load.items()}
        if "network" not in parts:  # The preprocess model asks it, for whole batches.
            parts |= {"network_queue": queue_ms / requests, "network": compute_ms / requests}
            parts["preprocess"] -= parts["network_queue"] + parts["network"]
        return {
            "concurrency": concurrency,
            "shared_memory": shared_memory,
            "batch": pictures / executions,
            **figures,
            "cpu_ms": 1000 * (used_s - began_s) / pictures if began_s and used_s else None,
            "breakdown_ms": parts | {"rest": figures["mean_ms"] - sum(parts.values())},
            **gpu.figures,
        }

    def _counters(self) -> np.ndarray:
        """Of the network: pictures, batches, requests; and these in its queue and at work, milliseconds."""
        (model,) = self.client.get_inference_statistics(NETWORK).model_stats
        stats = model.inference_stats
        times = (stats.queue.ns / 1e6, (stats.compute_input.ns + stats.compute_infer.ns) / 1e6)
        return np.array([model.inference_count, model.execution_count, stats.success.count, *times])

    def without_server(self, batch: int) -> Row:
        """The same work in this process, or the engine's part of it; there must be some."""
        work = self.work
        assert work is not None
        work(batch)
        began_s = time.process_time()
        durations = times_ms(lambda: work(batch), seconds=self.options.seconds)
        used_s = time.process_time() - began_s
        p50, p95, p99 = np.percentile(durations, [50, 95, 99]).tolist()
        return {
            "batch": batch,
            "throughput": 1000 * batch * len(durations) / sum(durations),
            **{"mean_ms": float(np.mean(durations)), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99},
            "cpu_ms": 1000 * used_s / batch / len(durations),
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
    if options.url or options.model_repository:
        repository = options.model_repository or Path("model_repository")
        name = Description.read(repository / NETWORK / "1" / "model.json").arch or "network"
        yield name, repository if options.url else networks.changed(repository, options.set, folder / name)
        return
    for network in options.networks:
        onnx = networks.export(network, options.work_dir)
        repository = networks.repository(onnx, folder / onnx.stem)
        yield onnx.stem, networks.changed(repository, options.set, folder / f"{onnx.stem}-changed")


def _benches(repository: Path, options: argparse.Namespace, stack: ExitStack) -> tuple[list[Bench], Row]:
    """A bench for each kind of request, while the stack is open, and what the report says of the network."""
    network_dir = repository / NETWORK / "1"
    description = Description.read(network_dir / "model.json")
    environment = {"LD_PRELOAD": str(options.plugin.resolve())} if options.plugin else {}
    url, pid = options.url, None
    if not url:
        server = stack.enter_context(running(repository, *options.server_option, environment=environment))
        url, pid = server.grpc_url, server.process.pid
    client = stack.enter_context(InferenceServerClient(url))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    work, variant = _work(client, network_dir, description, options)
    for name in options.requests:
        perf_analyzer.write_input(folder / name, REQUESTS[name].inputs(description.input_size))
    benches = [
        Bench(name, client, url, pid, folder / name, work(REQUESTS[name]), options)
        for name in options.requests
    ]
    facts = {"arch": description.arch, "input_size": description.input_size, "variant": variant}
    return benches, facts


def _work(
    client: InferenceServerClient, folder: Path, description: Description, options: argparse.Namespace
) -> tuple[Callable[[Request], Work | None], str]:
    """What each kind of request is compared with, and what the network runs on."""
    config = client.get_model_config(NETWORK).config
    if config.backend == "onnxruntime":
        settings = {key: value.string_value for key, value in config.parameters.items()}
        network = local.onnxruntime_network(
            folder / "model.onnx",
            threads=int(settings.get("intra_op_thread_count", 0)),
            session={key: value for key, value in settings.items() if key.startswith("session.")},
        )
        detector = LocalDetector(network, description)
        return lambda request: request.in_process(detector, description.input_size), "ONNX Runtime, CPU"
    if options.only_server:
        return lambda _: None, "TensorRT"
    try:
        engine = Engine(folder / "model.plan", options.plugin).bare()
    except (ExportError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return lambda _: None, f"TensorRT; the bare engine was skipped: {reason}"
    return lambda _: engine, "TensorRT; beside it the bare engine"


def tables(results: dict[str, Any]) -> str:
    """The report's tables: the comparison, and the median of each load."""
    repeats = len({row["repeat"] for row in results["rows"] if "repeat" in row})
    facts = results["networks"]
    text = "".join(f"- Network {name}: {facts[name]['arch']}, {facts[name]['variant']}\n" for name in facts)
    text += "".join(f"- Changed: `{change}`\n" for change in results["changes"])
    text += f"- Medians of {repeats} repeats; in brackets the lowest and the highest ratio of a repeat\n"
    text += "- perf_analyzer is on the same machine; its processor time is in no column\n\n"
    text += serving.compared_table(results["comparison"])
    kinds = dict.fromkeys((row["network"], row["request"]) for row in results["rows"])
    for network, request in kinds:
        loads: dict[tuple, list[Row]] = {}
        for row in results["rows"]:
            if (row["network"], row["request"]) == (network, request):
                load = (row.get("concurrency"), row.get("shared_memory"))
                loads.setdefault((*load, None if load[0] else row["batch"]), []).append(row)
        lines = [_load(concurrency, memory, rows) for (concurrency, memory, _), rows in loads.items()]
        text += f"\n## {network}, {request}\n\n{report.records(lines)}"
    return text


def _load(concurrency: int | None, memory: str | None, rows: list[Row]) -> Row:
    labels = {"network", "request", "load", "repeat", "concurrency", "shared_memory", "breakdown_ms"}
    names = [name for name, value in rows[0].items() if name not in labels and value is not None]
    line: Row = {"concurrency": str(concurrency or "without server"), "shared memory": memory or ""}
    line |= {"runs": len(rows)} | {name: median(row[name] for row in rows) for name in names}
    parts = rows[0].get("breakdown_ms", {})
    return line | {part: median(row["breakdown_ms"][part] for row in rows) for part in parts}


def _networks(text: str) -> list[str]:
    """An argparse type: checkpoints and architectures, separated by commas."""
    from export.networks import ARCHITECTURES  # needs PyTorch, which nothing else here does

    for network in (found := text.split(",")):
        if network not in ARCHITECTURES and not (Path(network).suffix and Path(network).is_file()):
            known = ", ".join(ARCHITECTURES)
            raise argparse.ArgumentTypeError(f"found {network!r}, expected a checkpoint or one of {known}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.server", description=(__doc__ or "").splitlines()[0])
    add, folder = parser.add_argument, Path("out/benchmarks")
    add("--output-dir", type=Path, default=folder)
    add("--networks", type=_networks, default=NETWORKS, help="checkpoints, architectures (random weights)")
    add("--work-dir", type=Path, default=folder / "models", help="of --networks")
    add("--model-repository", type=Path, help="with a network, in place of --networks")
    add("--url", help="gRPC service of a running server; one is started without it")
    add("--requests", type=choices(REQUESTS), default=("jpeg", "frame"), help="kinds of them")
    add("--shared-memory", type=choices(SHARED_MEMORY), default=SHARED_MEMORY[:2])
    add("--clients", type=positive(int), default=1, help="processes that send requests")
    add("--only-server", action="store_true", help="measure nothing beside it")
    add("--plugin", type=Path, help="libdcnv2.so, preloaded into the server that is started")
    add("--server-option", action="append", default=[], help="for tritonserver, once for each")
    text = "replace what TEXT, in config.pbtxt's form, says of MODEL's configuration"
    add("--set", type=networks.change, action="append", default=[], metavar="MODEL:TEXT", help=text)
    add("--concurrency", type=numbers, default=(1, 2, 4, 16, 64), help="of the sweep")
    add("--batch", type=numbers, default=(1, 2, 4, 8), help="without a server, of the sweep")
    add("--seconds", type=positive(float), default=1.2, help="of each measurement")
    add("--repeats", type=positive(int), default=5, help="of what is compared")
    return parser


if __name__ == "__main__":
    sys.exit(main())
