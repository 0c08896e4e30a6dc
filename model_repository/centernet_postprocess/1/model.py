"""Triton's glue around `centernet_image`: the network's peaks to detections and its task's answers."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils
from centernet_image import readiness, tasks
from centernet_image.contract import IMAGE_SIZE, PEAKS, TASKS
from centernet_image.description import ServedNetwork
from centernet_image.selection import score_threshold


class TritonPythonModel:
    """Handles the requests of a batch in one pass, each with its own threshold."""

    def initialize(self, args):
        """Reads the default threshold, the frame size and the class names."""
        config = json.loads(args["model_config"])
        self.inputs, self.outputs = ([t["name"] for t in config[kind]] for kind in ("input", "output"))
        self.network = ServedNetwork(args, pb_utils.is_model_ready)
        self._take(self.network.at_start)
        self.threshold = score_threshold(self.network.parameters.get("score_threshold"))

    def execute(self, requests):
        """Answers each request with its detections, or with the error in its own threshold or tensors."""
        try:
            self._take(self.network.description())
        except (OSError, ValueError) as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        answers = []
        for request in requests:
            try:
                answers.append(self._read(request))
            except ValueError as error:
                answers.append(error)
        good = [index for index, answer in enumerate(answers) if not isinstance(answer, ValueError)]
        try:
            for index, detections in zip(good, self._select([answers[i] for i in good]), strict=True):
                answers[index] = detections
        except ValueError:
            # One of them spoils the pass: each alone, then, to find it.
            for index in good:
                try:
                    (answers[index],) = self._select([answers[index]])
                except ValueError as error:
                    answers[index] = error
        return [self._response(answer) for answer in answers]

    def is_ready(self):
        """Asked by Triton for its own readiness; the 24.10 of the CPU's environment does not ask."""
        return readiness.is_ready()

    def _take(self, description):
        """Prepares what answers need of a description, unless it was the last one."""
        if description is not getattr(self, "description", None):
            self.description = description
            self.labels = np.array([name.encode() for name in description.classes], object)

    def _read(self, request):
        """Its inputs in their order, and its threshold for each picture [N, 1]."""
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        inputs = [tensors[name].as_numpy() for name in self.inputs]
        image_sizes = tensors[IMAGE_SIZE.name].as_numpy()
        if image_sizes.min(initial=1) < 1:
            raise ValueError(f"image_size: found {image_sizes.tolist()}, expected positive height and width")
        parameters = request.parameters()
        given = json.loads(parameters) if "score_threshold" in parameters else {}
        threshold = (
            score_threshold(given["score_threshold"]) if "score_threshold" in given else self.threshold
        )
        return [*inputs, np.full((len(image_sizes), 1), threshold, np.float32)]

    def _select(self, answers):
        """For each request, its part of what `tasks.answer` makes of all of them."""
        if not answers:
            return []
        joined = answers[0] if len(answers) == 1 else list(map(np.concatenate, zip(*answers, strict=True)))
        *inputs, thresholds = joined
        tensors = dict(zip(self.inputs, inputs, strict=True))
        tensors |= tasks.split(tensors.pop(PEAKS.name), TASKS[self.description.task])
        peaks = tasks.Peaks(tensors, tensors.pop(IMAGE_SIZE.name), self.description)
        found = tasks.answer(peaks, thresholds=thresholds, labels=self.labels)
        ends = np.cumsum([len(answer[0]) for answer in answers]).tolist()
        starts = [0, *ends[:-1]]
        return [[found[name][a:b] for name in self.outputs] for a, b in zip(starts, ends, strict=True)]

    def _response(self, answer):
        if isinstance(answer, ValueError):
            code = pb_utils.TritonError.INVALID_ARG
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer), code))
        tensors = zip(self.outputs, answer, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(*tensor) for tensor in tensors])
