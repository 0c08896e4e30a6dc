"""The chart as helm renders it."""

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest
import yaml
from chart import BIN, CHART, KUBERNETES, ROOT, helm, set_options


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    if not os.environ.get("CI") and shutil.which("go") is None and not BIN.is_dir():
        pytest.skip("no go on PATH for ci/deploy-tools")
    subprocess.run([ROOT / "ci/deploy-tools"], check=True)


@pytest.fixture(scope="session")
def template() -> Callable[..., str]:
    """`template({"replicas": "3"})`: the chart's manifests with these values."""

    def render(values: dict[str, str]) -> str:
        done = helm("template", "release", CHART, KUBERNETES, *set_options(values))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return render


@pytest.fixture(scope="session")
def manifests(template: Callable[..., str]) -> Callable[..., list[dict]]:
    def load(values: dict[str, str]) -> list[dict]:
        return list(filter(None, yaml.safe_load_all(template(values))))

    return load
