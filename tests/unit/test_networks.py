"""The networks against the original's outputs, torchvision's backbones, and a naive DCN."""

import math

import golden
import numpy as np
import pytest
import reference
import tiny
import torch
import torchvision
from torch import nn

from export.networks import ARCHITECTURES, create
from export.networks.dcn import DCN
from export.networks.layers import upsample


@pytest.mark.parametrize("arch", reference.ARCHITECTURES)
def test_equals_the_original(shared, arch):
    network = create(arch, reference.HEADS)
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert shapes == reference.keys(shared, arch)
    network.load_state_dict(reference.state_dict(shared, arch), strict=True)
    image = torch.from_numpy(reference.weights(shared).image((1, 3, 128, 128), seed=0))
    with torch.inference_mode():
        outputs = network.eval()(image)
    golden = reference.golden(shared, arch)
    assert list(outputs) == list(reference.HEADS)
    for name, output in outputs.items():
        np.testing.assert_allclose(output.numpy(), golden[f"out/{name}"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("arch", golden.ARCHITECTURES)
def test_equals_the_golden_file(arch):
    with np.load(golden.FILE) as file:
        expected = {name: file[name] for name in file if name.startswith(f"{arch}/")}
    found = golden.outputs(arch)
    assert list(found) == list(expected) == [f"{arch}/{head}" for head in golden.HEADS]
    for name, values in found.items():
        assert expected[name].std() > 0.05, name
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-3 * np.abs(expected[name]).max())


@pytest.mark.parametrize("depth", [34, 50, 101])
def test_deeper_backbones_equal_torchvision(depth):
    network = create(f"resdcn_{depth}", tiny.HEADS).eval()
    backbone = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    ours = {name: value for name, value in network.state_dict().items() if name in backbone.state_dict()}
    assert set(backbone.state_dict()) - set(ours) == {"fc.weight", "fc.bias"}
    backbone.load_state_dict(ours, strict=False)
    found = []
    network.deconv_layers.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        network.features(image)
        stages = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        expected = nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu, backbone.maxpool, *stages)(
            image
        )
    torch.testing.assert_close(found[0], expected)


def test_mobilenetv2s_backbone_equals_torchvision():
    backbone = tiny.network("mobilenetv2", width=1).base
    theirs = torchvision.models.mobilenet_v2(weights=None).features[:18].eval()
    state = backbone.state_dict().values()  # under other names, in the same order
    theirs.load_state_dict(dict(zip(theirs.state_dict(), state, strict=True)))
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(backbone(image)[-1], theirs(image))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_output_has_stride_4_and_any_batch(arch):
    with torch.inference_mode():
        outputs = tiny.network(arch)(torch.zeros(3, 3, 64, 96))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        name: (3, channels, 16, 24) for name, channels in tiny.HEADS.items()
    }


def naive_dcn(layer: DCN, image: np.ndarray) -> np.ndarray:
    """One output number after the other, in float64, from the definition."""
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    out_channels, in_channels, side, _ = weight.shape
    with torch.no_grad():
        raw = layer.double().conv_offset_mask(torch.from_numpy(image).double()[None])[0].numpy()
    taps = side * side
    _, height, width = image.shape
    output = np.zeros((out_channels, height, width))
    for y in range(height):
        for x in range(width):
            for tap in range(taps):
                sample_y = y + tap // side - side // 2 + raw[2 * tap, y, x]
                sample_x = x + tap % side - side // 2 + raw[2 * tap + 1, y, x]
                mask = 1 / (1 + math.exp(-raw[2 * taps + tap, y, x]))
                top, left = math.floor(sample_y), math.floor(sample_x)
                value = np.zeros(in_channels)
                for row in (top, top + 1):
                    for column in (left, left + 1):
                        if 0 <= row < height and 0 <= column < width:
                            share = (1 - abs(sample_y - row)) * (1 - abs(sample_x - column))
                            value += share * image[:, row, column]
                output[:, y, x] += mask * weight[:, :, tap // side, tap % side] @ value
    return output + bias[:, None, None]


@pytest.mark.parametrize(
    ("channels", "out_channels", "height", "width", "side"),
    [(3, 5, 7, 4, 3), (2, 1, 1, 9, 3), (4, 2, 5, 6, 5)],
)
def test_dcn_against_a_naive_loop(channels, out_channels, height, width, side):
    torch.manual_seed(0)
    layer = DCN(channels, out_channels, kernel_size=side)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0, 0.7)
    images = torch.randn(2, channels, height, width)
    with torch.no_grad():
        found = layer(images).numpy()
    expected = np.stack([naive_dcn(layer, image) for image in images.numpy()])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_new_dcn_is_a_convolution_at_half_strength():
    layer = DCN(3, 4)
    image = torch.randn(1, 3, 6, 5)
    torch.testing.assert_close(layer(image), nn.functional.conv2d(image, layer.weight / 2, padding=1))


@pytest.mark.parametrize(("factor", "groups"), [(2, 1), (2, 6), (4, 6)])
def test_new_upsampling_is_bilinear(factor, groups):
    image = torch.randn(1, 6, 5, 7)
    found = upsample(6, factor, groups=groups)(image)
    expected = nn.functional.interpolate(image, scale_factor=factor, mode="bilinear", align_corners=False)
    assert found.shape == expected.shape
    # Outside the picture, interpolation repeats the border and convolution sees zeros.
    inner = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(found[inner], expected[inner])


@pytest.mark.parametrize("arch", ["resdcn_18", "dla_34"])
def test_training_reaches_every_used_weight(arch):
    network = create(arch, tiny.HEADS, width=0.25)
    assert torch.all(network.hm[2].bias == -2.19)
    sum(output.square().mean() for output in network(torch.randn(2, 3, 64, 64)).values()).backward()
    unused = ("base.level3.project", "base.level4.project")
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith(unused), name


def test_width_scales_every_layer():
    full, half = (create("dla_34", {"hm": 1}, width=width).state_dict() for width in (1, 0.5))
    assert half.keys() == full.keys()
    assert half["base.level5.root.conv.weight"].shape == (256, 640, 1, 1)
    assert half["hm.0.weight"].shape == (128, 32, 3, 3)


@pytest.mark.parametrize(
    ("arch", "width", "message"),
    [
        ("resdcn_19", 1, "unknown architecture 'resdcn_19'.*resdcn_18"),
        ("dla_34", 0.1, "1.6 channels"),
        ("dla_34", 0, "0"),
    ],
)
def test_impossible_networks_are_refused(arch, width, message):
    with pytest.raises(ValueError, match=message):
        create(arch, {"hm": 1}, width=width)
