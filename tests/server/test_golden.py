"""The original CenterNet's detections come out of the server: the same checkpoint, the same pictures."""

import json

import numpy as np
import pytest
from centernet_image.contract import COCO_CLASSES
from centernet_image.decode import decode
from centernet_image.geometry import warp
from protocols import PROTOCOLS, images, infer

pytestmark = pytest.mark.server
PICTURES = ("16004479832", "17790319373")


def assert_same(found, expected):
    """Compares one picture's outputs with rows of x1, y1, x2, y2, score, class."""
    boxes, scores, classes = expected[:, :4], expected[:, 4], expected[:, 5].astype(int)
    assert found["num_detections"].tolist() == [[100]]
    found_boxes, found_scores = found["detection_boxes"][0], found["detection_scores"][0]
    found_classes = found["detection_classes"][0]
    alike = np.abs(boxes[:, None] - found_boxes).max(axis=2) <= 0.05
    alike &= classes[:, None] == found_classes
    alike &= np.abs(scores[:, None] - found_scores) <= 5e-4
    # Which of two equal scores is the hundredth is not decided.
    certain = scores > scores[-1] + 1e-4
    assert certain.sum() >= 90
    assert alike.any(axis=1)[certain].all()
    position = alike.argmax(axis=1)
    clearly_before = certain[:, None] & certain & (scores[:, None] > scores + 1e-4)
    assert (position[:, None] < position)[clearly_before].all()
    labels = [label.decode() for label in found["detection_labels"][0]]
    assert labels == [COCO_CLASSES[index] for index in found_classes]


@pytest.fixture(params=PICTURES)
def golden(request, shared, reference_server):
    """A server, an encoded picture, and what the original found in it."""
    arch, server = reference_server
    facts = json.loads((shared / f"reference/{arch}.{request.param}.detections.json").read_text())
    data = (shared / "images" / facts["image"]).read_bytes()
    return server, data, np.array(facts["detections"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_encoded_picture(golden, protocol):
    server, data, expected = golden
    assert_same(infer(server, protocol, "centernet", images([data]), {"score_threshold": 0.0}), expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_frame(golden, protocol):
    server, data, expected = golden
    image = decode(data)
    inputs = {
        "frame": warp(image, (512, 512))[None],
        "image_size": np.array([image.shape[:2]], np.int32),
    }
    assert_same(infer(server, protocol, "centernet_frames", inputs, {"score_threshold": "0"}), expected)
