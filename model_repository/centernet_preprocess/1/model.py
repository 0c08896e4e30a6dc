"""Triton's glue around `centernet_image`: encoded pictures to frames."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils
from centernet_image import ImageError, Limits, ServedNetwork, decode, readiness, warp
from PIL import Image

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


class TritonPythonModel:
    """Decodes the pictures of a batch in parallel and lays each into the network's frame."""

    def initialize(self, args):
        """Reads limits and frame size, and runs once what is slow the first time."""
        self.network = ServedNetwork(args, pb_utils.is_model_ready)
        self.frame_size = self.network.at_start.frame_size
        parameters = self.network.parameters
        self.limits = Limits(**{k: int(v) for k, v in parameters.items() if k in Limits.__dataclass_fields__})
        # One picture's memory serves the next. Otherwise the system takes it back, and clears each page again
        # when it is asked for: half of the decoding's time.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**28)
        Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit here.
        # Pictures are what runs in parallel; threads inside OpenCV would compete with that.
        cv2.setNumThreads(1)
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        frame = np.zeros((*self.frame_size, 3), np.uint8)
        for data in (b"no picture", *(cv2.imencode(end, frame)[1].tobytes() for end in (".jpg", ".png"))):
            with suppress(ImageError):
                warp(decode(data), self.frame_size)

    def execute(self, requests):
        """Answers each request with its frames, or with the first error among its own pictures."""
        try:
            self.frame_size = self.network.description().frame_size
        except (OSError, ValueError) as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        batches = [pb_utils.get_input_tensor_by_name(r, "image").as_numpy().ravel() for r in requests]
        frames = [np.empty((len(batch), *self.frame_size, 3), np.uint8) for batch in batches]
        jobs = [
            job for batch, out in zip(batches, frames, strict=True) for job in zip(batch, out, strict=True)
        ]
        results = iter(map(self._prepare, jobs) if len(jobs) == 1 else self.pool.map(self._prepare, jobs))
        return [self._response(out, [next(results) for _ in out]) for out in frames]

    def is_ready(self):
        """Asked by Triton for its own readiness; the 24.10 of the CPU's environment does not ask."""
        return readiness.is_ready()

    def finalize(self):
        """Ends the threads."""
        self.pool.shutdown()

    def _prepare(self, job):
        data, frame = job
        try:
            image = decode(data, self.limits)
            warp(image, self.frame_size, out=frame)
            return image.shape[:2]
        except Exception as error:
            return error

    def _response(self, frames, sizes):
        for index, error in enumerate(sizes):
            if isinstance(error, Exception):
                known = isinstance(error, ImageError)
                where = f"image {index} of {len(sizes)} (counted from 0)" if len(sizes) > 1 else "image"
                code = pb_utils.TritonError.INVALID_ARG if known else pb_utils.TritonError.INTERNAL
                text = f"{where}: {error if known else repr(error)}"
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
        outputs = (("frame", frames), ("image_size", np.array(sizes, np.int32)))
        return pb_utils.InferenceResponse([pb_utils.Tensor(*output) for output in outputs])
