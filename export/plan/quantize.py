"""INT8, by Q/DQ pairs where TensorRT fuses them into its layers.

TensorRT computes a convolution, its bias, a sum, a ReLU and the quantization of what comes out as one layer
if the first pair behind the convolution is behind all of those. So a pair stands where a tensor is read, and
never between a convolution and its ReLU or sum.
"""

import tempfile
from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

from export.graphs.surgery import CONVOLUTIONS, export_graph, neighbours
from export.plan import positions
from export.plan.precision import MIN_SCALE, PrecisionError

GROUPS = ("stem", "backbone", "offsets", "heads", "outputs", "deformable", "upsampling")
"""Groups of convolutions; see `layer_groups`."""

MIN_CHANNELS = 64
"""Least input and output channels of a convolution that INT8 is worth; see `worth_quantizing`."""

NARROW_GROUPS = ("stem", "backbone", "offsets", "heads", "deformable")
"""What INT8 quantizes of a network that has nothing worth it: all but what costs accuracy."""

_LARGEST = 127
# Operators whose output is as it was in their inputs: TensorRT runs them in INT8 if all have one scale.
_KEEPS_VALUES = ("Concat", "MaxPool")
# What may stand between two convolutions without a Q or DQ layer of its own.
_STAYS_INT8 = ("Relu", "LeakyRelu", "Clip", "Add", *_KEEPS_VALUES)


def layer_groups(graph: gs.Graph) -> dict[str, list[str]]:
    """Names of the graph's convolutions by what they do, read off the graph's structure.

    stem: no convolution comes before. offsets: the next convolution is deformable and reads them as offset or
    mask. outputs: no convolution comes behind. heads: only outputs come behind. backbone: the other plain
    ones. deformable, upsampling: DeformConv and ConvTranspose.
    """
    convolutions = [node for node in graph.nodes if node.op in CONVOLUTIONS]
    behind = {id(node): _first_convolutions(neighbours(node)) for node in convolutions}
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for node in graph.nodes:
        if node.op != "Conv":
            kind = {"DeformConv": "deformable", "ConvTranspose": "upsampling"}.get(node.op)
            if kind:
                groups[kind].append(node.name)
            continue
        following = behind[id(node)]
        if not following:
            group = "outputs"
        elif any(node in _offset_sources(deformable) for deformable in following):
            group = "offsets"
        elif not _first_convolutions(neighbours(node, backward=True), backward=True):
            group = "stem"
        elif all(not behind[id(other)] for other in following):
            group = "heads"
        else:
            group = "backbone"
        groups[group].append(node.name)
    return groups


def names(graph: gs.Graph, groups: Collection[str] = ()) -> list[str]:
    """Names of the convolutions of some of `layer_groups`.

    If none are given, those of `worth_quantizing`, and of a network without such those of `NARROW_GROUPS`.
    """
    worth = [] if groups else worth_quantizing(graph)
    if worth:
        return worth
    layers = layer_groups(graph)
    return [name for group in groups or NARROW_GROUPS for name in layers[group]]


def worth_quantizing(graph: gs.Graph) -> list[str]:
    """Names of the convolutions that INT8 makes faster; to_int8 quantizes them by default.

    They are those of the backbone with at least `MIN_CHANNELS` input and output channels whose neighbours
    are INT8, too (another one before or behind, and the other summand of a sum behind): fewer channels, and
    Q or DQ layers of their own, move more data than INT8 saves.
    """
    backbone = set(layer_groups(graph)["backbone"])
    chosen = [node for node in graph.nodes if node.name in backbone and _channels(node) >= MIN_CHANNELS]
    while True:
        before = {id(node): _sources(node.inputs[0], chosen) for node in chosen}
        linked = {id(source) for sources in before.values() for source in sources}
        linked |= {key for key, sources in before.items() if sources}
        sums = [fused for node in graph.nodes if (fused := _fused_sum(node, chosen)) is not None]
        costly = {id(node) for node, skip in sums if not _is_int8(skip, chosen)}
        kept = [node for node in chosen if id(node) in linked - costly]
        if len(kept) == len(chosen):
            return [node.name for node in kept]
        chosen = kept


