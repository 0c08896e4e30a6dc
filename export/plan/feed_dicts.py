"""Inputs for calibration and comparison: pictures as the server would feed them, or smooth noise."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from centernet_image import contract
from centernet_image.codecs.common import ImageError
from centernet_image.decode import decode
from centernet_image.description import Description
from centernet_image.geometry import warp
from centernet_image.picture_tensor import PictureTensor

from export.errors import UsageError
from export.graphs import onnx_files
from export.plan.profiles import inputs_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
ENOUGH = 8
"""Pictures that make up for any number of others that cannot be read."""

PREVIOUS = tuple(tensor.name for tensor in contract.TASKS["tracks"].inputs)
RAW_PREVIOUS = (contract.RAW_PREVIOUS, PREVIOUS[1])
"""Inputs of a network that tracks, beyond the frame, and in the raw-heads form."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of a folder that can be read, in the order of their names, and why others cannot."""

    paths: list[Path]
    skipped: dict[Path, str]

    def __str__(self) -> str:
        first, why = next(iter(self.skipped.items()))
        looked_at = len(self.paths) + len(self.skipped)
        return f"{len(self.skipped)} of {looked_at} pictures cannot be read, the first {first}: {why}"


def find_pictures(folder: Path, *, limit: int = 500) -> Pictures:
    """Decodes the pictures of a folder and its subfolders, until `limit` of them have been read.

    Raises:
        UsageError: There is none, or too few can be read: less than half, and less than `ENOUGH`.
    """
    found = Pictures([], {})
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        if len(found.paths) == limit:
            break
        try:
            decode(path.read_bytes())
            found.paths.append(path)
        except OSError as error:
            found.skipped[path] = error.strerror or str(error)
        except ImageError as error:
            found.skipped[path] = str(error)
    if not found.paths and not found.skipped:
        raise UsageError(f"found no picture in {folder}")
    if len(found.paths) < min(ENOUGH, len(found.skipped)):
        raise UsageError(f"{folder}: {found}: too few are left, expected at least half or {ENOUGH}")
    return found


def previous(frame: np.ndarray, names: Sequence[str] = PREVIOUS) -> dict[str, np.ndarray]:
    """What a network that tracks reads besides uint8 `frame` [N, H, W, 3]: a frame before, and its heat.

    The frame before is the same a little elsewhere, the heat that of 20 objects of many sizes.
    """
    count, height, width = frame.shape[:3]
    rng = np.random.default_rng(0)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    heat = np.zeros((height, width), np.float32)
    for y, x, deviation in rng.uniform((0, 0, 1), (height, width, height / 16), (20, 3)).round():
        blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * deviation**2))
        heat = np.maximum(heat, blob.astype(np.float32))
    before, heat_input = names
    return {before: np.roll(frame, (4, -7), axis=(1, 2)), heat_input: np.repeat(heat[None], count, axis=0)}


def is_own(model: onnx.ModelProto) -> bool:
    """Whether this project knows how to feed a model with pictures: it exported it, or it takes raw frames.

    A name proves nothing: half of all networks call their input `input`.
    """
    inputs = inputs_of(model)
    names = {tensor.name for tensor in inputs}
    if not (names <= {contract.FRAME.name, *PREVIOUS} or names <= {contract.RAW_INPUT, *RAW_PREVIOUS}):
        return False
    if inputs[0].name == contract.FRAME.name:
        return inputs[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    return inputs[0].name == contract.RAW_INPUT and _description(model) is not None


def from_pictures(
    model: onnx.ModelProto, paths: Iterable[Path], *, picture: PictureTensor | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Feeds of one picture each.

    Args:
        model: of this project, with `frame` (uint8 [N, H, W, 3]) or `input` (float [N, 3, H, W], normalised
            as its description says), and perhaps what `previous` makes; else with one that `picture` fits.
        paths: of the pictures.
        picture: what the input wants, for other networks.

    Raises:
        UsageError: the model is another's and `picture` is not given, or a picture cannot be read.
    """
    inputs = inputs_of(model)
    if picture is None and not is_own(model):
        names = ", ".join(entry.name for entry in inputs)
        raise UsageError(
            f"found the inputs {names} of a network that this project did not export: say what they want of "
            "pictures by --mean and --std, or give .npz files"
        )
    tensor = inputs[0]
    shape = [side.dim_value for side in tensor.type.tensor_type.shape.dim]
    is_frame = tensor.name == contract.FRAME.name
    frame_size = (shape[1], shape[2]) if is_frame else (shape[2], shape[3])
    description = _description(model)
    fit = description.fit if description else "whole"
    for path in paths:
        try:
            image = decode(path.read_bytes())
        except (ImageError, OSError) as error:
            raise UsageError(f"{path}: {error}") from error
        if picture is not None:
            yield {tensor.name: picture.prepare(image)[None]}
            continue
        frames = {tensor.name: warp(image, frame_size, fit=fit)[None]}
        if len(inputs) > 1:
            made = previous(frames[tensor.name], PREVIOUS if is_frame else RAW_PREVIOUS)
            frames |= {entry.name: made[entry.name] for entry in inputs[1:]}
        if not is_frame:
            assert description is not None  # else it would not be this project's
            pixels = description.normalisation
            frames = {
                name: normalise(array[0], pixels, description.color)[None] if array.ndim == 4 else array
                for name, array in frames.items()
            }
        yield frames


def _description(model: onnx.ModelProto) -> Description | None:
    try:
        return onnx_files.description(model)
    except ValueError:  # not exported by this project, or edited
        return None


def normalise(
    frame: np.ndarray, normalisation: contract.Normalisation = contract.COCO, color: str = "bgr"
) -> np.ndarray:
    """BGR uint8 [H, W, 3] to the float32 [3, H, W] of the raw-heads form, in the network's order `color`."""
    pixels = frame if color == "bgr" else frame[..., ::-1]
    scaled = (pixels.astype(np.float32) / 255 - normalisation.mean) / normalisation.std
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
        if name == PREVIOUS[1]:
            values = np.clip(values, 0, 1)
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
