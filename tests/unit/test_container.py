"""What Dockerfile, compose file and scripts say of each other; tests/server runs the entry point."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks import triton_server

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile.triton").read_text()
COMPOSE = (ROOT / "compose.yaml").read_text()


def test_everything_that_is_copied_is_there_and_not_ignored():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in shlex.split(line)[:-1]
    ]
    assert len(copied) > 5
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(path + "/") for path in allowed), source


def test_image_preloads_the_plugin_and_is_not_root():
    assert "LD_PRELOAD=/opt/centernet/libdcnv2.so" in DOCKERFILE
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)[-1] == "1000:1000"
    assert DOCKERFILE.index("USER") < DOCKERFILE.index("ENTRYPOINT")


def test_paths_agree():
    folder = "/opt/centernet/model_repository/centernet_network/1"
    assert f"VOLUME {folder}" in DOCKERFILE
    assert f"plan:{folder}" in COMPOSE
    for script in ("entrypoint.py", "health.py"):
        assert f"/opt/centernet/ci/container/{script}" in DOCKERFILE
        assert (ROOT / "ci/container" / script).stat().st_mode & 0o111


def test_compose_waits_longer_than_a_drain_takes():
    defaults = re.findall(r'"(DRAIN_\w+)", "(\d+)"', (ROOT / "ci/container/entrypoint.py").read_text())
    drain_s = {name: int(value) for name, value in defaults}
    (grace_s,) = map(int, re.findall(r"stop_grace_period: (\d+)s", COMPOSE))
    exit_s = 30  # Triton's own --exit-timeout-secs
    assert drain_s["DRAIN_TIMEOUT_S"] + exit_s < grace_s
    assert drain_s["DRAIN_DELAY_S"] + drain_s["DRAIN_QUIET_S"] < drain_s["DRAIN_TIMEOUT_S"]


def test_health_check_notices_a_drain_in_time():
    interval_s, retries = map(int, re.search(r"--interval=(\d+)s .*--retries=(\d+)", DOCKERFILE).groups())
    assert interval_s * retries <= 10, "DRAIN_DELAY_S"


def test_pools_of_gpu_memory_are_those_that_are_measured():
    entrypoint = runpy.run_path(str(ROOT / "ci/container/entrypoint.py"), run_name="entrypoint")
    assert entrypoint["CUDA_POOLS"] == triton_server.CUDA_POOLS


def test_install_says_what_is_missing(tmp_path):
    environment = {**os.environ, "TENSORRT_LIB": str(tmp_path)}
    done = subprocess.run([ROOT / "ci/container/install"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"install: found no libnvinfer.so in {tmp_path}: not a Triton image with TensorRT\n"


def test_plugin_build_says_what_is_missing(tmp_path):
    environment = {
        **os.environ,
        "TENSORRT_ROOT": str(tmp_path),
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [ROOT / "ci/container/build-plugin", tmp_path], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "NvInferVersion.h" in done.stderr or "CUDA" in done.stderr
    assert not list(tmp_path.iterdir())