def to_int8(
    graph: gs.Graph, feeds: Iterable[dict[str, np.ndarray]], *, nodes: Collection[str] | None = None
) -> None:
    """Quantizes convolutions to INT8 by Q/DQ pairs; everything else stays as it is.

    Symmetric, per output channel for weights, per tensor for activations: the only kind TensorRT knows. A
    tensor has one pair, which all who read it share.

    Args:
        graph: FP32, with DeformConv nodes (the calibration runs in ONNX Runtime).
        feeds: the model's inputs, one dict per picture, to observe the range of the activations.
        nodes: names of the convolutions to quantize; those of `names` by default.

    Raises:
        PrecisionError: there is nothing to quantize or no picture to calibrate with.
    """
    wanted = set(names(graph) if nodes is None else nodes)
    chosen = [node for node in graph.nodes if node.name in wanted and node.op in CONVOLUTIONS]
    if not chosen:
        raise PrecisionError("found no convolution to quantize: use fp16, or choose others by --int8-groups")
    feeds = iter(feeds)
    first = next(feeds, None)
    if first is None:
        raise PrecisionError("found no picture to calibrate with")
    fixed = _from_constants(graph)
    full = positions.in_fp32(graph, with_convolutions=False) | positions.between_offsets(graph)
    chosen = [node for node in chosen if not _reads_positions(node, full)]
    sharing = _tensors_to_quantize(graph, chosen, fixed)
    largest = _largest_values(export_graph(graph), chain([first], feeds))
    for tensors in sharing:
        scale = max(_largest_value(tensor, largest) for tensor in tensors) / _LARGEST
        for tensor in tensors:
            if id(tensor) not in fixed:
                _quantize(graph, tensor, scale, full)
    weights: dict[int, gs.Tensor] = {}
    for node in chosen:
        weight = node.inputs[1]
        if isinstance(weight, gs.Constant):
            if id(weight) not in weights:
                weights[id(weight)] = _quantize_weight(graph, weight, axis=_output_axis(node))
            node.inputs[1] = weights[id(weight)]


