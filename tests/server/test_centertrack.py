"""A network that reads the frame before, but not where its objects were, through the real server."""

import exported
import family
import numpy as np
import pytest
import served_family
import tiny
import torch
from centernet_image.contract import TASKS
from centernet_image.geometry import warp
from pictures import encode, picture
from protocols import images, infer

pytestmark = pytest.mark.server
FRAMES = [np.roll(picture(90, 120, seed=5), (2 * n, -5 * n), axis=(0, 1)) for n in range(3)]


def test_frames_without_their_heat_are_tracked(serve, tmp_path):
    network = tiny.network("dla_34", {"hm": 2, "wh": 2, "reg": 2, "tracking": 2}, stems=("pre_img",))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "frames.pth")
    size = "{}x{}".format(*family.SIZE)
    onnx = exported.export(tmp_path / "frames.pth", "--input-size", size, "--top-k", "20")
    server = serve(served_family.write_repository("frames", onnx, tmp_path / "repository"))
    before = None
    for n, frame in enumerate(warp(each, family.SIZE, fit=TASKS["tracks"].fit) for each in FRAMES):
        peaks = served_family.run(onnx, frame, previous_frame=frame if before is None else before)
        before = frame
        found = infer(
            server,
            "grpc",
            "frames",
            images([encode(FRAMES[n])]),
            {"score_threshold": 0.0},
            sequence_id=1,
            sequence_start=n == 0,
            sequence_end=n == len(FRAMES) - 1,
        )
        np.testing.assert_allclose(found["detection_scores"][0], peaks["scores"], atol=1e-4)
        np.testing.assert_array_equal(found["detection_classes"][0], peaks["classes"])
        assert (found["detection_tracks"] > 0).all()
