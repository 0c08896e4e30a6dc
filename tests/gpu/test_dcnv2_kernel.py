"""Every tactic of the kernels against torchvision in FP64."""

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from dcnv2.library import KernelError, Kernels, Layer  # noqa: E402
from torchvision.ops import deform_conv2d  # noqa: E402

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
LOPSIDED = {"stride": (2, 1), "padding": (1, 0), "dilation": (3, 2)}


@pytest.fixture(scope="module")
def kernels():
    path = Path(os.environ.get("DCNV2_KERNEL_LIBRARY", ROOT / "build/kernel/libdcnv2_kernel.so"))
    if not path.exists():
        pytest.skip(f"no {path}: ci/gpu/kernel builds it")
    return Kernels(path)


def draw(
    batch,
    channels,
    height,
    width,
    outs,
    *,
    kernel=(3, 3),
    groups=1,
    offset_groups=1,
    spread=2.0,
    dtype=HALF,
    **geometry,
):
    """Input, offset, mask logits, weight, bias."""
    stride, padding, dilation = (
        geometry.get(name, default)
        for name, default in (("stride", (1, 1)), ("padding", (1, 1)), ("dilation", (1, 1)))
    )
    out_h, out_w = (
        (size + 2 * pad - dil * (k - 1) - 1) // step + 1
        for size, pad, dil, k, step in zip((height, width), padding, dilation, kernel, stride, strict=True)
    )
    taps = offset_groups * kernel[0] * kernel[1]
    fan = channels // groups * kernel[0] * kernel[1]
    tensors = (
        torch.randn(batch, channels, height, width),
        torch.randn(batch, 2 * taps, out_h, out_w) * spread,
        torch.randn(batch, taps, out_h, out_w),
        torch.randn(outs, channels // groups, *kernel) / fan**0.5,
        torch.randn(outs),
    )
    return [tensor.to("cuda", dtype) for tensor in tensors]


def torchvision(tensors, *, relu=False, double=True, **geometry):
    data, offset, logits, weight, bias = (tensor.double() if double else tensor for tensor in tensors)
    geometry.setdefault("padding", (1, 1))
    output = deform_conv2d(data, offset, weight, bias, mask=logits.sigmoid(), **geometry)
    return output.relu() if relu else output


def error(output, truth):
    return ((output.double() - truth).norm() / truth.norm()).item()


def run_all(kernels, tensors, *, packed=True, offset_type=None, tf32=False, choose=list, **options):
    """Yields the number and output of each tactic, or of those that `choose` takes."""
    data, offset, logits, weight, bias = tensors
    offset_type = offset_type or offset.dtype
    mask = None if packed else logits.sigmoid().to(offset_type)
    offset = (torch.cat([offset, logits], dim=1) if packed else offset).to(offset_type)
    layer = Layer(data, offset, mask, weight, bias, packed=packed, allow_tf32=tf32, **options)
    for tactic in choose(kernels.tactics(layer)):
        layer.output.fill_(float("nan"))
        layer.use_workspace(kernels.workspace_size(layer, tactic))
        yield tactic, kernels.run(layer, tactic).clone()


SHAPES = {
    "16x16": (2, 512, 16, 16, 256),
    "32x32": (1, 256, 32, 32, 128),
    "64x64": (1, 128, 64, 64, 64),
    "128x128": (1, 64, 128, 128, 64),
    "uneven": (3, 72, 19, 45, 70),
    "narrow": (1, 8, 1, 33, 8),
    "one pixel": (1, 64, 1, 1, 64),
    "batch 33": (33, 64, 7, 9, 24),
}


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=["fp16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_tactic_is_as_good_as_torchvision(kernels, shape, dtype, channels_last):
    torch.manual_seed(1)
    tensors = draw(*shape, dtype=dtype)
    truth = torchvision(tensors)
    limit = 2 * error(torchvision(tensors, double=False), truth) if dtype == HALF else 2**-7
    for tactic, output in run_all(kernels, tensors, channels_last=channels_last, pad_channels=channels_last):
        assert error(output, truth) < limit, tactic


def one_of_each_tile(tactics):
    """For each tile shape one tactic that splits its depth, and the one that does not."""
    return {(tactic // 16, tactic % 16 > 0): tactic for tactic in tactics}.values()


# Small, for compute-sanitizer: racecheck takes hours over the rest. With 200 channels every tile shape runs.
SMALL = {name: SHAPES[name] for name in ("uneven", "narrow", "one pixel")} | {"wide": (1, 64, 3, 5, 200)}


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=["fp16", "fp32"])
@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)
def test_each_tile_on_small_layers(kernels, shape, dtype, channels_last):
    torch.manual_seed(7)
    tensors = draw(*shape, dtype=dtype)
    truth = torchvision(tensors)
    options = {"channels_last": channels_last, "tf32": True, "choose": one_of_each_tile}
    for tactic, output in run_all(kernels, tensors, **options):
        assert error(output, truth) < 1e-3, tactic


@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fp32(kernels, shape, channels_last, tf32):
    torch.manual_seed(2)
    tensors = draw(*shape, dtype=FLOAT)
    truth = torchvision(tensors)
    for tactic, output in run_all(kernels, tensors, channels_last=channels_last, tf32=tf32):
        assert error(output, truth) < (1e-3 if tf32 and tactic > 1 else 1e-5), tactic


@pytest.mark.parametrize(
    "options",
    [
        {"relu": True},
        {"packed": False},
        {"packed": False, "offset_type": FLOAT},
        {"offset_type": FLOAT, "pad_channels": True},
        {"weight_ohwi": False},
    ],
    ids=str,
)
def test_options(kernels, options):
    torch.manual_seed(3)
    tensors = draw(2, 64, 12, 20, 136)
    truth = torchvision(tensors, relu=options.get("relu", False))
    for tactic, output in run_all(kernels, tensors, **options):
        assert error(output, truth) < 1e-3, tactic


@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=["fp16", "fp32"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("offset_groups", [1, 3])
@pytest.mark.parametrize("batch", [1, 33])
@pytest.mark.parametrize(
    "geometry", [{"kernel": (3, 2), **LOPSIDED}, {"kernel": (1, 1), "padding": (0, 0)}], ids=str
)
def test_lopsided(kernels, geometry, batch, offset_groups, groups, dtype):
    torch.manual_seed(4)
    tensors = draw(
        batch, 192, 11, 14, 34, groups=groups, offset_groups=offset_groups, dtype=dtype, **geometry
    )
    convolution = {name: value for name, value in geometry.items() if name != "kernel"}
    truth = torchvision(tensors, **convolution)
    for tactic, output in run_all(
        kernels, tensors, groups=groups, offset_groups=offset_groups, **convolution
    ):
        assert error(output, truth) < 1e-3, tactic


# EDVR, BasicVSR++, grouped networks, and a step that reads parts of three groups.
GROUPED = {
    "64 by 8": (1, 64, 19, 45, 64, 8),
    "128 by 16": (2, 128, 11, 14, 64, 16),
    "128 by 4": (1, 128, 11, 14, 128, 4),
    "96 by 4": (1, 96, 7, 9, 70, 4),
    "16 by 2": (1, 16, 7, 9, 8, 2),
}


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=["fp16", "tf32"])
@pytest.mark.parametrize("shape", GROUPED.values(), ids=GROUPED)
def test_small_offset_groups(kernels, shape, dtype, channels_last):
    torch.manual_seed(10)
    *shape, offset_groups = shape
    tensors = draw(*shape, offset_groups=offset_groups, dtype=dtype)
    truth = torchvision(tensors)
    options = {"channels_last": channels_last, "pad_channels": channels_last, "offset_groups": offset_groups}
    tactics = []
    for tactic, output in run_all(kernels, tensors, tf32=True, **options):
        assert error(output, truth) < 1e-3, tactic
        tactics.append(tactic)
    assert len(tactics) > 1, "only the plain kernel ran"


@pytest.mark.parametrize("channels", [8, 24, 32, 48])
def test_several_taps_a_step(kernels, channels):
    torch.manual_seed(11)
    tensors = draw(2, channels, 13, 17, 40)
    truth = torchvision(tensors)
    for tactic, output in run_all(kernels, tensors):
        assert error(output, truth) < 1e-3, tactic


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e4])
def test_offsets_out_of_range_count_as_zero_samples(kernels, value):
    torch.manual_seed(5)
    tensors = draw(1, 64, 16, 16, 64)
    tensors[1] = tensors[1].float()
    away = torch.rand_like(tensors[1]) < 0.2
    known = tensors[:]
    known[1] = tensors[1].masked_fill(away, 1e6)
    truth = torchvision(known)
    tensors[1] = tensors[1].masked_fill(away, value)
    for tactic, output in run_all(kernels, tensors, offset_type=FLOAT):
        assert error(output, truth) < 1e-3, tactic


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT], ids=["fp16", "bf16", "tf32"])
@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_samples_outside_are_zero_beside_infinite_pixels(kernels, value, dtype):
    torch.manual_seed(8)
    tensors = draw(1, 72, 16, 16, 64, dtype=dtype)
    side = torch.arange(16, device="cuda")
    taps = torch.arange(9, device="cuda")[:, None, None]
    places = torch.stack(
        [side[:, None] - 1 + taps // 3 + 0 * side, side[None, :] - 1 + taps % 3 + 0 * side[:, None]], dim=1
    ).flatten(0, 1)
    # All into the lower right, far from the first pixels; some then away from there.
    offset = 4 + 10 * torch.rand(1, 18, 16, 16, device="cuda") - places
    away = torch.rand_like(offset) < 0.2
    tensors[1] = offset.masked_fill(away, 1e6)
    truth = torchvision(tensors)
    tensors[0][..., :2, :2] = float("inf")
    tensors[1] = offset.masked_fill(away, value)
    for tactic, output in run_all(kernels, tensors, offset_type=FLOAT, tf32=True):
        assert error(output, truth) < (1e-2 if dtype == BFLOAT else 1e-3), tactic


def test_tactic_that_cannot_run_is_refused_and_nothing_stays_behind(kernels):
    torch.manual_seed(9)
    data, offset, logits, weight, bias = draw(1, 64, 16, 16, 64)
    layer = Layer(data, torch.cat([offset, logits], dim=1), None, weight, bias, packed=True)
    best = kernels.tactics(layer)[0]
    expected = kernels.run(layer, best).clone()
    # No such shapes; more blocks than a cluster has; fewer steps than eight blocks need.
    for tactic in (0, 16 * 9, 16 * 2 + 4, 16 * 2 + 3):
        with pytest.raises(KernelError, match="cudaErrorNotSupported"):
            kernels.run(layer, tactic)
        assert torch.equal(kernels.run(layer, best), expected)


def test_empty_batch(kernels):
    for tactic, output in run_all(kernels, draw(0, 64, 8, 8, 64)):
        assert output.shape == (0, 64, 8, 8), tactic


def test_runs_are_bitwise_equal(kernels):
    torch.manual_seed(6)
    tensors = draw(1, 512, 16, 16, 256)
    first, second = (dict(run_all(kernels, tensors)) for _ in range(2))
    for tactic, output in first.items():
        assert torch.equal(output, second[tactic]), tactic
