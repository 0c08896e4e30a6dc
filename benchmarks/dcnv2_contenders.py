"""Who runs one DCNv2 layer in `benchmarks.dcnv2`, of those that need no TensorRT; and how it is timed."""

import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from dcnv2.library import Kernels, Layer
from torch import Tensor
from torchvision.ops import deform_conv2d

from benchmarks.roofline import TAPS, Shape
from benchmarks.workers import SkippedError


@dataclass(frozen=True)
class Inputs:
    """One set of a layer's tensors; offsets within ±2 pixels.

    Attributes:
        input: [N, C, H, W].
        offset: [N, 18, H, W], of each offset group.
        logits: [N, 9, H, W], of each offset group: the mask before its sigmoid.
        weight: [O, C, 3, 3].
        bias: [O].
    """

    input: Tensor
    offset: Tensor
    logits: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def rotation(cls, shape: Shape, batch: int, dtype: torch.dtype, device: str) -> list["Inputs"]:
        """Sets with the same weights, whose other tensors are together twice the L2 cache; equal each time.

        As in a network: weights stay in the cache, which an engine holds as constants, too.
        """
        cache = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0
        count = max(2, math.ceil(2 * cache / shape.map_bytes(batch, dtype.itemsize)))
        generator = torch.Generator(device).manual_seed(0)
        side = shape.size

        def draw(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, device=device)

        weight = (draw(shape.out_channels, shape.channels, 3, 3) / (shape.channels * TAPS) ** 0.5).to(dtype)
        bias = draw(shape.out_channels).to(dtype)
        return [
            cls(
                draw(batch, shape.channels, *side).to(dtype),
                (torch.rand(batch, 2 * shape.samples, *side, generator=generator, device=device) * 4 - 2).to(
                    dtype
                ),
                draw(batch, shape.samples, *side).to(dtype),
                weight,
                bias,
            )
            for _ in range(count)
        ]

    def truth(self, images: int) -> Tensor:
        """Output of the first `images` images in FP64 [N, O, H, W]."""
        double = [
            tensor.double() for tensor in (self.input, self.offset, self.logits, self.weight, self.bias)
        ]
        data, offset, logits = (tensor[:images] for tensor in double[:3])
        return deform_conv2d(data, offset, *double[3:], padding=1, mask=logits.sigmoid())


def _rounded(values: Tensor) -> Tensor:
    return values.float().round().clamp(-127, 127).to(torch.int8)


def plain_truth(inputs: Inputs, images: int) -> Tensor:
    """What a plain convolution of the same shape gives, in FP64 [N, O, H, W]."""
    data, weight, bias = (tensor.double() for tensor in (inputs.input[:images], inputs.weight, inputs.bias))
    return torch.nn.functional.conv2d(data, weight, bias, padding=1)


Run = Callable[[], Tensor]


class Contender(ABC):
    """One way to run a layer.

    Attributes:
        graph: Whether it is timed as a CUDA graph; else on the default stream, as it is launched.
    """

    graph = True

    @staticmethod
    def truth(inputs: Inputs, images: int) -> Tensor:
        """What the first `images` images must give, in FP64 [N, O, H, W]."""
        return inputs.truth(images)

    @abstractmethod
    def prepare(self, shape: Shape, batch: int, sets: Sequence[Inputs]) -> list[Run]:
        """A call for each set, which enqueues the layer and returns its output [N, O, H, W].

        Raises:
            SkippedError: If it cannot run here.
        """

    def read(self, output: Tensor) -> Tensor:
        """The numbers that an output stands for."""
        return output

    def facts(self) -> dict[str, Any]:
        """What is worth a note about the layer that was prepared last."""
        return {}


