"""Who runs one DCNv2 layer in `benchmarks.dcnv2`: our kernels, torchvision, TensorRT with NVIDIA's plugin."""

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from benchmarks.dcnv2_library import Kernels, Layer

TAPS = 9


class SkippedError(Exception):
    """The contender cannot run here; its text says why."""


@dataclass(frozen=True)
class Shape:
    """A layer with a 3x3 kernel, stride and padding 1, on square maps: channels and side in pixels."""

    channels: int
    out_channels: int
    side: int

    def __str__(self) -> str:
        return f"{self.channels}→{self.out_channels} @ {self.side}"

    def flops(self, batch: int) -> float:
        """Of the products alone: a multiplication and an addition each."""
        return 2.0 * batch * self.side**2 * self.channels * self.out_channels * TAPS

    def bytes(self, batch: int, element: int) -> float:
        """Least traffic: every tensor once."""
        maps = batch * self.side**2 * (self.channels + self.out_channels + 3 * TAPS)
        return float(element * (maps + self.channels * self.out_channels * TAPS))


@dataclass(frozen=True)
class Inputs:
    """One set of a layer's tensors; offsets within ±2 pixels.

    Attributes:
        input: [N, C, H, W].
        offset: [N, 18, H, W].
        logits: [N, 9, H, W], the mask before its sigmoid.
        weight: [O, C, 3, 3].
        bias: [O].
    """

    input: Tensor
    offset: Tensor
    logits: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def random(cls, shape: Shape, batch: int, dtype: torch.dtype, device: str, seed: int) -> "Inputs":
        """Draw a set; equal seeds draw equal sets."""
        generator = torch.Generator(device).manual_seed(seed)
        draw = partial(torch.randn, generator=generator, device=device)
        side = (shape.side, shape.side)
        offset = torch.rand(batch, 2 * TAPS, *side, generator=generator, device=device) * 4 - 2
        tensors = (
            draw(batch, shape.channels, *side),
            offset,
            draw(batch, TAPS, *side),
            draw(shape.out_channels, shape.channels, 3, 3) / (shape.channels * TAPS) ** 0.5,
            draw(shape.out_channels),
        )
        return cls(*(tensor.to(dtype) for tensor in tensors))

    def truth(self, images: int) -> Tensor:
        """Output of the first `images` images in FP64 [N, O, H, W]."""
        double = [
            tensor.double() for tensor in (self.input, self.offset, self.logits, self.weight, self.bias)
        ]
        data, offset, logits = (tensor[:images] for tensor in double[:3])
        return deform_conv2d(data, offset, *double[3:], padding=1, mask=logits.sigmoid())


def plain_truth(inputs: Inputs, images: int) -> Tensor:
    """What a plain convolution of the same shape gives, in FP64 [N, O, H, W]."""
    data, weight, bias = (tensor.double() for tensor in (inputs.input[:images], inputs.weight, inputs.bias))
    return torch.nn.functional.conv2d(data, weight, bias, padding=1)


Run = Callable[[], Tensor]


class Contender(ABC):
    """One way to run a layer.

    Attributes:
        name: As the tables show it.
        graph: Whether it is timed as a CUDA graph.
        last: Whether it is measured after all others.
    """

    name: str
    graph = True
    last = False

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


class Ours(Contender):
    """The plugin's kernels, called directly; as TensorRT does it, every tactic is timed and the fastest kept.

    Attributes:
        times_us: Of each tactic, for the layer that was prepared last.
        tactic: The fastest of them.
    """

    name = "dcnv2"

    def __init__(self, library: Path, *, tf32: bool) -> None:
        self._kernels = Kernels(library)
        self._tf32 = tf32
        self.times_us: dict[int, float] = {}
        self.tactic = 0

    def prepare(self, shape: Shape, batch: int, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""
        linear = sets[0].input.dtype == torch.float32
        layers = [
            Layer(
                one.input,
                torch.cat([one.offset, one.logits], dim=1),
                None,
                one.weight,
                one.bias,
                packed=True,
                channels_last=not linear,
                pad_channels=not linear,
                allow_tf32=self._tf32,
            )
            for one in sets
        ]
        self.times_us = {}
        for tactic in self._kernels.tactics(layers[0]):
            size = self._kernels.workspace_size(layers[0], tactic)
            for layer in layers:
                layer.use_workspace(size)
            runs: list[Run] = [partial(self._kernels.run, layer, tactic) for layer in layers]
            self.times_us[tactic] = time_us(runs, graph=True, repeats=5)
        self.tactic = min(self.times_us, key=lambda tactic: self.times_us[tactic])
        size = self._kernels.workspace_size(layers[0], self.tactic)
        for layer in layers:
            layer.use_workspace(size)
        return [partial(self._kernels.run, layer, self.tactic) for layer in layers]


class Torchvision(Contender):
    """`torchvision.ops.deform_conv2d`, its mask computed beforehand."""

    name = "torchvision"
    # It launches on the default stream, so a graph of it would hold only a part.
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


class Convolution(Contender):
    """A plain 3x3 convolution of the same shape by cuDNN, channels-last."""

    name = "plain convolution, cuDNN"
    truth = staticmethod(plain_truth)

    def prepare(self, shape: Shape, batch: int, sets: Sequence[Inputs]) -> list[Run]:
        """See `Contender`."""
        torch.backends.cudnn.benchmark = True
        last = [
            [tensor.contiguous(memory_format=torch.channels_last) for tensor in (one.input, one.weight)]
            for one in sets
        ]
        return [
            partial(torch.nn.functional.conv2d, data, weight, one.bias, padding=1)
            for one, (data, weight) in zip(sets, last, strict=True)
        ]


def host_time_us(runs: Sequence[Run], *, repeats: int) -> float:
    """Median time of one run on the CPU in microseconds, over `repeats` rounds through all of them."""
    runs[0]()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for run in runs:
            run()
        times.append((time.perf_counter() - start) * 1e6 / len(runs))
    return statistics.median(times)


def time_us(runs: Sequence[Run], *, graph: bool, repeats: int) -> float:
    """Median time of one run in microseconds, over `repeats` rounds through all of them.

    Args:
        runs: Called one after another, on inputs that are together larger than the L2 cache.
        graph: Replay them from a CUDA graph; else what the host costs to launch them counts too.
        repeats: Rounds.
    """
    stream = torch.cuda.Stream() if graph else torch.cuda.current_stream()
    with torch.cuda.stream(stream):
        for run in runs[:3]:
            run()
        torch.cuda.synchronize()

        def round_through() -> None:
            for run in runs:
                run()

        replay = round_through
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured, stream=stream):
                round_through()
            replay = captured.replay
        replay()
        times = []
        for _ in range(repeats):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            replay()
            stop.record(stream)
            stop.synchronize()
            times.append(start.elapsed_time(stop) * 1000 / len(runs))
    return statistics.median(times)
