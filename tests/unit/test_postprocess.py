import numpy as np
import pytest
from centernet_image.geometry import frame_transform
from centernet_image.selection import select

LABELS = np.array([b"cat", b"dog", b"caf\xc3\xa9"], object)


def test_against_a_loop():
    rng = np.random.default_rng(0)
    n, k, frame_size = 5, 20, (384, 512)
    boxes = rng.uniform(0, 400, (n, k, 4)).astype(np.float32)
    scores = -np.sort(-rng.uniform(0, 1, (n, k)).astype(np.float32), axis=1)
    classes = rng.integers(0, 3, (n, k), np.int32)
    sizes = rng.integers(100, 900, (n, 2), np.int32)
    thresholds = np.array([[0.0], [0.3], [scores[2, 7]], [0.9], [1.0]], np.float32)
    found = select(
        boxes,
        scores,
        classes,
        image_sizes=sizes,
        frame_size=frame_size,
        thresholds=thresholds,
        labels=LABELS,
    )
    assert [array.dtype for array in found] == [np.int32, np.float32, np.float32, np.int32, object]
    assert found.num.shape == (n, 1)
    assert found.num[0] == k
    assert found.num[2] == 8
    for i in range(n):
        inverse = np.linalg.inv(np.vstack([frame_transform(tuple(sizes[i]), frame_size), [0, 0, 1]]))
        kept = 0
        for j in range(k):
            if scores[i, j] >= thresholds[i, 0]:
                kept += 1
                corners = np.c_[boxes[i, j].reshape(2, 2), np.ones(2)] @ inverse.T
                np.testing.assert_allclose(found.boxes[i, j], corners[:, :2].ravel(), rtol=1e-4, atol=1e-2)
                assert found.scores[i, j] == scores[i, j]
                assert found.classes[i, j] == classes[i, j]
                assert found.labels[i, j] == LABELS[classes[i, j]]
            else:
                assert not found.boxes[i, j].any()
                assert found.scores[i, j] == 0
                assert found.classes[i, j] == 0
                assert found.labels[i, j] == b""
        assert found.num[i, 0] == kept


def run(scores, classes, threshold):
    scores, classes = np.array([scores], np.float32), np.array([classes], np.int32)
    return select(
        np.ones((*scores.shape, 4), np.float32),
        scores,
        classes,
        image_sizes=np.array([[100, 100]]),
        frame_size=(128, 128),
        thresholds=threshold,
        labels=LABELS,
    )


def test_nothing_found():
    found = run([0.2, 0.1], [1, 2], 0.3)
    assert found.num.tolist() == [[0]]
    assert not found.boxes.any()
    assert found.labels.tolist() == [[b"", b""]]


def test_scores_that_are_not_numbers_are_not_detections():
    assert run([0.9, np.nan, np.nan], [0, 0, 0], 0.0).num.tolist() == [[1]]


@pytest.mark.parametrize("wrong", [-1, 3])
def test_class_without_a_name_is_refused(wrong):
    with pytest.raises(ValueError, match=f"classes: found {wrong}, expected 0 to 2"):
        run([0.9, 0.8], [0, wrong], 0.3)


def test_numbers_of_rows_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"found shapes \[\[1, 2, 4\], \[1, 2\], \[1, 1\]\], expected"):
        run([0.9, 0.8], [0], 0.3)
