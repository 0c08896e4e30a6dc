"""Pictures of videos to tracks: asks the network, and keeps what it wants of the frame before.

export.to_repository puts this file into a repository. Triton's sequence batcher hands over one frame of a
video at a time, and frames of several videos together.
"""

import asyncio
import json

import numpy as np
import triton_python_backend_utils as pb_utils
from centernet_image import bls, readiness, tasks
from centernet_image.contract import BOXES, FRAME, IMAGE, IMAGE_SIZE, PEAKS, TASKS
from centernet_image.description import ServedNetwork
from centernet_image.selection import requested_threshold, score_threshold
from centernet_image.streams import Streams, TooManyError
from centernet_image.tasks.tracks import heat

TASK = TASKS["tracks"]
PREVIOUS_FRAME, PREVIOUS_HEAT = (tensor.name for tensor in TASK.inputs)


class TritonPythonModel:
    """Handles one frame of each of several videos at the same time."""

    def initialize(self, args):
        """Reads the default threshold, the limits of streams and the class names."""
        config = json.loads(args["model_config"])
        self.network = ServedNetwork(args, pb_utils.is_model_ready)
        self.preprocess = f"{args['model_name']}_preprocess"
        parameters = self.network.parameters
        self.threshold = score_threshold(parameters.get("score_threshold"))
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.family = pb_utils.MetricFamily(
            name="centernet_streams",
            description="Videos that a model keeps the last frame of",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self.gauge = self.family.Metric(labels={"model": args["model_name"]})
        self.streams = Streams(
            max_streams=int(parameters["max_streams"]),
            idle_s=int(config["sequence_batching"]["max_sequence_idle_microseconds"]) / 1e6,
            count=self.gauge.increment,
        )

    async def execute(self, requests):
        """Answers each request with its frame's tracks, or with its own error."""
        try:
            description = self.network.description()
        except (OSError, ValueError) as error:
            return [_error(error, pb_utils.TritonError.UNAVAILABLE) for _ in requests]
        return await asyncio.gather(*(self._respond(request, description) for request in requests))

    def is_ready(self):
        """Asked by Triton for its own readiness; the 24.10 of the CPU's environment does not ask."""
        return readiness.is_ready()

    def finalize(self):
        """Ends the threads and, soon, this process, whatever it still waits for."""
        self.streams.close()
        del self.gauge  # before its family
        bls.end_soon()

    async def _respond(self, request, description):
        flags = request.flags()
        start = bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
        end = bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
        try:
            with self.streams.frame(request.correlation_id(), start=start, end=end) as stream:
                found = await self._track(request, stream, description)
        except bls.FailedError as error:
            return _error(error, error.code)
        except ValueError as error:
            return _error(error, pb_utils.TritonError.INVALID_ARG)
        except TooManyError as error:
            return _error(error, pb_utils.TritonError.UNAVAILABLE)
        except Exception as error:
            return _error(repr(error), pb_utils.TritonError.INTERNAL)
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, found[name]) for name in self.outputs if name in wanted]
        )

    async def _track(self, request, stream, description):
        """The frame's answers; the stream changes last, so that a frame that fails leaves it as it was."""
        threshold = requested_threshold(request.parameters(), self.threshold)
        image = pb_utils.get_input_tensor_by_name(request, IMAGE.name)
        frame, image_size = await bls.async_ask(self.preprocess, [image], [FRAME.name, IMAGE_SIZE.name])
        before = stream.frame
        if before is None or before.shape != frame.shape:  # the first, or the network has changed
            before, boxes = frame, np.zeros((0, 4), np.float32)
        else:
            boxes = stream.boxes
        inputs = {FRAME.name: frame, PREVIOUS_FRAME: before}
        if not description.inputs or PREVIOUS_HEAT in description.inputs:
            inputs[PREVIOUS_HEAT] = heat(boxes, description.input_size)[None]
        tensors = [pb_utils.Tensor(*tensor) for tensor in inputs.items()]
        (peaks,) = await bls.async_ask(self.network.name, tensors, [PEAKS.name])
        answers = tasks.split(peaks, TASK)
        found = tasks.answer(tasks.Peaks(answers, image_size, description), thresholds=threshold)
        count = int(found["num_detections"][0, 0])
        names = ("detection_boxes", "detection_classes", "centers", "displacements")
        ids = np.zeros((1, len(found["detection_classes"][0])), np.int32)
        ids[0, :count] = stream.tracker.update(*(found[name][0, :count] for name in names))
        stream.frame, stream.boxes = frame.copy(), answers[BOXES.name][0, :count].copy()
        return found | {"detection_tracks": ids}


def _error(error, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
