"""Triton's glue around `centernet_image`: the network's peaks to detections."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils
from centernet_image import ServedNetwork, readiness, select

INPUTS = ("boxes", "scores", "classes", "image_size")
OUTPUTS = ("num_detections", "detection_boxes", "detection_scores", "detection_classes", "detection_labels")


class TritonPythonModel:
    """Handles requests one by one: mostly each has one picture and its own threshold."""

    def initialize(self, args):
        """Reads the default threshold, the frame size and the class names."""
        self.network = ServedNetwork(args, pb_utils.is_model_ready)
        self._take(self.network.at_start)
        self.threshold = _threshold(self.network.parameters.get("score_threshold"))

    def execute(self, requests):
        """Answers each request with its detections, or with the error in its own threshold or sizes."""
        try:
            self._take(self.network.description())
        except (OSError, ValueError) as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        return [self._answer(request) for request in requests]

    def is_ready(self):
        """Asked by Triton for its own readiness; the 24.10 of the CPU's environment does not ask."""
        return readiness.is_ready()

    def _take(self, description):
        """Prepares what answers need of a description, unless it was the last one."""
        if description is not getattr(self, "description", None):
            self.description = description
            self.labels = np.array([name.encode() for name in description.classes], object)

    def _answer(self, request):
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        boxes, scores, classes, image_sizes = (inputs[name] for name in INPUTS)
        try:
            threshold = self._threshold_of(request)
            if min(map(min, image_sizes.tolist())) < 1:
                raise ValueError(
                    f"image_size: found {image_sizes.tolist()}, expected positive height and width"
                )
            detections = select(
                boxes,
                scores,
                classes,
                image_sizes=image_sizes,
                frame_size=self.description.frame_size,
                thresholds=threshold,
                labels=self.labels,
            )
        except ValueError as error:
            code = pb_utils.TritonError.INVALID_ARG
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
        tensors = zip(OUTPUTS, detections, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(*tensor) for tensor in tensors])

    def _threshold_of(self, request):
        parameters = request.parameters()
        given = json.loads(parameters) if "score_threshold" in parameters else {}
        return _threshold(given.get("score_threshold", self.threshold))


def _threshold(value):
    try:
        threshold = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        threshold = float("nan")
    if not 0 <= threshold <= 1:
        raise ValueError(f"score_threshold: found {value!r}, expected a number from 0 to 1")
    return threshold
