"""Triton's glue around `centernet_preprocessing`: encoded pictures to frames."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils
from centernet_image import readiness
from centernet_image.codecs.common import ImageError
from centernet_image.decode import Limits
from centernet_image.description import ServedNetwork
from centernet_preprocessing import create


class TritonPythonModel:
    """Prepares the pictures of all requests of a batch together."""

    def initialize(self, args):
        """Reads limits and frame size, and makes the preprocessor for what Triton says is here."""
        self.network = ServedNetwork(args, pb_utils.is_model_ready)
        self.args = args
        self.preprocessor = None
        self._take(self.network.at_start)

    def execute(self, requests):
        """Answers each request with its frames, or with the first error among its own pictures."""
        try:
            self._take(self.network.description())
        except (OSError, ValueError) as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        batches = [pb_utils.get_input_tensor_by_name(r, "image").as_numpy().ravel() for r in requests]
        frames, sizes = self.preprocessor.prepare([data for batch in batches for data in batch])
        ends = np.cumsum([len(batch) for batch in batches])
        parts = [slice(end - len(batch), end) for batch, end in zip(batches, ends, strict=True)]
        return [_response(frames[part], sizes[part]) for part in parts]

    def is_ready(self):
        """Asked by Triton for its own readiness; the 24.10 of the CPU's environment does not ask."""
        return readiness.is_ready()

    def finalize(self):
        """Ends the threads."""
        self.preprocessor.close()

    def _take(self, description):
        """Makes the preprocessor anew for a network of another frame size or fit."""
        frame_size, fit = description.input_size, description.fit
        if self.preprocessor is not None:
            if (self.preprocessor.frame_size, self.preprocessor.fit) == (frame_size, fit):
                return
            self.preprocessor.close()
        parameters = self.network.parameters
        limits = {k: int(v) for k, v in parameters.items() if k in Limits.__dataclass_fields__}
        gpu = self.args["model_instance_kind"] == "GPU"
        self.preprocessor = create(
            frame_size,
            Limits(**limits),
            fit=fit,
            device=parameters.get("device", "auto"),
            gpu_id=int(self.args["model_instance_device_id"]) if gpu else None,
            max_batch=json.loads(self.args["model_config"])["max_batch_size"],
            check_scans=parameters.get("check_scans", "on") == "on",
            host_frames=parameters.get("frames") == "host",
            warn=pb_utils.Logger.log_warn,
        )


def _response(frames, sizes):
    for index, error in enumerate(sizes):
        if isinstance(error, Exception):
            known = isinstance(error, ImageError)
            where = f"image {index} of {len(sizes)} (counted from 0)" if len(sizes) > 1 else "image"
            code = pb_utils.TritonError.INVALID_ARG if known else pb_utils.TritonError.INTERNAL
            text = f"{where}: {error if known else repr(error)}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
    if isinstance(frames, np.ndarray):
        frame = pb_utils.Tensor("frame", frames)
    else:
        # Complete already (-1: nothing to wait for), and copied from before the next batch.
        frame = pb_utils.Tensor.from_dlpack("frame", frames.__dlpack__(stream=-1))
    return pb_utils.InferenceResponse([frame, pb_utils.Tensor("image_size", np.array(sizes, np.int32))])
