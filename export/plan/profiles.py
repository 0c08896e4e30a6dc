"""The shapes that a plan serves: `--batch` for the first dimension, `--shapes` for any."""

import re
from collections.abc import Mapping

import onnx

from export.errors import UsageError
from export.plan.provenance import Profiles

LARGEST = 2**31 - 1
"""Size that TensorRT takes."""

KINDS = ("min", "opt", "max")
Shapes = Mapping[str, tuple[tuple[int, ...], ...]]
"""Input name -> its smallest, most usual and largest shape."""

FORM = "INPUT=MIN,OPT,MAX, for example input=1x3x64x64,1x3x512x512,8x3x1024x1024"


def parse(texts: list[str]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The shapes of `--shapes`, by input; one shape stands for all three.

    Raises:
        UsageError: a text is not of the form, or names an input twice.
    """
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
    for text in texts:
        name, _, sides = text.rpartition("=")
        parts = sides.split(",") * (3 if "," not in sides else 1)
        if (
            not name
            or len(parts) != 3
            or not all(re.fullmatch(r"\d{1,99}(x\d{1,99})*", part) for part in parts)
        ):
            raise UsageError(f"--shapes: found {text}, expected {FORM}")
        if name in shapes:
            raise UsageError(f"--shapes: found input {name} twice, expected it once")
        shapes[name] = tuple(tuple(int(side) for side in part.split("x")) for part in parts)
        if max(map(max, shapes[name])) > LARGEST:
            raise UsageError(f"--shapes: found {text}, expected sizes of at most {LARGEST}")
    return shapes


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The model's inputs; exporters of old list the weights among them, too."""
    weights = {initializer.name for initializer in model.graph.initializer}
    return [tensor for tensor in model.graph.input if tensor.name not in weights]


def sides_of(tensor: onnx.ValueInfoProto) -> list[int | str]:
    """Its dimensions: sizes, and the names of those that are open ("?" without a name).

    Raises:
        UsageError: not even their number is known.
    """
    if tensor.type.HasField("tensor_type") and not tensor.type.tensor_type.HasField("shape"):
        raise UsageError(f"{tensor.name} has no shape, and none follows: write it into the ONNX file")
    return [
        side.dim_value if side.HasField("dim_value") else side.dim_param or "?"
        for side in tensor.type.tensor_type.shape.dim
    ]


def profiles(
    model: onnx.ModelProto, batch: tuple[int, int, int] | None = None, shapes: Shapes | None = None
) -> Profiles:
    """The smallest, most usual and largest shape of each input.

    Args:
        model: its inputs say which dimensions are open.
        batch: for inputs that `shapes` does not name: sizes of their first dimension, if that is open.
            1, 8 and 32 by default, or what is fixed.
        shapes: whole shapes by input, from `parse`.

    Raises:
        UsageError: an open dimension has no size, or a size does not fit the model.
    """
    tensors, given = inputs_of(model), dict(shapes or {})
    for name in given:
        if name not in {tensor.name for tensor in tensors}:
            names = ", ".join(f"{tensor.name} {sides_of(tensor)}" for tensor in tensors)
            raise UsageError(f"--shapes: found no input {name} in the model, expected one of {names}")
    found: Profiles = {}
    for tensor in tensors:
        sides = sides_of(tensor)
        if tensor.name in given:
            _check(tensor.name, sides, given[tensor.name])
            three = given[tensor.name]
        else:
            three = _by_batch(tensor.name, sides, batch)
        found[tensor.name] = {kind: list(shape) for kind, shape in zip(KINDS, three, strict=True)}
    _check_common_names(tensors, found)
    return found


def _by_batch(
    name: str, sides: list[int | str], batch: tuple[int, int, int] | None
) -> tuple[tuple[int, ...], ...]:
    if any(isinstance(side, str) for side in sides[1:]):
        kinds = (
            (side if isinstance(side, int) else size if index else batch for index, side in enumerate(sides))
            for batch, size in ((1, 64), (4, 512), (8, 1024))
        )
        example = ",".join("x".join(map(str, kind)) for kind in kinds)
        raise UsageError(
            f"input {name} has shape {sides}, expected no open dimension but the first (batch): "
            f"say its sizes by --shapes, in the form {name}={example}, or export it with fixed ones"
        )
    if not sides:
        return ((), (), ())
    first, *rest = sides
    if isinstance(first, int):
        if batch is not None and any(size != first for size in batch):
            raise UsageError(
                f"input {name} has the fixed batch {first}, found --batch {','.join(map(str, batch))}: "
                f"give --batch {first}, or export with an open batch"
            )
        batch = (first, first, first)
    return tuple((size, *(int(side) for side in rest)) for size in batch or (1, 8, 32))


def _check(name: str, sides: list[int | str], three: tuple[tuple[int, ...], ...]) -> None:
    texts = ",".join("x".join(map(str, shape)) for shape in three)
    for shape in three:
        if len(shape) != len(sides):
            raise UsageError(
                f"--shapes {name}={texts}: found {len(shape)} dimensions, expected {len(sides)}: "
                f"the input has shape {sides}"
            )
    for axis, (side, sizes) in enumerate(zip(sides, zip(*three, strict=True), strict=True)):
        where = f"--shapes {name}={texts}: dimension {axis} (counted from 0)"
        if isinstance(side, int):
            if any(size != side for size in sizes):
                raise UsageError(f"{where} is {', '.join(map(str, sizes))}, expected {side}: it is fixed")
            continue
        if list(sizes) != sorted(sizes) or sizes[0] < 1:
            raise UsageError(f"{where} is {', '.join(map(str, sizes))}, expected rising sizes of at least 1")
        # PyTorch's exporter writes "32*h" for a side that it knows to be a multiple.
        multiple = re.fullmatch(r"(\d+)\*\w+", side)
        if multiple and any(size % int(multiple[1]) for size in sizes):
            raise UsageError(
                f"{where} is {', '.join(map(str, sizes))}, expected multiples of {multiple[1]}: "
                f"the model calls it {side}"
            )


def _check_common_names(tensors: list[onnx.ValueInfoProto], found: Profiles) -> None:
    """Dimensions of one name have one size."""
    seen: dict[str, tuple[str, list[int]]] = {}
    for tensor in tensors:
        for axis, side in enumerate(sides_of(tensor)):
            if not isinstance(side, str) or side == "?":
                continue
            sizes = [found[tensor.name][kind][axis] for kind in KINDS]
            other, expected = seen.setdefault(side, (tensor.name, sizes))
            if sizes != expected:
                raise UsageError(
                    f"input {tensor.name}: found {', '.join(map(str, sizes))} for its dimension {side}, "
                    f"expected {', '.join(map(str, expected))} as for {other}: give both the same by --shapes"
                )
