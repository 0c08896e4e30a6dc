#!/usr/bin/env python3
"""What the container runs: builds the plan if none fits this machine, serves, and drains before it stops.

A plan without its ONNX file is served if its description says that it fits. With --model-config-name=cuda the
ONNX file itself is served, by Triton's ONNX Runtime.

Options that are not listed here go to tritonserver. Exit code 70: the server no longer answered, and another
start may help.
"""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import health
import mps
import settings
from tuning import TUNING
from watch import Watch, metrics

HOME = Path(__file__).resolve().parents[2]

# NVIDIA's "Secure Deployment Considerations". Configurations stay auto-completed: the plan knows the frame.
SECURE = (
    "--exit-on-error=true",
    "--strict-readiness=true",
    "--allow-sagemaker=false",
    "--allow-vertex-ai=false",
)
RESTRICTED = "model-repository,trace,logging"

NO_ANSWER = 70
"""Exit code (EX_SOFTWARE of sysexits.h) where the server was ended because it no longer answered."""

EXIT_S = 35
"""Longer than Triton waits for what is in flight before it exits (30)."""


def main() -> int:
    """Returns the exit code of what ended the container."""
    try:
        return _main(*_parse())
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}")
        return 1
    except mps.MpsError as error:
        _say(f"MPS: {error}")
        return 1


def _main(options: argparse.Namespace, further: list[str]) -> int:
    options.draining.unlink(missing_ok=True)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    repository = options.model_repository
    if options.model_config_name:
        if not options.model.is_file():
            _say(f"found no {options.model}: mount an ONNX file (export.to_onnx) there")
            return 1
        if options.model.name != "model.onnx":
            _say(f"found {options.model}, expected a file named model.onnx: rename it")
            return 1
        repository = _with_network(options.model.parent, repository, options.work_dir)
    elif not options.model.is_file() and not options.plan.is_file():
        _say(f"found neither {options.model} nor {options.plan}: mount an ONNX file (export.to_onnx) there")
        return 1
    else:
        code = _run_until(stopping, _plan_command(options))
        if stopping.is_set():
            return 128 + signal.SIGTERM
        if code:
            return code
    command = _server_command(options, repository, further)
    with mps.shared_gpu() if options.mps else nullcontext({}) as environment:
        # Its Python models look for the same file: see centernet_image/readiness.py.
        return _serve(options, command, {**environment, "DRAINING": str(options.draining)}, stopping)


def _serve(
    options: argparse.Namespace, command: list[str], variables: dict[str, str], stopping: threading.Event
) -> int:
    """The server's life."""
    server = subprocess.Popen(command, env={**os.environ, **variables})
    watch = Watch(options.metrics_port, options.watch_interval_s, options.health_url)
    watch.start()
    while server.poll() is None and not stopping.wait(0.2) and not watch.gone.is_set():
        pass
    if watch.gone.is_set():
        _say("the server no longer answers: ending it; start the container again")
        options.draining.touch()
        _stop(server)
        return NO_ANSWER
    if server.poll() is None:
        watch.stop()
        _drain(options, server)
        if server.poll() is None:
            server.terminate()
            if code := server.wait():
                _say(f"told to stop, the server ended with {code}")
            return 0
    code = server.wait()
    return code if code >= 0 else 128 - code  # as a shell reports a process that died of a signal


def _parse() -> tuple[argparse.Namespace, list[str]]:
    def setting(name: str, default: str) -> str:
        return os.environ.get(name, default)

    repository = HOME / "model_repository"
    parser = argparse.ArgumentParser(prog="entrypoint", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--model", type=Path, default=setting("MODEL", "/model/model.onnx"), help="ONNX file [MODEL]"
    )
    parser.add_argument("--model-repository", type=Path, default=repository)
    parser.add_argument("--plan", type=Path, default=repository / "centernet_network" / "1" / "model.plan")
    parser.add_argument(
        "--precision", default=setting("PRECISION", "fp16"), help="fp32, tf32, fp16 or int8 [PRECISION]"
    )
    parser.add_argument("--batch", default=setting("BATCH", "1,8,32"), help="min,opt,max [BATCH]")
    parser.add_argument(
        "--calibration", default=setting("CALIBRATION", ""), help="pictures for int8 [CALIBRATION]"
    )
    builder = f"{sys.executable} -m export.to_plan"
    parser.add_argument("--plan-builder", type=settings.command, default=builder, help="a command")
    parser.add_argument("--draining", type=Path, default=setting("DRAINING", "/tmp/draining"))  # noqa: S108
    parser.add_argument(
        "--model-config-name", default="", help="cuda or cpu: the ONNX file instead of a plan"
    )
    parser.add_argument("--work-dir", type=Path, default="/tmp/centernet")  # noqa: S108
    parser.add_argument(
        "--allow-client-shm",
        type=settings.switch,
        default=setting("ALLOW_CLIENT_SHM", "false"),
        help="clients may hand over pictures in shared memory [ALLOW_CLIENT_SHM]",
    )
    parser.add_argument(
        "--model-control",
        type=_model_control,
        default=setting("MODEL_CONTROL", "none"),
        help="explicit: who has ADMIN_KEY may load models (clients/roll_out.py) [MODEL_CONTROL]",
    )
    parser.add_argument(
        "--mps",
        type=settings.switch,
        default=setting("MPS", "false"),
        help="more preprocess processes, which share the GPU by CUDA's Multi-Process Service [MPS]",
    )
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument(
        "--watch-interval-s",
        type=settings.pause,
        default=setting("WATCH_INTERVAL_S", "10"),
        help="between the inferences that tell whether the server still answers [WATCH_INTERVAL_S]",
    )
    parser.add_argument("--health-url", type=settings.url, default=health.URL, help="[HEALTH_URL]")
    parser.add_argument(
        "--drain-delay-s",
        type=settings.seconds,
        default=setting("DRAIN_DELAY_S", "10"),
        help="for balancers to notice",
    )
    parser.add_argument(
        "--drain-quiet-s",
        type=settings.seconds,
        default=setting("DRAIN_QUIET_S", "2"),
        help="longer than one batch takes",
    )
    parser.add_argument(
        "--drain-timeout-s",
        type=settings.seconds,
        default=setting("DRAIN_TIMEOUT_S", "40"),
        help="then it stops anyhow",
    )
    options, further = parser.parse_known_args()
    if options.model.is_file() and not options.model_config_name:
        settings.check_batch(parser, options.batch, options.plan.parent)
    return options, further


