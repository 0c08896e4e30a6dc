"""The whole of export.to_plan, with ONNX Runtime in TensorRT's place: what is built, and what is refused."""

import json
from collections import Counter
from types import SimpleNamespace

import foreign
import numpy as np
import onnx
import pytest
import traced
from centernet_image.description import Description
from onnx import TensorProto
from pictures import encode, picture
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from single_layer import lopsided

from export import to_plan
from export.errors import UsageError
from export.graphs import rewrite, torch_export
from export.plan import feed_dicts, lowering, profiles
from export.plan.builder import PlanError, build
from export.plan.provenance import Gpu
from export.verify import against_onnx


class Runner(OnnxrtRunner):
    """Runs an "engine", and spoils what it answers."""

    spoil = staticmethod(lambda outputs: outputs)

    def __init__(self, engine):
        super().__init__(SessionFromOnnx(engine, providers=["cpu"]))

    def infer_impl(self, feed_dict):
        outputs = super().infer_impl(feed_dict)
        return Runner.spoil({name: np.array(values) for name, values in outputs.items()})


@pytest.fixture
def built(monkeypatch, tmp_path):
    """What TensorRT was asked to build; an engine is an ONNX file."""
    calls = []

    def build(trt, model, *, shapes, tf32, **_):
        calls.append(SimpleNamespace(model=model, shapes=shapes, tf32=tf32))
        return rewrite.to_deform_conv(model).SerializeToString(), None

    library = tmp_path / "libdcnv2.so"
    library.write_bytes(b"plugin")
    monkeypatch.setattr(to_plan, "find_gpu", lambda: Gpu(name="NVIDIA L4", compute_capability="8.9"))
    engine = to_plan.builder
    monkeypatch.setattr(engine, "load_tensorrt", lambda rtx: SimpleNamespace(__version__="11.4.0"))
    monkeypatch.setattr(engine, "load_plugin", lambda *_, **__: library)
    monkeypatch.setattr(engine, "build", build)
    monkeypatch.setattr(against_onnx, "EngineFromBytes", lambda engine: engine)
    monkeypatch.setattr(against_onnx, "TrtRunner", Runner)
    monkeypatch.setattr(Runner, "spoil", staticmethod(lambda outputs: outputs))
    return calls


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(torch_export.without_outputs(traced.detector(), traced.HEADS), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(encode(picture(48, 64, seed=seed)))
    return folder


def types(model):
    """Of the weights of the plugin's nodes, and how many Q/DQ pairs there are."""
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = {constants[node.input[2]] for node in model.graph.node if node.op_type == "DCNv2"}
    return weights, Counter(node.op_type for node in model.graph.node)["QuantizeLinear"] > 0


@pytest.mark.parametrize(
    ("options", "weights", "quantized", "tf32"),
    [
        (["--precision", "fp32"], TensorProto.FLOAT, False, False),
        (["--precision", "fp16"], TensorProto.FLOAT16, False, True),
        ([], TensorProto.FLOAT16, False, True),
        (["--precision", "int8"], TensorProto.FLOAT16, True, True),
        (["--precision", "int8", "--int8-groups", "deformable"], TensorProto.INT8, True, True),
        (["--precision", "tf32"], TensorProto.FLOAT, False, True),
    ],
    ids=["fp32", "fp16", "default", "int8", "int8 groups", "tf32"],
)
def test_the_precision_asked_for_is_built(
    built, model, pictures, tmp_path, options, weights, quantized, tf32
):
    if "int8" in options:
        options = [*options, "--calibration", str(pictures), "--pictures", "2"]
    to_plan.main([str(model), str(tmp_path / "out.plan"), "--batch", "1,2,3", *options])
    (call,) = built
    assert types(call.model) == ({weights}, quantized)
    assert call.tf32 == tf32
    assert call.shapes["frame"] == {
        name: [n, *traced.SIZE, 3] for name, n in zip(("min", "opt", "max"), (1, 2, 3), strict=True)
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_right_engine_is_written(built, model, pictures, tmp_path, precision, capsys):
    plan = tmp_path / "out.plan"
    options = ["--precision", precision, "--batch", "1,2,3", "--verify", "--calibration", str(pictures)]
    to_plan.main([str(model), str(plan), *options])
    assert plan.is_file()
    said = capsys.readouterr().err
    assert [f"detections, batch {batch}" in said for batch in (1, 2, 3)] == [True] * 3


def swapped(boxes):
    return boxes[..., [1, 0, 3, 2]]


def moved(found, pixels):
    """All boxes, also in `peaks`."""
    return found | {
        "boxes": found["boxes"] + np.float32(pixels),
        "peaks": found["peaks"] + np.float32([pixels] * 4 + [0, 0]),
    }


SPOILT = {
    "boxes shifted": lambda found: moved(found, 4),
    "x and y swapped": lambda found: found | {"boxes": swapped(found["boxes"])},
    "scores less": lambda found: found | {"scores": found["scores"] * 0.9},
    "classes shifted": lambda found: found | {"classes": (found["classes"] + 1) % 3},
    "NaN": lambda found: found | {"scores": found["scores"] * np.float32("nan")},
    "nothing found": lambda found: {name: np.zeros_like(values) for name, values in found.items()},
    "one box for all": lambda found: {name: np.repeat(v[:, :1], v.shape[1], 1) for name, v in found.items()},
    "the first picture for all": lambda found: {
        name: np.repeat(v[:1], len(v), 0) for name, v in found.items()
    },
    "pictures in another order": lambda found: {name: v[::-1] for name, v in found.items()},
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_wrong_engine_is_refused(built, model, tmp_path, monkeypatch, spoil):
    monkeypatch.setattr(Runner, "spoil", staticmethod(spoil))
    folder = tmp_path / "out"
    with pytest.raises(PlanError, match="no agreement with ONNX Runtime in detections"):
        to_plan.main([str(model), str(folder / "out.plan"), "--batch", "1,2,3", "--verify"])
    assert not list(folder.iterdir())


@pytest.mark.parametrize("column", [0, 3, 4, 5])
def test_an_engine_whose_peaks_are_not_its_other_outputs_is_refused(
    built, model, tmp_path, monkeypatch, column
):
    def spoil(found):
        peaks = found["peaks"].copy()
        peaks[0, -1, column] = np.nextafter(peaks[0, -1, column], np.float32(np.inf))
        return found | {"peaks": peaks}

    monkeypatch.setattr(Runner, "spoil", staticmethod(spoil))
    with pytest.raises(PlanError, match=r"no agreement with ONNX Runtime in peaks \("):
        to_plan.main([str(model), str(tmp_path / "out.plan"), "--batch", "1,2,3", "--verify"])
    assert not (tmp_path / "out.plan").exists()


def test_fp32_is_held_to_less(built, model, tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "spoil", staticmethod(lambda found: moved(found, 1)))
    options = [str(model), str(tmp_path / "out.plan"), "--batch", "1,2,3", "--verify", "--precision"]
    to_plan.main([*options, "fp16"])
    with pytest.raises(PlanError, match="no agreement"):
        to_plan.main([*options, "fp32"])


def test_lopsided_layers_keep_their_geometry(built, tmp_path):
    """As tests/gpu/test_plan.py has them, with the plugin's node run by ONNX Runtime."""
    for index, layer in enumerate(lopsided(12)):
        model = onnx.load(layer.write(tmp_path / "layer.onnx"))
        network = lowering.make(model, "fp32")
        (node,) = (node for node in network.model.graph.node if node.op_type == "DCNv2")
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        given = {name: value for name, value in layer.attributes.items() if value or name == "groups"}
        assert attributes == given | {"weight_ohwi": 1}
        shapes = profiles.profiles(model, (1, 2, 5))
        feed = feed_dicts.noise(
            {name: shape["max"] for name, shape in shapes.items()},
            dict.fromkeys(shapes, np.dtype("f4")),
            seed=index,
        )
        engine = rewrite.to_deform_conv(network.model).SerializeToString()
        (found,) = against_onnx.verify(network.reference, engine, [feed], against_onnx.TOLERANCES["fp32"])
        assert found.passed, (layer, str(found))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("arrays", [True, False])
def test_another_network_with_open_sizes_is_verified(built, tmp_path, capsys, precision, arrays, monkeypatch):
    """At the smallest, the usual and the largest of its shapes, or in batches of its own inputs."""
    path = foreign.save(foreign.separate(), tmp_path / "model.onnx")
    options = ["--shapes", "x=1x3x32x48,2x3x64x48,3x3x96x96", "--verify", "--precision", precision]
    if arrays or precision == "int8":
        np.savez(tmp_path / "0.npz", x=foreign.picture(2, 3, 64, 48))
        options += ["--calibration", str(tmp_path)]
    if precision == "int8":
        options += ["--int8-groups", "offsets,deformable,heads"]
    to_plan.main([str(path), str(tmp_path / "out.plan"), *options])
    said = capsys.readouterr().err
    assert [said.count(f", batch {batch}: relative") for batch in (1, 2, 3)] == [1, 1, 1]
    (call,) = built
    assert call.shapes["x"]["max"] == [3, 3, 96, 96]
    monkeypatch.setattr(Runner, "spoil", staticmethod(lambda found: {n: v + 1 for n, v in found.items()}))
    with pytest.raises(PlanError, match="no agreement with ONNX Runtime"):
        to_plan.main([str(path), str(tmp_path / "other.plan"), *options])
    assert not (tmp_path / "other.plan").exists()


def test_another_ones_node_says_its_outputs_shape(built, tmp_path):
    """Also where its file does not, and what is behind it."""
    model = foreign.separate()
    (node,) = (each for each in model.graph.node if each.name == "theirs")
    data, weight, offset, _, mask = node.input
    inputs = [data, offset, mask, weight]
    node.CopyFrom(onnx.helper.make_node("DCN", inputs, node.output, name="theirs", stride=1, padding=1))
    path = foreign.save(model, tmp_path / "model.onnx")
    to_plan.main([str(path), str(tmp_path / "out.plan"), "--shapes", "x=1x3x32x48"])
    section = json.loads((tmp_path / "out.json").read_text())["plan"]
    (output,) = section["tensors"]["outputs"]
    assert [type(side) for side in output["shape"]] == [str, int, str, str]
    assert output["shape"][:2] == ["n", 1]


def test_what_onnx_runtime_cannot_calibrate_is_one_line(built, tmp_path):
    """Offsets that are an input, of another size than the map."""
    g = foreign.Graph(shape=("n", 3, 16, 16))
    g.inputs.append(onnx.helper.make_tensor_value_info("offset", TensorProto.FLOAT, ["n", 18, "h", "w"]))
    y = g.add("DeformConv", ["x", g.weight(4, 3, 3, 3), "offset"], pads=[1] * 4)
    path = foreign.save(g.model(g.conv(y, 4, 4)), tmp_path / "model.onnx")
    np.savez(tmp_path / "0.npz", x=np.ones((1, 3, 16, 16), "f4"), offset=np.zeros((1, 18, 8, 8), "f4"))
    options = ["--precision", "int8", "--calibration", str(tmp_path), "--int8-groups", "outputs"]
    with pytest.raises(UsageError, match=r"model\.onnx: .*Offset spatial height must match") as raised:
        to_plan.main(
            [str(path), str(tmp_path / "out.plan"), "--batch", "1", "--shapes", "offset=1x18x16x16", *options]
        )
    assert "\n" not in str(raised.value)


def test_the_parsers_words_are_one_line():
    class Logger:
        def __init__(self):
            pass

    parser = SimpleNamespace(
        parse=lambda _: False,
        num_errors=2,
        get_error=lambda _: SimpleNamespace(desc=lambda: "In node 0\n[8] no\n"),
    )
    builder = SimpleNamespace(create_network=lambda _: None)
    tensorrt = SimpleNamespace(
        ILogger=Logger,
        Builder=lambda _: builder,
        NetworkDefinitionCreationFlag=None,
        OnnxParser=lambda *_: parser,
    )
    with pytest.raises(PlanError, match=r"^In node 0 \[8\] no$"):
        build(tensorrt, onnx.ModelProto(), shapes={})


def test_an_onnx_file_from_before_peaks_is_refused(built, model, tmp_path):
    old = onnx.load(model)
    facts = Description(classes=("a",), input_size=traced.SIZE, top_k=20, arch="toy", checkpoint_sha256="0")
    onnx.helper.set_model_props(old, facts.to_metadata())
    onnx.save(old, tmp_path / "old.onnx")
    with pytest.raises(
        UsageError, match=r"old\.onnx: found a network without the output peaks, expected one"
    ):
        to_plan.main([str(tmp_path / "old.onnx"), str(tmp_path / "out.plan")])
    assert not built
