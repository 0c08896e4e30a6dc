"""Without the plugin's toolchain its tests are skipped, and fail where `CI` is set."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from missing import missing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def without_compiler(tmp_path):
    for name in ("bash", "cat", "dirname", "realpath", "sha256sum"):
        (tmp_path / name).symlink_to(shutil.which(name))
    return {name: value for name, value in os.environ.items() if name != "CI"} | {"PATH": str(tmp_path)}


@pytest.mark.parametrize(
    ("ci", "code", "said"),
    [
        ({}, 0, "ci/plugin-tests: skipped: no g++ on PATH to build the plugin with\n"),
        ({"CI": "true"}, 1, "ci/plugin-tests: no g++ on PATH to build the plugin with\n"),
    ],
)
def test_plugin_tests_without_a_compiler(without_compiler, ci, code, said):
    command = [shutil.which("bash"), ROOT / "ci" / "plugin-tests"]
    done = subprocess.run(command, env=without_compiler | ci, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_missing_tool_is_a_failure_in_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no nvcc"):
        missing("no nvcc")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no nvcc"):
        missing("no nvcc")
