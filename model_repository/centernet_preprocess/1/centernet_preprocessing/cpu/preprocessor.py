"""Pictures to frames on the CPU: OpenCV in as many threads as there are cores."""

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import cv2
import numpy as np
from centernet_image.codecs.common import ImageError
from centernet_image.decode import Limits, decode
from centernet_image.geometry import warp
from PIL import Image

from centernet_preprocessing import Prepared

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


class CpuPreprocessor:
    """Decodes and warps the pictures of a batch in parallel."""

    def __init__(self, frame_size: tuple[int, int], limits: Limits, fit: str = "whole") -> None:
        self.frame_size, self.limits, self.fit = frame_size, limits, fit
        # One picture's memory serves the next. Otherwise the system takes it back, and clears each page again
        # when it is asked for: half of the decoding's time.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**28)
        Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit here.
        # Pictures are what runs in parallel; threads inside OpenCV would compete with that.
        cv2.setNumThreads(1)
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        # What is slow the first time.
        frame = np.zeros((*frame_size, 3), np.uint8)
        for data in (b"no picture", *(cv2.imencode(end, frame)[1].tobytes() for end in (".jpg", ".png"))):
            with suppress(ImageError):
                warp(decode(data), frame_size, fit=fit)

    def prepare(self, pictures: Sequence[bytes]) -> Prepared:
        """See `centernet_preprocessing.Preprocessor`; the frames are in the host's memory."""
        frames = np.empty((len(pictures), *self.frame_size, 3), np.uint8)
        # A lone picture is not worth a thread's waking.
        run = map if len(pictures) == 1 else self.pool.map
        return Prepared(frames, list(run(self._prepare, pictures, frames)))

    def only(self, frames: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """See `centernet_preprocessing.Preprocessor`."""
        return frames[indices]

    def start(self, picture: bytes) -> "Future[tuple[np.ndarray, tuple[int, int] | Exception]]":
        """Prepares one picture in the background: its frame, and its size or error."""
        return self.pool.submit(self._prepare_new, picture)

    def close(self) -> None:
        """Ends the threads."""
        self.pool.shutdown()

    def _prepare_new(self, picture: bytes) -> tuple[np.ndarray, tuple[int, int] | Exception]:
        frame = np.empty((*self.frame_size, 3), np.uint8)
        return frame, self._prepare(picture, frame)

    def _prepare(self, picture: bytes, frame: np.ndarray) -> tuple[int, int] | Exception:
        try:
            image = decode(picture, self.limits)
            warp(image, self.frame_size, frame, self.fit)
            return image.shape[0], image.shape[1]
        except Exception as error:
            return error
