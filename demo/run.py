"""The whole path on one machine without a GPU: checkpoint, ONNX, Triton ensemble, boxes on a photograph.

Works on a copy of the model repository under `out/`, so that a model of the user's own stays where it is.
"""

import argparse
import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from backends.tritonserver import stop

ROOT = Path(__file__).parents[1]
OUT = ROOT / "out"
CHECKPOINT = ROOT / "demo/coins.pth"
READY_TIMEOUT_S = 60


def main() -> int:
    """Runs the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="ci/demo", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the server up and print what to try next")
    arguments = parser.parse_args()

    # As Ctrl-C does: the server is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    OUT.mkdir(exist_ok=True)
    repository = OUT / "model_repository"
    model = repository / "centernet_network/1/model.onnx"
    # Everything but the generated model is copied anew: it is small, and may have been edited.
    shutil.copytree(
        ROOT / "model_repository",
        repository,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("model.onnx", "model.json", "model.plan", "__pycache__"),
    )
    if not _is_exported(model):
        print("Exporting demo/coins.pth to ONNX", flush=True)
        _run("-m", "export.to_onnx", str(CHECKPOINT), str(model))
    picture = OUT / "coins.png"
    _run("-c", f"import cv2, skimage.data; cv2.imwrite({str(picture)!r}, skimage.data.coins())")

    http, port, metrics = _ports()
    log = OUT / "tritonserver.log"
    command = [
        str(ROOT / ".venv/bin/tritonserver"),
        f"--model-repository={repository}",
        f"--http-port={http}",
        f"--grpc-port={port}",
        f"--metrics-port={metrics}",
        # For this machine alone: Triton asks nobody who they are.
        *(f"--{service}-address=127.0.0.1" for service in ("http", "grpc", "metrics")),
    ]
    print(f"Starting tritonserver (its log: {log.relative_to(ROOT)})", flush=True)
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=arguments.keep
        )
    try:
        if not _wait_until_ready(server, f"localhost:{port}"):
            found = "ended" if server.poll() is not None else f"was not ready within {READY_TIMEOUT_S} s"
            print(f"ci/demo: the server {found}; see {log}", file=sys.stderr)
            stop(server, timeout_s=30)
            return 1
        _run(
            "clients/detect.py",
            "--url",
            f"localhost:{port}",
            "--output-dir",
            str(OUT / "detections"),
            str(picture),
        )
    except BaseException:
        stop(server, timeout_s=30)
        raise
    if not arguments.keep:
        stop(server, timeout_s=30)
        return 0
    print(
        f"""
The server stays up (process {server.pid}). To try next, from {ROOT}:
  .venv/bin/python clients/detect.py --url localhost:{port} --output-dir out/detections YOUR_PICTURES
  curl localhost:{http}/v2/models/centernet
  .venv/bin/python -m benchmarks.server --url localhost:{port} --model-repository out/model_repository
  kill {server.pid}   # stops it"""
    )
    return 0


def _is_exported(model: Path) -> bool:
    """Whether `model` was exported from the demo's checkpoint by the exporter as it stands now."""
    stamp = model.with_name("demo.stamp")
    digest = hashlib.sha256()
    for source in (CHECKPOINT, *sorted((ROOT / "export").rglob("*.py"))):
        digest.update(source.read_bytes())
    fresh = model.exists() and stamp.exists() and json.loads(stamp.read_text()) == digest.hexdigest()
    if not fresh:
        model.unlink(missing_ok=True)
        stamp.write_text(json.dumps(digest.hexdigest()))
    return fresh


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def _ports() -> tuple[int, int, int]:
    """Triton's usual ports (HTTP, gRPC, metrics), or three free ones where one of those is taken."""
    sockets = []
    try:
        for port in (8000, 8001, 8002):
            sockets.append(socket.create_server(("localhost", port)))
    except OSError:
        sockets += [socket.create_server(("localhost", 0)) for _ in range(3)]
    ports = [one.getsockname()[1] for one in sockets[-3:]]
    for one in sockets:
        one.close()
    return ports[0], ports[1], ports[2]


def _wait_until_ready(server: subprocess.Popen, url: str) -> bool:
    with grpc.InferenceServerClient(url) as client:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while server.poll() is None and time.monotonic() < deadline:
            try:
                if client.is_model_ready("centernet"):
                    return True
            except InferenceServerException:
                pass  # not listening yet
            time.sleep(0.1)
    return False


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as failure:
        sys.exit(failure.returncode)  # that command has said what was wrong
    except KeyboardInterrupt:
        sys.exit(130)
