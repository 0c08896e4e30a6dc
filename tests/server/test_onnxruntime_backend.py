"""The stand-in backend on files that are no detectors, and models that it or the server refuses to load."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from protocols import infer
from servers import REPOSITORY
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server
MATRIX = np.arange(6, dtype=np.float32).reshape(3, 2)
FLOAT, STRING = onnx.TensorProto.FLOAT, onnx.TensorProto.STRING


def add_model(repository, name, shape, *, max_batch_size=0, element_type=FLOAT, **parameters):
    """A model that multiplies `x` by MATRIX; texts it returns as they are."""
    operator, inputs = ("MatMul", ["x", "matrix"]) if element_type == FLOAT else ("Identity", ["x"])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, inputs, ["y"])],
        "tiny",
        [onnx.helper.make_tensor_value_info("x", element_type, shape)],
        [onnx.helper.make_tensor_value_info("y", element_type, [shape[0], "columns"])],
        [onnx.numpy_helper.from_array(MATRIX, "matrix")],
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 19)])
    version = repository / name / "1"
    version.mkdir(parents=True)
    onnx.save(model, version / "model.onnx")
    lines = [f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in parameters.items()]
    config = ['backend: "onnxruntime"', f"max_batch_size: {max_batch_size}", *lines]
    config.append("instance_group [ { kind: KIND_CPU count: 1 } ]")
    (repository / name / "config.pbtxt").write_text("\n".join(config) + "\n")


def add_postprocess_without_threshold(repository):
    folder = shutil.copytree(REPOSITORY / "centernet_postprocess", repository / "centernet_postprocess")
    facts = repository / "model.json"
    facts.write_text(json.dumps({"classes": ["a"], "input_size": [64, 64], "top_k": 5, "outputs": ["peaks"]}))
    config = folder / "config.pbtxt"
    before, removed, _ = config.read_text().partition('parameters { key: "score_threshold"')
    assert removed
    config.write_text(
        f'{before}parameters {{ key: "network_description" value {{ string_value: "{facts}" }} }}\n'
    )


@pytest.fixture(scope="module")
def tiny_server(serve, tmp_path_factory):
    repository = tmp_path_factory.mktemp("tiny")
    add_model(repository, "unbatched", ["rows", 3])
    add_model(repository, "batched", ["batch", "columns of x"], max_batch_size=8)
    add_model(repository, "fixed", [2, 3])
    add_model(repository, "fixed_batched", [2, 3], max_batch_size=8)
    add_model(repository, "texts", ["rows", 3], element_type=STRING)
    add_model(repository, "format", [2, 3], **{"session.load_model_format": "ORT"})
    for threads in (1, 5):
        add_model(repository, f"threads_{threads}", [2, 3], intra_op_thread_count=threads)
    add_postprocess_without_threshold(repository)
    return serve(repository, "--exit-on-error=false", "--strict-readiness=false")


@pytest.mark.parametrize(
    ("model", "rows"), [("unbatched", 1), ("unbatched", 5), ("fixed", 2), ("batched", 1), ("batched", 8)]
)
def test_answers(tiny_server, model, rows):
    x = np.random.default_rng(rows).normal(0, 1, (rows, 3)).astype(np.float32)
    answer = infer(tiny_server, "grpc", model, {"x": x})
    np.testing.assert_allclose(answer["y"], x @ MATRIX, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        ("fixed", (3, 3), r"shape.*\[2,3\].*\[3,3\]"),
        ("batched", (9, 3), "<= 8"),
        ("batched", (2, 4), "ONNX Runtime: .*MatMul"),
    ],
)
def test_wrong_shapes(tiny_server, model, shape, message):
    with pytest.raises(InferenceServerException, match=message):
        infer(tiny_server, "grpc", model, {"x": np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    "message",
    [
        "tensor x has the shape [2, 3], expected a dynamic first dimension: "
        "export with a dynamic batch or set max_batch_size to 0",
        "tensor x is a tensor(string), expected one of ['tensor(bool)', ",
        "ORT model verification failed",
        "score_threshold: found None, expected a number from 0 to 1",
    ],
)
def test_models_that_are_refused(tiny_server, message):
    assert message in tiny_server.log.read_text()


def test_threads(tiny_server):
    """A session of N threads adds N - 1 to those that each Python model has."""
    threads = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It ended meanwhile.
            words = (process / "cmdline").read_text().split("\0")
            if str(tiny_server.process.pid) in words:
                count = len(list((process / "task").iterdir()))
                threads |= {word: count for word in words if word.startswith("threads_")}
    assert threads["threads_5_0_0"] - threads["threads_1_0_0"] == 4
