"""Triton's glue around `centernet_image`: the network's peaks to detections."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from centernet_image import Detections, NetworkDescription, select

INPUTS = ("boxes", "scores", "classes", "image_size")
OUTPUTS = ("num_detections", "detection_boxes", "detection_scores", "detection_classes", "detection_labels")


class TritonPythonModel:
    """Handles a batch of requests, each with its own threshold, in one NumPy pass."""

    def initialize(self, args):
        """Reads the default threshold, the frame size and the class names."""
        parameters = {k: v["string_value"] for k, v in json.loads(args["model_config"])["parameters"].items()}
        default = Path(args["model_repository"]).parent / "centernet_network" / "1" / "model.json"
        description = NetworkDescription.read(Path(parameters.get("network_description", default)))
        self.frame_size = description.frame_size
        self.labels = np.array([*(name.encode() for name in description.classes), b""], object)
        self.threshold = _threshold(parameters["score_threshold"])

    def execute(self, requests):
        """Answers each request with its detections, or with the error in its own threshold or sizes."""
        responses, inputs, thresholds = [], [], []
        for request in requests:
            tensors = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS]
            try:
                threshold = self._threshold_of(request)
                if tensors[3].min() < 1:
                    raise ValueError(
                        f"image_size: found {tensors[3].tolist()}, expected positive height and width"
                    )
            except ValueError as error:
                code = pb_utils.TritonError.INVALID_ARG
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code)))
                continue
            responses.append(None)
            inputs.append(tensors)
            thresholds.append(np.full((len(tensors[0]), 1), threshold, np.float32))
        answers = iter(self._select(inputs, thresholds))
        return [response or next(answers) for response in responses]

    def _select(self, inputs, thresholds):
        if not inputs:
            return
        boxes, scores, classes, image_sizes = (np.concatenate(column) for column in zip(*inputs, strict=True))
        detections = select(
            boxes,
            scores,
            classes,
            image_sizes=image_sizes,
            frame_size=self.frame_size,
            thresholds=np.concatenate(thresholds),
            labels=self.labels,
        )
        start = 0
        for threshold in thresholds:
            stop = start + len(threshold)
            tensors = zip(OUTPUTS, Detections._make(array[start:stop] for array in detections), strict=True)
            yield pb_utils.InferenceResponse([pb_utils.Tensor(*tensor) for tensor in tensors])
            start = stop

    def _threshold_of(self, request):
        parameters = request.parameters()
        if "score_threshold" not in parameters:
            return self.threshold
        return _threshold(json.loads(parameters)["score_threshold"])


def _threshold(value):
    try:
        threshold = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        threshold = float("nan")
    if not 0 <= threshold <= 1:
        raise ValueError(f"score_threshold: found {value!r}, expected a number from 0 to 1")
    return threshold
