"""Plans of a small detector on a real GPU, compared with ONNX Runtime."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import exported
import numpy as np
import onnx
import pytest
from single_layer import lopsided

from export.errors import ExportError
from export.files import sha256
from export.graphs import rewrite
from export.graphs.surgery import apply, export_graph, import_graph
from export.plan import builder, feed_dicts, lowering, precision, profiles, quantize
from export.plan.builder import load_tensorrt
from export.plan.provenance import find_gpu
from export.verify import against_onnx

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def plugin():
    gpu = find_gpu()
    if gpu is None:
        pytest.skip("needs an NVIDIA GPU")
    try:
        major = load_tensorrt().__version__.split(".")[0]
    except ExportError as error:
        pytest.skip(str(error))
    library = ROOT / "build" / "dcnv2" / f"trt{major}" / "libdcnv2.so"
    if not library.is_file():
        pytest.skip(f"no {library}: ci/plugin builds it")
    return library


@pytest.fixture(scope="module")
def model(plugin, tmp_path_factory):
    return exported.small(tmp_path_factory.mktemp("small"))


def to_plan(*arguments, **environment):
    command = [sys.executable, "-m", "export.to_plan", *map(str, arguments)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("kind", ["fp32", "tf32", "fp16"])
def test_plan_agrees_with_onnx_runtime(model, plugin, kind, tmp_path):
    plan = tmp_path / "model.plan"
    options = ("--precision", kind, "--batch", "1,2,5", "--plugin", plugin)
    done = to_plan(model, plan, *options, "--verify", "--timing-cache", tmp_path / "timing.cache")
    assert done.returncode == 0, done.stderr
    for batch in (1, 2, 5):
        assert f"detections, batch {batch}: " in done.stderr
    facts = json.loads(plan.with_suffix(".json").read_text())["plan"]
    gpu = find_gpu()
    assert (facts["gpu"], facts["compute_capability"]) == (gpu.name, gpu.compute_capability)
    assert facts["plugin_sha256"] == sha256(plugin)
    assert (tmp_path / "timing.cache").stat().st_size > 0
    again = to_plan(model, plan, *options, "--if-needed")
    assert "fits: nothing to build" in again.stderr


@pytest.mark.parametrize(
    "groups", [(), ("backbone", "offsets", "heads"), ("deformable",), quantize.GROUPS], ids="+".join
)
def test_int8_plan_computes_its_graph(model, plugin, groups):
    """The same Q/DQ pairs in ONNX Runtime: what is left is how sums are rounded."""
    trt = load_tensorrt()
    builder.load_plugin(trt, plugin)
    exact = onnx.load(model)
    sides = [side.dim_value for side in exact.graph.input[0].type.tensor_type.shape.dim[1:]]
    feeds = [
        feed_dicts.noise({"frame": [size, *sides]}, {"frame": np.uint8}, seed=size) for size in (1, 1, 2, 5)
    ]
    graph = import_graph(exact)
    to_int8 = partial(quantize.to_int8, feeds=feeds[:2], nodes=quantize.names(graph, groups))
    apply(graph, to_int8, precision.to_fp16)
    reference = export_graph(graph)
    apply(graph, rewrite.to_dense_conv_transpose, rewrite.to_dcnv2)
    engine, _ = builder.build(trt, export_graph(graph), shapes=profiles.profiles(exact, (1, 2, 5)))
    differences = against_onnx.verify(reference, engine, feeds[1:], against_onnx.TOLERANCES["int8"])
    assert all(difference.passed for difference in differences), list(map(str, differences))
    print(*differences, sep="\n")


def test_preloaded_plugin_is_enough(model, plugin, tmp_path):
    plan = tmp_path / "model.plan"
    done = to_plan(model, plan, "--batch", "1,2,4", "--optimization-level", "1", LD_PRELOAD=str(plugin))
    assert done.returncode == 0, done.stderr
    read = (
        "import sys; from export.plan.builder import load_tensorrt; trt = load_tensorrt(); "
        "runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR)); "
        "sys.exit(runtime.deserialize_cuda_engine(open(sys.argv[1], 'rb').read()) is None)"
    )
    for preload, code in ((str(plugin), 0), ("", 1)):
        environment = {**os.environ, "LD_PRELOAD": preload}
        done = subprocess.run([sys.executable, "-c", read, plan], cwd=ROOT, env=environment)
        assert done.returncode == code, preload


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_lopsided_layers_agree_with_onnx_runtime(plugin, precision, tmp_path):
    trt = load_tensorrt()
    builder.load_plugin(trt, plugin)
    for index, layer in enumerate(lopsided(24)):
        model = onnx.load(layer.write(tmp_path / "layer.onnx"))
        network = lowering.make(model, precision)
        shapes = profiles.profiles(model, (1, 2, 5))
        options = {"shapes": shapes, "tf32": network.tf32, "optimization_level": 1}
        engine, _ = builder.build(trt, network.model, **options)
        dtypes = dict.fromkeys(shapes, "float32")
        feeds = [
            feed_dicts.noise({name: shape[key] for name, shape in shapes.items()}, dtypes, seed=index)
            for key in ("min", "opt", "max")
        ]
        found = against_onnx.verify(network.reference, engine, feeds, against_onnx.TOLERANCES[precision])
        assert len(found) == 3
        assert all(difference.passed for difference in found), (layer, list(map(str, found)))
