"""The graph that TensorRT gets, in a precision."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from export.graphs import rewrite
from export.graphs.fold import fold
from export.graphs.space_to_depth import fold_stems
from export.graphs.surgery import Pass, apply, export_graph
from export.plan import positions, precision, quantize

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
    model: onnx.ModelProto | gs.Graph,
    precision_name: str,
    feeds: Iterable[dict[str, np.ndarray]] = (),
    *,
    keep_fp32: Collection[str] = (),
    fp32_offsets: bool = False,
    int8_groups: Collection[str] = (),
) -> PlanNetwork:
    """Puts a model into a precision.

    Args:
        model: FP32, with DeformConv or DCNv2 nodes, others' nodes for the same, or without; or its graph of
            `rewrite.import_standard`, which is changed.
        precision_name: one of `PRECISIONS`.
        feeds: the model's inputs, one dict per picture; INT8 is calibrated with them.
        keep_fp32: patterns of names (`*` and `?`) of nodes that FP16 and INT8 leave in FP32.
        fp32_offsets: computes offsets and masks, and the grids of GridSample, in FP32.
        int8_groups: which of `quantize.GROUPS` INT8 quantizes, in place of what it makes faster.

    Raises:
        RewriteError: the model has a node that cannot be rewritten.
        PrecisionError: the model cannot be converted, a pattern fits no node, or there is no picture to
            calibrate with.
    """
    if precision_name not in PRECISIONS:
        raise ValueError(f"found precision {precision_name}, expected one of {', '.join(PRECISIONS)}")
    graph = model if isinstance(model, gs.Graph) else rewrite.import_standard(model)[0]
    reference = export_graph(graph)
    kept = _matching(graph, keep_fp32)

    def to_int8(graph: gs.Graph) -> None:
        full = kept | _predicting_positions(graph) if fp32_offsets else kept
        names = quantize.names(graph, int8_groups)
        quantize.to_int8(graph, feeds, nodes=[name for name in names if name not in full])

    to_fp16 = partial(precision.to_fp16, keep=kept, fp32_offsets=fp32_offsets)
    stems = partial(fold_stems, apart=kept)
    # Tensor cores make up for the zeros between the channels; FP32 has none.
    dense = rewrite.to_dense_conv_transpose
    passes: dict[str, list[Pass]] = {
        "fp32": [],
        "tf32": [dense],
        "fp16": [stems, to_fp16, dense],
        "int8": [stems, to_int8, to_fp16, dense],
    }
    apply(graph, partial(fold, apart=kept), *passes[precision_name])
    rounded = export_graph(graph)
    apply(graph, partial(rewrite.to_dcnv2, tf32=precision_name == "tf32"))
    # FP32 means FP32: TF32 rounds to as few bits as FP16 does.
    tf32 = precision_name != "fp32"
    return PlanNetwork(reference=reference, rounded=rounded, model=export_graph(graph), tf32=tf32)


def _matching(graph: gs.Graph, patterns: Collection[str]) -> set[str]:
    names = [node.name for node in graph.nodes]
    found: set[str] = set()
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(name, pattern)}
        if not matching:
            examples = ", ".join(names[:3])
            raise precision.PrecisionError(
                f"--keep-fp32 {pattern}: found no node of that name, expected a name or a pattern with * "
                f"of one of {len(names)} nodes: {examples} …"
            )
        found |= matching
    return found


def _predicting_positions(graph: gs.Graph) -> set[str]:
    full = positions.in_fp32(graph, with_convolutions=True)
    return {node.name for node in graph.nodes if id(node) in full}
