"""export.to_repository: what it writes is served by the real server, and answers as ONNX Runtime does."""

import re
import subprocess
import sys

import cv2
import foreign
import numpy as np
import onnx
import pytest
from pictures import encode, picture
from protocols import infer
from servers import ROOT

from export import to_repository
from export.errors import UsageError

pytestmark = pytest.mark.server
SIZE = (64, 96)
PUBLIC = ROOT.parent / "shared" / "cases" / "networks" / "open-batch-height-width.onnx"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def text_detector():
    """Of DBNet's kind: open height and width, a probability for each pixel, a DCN within."""
    g = foreign.Graph("input", ("batch", 3, "32*h", "32*w"))
    x = g.add("Relu", [g.conv("input", 3, 16, stride=2, name="stem")])
    packed = g.conv(x, 16, 27, name="offsets", scale=0.1)
    sizes = g.constant(np.array([18, 9], np.int64))
    g.nodes.append(onnx.helper.make_node("Split", [packed, sizes], ["offset", "logits"], axis=1))
    mask = g.add("Sigmoid", ["logits"])
    x = g.add(
        "DeformConv", [x, g.weight(16, 16, 3, 3), "offset", "", mask], pads=[1] * 4, kernel_shape=[3, 3]
    )
    x = g.add("Relu", [g.norm(x, 16)])
    weight = g.weight(16, 1, 2, 2)
    x = g.add("ConvTranspose", [x, weight], strides=[2, 2], name="up")
    model = g.model(g.add("Sigmoid", [x]))
    del model.graph.output[:]
    model.graph.node[-1].output[0] = "probability"
    shape = ["batch", 1, "32*h", "32*w"]
    model.graph.output.append(onnx.helper.make_tensor_value_info("probability", 1, shape))
    return model


def segmentation():
    """Of BiRefNet's kind, at one size: a picture in, a mask out."""
    model = foreign.separate(name="pixels")
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_value, dims[3].dim_value = SIZE
    del model.graph.output[:]
    model.graph.node[-1].output[0] = "mask"
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("mask", 1, ["n", 1, SIZE[0] // 2, SIZE[1] // 2])
    )
    return model


def fixed():
    """A batch of one that nobody can change."""
    model = segmentation()
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def mmcv():
    """The text detector with MMCV's node, which ONNX Runtime does not have."""
    model = text_detector()
    (node,) = (each for each in model.graph.node if each.op_type == "DeformConv")
    data, weight, offset, _, mask = node.input
    node.CopyFrom(
        onnx.helper.make_node(
            "MMCVModulatedDeformConv2d", [data, offset, mask, weight], node.output, name="theirs",
            domain="mmcv", stride=[1, 1], padding=[1, 1], dilation=[1, 1], groups=1, deform_groups=1,
        )
    )  # fmt: skip
    model.opset_import.append(onnx.helper.make_opsetid("mmcv", 1))
    return model


PICTURE = ["--picture", "--mean", "imagenet", "--std", "imagenet"]


def write(model, folder, name, *options):
    folder.mkdir(exist_ok=True)
    path = foreign.save(model, folder / f"{name}.onnx")
    command = [
        sys.executable,
        "-m",
        "export.to_repository",
        path,
        folder / "repository",
        "--name",
        name,
        *options,
    ]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    said = {
        "text": write(text_detector(), folder, "text"),
        "mmcv": write(mmcv(), folder, "mmcv"),
        "matting": write(segmentation(), folder, "matting", *PICTURE),
        "boxed": write(fixed(), folder, "boxed", *PICTURE, "--fit", "letterbox"),
    }
    if PUBLIC.is_file():
        said["public"] = write(onnx.load(PUBLIC), folder, "public")
    return folder / "repository", said


@pytest.fixture(scope="module")
def own_server(serve, written):
    return serve(written[0])


@pytest.mark.parametrize("name", ["text", "mmcv"])
@pytest.mark.parametrize("shape", [(1, 3, 32, 64), (2, 3, 96, 32)])
def test_a_text_detector_with_open_sizes(own_server, name, shape):
    feed = {"input": foreign.picture(*shape)}
    answer = infer(own_server, "grpc", name, feed)
    assert answer["probability"].shape == (shape[0], 1, *shape[2:])
    np.testing.assert_allclose(answer["probability"], foreign.run(text_detector(), feed), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 64, 96), (2, 3, 96, 32)])
def test_a_public_text_detector(own_server, written, shape):
    if "public" not in written[1]:
        pytest.skip(f"no {PUBLIC}")
    feed = {"input": foreign.picture(*shape)}
    answer = infer(own_server, "http", "public", feed)
    assert answer["binary"].shape == (shape[0], 1, *shape[2:])
    np.testing.assert_allclose(answer["binary"], foreign.run(onnx.load(PUBLIC), feed), atol=1e-4)


