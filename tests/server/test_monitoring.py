"""The chart's rules and dashboard on a real Prometheus that watches a real server."""

import json
import re
import time

import prometheus
import pytest
import yaml
from chart import CHART, fetch_tools
from pictures import encode, picture
from protocols import images, infer
from servers import make_repository

pytestmark = pytest.mark.server
GPU = "nv_gpu"


def test_dashboard_and_rules_have_data(serve, small_onnx, tmp_path):
    fetch_tools()
    server = serve(make_repository(tmp_path, small_onnx), "--metrics-config=summary_latencies=true")
    rules = yaml.safe_load(_quick((CHART / "files/rules.yaml").read_text()))
    labels = {"namespace": "here", "pod": "server"}
    scrape = {"static_configs": [{"targets": [server.metrics_url], "labels": labels}]}
    with prometheus.running(tmp_path, rules, scrape) as url:
        panels = json.loads((CHART / "files/dashboard.json").read_text())["panels"]
        queries = {target["expr"] for panel in panels for target in panel["targets"]}
        every = [rule for group in rules["groups"] for rule in group["rules"]]
        queries |= {rule["record"] for rule in every if "record" in rule}
        waiting = {query for query in queries if GPU not in query}
        assert len(waiting) > 10
        end = time.monotonic() + 120
        while waiting and time.monotonic() < end:
            infer(server, "grpc", "centernet", images([encode(picture(64, 64))]))
            waiting = {query for query in waiting if not _ask(url, query)}
        assert not waiting
        # Nothing is wrong with a server that answers.
        assert not _ask(url, 'ALERTS{alertstate="firing"}')


def _quick(text):
    """Rates over seconds instead of minutes."""
    return re.sub(r"\[\d+m\]", "[4s]", text)


def _ask(url, query):
    return prometheus.ask(url, _quick(query).replace("$namespace", ".*").replace("$pod", ".*"))
