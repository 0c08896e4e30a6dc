"""The INT8 kernels against torchvision in FP64, on the same integers."""

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

import test_dcnv2_kernel  # noqa: E402
from dcnv2.library import GENERIC_TACTIC, Layer  # noqa: E402
from test_dcnv2_kernel import draw, error, one_of_each_tile  # noqa: E402
from torchvision.ops import deform_conv2d  # noqa: E402

pytestmark = pytest.mark.gpu

kernels = test_dcnv2_kernel.kernels

SHAPES = {
    "16 channels": (1, 16, 9, 21, 16),
    "48 channels": (2, 48, 19, 45, 70),
    "64 channels": (2, 64, 24, 24, 64),
    "160 channels": (1, 160, 7, 9, 200),
    "256 channels": (1, 256, 16, 16, 128),
}
FORMS = {
    "nhwc": {},
    "nhwc, int8 out": {"output_type": torch.int8},
    "planes": {"planes": True},
    "planes, int8 out": {"planes": True, "output_type": torch.int8},
    "nchw": {"channels_last": False},
}


def draw_int8(*shape, offset_groups=1):
    """Input, offset, mask logits, weight, bias, scale; outputs are about 1."""
    data, offset, logits, weight, bias = draw(*shape, offset_groups=offset_groups, dtype=torch.float32)
    depth = weight[0].numel()
    scale = torch.rand_like(bias) / 1600 / depth**0.5 + 1e-5
    data, weight = (
        (tensor * gain).round().clamp(-127, 127) for tensor, gain in ((data, 40), (weight, 40 * depth**0.5))
    )
    return data, offset.half(), logits.half(), weight, bias, scale


def samples(tensors):
    """What the products multiply, [N, C * 9, H, W]: rounded sums of corners, in FP64."""
    data, offset, logits, *_ = (tensor.double() for tensor in tensors)
    count = 9 * data.shape[1]
    pick = torch.eye(count, dtype=torch.double, device="cuda").reshape(count, -1, 3, 3)
    return deform_conv2d(data, offset, pick, padding=1, mask=logits.sigmoid())


def truth(tensors, *, rounded):
    *_, weight, bias, scale = (tensor.double() for tensor in tensors)
    columns = samples(tensors)
    columns = (columns + 0.5).floor() if rounded else columns
    sums = torch.einsum("nkhw,ok->nohw", columns, weight.flatten(1))
    return sums * scale[:, None, None] + bias[:, None, None]


def run_all(kernels, tensors, *, choose=list, **options):
    data, offset, logits, weight, bias, scale = tensors
    unit = 1 / 40 if options.get("output_type") == torch.int8 else 1
    layer = Layer(
        data.to(torch.int8),
        torch.cat([offset, logits], dim=1),
        None,
        weight.to(torch.int8),
        bias / unit,
        packed=True,
        scale=scale / unit,
        **options,
    )
    for tactic in choose(kernels.tactics(layer)):
        layer.use_workspace(kernels.workspace_size(layer, tactic))
        yield tactic, kernels.run(layer, tactic).double() * unit


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_tactic(kernels, shape, form):
    if form.get("planes") and (shape[1] % 32 or shape[4] % 32):
        pytest.skip("planes hold 32 channels")
    torch.manual_seed(1)
    tensors = draw_int8(*shape)
    rounded, exact = (truth(tensors, rounded=each) for each in (True, False))
    if form.get("output_type") == torch.int8:
        rounded, exact = (each.clamp(-128 / 40, 127 / 40) for each in (rounded, exact))
    rounding = 1.5e-2 if form.get("output_type") == torch.int8 else 0
    for tactic, output in run_all(kernels, tensors, **form):
        if tactic == GENERIC_TACTIC:
            assert error(output, exact) < 1e-3 + rounding
            continue
        # The INT8 samples are the kernel's only loss.
        assert error(output, rounded) < 5e-3 + rounding, tactic
        assert error(output, exact) < 0.05, tactic


@pytest.mark.parametrize("form", [FORMS["nhwc"], FORMS["planes, int8 out"]], ids=["nhwc", "planes"])
def test_each_tile_on_a_small_layer(kernels, form):
    """For compute-sanitizer."""
    torch.manual_seed(2)
    tensors = draw_int8(1, 96, 5, 7, 224)
    expected = truth(tensors, rounded=True)
    for tactic, output in run_all(kernels, tensors, choose=one_of_each_tile, **form):
        assert error(output, expected) < 3e-2, tactic


def test_offset_groups(kernels):
    torch.manual_seed(3)
    tensors = draw_int8(1, 64, 9, 11, 32, offset_groups=4)
    parts = []
    for group in range(4):
        data, offset, logits = (tensor.chunk(4, 1)[group] for tensor in tensors[:3])
        parts.append((samples((data, offset, logits)) + 0.5).floor().reshape(1, 16, 9, 9, 11))
    columns = torch.cat(parts, 1).flatten(1, 2)
    *_, weight, bias, scale = (tensor.double() for tensor in tensors)
    sums = torch.einsum("nkhw,ok->nohw", columns, weight.flatten(1))
    expected = sums * scale[:, None, None] + bias[:, None, None]
    for tactic, output in run_all(kernels, tensors, offset_groups=4):
        assert error(output, expected) < (5e-2 if tactic == GENERIC_TACTIC else 5e-3), tactic
