"""The decode in the ONNX graph against one in plain Python, through ONNX Runtime and PyTorch."""

import functools

import exported
import numpy as np
import onnxruntime
import pytest
import torch
from centernet_image.contract import STRIDE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from export.tasks.detect import Detect

HEIGHT, WIDTH, CLASSES, TOP_K = 5, 7, 3, 6


def naive(hm, wh, reg, top_k):
    """Rows (x1, y1, x2, y2, score, class) of one picture, best first, lowest index first among equals."""
    scores = (1 / (1 + np.exp(-hm.astype(np.float64)))).astype(np.float32)
    classes, height, width = hm.shape
    rows = []
    for label in range(classes):
        for y in range(height):
            for x in range(width):
                around = scores[label, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                score = scores[label, y, x]
                if score < around.max():
                    continue
                offset_x, offset_y = reg[:, y, x] if reg is not None else (0.5, 0.5)
                box_width, box_height = wh.reshape(-1, 2, height, width)[label % (len(wh) // 2), :, y, x]
                left, top = x + offset_x - box_width / 2, y + offset_y - box_height / 2
                box = [left * STRIDE, top * STRIDE, (left + box_width) * STRIDE, (top + box_height) * STRIDE]
                rows.append([*box, score, label])
    return sorted(rows, key=lambda row: -row[4])[:top_k]


class Packed(nn.Module):
    """The decode with its heads in one tensor: the exporter of one input serves."""

    def __init__(self, sizes, top_k):
        super().__init__()
        self.sizes, self.decode = sizes, Detect(top_k)

    def forward(self, heads):
        return self.decode(dict(zip(("hm", "wh", "reg"), heads.split(self.sizes, 1), strict=False)))


@functools.cache
def session(classes, wh, reg, height=HEIGHT, width=WIDTH, top_k=TOP_K):
    sizes = [size for size in (classes, wh, reg) if size]
    module = Packed(sizes, top_k)
    example = torch.zeros(2, sum(sizes), height, width)
    model = exported.trace(
        module, [example], input_names=["heads"], output_names=["boxes", "scores", "classes"]
    )
    assert [node.op_type for node in model.graph.node if not node.name.startswith("decode/")] == ["Split"]
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]), module


def decode(hm, wh, reg, top_k=TOP_K):
    runtime, module = session(
        hm.shape[1], wh.shape[1], 0 if reg is None else reg.shape[1], *hm.shape[2:], top_k
    )
    heads = np.concatenate([part for part in (hm, wh, reg) if part is not None], 1).astype(np.float32)
    outputs = runtime.run(None, {"heads": heads})
    assert [output.dtype for output in outputs] == [np.float32, np.float32, np.int32]
    for found, expected in zip(module(torch.from_numpy(heads))[1], outputs[1], strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)
    return outputs


def assert_equals_naive(hm, wh, reg, top_k=TOP_K):
    boxes, scores, classes = decode(hm, wh, reg, top_k)
    for index in range(len(hm)):
        rows = np.array(naive(hm[index], wh[index], None if reg is None else reg[index], top_k), np.float32)
        count = len(rows)
        np.testing.assert_allclose(scores[index, :count], rows[:, 4], rtol=0, atol=1e-6)
        assert not scores[index, count:].any()
        np.testing.assert_array_equal(classes[index, :count], rows[:, 5])
        np.testing.assert_allclose(boxes[index, :count], rows[:, :4], rtol=1e-5, atol=1e-4)


def heads(seed, batch, *, wh=2, reg=True, classes=CLASSES, height=HEIGHT, width=WIDTH):
    random = np.random.default_rng(seed)
    shape = (height, width)
    return (
        random.normal(0, 3, (batch, classes, *shape)).astype(np.float32),
        random.uniform(0, 9, (batch, wh, *shape)).astype(np.float32),
        random.uniform(0, 1, (batch, 2, *shape)).astype(np.float32) if reg else None,
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("wh", [2, 2 * CLASSES], ids=["shared-wh", "wh-by-class"])
@pytest.mark.parametrize("reg", [True, False], ids=["reg", "no-reg"])
def test_random_heads(batch, wh, reg):
    assert_equals_naive(*heads(0, batch, wh=wh, reg=reg))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-3, 3), min_size=CLASSES * HEIGHT * WIDTH, max_size=CLASSES * HEIGHT * WIDTH))
def test_many_ties(levels):
    _, wh, reg = heads(1, 1)
    assert_equals_naive(np.array(levels, np.float32).reshape(1, CLASSES, HEIGHT, WIDTH), wh, reg)


def test_one_flat_map_is_all_peaks():
    _, wh, reg = heads(2, 2)
    assert_equals_naive(np.full((2, CLASSES, HEIGHT, WIDTH), -2.19, np.float32), wh, reg)


def test_several_classes_in_one_cell():
    hm, wh, reg = heads(3, 1)
    hm[:] = -9
    hm[0, :, 2, 3] = (1, 3, 2)
    _, _, classes = decode(hm, wh, reg)
    assert classes[0, :3].tolist() == [1, 2, 0]
    assert_equals_naive(hm, wh, reg)


def test_fewer_peaks_than_rows():
    # A ramp has a single peak.
    hm = np.broadcast_to(np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) / 10.0, (1, 1, HEIGHT, WIDTH))
    hm = np.ascontiguousarray(hm, np.float32)
    _, wh, reg = heads(4, 1)
    _, scores, _ = decode(hm, wh, reg)
    assert np.count_nonzero(scores) == 1
    assert_equals_naive(hm, wh, reg)


def test_logits_beyond_what_a_score_tells_apart():
    hm, wh, reg = heads(6, 1, classes=1)
    hm[:] = -200
    hm[0, 0, 2, 2:5] = (30, 40, 35)
    _, scores, _ = decode(hm, wh, reg)
    assert scores[0].tolist() == [1, 0, 0, 0, 0, 0]


def test_logits_that_are_not_finite():
    hm, wh, reg = heads(7, 1, classes=1)
    hm[:] = -np.inf
    hm[0, 0, 0, 0], hm[0, 0, 4, 6], hm[0, 0, 0, 4] = np.inf, 2, np.nan
    boxes, scores, _ = decode(hm, wh, reg)
    np.testing.assert_allclose(scores[0], [1, 1 / (1 + np.exp(-2)), 0, 0, 0, 0], rtol=0, atol=1e-6)
    assert np.isfinite(boxes).all()


def test_as_many_rows_as_cells():
    parts = heads(5, 2, classes=1, height=4, width=3)
    assert_equals_naive(*parts, top_k=12)


def test_indices_beyond_what_float32_counts():
    # 2^24 and some cells: an index that went through float32 would be off by one.
    classes, height, width = 9, 1368, 1367
    hm = torch.full((1, classes, height, width), -9.0)
    expected = [(8, 1366, 1365), (8, 1363, 1366), (7, 1, 2)]
    for rank, (label, y, x) in enumerate(expected):
        hm[0, label, y, x] = 5 - rank
    wh, reg = torch.zeros(1, 2, height, width), torch.zeros(1, 2, height, width)
    boxes, _, labels = decode(hm.numpy(), wh.numpy(), reg.numpy(), top_k=3)
    cells = (boxes[0, :, 1::-1] / STRIDE).astype(int)
    found = [(label, *cell) for label, cell in zip(labels[0].tolist(), cells.tolist(), strict=True)]
    assert found == expected
