"""Helm, sets of values for the chart, and where the tools for its tests are."""

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
# What users choose between; every value with a branch of its own in the templates is in one of them.
SETS = {
    "defaults": {},
    "cpu": {
        "variant": "cpu",
        "autoscaling.kind": "hpa",
        "monitoring.monitor": "pod",
        "networkPolicy.enabled": "false",
    },
    "s3-keda": {
        "model.source": "s3",
        "model.s3.uri": "s3://models/centernet",
        "model.s3.endpoint": "https://minio.local:9000",
        "model.s3.credentialsSecret": "s3",
        "autoscaling.kind": "keda",
        "monitoring.monitor": "service",
        "monitoring.rules.enabled": "true",
        "monitoring.dashboard.enabled": "true",
        "server.adminKeySecret": "admin",
    },
    "image-cuda-route": {
        "variant": "cuda",
        "model.source": "image",
        "model.image.reference": "registry.local/network:1",
        "route.enabled": "true",
        "route.gateway": "gateway",
        "route.gatewayNamespace": "infra",
        "route.hostnames[0]": "detect.example.org",
        "serviceAccount.name": "reader",
    },
    "int8-envoy-web": {
        "plan.precision": "int8",
        "plan.calibration": "pictures",
        "plan.cache.existingClaim": "plans",
        "envoy.enabled": "true",
        "web.enabled": "true",
        "web.image": "centernet-web:1",
        "gpu.count": "2",
        "gpu.runtimeClassName": "nvidia",
        "image.pullSecrets[0].name": "registry",
        "service.type": "LoadBalancer",
    },
}


def fetch_tools() -> None:
    """Brings the tools; without Go the test is skipped, but not in continuous integration."""
    if not os.environ.get("CI") and shutil.which("go") is None and not BIN.is_dir():
        pytest.skip("no go on PATH for ci/deploy-tools")
    subprocess.run([ROOT / "ci/deploy-tools"], check=True)


def helm(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([BIN / "helm", *arguments], capture_output=True, text=True)


def set_options(values: dict[str, str], option: str = "set") -> list[str]:
    return [f"--{option}={name}={value}" for name, value in values.items()]
