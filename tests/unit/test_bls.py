"""What becomes of an error that the network answered to the model that asked it: its status, by its words."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SOURCE = Path(__file__).parents[2] / "model_repository/centernet_preprocess/1/centernet_image/bls.py"


@pytest.fixture
def bls(monkeypatch):
    """The module, with a stand-in for Triton's."""
    codes = SimpleNamespace(INVALID_ARG="invalid", UNAVAILABLE="unavailable", INTERNAL="internal")
    triton = SimpleNamespace(TritonError=codes)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    spec = importlib.util.spec_from_file_location("bls", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("Model a_preprocess - Error when running inference: image: found no picture", "invalid"),
        ("Model a_network - Error when running inference: Exceeds maximum queue size", "unavailable"),
        ("Request timeout expired", "unavailable"),
        ("Model a_network - Error when running inference: Server not ready", "unavailable"),
        ("Failed for execute the inference request. Model 'a_network' is not ready.", "unavailable"),
        ("Server is stopping, scheduler for model has stopped accepting new requests", "unavailable"),
        ("Request for unknown model: 'a_network' is not at ready state", "unavailable"),
        ("Request for unknown model: 'a_network' has no available versions", "unavailable"),
        ("Stub process 'a_network_0_0' is not healthy.", "internal"),
        ("CUDA error: out of memory", "internal"),
    ],
)
def test_status_of_an_error(bls, words, code):
    assert bls.FailedError(words).code == code


def test_an_error_is_raised_and_tensors_are_in_order(bls, monkeypatch):
    failed = SimpleNamespace(has_error=lambda: True, error=lambda: SimpleNamespace(message=lambda: "why"))
    answered = SimpleNamespace(has_error=lambda: False, held={"a": 1, "b": 2})
    answers = {"failing": failed, "network": answered}
    for name, stand_in in {
        "TRITONSERVER_MEMORY_CPU": 0,
        "PreferredMemory": lambda *_: None,
        "InferenceRequest": lambda model_name, **_: SimpleNamespace(exec=lambda: answers[model_name]),
        "get_output_tensor_by_name": lambda response, name: SimpleNamespace(
            as_numpy=lambda: response.held[name]
        ),
    }.items():
        monkeypatch.setattr(bls.pb_utils, name, stand_in, raising=False)
    with pytest.raises(bls.FailedError, match="why"):
        bls.ask("failing", [], ["peaks"])
    assert bls.ask("network", [], ["b", "a"]) == [2, 1]
