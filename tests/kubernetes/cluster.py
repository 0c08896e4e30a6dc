"""A real control plane on the loopback: etcd, API server, controllers and scheduler; no kubelet."""

import json
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from api import Api, RefusedError, wait_for

from server.launcher import HOST, free_ports, stop

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".toolchain/kubernetes"
DEFINITIONS = ROOT / ".toolchain/deploy/definitions"


@dataclass(frozen=True)
class Cluster:
    """A running control plane.

    Attributes:
        api: Its API server.
        kubeconfig: File for programs that ask the API server.
        certificate: Of all that listens here; its key lies beside it (`.key`).
    """

    api: Api
    kubeconfig: Path
    certificate: Path


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Starts the control plane; logs and data lie in `folder`."""
    certificate = _make_certificate(folder)
    etcd, peers, port = free_ports(3)
    url, token = f"https://{HOST}:{port}", secrets.token_hex(16)
    api = Api(url, token, certificate)
    kubeconfig = _write_kubeconfig(folder, url, token, certificate)
    with ExitStack() as stack:

        def start(name: str, *options: str) -> subprocess.Popen:
            return stack.enter_context(_process(folder / f"{name}.log", BIN / name, *options))

        def alive(process: subprocess.Popen) -> None:
            assert process.poll() is None, f"{process.args[0]} has ended; its log is in {folder}"

        started = [
            start("etcd", *_etcd_options(folder, etcd, peers)),
            start("kube-apiserver", *_api_options(folder, etcd, port, token, certificate)),
        ]

        def ready() -> bool:
            for process in started:
                alive(process)
            try:
                return api.get("/readyz") == "ok"
            except (requests.RequestException, RefusedError):
                return False

        wait_for(ready, f"the API server is ready; see {folder}")
        common = (f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0")
        start("kube-controller-manager", *common, *_controller_options(certificate))
        start("kube-scheduler", *common)
        yield Cluster(api, kubeconfig, certificate)


@contextmanager
def _process(log: Path, *command: str | Path) -> Iterator[subprocess.Popen]:
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        stop(process, timeout_s=10)


def _etcd_options(folder: Path, port: int, peers: int) -> list[str]:
    clients, others = f"http://{HOST}:{port}", f"http://{HOST}:{peers}"
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={others}",
        f"--initial-advertise-peer-urls={others}",
        f"--initial-cluster=default={others}",
    ]


def _api_options(folder: Path, etcd: int, port: int, token: str, certificate: Path) -> list[str]:
    tokens = folder / "tokens.csv"
    tokens.touch(mode=0o600)
    tokens.write_text(f'{token},admin,admin,"system:masters"\n', encoding="utf-8")
    key = certificate.with_suffix(".key")
    return [
        f"--etcd-servers=http://{HOST}:{etcd}",
        f"--bind-address={HOST}",
        f"--secure-port={port}",
        f"--tls-cert-file={certificate}",
        f"--tls-private-key-file={key}",
        f"--token-auth-file={tokens}",
        "--authorization-mode=RBAC",
        "--anonymous-auth=false",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.96.0.0/16",
        # The service "kubernetes" would need an address that is not this machine's own.
        "--endpoint-reconciler-type=none",
        # Of the set of values whose model is an OCI image: off by default before 1.35.
        "--feature-gates=ImageVolume=true",
    ]


def _controller_options(certificate: Path) -> list[str]:
    return [
        # Nobody renews the node's heartbeat.
        "--controllers=*,-node-lifecycle-controller",
        f"--root-ca-file={certificate}",
        f"--service-account-private-key-file={certificate.with_suffix('.key')}",
        "--horizontal-pod-autoscaler-sync-period=5s",
    ]


def _make_certificate(folder: Path) -> Path:
    certificate = folder / "loopback.crt"
    names = f"subjectAltName=IP:{HOST},DNS:localhost,DNS:metrics.default.svc"
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=loopback"),
        *("-addext", names, "-keyout", certificate.with_suffix(".key"), "-out", certificate),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return certificate


def _write_kubeconfig(folder: Path, url: str, token: str, certificate: Path) -> Path:
    path = folder / "kubeconfig"
    path.touch(mode=0o600)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(certificate)}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
    path.write_text(json.dumps(config), encoding="utf-8")
    return path
