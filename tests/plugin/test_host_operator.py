"""The operator compiled for the host, from the kernels' own source, against ONNX Runtime's DeformConv."""

import ctypes
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import onnxruntime
import pytest
import torch
from dcnv2.library import GENERIC_TACTIC, Layer
from hypothesis import given, settings
from hypothesis import strategies as st
from missing import missing
from onnx import TensorProto, helper
from toolchain_of_plugin import ROOT

LIBRARY = ROOT / "build/dcnv2/tests/libdcnv2_host.so"
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3}
TF32_LIMIT = 2e-3
INPUTS = ("input", "weight", "offset", "bias", "mask")


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A layer in numbers; `channels` and `outs` are those of one group and one set of offsets."""

    channels: int = 2
    outs: int = 3
    size: tuple[int, int] = (11, 9)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_groups: int = 1

    @property
    def options(self) -> dict:
        """What `Layer` takes."""
        names = ("stride", "padding", "dilation", "groups", "offset_groups")
        return {name: getattr(self, name) for name in names}

    @property
    def out_size(self) -> tuple[int, ...]:
        sides = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((size + 2 * pad - dil * (k - 1) - 1) // step + 1 for size, k, step, pad, dil in sides)

    def draw(self, batch, *, spread=1.5, far=False, dtype=torch.float32, seed=0):
        """Input, weight, offset, bias and mask logits; `far` sends every fourth offset far outside."""
        random = np.random.default_rng(seed)
        channels = self.channels * self.groups * self.offset_groups
        samples = self.offset_groups * self.kernel[0] * self.kernel[1]
        depth = channels // self.groups * self.kernel[0] * self.kernel[1]
        offset = random.normal(0, spread, (batch, 2 * samples, *self.out_size))
        if far:
            thrown = random.choice([-3e4, -50.0, 50.0, 3e4], offset.shape)
            offset = np.where(random.random(offset.shape) < 0.25, thrown, offset)
        arrays = (
            random.normal(size=(batch, channels, *self.size)),
            random.normal(size=(self.outs * self.groups, channels // self.groups, *self.kernel)) / depth**0.5,
            offset,
            random.normal(size=self.outs * self.groups),
            random.normal(size=(batch, samples, *self.out_size)),
        )
        return [torch.from_numpy(array).to(dtype) for array in arrays]


@cache
def session(geometry):
    node = helper.make_node(
        "DeformConv",
        INPUTS,
        ["output"],
        strides=geometry.stride,
        pads=(*geometry.padding, *geometry.padding),
        dilations=geometry.dilation,
        group=geometry.groups,
        offset_group=geometry.offset_groups,
    )
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    inputs = [value(name, shape=[None] * (1 if name == "bias" else 4)) for name in INPUTS]
    graph = helper.make_graph([node], "layer", inputs, [value("output", shape=[None] * 4)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def onnx_runtime(geometry, tensors):
    """DeformConv in FP32 on the tensors' values."""
    *tensors, logits = (tensor.float() for tensor in tensors)
    arrays = [tensor.numpy() for tensor in (*tensors, logits.sigmoid())]
    return session(geometry).run(None, dict(zip(INPUTS, arrays, strict=True)))[0]


@pytest.fixture(scope="module")
def operator():
    if not LIBRARY.exists():
        missing(f"no {LIBRARY.relative_to(ROOT)}: ci/plugin builds it")
    forward = ctypes.CDLL(str(LIBRARY)).dcnv2_host_forward

    def run(geometry, tensors, tactic=GENERIC_TACTIC, *, warpgroups=False, packed=True, **options):
        data, weight, offset, bias, logits = tensors
        mask = None if packed else logits.sigmoid()
        offset = torch.cat([offset, logits], dim=1) if packed else offset
        layer = Layer(data, offset, mask, weight, bias, packed=packed, **geometry.options, **options)
        assert forward(*layer.references, ctypes.c_int32(tactic), ctypes.c_int32(warpgroups)) == 0
        return layer.output.float().numpy()

    return run


def assert_close(output, truth, limit):
    assert output.shape == truth.shape
    assert np.linalg.norm(output - truth) <= limit * np.linalg.norm(truth)


def pair(low, high):
    side = st.integers(low, high)
    return st.tuples(side, side)


GEOMETRIES = st.builds(
    Geometry,
    channels=st.integers(1, 5).map(lambda channels: 6 * channels),  # every number of groups divides it
    outs=st.integers(1, 4),
    size=pair(5, 9),
    kernel=pair(1, 3),
    stride=pair(1, 2),
    padding=pair(0, 2),
    dilation=pair(1, 2),
    groups=st.integers(1, 3),
    offset_groups=st.integers(1, 3),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    geometry=GEOMETRIES,
    batch=st.integers(1, 3),
    options=st.fixed_dictionaries(
        {name: st.booleans() for name in ("channels_last", "packed", "weight_ohwi", "pad_channels", "relu")}
    ),
    dtype=st.sampled_from(list(LIMITS)),
    spread=st.sampled_from([0.0, 0.7, 4.0]),
    far=st.booleans(),
    seed=st.integers(0, 99),
)
def test_generated_layers(operator, geometry, batch, options, dtype, spread, far, seed):
    tensors = geometry.draw(batch, spread=spread, far=far, dtype=dtype, seed=seed)
    truth = onnx_runtime(geometry, tensors)
    truth = np.maximum(truth, 0.0) if options["relu"] else truth
    assert_close(operator(geometry, tensors, **options), truth, LIMITS[dtype])


LOPSIDED = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (3, 2)}


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 33])
def test_lopsided_layer(operator, batch, far):
    geometry = Geometry(groups=2, offset_groups=3, **LOPSIDED)
    tensors = geometry.draw(batch, far=far)
    assert_close(operator(geometry, tensors), onnx_runtime(geometry, tensors), 1e-5)


@pytest.mark.parametrize("warpgroups", [False, True], ids=["mma", "wgmma"])
@pytest.mark.parametrize("dtype", list(LIMITS), ids=["tf32", "fp16"])
@pytest.mark.parametrize("tactic", [32, 34, 96, 97], ids=["64x64", "64x64 by 4", "64x32", "64x32 by 2"])
def test_tensor_core_tiles(operator, tactic, dtype, warpgroups):
    """Tactics are 16 * block tile + log2(split-K): tile_shape.h."""
    geometry = Geometry(channels=64, outs=70, offset_groups=2, **LOPSIDED)
    tensors = geometry.draw(2, far=True, dtype=dtype)
    output = operator(geometry, tensors, tactic, warpgroups=warpgroups, allow_tf32=True)
    assert_close(output, onnx_runtime(geometry, tensors), TF32_LIMIT)
