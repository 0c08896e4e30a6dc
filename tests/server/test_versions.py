"""What is answered comes from the version of the network that is served, however it came to be that."""

import json
import shutil
import time

import exported
import numpy as np
import pytest
import tritonclient.grpc as grpc
from pictures import encode, picture
from protocols import images, infer
from servers import make_repository
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server

NETWORK, PICTURE = "centernet_network", encode(picture(60, 90))
OTHER_CLASSES = ("硬币", "наклейка", "כרטיס")
SIZES = {1: exported.SMALL_SIZE, 2: (128, 96)}


@pytest.fixture(scope="module")
def onnx_of_2(tmp_path_factory):
    """The same weights with other names, another frame and less detections."""
    folder = tmp_path_factory.mktemp("other")
    labels = folder / "names.txt"
    labels.write_text("\n".join(OTHER_CLASSES) + "\n", encoding="utf-8")
    size = "{}x{}".format(*SIZES[2])
    return exported.export(
        exported.small_checkpoint(folder), "--input-size", size, "--labels", str(labels), "--top-k", "30"
    )


def put(repository, version, onnx):
    """Adds a version as a whole: the folder gets its name when it is complete."""
    new = repository / f".{version}"
    new.mkdir()
    for suffix in (".onnx", ".json"):
        shutil.copy(onnx.with_suffix(suffix), new / f"model{suffix}")
    new.rename(repository / NETWORK / str(version))


def found_names(server):
    answer = infer(server, "grpc", "centernet", images([PICTURE]), {"score_threshold": 0.0})
    return {label.decode() for label in answer["detection_labels"][0]}, answer["detection_boxes"].shape[1]


def assert_served(server, version):
    """Encoded pictures and frames are answered with this version's names, size and number of rows."""
    classes, rows = {1: (exported.SMALL_CLASSES, 100), 2: (OTHER_CLASSES, 30)}[version]
    names, count = found_names(server)
    assert names <= set(classes)
    assert len(names) > 1
    assert count == rows
    frame = {
        "frame": np.zeros((1, *SIZES[version], 3), np.uint8),
        "image_size": np.array([[60, 90]], np.int32),
    }
    answer = infer(server, "http", "centernet_frames", frame, {"score_threshold": 0.0})
    assert {label.decode() for label in answer["detection_labels"][0]} <= set(classes)


def test_versions_that_come_and_go(serve, small_onnx, onnx_of_2, tmp_path):
    repository = make_repository(tmp_path, small_onnx)
    explicit = [f"--load-model={name}" for name in ("centernet", "centernet_frames")]
    server = serve(repository, "--model-control-mode=explicit", *explicit)
    assert_served(server, 1)
    put(repository, 2, onnx_of_2)
    assert_served(server, 1)  # there, but not loaded
    with grpc.InferenceServerClient(server.grpc_url) as client:
        client.load_model(NETWORK)
        assert_served(server, 2)
        # Back to the first, with both still in their folders.
        config = json.dumps({"version_policy": {"specific": {"versions": [1]}}, **configuration(client)})
        client.load_model(NETWORK, config=config)
        assert_served(server, 1)
        client.load_model(NETWORK)
        assert_served(server, 2)
        (repository / NETWORK / "2" / "model.json").unlink()
        assert_served(server, 2)  # as it was loaded
        shutil.rmtree(repository / NETWORK / "2")
        client.load_model(NETWORK)
        assert_served(server, 1)
        # A version that nobody described has no names, and gets none of another's.
        put(repository, 3, onnx_of_2)
        (repository / NETWORK / "3" / "model.json").unlink()
        client.load_model(NETWORK)
        with pytest.raises(InferenceServerException, match=r"no .*/centernet_network/3/model\.json: make"):
            found_names(server)


def configuration(client):
    """The network's configuration, for a load that overrides a part of it."""
    config = client.get_model_config(NETWORK, as_json=True)["config"]
    return {key: config[key] for key in ("name", "backend", "max_batch_size")}


def test_the_highest_version_at_start_and_one_found_by_polling(serve, small_onnx, onnx_of_2, tmp_path):
    repository = make_repository(tmp_path, small_onnx)
    (repository / NETWORK / "1").rename(repository / NETWORK / "4")
    server = serve(repository, "--model-control-mode=poll", "--repository-poll-secs=1")
    assert_served(server, 1)
    put(repository, 5, onnx_of_2)
    end = time.monotonic() + 120
    with grpc.InferenceServerClient(server.grpc_url) as client:
        while not client.is_model_ready(NETWORK, "5") and time.monotonic() < end:
            time.sleep(0.2)
    assert_served(server, 2)
