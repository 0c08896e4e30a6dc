"""Envoy in front of servers of this machine, with the chart's configuration but for addresses and ports."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.networks import ROOT
from benchmarks.report import BenchmarkError
from server.launcher import HOST, free_ports

BIN = ROOT / ".toolchain/deploy/bin"


@dataclass(frozen=True)
class Backend:
    """One server: its ports, and where Envoy asks whether it is healthy."""

    http: int
    grpc: int
    health: int


class Envoy:
    """Envoy as a process.

    Args:
        folder: For its configuration and log.
        backends: The servers.
        health_timeout_s: In place of the chart's: where a busy machine's late answers must not count.

    Attributes:
        config: What it runs, as `helm template` made it, with other addresses.
        http: Port for HTTP, of this machine alone.
        grpc: Port for gRPC.

    Raises:
        BenchmarkError: There is no Envoy or no helm.
    """

    def __init__(
        self, folder: Path, backends: Sequence[Backend], *, health_timeout_s: float | None = None
    ) -> None:
        self.http, self.grpc, self._metrics, self._admin = free_ports(4)
        self.config = chart_config()
        resources = self.config["static_resources"]
        own = {"http": self.http, "grpc": self.grpc, "metrics": self._metrics}
        for listener in resources["listeners"]:
            _move(listener["address"], own[listener["name"]])
        _move(self.config["admin"]["address"], self._admin)
        self.clusters: dict[str, Any] = {cluster["name"]: cluster for cluster in resources["clusters"]}
        for name, cluster in self.clusters.items():
            endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
            if name == "admin":
                _move(endpoints[0]["endpoint"]["address"], self._admin)
                continue
            if health_timeout_s is not None:
                cluster["health_checks"][0]["timeout"] = f"{health_timeout_s}s"
            template = json.dumps(endpoints.pop())
            for backend in backends:
                endpoint = json.loads(template)["endpoint"]
                _move(endpoint["address"], getattr(backend, name))
                endpoint["health_check_config"]["port_value"] = backend.health
                endpoints.append({"endpoint": endpoint})
        path = folder / "envoy.yaml"
        path.write_text(yaml.safe_dump(self.config), encoding="utf-8")
        self.log = folder / "envoy.log"
        with self.log.open("wb") as log:
            command = [f"{BIN}/envoy", "--config-path", str(path), "--log-level", "warn"]
            command += ["--use-dynamic-base-id", "--concurrency", "2"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait()

    def stat(self, name: str) -> int:
        """One of Envoy's counters or gauges, as CLUSTER.NAME; 0 while there is none."""
        url = f"http://{HOST}:{self._metrics}/stats/prometheus"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0
        cluster, _, name = name.partition(".")
        begin = f'envoy_cluster_{name}{{envoy_cluster_name="{cluster}"}}'
        return next((int(line.split()[-1]) for line in lines if line.startswith(begin)), 0)

    def wait_for_servers(self, count: int, *, timeout_s: float = 90) -> None:
        """Waits until it takes so many servers for healthy.

        Raises:
            BenchmarkError: It does not, in time.
        """
        end = time.monotonic() + timeout_s
        for cluster in ("grpc", "http"):
            while (found := self.stat(f"{cluster}.membership_healthy")) != count:
                if self.process.poll() is not None or time.monotonic() > end:
                    said = self.log.read_text(encoding="utf-8")[-1000:]
                    raise BenchmarkError(
                        f"Envoy has {found} servers for {cluster}, expected {count}: {said or 'it is up'}"
                    )
                time.sleep(0.05)


def chart_config() -> dict[str, Any]:
    """Envoy's configuration as the chart has it."""
    command = [f"{BIN}/helm", "template", "release", f"{ROOT}/deploy/helm", "--kube-version=1.34.0"]
    command += ["--set=envoy.enabled=true", "--show-only=templates/envoy.yaml"]
    if not (BIN / "envoy").is_file():
        raise BenchmarkError("found no Envoy: run ci/deploy-tools")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"helm: {done.stderr.strip()}")
    config_map = next(yaml.safe_load_all(done.stdout))
    return yaml.safe_load(config_map["data"]["envoy.yaml"])


def _move(address: dict[str, Any], port: int) -> None:
    address["socket_address"] = {"address": HOST, "port_value": port}
