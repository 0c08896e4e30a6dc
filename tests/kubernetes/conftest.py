"""One control plane for the session; each test has a namespace and a node of its own."""

import itertools
from collections.abc import Callable, Iterator

import cluster as control_plane
import pytest
import yaml
from api import say, wait_for
from cluster import BIN, DEFINITIONS, Cluster
from node import Containers, Node, Pretended
from release import Release

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane that knows the custom resources."""
    if not BIN.is_dir():
        pytest.skip("no .toolchain/kubernetes: run ci/kubernetes")
    with control_plane.running(tmp_path_factory.mktemp("cluster")) as running:
        for path in DEFINITIONS.glob("*.yaml"):
            definition = yaml.safe_load(path.read_text(encoding="utf-8"))
            running.api.create(definition)
            wait_for(lambda definition=definition: running.api.knows(definition), f"{path.name} is known")
        # Of the set of values that names it.
        nvidia = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}}
        running.api.create({**nvidia, "handler": "nvidia"})
        say(f"Kubernetes {running.api.get('/version')['gitVersion']} without a kubelet")
        yield running


@pytest.fixture
def release(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A release that is not installed yet; its pods go with the test."""
    name = request.node.name.removeprefix("test_").replace("_", "-").replace("[", "-").rstrip("]")
    release = Release(cluster, name)
    release.prepare()
    yield release
    release.helm("uninstall", "--ignore-not-found")


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Callable[..., None]]:
    """`node(gpus, containers)` adds a node, on which nothing runs unless the containers say so."""
    nodes = []

    def add(gpus: int, containers: Containers | None = None) -> None:
        # No name comes twice: a new node would get an old one's last pods.
        nodes.append(Node(cluster.api, f"node-{next(NUMBERS)}", gpus, containers or Pretended()))

    yield add
    for one in nodes:
        one.close()
