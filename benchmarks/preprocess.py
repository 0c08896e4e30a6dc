"""Decoding alone, in one process and in several, and what it and the engine take from each other.

    python -m benchmarks.preprocess [--plan dla_34.plan] [--processes 1,2,3,4] [--output-dir out/benchmarks]

The processes are those of `centernet_preprocess` without Triton: each prepares one batch of JPEGs after the
other. With a plan, its engine computes batches of its own, first alone, then beside the processes, so that
neither waits for the other's results. Where pictures are decoded on the GPU, the two share it; a server in
which they took turns and lost nothing would make 1 / (1 / engine + 1 / decoded) pictures a second (`turns`).
Writes preprocess.json and preprocess.md.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from centernet_image import contract
from centernet_image.decode import Limits

from benchmarks import report
from benchmarks.report import BenchmarkError, choices, frame_size, numbers
from benchmarks.server import example_picture
from benchmarks.tensorrt_engine import Engine
from benchmarks.timing import times_ms
from benchmarks.triton_server import GpuUsage
from benchmarks.workers import Worker, say, working

MODES = ("checked", "unchecked")

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return report.run("benchmarks.preprocess", measure, _parser().parse_args(arguments))


def measure(options: argparse.Namespace) -> None:
    """Measure what the options ask for and write the report.

    Raises:
        BenchmarkError: A process could not do its work.
    """
    results: dict[str, Any] = {"environment": report.environment(), "device": options.device, "rows": []}
    results |= {"input_size": options.input_size, "batch": options.batch}
    for mode in options.modes:
        for row in _rows(mode, options):
            results["rows"].append({"mode": mode} | row)
            print(results["rows"][-1], file=sys.stderr)
            report.write(options.output_dir, "preprocess", results, tables)
    print(f"wrote {options.output_dir / 'preprocess.md'}")


def _rows(mode: str, options: argparse.Namespace) -> list[Row]:
    """A row for each number of processes, and what the engine alone does first."""
    common = {"batch": options.batch, "input_size": options.input_size}
    decoding = {"contender": "decode", "device": options.device, "checked": mode == "checked"}
    with ExitStack() as stack:

        def start(arguments: Row) -> Worker:
            worker = stack.enter_context(
                working("preprocess", arguments | common, timeout_s=options.timeout_s)
            )
            _wait(worker, "ready")
            return worker

        engine = []
        if options.plan:
            plugin = str(options.plugin) if options.plugin else None
            engine = [start({"contender": "engine", "plan": str(options.plan), "plugin": plugin})]
        decoders = [start(decoding) for _ in range(max(options.processes))]
        alone = _rates(engine, options.seconds)[0]["rate"] if engine else None
        return [_row(decoders[:count], engine, alone, options.seconds) for count in options.processes]


def _row(decoders: list[Worker], engine: list[Worker], engine_alone: float | None, seconds: float) -> Row:
    with GpuUsage() as gpu:
        rates = _rates(decoders, seconds)
    decoded = sum(rate["rate"] for rate in rates)
    row: Row = {"processes": len(decoders), "decoded": decoded, "p50_ms": rates[0]["p50_ms"]}
    # Not its memory: all processes are there from the start.
    row |= {name: value for name, value in gpu.figures.items() if name.endswith("percent")}
    if engine_alone is None:
        return row
    *rates, network = _rates([*decoders, *engine], seconds)
    return {
        **row,
        "engine": engine_alone,
        "turns": 1 / (1 / engine_alone + 1 / decoded),
        "decoded_beside": sum(rate["rate"] for rate in rates),
        "engine_beside": network["rate"],
    }


def _rates(workers: list[Worker], seconds: float) -> list[Row]:
    """What each does, all at the same time."""

    def run(worker: Worker) -> Row:
        worker.answer(str(seconds))
        return _wait(worker, "rate")

    with ThreadPoolExecutor(max(len(workers), 1)) as pool:
        return list(pool.map(run, workers))


def _wait(worker: Worker, event: str) -> Row:
    for said in worker.events():
        if said["event"] == event:
            return said
        raise BenchmarkError(said.get("reason", f"a process said {said['event']}, expected {event}"))
    raise BenchmarkError("a process ended early")


def work(arguments: SimpleNamespace) -> None:
    """In a worker: says `ready`, then its rate for as many seconds as each line asks for."""
    run = (_engine if arguments.contender == "engine" else _decoder)(arguments)
    run()
    say("ready")
    for line in sys.stdin:
        durations = times_ms(run, seconds=float(line))
        rate = 1000 * arguments.batch * len(durations) / sum(durations)
        say("rate", rate=rate, p50_ms=sorted(durations)[len(durations) // 2])


def _engine(arguments: SimpleNamespace) -> Any:
    plugin = Path(arguments.plugin) if arguments.plugin else None
    run = Engine(Path(arguments.plan), plugin).bare()
    return lambda: run(arguments.batch)


def _decoder(arguments: SimpleNamespace) -> Any:
    from centernet_preprocessing import create

    preprocessor = create(
        tuple(arguments.input_size),
        Limits(),
        device=arguments.device,
        gpu_id=0 if arguments.device == "gpu" else None,
        max_batch=arguments.batch,
        check_scans=arguments.checked,
        warn=lambda text: print(text, file=sys.stderr),
    )
    pictures = [example_picture()] * arguments.batch
    return lambda: preprocessor.prepare(pictures)


def tables(results: dict[str, Any]) -> str:
    """The report's table."""
    text = f"Pictures a second, JPEGs of 1280x960 in batches of {results['batch']}, decoded on the "
    return f"{text}{results['device'].upper()}.\n\n{report.records(results['rows'])}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.preprocess",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu")
    parser.add_argument("--plan", type=Path, help="of a detector; its engine is measured, too")
    parser.add_argument("--plugin", type=Path, help="libdcnv2.so, if it is not where export.to_plan looks")
    parser.add_argument("--processes", type=numbers, default=(1, 2, 3, 4), help="separated by commas")
    parser.add_argument("--modes", type=choices(MODES), default=MODES, help="whether scans are checked")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--input-size", type=frame_size, default=contract.INPUT_SIZE, metavar="HxW")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--timeout-s", type=float, default=120, help="of one measurement")
    parser.add_argument("--output-dir", type=Path, default=Path("out/benchmarks"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
