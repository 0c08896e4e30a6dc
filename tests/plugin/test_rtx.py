"""TensorRT-RTX parses and builds the plugin's layers, for GPUs that are not here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from single_layer import Layer, lopsided
from toolchain_of_plugin import find_library, find_tensorrt

TARGETS = ("SM86", "SM120")
LOPSIDED = {"stride": [2, 1], "padding": [1, 0], "dilation": [3, 2], "groups": 2, "deformable_group": 4}
LAYERS = {
    "FP32": Layer(),
    "FP16": Layer(precision="fp16"),
    "BF16": Layer(precision="bf16"),
    "FP16 with FP32 offsets": Layer(precision="fp16", offset_precision="fp32"),
    "BF16 with FP32 offsets": Layer(precision="bf16", offset_precision="fp32"),
    "lopsided": Layer(kernel=(3, 2), attributes=LOPSIDED),
    "lopsided FP16": Layer(precision="fp16", kernel=(3, 2), attributes=LOPSIDED),
    "1x1, no attributes": Layer(kernel=(1, 1), attributes={}),
    "odd channels": Layer(precision="fp16", shape=(1, 13, 7, 9), out_channels=5),
    "weights as inputs": Layer(precision="fp16", constant_weights=False),
    "fused": Layer(
        precision="fp16", attributes={"padding": 1, "packed_offset_mask": 1, "weight_ohwi": 1, "relu": 1}
    ),
    "8 channels an offset group": Layer(
        precision="fp16", shape=(2, 64, 24, 40), attributes={"padding": 1, "deformable_group": 8}
    ),
    "INT8": Layer(
        precision="int8",
        offset_precision="fp16",
        shape=(2, 64, 24, 40),
        out_channels=32,
        attributes={"padding": 1, "packed_offset_mask": 1, "weight_ohwi": 1, "relu": 1, "quantized": 1},
    ),
    "INT8 to INT8": Layer(
        precision="int8",
        offset_precision="fp32",
        out_channels=16,
        attributes={"padding": 1, "quantized": 1, "quantized_output": 1},
    ),
    "fused lopsided": Layer(
        kernel=(3, 2), attributes=LOPSIDED | {"packed_offset_mask": 1, "weight_ohwi": 1, "allow_tf32": 1}
    ),
}


@pytest.fixture
def build(tmp_path: Path):
    """`build(layer, **job)`: what TensorRT-RTX answers for each target; see rtx_build.py."""
    tensorrt, library = find_tensorrt("rtx"), find_library("rtx")

    def run(layer: Layer, *, targets: tuple[str, ...] = TARGETS, **job: object) -> list[dict]:
        path = layer.write(tmp_path / "layer.onnx")
        jobs = [{"onnx": str(path), "target": target, **job} for target in targets]
        result = subprocess.run(
            [sys.executable, Path(__file__).with_name("rtx_build.py"), library],
            input=json.dumps(jobs),
            env=tensorrt.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.mark.parametrize("name", LAYERS)
def test_layer_builds(build, name: str) -> None:
    for result in build(LAYERS[name]):
        assert result["engine"] > 0, result["log"]


@pytest.mark.parametrize("index", range(6))
def test_lopsided_layer_builds(build, index: int) -> None:
    """Their output's shape is the one that the plugin says, and what follows it takes."""
    layer = list(lopsided(6, batch=2))[index]
    for result in build(layer, targets=TARGETS[:1]):
        assert result["engine"] > 0, result["log"]
        assert result["output"] == [2, layer.out_channels, layer.output_side(0), layer.output_side(1)]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_channels_last_tensors_build(build, precision: str) -> None:
    for result in build(Layer(precision=precision), channels_last=["input", "offset", "mask", "output"]):
        assert result["engine"] > 0, result["log"]


@pytest.mark.parametrize("packed", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_dynamic_batch_height_and_width_build(build, precision: str, packed: int) -> None:
    attributes = {"padding": 1, "stride": 2, "packed_offset_mask": packed}
    layer = Layer(precision=precision, shape=(None, 16, None, None), attributes=attributes)
    profile = {
        name: [
            [batch, shape[1], *([side, side + 2] if name == "input" else [(side + 1) // 2, (side + 3) // 2])]
            for batch, side in ((0, 8), (2, 31), (16, 65))
        ]
        for name, shape in layer.input_shapes().items()
        if name not in ("weight", "bias")
    }
    for result in build(layer, profile=profile):
        assert result["engine"] > 0, result["log"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            Layer(shapes={"offset": [2, 17, 24, 40]}),
            "offset has 17 channels, expected 18 (2 * deformable_group 1 * kernel 3x3)",
        ),
        (Layer(shapes={"mask": [2, 9, 24, 39]}), "mask has width 39, expected 40 (the output's)"),
        (Layer(shapes={"weight": [8, 15, 3, 3]}), "weight has 15 input channels, expected 16"),
        (Layer(shapes={"bias": [7]}), "bias has 7 values, expected 8"),
        (Layer(shapes={"input": [16, 24, 40]}), "input has 3 dimensions, expected 4"),
        (
            Layer(attributes={"padding": [1, 1, 1, 1]}),
            "attribute padding has 4 values, expected 1 or 2 (height, width)",
        ),
        (Layer(attributes={"padding": 1, "relu": 2}), "attribute relu is 2, expected 0 or 1"),
        (
            Layer(attributes={"padding": 1, "groups": 3}, shapes={"weight": [8, 16, 3, 3]}),
            "input has 16 channels, expected a multiple of groups 3",
        ),
    ],
)
def test_mistake_is_named_at_parse_time(build, layer: Layer, message: str) -> None:
    for result in build(layer):
        assert result["engine"] == 0
        log = "\n".join(result["log"])
        assert f"DCNv2 node 'layer': {message}" in log
        assert "Engine generation" not in log
