"""Encoded pictures to the tensor of a network; export.to_repository puts this file into a repository."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils
from centernet_image import readiness
from centernet_image.decode import Limits, decode
from centernet_image.picture_errors import first_error
from centernet_image.picture_tensor import PictureTensor


class TritonPythonModel:
    """Prepares the pictures of all requests of a batch together."""

    def initialize(self, args):
        """Reads limits and what the network wants."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.limits = Limits.of(parameters)
        wanted = json.loads(parameters["picture"])
        self.tensor = PictureTensor(**{k: tuple(v) if isinstance(v, list) else v for k, v in wanted.items()})
        self.output = config["output"][0]["name"]
        self.batched = config["max_batch_size"] > 0
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def execute(self, requests):
        """Answers each request with its tensors, or with the first error among its own pictures."""
        batches = [pb_utils.get_input_tensor_by_name(r, "image").as_numpy().ravel() for r in requests]
        done = [[self.pool.submit(self._prepare, data) for data in batch] for batch in batches]
        return [self._answer(futures) for futures in done]

    def is_ready(self):
        """Asked by Triton for its own readiness; the 24.10 of the CPU's environment does not ask."""
        return readiness.is_ready()

    def finalize(self):
        """Ends the threads."""
        self.pool.shutdown()

    def _prepare(self, data):
        try:
            image = decode(data, self.limits)
            return self.tensor.prepare(image), image.shape[:2]
        except Exception as error:
            return error

    def _answer(self, futures):
        outcomes = [future.result() for future in futures]
        if error := first_error(outcomes):
            return pb_utils.InferenceResponse(error=error)
        tensors, sizes = zip(*outcomes, strict=True)
        sizes = np.array(sizes, np.int32)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(self.output, np.stack(tensors)),
                pb_utils.Tensor("image_size", sizes if self.batched else sizes[0]),
            ]
        )
