"""The container's entry point around the real server; a stand-in builds the plan."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import make_repository, stubs

from server.launcher import free_ports

ROOT = Path(__file__).parents[2]
ENTRYPOINT = ROOT / "ci" / "container" / "entrypoint.py"
HEALTH = ROOT / "ci" / "container" / "health.py"
# Writes what it was asked for where the plan would be; the CPU server serves the ONNX file beside it.
BUILDER = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text(' '.join(sys.argv[1:]))"


class Container:
    """The entry point as a process, with a repository and ports of its own; it leads a process group."""

    def __init__(self, folder, onnx, *options, builder=BUILDER, prepare=None, ports=None, **environment):
        self.repository = make_repository(folder, onnx)
        if prepare:
            prepare(self.repository)
        self.plan = self.repository / "centernet_network" / "1" / "model.plan"
        self.onnx = onnx
        self.http, self.grpc, self.metrics = ports or free_ports(3)
        self.draining = folder / "draining"
        script = folder / "builder.py"
        script.write_text(builder)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "DRAINING": str(self.draining),
            # For those that only end with their test; who drains says how long.
            "DRAIN_DELAY_S": "0",
            "DRAIN_QUIET_S": "0.2",
            "HEALTH_URL": f"http://127.0.0.1:{self.http}/v2/models/centernet/infer",
            **environment,
        }
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, ENTRYPOINT, "--model", onnx, "--plan", self.plan),
                    *("--model-repository", self.repository, "--plan-builder", f"{sys.executable} {script}"),
                    *("--metrics-port", str(self.metrics), f"--http-port={self.http}"),
                    f"--grpc-port={self.grpc}",
                    *options,
                ],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )  # fmt: skip

    @property
    def server(self):
        """Process of the server, whose parent is the entry point."""
        return int(
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            .read_text(encoding="utf-8")
            .split()[0]
        )

    def health(self):
        return subprocess.run([sys.executable, HEALTH], env=self.environment, capture_output=True, text=True)

    def wait_until_healthy(self):
        for _ in range(300):
            if self.health().returncode == 0:
                return
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.2)
        pytest.fail(self.log.read_text()[-3000:])

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def stubs(self):
        """Process of each instance of a Python model."""
        return stubs(self.server)

    def kill(self):
        """As a machine that vanishes: nobody is told, and nothing is finished."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
