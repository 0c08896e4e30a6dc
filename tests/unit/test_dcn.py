"""The stand-in for compiled extensions: names, arguments, parameters, results, and what is exported."""

import sys
import warnings
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torchvision.ops import deform_conv2d

from export import dcn


def randomised(layer):
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer.eval()


PACKS = {
    "DCN": (dcn.DCN(4, 6, kernel_size=(3, 3), stride=1, padding=1, deformable_groups=2), "conv_offset_mask"),
    "mmcv": (dcn.ModulatedDeformConv2dPack(4, 6, 3, 2, 1, groups=2, deform_groups=2), "conv_offset"),
    "mmcv v1": (dcn.MMCVDeformConv2dPack(4, 6, 3, 1, 2, 2, 1, 2, False, im2col_step=64), "conv_offset"),
}


@pytest.mark.parametrize("name", PACKS)
def test_packs_compute_and_export_what_torchvision_does(name, tmp_path):
    layer, predictor = PACKS[name]
    layer = randomised(layer)
    x = torch.randn(2, 4, 9, 8)
    packed = layer.get_submodule(predictor)(x)
    offset, mask = packed, None
    if name != "mmcv v1":
        y, x_offset, mask = packed.chunk(3, dim=1)
        offset, mask = torch.cat((y, x_offset), 1), mask.sigmoid()
    geometry = layer.stride, layer.padding, layer.dilation
    expected = deform_conv2d(x, offset, layer.weight, layer.bias, *geometry, mask)
    torch.testing.assert_close(layer(x), expected)
    keys = {"weight", f"{predictor}.weight", f"{predictor}.bias"} | (
        {"bias"} if layer.bias is not None else set()
    )
    assert set(layer.state_dict()) == keys

    batch = torch.export.Dim("batch")
    path = tmp_path / "layer.onnx"
    torch.onnx.export(
        layer, (x,), path, dynamo=True, opset_version=19, dynamic_shapes=({0: batch},), verbose=False
    )
    assert [node.op_type for node in onnx.load(path).graph.node].count("DeformConv") == 1
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected.detach(), atol=1e-5)


def test_given_offsets():
    x, offset, mask = torch.randn(1, 4, 6, 5), torch.randn(1, 18, 6, 5), torch.rand(1, 9, 6, 5)
    weight, bias = torch.randn(2, 4, 3, 3), torch.randn(2)
    expected = deform_conv2d(x, offset, weight, bias, 1, 1, 1, mask)
    for function in (dcn.dcn_v2_conv, dcn.modulated_deform_conv2d):
        torch.testing.assert_close(function(x, offset, mask, weight, bias, 1, 1, 1, 1), expected)
    torch.testing.assert_close(dcn.deform_conv2d(x, offset, weight, bias, 1, 1, 1, mask), expected)
    plain = deform_conv2d(x, offset, weight, None, 1, 1)
    torch.testing.assert_close(dcn.mmcv_deform_conv2d(x, offset, weight, 1, 1), plain)
    for layer in (dcn.DCNv2(4, 2, 3, 1, 1), dcn.ModulatedDeformConv2d(4, 2, 3, padding=1)):
        layer.weight.data, layer.bias.data = weight, bias
        torch.testing.assert_close(layer(x, offset, mask), expected)


def test_maps_larger_than_the_output_are_read_as_the_original_cuda_code_does():
    """It counts rows and columns of the output in the memory of the map."""
    rng = np.random.default_rng(0)
    x, weight = torch.randn(2, 3, 7, 9), torch.randn(5, 3, 3, 3)
    offset, mask = rng.normal(0, 1, (2, 18, 7, 9)).astype("f4"), rng.uniform(0, 1, (2, 9, 7, 9)).astype("f4")
    height, width = 4, 5
    read = {"offset": np.empty((2, 18, height, width), "f4"), "mask": np.empty((2, 9, height, width), "f4")}
    for image in range(2):
        for name, values in (("offset", offset), ("mask", mask)):
            memory = values[image].ravel()
            for channel in range(values.shape[1]):
                for row in range(height):
                    for column in range(width):
                        at = (channel * height + row) * width + column
                        read[name][image, channel, row, column] = memory[at]
    expected = deform_conv2d(
        x, torch.tensor(read["offset"]), weight, None, 2, 1, 1, torch.tensor(read["mask"])
    )
    with pytest.warns(
        UserWarning, match="offset is 7x9 and the output 4x5: its first values in memory are read"
    ):
        found = dcn.deform_conv2d(x, torch.tensor(offset), weight, None, 2, 1, 1, torch.tensor(mask))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="found offset of 3x3, expected at least the output's 4x5"):
        dcn.deform_conv2d(x, torch.zeros(2, 18, 3, 3), weight, None, 2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dcn.deform_conv2d(x, torch.zeros(2, 18, 4, 5), weight, None, 2, 1)


NETWORK = """
from export import dcn
dcn.install()
dcn.install("models.networks.DCNv2.dcn_v2")
from dcn_v2 import DCN, DCNv2, dcn_v2_conv
from DCNv2.dcn_v2 import DCN as other
from models.networks.DCNv2.dcn_v2 import DCN as third
from mmcv.ops import ModulatedDeformConv2dPack, DeformConv2d
from mmcv.ops import modulated_deform_conv2d
assert DCN is other is third is dcn.DCN
assert DeformConv2d is dcn.MMCVDeformConv2d
"""


def test_two_lines_and_their_imports_find_it():
    with mock.patch.dict(sys.modules):
        exec(NETWORK, {})
    with pytest.raises(ValueError, match=r"found detectron2, expected a module that ends in one of dcn_v2"):
        dcn.install("detectron2")
