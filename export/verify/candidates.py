"""What a network's heads say of each cell that a plan may have taken for a peak.

Two runs of one network do not agree on which of two neighbours as good as equal is the peak, nor on the last
of the K best: to ask for the same rows would refuse right plans. What a cell says does not depend on that.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from centernet_image import contract

from export.graphs import onnx_files
from export.graphs.surgery import import_graph
from export.verify import peaks

DECODE = "decode/"

HIDDEN = np.float32(-1e4)
"""The logit of a cell that is left out."""

Outputs = Mapping[str, np.ndarray]


class Candidates:
    """The decode of a network with more than boxes, by itself.

    Args:
        model: FP32, from `export.to_onnx`, with standard operators.

    Attributes:
        with_heads: the model with the heads that its decode reads among its outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        nodes = [node for node in import_graph(model).nodes if node.name.startswith(DECODE)]
        own = {id(node) for node in nodes}
        read = [tensor for node in nodes for tensor in node.inputs if tensor.inputs]
        self._heads = list(dict.fromkeys(each.name for each in read if id(each.inputs[0]) not in own))
        self._outputs = [each.name for each in model.graph.output if each.name != contract.PEAKS.name]
        typed = onnx.shape_inference.infer_shapes(model)
        decode = onnx.utils.Extractor(typed).extract_model(self._heads, self._outputs)
        self._session = onnx_files.session(decode)
        self.with_heads = typed
        typed.graph.output.extend(info for info in typed.graph.value_info if info.name in self._heads)

    def split(self, found: Outputs, *, score: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What `with_heads` answered, without its heads; and what its heads say of their cells.

        Args:
            found: all outputs of `with_heads`.
            score: largest difference of a score.

        Returns:
            The outputs; and the same, but `PEAKS`, scores and classes, of all cells [N, C·H·W, ...], with
            the raw `hm` [N, C, H, W]. NaN where a cell is no peak, give or take `score`.
        """
        heads = {name: found[name] for name in self._heads}
        rest = {name: values for name, values in found.items() if name not in heads}
        logits = heads[peaks.HEAT]
        heat = peaks.sigmoid(logits)
        free = np.stack([peaks.are_peaks(planes, score) for planes in heat])
        # Detections below `score` are not looked at, but for a picture's first.
        free &= heat >= np.minimum(score / 2, heat.max(axis=(1, 2, 3), keepdims=True) - score)
        names = [name for name in self._outputs if name not in (contract.SCORES.name, contract.CLASSES.name)]
        shape = (len(logits), logits[0].size)
        cells = {name: np.full((*shape, *rest[name].shape[2:]), np.nan, np.float32) for name in names}
        for here, picture, row, cell in _groups(logits, free, rest[contract.SCORES.name].shape[1]):
            answers = self.decode(heads, here)
            for name in names:
                cells[name][picture, cell] = answers[name][picture, row]
        return rest, cells | {peaks.HEAT: logits}

    def decode(self, heads: Outputs, here: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs but `PEAKS`, as if there were only some cells.

        Args:
            heads: what the decode reads.
            here: which cells, [N, C, H, W].
        """
        given = {name: heads[name] for name in self._heads}
        given[peaks.HEAT] = np.where(here, heads[peaks.HEAT], HIDDEN)
        return dict(zip(self._outputs, self._session.run(self._outputs, given), strict=True))


def _groups(logits: np.ndarray, free: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Cells to decode together: no neighbours, which would hide each other, and `most` of a picture.

    Yields:
        Mask of the cells [N, C, H, W]; and of each cell the picture, the row of the decode that is its, and
        where it is in [C·H·W].
    """
    flat = (len(logits), logits[0].size)
    for top, left in np.ndindex(2, 2):
        every_second = np.zeros_like(free)
        every_second[..., top::2, left::2] = True
        apart = free & every_second
        # As the decode sorts them: the best first, the first among equals.
        order = np.argsort(np.where(apart, -logits, np.inf).reshape(flat), axis=1, kind="stable")
        counts = apart.sum(axis=(1, 2, 3))
        for start in range(0, int(counts.max()), most):
            rank = np.arange(start, start + most)
            picture, row = np.nonzero(rank < counts[:, None])
            cell = order[picture, start + row]
            here = np.zeros(flat, bool)
            here[picture, cell] = True
            yield here.reshape(logits.shape), picture, row, cell
