"""A real Prometheus, and what it answers."""

import http
import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import BIN

from server.launcher import HOST, free_ports, stop


@contextmanager
def running(folder: Path, rules: dict[str, Any], scrape: dict[str, Any]) -> Iterator[str]:
    """Starts Prometheus with the groups of `rules` and one scrape configuration; yields its URL."""
    (port,) = free_ports(1)
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "triton", **scrape}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [
            BIN / "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={HOST}:{port}",
            "--log.level=error",
        ]
    )
    try:
        yield f"http://{HOST}:{port}"
    finally:
        stop(process, timeout_s=10)


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """The query's result; empty while Prometheus is not up yet."""
    try:
        parameters = urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(f"{url}/api/v1/query?{parameters}") as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:  # It listens, and reads what it kept.
            return []
        pytest.fail(f"{query}: {error.read().decode()}")
    except OSError:
        return []
