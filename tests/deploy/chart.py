"""Helm, and where the tools for the chart's tests are."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm"
BIN = ROOT / ".toolchain/deploy/bin"
# helm built by `go install` takes itself for an old Kubernetes.
KUBERNETES = "--kube-version=1.34.0"


def helm(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([BIN / "helm", *arguments], capture_output=True, text=True)


def set_options(values: dict[str, str]) -> list[str]:
    return [f"--set={name}={value}" for name, value in values.items()]
