"""One DCNv2 layer in `benchmarks.dcnv2`: its tensors, who runs it without TensorRT, and how it is timed."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from dcnv2.library import Kernels, Layer
from torch import Tensor
from torchvision.ops import deform_conv2d

from benchmarks.roofline import TAPS, Shape
from benchmarks.timing import times_ms
from benchmarks.workers import SkippedError

Run = Callable[[], Tensor]


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

        def draw(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, device=device)

        def one() -> "Inputs":
            data = draw(batch, shape.channels, *shape.size)
            sizes = (batch, 2 * shape.samples, *shape.size)
            offset = torch.rand(sizes, generator=generator, device=device) * 4 - 2
            logits = draw(batch, shape.samples, *shape.size)
            return cls(data.to(dtype), offset.to(dtype), logits.to(dtype), weight, bias)

        weight = (draw(shape.out_channels, shape.channels, 3, 3) / (shape.channels * TAPS) ** 0.5).to(dtype)
        bias = draw(shape.out_channels).to(dtype)
        return [one() for _ in range(count)]

    def truth(self, images: int, *, plain: bool = False) -> Tensor:
        """Output [N, O, H, W] of the first `images` images in FP64; `plain`, of a plain convolution."""
        maps = (tensor[:images].double() for tensor in (self.input, self.offset, self.logits))
        data, offset, logits = maps
        weight, bias = self.weight.double(), self.bias.double()
        if plain:
            return torch.nn.functional.conv2d(data, weight, bias, padding=1)
        return deform_conv2d(data, offset, weight, bias, padding=1, mask=logits.sigmoid())


class Contender(ABC):
    """One way to run a layer.

    Attributes:
        graph: Whether it is timed as a CUDA graph; else on the default stream, as it is launched.
        plain: Whether it computes a plain convolution.
    """

    graph = False
    plain = False

    @abstractmethod
    def prepare(self, shape: Shape, sets: Sequence[Inputs]) -> list[Run]:
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

    The mask's sigmoid is part of them. INT8 quantizes input and weights, as `export.plan.quantize` does; the
    output is INT8, too.
    """

    graph = True
    _OUTPUT_SCALE = 8 / 127  # of the sums of normal inputs and a normal bias

    def __init__(self, kernels: Kernels, precision: str) -> None:
        self._kernels, self._precision = kernels, precision
        self._times_us: dict[int, float] = {}

    def prepare(self, shape: Shape, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""
        last = sets[0].input.dtype != torch.float32
        # Repacked once, for all: as the kernel wants it, the layer keeps it without a copy.
        weight, bias = sets[0].weight.contiguous(memory_format=torch.channels_last), sets[0].bias
        inputs = [one.input for one in sets]
        options: dict[str, Any] = {"allow_tf32": self._precision == "tf32"}
        if self._precision == "int8":
            weight_scale, scale = weight.float().abs().amax((1, 2, 3)) / 127, 5 / 127  # inputs are normal
            weight = _rounded(weight / weight_scale[:, None, None, None])
            inputs = [_rounded(each / scale) for each in inputs]
            bias = bias.float() / self._OUTPUT_SCALE
            options |= {"scale": weight_scale * scale / self._OUTPUT_SCALE, "output_type": torch.int8}
        options |= {"packed": True, "channels_last": last, "pad_channels": last}
        options |= {"offset_groups": shape.offset_groups}
        packed = [torch.cat([one.offset, one.logits], dim=1) for one in sets]
        layers = [
            Layer(data, offset, None, weight, bias, **options)
            for data, offset in zip(inputs, packed, strict=True)
        ]
        self._times_us = {
            tactic: time_runs(self._runs(layers, tactic), graph=True, repeats=5).us
            for tactic in self._kernels.tactics(layers[0])
        }
        if not self._times_us:
            raise SkippedError("the library has no kernel for this layer")
        return self._runs(layers, self.facts()["tactic"])

    def facts(self) -> dict[str, Any]:
        """The fastest tactic, and microseconds of all."""
        fastest = min(self._times_us, key=lambda tactic: self._times_us[tactic])
        return {"tactic": fastest, "tactics_us": self._times_us}

    def read(self, output: Tensor) -> Tensor:
        """See `Contender`."""
        return output * self._OUTPUT_SCALE if self._precision == "int8" else output

    def _runs(self, layers: Sequence[Layer], tactic: int) -> list[Run]:
        size = self._kernels.workspace_size(layers[0], tactic)
        for layer in layers:
            layer.use_workspace(size)
        return [partial(self._kernels.run, layer, tactic) for layer in layers]


def _rounded(values: Tensor) -> Tensor:
    return values.float().round().clamp(-127, 127).to(torch.int8)


class Torchvision(Contender):
    """`torchvision.ops.deform_conv2d`, its mask computed beforehand, or compiled with the mask's sigmoid.

    It launches on the default stream: a CUDA graph would hold a part of it, another stream time a part.
    """

    def __init__(self, *, compiled: bool = False) -> None:
        self._compiled = compiled

    def prepare(self, shape: Shape, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""

        def layer(data: Tensor, offset: Tensor, logits: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return deform_conv2d(data, offset, weight, bias, padding=1, mask=logits.sigmoid())

        if self._compiled:
            # Else it gives up after so many shapes, and runs the rest uncompiled.
            torch.compiler.reset()
            layer = torch.compile(layer, dynamic=False, fullgraph=True)
            return [partial(layer, one.input, one.offset, one.logits, one.weight, one.bias) for one in sets]
        return [
            partial(
                deform_conv2d,
                *(one.input, one.offset, one.weight, one.bias),
                padding=1,
                mask=one.logits.sigmoid(),
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
    outputs: list[Tensor] = []

    def all_runs() -> None:
        # Kept for the round, so that each run writes to memory of its own.
        outputs[:] = [run() for run in runs]

    def timed(replay: Callable[[], None], stream: Any = None) -> Timed:
        for output in outputs:
            output.fill_(math.nan if output.is_floating_point() else 127)
        replay()
        times = times_ms(replay, at_least=repeats, stream=stream)
        return Timed(1000 * median(times) / len(runs), outputs)

    if not runs[0]().is_cuda:
        all_runs()
        return timed(all_runs)
    stream = torch.cuda.Stream() if graph else torch.cuda.default_stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        all_runs()
        if not graph:
            return timed(all_runs, stream)
        torch.cuda.synchronize()
        outputs.clear()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=stream):
            all_runs()
        return timed(captured.replay, stream)
