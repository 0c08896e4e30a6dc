"""What becomes of the DCN layers of networks: python -m export.dcn_report MODEL.onnx.

Each line of the table is a network in FP16: how many of its DCNs take offsets and mask as one tensor
(packed), have their BatchNorm and their ReLU within, and run on the tensor-core kernel.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx

from export import errors
from export.graphs import onnx_files
from export.graphs.surgery import import_graph, weight_index
from export.plan import lowering

COLUMNS = ("network", "DCNs", "packed", "BatchNorm within", "ReLU within", "tensor cores")
CHANNELS_AT_ONCE = 8
"""Of an offset group: the tensor-core kernel of FP16 wants a multiple (plugins/dcnv2/src/plan.h)."""


def main(arguments: list[str] | None = None) -> None:
    """The command line.

    Raises:
        ExportError: with the one line that the user reads.
    """
    parser = argparse.ArgumentParser(prog="python -m export.dcn_report", description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx")
    options = parser.parse_args(arguments)
    for line in table(options.models):
        print(line)


def table(paths: Iterable[Path]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(['---', *['--:'] * (len(COLUMNS) - 1)])} |"]
    for path in paths:
        model, _ = onnx_files.load(path)
        with onnx_files.naming(path):
            counts = count(model)
        lines.append(f"| {' | '.join([path.stem, *(str(counts[name]) for name in COLUMNS[1:])])} |")
    return lines


def count(model: onnx.ModelProto) -> Counter[str]:
    """How many DCNs there are, and of how many each column is true."""
    network = lowering.make(model, "fp16")
    before = {
        node.name
        for node in import_graph(network.reference).nodes
        if node.op == "DeformConv"
        and any(reader.op == "BatchNormalization" for reader in node.outputs[0].outputs)
    }
    found: Counter[str] = Counter()
    for node in import_graph(network.model).nodes:
        if node.op != "DCNv2":
            continue
        readers = node.outputs[0].outputs
        norm = node.name in before and not any(reader.op == "BatchNormalization" for reader in readers)
        channels = node.inputs[weight_index(node)].shape[3]
        groups = node.attrs.get("deformable_group", 1)
        found["DCNs"] += 1
        found["packed"] += bool(node.attrs.get("packed_offset_mask"))
        found["BatchNorm within"] += norm
        found["ReLU within"] += bool(node.attrs.get("relu"))
        found["tensor cores"] += (
            node.attrs.get("groups", 1) == 1 and channels % (CHANNELS_AT_ONCE * groups) == 0
        )
    return found


if __name__ == "__main__":
    errors.run(main)
