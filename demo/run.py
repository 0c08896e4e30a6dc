"""The whole path on one machine without a GPU: checkpoint, ONNX, Triton ensemble, boxes on a photograph.

Works on a copy of the model repository under `out/`, so that a model of the user's own stays where it is.
"""

import argparse
import hashlib
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import skimage.data

from export.errors import discard_output
from server import launcher

ROOT = Path(__file__).parents[1]
OUT = ROOT / "out"
LOG = OUT / "tritonserver.log"
CHECKPOINT = ROOT / "demo/coins.pth"


def main() -> int:
    """Runs the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="ci/demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave the server and a page for the browser up, say what to try next",
    )
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
    _export(model)
    picture = OUT / "coins.png"
    picture.write_bytes(cv2.imencode(".png", skimage.data.coins())[1].tobytes())
    print(f"Starting tritonserver (its log: {LOG.relative_to(ROOT)})", flush=True)
    try:
        server = launcher.start(
            repository, log=LOG, timeout_s=300, ports=_ports(8000, 8001, 8002), new_session=arguments.keep
        )
    except launcher.StartError as error:
        print(f"ci/demo: {error}", file=sys.stderr)
        return 1
    try:
        _run("clients/detect.py", "--url", server.grpc_url, "--output-dir", "out/detections", str(picture))
        page, address = _start_page(server.grpc_url) if arguments.keep else (None, "")
    except BaseException:
        launcher.stop(server.process, timeout_s=30)
        raise
    if page is None:
        launcher.stop(server.process, timeout_s=30)
        return 0
    print(
        f"""
Your own pictures: {address} in a browser, or by {address}/docs
  curl --data-binary @YOUR_PICTURE {address}/detect
Both stay up (server {server.process.pid}, page {page.pid}). To try next, from {ROOT}:
  .venv/bin/python clients/detect.py --url {server.grpc_url} --output-dir out/detections YOUR_PICTURES
  curl {server.http_url}/v2/models/centernet
  .venv/bin/python -m benchmarks.server --url {server.grpc_url} --model-repository out/model_repository
  kill {server.process.pid} {page.pid}   # stops both"""
    )
    return 0


def _export(model: Path) -> None:
    """Exports the demo's checkpoint, unless that was done by the exporter as it stands now."""
    stamp = model.with_name("demo.stamp")
    digest = hashlib.sha256()
    for source in (CHECKPOINT, *sorted((ROOT / "export").rglob("*.py"))):
        digest.update(source.read_bytes())
    made = (model, model.with_suffix(".json"), stamp)
    if all(path.exists() for path in made) and stamp.read_text(encoding="utf-8") == digest.hexdigest():
        return
    print(f"Exporting {CHECKPOINT.relative_to(ROOT)} to ONNX", flush=True)
    stamp.unlink(missing_ok=True)
    _run("-m", "export.to_onnx", str(CHECKPOINT), str(model))
    stamp.write_text(digest.hexdigest(), encoding="utf-8")


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def _start_page(url: str) -> tuple[subprocess.Popen[str], str]:
    """Starts the page of a server, to outlive this process; returns it and its address."""
    log = OUT / "web.log"
    (port,) = _ports(8080)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "clients.web", "--url", url, "--port", str(port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            start_new_session=True,
        )
    address = process.stdout.readline().strip() if process.stdout else ""
    if not address:
        print(f"ci/demo: the page did not start: {log.read_text(encoding='utf-8').strip()}", file=sys.stderr)
        raise subprocess.CalledProcessError(process.wait(), "clients.web")
    return process, address


def _ports(*usual: int) -> list[int]:
    """The usual ports, or as many free ones where one of those is taken."""
    try:
        for port in usual:
            socket.create_server((launcher.HOST, port)).close()
    except OSError:
        return launcher.free_ports(len(usual))
    return list(usual)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as failure:
        if failure.returncode > 0:
            sys.exit(failure.returncode)  # that command has said what was wrong
        sys.exit(f"ci/demo: {failure}")
    except OSError as error:  # a full disk, or what the user may not write
        if sys.stdout:
            discard_output()
        sys.exit(f"ci/demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