class Ours(Contender):
    """The plugin's kernels, called directly; as TensorRT does it, every tactic is timed and the fastest kept.

    The mask's sigmoid is part of them.

    Args:
        kernels: The library.
        tf32: Whether FP32 tensors may be rounded to TF32.
        int8: Quantizes input and weights, as `export.plan.quantize` does; the output is INT8, too.
    """

    _OUTPUT_SCALE = 8 / 127  # of the sums of normal inputs and a normal bias

    def __init__(self, kernels: Kernels, *, tf32: bool, int8: bool = False) -> None:
        self._kernels = kernels
        self._tf32 = tf32
        self._int8 = int8
        self._times_us: dict[int, float] = {}

    def prepare(self, shape: Shape, batch: int, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""
        linear = sets[0].input.dtype == torch.float32
        # Repacked once, for all: as the kernel wants it, the layer keeps it without a copy.
        weight, bias = sets[0].weight.contiguous(memory_format=torch.channels_last), sets[0].bias
        inputs = [one.input for one in sets]
        options: dict[str, Any] = {}
        if self._int8:
            weight_scale, scale = weight.float().abs().amax((1, 2, 3)) / 127, 5 / 127  # inputs are normal
            weight = _rounded(weight / weight_scale[:, None, None, None])
            inputs = [_rounded(each / scale) for each in inputs]
            bias = bias.float() / self._OUTPUT_SCALE
            options = {"scale": weight_scale * scale / self._OUTPUT_SCALE, "output_type": torch.int8}
        layers = [
            Layer(
                data,
                torch.cat([one.offset, one.logits], dim=1),
                None,
                weight,
                bias,
                packed=True,
                channels_last=not linear,
                pad_channels=not linear,
                allow_tf32=self._tf32,
                offset_groups=shape.offset_groups,
                **options,
            )
            for data, one in zip(inputs, sets, strict=True)
        ]
        self._times_us = {}
        for tactic in self._kernels.tactics(layers[0]):
            self._times_us[tactic] = time_runs(self._runs(layers, tactic), graph=True, repeats=5).us
        if not self._times_us:
            raise SkippedError("the library has no kernel for this layer")
        return self._runs(layers, min(self._times_us, key=lambda tactic: self._times_us[tactic]))

    def facts(self) -> dict[str, Any]:
        """The fastest tactic, and microseconds of all."""
        fastest = min(self._times_us, key=lambda tactic: self._times_us[tactic])
        return {"tactic": fastest, "tactics_us": self._times_us}

    def read(self, output: Tensor) -> Tensor:
        """See `Contender`."""
        return output * self._OUTPUT_SCALE if self._int8 else output

    def _runs(self, layers: Sequence[Layer], tactic: int) -> list[Run]:
        size = self._kernels.workspace_size(layers[0], tactic)
        for layer in layers:
            layer.use_workspace(size)
        return [partial(self._kernels.run, layer, tactic) for layer in layers]


class Torchvision(Contender):
    """`torchvision.ops.deform_conv2d`, its mask computed beforehand."""

    # It launches on the default stream: a CUDA graph would hold a part of it, another stream time a part.
    graph = False

    def prepare(self, shape: Shape, batch: int, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""
        return [
            partial(
                deform_conv2d,
                one.input,
                one.offset,
                one.weight,
                one.bias,
                padding=1,
                mask=one.logits.sigmoid(),
            )
            for one in sets
        ]


class Compiled(Contender):
    """The same under `torch.compile`, which gets the mask's sigmoid to fuse; without CUDA graphs."""

    graph = False

    def prepare(self, shape: Shape, batch: int, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""

        def layer(data: Tensor, offset: Tensor, logits: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return deform_conv2d(data, offset, weight, bias, padding=1, mask=logits.sigmoid())

        # Else it gives up after so many shapes, and runs the rest uncompiled.
        torch.compiler.reset()
        compiled = torch.compile(layer, dynamic=False, fullgraph=True)
        return [partial(compiled, one.input, one.offset, one.logits, one.weight, one.bias) for one in sets]


class Convolution(Contender):
    """A plain 3x3 convolution of the same shape by cuDNN, channels-last."""

    truth = staticmethod(plain_truth)

    def prepare(self, shape: Shape, batch: int, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""
        torch.backends.cudnn.benchmark = True
        last = torch.channels_last
        weight = sets[0].weight.contiguous(memory_format=last)
        return [
            partial(
                torch.nn.functional.conv2d,
                one.input.contiguous(memory_format=last),
                weight,
                one.bias,
                padding=1,
            )
            for one in sets
        ]


@dataclass(frozen=True)
class Timed:
    """What was timed: median microseconds of one run, and the outputs that the timed runs left."""

    us: float
    outputs: list[Tensor]


def time_runs(runs: Sequence[Run], *, graph: bool, repeats: int) -> Timed:
    """Time rounds through all the runs, on the device where their outputs lie.

    Outputs are filled with NaN before the first timed round: what is timed must have written them.

    Args:
        runs: Called one after another, on inputs that are together larger than the L2 cache.
        graph: Replay them from a CUDA graph; else on the default stream, where what the host needs to launch
            them counts too.
        repeats: Rounds.
    """
    cuda = runs[0]().is_cuda
    outputs: list[Tensor] = []

    def all_runs() -> None:
        # Kept for the round, so that each run writes to memory of its own.
        outputs[:] = [run() for run in runs]

    def poison() -> None:
        for output in outputs:
            output.fill_(math.nan if output.is_floating_point() else 127)

    if not cuda:
        all_runs()
        poison()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            all_runs()
            times.append(time.perf_counter() - start)
        return Timed(statistics.median(times) * 1e6 / len(runs), outputs)

    stream = torch.cuda.Stream() if graph else torch.cuda.default_stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        all_runs()
        replay: Callable[[], None] = all_runs
        if graph:
            torch.cuda.synchronize()
            outputs.clear()
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured, stream=stream):
                all_runs()
            replay = captured.replay
        poison()
        replay()
        times = []
        for _ in range(repeats):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record(stream)
            replay()
            after.record(stream)
            after.synchronize()
            times.append(before.elapsed_time(after) / 1000)
    return Timed(statistics.median(times) * 1e6 / len(runs), outputs)
