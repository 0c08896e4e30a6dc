"""Landmarks: answered as key points are."""

from centernet_image.tasks.keypoints import answers

__all__ = ["answers"]
