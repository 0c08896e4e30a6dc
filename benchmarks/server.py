"""Measure the ensembles under load, beside the same work in one process.

    python -m benchmarks.server [--output-dir out/benchmarks]

Drives perf_analyzer over gRPC against a server that it starts (or `--url`), reads from Triton's statistics
where each millisecond goes, and writes server.json, server.md and a plot per model. Runs of the server and of
the process alternate, and every figure is the median of the repeats: ratios hold, also on a machine that has
other work.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from centernet_image import NetworkDescription, decode, warp
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from benchmarks import inprocess, perf_analyzer, report, serving_report
from benchmarks.report import BenchmarkError, choices, numbers
from benchmarks.triton_server import Server, Statistics, breakdown, running
from export import contract

NETWORK = "centernet_network"
ENSEMBLES = ("centernet", "centernet_frames")
SHARED_MEMORY = ("none", "system")

Work = Callable[[int], object]
"""Handles a batch of so many pictures in this process."""


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
        BenchmarkError: The server or perf_analyzer failed.
        FileNotFoundError: There is no network in the repository, or no picture.
    """
    environment = report.environment()
    network_dir = options.model_repository / NETWORK / "1"
    description = NetworkDescription.read(network_dir / "model.json")
    picture = options.picture.read_bytes() if options.picture else example_picture()
    image = decode(picture)
    frame, size = warp(image, description.frame_size), np.array(image.shape[:2], np.int32)
    inputs: dict[str, dict[str, bytes | np.ndarray]] = {
        "centernet": {contract.IMAGE.name: picture},
        "centernet_frames": {contract.FRAME.name: frame, contract.IMAGE_SIZE.name: size},
    }
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        server = (
            Server(options.url) if options.url else stack.enter_context(running(options.model_repository))
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = InferenceServerClient(server.url)
        network, variant = _network(client, network_dir)
        pipeline = inprocess.Pipeline(network, description) if network else None
        for model in options.models:
            perf_analyzer.write_input(folder / model, inputs[model])
        for repeat in range(options.repeats):
            for model in options.models:
                work = _work(pipeline, model, picture, frame, size) if pipeline else None
                for row in _alternate(client, server, model, folder / model, work, options):
                    rows.append({"repeat": repeat, "model": model} | row)
                    _show(rows[-1], options.repeats)
    facts = json.loads((network_dir / "model.json").read_text())
    results = {
        "environment": environment,
        "network": {"arch": facts.get("arch"), "input_size": description.frame_size, "variant": variant},
        "picture": {"bytes": len(picture), "size": image.shape[:2]},
        "rows": rows,
    }
    serving_report.write(options.output_dir, results)
    print(f"wrote {options.output_dir / 'server.md'}")


def example_picture() -> bytes:
    """A JPEG of 1280x960 pixels and about 200 kB, as a photograph has: smooth, with some noise."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (15, 20, 3), np.uint8)
    image = cv2.resize(coarse, (1280, 960), interpolation=cv2.INTER_CUBIC)
    noise = random.integers(-12, 13, image.shape, np.int16)
    noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


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


def _alternate(
    client: InferenceServerClient,
    server: Server,
    model: str,
    input_data: Path,
    work: Work | None,
    options: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """One repeat: the process, the server at each concurrency, the process at its batch size."""
    if work:
        yield _in_process(work, batch=1, seconds=options.seconds)
    row: dict[str, Any] = {"batch": 1}
    for concurrency in options.concurrency:
        for shared_memory in options.shared_memory:
            before, cpu_s = Statistics.read(client), server.cpu_s()
            load = perf_analyzer.run(
                model,
                url=server.url,
                input_data=input_data,
                concurrency=concurrency,
                shared_memory=shared_memory,
                seconds=options.seconds,
            )
            usage, used_s = Statistics.read(client).since(before), server.cpu_s()
            row = {
                "concurrency": concurrency,
                "shared_memory": shared_memory,
                **asdict(load),
                "batch": usage[NETWORK].batch,
                "cpu_ms": 1000 * (used_s - cpu_s) / usage[model].requests if cpu_s and used_s else None,
                "breakdown_ms": breakdown(model, usage, client_ms=load.mean_ms),
            }
            yield row
    # A power of two, so that the repeats agree.
    batch = 2 ** round(math.log2(row["batch"]))
    if work and batch > 1:
        yield _in_process(work, batch=batch, seconds=options.seconds)


def _in_process(work: Work, *, batch: int, seconds: float) -> dict[str, Any]:
    work(batch)
    cpu_s = time.process_time()
    durations = inprocess.times_ms(lambda: work(batch), seconds=seconds)
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


def _show(row: dict[str, Any], repeats: int) -> None:
    if "concurrency" in row:
        what = f"concurrency {row['concurrency']}, shared memory {row['shared_memory']}"
    else:
        what = f"in one process, batch {row['batch']}"
    print(
        f"repeat {row['repeat'] + 1}/{repeats}, {row['model']}, {what}: "
        f"{row['throughput']:.1f}/s, p50 {row['p50_ms']:.1f} ms",
        file=sys.stderr,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.server", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--url", help="gRPC service of a running server; one is started without it")
    parser.add_argument("--models", type=choices(ENSEMBLES), default=ENSEMBLES, help="separated by commas")
    parser.add_argument("--shared-memory", type=choices(SHARED_MEMORY), default=SHARED_MEMORY)
    parser.add_argument("--concurrency", type=numbers, default=(1, 2, 4, 8, 16, 32, 64))
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--picture", type=Path, help="in place of a made-up one of 1280x960")
    return parser


if __name__ == "__main__":
    sys.exit(main())
