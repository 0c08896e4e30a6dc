"""Key points: their places in the picture."""

import numpy as np

from centernet_image.tasks import Peaks


def answers(peaks: Peaks) -> dict[str, np.ndarray]:
    """Float32 [N, K, joints, 2], x and y."""
    return {"detection_keypoints": peaks.points("keypoints")}
