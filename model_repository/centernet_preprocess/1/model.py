"""Triton's glue around `centernet_preprocessing`: encoded pictures to frames, or to the network's peaks."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils
from centernet_image import bls, readiness
from centernet_image.contract import FRAME, IMAGE, IMAGE_SIZE, PEAKS
from centernet_image.decode import Limits
from centernet_image.description import ServedNetwork
from centernet_image.picture_errors import first_error
from centernet_preprocessing import create


class TritonPythonModel:
    """Prepares the pictures of all requests of a batch together.

    If `peaks` is among its outputs, it has the network compute them for the whole batch at once. As a step of
    the ensemble, the network would get each request's frames by a copy of their own, which waits for the GPU.
    """

    def initialize(self, args):
        """Reads limits and frame size, and makes the preprocessor for what Triton says is here."""
        self.network = ServedNetwork(args, pb_utils.is_model_ready)
        self.args = args
        config = json.loads(args["model_config"])
        self.max_batch = config["max_batch_size"]
        self.asks = PEAKS.name in [tensor["name"] for tensor in config["output"]]
        self.preprocessor = None
        self._take(self.network.at_start)

    def execute(self, requests):
        """Answers each request with its own part, or with the first error among its own pictures."""
        try:
            self._take(self.network.description())
        except (OSError, ValueError) as error:
            return [pb_utils.InferenceResponse(error=_unavailable(error)) for _ in requests]
        batches = [pb_utils.get_input_tensor_by_name(r, IMAGE.name).as_numpy().ravel() for r in requests]
        frames, sizes = self.preprocessor.prepare([data for batch in batches for data in batch])
        ends = np.cumsum([len(batch) for batch in batches])
        parts = [slice(end - len(batch), end) for batch, end in zip(batches, ends, strict=True)]
        errors = [first_error(sizes[part]) for part in parts]
        if self.asks:
            try:
                result = self._peaks(frames, [not isinstance(size, Exception) for size in sizes])
            except bls.FailedError as error:
                # One for each: the backend frees its text with the first response.
                errors = [own or pb_utils.TritonError(str(error), error.code) for own in errors]
        else:
            result = frames
        return [
            pb_utils.InferenceResponse(error=error) if error else self._response(result[part], sizes[part])
            for part, error in zip(parts, errors, strict=True)
        ]

    def is_ready(self):
        """Asked by Triton for its own readiness; the 24.10 of the CPU's environment does not ask."""
        return readiness.is_ready()

    def finalize(self):
        """Ends the threads and, soon, this process, whatever it still waits for."""
        self.preprocessor.close()
        bls.end_soon()

    def _take(self, description):
        """Makes the preprocessor anew for a network of another frame size or fit."""
        frame_size, fit = description.input_size, description.fit
        if self.preprocessor is not None:
            if (self.preprocessor.frame_size, self.preprocessor.fit) == (frame_size, fit):
                return
            self.preprocessor.close()
        parameters = self.network.parameters
        gpu = self.args["model_instance_kind"] == "GPU"
        self.preprocessor = create(
            frame_size,
            Limits.of(parameters),
            fit=fit,
            device=parameters.get("device", "auto"),
            gpu_id=int(self.args["model_instance_device_id"]) if gpu else None,
            max_batch=self.max_batch,
            check_scans=parameters.get("check_scans", "on") == "on",
            host_frames=parameters.get("frames") == "host",
            warn=pb_utils.Logger.log_warn,
        )

    def _peaks(self, frames, good):
        """Of each picture; zeros for one without a frame, of which the network is not asked."""
        if not any(good):
            return np.zeros(len(good))
        if all(good):
            return self._ask(frames)
        some = self._ask(self.preprocessor.only(frames, np.flatnonzero(good)))
        peaks = np.zeros((len(good), *some.shape[1:]), some.dtype)
        peaks[good] = some
        return peaks

    def _ask(self, frames):
        (peaks,) = bls.ask(self.network.name, [_tensor(FRAME.name, frames)], [PEAKS.name])
        return peaks

    def _response(self, result, sizes):
        first = _tensor((PEAKS if self.asks else FRAME).name, result)
        sizes = pb_utils.Tensor(IMAGE_SIZE.name, np.array(sizes, np.int32))
        return pb_utils.InferenceResponse([first, sizes])


def _unavailable(error):
    return pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)


def _tensor(name, array):
    """Of a NumPy array, or of one in the GPU's memory."""
    if isinstance(array, np.ndarray):
        return pb_utils.Tensor(name, array)
    # Complete already (-1: nothing to wait for), and copied from before the next batch.
    return pb_utils.Tensor.from_dlpack(name, array.__dlpack__(stream=-1))
