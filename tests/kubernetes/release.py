"""A release of the chart in a namespace of its own."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import chart
import yaml
from api import Found, Object, wait_for
from cluster import Cluster

NAME = "release"
FULL = f"{NAME}-centernet-triton"
MODEL, PLANS, OWN_PLANS = "centernet-model", f"{FULL}-plans", "plans"
"""The claims of the model, of the chart's plan cache, and of a plan cache that was there before."""
ACCOUNT = "reader"


@dataclass(frozen=True)
class Release:
    """Helm's commands on the release, and what the cluster has of it."""

    cluster: Cluster
    namespace: str

    def prepare(self) -> None:
        """Makes the namespace, which takes only pods of the standard "restricted", and what values name."""
        metadata = {"name": self.namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
        self.cluster.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        for claim in (MODEL, PLANS, OWN_PLANS):
            self.cluster.api.create(_volume(self.namespace, claim))
        for claim in (MODEL, OWN_PLANS):
            self.cluster.api.create(_claim(claim), self.namespace)
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}}
        self.cluster.api.create(account, self.namespace)

    def helm(self, command: str, *options: str | Path) -> subprocess.CompletedProcess:
        where = (f"--namespace={self.namespace}", f"--kubeconfig={self.cluster.kubeconfig}")
        return chart.helm(*command.split(), NAME, *options, *where)

    def install(self, values: dict[str, str]) -> None:
        self._succeed("install", str(chart.CHART), *chart.set_options(values))

    def upgrade(self, values: dict[str, str]) -> None:
        self._succeed("upgrade", str(chart.CHART), *chart.set_options(values))

    def rollback(self, revision: int) -> None:
        self._succeed("rollback", str(revision))

    def uninstall(self) -> None:
        self._succeed("uninstall")

    @property
    def manifests(self) -> list[Object]:
        return list(filter(None, yaml.safe_load_all(self._succeed("get manifest"))))

    @property
    def objects(self) -> set[tuple[str, str]]:
        """Kind and name of what is in the namespace beside what `prepare` put there."""
        claims = {("PersistentVolumeClaim", name) for name in (MODEL, OWN_PLANS)}
        return self.cluster.api.objects(self.namespace) - claims - {("ServiceAccount", ACCOUNT)}

    @property
    def server(self) -> Object:
        return self.get("apis/apps/v1", "deployments", FULL)

    @property
    def pods(self) -> list[Object]:
        """The servers' pods, without those that are told to stop."""
        pods = self.list("api/v1", "pods", labelSelector="app.kubernetes.io/component=server")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def wait_for(self, found: Callable[[], Found], what: str, *, timeout_s: float = 120) -> Found:
        """As `api.wait_for`; a failure tells what Kubernetes complains of."""
        try:
            return wait_for(found, what, timeout_s=timeout_s)
        except AssertionError as error:
            warnings = self.list("api/v1", "events", fieldSelector="type=Warning")
            lines = [f"{one['involvedObject']['name']}: {one['message']}" for one in warnings]
            raise AssertionError("\n".join([str(error), *lines])) from None

    def get(self, api: str, plural: str, name: str) -> Object:
        return self.cluster.api.get(f"/{api}/namespaces/{self.namespace}/{plural}/{name}")

    def list(self, api: str, plural: str, **query: str) -> list[Object]:
        return self.cluster.api.items(f"/{api}/namespaces/{self.namespace}/{plural}", **query)

    @property
    def settled(self) -> bool:
        """Every deployment has all the pods that it wants, all new and ready, and none more."""
        return all(map(_is_settled, self.list("apis/apps/v1", "deployments")))

    def _succeed(self, command: str, *options: str) -> str:
        done = self.helm(command, *options)
        assert done.returncode == 0, done.stderr
        # The API server's words, for example about a field that it does not know.
        assert "arning" not in done.stderr, done.stderr
        return done.stdout


def _is_settled(deployment: Object) -> bool:
    status = deployment.get("status", {})
    counts = {status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")}
    observed = status.get("observedGeneration") == deployment["metadata"]["generation"]
    return observed and counts == {deployment["spec"]["replicas"]}


def _volume(namespace: str, claim: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{claim}"},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteMany"],
            "claimRef": {"namespace": namespace, "name": claim},
            "nfs": {"server": "nfs.example.org", "path": f"/{claim}"},
        },
    }


def _claim(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}},
    }
