"""What bounds a DCNv2 layer: products, memory traffic, and the reads of a gather, from a GPU's peak figures.

    python -m benchmarks.roofline [--batch 1,8,32] [--precision fp16]

Needs no GPU. The figures are those that NVIDIA publishes for an H200.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import report

TAPS = 9
CORNERS = 4
ELEMENT_BYTES = {"fp16": 2, "bf16": 2, "int8": 1, "tf32": 4, "fp32": 4}

# H200 SXM, dense: 1979 TOP/s INT8, 989 TFLOP/s FP16, 494 TF32, 67 FP32; 4.8 TB/s; 132 SMs at 1.98 GHz, each
# of which takes 128 bytes a clock from its L1 cache and shared memory together.
H200_TFLOPS = {"fp16": 989.0, "bf16": 989.0, "int8": 1979.0, "tf32": 494.0, "fp32": 67.0}
H200_TB_PER_S = 4.8
H200_L1_TB_PER_S = 132 * 1.98e9 * 128 / 1e12


@dataclass(frozen=True)
class Shape:
    """A layer with a 3x3 kernel, stride and padding 1: channels, and the map's height and width in pixels.

    The map is square unless a width is given.
    """

    channels: int
    out_channels: int
    side: int
    width: int = 0
    offset_groups: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Of the map: height, width."""
        return self.side, self.width or self.side

    @property
    def pixels(self) -> int:
        """Of the map."""
        return self.size[0] * self.size[1]

    @property
    def samples(self) -> int:
        """Of a pixel: each has two offsets and a mask."""
        return TAPS * self.offset_groups

    def __str__(self) -> str:
        side = f"{self.side}x{self.width}" if self.width else str(self.side)
        groups = f", {self.offset_groups} offset groups" if self.offset_groups > 1 else ""
        return f"{self.channels}→{self.out_channels} @ {side}{groups}"

    def flops(self, batch: int) -> float:
        """Of the products alone: a multiplication and an addition each."""
        return 2.0 * batch * self.pixels * self.channels * self.out_channels * TAPS

    def map_bytes(self, batch: int, element: int) -> int:
        """Input, offsets, mask and output, once each, of `element` bytes a value; offsets at least two."""
        maps = element * (self.channels + self.out_channels) + max(element, 2) * 3 * self.samples
        return batch * self.pixels * maps

    def bytes(self, batch: int, element: int) -> int:
        """Least traffic: the maps and the weights, once each."""
        return self.map_bytes(batch, element) + element * self.channels * self.out_channels * TAPS

    def gather_bytes(self, batch: int, element: int) -> int:
        """Through L1 and shared memory: four corners a sample, which is written once and read once."""
        return element * batch * self.pixels * self.channels * TAPS * (CORNERS + 2)


NETWORKS: dict[str, list[Shape]] = {
    "dla_34": [
        Shape(512, 256, 16),
        Shape(256, 256, 32),
        *[Shape(256, 128, 32)] * 2,
        *[Shape(128, 128, 64)] * 2,
        *[Shape(128, 64, 64)] * 4,
        *[Shape(64, 64, 128)] * 5,
        Shape(256, 64, 32),
    ],
    "resdcn_18": [Shape(512, 256, 16), Shape(256, 128, 32), Shape(128, 64, 64)],
    # Video restoration, frames of 320x180: EDVR's pyramid and cascade, BasicVSR++'s second-order alignment.
    "edvr": [
        Shape(64, 64, 45, 80, 8),
        Shape(64, 64, 90, 160, 8),
        *[Shape(64, 64, 180, 320, 8)] * 2,
    ],
    "basicvsr++": [Shape(128, 64, 180, 320, 16)],
    # MMDetection's mdconv_c3-c5 with groups: a ResNet-50 on 1344x800.
    "mmdetection": [
        *[Shape(128, 128, 100, 168, 4)] * 3,
        *[Shape(256, 256, 50, 84, 4)] * 5,
        *[Shape(512, 512, 25, 42, 4)] * 2,
    ],
}
"""DCN layers of each network, a shape as often as it has it; detectors at 512x512 unless said."""


def table(network: str, batches: Sequence[int], precision: str) -> str:
    """The bounds of each of a network's layers, and of all together, as Markdown."""
    element, names = ELEMENT_BYTES[precision], ("products", "memory", "gather")
    rates = (H200_TFLOPS[precision], H200_TB_PER_S, H200_L1_TB_PER_S)
    columns = ["layer", "count", "batch", "GFLOP", "MB", *(f"{name}, µs" for name in names), "bound by"]
    rows: list[list[object]] = []
    for batch in batches:
        sums = [0.0] * 5
        for shape in dict.fromkeys(NETWORKS[network]):
            times = NETWORKS[network].count(shape)
            work = (shape.flops(batch), shape.bytes(batch, element), shape.gather_bytes(batch, element))
            bounds = [amount / rate / 1e6 for amount, rate in zip(work, rates, strict=True)]
            values = [work[0] / 1e9, work[1] / 1e6, *bounds]
            rows.append([str(shape), times, batch, *values, names[bounds.index(max(bounds))]])
            sums = [total + times * value for total, value in zip(sums, values, strict=True)]
        rows.append(["**sum**", len(NETWORKS[network]), batch, *sums, ""])
    return report.table(columns, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.roofline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=report.choices(NETWORKS), default=["dla_34"])
    parser.add_argument("--batch", type=report.numbers, default=[1, 8, 32])
    parser.add_argument("--precision", choices=ELEMENT_BYTES, default="fp16")
    options = parser.parse_args(argv)
    for network in options.models:
        print(f"{network}, {options.precision}\n\n{table(network, options.batch, options.precision)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
