"""The exporter's check of its own output: ONNX Runtime against PyTorch on pictures."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from export import detections
from export.contract import BOXES, SCORES
from export.errors import ExportError
from export.rewrite import to_deform_conv

TOLERANCE = 5e-3
"""Largest difference of a head, in standard deviations of its values.

Deep deformable networks multiply rounding: dla_34 reaches 1e-3. A wrong graph is off by whole deviations.
"""

LEAST_DEVIATION = 1e-2
"""Stands in for the standard deviation of a head that says the same everywhere."""

SCORE_TOLERANCE = 1e-5
BOX_TOLERANCE_PIXELS = 0.01

Differences = dict[str, float]
Outputs = dict[str, np.ndarray]


def pictures(height: int, width: int) -> np.ndarray:
    """Three views of a photograph, BGR uint8 [3, height, width, 3].

    The photograph is scikit-image's `coins`; a painted scene where scikit-image is not installed.
    """
    package = find_spec("skimage")
    picture = None
    if package is not None and package.origin is not None:
        # Read as a file: skimage.data would download what its installation lacks.
        picture = cv2.imread(str(Path(package.origin).with_name("data") / "coins.png"))
    if picture is None:
        picture = _scene()
    picture = cv2.resize(picture, (width, height))
    return np.stack([picture, picture[:, ::-1], 255 - picture[::-1]])


def _scene() -> np.ndarray:
    random = np.random.default_rng(0)
    scene = cv2.resize(
        random.integers(0, 256, (6, 8, 3), np.uint8), (512, 384), interpolation=cv2.INTER_CUBIC
    )
    for _ in range(40):
        x, y, radius, *colour = (
            int(value) for value in random.integers((0, 0, 4, 0, 0, 0), (512, 384, 50, 256, 256, 256))
        )
        cv2.circle(scene, (x, y), radius, colour, cv2.FILLED, cv2.LINE_AA)
    noise = random.normal(0, 6, scene.shape)
    return np.clip(cv2.GaussianBlur(scene, (0, 0), 1.2) + noise, 0, 255).astype(np.uint8)


def compare(
    model: onnx.ModelProto, module: nn.Module, inputs: np.ndarray, heads: Sequence[str]
) -> Differences:
    """Runs `model` in ONNX Runtime and `module` in PyTorch on all `inputs` at once and on the first alone.

    The heads are held against PyTorch's. Detections are held against the heads that they came from:
    where two peaks are as good as equal, which of them is in, and in what order, is nobody's mistake.

    Args:
        model: With the raw heads among its outputs.
        module: What it was exported from.
        inputs: The first dimension is the batch.
        heads: Names of the raw heads.

    Returns:
        The largest difference of each head, absolute, and of `boxes` (pixels) and `scores` if there are any.

    Raises:
        ExportError: A difference is above the tolerance.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    runnable = to_deform_conv(model).SerializeToString()
    session = onnxruntime.InferenceSession(runnable, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    differences: Differences = {}
    for batch in (inputs, inputs[:1]):
        found = dict(zip(names, session.run(names, {session.get_inputs()[0].name: batch}), strict=True))
        with torch.inference_mode():
            outputs = [output.numpy() for output in module(torch.from_numpy(np.ascontiguousarray(batch)))]
        expected = dict(zip(names, outputs, strict=True))
        for name, difference in (_compare_heads(found, expected, heads) | _compare_detections(found)).items():
            differences[name] = max(difference, differences.get(name, 0.0))
    return differences


def _compare_heads(found: Outputs, expected: Outputs, heads: Sequence[str]) -> Differences:
    differences = {}
    for name in heads:
        differences[name] = float(np.abs(found[name] - expected[name]).max())
        allowed = TOLERANCE * max(LEAST_DEVIATION, float(np.nan_to_num(expected[name]).std()))
        # Written so that NaN fails, too.
        if not differences[name] <= allowed:
            raise ExportError(
                f"check of batch {len(found[name])}: ONNX Runtime's {name} differs from PyTorch's by "
                f"{differences[name]:.2g}, expected at most {allowed:.2g}"
            )
    return differences


def _compare_detections(found: Outputs) -> Differences:
    if BOXES.name not in found:
        return {}
    agreement = detections.compare(found, found, score=SCORE_TOLERANCE, box_px=BOX_TOLERANCE_PIXELS)
    if agreement.unmatched:
        raise ExportError(
            f"check of the decode: {agreement.unmatched:.0%} of a picture's detections are missing or are "
            "not what the heads say, expected none"
        )
    return {BOXES.name: agreement.box_px, SCORES.name: agreement.score}
