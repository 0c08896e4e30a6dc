"""What `--if-needed` keeps and what it builds again, and which pictures calibrate."""

import json
import re
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pictures import encode, picture

from export import to_plan
from export.errors import ExportError, UsageError
from export.plan import feed_dicts, provenance
from export.plan.provenance import Gpu


def write_pictures(folder, *, good, bad):
    for index in range(good):
        (folder / f"{index}-good.png").write_bytes(encode(picture(40, 60, seed=index)))
    for index in range(bad):
        (folder / f"{index}-bad.jpg").write_bytes(b"\xff\xd8 no more")
    return folder


@pytest.mark.parametrize(("good", "bad"), [(3, 0), (3, 2), (2, 2), (1, 1), (8, 20), (12, 30)])
def test_pictures_that_cannot_be_read_are_skipped(tmp_path, good, bad):
    found = feed_dicts.find_pictures(write_pictures(tmp_path, good=good, bad=bad))
    assert len(found.paths) == good
    assert all("good" in path.name for path in found.paths)
    assert len(found.skipped) == bad
    if bad:
        text = rf"{bad} of {good + bad} pictures cannot be read, the first \S*0-bad\.jpg: found"
        assert re.match(text, str(found))


@pytest.mark.parametrize(("good", "bad"), [(0, 1), (0, 9), (1, 2), (7, 9)])
def test_too_few_pictures_are_left(tmp_path, good, bad):
    with pytest.raises(UsageError, match=rf"{bad} of {good + bad} pictures .*: too few are left, expected"):
        feed_dicts.find_pictures(write_pictures(tmp_path, good=good, bad=bad))


def test_a_folder_without_pictures(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="found no picture in"):
            feed_dicts.find_pictures(folder)


def test_what_only_looks_like_a_picture_file(tmp_path):
    write_pictures(tmp_path, good=4, bad=0)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "missing")
    (tmp_path / "empty.png").touch()
    found = feed_dicts.find_pictures(tmp_path, limit=4)
    assert len(found.paths) == 4
    assert len(feed_dicts.find_pictures(tmp_path).skipped) == 3


class StandIn:
    """What a build is asked for, in place of TensorRT and a GPU."""

    def __init__(self, monkeypatch, folder):
        self.builds = 0
        self.model = None
        (folder / "libdcnv2.so").write_bytes(b"plugin")
        gpu = Gpu(name="a GPU", compute_capability="9.0")
        monkeypatch.setattr(to_plan, "find_gpu", lambda: gpu)
        monkeypatch.setattr(to_plan.builder, "load_tensorrt", lambda rtx: SimpleNamespace(__version__="10.6"))
        monkeypatch.setattr(to_plan.builder, "load_plugin", lambda *_, **__: folder / "libdcnv2.so")
        monkeypatch.setattr(to_plan.builder, "build", self._build)

    def _build(self, trt, model, **options):
        self.builds += 1
        self.model = model
        return f"plan {self.builds}".encode(), None


