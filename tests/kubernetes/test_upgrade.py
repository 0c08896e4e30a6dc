"""What `helm upgrade` and `helm rollback` do to servers that run."""

import pytest
from api import RefusedError, say
from chart import CHART
from node import Pretended
from release import FULL, PLANS

pytestmark = pytest.mark.kubernetes
REPLICAS = 2


def test_upgrade(release, node):
    """With one GPU to spare, as deploy/README.md asks for."""
    broken = "broken"
    node(REPLICAS + 1, Pretended(works=lambda pod: not images(pod)[0].endswith(broken)))
    release.install({"replicas": str(REPLICAS)})
    release.wait_for(lambda: release.settled, "installed")
    plans = release.get("api/v1", "persistentvolumeclaims", PLANS)["metadata"]["uid"]

    release.upgrade({"replicas": str(REPLICAS), "image.tag": "next"})
    least = least_available(release, lambda: release.settled, "rolled over")
    assert least == REPLICAS
    assert {image for pod in release.pods for image in images(pod)} == {"centernet-triton:next"}
    say(f"new image: never fewer than {least} servers available")

    # What does not concern the pods does not touch them.
    before = names(release)
    release.upgrade({"image.tag": "next", "monitoring.rules.enabled": "true"})
    assert release.settled
    assert names(release) == before

    refused = release.helm("upgrade", CHART, "--set=plan.precision=fp8", f"--set=image.tag={broken}")
    assert refused.returncode == 1
    assert "at '/plan/precision'" in refused.stderr
    assert release.settled
    assert names(release) == before
    # Only the API server knows that a claim never shrinks. Helm goes on with the rest without --atomic.
    wrong = ("--set=plan.cache.size=1Gi", f"--set=image.tag={broken}")
    refused = release.helm("upgrade", CHART, *wrong, "--atomic", "--timeout=3m")
    assert refused.returncode == 1
    assert "less than status.capacity" in refused.stderr
    release.wait_for(lambda: release.settled, "put back")
    assert names(release) == before
    say("wrong values: refused, nothing changed")

    release.upgrade({"replicas": str(REPLICAS), "image.tag": broken})
    stuck = release.wait_for(
        lambda: [pod for pod in release.pods if images(pod)[0].endswith(broken)], "the broken image is tried"
    )
    assert len(stuck) == 1
    least = least_available(release, lambda: release.server["status"].get("updatedReplicas") == 1, "tried")
    release.rollback(3)
    least = min(least, least_available(release, lambda: release.settled, "rolled back"))
    assert least == REPLICAS
    assert names(release) == before
    say("broken image: the old servers stayed; rolled back")

    assert release.get("api/v1", "persistentvolumeclaims", PLANS)["metadata"]["uid"] == plans
    release.uninstall()
    release.wait_for(lambda: not release.objects, "nothing is left")


def test_plan_cache_stays_when_it_is_not_the_charts(release, node):
    node(REPLICAS)
    release.install({"plan.cache.existingClaim": "plans"})
    release.wait_for(lambda: release.settled, "installed")
    release.uninstall()
    release.wait_for(lambda: not release.objects, "nothing is left")
    assert release.get("api/v1", "persistentvolumeclaims", "plans")["status"]["phase"] == "Bound"


def test_budget_lets_one_server_go_at_a_time(release, node):
    node(REPLICAS)
    release.install({"replicas": str(REPLICAS)})
    release.wait_for(lambda: release.settled, "installed")
    budget = ("apis/policy/v1", "poddisruptionbudgets", FULL)
    release.wait_for(
        lambda: release.get(*budget)["status"].get("disruptionsAllowed") == 1, "the budget is known"
    )
    first, second = names(release)
    evict(release, first)
    with pytest.raises(RefusedError, match="disruption budget"):
        evict(release, second)
    release.wait_for(lambda: release.settled, "the evicted one is replaced")


def test_autoscaler_keeps_its_number(release, node):
    node(4)
    release.install({"replicas": "3"})
    release.wait_for(lambda: release.settled, "installed")
    scaled = {"autoscaling.kind": "hpa", "autoscaling.minReplicas": "2"}
    release.upgrade(scaled)
    # Helm takes `replicas` away, which means 1 to Kubernetes, until the autoscaler looks.
    release.wait_for(lambda: release.server["spec"]["replicas"] == 2, "the autoscaler has taken over")
    # As the autoscaler does; without metrics it leaves the number alone.
    path = f"/apis/apps/v1/namespaces/{release.namespace}/deployments/{FULL}/scale"
    release.cluster.api.merge(path, {"spec": {"replicas": 3}})
    release.wait_for(lambda: release.settled, "scaled")
    release.upgrade(scaled | {"image.tag": "next"})
    assert release.server["spec"]["replicas"] == 3
    assert least_available(release, lambda: release.settled, "rolled over") == 3


def least_available(release, done, what):
    """The smallest number of servers that took requests while something happened."""
    seen = []

    def look():
        finished, server = done(), release.server
        seen.append(server["status"].get("availableReplicas", 0))
        assert server["status"]["replicas"] <= server["spec"]["replicas"] + 1
        return finished

    release.wait_for(look, what)
    return min(seen)


def evict(release, name):
    path = f"/api/v1/namespaces/{release.namespace}/pods/{name}/eviction"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    release.cluster.api.ask("POST", path, eviction)


def images(pod):
    return [container["image"] for container in pod["spec"]["containers"]]


def names(release):
    return sorted(pod["metadata"]["name"] for pod in release.pods)
