"""The door that every model comes in by: ONNX files, with the files in which their weights may lie."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import onnx
import onnxruntime
from centernet_image.description import Description
from google.protobuf.message import Error as ProtobufError
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from export.errors import ExportError, UsageError, one_line
from export.files import sha256
from export.graphs import soundness
from export.graphs.surgery import graphs_of, nodes_of

LIBRARY_ERRORS = (
    *(onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ProtobufError),
    OnnxGraphSurgeonException,
    *(each for each in vars(runtime).values() if isinstance(each, type) and issubclass(each, Exception)),
)
"""What the libraries say of models that are not as they should be."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file's name before what is said of its model, also by a library, in one line."""
    try:
        yield
    except ExportError as error:
        raise type(error)(f"{path}: {error}") from None
    except LIBRARY_ERRORS as error:
        raise UsageError(f"{path}: {one_line(error)}") from None


def load(path: Path) -> tuple[onnx.ModelProto, str]:
    """Reads a model and its external data, brings it into one form, and checks it (see `soundness`).

    Returns:
        The model, with all weights inside, and the SHA-256 of all that was read: the file's own, if it is
        the only one.

    Raises:
        UsageError: A file cannot be read, is missing or too short, or lies outside of the model's folder, or
            the model is not sound.
    """
    try:
        # By its suffix, it could be text.
        model = onnx.load(path, format="protobuf", load_external_data=False)
        digests = {path.name: sha256(path)}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ProtobufError as error:  # which onnx does not wrap
        raise UsageError(f"{path} is not an ONNX file: {one_line(error)}") from None
    if not model.ByteSize():
        raise UsageError(f"{path} is empty, expected an ONNX file: is the copy complete?")
    with _errors_of_reading(path):
        model = soundness.normalise(model)
    external = [tensor for tensor in _tensors(model.graph) if uses_external_data(tensor)]
    digest = digests[path.name]
    if external:
        digest = _load_external(path, model, external, digests)
    with _errors_of_reading(path):
        soundness.check(model)
    return model, digest


@contextmanager
def _errors_of_reading(path: Path) -> Iterator[None]:
    """Those of `naming`, and what else ONNX's tools raise on damaged models."""
    with naming(path):
        try:
            yield
        except (RuntimeError, TypeError, ValueError) as error:
            raise UsageError(one_line(error)) from None


def _load_external(
    path: Path, model: onnx.ModelProto, external: list[onnx.TensorProto], digests: dict[str, str]
) -> str:
    try:
        needed = _bytes_needed(path, external)
        digests |= {location: sha256(path.parent / location) for location in needed}
        load_external_data_for_model(model, str(path.parent))
    except OSError as error:
        raise UsageError(f"{path}: cannot read {error.filename}: {error.strerror}") from None
    except (ValueError, onnx.checker.ValidationError) as error:
        raise UsageError(f"{path}: its external data cannot be read: {one_line(error)}") from None
    lines = (f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _bytes_needed(path: Path, tensors: Iterable[onnx.TensorProto]) -> dict[str, int]:
    """How long each external file must be; every one is found to be there, and as long."""
    needed: dict[str, int] = {}
    for tensor in tensors:
        info = ExternalDataInfo(tensor)
        file, folder = path.parent / info.location, path.parent.resolve()
        if not info.location or not file.resolve().is_relative_to(folder):
            raise UsageError(
                f"{path}: the data of {tensor.name} lie in {info.location or 'no file'!r}, outside of the "
                f"model's folder: expected a file in {path.parent}"
            )
        if not file.is_file():
            raise UsageError(
                f"{path}: found no {file}, which holds its weights ({tensor.name} …): put it beside the model"
            )
        end = (info.offset or 0) + (_length(tensor) if info.length is None else info.length)
        needed[info.location] = max(end, needed.get(info.location, 0))
        if file.stat().st_size < end:
            raise UsageError(
                f"{file} has {file.stat().st_size} bytes, expected at least {end} for {tensor.name} of "
                f"{path.name}: is the file complete?"
            )
    return needed


def _length(tensor: onnx.TensorProto) -> int:
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    # Types of 4 bits are two to a byte.
    bits = (
        4 if "4" in onnx.TensorProto.DataType.Name(tensor.data_type)[-4:] and itemsize == 1 else 8 * itemsize
    )
    return (prod(tensor.dims) * bits + 7) // 8


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for each in graphs_of(graph):
        yield from each.initializer
        for sparse in each.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in nodes_of(graph.node) for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def session(model: onnx.ModelProto | Path, *, as_written: bool = False) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU; as written without optimizations, which take rounding out, or put other in."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, too
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = model if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def check_served(path: Path) -> None:
    """Loads a model as it stands into ONNX Runtime.

    Raises:
        UsageError: it refuses the model.
    """
    try:
        session(path, as_written=True)
    except LIBRARY_ERRORS as error:
        reason = re.sub(
            r"^\[ONNXRuntimeError\].*? : [A-Z_]+ : (Load model from .*? failed: ?)?", "", one_line(error)
        )
        raise UsageError(f"ONNX Runtime cannot load it: {reason}") from None


def description(model: onnx.ModelProto) -> Description:
    """What `export.to_onnx` wrote of the network into the file's metadata.

    Raises:
        ValueError: A fact is missing or no fact; the text names it.
    """
    try:
        return Description.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its network is not described: {one_line(error)}") from None
