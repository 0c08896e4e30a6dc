"""What a network's heads say of each cell that a plan may have taken for a peak.

Two runs of one network do not agree on which of two neighbours as good as equal is the peak, nor on the last
of the K best: to ask for the same rows would refuse right plans. What a cell says does not depend on that.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnxruntime
from centernet_image import contract

from export.graphs.surgery import import_graph
from export.verify import peaks

DECODE = "decode/"
APART, FARTHEST = 3, 16
"""Cells between those that are decoded together: at least so many, else peaks hide each other."""

HIDDEN = np.float32(-1e4)
"""The logit of a cell that is left out."""

Outputs = Mapping[str, np.ndarray]


class Candidates:
    """The decode of a network with more than boxes, by itself.

    Args:
        model: FP32, from `export.to_onnx`, with standard operators.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        nodes = [node for node in import_graph(model).nodes if node.name.startswith(DECODE)]
        own = {id(node) for node in nodes}
        read = [tensor for node in nodes for tensor in node.inputs if tensor.inputs]
        self._heads = list(dict.fromkeys(each.name for each in read if id(each.inputs[0]) not in own))
        self._outputs = [each.name for each in model.graph.output if each.name != contract.PEAKS.name]
        typed = onnx.shape_inference.infer_shapes(model)
        decode = onnx.utils.Extractor(typed).extract_model(self._heads, self._outputs)
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(decode.SerializeToString(), providers=providers)
        self.with_heads = typed
        typed.graph.output.extend(info for info in typed.graph.value_info if info.name in self._heads)

    def split(self, found: Outputs, *, score: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What `with_heads` answered, without its heads; and of the heads the candidates.

        Args:
            found: all outputs of `with_heads`.
            score: largest difference of a score.

        Returns:
            The outputs, and the same but `PEAKS` of all cells that are peaks, give or take `score`:
            [N, K', ...].
        """
        heads = {name: found[name] for name in self._heads}
        logits = heads[peaks.HEAT]
        heat = (1 + np.tanh(logits / 2)) / 2  # the sigmoid, without overflow
        free = heat >= np.stack([peaks.widen(planes) for planes in heat]) - score
        # Detections below `score` are not looked at, but for a picture's first.
        free &= heat >= np.minimum(score / 2, heat.max(axis=(1, 2, 3), keepdims=True) - score)
        parts = [self._decode(heads, here) for here in _groups(free, found[contract.SCORES.name].shape[1])]
        cells = [np.concatenate(each, axis=1) for each in zip(*parts, strict=True)]
        rest = {name: values for name, values in found.items() if name not in heads}
        return rest, dict(zip(self._outputs, cells, strict=True))

    def _decode(self, heads: Outputs, here: np.ndarray) -> list[np.ndarray]:
        given = {**heads, peaks.HEAT: np.where(here, heads[peaks.HEAT], HIDDEN)}
        return self._session.run(self._outputs, given)


def _groups(free: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Masks of the cells in `free` [N, C, H, W], each cell in one; each of at most `most` of a picture."""
    for apart in range(APART, FARTHEST + 1):
        row, column = (np.arange(side) % apart for side in free.shape[2:])
        masks = [
            free & (row[:, None] == cell // apart) & (column == cell % apart) for cell in range(apart**2)
        ]
        if max(mask.sum(axis=(1, 2, 3)).max() for mask in masks) <= most:
            break
    yield from masks