def _model_control(text: str) -> str:
    if text not in ("none", "explicit"):  # `choices` would let a wrong variable pass.
        raise argparse.ArgumentTypeError(f"found '{text}', expected none or explicit")
    return text


def _plan_command(options: argparse.Namespace) -> list[str]:
    command = [
        *options.plan_builder,
        str(options.model),
        str(options.plan),
        "--if-needed",
        "--verify",
    ]
    command += ["--precision", options.precision, "--batch", options.batch]
    command += ["--timing-cache", str(options.plan.with_name("timing.cache"))]
    if options.calibration:
        command += ["--calibration", options.calibration]
    return command


def _with_network(network: Path, repository: Path, work_dir: Path) -> Path:
    """A model repository whose network is that of a folder: the volume of plans stays as it is."""
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    for model in repository.iterdir():
        if model.name != "centernet_network":
            (work_dir / model.name).symlink_to(model)
    own = work_dir / "centernet_network"
    shutil.copytree(repository / own.name, own, ignore=shutil.ignore_patterns("1"))
    # The folder, not its files: ONNX Runtime looks for external data beside the file that it is given.
    (own / "1").symlink_to(network.resolve())
    return work_dir


def _server_command(options: argparse.Namespace, repository: Path, further: list[str]) -> list[str]:
    # Nobody is told the key: these interfaces are closed, unless the operator brings one.
    key = os.environ.get("ADMIN_KEY") or secrets.token_urlsafe(32)
    restricted, choices = RESTRICTED, ["--model-control-mode=none"]
    if options.model_control == "explicit":
        choices = ["--model-control-mode=explicit", "--load-model=*"]
    if name := options.model_config_name or options.mps * "mps":
        choices.append(f"--model-config-name={name}")
    # Off by default since 26.04; earlier releases do not know the option.
    if options.allow_client_shm:
        choices.append("--allow-client-shm=true")
    else:
        restricted = f"shared-memory,{restricted}"
    return [
        "tritonserver",
        f"--model-repository={repository}",
        f"--metrics-port={options.metrics_port}",
        *SECURE,
        *TUNING,
        f"--http-restricted-api={restricted}:admin-key={key}",
        f"--grpc-restricted-protocol={restricted}:admin-key={key}",
        *choices,
        *further,
    ]


def _run_until(stopping: threading.Event, command: list[str]) -> int:
    process = subprocess.Popen(command, cwd=HOME)
    while process.poll() is None:
        if stopping.wait(0.2):
            process.terminate()
    return process.returncode


def _stop(server: subprocess.Popen) -> None:
    """Ends a server that may no longer be able to end itself."""
    server.terminate()
    try:
        server.wait(timeout=EXIT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _drain(options: argparse.Namespace, server: subprocess.Popen) -> None:
    """Waits until no request is left, since a server that is told to stop fails the ensembles in flight."""
    options.draining.touch()
    begin = time.monotonic()
    _say(
        f"draining: not ready from now on, stopping when idle, at the latest in {options.drain_timeout_s:g} s"
    )
    quiet_since, before = begin, ""
    while server.poll() is None:
        now = time.monotonic()
        counts, pending = _requests(options.metrics_port)
        if pending or counts != before:
            quiet_since, before = now, counts
        if now - begin >= options.drain_delay_s and now - quiet_since >= options.drain_quiet_s:
            _say("drained: no request is left")
            return
        if now - begin >= options.drain_timeout_s:
            _say(f"still busy after {options.drain_timeout_s:g} s: stopping")
            return
        time.sleep(0.1)


def _requests(port: int) -> tuple[str, bool]:
    """All counters of finished requests as one text, and whether any request waits."""
    lines = metrics(port)
    if not lines:
        return "", True
    counts = [line for line in lines if line.startswith(("nv_inference_request_", "nv_inference_exec_count"))]
    waiting = [line for line in lines if line.startswith("nv_inference_pending_request_count{")]
    return "\n".join(counts), any(float(line.rsplit(" ", 1)[1]) for line in waiting)


def _say(text: str) -> None:
    print(f"entrypoint: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