class _Feeds(CalibrationDataReader):
    def __init__(self, feeds: Iterable[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _largest_values(model: onnx.ModelProto, feeds: Iterable[dict[str, np.ndarray]]) -> dict[str, float]:
    """The largest absolute value of each tensor around the operators that matter here, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(model, path)
        onnxruntime.set_default_logger_severity(4)  # an error is raised, too
        calibrator = create_calibrator(
            path,
            [*CONVOLUTIONS, *_KEEPS_VALUES, "Add"],
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Feeds(feeds))
        ranges = calibrator.compute_data()
        return {name: float(np.abs(data.range_value).max()) for name, data in ranges.data.items()}


def _reads_positions(node: gs.Node, full: set[int]) -> bool:
    """Whether its data are joined with a map of positions: one scale for both would round those to pixels."""
    join = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if join is None or join.op != "Concat":
        return False
    return any(id(producer) in full for part in join.inputs for producer in part.inputs)


def _from_constants(graph: gs.Graph) -> set[int]:
    """Ids of the tensors that no input changes: TensorRT quantizes none of them but weights."""
    fixed = {id(tensor) for tensor in graph.tensors().values() if isinstance(tensor, gs.Constant)}
    for node in graph.nodes:
        if all(id(tensor) in fixed for tensor in node.inputs if not tensor.is_empty()):
            fixed.update(id(tensor) for tensor in node.outputs)
    return fixed


def _largest_value(tensor: gs.Tensor, observed: dict[str, float]) -> float:
    if isinstance(tensor, gs.Constant):
        return float(np.abs(tensor.values).max(initial=0))
    return observed[tensor.name]


def _tensors_to_quantize(graph: gs.Graph, chosen: list[gs.Node], fixed: set[int]) -> list[list[gs.Tensor]]:
    """What the chosen nodes read, and the skips of sums behind them, in lists that share a scale.

    The inputs of a Concat or MaxPool are quantized in place of its output if one of them is INT8 anyway; if
    none is, one Q behind it is cheaper, after a MaxPool by three quarters. Those of `fixed` stay as they are,
    and with them all parts that are joined with one.
    """
    shared: dict[int, list[gs.Tensor]] = {}
    pending = [node.inputs[0] for node in chosen]
    pending += [fused[1] for node in graph.nodes if (fused := _fused_sum(node, chosen)) is not None]
    while pending:
        tensor = pending.pop()
        own = shared.setdefault(id(tensor), [tensor])
        producer = tensor.inputs[0] if tensor.inputs else None
        if producer is None or producer.op not in _KEEPS_VALUES:
            continue
        if any(id(source) in fixed for source in producer.inputs):
            continue
        if not any(_is_int8(source, chosen) for source in producer.inputs):
            continue
        for source in producer.inputs:
            if id(source) not in shared:
                pending.append(source)
            other = shared.setdefault(id(source), [source])
            if other is not own:
                own.extend(other)
                shared.update((id(each), own) for each in other)
    return list({id(tensors): tensors for tensors in shared.values()}.values())


def _channels(node: gs.Node) -> int:
    """The smaller of its numbers of outputs and of inputs a group; 0 if its weights are not constant."""
    weight = node.inputs[1]
    return min(weight.shape[:2]) if isinstance(weight, gs.Constant) else 0


def _sources(tensor: gs.Tensor, chosen: list[gs.Node]) -> list[gs.Node]:
    """The chosen nodes that a tensor comes from in INT8."""
    found, pending, seen = [], list(tensor.inputs), set[int]()
    wanted = {id(node) for node in chosen}
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if id(node) in wanted:
            found.append(node)
        elif node.op in _STAYS_INT8:
            pending += neighbours(node, backward=True)
    return found


def _is_int8(tensor: gs.Tensor, chosen: list[gs.Node]) -> bool:
    """Whether a tensor is INT8 whatever else reads it."""
    wanted = {id(node) for node in chosen}
    return any(id(reader) in wanted for reader in tensor.outputs) or bool(_sources(tensor, chosen))


def _fused_sum(node: gs.Node, chosen: list[gs.Node]) -> tuple[gs.Node, gs.Tensor] | None:
    """Of a sum that TensorRT fuses into a chosen convolution: that one and the other summand."""
    if node.op != "Add" or any(not tensor.inputs for tensor in node.inputs):
        return None
    convolutions = [node for node in chosen if node.op in ("Conv", "ConvTranspose")]
    fusing = [
        index
        for index, tensor in enumerate(node.inputs)
        if tensor.inputs[0] in convolutions and len(tensor.outputs) == 1
    ]
    if not fusing:
        return None
    # Of two the one that is computed last, when the other is there.
    last = max(fusing, key=lambda index: convolutions.index(node.inputs[index].inputs[0]))
    return node.inputs[last].inputs[0], node.inputs[1 - last]


def _quantize(graph: gs.Graph, tensor: gs.Tensor, scale: float, full: set[int]) -> None:
    """Puts a pair behind a tensor, for all who read it but those of `full`: they place samples by it.

    As an output of the model it stays as it is.
    """
    readers = [node for node in tensor.outputs if id(node) not in full]
    pair = _pair(graph, tensor, np.asarray(max(scale, MIN_SCALE), np.float32))
    for node in readers:
        for index, used in enumerate(node.inputs):
            if used is tensor:
                node.inputs[index] = pair


def _quantize_weight(graph: gs.Graph, weight: gs.Constant, *, axis: int | None) -> gs.Tensor:
    values = np.abs(weight.values)
    largest = values.max() if axis is None else values.max(tuple({*range(values.ndim)} - {axis}))
    return _pair(graph, weight, np.maximum(largest / _LARGEST, MIN_SCALE).astype(np.float32), axis=axis)


def _output_axis(node: gs.Node) -> int | None:
    """The axis of a weight that counts output channels; None where no axis alone does."""
    if node.op in ("Conv", "DeformConv"):
        return 0
    if node.op != "ConvTranspose":
        return None
    return 1 if node.attrs.get("group", 1) == 1 else 0 if node.inputs[1].shape[1] == 1 else None


def _pair(graph: gs.Graph, tensor: gs.Tensor, scale: np.ndarray, *, axis: int | None = None) -> gs.Tensor:
    name = tensor.name
    scales = gs.Constant(f"{name}/scale", scale)
    zeros = gs.Constant(f"{name}/zero", np.zeros(scale.shape, np.int8))
    narrow = gs.Variable(f"{name}/int8", np.int8, tensor.shape)
    wide = gs.Variable(f"{name}/dequantized", np.float32, tensor.shape)
    attributes = {} if axis is None else {"axis": axis}
    graph.nodes += [
        gs.Node("QuantizeLinear", f"{name}/Q", dict(attributes), [tensor, scales, zeros], [narrow]),
        gs.Node("DequantizeLinear", f"{name}/DQ", dict(attributes), [narrow, scales, zeros], [wide]),
    ]
    return wide


def _first_convolutions(nodes: Iterable[gs.Node], *, backward: bool = False) -> list[gs.Node]:
    """The convolutions among nodes, and those that are reached from others with none in between."""
    found: list[gs.Node] = []
    seen: set[int] = set()
    pending = list(nodes)
    while pending:
        other = pending.pop()
        if id(other) in seen:
            continue
        seen.add(id(other))
        if other.op in CONVOLUTIONS:
            found.append(other)
        else:
            pending += neighbours(other, backward=backward)
    return found


def _offset_sources(node: gs.Node) -> list[gs.Node]:
    if node.op != "DeformConv":
        return []
    maps = [node.inputs[2], *node.inputs[4:]]
    return _first_convolutions([node for tensor in maps for node in tensor.inputs], backward=True)
