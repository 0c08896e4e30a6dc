"""A model of each task's tensors, for clients: one Python model that answers what it was given."""

from pathlib import Path

import numpy as np
from centernet_image import contract

MODEL = """
import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        with np.load(folder / "answers.npz", allow_pickle=True) as answers:
            self.answers = dict(answers)
        self.seen = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        answers = dict(self.answers)
        if "camera" in inputs:
            answers["detection_rotations"] = inputs["camera"][0, 0, 3] + answers["detection_rotations"]
        if "START" in inputs:
            # Identities say how long the sequence is, classes how many others there are, labels what ends.
            sequence = int(inputs["CORRID"].flat[0])
            if inputs["START"].flat[0]:
                self.seen[sequence] = 0
            answers["detection_tracks"] = answers["detection_tracks"] + self.seen[sequence]
            self.seen[sequence] += 1
            if inputs["END"].flat[0]:
                answers["detection_labels"] = np.array([b"last"] * 2, object)
                del self.seen[sequence]
            answers["detection_classes"] = answers["detection_classes"] * 0 + len(self.seen)
        return pb_utils.InferenceResponse([pb_utils.Tensor(k, v[np.newaxis]) for k, v in answers.items()])
"""

SEQUENCE = """
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 8 }
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "END" control [ { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
"""

ANSWERS = {
    contract.NUM_DETECTIONS.name: np.array([2], np.int32),
    contract.DETECTION_BOXES.name: np.array([[10, 20, 60, 90], [70, 20, 110, 90]], np.float32),
    contract.DETECTION_SCORES.name: np.array([0.9, 0.8], np.float32),
    contract.DETECTION_CLASSES.name: np.array([0, 1], np.int32),
    contract.DETECTION_LABELS.name: np.array([b"one", b"two"], object),
}


def make(repository: Path, task: str, answers: dict[str, np.ndarray], *, name: str = "") -> None:
    """Adds a model with the task's name, or another; `answers` are the task's own, two rows each."""
    name = name or task
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    np.savez(folder / "answers.npz", **ANSWERS, **answers)
    described = contract.TASKS[task]
    inputs = _described("input", (contract.IMAGE, *described.requests))
    outputs = _described("output", (*contract.DETECTIONS, *described.answers))
    sequence = SEQUENCE if task == "tracks" else ""
    config = f'name: "{name}"\nbackend: "python"\nmax_batch_size: 4\n{inputs}{outputs}{sequence}'
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")


def _described(kind: str, tensors: tuple[contract.Tensor, ...]) -> str:
    lines = [f'{{ name: "{t.name}" data_type: TYPE_{t.dtype} dims: {list(t.shape)} }}' for t in tensors]
    return f"{kind} [ {', '.join(lines)} ]\n"
