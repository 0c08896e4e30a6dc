"""Triton's glue around `centernet_image`: the network's peaks to detections and its task's answers."""

import json
from itertools import accumulate

import numpy as np
import triton_python_backend_utils as pb_utils
from centernet_image import readiness, tasks
from centernet_image.contract import IMAGE_SIZE, PEAKS, TASKS
from centernet_image.description import ServedNetwork
from centernet_image.selection import requested_threshold, score_threshold


class TritonPythonModel:
    """Handles the requests of a batch in one pass, each with its own threshold."""

    def initialize(self, args):
        """Reads the default threshold, and whether there is a network to serve."""
        config = json.loads(args["model_config"])
        self.inputs, self.outputs = ([t["name"] for t in config[kind]] for kind in ("input", "output"))
        self.network = ServedNetwork(args, pb_utils.is_model_ready)
        self.threshold = score_threshold(self.network.parameters.get("score_threshold"))

    def execute(self, requests):
        """Answers each request with its detections, or with the error in its own threshold or tensors."""
        try:
            description = self.network.description()
        except (OSError, ValueError) as error:
            return [_error(error, pb_utils.TritonError.UNAVAILABLE) for _ in requests]
        try:
            return self._answer(requests, description)
        except ValueError:
            # One of them spoils the pass: each alone, then.
            return [self._answer_alone(request, description) for request in requests]

    def is_ready(self):
        """Asked by Triton for its own readiness; the 24.10 of the CPU's environment does not ask."""
        return readiness.is_ready()

    def _answer_alone(self, request, description):
        try:
            (response,) = self._answer([request], description)
        except ValueError as error:
            return _error(error, pb_utils.TritonError.INVALID_ARG)
        return response

    def _answer(self, requests, description):
        """For each request, its part of what `tasks.answer` makes of all of them."""
        thresholds = [requested_threshold(each.parameters(), self.threshold) for each in requests]
        columns = {
            name: [pb_utils.get_input_tensor_by_name(each, name).as_numpy() for each in requests]
            for name in self.inputs
        }
        counts = [len(sizes) for sizes in columns[IMAGE_SIZE.name]]
        tensors = {name: np.concatenate(column) for name, column in columns.items()}
        image_sizes = tensors.pop(IMAGE_SIZE.name)
        if image_sizes.min(initial=1) < 1:
            raise ValueError(f"image_size: found {image_sizes.tolist()}, expected positive height and width")
        tensors |= tasks.split(tensors.pop(PEAKS.name), TASKS[description.task])
        found = tasks.answer(
            tasks.Peaks(tensors, image_sizes, description),
            thresholds=np.array(thresholds, np.float32).repeat(counts)[:, None],
        )
        parts = [slice(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]
        return [self._response(request, found, part) for request, part in zip(requests, parts, strict=True)]

    def _response(self, request, found, part):
        # Labels cost more than all the rest: each string is packed by itself.
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, found[name][part]) for name in self.outputs if name in wanted]
        )


def _error(error, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
