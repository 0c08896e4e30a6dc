"""The exporter's check of its own output: ONNX Runtime against PyTorch on pictures."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from centernet_image import contract
from centernet_image.contract import BOXES, SCORES
from torch import Tensor, nn

from export.errors import ExportError
from export.graphs import onnx_files
from export.graphs.rewrite import to_deform_conv
from export.tasks import DETECT, TASKS
from export.verify import peaks, rows

# All in standard deviations of a head's values. A wrong graph is off by whole ones.
ROUNDING = 1e-4
"""Largest difference from PyTorch's float32 that needs no closer look."""

WORST, TYPICAL = 5.0, 3.0
"""How many times as far from float64 as PyTorch's float32 the worst and the root-mean-square value may be.

Deep deformable networks multiply rounding, each in its own measure: so PyTorch's float32 is the measure.
"""

CHAOTIC = 0.1
"""Root-mean-square error of PyTorch's float32 beyond which a wrong graph could not be told from rounding."""

LEAST_DEVIATION = 1e-2
"""Stands in for the standard deviation of a head that says the same everywhere."""

SCORE_TOLERANCE = 1e-5
BOX_TOLERANCE_PIXELS = 0.01
RELATIVE_TOLERANCE = 1e-4
AT_A_LIMIT = 0.05
"""Part of a task's rows that may be others: of cells as high as a neighbour, joints at a rule's limit."""

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
    model: onnx.ModelProto, module: nn.Module, feeds: Outputs, heads: Sequence[str], *, task: str = DETECT
) -> Differences:
    """Runs `model` in ONNX Runtime and `module` in PyTorch on all of `feeds` at once and on the first alone.

    The heads are held against PyTorch's; where they differ by more than a little, both are held against
    PyTorch's in float64. Detections are held against the heads that they came from: where two peaks are as
    good as equal, which of them is in, and in what order, is nobody's mistake.

    Args:
        model: With the raw heads among its outputs.
        module: What it was exported from.
        feeds: By the model's names of its inputs, in the module's order; the first dimension is the batch.
        heads: Names of the raw heads.
        task: What the detections are of.

    Returns:
        The largest difference of each head, absolute, of `boxes` (pixels) and `scores` if there are any, and
        of the task's further outputs (see `rows.beyond`).

    Raises:
        ExportError: A difference is above the tolerance.
    """
    names = [output.name for output in model.graph.output]
    with _finite_offsets(module):
        expected = _run(module, feeds, names)
    found_in_batches = _run_onnx(model, (feeds, _picture(feeds, 0)))
    exact = cache(lambda index: _run(deepcopy(module).double(), _picture(feeds, index), names))
    differences: Differences = {}
    for found in found_in_batches:
        for name in heads:
            differences[name] = max(
                _compare_head(name, found[name], expected[name][: len(found[name])], exact),
                differences.get(name, 0.0),
            )
        for name, difference in _compare_detections(found, heads, task).items():
            differences[name] = max(difference, differences.get(name, 0.0))
        if rows.PEAKS in found and (unlike := rows.unlike_peaks(found)):
            raise ExportError(
                f"check of the decode: {rows.PEAKS} does not hold {', '.join(unlike)} as they are"
            )
    return differences


@contextmanager
def _finite_offsets(module: nn.Module) -> Iterator[None]:
    """Stops before a NaN is taken for a place in memory, which ends the process, in ONNX Runtime, too."""

    def check(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.isfinite().all():
            raise ExportError(
                f"check: {names[layer]} gives values that are not finite: the weights before it are too "
                "large for float32, or damaged"
            )

    names = {layer: name for name, layer in module.named_modules() if name.endswith("conv_offset_mask")}
    handles = [layer.register_forward_hook(check) for layer in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _picture(feeds: Outputs, index: int) -> Outputs:
    return {name: array[index : index + 1] for name, array in feeds.items()}


def _run_onnx(model: onnx.ModelProto, batches: Sequence[Outputs]) -> list[Outputs]:
    try:
        session = onnx_files.session(to_deform_conv(model))
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(names, each), strict=True)) for each in batches]
    except Exception as error:  # ONNX Runtime's have no base of their own
        raise ExportError(
            f"check: ONNX Runtime cannot run the exported graph: {str(error).splitlines()[0]}"
        ) from error