def layers(folder, *, count=1, external=False):
    """Convolutions, one behind the other; their weights in `model.onnx` or beside it."""
    frames = helper.make_tensor_value_info("frame", TensorProto.UINT8, ["n", 64, 96, 3])
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    ones = np.ones((3, 3, 1, 1), np.float32)
    names = ["x", *(f"y{index}" for index in range(1, count)), "out"]
    weights = [onnx.numpy_helper.from_array(ones, f"weight{index}") for index in range(count)]
    nodes = [
        helper.make_node("Cast", ["frame"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["x"], perm=[0, 3, 1, 2]),
    ]
    for index, weight in enumerate(weights):
        nodes.append(
            helper.make_node("Conv", [names[index], weight.name], [names[index + 1]], name=f"conv{index}")
        )
    graph = helper.make_graph(nodes, "g", [frames], [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = {"save_as_external_data": True, "size_threshold": 0, "location": "data"} if external else {}
    onnx.save_model(model, folder / "model.onnx", **options)
    return folder / "model.onnx"


def test_other_external_data_make_another_plan(tmp_path, monkeypatch, capsys):
    tensorrt = StandIn(monkeypatch, tmp_path)
    path = layers(tmp_path, external=True)
    command = [str(path), str(tmp_path / "model.plan"), "--if-needed", "--precision", "fp32"]
    to_plan.main(command)
    to_plan.main(command)
    assert tensorrt.builds == 1
    assert "fits: nothing to build" in capsys.readouterr().err
    (tmp_path / "data").write_bytes(np.full(9, 2, np.float32).tobytes())
    to_plan.main(command)
    assert tensorrt.builds == 2
    assert "a plan is needed: onnx_sha256" in capsys.readouterr().err
    weight = onnx.numpy_helper.to_array(tensorrt.model.graph.initializer[0])
    assert (weight == 2).all(), "the weights are in what TensorRT is given"
    (tmp_path / "data").unlink()
    with pytest.raises(UsageError, match=r"found no .*data, which holds its weights"):
        to_plan.main(command)


def test_a_plan_of_other_passes_is_built_again(tmp_path, monkeypatch, capsys):
    tensorrt = StandIn(monkeypatch, tmp_path)
    path = layers(tmp_path)
    command = [str(path), str(tmp_path / "model.plan"), "--if-needed"]
    to_plan.main(command)
    beside = tmp_path / "model.json"
    facts = json.loads(beside.read_text())
    facts["plan"]["builder_sha256"] = "0" * 64
    beside.write_text(json.dumps(facts))
    to_plan.main(command)
    assert tensorrt.builds == 2
    assert "a plan is needed: builder_sha256: the plan has '0000" in capsys.readouterr().err
    to_plan.main(command)
    assert tensorrt.builds == 2
    to_plan.main([*command, "--optimization-level", "5"])
    assert tensorrt.builds == 3
    # Without the ONNX file an older build is better than none.
    facts = json.loads(beside.read_text())
    facts["plan"]["builder_sha256"] = "0" * 64
    beside.write_text(json.dumps(facts))
    path.unlink()
    to_plan.main(command)
    assert tensorrt.builds == 3
    assert "is served, but is an older build's" in capsys.readouterr().err


def test_an_emptied_plan_is_built_again(tmp_path, monkeypatch, capsys):
    tensorrt = StandIn(monkeypatch, tmp_path)
    path, plan = layers(tmp_path), tmp_path / "model.plan"
    command = [str(path), str(plan), "--if-needed"]
    to_plan.main(command)
    whole = plan.read_bytes()
    for content in (b"", whole[:-1], whole[:-1] + b"?"):
        plan.write_bytes(content)
        built = tensorrt.builds
        to_plan.main(command)
        assert tensorrt.builds == built + 1
        said = " ".join(capsys.readouterr().err.split())
        assert f"a plan is needed: {plan} is not the plan that {tmp_path}/model.json describes" in said
    plan.write_bytes(b"")
    path.unlink()
    with pytest.raises(ExportError, match=r"model\.plan is not the plan that"):
        to_plan.main(command)


def test_the_builders_digest_is_of_its_code(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "EXPORT", tmp_path)
    digests = {provenance.builder_sha256.__wrapped__()}
    for name in ("to_plan.py", "plan/lowering.py", "graphs/fold.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("pass\n")
        digests.add(provenance.builder_sha256.__wrapped__())
    assert len(digests) == 4
    (tmp_path / "to_onnx.py").write_text("pass\n")
    assert provenance.builder_sha256.__wrapped__() in digests


def test_other_calibration_pictures_make_another_plan(tmp_path, monkeypatch, capsys):
    tensorrt = StandIn(monkeypatch, tmp_path)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    write_pictures(pictures, good=3, bad=2)
    command = [
        str(layers(tmp_path, count=5)),
        str(tmp_path / "model.plan"),
        "--if-needed",
        "--precision",
        "int8",
    ]
    command += ["--calibration", str(pictures), "--int8-groups", "stem,backbone,outputs"]
    to_plan.main(command)
    said = capsys.readouterr().err
    assert re.search(
        r"warning: 2 of 5 pictures cannot be read, the first \S+: found.*: going on with 3", said
    )
    assert said.index("warning") < said.index("building")
    to_plan.main(command)
    assert tensorrt.builds == 1
    to_plan.main([*command, "--pictures", "2"])
    assert tensorrt.builds == 2
    (pictures / "1-good.png").write_bytes(encode(picture(40, 60, seed=9)))
    to_plan.main([*command, "--pictures", "2"])
    assert tensorrt.builds == 3
    assert "a plan is needed: calibration_sha256" in capsys.readouterr().err
    for path in pictures.glob("*good*"):
        path.write_bytes(b"no more")
    (tmp_path / "model.plan").unlink()
    with pytest.raises(UsageError, match=r"5 of 5 pictures cannot be read.*too few are left"):
        to_plan.main(command)
    assert tensorrt.builds == 3
