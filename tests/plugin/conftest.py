"""The plugin's builds and the TensorRT libraries they are loaded into."""

import shutil
from pathlib import Path

import pytest
from missing import missing
from toolchain_of_plugin import FOLDERS, TensorRT, find_library, find_tensorrt


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("plugin")


@pytest.fixture(params=FOLDERS)
def tensorrt(request: pytest.FixtureRequest) -> TensorRT:
    return find_tensorrt(request.param)


@pytest.fixture(params=FOLDERS)
def library(request: pytest.FixtureRequest) -> Path:
    """Every build of the plugin."""
    return find_library(request.param)


@pytest.fixture
def rtx() -> None:
    """What export.to_plan needs for --target."""
    find_tensorrt("rtx")
    find_library("rtx")


@pytest.fixture
def compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        missing("no g++")
    return found
