"""Runs one layer by one tactic, for a profiler: its channels in and out, and the side of its square map.

ci/gpu/kernel build out/gpu
export PYTHONPATH=.
ncu --set full -k regex:tileKernel -c 1 python3 ci/gpu/one_layer.py 64 64 128 --batch 32 --tactic 16
"""

import argparse
from pathlib import Path

import torch
from dcnv2.library import Kernels, Layer

from benchmarks.dcnv2_layers import Inputs
from benchmarks.roofline import Shape


def main() -> None:
    """Launches the kernel three times; the numbers of the tactics are those of benchmarks.dcnv2's report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("channels", "out_channels", "side"):
        parser.add_argument(name, type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tactic", type=int, required=True)
    parser.add_argument("--library", type=Path, default=Path("build/kernel/libdcnv2_kernel.so"))
    options = parser.parse_args()
    kernels = Kernels(options.library)
    shape = Shape(options.channels, options.out_channels, options.side)
    inputs = Inputs.rotation(shape, options.batch, torch.float16, "cuda")[0]
    packed = torch.cat([inputs.offset, inputs.logits], dim=1)
    layer = Layer(inputs.input, packed, None, inputs.weight, inputs.bias, packed=True, pad_channels=True)
    layer.use_workspace(kernels.workspace_size(layer, options.tactic))
    for _ in range(3):
        kernels.run(layer, options.tactic)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
