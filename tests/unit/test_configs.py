"""Every config.pbtxt against the contract."""

import re
from pathlib import Path

import pytest
from centernet_image import contract
from centernet_image.decode import Limits
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.soak import places

DOCKERFILE = (Path(__file__).parents[2] / "Dockerfile.triton").read_text()
REPOSITORY = Path(__file__).parents[2] / "model_repository"
CPU, CUDA = (f"centernet_network/configs/{name}.pbtxt" for name in ("cpu", "cuda"))
CONFIGS = [*(f"{name}/config.pbtxt" for name in contract.MODELS), CPU, CUDA]
ENSEMBLES = ("centernet", "centernet_frames")
CALLBACKS = 16
"""Answers on their way between two steps: in Triton's 8 threads for that, and as many waiting for one."""


def read(path):
    return text_format.Parse((REPOSITORY / path).read_text(), model_config_pb2.ModelConfig())


def tensors(fields):
    return [(f.name, model_config_pb2.DataType.Name(f.data_type), tuple(f.dims)) for f in fields]


def expected(contract_tensors):
    return [(t.name, f"TYPE_{t.dtype}", t.shape) for t in contract_tensors]


def with_mps():
    """The preprocess model's, which the Dockerfile makes for MPS."""
    (pattern, new) = re.search(r"&& sed 's/(.*)/(.*)/' config.pbtxt > configs/mps", DOCKERFILE).groups()
    text, changed = re.subn(pattern, new, (REPOSITORY / "centernet_preprocess/config.pbtxt").read_text())
    assert changed == 1
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_mps_has_more_preprocess_processes_and_changes_nothing_else():
    plain, changed = read("centernet_preprocess/config.pbtxt"), with_mps()
    assert [group.count for group in changed.instance_group] == [5]
    assert "kind: KIND_AUTO count: 5 }" in (REPOSITORY.parent / "ci/gpu/serving").read_text()
    changed.instance_group[0].count = plain.instance_group[0].count
    assert changed == plain


def test_every_configuration_is_covered():
    assert {str(p.relative_to(REPOSITORY)) for p in REPOSITORY.rglob("*.pbtxt")} == set(CONFIGS)


@pytest.mark.parametrize("path", CONFIGS)
def test_name_batch_and_tensors(path):
    config = read(path)
    name = path.split("/")[0]
    assert config.name == name
    assert config.max_batch_size == 32
    # The network's are completed from its file, which has the frame's size.
    inputs, outputs = ((), ()) if name == "centernet_network" else contract.MODELS[name]
    assert tensors(config.input) == expected(inputs)
    assert tensors(config.output) == expected(outputs)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensembles_connect_every_tensor(name):
    inputs, outputs = contract.MODELS[name]
    types = {t.name: t.dtype for t in inputs}
    for step in read(f"{name}/config.pbtxt").ensemble_scheduling.step:
        step_inputs, step_outputs = contract.MODELS[step.model_name]
        assert dict(step.input_map) == {t.name: t.name for t in step_inputs}
        if step.model_name == "centernet_network":
            step_outputs = (contract.PEAKS,)
        assert dict(step.output_map) == {t.name: t.name for t in step_outputs}
        assert all(types[t.name] == t.dtype for t in step_inputs)
        types |= {t.name: t.dtype for t in step_outputs}
    assert all(types[t.name] == t.dtype for t in outputs)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.split("/")[0] not in ENSEMBLES])
def test_queues_are_bounded_in_length_and_time(path):
    config = read(path)
    assert config.HasField("dynamic_batching")
    policy = config.dynamic_batching.default_queue_policy
    assert 0 < policy.max_queue_size <= 1024
    assert 0 < policy.default_timeout_microseconds <= 60_000_000
    assert policy.timeout_action == policy.REJECT
    assert all(group.count > 0 for group in config.instance_group)
    assert config.instance_group


def test_network_variants():
    assert read("centernet_network/config.pbtxt").platform == "tensorrt_plan"
    assert read(CPU).backend == read(CUDA).backend == "onnxruntime"
    assert [group.kind for group in read(CUDA).instance_group] == [
        model_config_pb2.ModelInstanceGroup.KIND_GPU
    ]


@pytest.mark.parametrize("name", ENSEMBLES)
@pytest.mark.parametrize("network", ["centernet_network/config.pbtxt", CUDA])
def test_limit_of_a_step_is_never_what_closes_the_door(name, network):
    """Triton waits for a place in a step in the thread that asks: for the first step, in its front end."""
    steps = in_container(name).ensemble_scheduling
    first, second = (step.model_name for step in steps.step)
    assert second == "centernet_postprocess"
    door = read(network) if first == "centernet_network" else with_mps()
    assert places(door) + CALLBACKS <= steps.max_inflight_requests


@pytest.mark.parametrize("network", ["centernet_network/config.pbtxt", CPU, CUDA])
def test_network_has_a_place_for_all_that_is_decoded(network):
    """Each process that decodes asks for one batch at a time; frames of other clients leave it room."""
    decoding = sum(group.count for group in with_mps().instance_group)
    assert decoding <= read(network).dynamic_batching.default_queue_policy.max_queue_size / 4


def in_container(name):
    """The configuration after the change that the Dockerfile makes to it."""
    (pattern, new) = re.search(
        r"^RUN sed -i 's/(.*)/(.*)/' model_repository", DOCKERFILE, re.MULTILINE
    ).groups()
    text = re.sub(
        pattern.replace("\\(", "(").replace("\\)", ")"), new, (REPOSITORY / name / "config.pbtxt").read_text()
    )
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("name", ENSEMBLES)
def test_no_field_is_too_new_for_the_server_of_the_environment(name):
    assert not read(f"{name}/config.pbtxt").ensemble_scheduling.max_inflight_requests


def test_parameters_are_the_codes_defaults():
    parameters = read("centernet_preprocess/config.pbtxt").parameters
    values = {name: value.string_value for name, value in parameters.items()}
    assert (values.pop("device"), values.pop("check_scans")) == ("auto", "on")
    assert Limits(**{name: int(value) for name, value in values.items()}) == Limits()
    threshold = read("centernet_postprocess/config.pbtxt").parameters["score_threshold"]
    assert float(threshold.string_value) == contract.SCORE_THRESHOLD
