"""The server's work in one process."""

import numpy as np
import pytest
from centernet_image.contract import FITS
from centernet_image.description import Description
from centernet_image.geometry import frame_transform, warp
from pictures import encode, picture

from clients.local import LocalDetector

SIZE, FRAME_SIZE = (200, 90), (64, 96)
BOX = np.array([[10, 20, 40, 60]], np.float32)


@pytest.mark.parametrize("fit", FITS)
def test_pictures_are_laid_into_the_frame_as_the_network_wants_them(fit):
    image, frames = picture(*SIZE, seed=0), []

    def network(given):
        frames.append(given)
        return BOX[None], np.ones((1, 1), np.float32), np.zeros((1, 1), np.int32)

    description = Description(classes=("coin",), input_size=FRAME_SIZE, top_k=1, fit=fit)
    detector = LocalDetector(network, description)
    found = detector.detect(encode(image))
    np.testing.assert_array_equal(frames[0][0], warp(image, FRAME_SIZE, fit=fit))
    matrix = frame_transform(SIZE, FRAME_SIZE, fit)
    corners = found.xyxy.reshape(2, 2) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(corners.reshape(1, 4), BOX, atol=1e-3)
