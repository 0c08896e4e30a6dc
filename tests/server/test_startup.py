"""How a server starts: the repository as it is committed, other networks, and what is missing."""

import json
import shutil
import signal

import exported
import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc
from centernet_image import contract
from pictures import encode, picture
from protocols import images, infer
from servers import launch, make_repository

pytestmark = pytest.mark.server


def test_configuration_is_completed_from_the_file(server):
    with grpc.InferenceServerClient(server.grpc_url) as client:
        config = client.get_model_config("centernet_network").config
        metadata = {name: client.get_model_metadata(name) for name in contract.MODELS}
    height, width = exported.SMALL_SIZE
    assert [(t.name, list(t.dims)) for t in config.input] == [("frame", [height, width, 3])]
    assert {t.name: list(t.dims) for t in config.output} == {
        "boxes": [100, 4],
        "scores": [100],
        "classes": [100],
        "peaks": [100, 6],
    }
    for name, (inputs, outputs) in contract.MODELS.items():
        for found, expected in ((metadata[name].inputs, inputs), (metadata[name].outputs, outputs)):
            types = {t.name: t.datatype for t in found}
            assert types == {t.name: t.dtype.replace("STRING", "BYTES") for t in expected}


@pytest.mark.parametrize("hangs", [False, True])
def test_ends_when_told(serve, small_onnx, tmp_path, hangs):
    """Also where a process of the preprocess model waits for a thread that never ends."""
    repository = make_repository(tmp_path, small_onnx)
    if hangs:
        model = repository / "centernet_preprocess/1/model.py"
        end, thread = "def finalize(self):\n", "Thread(target=threading.Event().wait).start()\n"
        text = model.read_text(encoding="utf-8")
        assert end in text
        changed = text.replace(end, f"{end}        import threading; threading.{thread}")
        model.write_text(changed, encoding="utf-8")
    server = serve(repository)
    infer(server, "grpc", "centernet", images([encode(picture(60, 90))]))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=40) == 0


def test_a_network_that_was_not_made(small_onnx, tmp_path):
    repository = make_repository(tmp_path, small_onnx)
    for file in (repository / "centernet_network/1").glob("model.*"):
        file.unlink()
    log = tmp_path / "log"
    process = launch(repository, log)
    assert process.wait(timeout=300) == 1
    text = log.read_text()
    command = f"python -m export.to_onnx CHECKPOINT {repository}/centernet_network/1/model.onnx"
    assert f"no {repository}/centernet_network/1/model.onnx: make it first, for example {command}" in text
    assert (
        f"no {repository}/centernet_network/1/model.json: make the network first, for example {command}"
        in text
    )


def test_a_description_of_something_else(small_onnx, tmp_path):
    repository = make_repository(tmp_path, small_onnx)
    description = repository / "centernet_network/1/model.json"
    facts = json.loads(description.read_text())
    description.unlink()
    description.write_text(json.dumps({**facts, "form": "heads", "top_k": None}))
    log = tmp_path / "log"
    process = launch(repository, log)
    assert process.wait(timeout=300) == 1
    assert (
        "model.json does not describe a detector, expected classes, input_size and top_k" in log.read_text()
    )


def test_a_network_from_before_peaks(small_onnx, tmp_path):
    repository = make_repository(tmp_path, small_onnx)
    version = repository / "centernet_network/1"
    model, facts = onnx.load(version / "model.onnx"), json.loads((version / "model.json").read_text())
    model.graph.output.pop()
    del facts["outputs"]
    for file in version.glob("model.*"):
        file.unlink()
    onnx.save(model, version / "model.onnx")
    (version / "model.json").write_text(json.dumps(facts))
    log = tmp_path / "log"
    process = launch(repository, log)
    assert process.wait(timeout=300) == 1
    assert (
        f"{version}/model.json: found a network without the output peaks, expected one with it: export it "
        "again by export.to_onnx" in log.read_text()
    )


def test_instances_threads_file_name_and_description_are_parameters(serve, small_onnx, tmp_path):
    repository = make_repository(tmp_path, small_onnx)
    version = repository / "centernet_network/1"
    shutil.move(version / "model.onnx", version / "other.onnx")
    shutil.move(version / "model.json", tmp_path / "elsewhere.json")
    config = repository / "centernet_network/configs/cpu.pbtxt"
    text = config.read_text()
    assert "count: 2" in text
    text = text.replace("count: 2", "count: 3").replace(
        'value { string_value: "0" }', 'value { string_value: "1" }'
    )
    config.write_text(text + 'default_model_filename: "other.onnx"\n')
    for name in ("centernet_preprocess", "centernet_postprocess"):
        with (repository / name / "config.pbtxt").open("a") as file:
            path = tmp_path / "elsewhere.json"
            file.write(f'parameters {{ key: "network_description" value {{ string_value: "{path}" }} }}\n')
    server = serve(repository)
    answer = infer(server, "http", "centernet", images([encode(picture(60, 90))]))
    assert answer["num_detections"].item() > 0
    assert server.log.read_text().count("TRITONBACKEND_ModelInstanceInitialize: centernet_network_0_") == 3


def test_only_what_is_asked_for_is_answered(server):
    with grpc.InferenceServerClient(server.grpc_url) as client:
        tensor = grpc.InferInput("frame", [1, *exported.SMALL_SIZE, 3], "UINT8")
        tensor.set_data_from_numpy(np.zeros((1, *exported.SMALL_SIZE, 3), np.uint8))
        result = client.infer("centernet_network", [tensor], outputs=[grpc.InferRequestedOutput("classes")])
        assert [output.name for output in result.get_response().outputs] == ["classes"]
        assert result.as_numpy("classes").shape == (1, 100)
