import cv2
import numpy as np
import pytest
from centernet_image import boxes_to_frame, boxes_to_image, frame_transform, geometry, warp
from hypothesis import given, settings
from hypothesis import strategies as st

sizes = st.tuples(st.integers(8, 6000), st.integers(8, 6000))
frames = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda size: (32 * size[0], 32 * size[1]))


def original_transform(image_size, side):
    """CenterNet's own construction, for its square frames: three points and the square around the picture."""
    height, width = image_size
    corner = np.array([[0.0, 0.0], [0.0, -0.5], [-0.5, -0.5]])
    source = np.array([width / 2, height / 2]) + max(height, width) * corner
    return cv2.getAffineTransform(source.astype(np.float32), (side / 2 + side * corner).astype(np.float32))


@settings(deadline=None)
@given(sizes, st.integers(1, 40))
def test_square_frame_is_the_originals(image_size, cells):
    side = 32 * cells
    expected = original_transform(image_size, side)
    np.testing.assert_allclose(frame_transform(image_size, (side, side)), expected, rtol=1e-5, atol=1e-3)


@settings(deadline=None)
@given(sizes, frames)
def test_picture_fits_and_is_centred(image_size, frame_size):
    (height, width), (frame_height, frame_width) = image_size, frame_size
    corners = frame_transform(image_size, frame_size) @ np.array([[0, 0, 1], [width, height, 1]]).T
    (left, right), (top, bottom) = corners
    assert left == pytest.approx(frame_width - right, abs=1e-6)
    assert top == pytest.approx(frame_height - bottom, abs=1e-6)
    assert min(left, top) == pytest.approx(0, abs=1e-6)


@settings(deadline=None)
@given(st.lists(sizes, min_size=1, max_size=4), frames, st.integers(0, 2**32 - 1))
def test_round_trip_of_a_batch(image_sizes, frame_size, seed):
    batch = np.array(image_sizes, np.int32)
    boxes = np.random.default_rng(seed).uniform(-100, 6100, (len(batch), 5, 4)).astype(np.float32)
    there = boxes_to_frame(boxes, batch, frame_size)
    np.testing.assert_allclose(boxes_to_image(there, batch, frame_size), boxes, rtol=1e-4, atol=0.05)
    for one, size, moved in zip(boxes, image_sizes, there, strict=True):
        matrix = frame_transform(size, frame_size)
        points = np.concatenate([one.reshape(-1, 2), np.ones((10, 1))], axis=1)
        np.testing.assert_allclose(moved.reshape(-1, 2), points @ matrix.T, rtol=1e-5, atol=1e-3)


def test_picture_of_the_frames_size_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    np.testing.assert_array_equal(warp(image, (64, 96)), image)


@pytest.mark.parametrize(("image_size", "frame_size"), [((40, 90), (64, 96)), ((90, 40), (64, 96))])
def test_warp_is_bilinear_and_black_outside(image_size, frame_size):
    y, x = np.mgrid[: image_size[0], : image_size[1]]
    image = np.stack([x * 2, y * 2, (x + y)], axis=-1).astype(np.uint8)
    out = np.full((*frame_size, 3), 77, np.uint8)
    assert warp(image, frame_size, out) is out

    matrix = frame_transform(image_size, frame_size)
    v, u = np.mgrid[: frame_size[0], : frame_size[1]]
    x, y = (u - matrix[0, 2]) / matrix[0, 0], (v - matrix[1, 2]) / matrix[1, 1]
    inside = (x >= 0) & (y >= 0) & (x <= image_size[1] - 1) & (y <= image_size[0] - 1)
    outside = (x < -1) | (y < -1) | (x > image_size[1]) | (y > image_size[0])
    assert outside.any()
    assert not out[outside].any()
    expected = np.stack([x * 2, y * 2, (x + y)], axis=-1)
    np.testing.assert_allclose(out[inside], expected[inside], atol=0.51)
    border = ~inside & ~outside
    assert (out[border] <= expected[border].clip(0, 255) + 1).all()


@pytest.mark.parametrize(
    ("image_size", "frame_size"),
    [((45, 33), (64, 96)), ((7, 300), (96, 64)), ((200, 150), (160, 96)), ((1, 1), (64, 64))],
)
def test_warp_equals_its_formula_bit_by_bit(image_size, frame_size):
    image = np.random.default_rng(0).integers(0, 256, (*image_size, 3), np.uint8)
    matrix = frame_transform(image_size, frame_size)
    rows, down = geometry._positions(matrix[1, 1], matrix[1, 2], frame_size[0], np.float32)
    columns, across = geometry._positions(matrix[0, 0], matrix[0, 2], frame_size[1], np.float64)
    # A black rim stands for everything outside.
    padded = np.pad(image.astype(np.float32), ((1, 1), (1, 1), (0, 0)))
    y, x = (
        np.clip([whole, whole + 1], -1, side) + 1
        for whole, side in zip((rows, columns), image_size, strict=True)
    )
    (top_left, top_right), (bottom_left, bottom_right) = ([padded[np.ix_(v, u)] for u in x] for v in y)
    across, down = across[:, None], down[:, None, None]
    top = (top_right - top_left) * across + top_left
    bottom = (bottom_right - bottom_left) * across + bottom_left
    expected = np.rint((bottom - top) * down + top).astype(np.uint8)
    found = geometry._warp_exactly(image, matrix, np.full((*frame_size, 3), 77, np.uint8))
    np.testing.assert_array_equal(found, expected)
