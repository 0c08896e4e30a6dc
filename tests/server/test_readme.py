"""The README's commands and Python, as they stand there, in a copy of the project."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from servers import ROOT, stop

from server.launcher import free_ports

pytestmark = pytest.mark.server

README = (ROOT / "README.md").read_text()
LINES = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
# Not run here: this gate itself, and what needs Docker or a GPU.
ELSEWHERE = ("./ci/test", "docker compose", "ci/plugin", "python -m export.to_plan", "LD_PRELOAD=")
RUN = [line for line in LINES if not line.startswith(ELSEWHERE)]
PYTHON = [
    block
    for name in ("README.md", "clients/README.md")
    for block in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
]
SERVER = "tritonserver --model-repository=model_repository"
PAGE = "python -m clients.web --url localhost:8001"
CURL = "curl --data-binary @picture.jpg localhost:8080/detect"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The tracked files in a folder of their own, beside what a user would bring."""
    # The copy shares this environment, and must find it up to date: else it would install itself there.
    subprocess.run([ROOT / "ci/setup"], check=True)
    folder = tmp_path_factory.mktemp("readme") / "project"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copy2(folder / "demo/coins.pth", folder / "CHECKPOINT")

    skimage = pytest.importorskip("skimage")
    coins = cv2.imread(str(Path(skimage.__file__).parent / "data/coins.png"))
    (folder / "pictures").mkdir()
    for name in ("picture.jpg", "cat.jpg", "pictures/one.jpg", "pictures/two.jpg"):
        cv2.imwrite(str(folder / name), coins)
    marked = json.loads((ROOT / "tests/data/coins.json").read_text())
    marked["images"][0]["file_name"] = "one.jpg"
    (folder / "instances.json").write_text(json.dumps(marked))
    height, width = coins.shape[:2]
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (width, height))
    for shift in range(4):
        video.write(np.roll(coins, shift, axis=1))
    video.release()
    data = (folder / "picture.jpg").read_bytes()
    encoded = base64.b64encode(len(data).to_bytes(4, "little") + data).decode()
    (folder / "data.json").write_text(json.dumps({"data": [{"image": {"b64": encoded, "shape": [1]}}]}))
    return folder


def run(project: Path, *command: str) -> str:
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_line(project: Path, line: str) -> str:
    return run(project, "bash", "-c", f"source .venv/bin/activate && {line}")


def test_every_command_is_run_or_known():
    assert len(RUN) == 12
    assert {SERVER, PAGE, CURL} <= set(RUN)
    assert len(PYTHON) == 2


def test_demo_finds_the_coins(project):
    printed = run_line(project, "./ci/demo")
    assert len(re.findall(r"^ +coin +0\.", printed, re.MULTILINE)) == 24
    assert cv2.imread(str(project / "out/detections/coins.png")) is not None
    assert not servers_of(project), "the demo's server is still there"


def test_demo_keeps_its_server_where_asked(project):
    printed = run_line(project, "./ci/demo --keep")
    (server,) = servers_of(project)
    try:
        said = re.search(r"curl (127\S+)", printed)[1]
        with urllib.request.urlopen(f"http://{said}", timeout=5) as answer:
            assert json.load(answer)["name"] == "centernet"
        address = re.search(r"Your own pictures: (\S+)", printed)[1]
        with urllib.request.urlopen(address, timeout=5) as answer:
            assert b"<title>CenterNet" in answer.read()
        line = re.search(r"curl --data-binary .*", printed)[0].replace("YOUR_PICTURE", "picture.jpg")
        assert len(json.loads(run_line(project, line))["detections"]) == 24
        run_line(project, re.search(r"kill \d+ \d+", printed)[0])
        wait_until_gone(address)
        deadline = time.monotonic() + 40
        while servers_of(project) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not servers_of(project)
    finally:
        if servers_of(project):
            os.kill(server, signal.SIGKILL)


def servers_of(project: Path) -> list[int]:
    """Process numbers of the servers on this copy's own repository."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # It has ended.
            continue
        if (
            words[0].endswith("/tritonserver")
            and f"--model-repository={project}/out/model_repository" in words
        ):
            found.append(int(path.parent.name))
    return found


def test_commands_of_a_user(project):
    http, grpc, metrics = free_ports(3)
    ports = f"--http-port={http} --grpc-port={grpc} --metrics-port={metrics}"
    web = free_ports(1)[0]
    processes = []
    printed = {}
    try:
        for line in RUN:
            if line in ("./ci/demo", "source .venv/bin/activate"):
                continue
            here = line.replace("localhost:8001", f"localhost:{grpc}").replace(":8080", f":{web}")
            if line in (SERVER, PAGE):
                health = f"{http}/v2/health/ready" if line == SERVER else f"{web}/health"
                arguments = ports if line == SERVER else f"--port {web}"
                with (project / f"server-{len(processes)}.log").open("wb") as log:
                    shell = f"source .venv/bin/activate && exec {here} {arguments}"
                    process = subprocess.Popen(["bash", "-c", shell], cwd=project, stdout=log, stderr=log)
                processes.append(process)
                wait_until_ready(f"http://localhost:{health}", process)
                continue
            if "clients/" in here and "--url" not in here:
                here += f" --url localhost:{grpc}"
            if "perf-analyzer" in here:
                here += " --request-count 10"
            printed[line] = run_line(project, here)
        answers = [
            run(project, sys.executable, "-c", block.replace("localhost:8001", f"localhost:{grpc}"))
            for block in PYTHON
        ]
    finally:
        for process in reversed(processes):
            stop(process)
    assert len(json.loads(printed[CURL])["detections"]) == 24
    assert len(json.loads((project / "out.json").read_text())) >= 2
    assert (project / "out/batch/part-00000.parquet").is_file()
    assert len((project / "clip.jsonl").read_text().splitlines()) == 4
    assert {path.name for path in (project / "out").iterdir()} >= {
        "picture.jpg",
        "one.jpg",
        "two.jpg",
        "clip.mp4",
    }
    assert all("('coin', 'coin', " in answer for answer in answers)
    assert answers[1].count("Detections(xyxy=array(") == 2
    assert any("AP50" in text for text in printed.values())
    assert any("Throughput" in text for text in printed.values())


def wait_until_gone(address: str) -> None:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail(f"{address} still answers")


def wait_until_ready(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the server of the README's command is not ready")
