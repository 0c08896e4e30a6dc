"""The graph that TensorRT gets, in a precision."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx

from export import precision, quantize, rewrite

PRECISIONS = ("fp32", "tf32", "fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class PlanNetwork:
    """A model on its way into a plan.

    Attributes:
        reference: FP32 and standard operators: what ONNX Runtime runs, and the plan is compared with.
        rounded: the same in the precision, with standard operators: right by construction.
        model: `rounded` with the plugin's DCNv2 nodes, strongly typed: what TensorRT builds.
        tf32: whether TensorRT may round the inputs of FP32 convolutions to TF32.
    """

    reference: onnx.ModelProto
    rounded: onnx.ModelProto
    model: onnx.ModelProto
    tf32: bool


def make(
    model: onnx.ModelProto, precision_name: str, feeds: Iterable[dict[str, np.ndarray]] = ()
) -> PlanNetwork:
    """Puts a model into a precision.

    Args:
        model: FP32, with DeformConv or DCNv2 nodes or without.
        precision_name: one of `PRECISIONS`.
        feeds: the model's inputs, one dict per picture; INT8 is calibrated with them.

    Raises:
        RewriteError: the model has a node that cannot be rewritten.
        PrecisionError: the model cannot be converted, or there is no picture to calibrate with.
    """
    if precision_name not in PRECISIONS:
        raise ValueError(f"found precision {precision_name}, expected one of {', '.join(PRECISIONS)}")
    reference = rewrite.to_deform_conv(model)
    if precision_name == "fp32":
        # FP32 means FP32: TF32 rounds to as few bits as FP16 does.
        model = rewrite.to_dcnv2(reference)
        return PlanNetwork(reference=reference, rounded=reference, model=model, tf32=False)
    if precision_name == "tf32":
        typed = reference
    else:
        typed = precision.to_fp16(
            quantize.to_int8(reference, feeds) if precision_name == "int8" else reference
        )
    # Tensor cores make up for the zeros between the channels; FP32 has none.
    rounded = rewrite.to_dense_conv_transpose(typed)
    model = rewrite.to_dcnv2(rounded, tf32=precision_name == "tf32")
    return PlanNetwork(reference=reference, rounded=rounded, model=model, tf32=True)
