"""What `--calibration` holds, as feeds: pictures, or the network's own inputs as NumPy files."""

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from centernet_image.picture_tensor import PictureTensor
from rich.console import Console

from export.errors import UsageError
from export.files import sha256_of_all
from export.plan import array_files, feed_dicts, picture_options
from export.plan.profiles import inputs_of, sides_of
from export.plan.provenance import Profiles

DTYPES = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files that feeds are made of.

    Attributes:
        files: pictures, or NumPy files.
        picture: what the network wants of a picture; None for one of this project's own, and for arrays.
    """

    files: list[Path]
    picture: PictureTensor | None = None

    def digest(self) -> str:
        """SHA-256 of all that decides the feeds: of the files alone, where nothing else does."""
        digest = sha256_of_all(self.files)
        if self.picture is None:
            return digest
        return hashlib.sha256(f"{digest} {self.picture}".encode()).hexdigest()

    def feeds(self, model: onnx.ModelProto) -> Iterator[dict[str, np.ndarray]]:
        """The model's inputs, one dict for each picture or file."""
        if self.files[0].suffix in array_files.SUFFIXES:
            return array_files.from_arrays(model, self.files)
        return feed_dicts.from_pictures(model, self.files, picture=self.picture)


def find(
    model: onnx.ModelProto, options: argparse.Namespace, shapes: Profiles, console: Console
) -> Source | None:
    """Those files of `--calibration` that can be read, as many as are asked for; None without the option.

    Raises:
        UsageError: there are none, or the network cannot be fed with them as the options say.
    """
    folder = options.calibration
    if folder is None:
        return None
    arrays = array_files.find_arrays(folder, limit=options.pictures)
    if arrays:
        if picture_options.given(options):
            raise UsageError(
                f"{folder}: found {arrays[0].name}, expected pictures for --mean, --std, --layout …"
            )
        return Source(files=arrays)
    found = feed_dicts.find_pictures(folder, limit=options.pictures)
    if found.skipped:
        console.print(f"warning: {found}: going on with {len(found.paths)}", soft_wrap=True, markup=False)
    if feed_dicts.is_own(model) and not picture_options.given(options):
        return Source(files=found.paths)
    inputs = inputs_of(model)
    if len(inputs) != 1:
        names = ", ".join(tensor.name for tensor in inputs)
        raise UsageError(
            f"{folder}: found pictures for the inputs {names}, expected .npz files with an array for each"
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type)
    picture = picture_options.picture_tensor(
        options,
        inputs[0].name,
        sides_of(inputs[0]),
        DTYPES.get(str(dtype), str(dtype)),
        usual_size=shapes[inputs[0].name]["opt"],
    )
    return Source(files=found.paths, picture=picture)


def to_verify(
    reference: onnx.ModelProto, shapes: Profiles, source: Source | None
) -> Iterator[dict[str, np.ndarray]]:
    """Feeds for the smallest, the most usual and the largest shapes: of the source, or noise without one."""
    if source is not None:
        largest = max((shape["max"] or [1])[0] for shape in shapes.values())
        feeds = [feed for feed, _ in zip(source.feeds(reference), range(largest), strict=False)]
        yield from array_files.for_profiles(feeds, shapes, reference)
        return
    dtypes = {
        tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
        for tensor in reference.graph.input
    }
    done: list[dict[str, list[int]]] = []
    for kind in ("min", "opt", "max"):
        sides = {name: shape[kind] for name, shape in shapes.items()}
        if sides not in done:
            done.append(sides)
            seed = next((shape[0] for shape in sides.values() if shape), 1)
            yield feed_dicts.noise(sides, dtypes, seed=seed)
