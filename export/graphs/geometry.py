"""Whether the tensors of a deformable convolution are what its attributes ask for, which ONNX leaves open."""

from collections.abc import Iterator
from typing import Any

import onnx_graphsurgeon as gs

from export.graphs.surgery import RewriteError, kernel_size


def check(graph: gs.Graph) -> None:
    """Compares what is known of the tensors of each DeformConv.

    Raises:
        RewriteError: one does not fit.
    """
    for node in graph.nodes:
        if node.op != "DeformConv":
            continue
        for what, found, expected in _facts(node):
            if found != expected:
                raise RewriteError(
                    f"{node.name}: found {what} {found}, expected {expected}: its weight is "
                    f"{node.inputs[1].shape}, its groups are {node.attrs.get('group', 1)}, and "
                    f"{node.attrs.get('offset_group', 1)} of offsets"
                )


def _facts(node: gs.Node) -> Iterator[tuple[str, object, object]]:
    """What is compared, as it is and as it must be."""
    attrs = node.attrs
    defaults: dict[str, Any] = {
        "strides": [1, 1],
        "dilations": [1, 1],
        "pads": [0] * 4,
        "group": 1,
        "offset_group": 1,
    }
    data, weight, offset, *rest = node.inputs
    if weight.shape:  # the plugin and ONNX Runtime have no others
        yield "a weight whose dimensions are", len(weight.shape), 4
    for name, default in defaults.items():
        values, usual = (
            [each] if isinstance(each, int) else each for each in (attrs.get(name, default), default)
        )
        if len(values) != len(usual) or any(value < usual[0] for value in values):
            yield name, values, f"{len(usual)} of at least {usual[0]}"
    groups, offset_groups = (attrs.get(name, 1) for name in ("group", "offset_group"))
    outputs, per_group, *kernel = weight.shape or [None] * 4
    if all(isinstance(side, int) for side in kernel):
        yield "kernel_shape", [*kernel_size(node)], kernel
    elif "kernel_shape" not in attrs:  # computed weights
        return
    height, width = kernel_size(node)
    if isinstance(outputs, int):
        yield "outputs beyond a multiple of the groups:", outputs % groups, 0
    taps = offset_groups * height * width
    sides = (node.outputs[0].shape or [None] * 4)[2:]
    maps = [(data, [per_group * groups] if isinstance(per_group, int) else []), (offset, [2 * taps, *sides])]
    maps += [(mask, [taps, *sides]) for mask in rest[1:] if not mask.is_empty()]
    for tensor, expected in maps:
        for axis, (found, side) in enumerate(zip((tensor.shape or [0])[1:], expected, strict=False)):
            if isinstance(found, int) and isinstance(side, int):
                yield f"{('channels', 'rows', 'columns')[axis]} of {tensor.name}:", found, side