def _run(module: nn.Module, feeds: Outputs, names: Sequence[str]) -> Outputs:
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in feeds.values()]
    weight = next(module.parameters())
    with torch.inference_mode():
        outputs = module(*(each.to(weight.dtype) if each.is_floating_point() else each for each in tensors))
    return dict(zip(names, (output.numpy() for output in outputs), strict=True))


def _compare_head(
    name: str, found: np.ndarray, expected: np.ndarray, exact: Callable[[int], Outputs]
) -> float:
    """The largest difference of a head [N, C, H, W]; `exact` gives all heads of a picture in float64."""
    if found.shape != expected.shape:
        raise ExportError(
            f"check of batch {len(expected)}: ONNX Runtime's {name} has the shape {list(found.shape)}, "
            f"expected {list(expected.shape)}, PyTorch's"
        )
    if not np.isfinite(expected).all():
        raise ExportError(
            f"check of batch {len(found)}: PyTorch's {name} has values that are not finite: "
            "the weights are too large for float32, or damaged"
        )
    gap = np.abs(found - expected)
    difference = float(gap.max())
    deviation = max(LEAST_DEVIATION, float(expected.std()))
    if difference <= ROUNDING * deviation:
        return difference
    worst = int(np.argmax(gap.max(axis=(1, 2, 3))))
    truth = exact(worst)[name][0]
    theirs, ours = (np.abs(array[worst] - truth) for array in (found, expected))
    typical = float(np.sqrt((ours**2).mean()))
    if typical > CHAOTIC * deviation:
        raise ExportError(
            f"check of batch {len(found)}: PyTorch's {name} in float32 differs from float64 by "
            f"{ours.max():.2g}, and its values only vary by {deviation:.2g}: rounding hides any mistake: are "
            "these the weights of a trained network?"
        )
    floor = ROUNDING * deviation
    # Written so that NaN fails, too.
    if not (
        theirs.max() <= max(floor, WORST * ours.max())
        and np.sqrt((theirs**2).mean()) <= max(floor, TYPICAL * typical)
    ):
        raise ExportError(
            f"check of batch {len(found)}: ONNX Runtime's {name} differs from PyTorch's by {difference:.2g}, "
            f"and from float64 by {theirs.max():.2g}; expected about as much as PyTorch's float32, "
            f"{ours.max():.2g}"
        )
    return difference


def _compare_detections(found: Outputs, heads: Sequence[str], task: str) -> Differences:
    if BOXES.name not in found:
        return {}
    far = np.float32(np.abs(found[BOXES.name]).max(initial=0))
    box_px = max(BOX_TOLERANCE_PIXELS, 4 * float(np.spacing(far)))
    if task != DETECT:
        return _compare_task(found, heads, task, box_px)
    agreement, _ = peaks.explain(found, peaks.boxes_of(found), score=SCORE_TOLERANCE, box_px=box_px)
    if agreement.unmatched:
        raise ExportError(
            f"check of the decode: {agreement.unmatched:.0%} of a picture's detections are missing or are "
            "not what the heads say, expected none"
        )
    return {BOXES.name: agreement.box_px, SCORES.name: agreement.score}


def _compare_task(found: Outputs, heads: Sequence[str], task: str, box_px: float) -> Differences:
    """The same for a task with more than boxes, against PyTorch's decode of ONNX Runtime's heads."""
    decode = TASKS[task](found[SCORES.name].shape[1])
    with torch.inference_mode():
        outputs = decode({name: torch.from_numpy(found[name]) for name in heads})
    names = [tensor.name for tensor in contract.TASKS[task].columns]
    expected = dict(zip(names, (output.numpy() for output in outputs), strict=True))
    agreement, pairs = rows.match(expected, found, score=SCORE_TOLERANCE, box_px=box_px)
    parts = {"boxes": agreement.unmatched}
    differences = {BOXES.name: agreement.box_px, SCORES.name: agreement.score}
    for name in names[len(peaks.OUTPUTS) :]:
        parts[name], differences[name] = rows.beyond(
            name, expected, found, pairs, relative=RELATIVE_TOLERANCE, box_px=box_px
        )
    worst = max(parts, key=lambda name: parts[name])
    if not parts[worst] <= AT_A_LIMIT:
        raise ExportError(
            f"check of the decode: {parts[worst]:.0%} of the {worst} are not what the heads say, expected at "
            f"most {AT_A_LIMIT:.0%}"
        )
    return differences
