"""3-D boxes: where an object stands before the camera, and how it is turned."""

import numpy as np

from centernet_image.tasks import Peaks

NEAREST = 0.1
"""Metres: what is nearer to the camera, or behind it, is drawn as if it were there."""

FIXED, ROUNDED = (0, 0, 0, 0, 1), 1e-3
"""What a rectified camera's matrix has beside focal lengths, centre and shift; and how nearly."""


def answers(peaks: Peaks) -> dict[str, np.ndarray]:
    """Locations [N, K, 3], dimensions [N, K, 3] and rotations [N, K], float32; and the boxes if need be.

    As CenterNet's `ddd` (Zhou et al., 2019) has them for KITTI: the location is the middle of the bottom in
    the camera's axes, metres; dimensions are height, width and length; the rotation is about the axis that
    points down. A network without `wh` has its centres for boxes: they become those around the 3-D boxes.

    Raises:
        ValueError: The camera's matrix is not a rectified camera's.
    """
    camera = peaks.tensors["camera"].astype(np.float64)
    focal, fixed = camera[:, [0, 1], [0, 1]], camera[:, [0, 1, 2, 2, 2], [1, 0, 0, 1, 2]]
    if not (np.isfinite(camera).all() and (focal > 0).all() and np.allclose(fixed, FIXED, atol=ROUNDED)):
        raise ValueError(
            f"camera: found {camera.tolist()}, expected numbers, focal lengths above 0, in the form "
            "fx 0 cx tx, 0 fy cy ty, 0 0 1 tz"
        )
    u, v = np.moveaxis(peaks.points("centers").astype(np.float64), -1, 0)
    depths = peaks.tensors["depths"].astype(np.float64)
    dimensions = peaks.tensors["dimensions"].astype(np.float64)
    (fx, _, cx, tx), (_, fy, cy, ty), (*_, tz) = np.moveaxis(camera, 0, -1)[..., None]
    z = depths - tz
    x = (u * depths - tx - cx * z) / fx
    y = (v * depths - ty - cy * z) / fy + dimensions[..., 0] / 2
    rotations = peaks.tensors["alphas"] + np.arctan2(u - cx, fx)
    rotations = np.where(rotations > np.pi, rotations - 2 * np.pi, rotations)
    rotations = np.where(rotations < -np.pi, rotations + 2 * np.pi, rotations)
    locations = np.stack([x, y, z], axis=-1)
    found = {
        "detection_locations": locations.astype(np.float32),
        "detection_dimensions": dimensions.astype(np.float32),
        "detection_rotations": rotations.astype(np.float32),
    }
    boxes = peaks.tensors["boxes"]
    flat = (boxes[..., :2] == boxes[..., 2:]).all(axis=-1)
    if flat.all():
        found["detection_boxes"] = enclosing(camera, locations, dimensions, rotations).astype(np.float32)
    return found


def enclosing(
    camera: np.ndarray, locations: np.ndarray, dimensions: np.ndarray, rotations: np.ndarray
) -> np.ndarray:
    """The boxes [N, K, 4] around the projections of 3-D boxes, in pixels of the picture.

    Args:
        camera: [N, 3, 4].
        locations: [N, K, 3].
        dimensions: [N, K, 3].
        rotations: [N, K].
    """
    points = corners(locations, dimensions, rotations)
    matrix = camera[:, None].swapaxes(-1, -2)
    projected = points @ matrix[..., :3, :] + matrix[..., 3:, :]
    pixels = projected[..., :2] / np.maximum(projected[..., 2:], NEAREST)
    return np.concatenate([pixels.min(axis=-2), pixels.max(axis=-2)], axis=-1)


def corners(locations: np.ndarray, dimensions: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """The corners [..., 8, 3] of 3-D boxes as KITTI defines them (Geiger et al., 2012), metres.

    Bit 0 of a corner's number is the length, bit 1 the height, bit 2 the width.

    Args:
        locations: Middle of the bottom, [..., 3].
        dimensions: Height, width, length, [..., 3].
        rotations: Around the vertical axis, radians, [...]; 0 points to the right.
    """
    height, width, length = np.moveaxis(dimensions, -1, 0)[..., None]
    right, up, deep = np.arange(8) >> np.arange(3)[:, None] & 1
    along, across = length * (right - 0.5), width * (deep - 0.5)
    cos, sin = np.cos(rotations)[..., None], np.sin(rotations)[..., None]
    corners = np.stack([along * cos + across * sin, -height * up, across * cos - along * sin], axis=-1)
    return corners + locations[..., None, :]
