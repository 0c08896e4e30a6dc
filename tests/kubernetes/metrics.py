"""Stand-ins for the Prometheus Operator and prometheus-adapter, which cannot be had here.

Both do what the originals do with the chart's own objects: the monitor becomes a scrape configuration of a
real Prometheus, and the rule of deploy/README.md answers the API group custom.metrics.k8s.io.
"""

import base64
import json
import re
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import prometheus
import yaml
from api import Object
from cluster import ROOT, Cluster

from server.launcher import HOST

GROUP = "custom.metrics.k8s.io"
VERSION = f"{GROUP}/v1beta2"


Answer = Callable[[str, dict[str, str]], Object | list[Object] | None]


@contextmanager
def scrape_of(monitor: Object, cluster: Cluster) -> Iterator[dict[str, Any]]:
    """The scrape configuration that Prometheus Operator makes of a PodMonitor.

    Debian's Prometheus cannot watch pods itself: it asks here for them.
    """
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    namespace = monitor["metadata"]["namespace"]
    labels = monitor["spec"]["selector"]["matchLabels"]

    def targets(_path: str, _query: dict[str, str]) -> list[Object]:
        pods = cluster.api.items(
            f"/api/v1/namespaces/{namespace}/pods", labelSelector=",".join(map("=".join, labels.items()))
        )
        return [
            {
                "targets": [f"{pod['status']['podIP']}:{port['containerPort']}"],
                "labels": {"namespace": namespace, "pod": pod["metadata"]["name"]},
            }
            for pod in pods
            if pod["status"]["phase"] == "Running"
            for container in pod["spec"]["containers"]
            for port in container["ports"]
            if port["name"] == endpoint["port"]
        ]

    with _serving(targets) as port:
        discovery = {"url": f"http://{HOST}:{port}/", "refresh_interval": "2s"}
        yield {"scrape_interval": endpoint["interval"], "http_sd_configs": [discovery]}


@contextmanager
def adapter(cluster: Cluster, prometheus_url: str) -> Iterator[None]:
    """Answers the API server's questions for the metrics of pods, by the rule of deploy/README.md."""
    text = (ROOT / "deploy/README.md").read_text(encoding="utf-8")
    (rule,) = yaml.safe_load(re.search(r"```yaml\n(rules:.+?)```", text, re.DOTALL)[1])["rules"]
    series = rule["seriesQuery"].split("{")[0]

    def answer(path: str, query: dict[str, str]) -> Object | None:
        if path == f"/apis/{VERSION}":
            return _resources(series)
        found = re.fullmatch(rf"/apis/{VERSION}/namespaces/([^/]+)/pods/\*/{series}", path)
        if not found:
            return None
        namespace = found[1]
        pods = cluster.api.items(f"/api/v1/namespaces/{namespace}/pods", labelSelector=query["labelSelector"])
        names = "|".join(pod["metadata"]["name"] for pod in pods)
        asked = expand(rule["metricsQuery"], series, f'namespace="{namespace}",pod=~"{names}"', "pod")
        return values_of(namespace, series, prometheus.ask(prometheus_url, asked))

    with _serving(answer, cluster.certificate) as port, _registered(cluster, port):
        yield


@contextmanager
def _serving(answer: Answer, certificate: Path | None = None) -> Iterator[int]:
    """Serves JSON on a port of the loopback, with TLS if there is a certificate; None means 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            found = answer(urllib.parse.unquote(url.path), dict(urllib.parse.parse_qsl(url.query)))
            if found is None:
                self.send_error(404)
                return
            content = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((HOST, 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def expand(query: str, series: str, matchers: str, group: str) -> str:
    """prometheus-adapter's template as a query."""
    for name, value in {"Series": series, "LabelMatchers": matchers, "GroupBy": group}.items():
        query = query.replace(f"<<.{name}>>", value)
    return query


def values_of(namespace: str, metric: str, result: list[dict[str, Any]]) -> Object:
    """Prometheus's answer as a MetricValueList."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    items = [
        {
            "describedObject": {
                "kind": "Pod",
                "namespace": namespace,
                "name": one["metric"]["pod"],
                "apiVersion": "/v1",
            },
            "metric": {"name": metric},
            "timestamp": now,
            "value": f"{round(float(one['value'][1]) * 1000)}m",
        }
        for one in result
    ]
    return {"kind": "MetricValueList", "apiVersion": VERSION, "metadata": {}, "items": items}


def _resources(series: str) -> Object:
    resource = {
        "name": f"pods/{series}",
        "singularName": "",
        "namespaced": True,
        "kind": "MetricValueList",
        "verbs": ["get"],
    }
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION, "resources": [resource]}


@contextmanager
def _registered(cluster: Cluster, port: int) -> Iterator[None]:
    """Tells the API server who answers the group."""
    api = cluster.api
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "metrics"},
        # Endpoints take no address of the loopback, names do.
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
    }
    registration = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"v1beta2.{GROUP}"},
        "spec": {
            "group": GROUP,
            "version": "v1beta2",
            "service": {"name": "metrics", "namespace": "default", "port": port},
            "caBundle": base64.b64encode(cluster.certificate.read_bytes()).decode(),
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    }
    api.create(service, "default")
    api.create(registration)
    try:
        yield
    finally:
        # Without its server the group would keep namespaces from being listed.
        api.ask("DELETE", f"/apis/apiregistration.k8s.io/v1/apiservices/v1beta2.{GROUP}")
        api.ask("DELETE", "/api/v1/namespaces/default/services/metrics")
