"""Numbers and names that come from elsewhere, held to themselves written once more."""

import hashlib

import numpy as np
import torch
from centernet_image import contract

from export.detector import Normalise


def test_normalisation_is_the_originals():
    frame = torch.tensor([10, 120, 250], dtype=torch.uint8).expand(1, 2, 3, 3)  # blue, green, red
    found = Normalise()(frame)
    assert found.shape == (1, 3, 2, 3)
    expected = [(10 / 255 - 0.408) / 0.289, (120 / 255 - 0.447) / 0.274, (250 / 255 - 0.470) / 0.278]
    np.testing.assert_allclose(found[0, :, 0, 0], expected, atol=1e-6)


def test_cocos_classes_and_their_order():
    assert len(contract.COCO_CLASSES) == 80
    some = {0: "person", 1: "bicycle", 15: "cat", 16: "dog", 39: "bottle", 62: "tv", 79: "toothbrush"}
    assert {index: contract.COCO_CLASSES[index] for index in some} == some
    digest = hashlib.sha256("\n".join(contract.COCO_CLASSES).encode()).hexdigest()
    assert digest == "d7654b26101572841ed1cd80aa03aa60e35f1b8acb4aea6906c4066886f16e07"
