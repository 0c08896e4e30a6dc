"""The chart as helm renders it."""

from collections.abc import Callable

import pytest
import yaml
from chart import CHART, KUBERNETES, fetch_tools, helm, set_options


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    fetch_tools()


@pytest.fixture(scope="session")
def template() -> Callable[..., str]:
    """`template({"replicas": "3"})`: the chart's manifests with these values."""

    def render(values: dict[str, str], *options: str) -> str:
        done = helm("template", "release", CHART, KUBERNETES, *set_options(values), *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return render


@pytest.fixture(scope="session")
def manifests(template: Callable[..., str]) -> Callable[..., list[dict]]:
    def load(values: dict[str, str]) -> list[dict]:
        return list(filter(None, yaml.safe_load_all(template(values))))

    return load
