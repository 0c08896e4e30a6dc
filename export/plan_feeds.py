"""Inputs for calibration and comparison: pictures as the server would feed them, or smooth noise."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from centernet_image import ImageError, decode, warp

from export import contract
from export.errors import UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


def from_pictures(
    model: onnx.ModelProto, folder: Path, *, limit: int = 500
) -> Iterator[dict[str, np.ndarray]]:
    """Feeds for one of this project's networks, one picture each, in the order of their names.

    Args:
        model: with the one input `frame` (uint8 [N, H, W, 3]) or `input` (float [N, 3, H, W], normalised).
        folder: searched with its subfolders.
        limit: pictures at most.

    Raises:
        UsageError: the model's input is another one, or a picture cannot be read.
    """
    # Exporters of old list the weights among the inputs too.
    weights = {initializer.name for initializer in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    tensor = inputs[0]
    shape = [side.dim_value for side in tensor.type.tensor_type.shape.dim]
    is_frame = tensor.name == contract.FRAME.name
    if len(inputs) != 1 or tensor.name not in (contract.FRAME.name, contract.RAW_INPUT):
        names = ", ".join(entry.name for entry in inputs)
        raise UsageError(
            f"found the inputs {names}, expected {contract.FRAME.name} or {contract.RAW_INPUT} alone: "
            "only this project's own networks can be fed with pictures"
        )
    frame_size = (shape[1], shape[2]) if is_frame else (shape[2], shape[3])
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UsageError(f"found no picture in {folder}")
    for path in paths[:limit]:
        try:
            frame = warp(decode(path.read_bytes()), frame_size)
        except ImageError as error:
            raise UsageError(f"{path}: {error}") from error
        yield {tensor.name: frame[None] if is_frame else normalise(frame)[None]}


def normalise(frame: np.ndarray) -> np.ndarray:
    """BGR uint8 [H, W, 3] to the float32 [3, H, W] of the raw-heads form."""
    scaled = (frame.astype(np.float32) / 255 - contract.MEAN) / contract.STD
    return scaled.transpose(2, 0, 1).astype(np.float32)


def noise(
    shapes: dict[str, list[int]], dtypes: dict[str, np.dtype], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs; those of four dimensions vary from coarse to fine as pictures do, each in its own way.

    Harder edges than a picture's would drive a network to where its sigmoid tells nothing apart.
    """
    rng = np.random.default_rng(seed)
    feed = {}
    for name, shape in shapes.items():
        values = rng.normal(0, 1, shape)
        if len(shape) == 4:
            values = 0.1 * values
            for cells in (4, 16, 64):
                grid = [size if size <= 3 or axis == 0 else cells for axis, size in enumerate(shape)]
                values += _enlarge(rng.normal(0, 2 / cells**0.5, grid), shape)
        if dtypes[name] == np.uint8:
            values = np.clip(128 + 60 * values, 0, 255)
        feed[name] = values.astype(dtypes[name])
    return feed


def _enlarge(grid: np.ndarray, shape: list[int]) -> np.ndarray:
    """Interpolates linearly along each axis."""
    for axis, size in enumerate(shape):
        if grid.shape[axis] != size:
            at = np.linspace(0, grid.shape[axis] - 1, size)
            weights = np.array([np.interp(at, np.arange(len(row)), row) for row in np.eye(grid.shape[axis])])
            grid = np.moveaxis(np.tensordot(grid, weights, (axis, 0)), -1, axis)
    return grid
