"""A network's own inputs from a folder of NumPy files, for calibration and verification.

Each `.npz` holds the inputs by name. A `.npy` holds the one input there is; for several inputs there is a
folder for each, with files of the same names.
"""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from export.errors import UsageError, one_line
from export.plan.profiles import inputs_of, sides_of
from export.plan.provenance import Profiles

SUFFIXES = (".npz", ".npy")
_UNREADABLE = (*(OSError, ValueError, EOFError, MemoryError, RuntimeError), zipfile.BadZipFile, zlib.error)


def find_arrays(folder: Path, *, limit: int) -> list[Path]:
    """The folder's `.npz` files, or else its `.npy` files, or its subfolders', by name."""
    for pattern in ("*.npz", "*.npy", "*/*.npy"):
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            names = sorted({path.name for path in found})[:limit]
            return [path for path in found if path.name in names]
    return []


def from_arrays(model: onnx.ModelProto, paths: Sequence[Path]) -> Iterator[dict[str, np.ndarray]]:
    """The feeds that the files hold, each checked against the model's inputs.

    An array without the batch dimension gets one.

    Raises:
        UsageError: a file cannot be read, or does not fit the inputs.
    """
    inputs = {tensor.name: tensor for tensor in inputs_of(model)}
    names = ", ".join(f"{name} {sides_of(tensor)}" for name, tensor in inputs.items())
    groups: dict[str, dict[str, Path]] = {}
    for path in paths:
        if path.suffix == ".npz":
            arrays = _read(path)
            if set(arrays) != set(inputs):
                found = ", ".join(arrays) or "none"
                raise UsageError(f"{path}: found the arrays {found}, expected the model's inputs: {names}")
            yield {name: _fitting(path, inputs[name], array) for name, array in arrays.items()}
        else:
            own = next(iter(inputs)) if len(inputs) == 1 else path.parent.name
            groups.setdefault(path.name, {})[own] = path
    for files in groups.values():
        if set(files) != set(inputs):
            path = next(iter(files.values()))
            raise UsageError(
                f"{path}: found arrays of that name in {', '.join(files)}, expected a folder for each of the "
                f"model's inputs: {names}"
            )
        yield {name: _fitting(path, inputs[name], _read(path)[""]) for name, path in files.items()}


def for_profiles(
    feeds: Sequence[dict[str, np.ndarray]], profiles: Profiles, model: onnx.ModelProto
) -> Iterator[dict[str, np.ndarray]]:
    """Feeds for the smallest, the most usual and the largest batch, made of the rows of `feeds` in turn.

    Raises:
        UsageError: a shape is not among those of the profile.
    """
    batched = all(isinstance((sides_of(t) or [1])[0], str) for t in inputs_of(model))
    first = next(iter(profiles))
    for size in sorted({profiles[first][kind][0] for kind in profiles[first]}) if batched else [0]:
        usual = feeds[0]
        if batched:
            # Only what is of one shape makes a batch.
            alike = [feed for feed in feeds if all(feed[n].shape[1:] == usual[n].shape[1:] for n in usual)]
            rows = [{name: feed[name][i] for name in feed} for feed in alike for i in range(len(feed[first]))]
            usual = {name: np.stack([rows[i % len(rows)][name] for i in range(size)]) for name in usual}
        for name, array in usual.items():
            shape, sides = array.shape, profiles[name]
            if not all(
                low <= n <= high for low, n, high in zip(sides["min"], shape, sides["max"], strict=True)
            ):
                raise UsageError(
                    f"input {name}: found a feed of shape {list(shape)}, expected {sides['min']} to "
                    f"{sides['max']}: give others, or widen --shapes"
                )
        yield usual


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"": loaded}
    except _UNREADABLE as error:
        raise UsageError(f"{path}: cannot be read: {one_line(error)}") from None


def _fitting(path: Path, tensor: onnx.ValueInfoProto, array: np.ndarray) -> np.ndarray:
    sides = sides_of(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
    if array.ndim == len(sides) - 1:
        array = array[None]
    fits = len(sides) == array.ndim and all(
        isinstance(side, str) or side == size for side, size in zip(sides, array.shape, strict=True)
    )
    # NumPy's own float64 is what scripts write without thinking; other types are other things.
    alike = array.dtype == dtype or (array.dtype.kind == "f" and np.dtype(dtype).kind == "f")
    if not fits or not alike:
        raise UsageError(
            f"{path}: found {array.dtype} {list(array.shape)} for input {tensor.name}, expected "
            f"{dtype} {sides}"
        )
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype)
    if not array.size or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        what = "values that are not finite" if array.size else f"no values ({list(array.shape)})"
        raise UsageError(f"{path}: found {what} for input {tensor.name}, expected numbers to feed it with")
    return array
