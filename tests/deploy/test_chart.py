"""The Helm chart: what it renders is valid, fits together, and refuses wrong values by name."""

import importlib
import json
import re
import subprocess

import pytest
import yaml
from chart import BIN, CHART, KUBERNETES, ROOT, SETS, helm, set_options

EVERY = pytest.mark.parametrize("values", SETS.values(), ids=SETS)


def named(manifests, kind, suffix=""):
    name = f"release-centernet-triton{suffix}"
    return next(one for one in manifests if one["kind"] == kind and one["metadata"]["name"] == name)


def server_pod(manifests):
    return named(manifests, "Deployment")["spec"]["template"]


def triton(manifests):
    return next(one for one in server_pod(manifests)["spec"]["containers"] if one["name"] == "triton")


def test_lint():
    done = helm("lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr


@EVERY
def test_manifests_are_valid(template, values):
    assert_valid(template(values))


def test_kserve_files_are_valid():
    assert_valid("\n---\n".join(path.read_text() for path in sorted((ROOT / "deploy/kserve").glob("*.yaml"))))


def assert_valid(text):
    location = BIN.parent / "schemas/{{.ResourceKind}}{{.KindSuffix}}.json"
    command = [BIN / "kubeconform", "-strict", "-summary", "-schema-location", location]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid: 0" not in done.stdout


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicaz": "3"}, "additional properties 'replicaz' not allowed"),
        ({"plan.precision": "fp8"}, "at '/plan/precision'"),
        ({"plan.batch": "32"}, "at '/plan/batch'"),
        ({"variant": "tpu"}, "at '/variant'"),
        ({"replicas": "-1"}, "at '/replicas'"),
        ({"model.source": "s3"}, "at '/model/s3/uri'"),
        ({"model.source": "s3", "model.s3.uri": "gs://bucket"}, "at '/model/s3/uri'"),
        ({"model.source": "image"}, "at '/model/image/reference'"),
        ({"model.volume.claim": ""}, "at '/model/volume/claim'"),
        ({"model.path": "/model.onnx"}, "at '/model/path'"),
        ({"plan.precision": "int8"}, "at '/plan/calibration'"),
        ({"route.enabled": "true"}, "at '/route/gateway'"),
        ({"web.enabled": "true"}, "at '/web/image'"),
        ({"gpu.count": "0"}, "at '/gpu/count'"),
        ({"sharedMemory": "2GB"}, "at '/sharedMemory'"),
        ({"resources.requests.memory": "lots"}, "at '/resources/requests/memory'"),
        ({"service.grpc": "80010"}, "at '/service/grpc'"),
        ({"server.extraArgs[0]": "log-verbose=1"}, "at '/server/extraArgs/0'"),
        ({"server.env[0].name": "X", "server.env[0].value": "1"}, "at '/server/env/0/value'"),
        ({"autoscaling.kind": "vpa"}, "at '/autoscaling/kind'"),
        ({"autoscaling.keda.prometheusUrl": "prometheus"}, "at '/autoscaling/keda/prometheusUrl'"),
        ({"monitoring.interval": "often"}, "at '/monitoring/interval'"),
        ({"autoscaling.kind": "hpa", "autoscaling.minReplicas": "9"}, "autoscaling.minReplicas: found 9"),
        ({"autoscaling.kind": "hpa", "autoscaling.minReplicas": "0"}, "at '/autoscaling/minReplicas'"),
        ({"autoscaling.kind": "keda", "autoscaling.minReplicas": "0"}, "at '/autoscaling/minReplicas'"),
        ({"fullnameOverride": "My_Name"}, "fullnameOverride (or the release's name): found My_Name"),
        ({"fullnameOverride": "1st"}, "fullnameOverride (or the release's name): found 1st"),
        ({"nameOverride": "a b"}, "at '/nameOverride'"),
        ({"service.http": "8001"}, "service.grpc: found 8001"),
        ({"web.port": "8001"}, "at '/web/port'"),
        ({"web.hosts[0]": "a b"}, "at '/web/hosts/0'"),
        ({"plan.batch": r"32\,8\,1"}, "plan.batch: found 32,8,1"),
        ({"plan.batch": r"1\,32\,8"}, "plan.batch: found 1,32,8"),
        ({"server.drain.delaySeconds": "600"}, "server.drain.timeoutSeconds: found 40"),
        ({"image.repository": "host:5000/name:tag"}, "at '/image/repository'"),
        ({"image.tag": "a b"}, "at '/image/tag'"),
        ({"envoy.image": ""}, "at '/envoy/image'"),
        ({"web.image": "Web Image"}, "at '/web/image'"),
        ({"image.pullSecrets[0].name": "My Secret"}, "at '/image/pullSecrets/0/name'"),
        ({"model.volume.claim": "My Claim"}, "at '/model/volume/claim'"),
        ({"gpu.resource": "memory"}, "at '/gpu/resource'"),
        ({r"podLabels.app\.kubernetes\.io/component": "x"}, "at '/podLabels/app.kubernetes.io~1component'"),
        ({r"monitoring.labels.helm\.sh/chart": "x"}, "at '/monitoring/labels/helm.sh~1chart'"),
        ({"monitoring.dashboard.label": "a b"}, "at '/monitoring/dashboard/label'"),
        ({"podLabels.team": "a b"}, "at '/podLabels/team'"),
        ({"topologySpread": "{zone,zone}"}, "at '/topologySpread'"),
        ({"podDisruptionBudget.maxUnavailable": "0%"}, "at '/podDisruptionBudget/maxUnavailable'"),
        ({"gpu": "null"}, "missing property 'gpu'"),
        ({"plan.cache": "null"}, "missing property 'cache'"),
        ({"server.drain.delaySeconds": "null"}, "missing property 'delaySeconds'"),
    ],
)
def test_wrong_values_are_refused_by_name(values, words):
    done = helm("template", "release", CHART, KUBERNETES, *set_options(values))
    assert done.returncode == 1
    assert words in done.stderr


