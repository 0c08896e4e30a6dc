"""The chart's objects are accepted by a real API server, run where they should, and leave no trace."""

import chart
import pytest
import yaml
from api import say
from cluster import ROOT
from release import PLANS

pytestmark = pytest.mark.kubernetes


@pytest.mark.parametrize("values", chart.SETS.values(), ids=chart.SETS)
def test_install(release, node, values):
    node(gpus=8)
    node(gpus=0)
    release.install(values)
    # Scheduled: GPUs, tolerations and volumes are found; admitted: by the security standard.
    release.wait_for(lambda: release.settled, "all pods are ready")
    for service in release.list("api/v1", "services"):
        release.wait_for(
            lambda name=service["metadata"]["name"]: reached(release, name), "its pods are reached"
        )
    kinds = sorted({thing["kind"] for thing in release.manifests})
    say(f"{len(release.manifests)} objects, {len(release.pods)} servers: {', '.join(kinds)}")
    release.uninstall()
    release.wait_for(lambda: not release.objects, "nothing is left")


def reached(release, service):
    slices = release.list(
        "apis/discovery.k8s.io/v1", "endpointslices", labelSelector=f"kubernetes.io/service-name={service}"
    )
    endpoints = [one for part in slices for one in part["endpoints"] or [] if one["conditions"]["ready"]]
    ports = [port for part in slices for port in part["ports"] or []]
    (found,) = (one for one in release.list("api/v1", "services") if one["metadata"]["name"] == service)
    return endpoints and len(ports) == len(found["spec"]["ports"])


def test_kserve_objects_are_accepted(cluster, release):
    for path in sorted((ROOT / "deploy/kserve").glob("*.yaml"), reverse=True):
        cluster.api.create(yaml.safe_load(path.read_text(encoding="utf-8")), release.namespace)


def test_pods_need_a_gpu_and_the_plan_cache(release, node):
    node(gpus=1)
    release.install({"replicas": "2"})
    release.wait_for(
        lambda: release.server["status"].get("availableReplicas") == 1, "one pod has the only GPU"
    )
    waiting = release.wait_for(
        lambda: [pod for pod in release.pods if unscheduled(pod)], "the other one waits"
    )
    assert "Insufficient nvidia.com/gpu" in unscheduled(waiting[0])
    assert release.get("api/v1", "persistentvolumeclaims", PLANS)["status"]["phase"] == "Bound"


def unscheduled(pod):
    """Why the scheduler found no node."""
    conditions = pod["status"].get("conditions", [])
    return next((one["message"] for one in conditions if one.get("reason") == "Unschedulable"), "")
