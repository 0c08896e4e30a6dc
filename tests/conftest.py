"""Fixtures that every kind of test uses."""

import gc
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

OF_ONE_SERVER = ("test_client_tasks.py", "test_tasks.py", "test_task_repositories.py")
"""Files of tests/server that one process runs, so that a server of many networks starts only once."""


def pytest_configure() -> None:
    os.environ["no_proxy"] = "127.0.0.1,localhost"
    # A shell's background job starts with SIGINT ignored, and so would every program that a test interrupts.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            folder, _, name = file.rpartition("/")
            return folder if folder.endswith("tests/server") and name in OF_ONE_SERVER else file

    return Files(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    # PyTorch and the like stay: the garbage collector need not look through them each time.
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the project; tests that want it are skipped where it is not."""
    folder = ROOT.parent / "shared"
    if not (folder / "reference").is_dir():
        pytest.skip("no reference data beside the project")
    return folder
