"""Helm, and where the tools for the chart's tests are."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm"
BIN = ROOT / ".toolchain/deploy/bin"
# helm built by `go install` takes itself for an old Kubernetes.
KUBERNETES = "--kube-version=1.34.0"


def fetch_tools() -> None:
    """Brings the tools; without Go the test is skipped, but not in continuous integration."""
    if not os.environ.get("CI") and shutil.which("go") is None and not BIN.is_dir():
        pytest.skip("no go on PATH for ci/deploy-tools")
    subprocess.run([ROOT / "ci/deploy-tools"], check=True)


def helm(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([BIN / "helm", *arguments], capture_output=True, text=True)


def set_options(values: dict[str, str]) -> list[str]:
    return [f"--set={name}={value}" for name, value in values.items()]
