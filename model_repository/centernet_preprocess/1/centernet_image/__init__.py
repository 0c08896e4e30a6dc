"""Pictures in, detections out: what the server's Python models and the clients share.

It runs inside Triton's container, so NumPy, OpenCV, simplejpeg and Pillow are all that it needs.
"""

from centernet_image.codecs.common import ImageError
from centernet_image.decode import Limits, decode
from centernet_image.description import NetworkDescription
from centernet_image.detections import Detections, select
from centernet_image.geometry import boxes_to_frame, boxes_to_image, frame_transform, warp

__all__ = [
    "Detections",
    "ImageError",
    "Limits",
    "NetworkDescription",
    "boxes_to_frame",
    "boxes_to_image",
    "decode",
    "frame_transform",
    "select",
    "warp",
]
