"""A picture as the tensor that some network takes: size, colours, normalisation, layout."""

from dataclasses import dataclass

import cv2
import numpy as np

from centernet_image.geometry import warp

LAYOUTS = ("nchw", "nhwc")
COLORS = ("rgb", "bgr", "gray")
FITS = ("stretch", "letterbox")


@dataclass(frozen=True, kw_only=True)
class PictureTensor:
    """What a network wants of a picture.

    Attributes:
        size: height and width, pixels.
        mean: of pixel / 255, by channel in the order of `color`.
        std: (pixel / 255 - mean) / std is what the network gets; ignored for UINT8.
        layout: one of `LAYOUTS`.
        color: one of `COLORS`.
        fit: "stretch" to the size, or "letterbox": scaled to fit, in the middle, black outside.
        dtype: FP32, FP16 or UINT8 (pixels as they are).
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "nchw"
    color: str = "rgb"
    fit: str = "stretch"
    dtype: str = "FP32"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one tensor, without the batch."""
        height, width = self.size
        channels = 1 if self.color == "gray" else 3
        return (channels, height, width) if self.layout == "nchw" else (height, width, channels)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Makes the tensor.

        Args:
            image: BGR, uint8 [height, width, 3].

        Returns:
            An array of `shape`: float32, float16 or uint8.
        """
        height, width = self.size
        if self.fit == "letterbox":
            image = warp(image, self.size)
        else:
            # Shrinking by INTER_LINEAR skips pixels; INTER_AREA weighs them all.
            shrinks = image.shape[0] > height and image.shape[1] > width
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image, (width, height), interpolation=interpolation)
        if self.color == "rgb":
            image = image[..., ::-1]
        elif self.color == "gray":
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
        if self.dtype != "UINT8":
            scaled = image.astype(np.float32) / np.float32(255)
            image = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        if self.layout == "nchw":
            image = image.transpose(2, 0, 1)
        return np.ascontiguousarray(image, np.float16 if self.dtype == "FP16" else image.dtype)
