"""Reading ONNX files, with the files in which their weights may lie."""

import hashlib
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

import onnx
from centernet_image.description import Description
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from export.errors import UsageError
from export.files import sha256


def load(path: Path) -> tuple[onnx.ModelProto, str]:
    """Reads a model and its external data.

    Returns:
        The model, with all weights inside, and the SHA-256 of all that was read: the file's own, if it is
        the only one.

    Raises:
        UsageError: A file cannot be read, is missing or too short, or lies outside of the model's folder.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        digests = {path.name: sha256(path)}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # protobuf's DecodeError, which onnx does not wrap
        raise UsageError(f"{path} is not an ONNX file: {error}") from None
    external = [tensor for tensor in _tensors(model) if uses_external_data(tensor)]
    if not external:
        return model, digests[path.name]
    try:
        needed = _bytes_needed(path, external)
        digests |= {location: sha256(path.parent / location) for location in needed}
        load_external_data_for_model(model, str(path.parent))
    except OSError as error:
        raise UsageError(f"{path}: cannot read {error.filename}: {error.strerror}") from None
    except (ValueError, onnx.checker.ValidationError) as error:
        raise UsageError(f"{path}: its external data cannot be read: {str(error).splitlines()[0]}") from None
    lines = (f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return model, hashlib.sha256("".join(lines).encode()).hexdigest()


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


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        yield from _tensors_of_nodes(function.node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors_of_graph(graph)


def description(model: onnx.ModelProto) -> Description:
    """What `export.to_onnx` wrote of the network into the file's metadata.

    Raises:
        ValueError: A fact is missing; the text names it.
    """
    return Description.from_metadata({entry.key: entry.value for entry in model.metadata_props})
