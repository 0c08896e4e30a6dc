"""The demo's network on the photograph that it is made for, by a real server."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import supervision
from scipy.optimize import linear_sum_assignment

from clients import CenterNetClient

pytestmark = pytest.mark.server


def marked() -> np.ndarray:
    """Boxes of the coins, marked by hand: x1 y1 x2 y2 [24, 4]."""
    content = json.loads((Path(__file__).parents[1] / "data/coins.json").read_text())
    boxes = np.array([annotation["bbox"] for annotation in content["annotations"]])
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def test_all_24_coins_are_found(coins_server):
    picture = cv2.imencode(".png", skimage.data.coins())[1].tobytes()
    with CenterNetClient(coins_server.grpc_url) as client:
        found = client.detect(picture)
    truth = marked()
    assert len(truth) == 24
    assert set(found.labels) == {"coin"}
    overlap = supervision.box_iou_batch(truth, found.xyxy)
    coins, boxes = linear_sum_assignment(overlap, maximize=True)
    matched = overlap[coins, boxes]
    assert (matched >= 0.5).sum() == 24, f"IoU of each coin: {np.sort(matched).round(2)}"
    assert len(found) == 24, f"scores: {found.scores.round(2)}"
