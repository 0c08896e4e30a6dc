"""A stand-in for the kubelet: it reports a node with GPUs, and the pods on it, but has no container runtime.

In a pod runs nothing at all (`Pretended`), or a real server in the place of Triton's container (`Tritons`).
"""

import itertools
import secrets
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from api import Api, Object, RefusedError

from server import launcher

STATUS = "application/strategic-merge-patch+json"
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


class Containers(Protocol):
    """What runs in a node's pods."""

    def start(self, pod: Object) -> str:
        """Starts the pod's containers; returns the pod's address."""

    def ready(self, pod: Object) -> bool: ...

    def stop(self, pod: Object) -> None: ...


@dataclass
class Pretended:
    """Nothing runs: pods are ready when the test says so.

    Attributes:
        works: Whether a pod gets ready.
    """

    works: Callable[[Object], bool] = lambda pod: True
    # Addresses for documentation (RFC 5737): EndpointSlices take none of the loopback.
    _addresses: itertools.count = field(default_factory=lambda: itertools.count(1))

    def start(self, pod: Object) -> str:
        return f"192.0.2.{next(self._addresses) % 250 + 1}"

    def ready(self, pod: Object) -> bool:
        return self.works(pod)

    def stop(self, pod: Object) -> None:
        pass


class Tritons:
    """A real CPU server for each pod, with the arguments, ports and readiness probe that the pod says.

    Each pod has an address of its own within 127.0.0.0/8, so that its ports are those of the chart.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        self.servers: dict[str, launcher.Server] = {}
        self._repository, self._folder = repository, folder
        # Another run on this machine has other ones.
        network = f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(256)}"
        self._addresses = (f"{network}.{last}" for last in range(1, 255))

    def start(self, pod: Object) -> str:
        address, container = next(self._addresses), _triton(pod)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        name = pod["metadata"]["name"]
        self.servers[name] = launcher.launch(
            self._repository,
            *container["args"],
            host=address,
            ports=[ports[service] for service in launcher.SERVICES],
            log=self._folder / f"{name}.log",
        )
        return address

    def ready(self, pod: Object) -> bool:
        server, probe = self.servers[pod["metadata"]["name"]], _triton(pod)["readinessProbe"]
        assert probe["httpGet"]["port"] == "http"
        try:
            with urllib.request.urlopen(f"http://{server.http_url}{probe['httpGet']['path']}", timeout=2):
                return True
        except OSError:
            return False

    def stop(self, pod: Object) -> None:
        launcher.stop(self.servers.pop(pod["metadata"]["name"]).process, timeout_s=40)


@dataclass
class _Running:
    pod: Object
    address: str
    reported: Object | None = None


class Node:
    """The node and its pods, of all namespaces.

    Args:
        api: Where it reports to.
        gpus: That it has.
    """

    def __init__(self, api: Api, name: str, gpus: int, containers: Containers) -> None:
        self._api, self._name, self._containers = api, name, containers
        self._running: dict[str, _Running] = {}
        self._closed = threading.Event()
        self._register(gpus)
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def close(self) -> None:
        """Ends all containers and takes the node away."""
        self._closed.set()
        self._thread.join()
        for one in self._running.values():
            self._containers.stop(one.pod)
        self._api.ask("DELETE", f"/api/v1/nodes/{self._name}")

    def _register(self, gpus: int) -> None:
        path = f"/api/v1/nodes/{self._name}"
        labels = {"kubernetes.io/hostname": self._name, "topology.kubernetes.io/zone": "here"}
        self._api.create(
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self._name, "labels": labels}}
        )
        size = {"cpu": "256", "memory": "1Ti", "pods": "100", "nvidia.com/gpu": str(gpus)}
        ready = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
        self._report(path, {"capacity": size, "allocatable": size, "conditions": ready})
        # Nodes begin as not ready; GPU nodes are kept free of other pods.
        self._api.merge(path, {"spec": {"taints": [GPU_TAINT] if gpus else []}})

    def _keep(self) -> None:
        while not self._closed.wait(0.3):
            pods = self._api.items("/api/v1/pods", fieldSelector=f"spec.nodeName={self._name}")
            for pod in pods:
                try:
                    self._keep_pod(pod)
                except RefusedError as error:
                    if error.status not in (404, 409):  # gone or changed meanwhile
                        raise

    def _keep_pod(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        if "deletionTimestamp" in pod["metadata"]:
            if uid in self._running:
                self._containers.stop(self._running.pop(uid).pod)
            self._api.ask("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})
            return
        if uid not in self._running:
            self._running[uid] = _Running(pod, self._containers.start(pod))
        one = self._running[uid]
        status = _status(pod, one.address, ready=self._containers.ready(pod))
        if status != one.reported:
            self._report(path, status)
            one.reported = status

    def _report(self, path: str, status: Object) -> None:
        self._api.ask("PATCH", f"{path}/status", {"status": status}, media=STATUS)


def _triton(pod: Object) -> Object:
    return next(one for one in pod["spec"]["containers"] if one["name"] == "triton")


def is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _status(pod: Object, address: str, *, ready: bool) -> Object:
    conditions = {"Initialized": True, "ContainersReady": ready, "Ready": ready}
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": name, "status": str(value)} for name, value in conditions.items()],
        "containerStatuses": [
            {
                "name": one["name"],
                "image": one["image"],
                "imageID": "",
                "ready": ready,
                "restartCount": 0,
                "state": {"running": {}},
            }
            for one in pod["spec"]["containers"]
        ],
    }