def test_release_whose_name_starts_with_a_digit_needs_another():
    done = helm("template", "1st", CHART, KUBERNETES)
    assert "fullnameOverride (or the release's name): found 1st-centernet-triton" in done.stderr
    assert helm("template", "1st", CHART, KUBERNETES, "--set=fullnameOverride=first").returncode == 0


def test_words_that_yaml_reads_otherwise_stay_words(template):
    words = {
        "model.path": "a #b: c.onnx",
        "plan.precision": "int8",
        "plan.calibration": "a: b #c",
        "nameOverride": "true",
        "fullnameOverride": "null",
    }
    names = ("model.volume.claim", "serviceAccount.name", "priorityClassName", "gpu.runtimeClassName")
    more = ("plan.cache.existingClaim", "server.adminKeySecret", "route.gateway", "route.gatewayNamespace")
    on = {"route.enabled": "true", "envoy.enabled": "true"}
    words |= dict.fromkeys((*names, *more), "123")
    text = template(on, *set_options(words, "set-string"))
    assert_valid(text)
    assert text.count('/model/a #b: c.onnx"') == 2
    assert text.count('/model/a: b #c"') == 2


def test_values_without_a_default_may_be_null_and_others_not(template):
    """Helm takes a value that is null away."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def optional(schema, values, path=()):
        for name, value in values.items():
            if name not in schema.get("required", ()):
                yield ".".join((*path, name))
            elif isinstance(value, dict):
                yield from optional(schema["properties"][name], value, (*path, name))

    # Conditions of the schema ask for it.
    found = set(optional(schema, values)) - {"model.volume.claim"}
    assert {"nodeSelector", "server.env", "image.tag"} < found
    assert_valid(template(dict.fromkeys(found, "null")))


def test_every_value_of_the_schema_has_a_default():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def missing(schema, values, path=""):
        for name, sub in schema.get("properties", {}).items():
            if isinstance(values, dict) and name in values:
                yield from missing(sub, values[name], f"{path}.{name}")
            elif not isinstance(values, dict) or path:
                yield f"{path}.{name}"

    # Kubernetes' own quantities and helm's own names have no default.
    assert [one for one in missing(schema, values) if not re.search(r"resources\.|pullSecrets", one)] == []


@EVERY
def test_services_budgets_and_policies_reach_pods(manifests, values):
    found = manifests(values)
    pods = [one["spec"]["template"] for one in found if one["kind"] == "Deployment"]

    def chosen(selector):
        return [pod for pod in pods if selector.items() <= pod["metadata"]["labels"].items()]

    def ports(pod):
        return {port["name"] for one in pod["spec"]["containers"] for port in one.get("ports", [])}

    for one in found:
        if one["kind"] == "Service":
            (pod,) = chosen(one["spec"]["selector"])
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports(pod)
        if one["kind"] == "PodDisruptionBudget":
            assert len(chosen(one["spec"]["selector"]["matchLabels"])) == 1
        if one["kind"] == "NetworkPolicy":
            reached = chosen(one["spec"]["podSelector"]["matchLabels"])
            assert len(reached) == len(pods)
            named_ports = {port["port"] for rule in one["spec"]["ingress"] for port in rule["ports"]}
            assert named_ports <= set().union(*map(ports, reached))


@EVERY
def test_pods_are_not_root_and_write_only_to_volumes(manifests, values):
    for deployment in (one for one in manifests(values) if one["kind"] == "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, container["name"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
        mounted = {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}


def test_gpu_is_asked_for_where_one_is_used(manifests):
    assert triton(manifests({"gpu.count": "2"}))["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert "nvidia.com/gpu" not in triton(manifests(SETS["cpu"]))["resources"]["limits"]


def test_stop_leaves_time_to_drain(manifests):
    found = manifests({"server.drain.timeoutSeconds": "300"})
    assert server_pod(found)["spec"]["terminationGracePeriodSeconds"] > 300


def test_autoscalers_follow_the_recorded_queue_time(manifests):
    rules = yaml.safe_load((CHART / "files/rules.yaml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    found = manifests(SETS["cpu"])
    assert "replicas" not in named(found, "Deployment")["spec"]
    (metric,) = named(found, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in recorded
    assert metric["pods"]["target"]["averageValue"] == "50m"  # 50 ms in seconds, as the rule has them
    (trigger,) = named(manifests(SETS["s3-keda"]), "ScaledObject")["spec"]["triggers"]
    assert re.match(r"sum\((\w+)\{", trigger["metadata"]["query"]).group(1) in recorded
    assert trigger["metadata"]["threshold"] == "0.05"


def test_rules_and_dashboard_are_the_files(manifests):
    found = manifests(SETS["s3-keda"])
    assert named(found, "PrometheusRule")["spec"] == yaml.safe_load((CHART / "files/rules.yaml").read_text())
    (dashboard,) = named(found, "ConfigMap", "-dashboard")["data"].values()
    assert json.loads(dashboard) == json.loads((CHART / "files/dashboard.json").read_text())


@EVERY
def test_container_is_spoken_to_in_its_own_words(manifests, monkeypatch, values):
    found = manifests(values)
    entrypoint = (ROOT / "ci/container/entrypoint.py").read_text()
    for variable in triton(found)["env"]:
        assert f'"{variable["name"]}"' in entrypoint
    prepare = next(one for one in server_pod(found)["spec"]["initContainers"] if one["name"] == "prepare")
    monkeypatch.syspath_prepend(ROOT / "ci/container")
    options = importlib.import_module("prepare").parse(prepare["args"])
    assert options.variant == values.get("variant", "tensorrt")
    if options.variant == "tensorrt":
        env = {variable["name"]: variable.get("value") for variable in triton(found)["env"]}
        asked = (options.precision, options.batch, options.calibration)
        assert asked == (env["PRECISION"], env["BATCH"], env.get("CALIBRATION"))
    assert str(options.into) == "/opt/centernet/model_repository/centernet_network/1"
    assert str(options.model) == "/model/model.onnx"
    dockerfile = (ROOT / "Dockerfile.triton").read_text()
    assert "ci/container/prepare.py" in dockerfile
    assert prepare["command"][1] == "/opt/centernet/ci/container/prepare.py"


def test_chart_is_of_the_release_that_the_image_has():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == json.loads((ROOT / "versions.json").read_text())["triton"]


def test_rules_find_each_trouble():
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "rules.test.yaml"]):
        done = subprocess.run(
            [BIN / "promtool", *arguments], cwd=CHART / "files", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
