"""The chart's HorizontalPodAutoscaler, by the real controller, on the queue time of real servers."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import chart
import exported
import prometheus
import pytest
import yaml
from api import say
from cluster import ROOT
from metrics import adapter, scrape_of
from node import Tritons, is_ready
from pictures import encode, picture
from release import FULL, NAME
from servers import make_repository

from clients import CenterNetClient

pytestmark = pytest.mark.kubernetes
MOST = 3
VALUES = {
    "variant": "cpu",
    "autoscaling.kind": "hpa",
    "autoscaling.minReplicas": "1",
    "autoscaling.maxReplicas": str(MOST),
    "autoscaling.scaleDownWindowSeconds": "15",
    "monitoring.monitor": "pod",
    "monitoring.interval": "5s",
    "monitoring.rules.enabled": "true",
}
CLIENTS = 24


@pytest.mark.timeout(1200)
def test_servers_come_with_the_queue_and_go_with_it(cluster, release, node, tmp_path):
    repository = make_repository(tmp_path, exported.export(ROOT / "demo/coins.pth"))
    node(0, Tritons(repository, tmp_path))
    release.install(VALUES)
    monitor = release.get("apis/monitoring.coreos.com/v1", "podmonitors", FULL)
    rules = release.get("apis/monitoring.coreos.com/v1", "prometheusrules", FULL)["spec"]
    with (
        scrape_of(monitor, cluster) as scrape,
        prometheus.running(tmp_path, rules, scrape) as url,
        adapter(cluster, url),
    ):
        release.wait_for(
            lambda: queue_s(release) is not None, "the autoscaler knows the queue time", timeout_s=180
        )
        assert release.settled
        assert release.server["spec"]["replicas"] == 1
        assert queue_s(release) == 0
        timeline = Timeline(release)
        with load(lambda: addresses(release)) as answered:
            timeline.wait_for(lambda: release.settled and release.server["spec"]["replicas"] == MOST)
            # Each of them takes its part.
            everywhere = set(addresses(release))
            release.wait_for(lambda: everywhere <= set(answered), "all servers answer")
            # KEDA would see the sum of them.
            (found,) = prometheus.ask(url, keda_query(release))
            assert float(found["value"][1]) > 0.05
        timeline.wait_for(lambda: release.settled and release.server["spec"]["replicas"] == 1)
    assert timeline.peak_s > 0.05
    say(f"{answered.total()} pictures by {len(answered)} servers, no error")


class Timeline:
    """Waits, and prints each change of the number of servers with the queue time that the autoscaler saw."""

    def __init__(self, release) -> None:
        self._release, self._begin, self._before = release, time.monotonic(), None
        self.peak_s = 0.0

    def wait_for(self, done: Callable[[], bool]) -> None:
        def look() -> bool:
            now, queue = self._release.server["spec"]["replicas"], queue_s(self._release) or 0.0
            self.peak_s = max(self.peak_s, queue)
            if now != self._before:
                passed_s = time.monotonic() - self._begin
                say(f"after {passed_s:4.0f} s: {now} servers, queue {queue * 1000:.0f} ms")
                self._before = now
            return done()

        self._release.wait_for(look, "the number of servers follows the queue", timeout_s=500)


def queue_s(release) -> float | None:
    """The queue time of a server that the autoscaler knows, seconds."""
    scaler = release.get("apis/autoscaling/v2", "horizontalpodautoscalers", FULL)
    for metric in scaler.get("status", {}).get("currentMetrics") or []:
        if metric.get("pods"):
            text = metric["pods"]["current"]["averageValue"]
            return int(text[:-1]) / 1000 if text.endswith("m") else float(text)
    return None


def keda_query(release) -> str:
    """The chart's, from the alternative that is not installed here."""
    options = ("--set=autoscaling.kind=keda", f"--namespace={release.namespace}", chart.KUBERNETES)
    shown = chart.helm("template", NAME, chart.CHART, "--show-only=templates/autoscaling.yaml", *options)
    return yaml.safe_load(shown.stdout)["spec"]["triggers"][0]["metadata"]["query"]


def addresses(release) -> list[str]:
    return [f"{pod['status']['podIP']}:8001" for pod in release.pods if is_ready(pod)]


@contextmanager
def load(targets: Callable[[], list[str]]) -> Iterator[Counter[str]]:
    """Clients that ask one server after the other without a pause; counts the answers of each server."""
    stop, answered, errors = threading.Event(), Counter(), []
    content = encode(picture(256, 256))

    def ask(number: int) -> None:
        clients = {}
        try:
            for turn in itertools.count(number):
                urls = sorted(targets())
                url = urls[turn % len(urls)]
                if stop.is_set():
                    return
                client = clients.get(url) or clients.setdefault(url, CenterNetClient(url))
                client.detect(content)
                answered[url] += 1
        except Exception as error:
            errors.append(error)
        finally:
            for client in clients.values():
                client.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
