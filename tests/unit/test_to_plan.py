"""The command line, what stands beside a plan, and the pictures that are fed."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from centernet_image.description import Description
from onnx import TensorProto, helper

from export import to_plan
from export.errors import ExportError, UsageError
from export.files import sha256
from export.plan import feed_dicts
from export.plan.builder import PlanError, load_tensorrt
from export.plan.profiles import profiles
from export.plan.provenance import Gpu, PlanDescription, find_gpu

ROOT = Path(__file__).parents[2]
FACTS = PlanDescription(
    tensorrt="11.4.0",
    gpu="NVIDIA L4",
    compute_capability="8.9",
    precision="fp16",
    plugin_sha256="aa",
    onnx_sha256="bb",
    profiles={"frame": {"min": [1, 64, 64, 3], "opt": [8, 64, 64, 3], "max": [32, 64, 64, 3]}},
)


def model_of(*shape, name="frame", dtype=TensorProto.UINT8):
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], ["out"])],
        "g",
        [helper.make_tensor_value_info(name, dtype, shape)],
        [helper.make_tensor_value_info("out", dtype, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "export.to_plan", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_without_gpu_and_target_it_says_so_in_one_line(tmp_path):
    onnx.save(model_of("n", 64, 64, 3), tmp_path / "model.onnx")
    done = command(tmp_path / "model.onnx", tmp_path / "model.plan")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "found no NVIDIA GPU" in done.stderr
    assert "--target SM86" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "needs --calibration"),
        (["--int8-groups", "heads"], "--int8-groups: found --precision fp16, expected int8"),
        (["--precision", "int8", "--int8-groups", "head"], "found head, expected some of stem,backbone,"),
        (["--verify", "--target", "SM86"], "--verify runs the plan"),
        (["--target", "86"], "found 86, expected SM"),
        (["--pictures", "0"], "--pictures: found 0, expected 1 or more"),
        (["--batch", "8,1"], "three rising ones"),
        (["--batch", "32,8,1"], "three rising ones"),
        (["--batch", "0"], "three rising ones"),
        (["--batch", "a"], "three rising ones"),
        (["--batch", "2147483648"], "three rising ones up to 2147483647"),
        (["--timing-cache", "other.onnx"], "found other.onnx, expected a name that ends in .cache"),
        (["--optimization-level", "6"], "invalid choice: 6"),
    ],
)
def test_misuse(arguments, message, capsys):
    with pytest.raises(SystemExit) as raised:
        to_plan.main(["model.onnx", "model.plan", *arguments])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "plan", "message"),
    [
        ("model.onnx", "model.onnx", "model.onnx, expected a name that ends in .plan"),
        ("model.onnx", "model.json", "model.json, expected a name that ends in .plan"),
        ("model.plan", "model.plan", "expected a file of its own for each"),
        ("model.plan", "../{}/model.plan", "expected a file of its own for each"),
        ("model.json", "model.plan", "expected a file of its own for each"),
    ],
)
def test_the_model_is_not_overwritten(model, plan, message, tmp_path, capsys):
    onnx.save(model_of("n", 64, 64, 3), tmp_path / "model.onnx")
    (tmp_path / "model.onnx").rename(tmp_path / model)
    before = (tmp_path / model).read_bytes()
    with pytest.raises(SystemExit) as raised:
        to_plan.main([str(tmp_path / model), str(tmp_path / plan.format(tmp_path.name))])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / model).read_bytes() == before


def test_what_is_no_onnx_file(tmp_path, monkeypatch):
    monkeypatch.setattr(to_plan.builder, "with_rtx_libraries", lambda: None)
    other = tmp_path / "picture.png"
    other.write_bytes(b"\x89PNG\r\n\x1a\n" * 9)
    with pytest.raises(UsageError, match=r"picture\.png is not an ONNX file"):
        to_plan.main([str(other), "out.plan", "--target", "SM86"])
    with pytest.raises(UsageError, match=r"cannot read .*nothing\.onnx: No such file"):
        to_plan.main([str(tmp_path / "nothing.onnx"), "out.plan", "--target", "SM86"])


def test_profiles():
    assert profiles(model_of("n", 64, 96, 3), (1, 8, 32)) == {
        "frame": {"min": [1, 64, 96, 3], "opt": [8, 64, 96, 3], "max": [32, 64, 96, 3]}
    }
    assert profiles(model_of(4, 3), (4, 4, 4))["frame"]["opt"] == [4, 3]
    with pytest.raises(
        UsageError, match=r"input frame has shape \['n', 'h', 64, 3\], expected no open dimension"
    ):
        profiles(model_of("n", "h", 64, 3), (1, 8, 32))
    with pytest.raises(UsageError, match=r"fixed batch 4, found --batch 1,8,32: give --batch 4"):
        profiles(model_of(4, 3), (1, 8, 32))


def test_weights_among_the_inputs_have_no_profile():
    model = model_of("n", 3)
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [16, 3]))
    model.graph.initializer.append(helper.make_tensor("weight", TensorProto.FLOAT, [16, 3], [0.0] * 48))
    assert list(profiles(model, (1, 8, 32))) == ["frame"]


@pytest.mark.parametrize(
    "change",
    [
        {"tensorrt": "10.6.0"},
        {"gpu": "NVIDIA H200"},
        {"compute_capability": "9.0"},
        {"plugin_sha256": "cc"},
        {"onnx_sha256": "cc"},
        {"precision": "int8"},
        {"builder_sha256": "cc"},
        {"calibration_sha256": "cc"},
        {"optimization_level": 5},
        {"int8_groups": ["heads"]},
        {"profiles": {}},
    ],
)
def test_a_plan_from_elsewhere_is_recognised(change, tmp_path, capsys):
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"plan")
    console = to_plan.Console(stderr=True)
    plan.with_suffix(".json").write_text(json.dumps({"arch": "dla_34", "plan": asdict(FACTS)}))
    assert to_plan._is_current(plan, FACTS, console)
    assert not to_plan._is_current(plan, replace(FACTS, **change), console)
    ((key, value),) = change.items()
    said = capsys.readouterr().err
    assert f"a plan is needed: {key}: the plan has {getattr(FACTS, key)!r}, found {value!r}" in said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no .*model.json"),
        ("{", "is damaged"),
        ("[]", "has no section 'plan'"),
        ("{}", "has no section 'plan'"),
    ],
)
def test_a_plan_without_description_is_built_again(text, reason, tmp_path, capsys):
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"plan")
    if text is not None:
        plan.with_suffix(".json").write_text(text)
    assert not to_plan._is_current(plan, FACTS, to_plan.Console(stderr=True, width=1000))
    assert re.search(reason, capsys.readouterr().err)


def test_the_description_without_its_plan_is_not_enough(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"plan": asdict(FACTS)}))
    assert not to_plan._is_current(tmp_path / "model.plan", FACTS, to_plan.Console(quiet=True))


@pytest.mark.parametrize(
    "change",
    [
        {"tensorrt": "10.6.0"},
        {"gpu": "NVIDIA H200"},
        {"compute_capability": "9.0"},
        {"plugin_sha256": "cc"},
    ],
)
def test_a_plan_without_its_onnx_file_is_checked(change, tmp_path, monkeypatch, capsys):
    library, plan = tmp_path / "libdcnv2.so", tmp_path / "model.plan"
    library.write_bytes(b"plugin")
    plan.write_bytes(b"plan")
    gpu = Gpu(name=FACTS.gpu, compute_capability=FACTS.compute_capability)
    monkeypatch.setattr(to_plan, "find_gpu", lambda: gpu)
    tensorrt = SimpleNamespace(__version__=FACTS.tensorrt)
    monkeypatch.setattr(to_plan.builder, "load_tensorrt", lambda rtx: tensorrt)
    monkeypatch.setattr(to_plan.builder, "load_plugin", lambda *_, **__: library)
    command = [str(tmp_path / "no.onnx"), str(plan), "--if-needed", "--verify", "--precision", "fp32"]
    with pytest.raises(ExportError, match=r"found no .*model\.json, which export\.to_plan writes"):
        to_plan.main(command)
    fitting = replace(FACTS, plugin_sha256=sha256(library))
    plan.with_suffix(".json").write_text(json.dumps({"plan": asdict(fitting)}))
    to_plan.main(command)
    assert "fits: nothing to build" in capsys.readouterr().err
    plan.with_suffix(".json").write_text(json.dumps({"plan": asdict(replace(fitting, **change))}))
    ((key, value),) = change.items()
    message = rf"does not fit \({key}: the plan has '{value}', found '.*no\.onnx to build"
    with pytest.raises(PlanError, match=message):
        to_plan.main(command)


def test_tensorrt_that_is_not_installed(monkeypatch):
    for name in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PlanError, match=r"no module tensorrt or tensorrt_bindings .*install"):
        load_tensorrt()


def test_pictures_are_fed_as_the_server_feeds_them(tmp_path):
    import cv2

    picture = np.random.default_rng(0).integers(0, 255, (50, 80, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "b.png"), picture)
    cv2.imwrite(str(tmp_path / "a.png"), picture[::-1])
    (tmp_path / "notes.txt").write_text("not a picture")
    paths = feed_dicts.find_pictures(tmp_path).paths
    first, second = feed_dicts.from_pictures(model_of("n", 64, 96, 3), paths)
    assert first["frame"].shape == (1, 64, 96, 3)
    np.testing.assert_array_equal(second["frame"][0], feed_dicts.warp(picture, (64, 96)))
    raw = model_of("n", 3, 64, 96, name="input", dtype=TensorProto.FLOAT)
    with pytest.raises(UsageError, match="that this project did not export: say what they want"):
        next(feed_dicts.from_pictures(raw, paths))
    own = Description(
        arch="toy", form="heads", classes=("a",), input_size=(64, 96), top_k=None, checkpoint_sha256="0" * 64
    )
    helper.set_model_props(raw, own.to_metadata())
    feed = list(feed_dicts.from_pictures(raw, paths))[1]["input"]
    assert feed.dtype == np.float32
    blue = (second["frame"][0, 30, 40, 0] / 255 - 0.408) / 0.289
    assert feed[0, 0, 30, 40] == pytest.approx(blue, abs=1e-6)


def test_pictures_for_another_network_are_refused(tmp_path):
    with pytest.raises(
        ExportError, match="found the inputs images of a network that this project did not export"
    ):
        list(feed_dicts.from_pictures(model_of("n", 3, 64, 64, name="images"), []))


def test_noise_is_smooth_and_repeatable():
    shapes, dtypes = {"frame": [3, 64, 96, 3], "x": [2, 5]}, {"frame": np.uint8, "x": np.float32}
    feed = feed_dicts.noise(shapes, dtypes)
    assert feed["frame"].shape == (3, 64, 96, 3)
    assert feed["x"].dtype == np.float32
    frame = feed["frame"].astype(float)
    assert np.abs(np.diff(frame, axis=2)).mean() < frame.std() / 2
    np.testing.assert_array_equal(feed_dicts.noise(shapes, dtypes)["frame"], feed["frame"])
    assert np.abs(frame[0] - frame[1]).mean() > frame.std() / 2, "each picture is another"