def pixels(image, fit):
    """By hand what the options say: RGB, ImageNet's normalisation."""
    height, width = SIZE
    if fit == "stretch":
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    else:
        scale = min(width / image.shape[1], height / image.shape[0])
        shift = (np.array([width, height]) - scale * np.array(image.shape[1::-1])) / 2
        resized = cv2.warpAffine(
            image, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), (width, height)
        )
    return (((resized[..., ::-1] / 255) - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)


@pytest.mark.parametrize(("name", "fit"), [("matting", "stretch"), ("boxed", "letterbox")])
def test_a_picture_in_and_a_mask_out(own_server, name, fit):
    image = picture(150, 200)
    data = np.array([encode(image)], object)
    answer = infer(own_server, "http", name, {"image": data[None] if name == "matting" else data})
    expected = foreign.run(segmentation(), {"pixels": pixels(image, fit)[None]})
    np.testing.assert_allclose(answer["mask"], expected, atol=1e-5)
    assert answer["image_size"].ravel().tolist() == [150, 200]


def test_a_bad_picture_fails_alone(own_server):
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="image: "):
        infer(own_server, "grpc", "matting", {"image": np.array([[b"no picture"]], object)})
    good = np.array([[encode(picture(100, 120))]] * 2, object)
    assert infer(own_server, "grpc", "matting", {"image": good})["mask"].shape == (2, 1, 32, 48)


@pytest.mark.parametrize("name", ["text", "matting", "boxed"])
def test_the_client_that_is_printed_runs(own_server, written, tmp_path, name):
    (tmp_path / "picture.jpg").write_bytes(encode(picture(100, 120)))
    said = written[1][name]
    assert f"perf_analyzer -m {name} -u localhost:8001 -i grpc" in said
    assert f"tritonserver --model-repository={written[0]} --model-config-name=cpu" in said
    code = "\n".join(line.strip() for line in said.split("ask:\n")[1].splitlines())
    code = code.replace("localhost:8001", own_server.grpc_url)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\(1, 1, \d+, \d+\)\n", done.stdout)


def test_both_variants_are_there(written):
    config = (written[0] / "text" / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"' in config
    assert "max_batch_size: 8" in config
    cpu = (written[0] / "text" / "configs" / "cpu.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in cpu
    assert "KIND_CPU count: 2" in cpu
    assert "dims: [ 3, -1, -1 ]" in config


def refuse(folder, model, *options):
    path = foreign.save(model, folder / "model.onnx")
    with pytest.raises(UsageError) as raised:
        to_repository.main([str(path), str(folder / "repository"), *options])
    assert [each.name for each in folder.iterdir() if not each.name.startswith("model.")] in (
        [],
        ["repository"],
    )
    return str(raised.value)


def test_what_cannot_be_served_is_refused(tmp_path):
    assert "say the size of its pictures by --size" in refuse(
        tmp_path, text_detector(), "--name", "a", *PICTURE
    )
    unknown = text_detector()
    unknown.graph.node[1].op_type = "Curl"
    assert "Relu_1: found operator Curl, expected one that ONNX Runtime has" in refuse(
        tmp_path, unknown, "--name", "a"
    )
    assert "--max-batch: found 4, expected 0" in refuse(tmp_path, fixed(), "--name", "a", "--max-batch", "4")
    other = tmp_path / "repository" / "a"
    other.mkdir(parents=True)
    (other / "config.pbtxt").write_text('name: "a"\n')
    assert "was not written by this command" in refuse(tmp_path, fixed(), "--name", "a")
    assert [path.name for path in other.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("largest", [to_repository.LARGEST, 100])
def test_external_data_travel_with_the_model(tmp_path, monkeypatch, largest):
    path = tmp_path / "model.onnx"
    onnx.save_model(mmcv(), path, save_as_external_data=True, location="weights", size_threshold=0)
    for limit in (100, largest):
        monkeypatch.setattr(to_repository, "LARGEST", limit)
        to_repository.main([str(path), str(tmp_path / "repository"), "--name", "a"])
    version = tmp_path / "repository" / "a" / "1"
    beside = ["model.onnx.data"] if largest == 100 else []
    assert sorted(each.name for each in version.iterdir()) == ["model.onnx", *beside]
    feed = {"input": foreign.picture(1, 3, 32, 32)}
    found = foreign.run(onnx.load(version / "model.onnx"), feed)
    np.testing.assert_allclose(found, foreign.run(text_detector(), feed), atol=1e-6)
    if beside:
        assert (version / beside[0]).stat().st_size < 2 * (tmp_path / "weights").stat().st_size
    (tmp_path / "weights").unlink()
    with pytest.raises(UsageError, match=r"model\.onnx: found no .*weights, which holds its weights"):
        to_repository.main([str(path), str(tmp_path / "repository"), "--name", "b"])
    assert not (tmp_path / "repository" / "b").exists()


def test_it_is_written_again(tmp_path):
    for _ in range(2):
        write(fixed(), tmp_path, "a", *PICTURE)
    assert sorted(path.name for path in (tmp_path / "repository").iterdir()) == [
        "a",
        "a_network",
        "a_preprocess",
    ]
