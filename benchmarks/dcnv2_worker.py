"""One contender of `benchmarks.dcnv2` on its layers, in a process of its own.

What it has to do is a `Spec`: `contender`, one of `CONTENDERS`; `precision`, one of `DTYPES`; of each of the
`layers` the fields of its `Shape` and its batch; `repeats`, rounds that are timed; `device`, `cuda` or `cpu`;
`library`, of our kernels.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Spec
from typing import Any

import torch
from dcnv2.library import Kernels
from torch import Tensor

from benchmarks.dcnv2_engines import LayerEngine, OnnxRuntime
from benchmarks.dcnv2_layers import Contender, Inputs, Ours, Torchvision, time_runs
from benchmarks.roofline import Shape
from benchmarks.workers import SkippedError, say

DTYPES = {
    **{"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float16},
    **{"tf32": torch.float32, "fp32": torch.float32},
}
"""What the tensors are drawn as."""

ERROR_LIMIT = 0.2
"""By the norm of the FP64 output. Coordinates in half, as NVIDIA's plugin has them, cost a few percent."""


def _ours(spec: Spec) -> Contender:
    try:
        return Ours(Kernels(Path(spec.library)), spec.precision)
    except OSError as error:
        raise SkippedError(f"{error}: build it (ci/gpu/kernel), or name it with --library") from None


CONTENDERS: dict[str, Callable[[Spec], Contender]] = {
    "dcnv2": _ours,
    "torchvision": lambda spec: Torchvision(),
    "compile": lambda spec: Torchvision(compiled=True),
    "nvidia": lambda spec: LayerEngine(plain=False, tf32=spec.precision == "tf32"),
    "tensorrt-convolution": lambda spec: LayerEngine(plain=True, tf32=spec.precision == "tf32"),
    "onnxruntime": lambda spec: OnnxRuntime(),
}


def measure(contender: Contender, shape: Shape, batch: int, spec: Spec) -> dict[str, Any]:
    """Time one layer and check what the timed runs wrote.

    Returns:
        Microseconds (`us`), relative error against FP64 (`error`), how many input sets went round (`sets`),
        and the contender's own facts.

    Raises:
        SkippedError: The output is wrong, or the contender cannot run it.
    """
    sets = Inputs.rotation(shape, batch, DTYPES[spec.precision], spec.device)
    timed = time_runs(contender.prepare(shape, sets), graph=contender.graph, repeats=spec.repeats)
    images, errors = min(batch, 2), []
    # The first and the last: one that ignores its inputs has one of them wrong.
    for one, output in ((sets[0], timed.outputs[0]), (sets[-1], timed.outputs[-1])):
        truth = one.truth(images, plain=contender.plain)
        errors.append(float((contender.read(output[:images]).double() - truth).norm() / truth.norm()))
    if not all(error < ERROR_LIMIT for error in errors):  # NaN is not
        raise SkippedError(f"wrong output: relative error {max(errors):.2g}, expected below {ERROR_LIMIT}")
    return {"us": timed.us, "error": max(errors), "sets": len(sets)} | contender.facts()


def ceilings(precision: str) -> dict[str, float]:
    """What this GPU reaches: products in TFLOP/s (8192 cubed), copies in TB/s (read and written)."""
    a, b = (torch.randn(8192, 8192, device="cuda").to(DTYPES[precision]) for _ in range(2))
    source = torch.rand(2**29, device="cuda")
    target = torch.empty_like(source)
    multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul
    if precision == "int8":
        a, b = (10 * a).to(torch.int8), (10 * b).to(torch.int8).t().contiguous().t()
        multiply = torch._int_mm
    product = time_runs([lambda: multiply(a, b)] * 5, graph=False, repeats=5).us
    copy = time_runs([lambda: target.copy_(source)] * 5, graph=False, repeats=5).us
    return {"tflops": 2 * 8192**3 / product / 1e6, "tb_per_s": 2 * source.nbytes / copy / 1e6}


def work(spec: Spec, contender: Contender | None = None) -> None:
    """Measure all layers; says a line for each, and one for what the GPU reaches meanwhile."""
    contender = contender or CONTENDERS[spec.contender](spec)
    allow = spec.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow
    if spec.device == "cuda":
        say("ceilings", **ceilings(spec.precision))
    for *shape, batch in spec.layers:
        try:
            say("layer", **measure(contender, Shape(*shape), batch, spec))
        except SkippedError as error:
            say("layer", skipped=str(error))
        if spec.device == "cuda":
            torch.cuda.empty_cache()
