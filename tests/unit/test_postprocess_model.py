"""The postprocess model's own glue, with a stand-in for Triton: what one batch of requests is answered."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from centernet_image.contract import MODELS

SOURCE = Path(__file__).parents[2] / "model_repository/centernet_postprocess/1/model.py"
INPUTS, OUTPUTS = ([tensor.name for tensor in side] for side in MODELS["centernet_postprocess"])
CLASSES = ("ant", "蜜蜂", "cicada")


class Tensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array


class Response:
    def __init__(self, tensors=(), *, error=None):
        self.tensors, self.error = {tensor.name: tensor.array for tensor in tensors}, error


class TritonError(Exception):
    INVALID_ARG, UNAVAILABLE = "INVALID_ARG", "UNAVAILABLE"


class Request:
    """Of `pictures`, with as many peaks each as there are scores."""

    def __init__(self, scores, *, pictures=1, parameters="", outputs=OUTPUTS, side=100, label=0):
        rows = [[0, 0, 4, 4, score, label] for score in scores]
        self.tensors = {
            "peaks": np.array([rows] * pictures, np.float32),
            "image_size": np.full((pictures, 2), side, np.int32),
        }
        self.given, self.outputs = parameters, outputs

    def parameters(self):
        return self.given

    def requested_output_names(self):
        return {*self.outputs}


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """What the model makes of requests."""
    triton = SimpleNamespace(
        Tensor=Tensor,
        InferenceResponse=Response,
        TritonError=TritonError,
        is_model_ready=lambda *_: True,
        get_input_tensor_by_name=lambda request, name: Tensor(name, request.tensors[name]),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    spec = importlib.util.spec_from_file_location("postprocess_model", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    description = tmp_path / "centernet_network" / "1" / "model.json"
    description.parent.mkdir(parents=True)
    facts = {"classes": CLASSES, "input_size": [100, 100], "top_k": 3, "outputs": ["peaks"]}
    description.write_text(json.dumps(facts))
    config = {
        "parameters": {"score_threshold": {"string_value": "0.3"}},
        "input": [{"name": name} for name in INPUTS],
        "output": [{"name": name} for name in OUTPUTS],
    }
    model = module.TritonPythonModel()
    folder = str(tmp_path / "centernet_postprocess")
    model.initialize({"model_config": json.dumps(config), "model_repository": folder})
    return model.execute


def test_each_request_has_its_own_threshold_pictures_and_outputs(execute):
    few = ("detection_scores", "num_detections")
    answers = execute(
        [
            Request([0.9, 0.5, 0.2]),
            Request([0.8, 0.5, 0.2], pictures=2, parameters='{"score_threshold": 0.6}', outputs=few),
            Request([0.7, 0.5, 0.2], parameters='{"other": 1, "score_threshold": "0.1"}', label=1),
        ]
    )
    assert [answer.tensors["num_detections"].tolist() for answer in answers] == [[[2]], [[1], [1]], [[3]]]
    assert [[*answer.tensors] for answer in answers] == [
        OUTPUTS,
        ["num_detections", "detection_scores"],
        OUTPUTS,
    ]
    first, second, third = (answer.tensors["detection_scores"] for answer in answers)
    np.testing.assert_array_equal(first, np.float32([[0.9, 0.5, 0]]))
    np.testing.assert_array_equal(second, np.float32([[0.8, 0, 0]] * 2))
    np.testing.assert_array_equal(third, np.float32([[0.7, 0.5, 0.2]]))
    assert third.dtype == np.float32
    assert answers[0].tensors["detection_labels"].tolist() == [[b"ant", b"ant", b""]]
    assert answers[2].tensors["detection_labels"].tolist() == [["蜜蜂".encode()] * 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Request([0.5] * 3, parameters='{"score_threshold": 2}'), "score_threshold: found 2, expected"),
        (Request([0.5] * 3, side=0), "image_size: found [[0, 0]], expected positive"),
        (Request([0.5] * 3, label=3), "classes: found 3.0, expected 0 to 2"),
        (Request([0.5] * 3, label=np.nan), "classes: found nan, expected 0 to 2"),
    ],
)
def test_a_wrong_request_spoils_no_other(execute, wrong, message):
    answers = execute([Request([0.9, 0.5, 0.2]), wrong, Request([0.7, 0.2, 0.1])])
    assert [answer.error is not None for answer in answers] == [False, True, False]
    assert answers[1].error.args[1] == TritonError.INVALID_ARG
    assert message in str(answers[1].error.args[0])
    assert [answers[index].tensors["num_detections"].item() for index in (0, 2)] == [2, 1]
