import cv2
import numpy as np
import pytest
from centernet_image.contract import FITS
from centernet_image.geometry import (
    boxes_to_image,
    frame_transform,
    points_to_image,
    vectors_to_image,
    warp,
)
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
@given(st.lists(sizes, min_size=1, max_size=4), frames, st.sampled_from(FITS), st.integers(0, 2**32 - 1))
def test_round_trip_of_a_batch(image_sizes, frame_size, fit, seed):
    batch = np.array(image_sizes, np.int32)
    boxes = np.random.default_rng(seed).uniform(-100, 6100, (len(batch), 5, 4)).astype(np.float32)
    there = np.empty_like(boxes)
    for one, size, moved in zip(boxes, image_sizes, there, strict=True):
        points = np.concatenate([one.reshape(-1, 2), np.ones((10, 1))], axis=1)
        moved[:] = (points @ frame_transform(size, frame_size, fit).T).reshape(5, 4)
    # Float32 in the frame, which may be far smaller than the picture.
    np.testing.assert_allclose(boxes_to_image(there, batch, frame_size, fit), boxes, rtol=1e-3, atol=0.5)


@pytest.mark.parametrize("fit", FITS)
def test_points_and_vectors_of_any_rank(fit):
    sizes, frame_size = np.array([[300, 500], [500, 200]]), (64, 96)
    points = np.random.default_rng(0).uniform(0, 90, (2, 5, 17, 2)).astype(np.float32)
    there, lengths = (to(points, sizes, frame_size, fit) for to in (points_to_image, vectors_to_image))
    for n, size in enumerate(sizes):
        matrix = frame_transform(tuple(size), frame_size, fit)
        np.testing.assert_allclose(there[n] @ matrix[:, :2].T + matrix[:, 2], points[n], atol=1e-3)
        np.testing.assert_allclose(lengths[n] @ matrix[:, :2].T, points[n], atol=1e-3)


@pytest.mark.parametrize(("size", "scale"), [((600, 800), 640 / 800), ((800, 400), 640 / 800)])
def test_the_longer_side_becomes_the_frames_width(size, scale):
    """CenterTrack's: upright pictures are smaller than they could be, wide ones lose rows in a low frame."""
    height, width = size
    matrix = frame_transform(size, (192, 640), "longest")
    expected = [[scale, 0, (640 - scale * width) / 2], [0, scale, (192 - scale * height) / 2]]
    np.testing.assert_allclose(matrix, expected)
    np.testing.assert_array_equal(
        frame_transform(size, (512, 512), "longest"), frame_transform(size, (512, 512))
    )


def test_a_fit_of_the_width_loses_rows():
    """CenterNet's `ddd`: one scale, the width's, and centre on centre."""
    matrix = frame_transform((600, 800), (192, 640), "width")
    np.testing.assert_allclose(matrix, [[0.8, 0, 0], [0, 0.8, 192 / 2 - 0.8 * 300]])
    image = np.full((600, 800, 3), 9, np.uint8)
    image[250:350] = 200
    frame = warp(image, (192, 640), fit="width")
    assert (frame[[0, 20, 170, 191]] == 9).all()
    assert (frame[60:130] == 200).all()


@pytest.mark.parametrize("image_size", [(600, 900), (900, 600), (33, 700), (61, 97), (97, 61), (608, 1088)])
def test_a_letterbox_is_the_originals(image_size):
    """FairMOT's own steps, with its rounding; every pixel of the picture's copy has its place."""
    (height, width), frame_size = image_size, (64, 96)
    ratio = min(frame_size[0] / height, frame_size[1] / width)
    inner = round(height * ratio), round(width * ratio)
    missing = (frame_size[0] - inner[0]) / 2, (frame_size[1] - inner[1]) / 2
    (top, bottom), (left, right) = ((round(d - 0.1), round(d + 0.1)) for d in missing)
    image = np.random.default_rng(0).integers(0, 256, (*image_size, 3), np.uint8)
    resized = cv2.resize(image, inner[::-1], interpolation=cv2.INTER_AREA)
    expected = cv2.copyMakeBorder(resized, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(127.5,) * 3)
    out = np.full((*frame_size, 3), 7, np.uint8)
    assert warp(image, frame_size, out, "letterbox") is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(warp(image, frame_size, fit="letterbox"), expected)
    corners = frame_transform(image_size, frame_size, "letterbox") @ [[0, width], [0, height], [1, 1]]
    np.testing.assert_allclose(corners, [[left, left + inner[1]], [top, top + inner[0]]])


def test_an_unknown_fit_is_refused():
    with pytest.raises(
        ValueError, match="fit: found 'stretch', expected one of whole, longest, width, letterbox"
    ):
        frame_transform((10, 10), (64, 96), "stretch")


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
def test_warp_is_exact_bilinear_sampling(image_size, frame_size):
    """Positions that are rounded, as OpenCV 4 does to 1/32 pixel, are several levels off on noise."""
    image = np.random.default_rng(0).integers(0, 256, (*image_size, 3), np.uint8)
    matrix = frame_transform(image_size, frame_size)
    # A black rim stands for everything outside.
    padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)))
    (y0, y1, down), (x0, x1, across) = (
        neighbours((np.arange(frame_size[axis]) - shift) / matrix[0, 0], image_size[axis])
        for axis, shift in enumerate((matrix[1, 2], matrix[0, 2]))
    )
    across, down = across[:, None], down[:, None, None]
    rows = [padded[np.ix_(y, x0)] * (1 - across) + padded[np.ix_(y, x1)] * across for y in (y0, y1)]
    expected = rows[0] * (1 - down) + rows[1] * down
    found = warp(image, frame_size, np.full((*frame_size, 3), 77, np.uint8))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.52)


def neighbours(positions, side):
    """The pixels before and after each position, as indices into a padded axis, and the fraction between."""
    before = np.floor(positions)
    first, second = (np.clip(before + step, -1, side).astype(int) + 1 for step in (0, 1))
    return first, second, positions - before
