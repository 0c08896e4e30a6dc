"""The chart's rules and dashboard on a real Prometheus that watches a real server."""

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml
from chart import BIN, CHART, fetch_tools
from pictures import encode, picture
from protocols import images, infer
from servers import make_repository

from server.launcher import free_ports

pytestmark = pytest.mark.server
GPU = "nv_gpu"


def test_dashboard_and_rules_have_data(serve, small_onnx, tmp_path):
    fetch_tools()
    server = serve(make_repository(tmp_path, small_onnx), "--metrics-config=summary_latencies=true")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    rules = CHART / "files/rules.yaml"
    # Rates over seconds instead of minutes.
    quick = re.sub(r"\[\d+m\]", "[4s]", rules.read_text())
    (tmp_path / "rules.yaml").write_text(quick)
    labels = {"namespace": "here", "pod": "server"}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": "triton", "static_configs": [{"targets": [server.metrics_url], "labels": labels}]}
        ],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [
            BIN / "prometheus",
            f"--config.file={tmp_path / 'prometheus.yaml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
    )
    try:
        panels = json.loads((CHART / "files/dashboard.json").read_text())["panels"]
        queries = {target["expr"] for panel in panels for target in panel["targets"]}
        every = [rule for group in yaml.safe_load(quick)["groups"] for rule in group["rules"]]
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
    finally:
        process.terminate()
        process.wait()


def _ask(url, query):
    expression = re.sub(r"\[\d+m\]", "[4s]", query).replace("$namespace", ".*").replace("$pod", ".*")
    address = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(address) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        pytest.fail(f"{expression}: {error.read().decode()}")
    except OSError:
        return []  # not up yet
