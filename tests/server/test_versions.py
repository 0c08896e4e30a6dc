"""What is answered comes from the version of the network that is served, however it came to be that."""

import json
import time
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc
from onnx import TensorProto, helper, numpy_helper
from pictures import encode, picture
from protocols import images, infer
from servers import make_repository
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server

NETWORK, PICTURE = "centernet_network", encode(picture(60, 90))


@dataclass(frozen=True)
class Stub:
    """A network that sees nothing: every class in turn, in rows of a number of its own."""

    classes: tuple[str, ...]
    size: tuple[int, int]
    rows: int

    def write(self, folder):
        """Writes `model.onnx` and `model.json`."""
        folder.mkdir()
        values = {
            "boxes": np.tile(np.float32([4, 4, 20, 20]), (1, self.rows, 1)),
            "scores": np.full((1, self.rows), 0.9, np.float32),
            "classes": np.arange(self.rows, dtype=np.int32)[None] % len(self.classes),
        }
        values["peaks"] = np.dstack([*values.values()]).astype(np.float32)
        nodes = [helper.make_node("Shape", ["frame"], ["batch"], end=1)]
        constants, outputs = [], []
        for name, value in values.items():
            constants += [
                numpy_helper.from_array(value, f"{name}_of_one"),
                numpy_helper.from_array(np.int64(value.shape[1:]), f"{name}_shape"),
            ]
            nodes += [
                helper.make_node("Concat", ["batch", f"{name}_shape"], [f"{name}_shapes"], axis=0),
                helper.make_node("Expand", [f"{name}_of_one", f"{name}_shapes"], [name]),
            ]
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            outputs.append(helper.make_tensor_value_info(name, kind, ["n", *value.shape[1:]]))
        frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, ["n", *self.size, 3])
        graph = helper.make_graph(nodes, "stub", [frame], outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.save_model(model, folder / "model.onnx")
        facts = {"classes": self.classes, "input_size": self.size, "top_k": self.rows, "outputs": [*values]}
        text = json.dumps(facts, ensure_ascii=False)
        (folder / "model.json").write_text(text, encoding="utf-8")
        return folder / "model.onnx"


FIRST = Stub(("ant", "bee", "cicada"), (64, 96), 100)
SECOND = Stub(("硬币", "наклейка", "כרטיס"), (128, 32), 30)


def put(repository, version, stub):
    """Adds a version as a whole: the folder gets its name when it is complete."""
    new = repository.parent / f"new-{version}"
    stub.write(new)
    new.rename(repository / NETWORK / str(version))


def assert_served(server, stub):
    """Encoded pictures and frames are answered with this network's names, size and number of rows."""
    frame = {"frame": np.zeros((1, *stub.size, 3), np.uint8), "image_size": np.array([[60, 90]], np.int32)}
    for model, inputs in (("centernet", images([PICTURE])), ("centernet_frames", frame)):
        answer = infer(server, "grpc", model, inputs)
        labels = [label.decode() for label in answer["detection_labels"][0]]
        assert labels == [stub.classes[index % 3] for index in range(stub.rows)]


def test_versions_that_are_loaded_and_unloaded(serve, tmp_path):
    repository = make_repository(tmp_path, FIRST.write(tmp_path / "first"))
    loads = [f"--load-model={name}" for name in ("centernet", "centernet_frames")]
    server = serve(repository, "--model-control-mode=explicit", *loads)
    assert_served(server, FIRST)
    put(repository, 2, SECOND)
    assert_served(server, FIRST)  # there, but not loaded
    with grpc.InferenceServerClient(server.grpc_url) as client:
        client.load_model(NETWORK)
        assert_served(server, SECOND)
        # Back to the first, with both still in their folders.
        config = repository / NETWORK / "configs" / "cpu.pbtxt"
        text = config.read_text()
        config.write_text(text + "version_policy { specific { versions: [ 1 ] } }\n")
        client.load_model(NETWORK)
        assert_served(server, FIRST)
        config.write_text(text)
        client.load_model(NETWORK)
        assert_served(server, SECOND)
        # A version that nobody described has no names, and gets none of another's.
        put(repository, 3, FIRST)
        (repository / NETWORK / "3" / "model.json").unlink()
        client.load_model(NETWORK)
        with pytest.raises(InferenceServerException, match=r"no .*/centernet_network/3/model\.json: make"):
            assert_served(server, FIRST)
        # Nor is one that was exported before the server asked for `peaks`.
        (repository / NETWORK / "3" / "model.json").write_text(
            json.dumps({"classes": ["a"], "input_size": FIRST.size, "top_k": FIRST.rows})
        )
        with pytest.raises(
            InferenceServerException,
            match=r"3/model\.json: found a network without the output peaks, expected",
        ):
            assert_served(server, FIRST)


def test_the_highest_version_at_start_and_one_found_by_polling(serve, tmp_path):
    repository = make_repository(tmp_path, SECOND.write(tmp_path / "first"))
    put(repository, 4, FIRST)
    server = serve(repository, "--model-control-mode=poll", "--repository-poll-secs=1")
    assert_served(server, FIRST)
    put(repository, 5, SECOND)
    end = time.monotonic() + 120
    with grpc.InferenceServerClient(server.grpc_url) as client:
        while not client.is_model_ready(NETWORK, "5") and time.monotonic() < end:
            time.sleep(0.2)
    assert_served(server, SECOND)
