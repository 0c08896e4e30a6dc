"""Nothing is lost while servers come and go: two real ones behind an Envoy with the chart's configuration.

Triton 24.10, the tests' server, does not ask its Python models `is_ready()`, and stays ready while it drains.
So Envoy asks a small endpoint of this test, which says what `ci/container/health.py` says. The chart asks
Triton 26 itself.
"""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chart import fetch_tools
from exported import SMALL_CLASSES
from pictures import encode, picture
from rolling import Flow, Replica, health_endpoint, version_of

from benchmarks.balancer import Backend, Envoy, chart_config
from clients import CenterNetClient
from clients.output import entry

pytestmark = pytest.mark.server
KINDS = 12
NAMES = tuple(f"{name} 2" for name in SMALL_CLASSES)
"""Of the new version: an answer shows where it comes from."""


@dataclass
class Site:
    """Two servers behind Envoy.

    Attributes:
        contents: Encoded pictures.
        expected: What the network finds in them.
    """

    envoy: Envoy
    replicas: list[Replica]
    contents: list[bytes]
    expected: list[dict]

    def flow(self, folder: Path, count: int, protocol: str = "grpc") -> Flow:
        contents = [self.contents[number % KINDS] for number in range(count)]
        url = f"127.0.0.1:{getattr(self.envoy, protocol)}"
        return Flow(folder / protocol, contents, url=url, protocol=protocol)

    def versions(self, rows: list[dict]) -> list[int]:
        """The version that answered each row."""
        return [
            version_of(row, self.expected[number % KINDS], [SMALL_CLASSES, NAMES])
            for number, row in enumerate(rows)
        ]

    def roll(self, replica: Replica, flow: Flow, classes: tuple[str, ...] | None) -> None:
        """Drains a server under load, and takes another one back in its place."""
        active = f"{flow.protocol}.upstream_rq_active"
        flow.burst()
        while self.envoy.stat(active) < 16:
            assert flow.process.poll() is None
        replica.running.process.send_signal(signal.SIGTERM)
        self.envoy.wait_for_servers(1)
        assert replica.running.process.wait(timeout=300) == 0, replica.running.log.read_text()[-3000:]
        assert "drained: no request is left" in replica.running.log.read_text()
        replica.start(list(classes) if classes else None)
        self.envoy.wait_for_servers(2)
        flow.burst()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, small_onnx: Path) -> Iterator[Site]:
    fetch_tools()
    folder = tmp_path_factory.mktemp("site")
    replicas = [Replica(folder, small_onnx, name) for name in ("a", "b")]
    endpoints = [health_endpoint(replica) for replica in replicas]
    envoy = None
    try:
        for replica in replicas:
            replica.start()
        backends = [
            Backend(http=replica.ports[0], grpc=replica.ports[1], health=endpoint.server_port)
            for replica, endpoint in zip(replicas, endpoints, strict=True)
        ]
        # A server that ends or drains says so; one that is late on a busy machine does neither.
        envoy = Envoy(folder, backends, health_timeout_s=60)
        envoy.wait_for_servers(2)
        contents = [encode(picture(60, 80, seed=seed), "JPEG") for seed in range(KINDS)]
        with CenterNetClient(f"127.0.0.1:{envoy.grpc}") as client:
            expected = [entry("", client.detect(content)) for content in contents]
        assert all(len(one["detections"]) > 5 for one in expected)
        yield Site(envoy, replicas, contents, expected)
    finally:
        if envoy:
            envoy.stop()
        for replica in replicas:
            if replica.running and replica.running.process.poll() is None:
                replica.running.kill()
        for endpoint in endpoints:
            endpoint.shutdown()


def test_rolling_over_loses_nothing(site, tmp_path):
    flow = site.flow(tmp_path, 500)
    for replica in site.replicas:
        site.roll(replica, flow, NAMES)
    versions = site.versions(flow.finish())
    assert set(versions) == {0, 1}
    assert set(versions[-60:]) == {1}


@pytest.mark.wide
def test_rolling_over_http(site, tmp_path):
    flow = site.flow(tmp_path, 250, "http")
    site.roll(site.replicas[0], flow, NAMES)
    flow.finish()


@pytest.mark.wide
def test_dead_python_model_leaves_the_balance(site, tmp_path):
    """Within 10 s by the configuration; how long it takes here depends on the machine."""
    clusters = {one["name"]: one for one in chart_config()["static_resources"]["clusters"]}
    for cluster in ("grpc", "http"):
        (check,) = clusters[cluster]["health_checks"]
        seconds = {name: float(check[name].rstrip("s")) for name in ("interval", "timeout")}
        assert check["unhealthy_threshold"] * sum(seconds.values()) <= 10
    replica = site.replicas[1]
    os.kill(replica.running.stubs()["centernet_network_0_0"], signal.SIGKILL)
    site.envoy.wait_for_servers(1)
    # Whoever asks now is answered.
    rows = site.flow(tmp_path, 40).finish()
    assert len(rows) == 40
    assert replica.running.process.wait(timeout=90) == 70  # As Kubernetes sees it, which starts it again.
    replica.start()
    site.envoy.wait_for_servers(2)


def test_server_killed_hard_loses_nothing(site, tmp_path):
    """What it held is asked of the other one, by Envoy: the client has no retries."""
    flow = site.flow(tmp_path, 200)
    flow.burst()
    while site.envoy.stat("grpc.upstream_rq_active") < 24:
        assert flow.process.poll() is None
    before = site.envoy.stat("grpc.upstream_rq_retry_success")
    site.replicas[0].running.kill()
    site.envoy.wait_for_servers(1)
    site.versions(flow.finish())
    retried = site.envoy.stat("grpc.upstream_rq_retry_success") - before
    # What it held, and what was sent to it until two connections were refused.
    assert 0 < retried <= 48


def test_answers_are_compared_at_all(site):
    row = json.loads(json.dumps(site.expected[0]))
    row["detections"][0]["score"] += 0.01
    with pytest.raises(AssertionError):
        site.versions([row])
