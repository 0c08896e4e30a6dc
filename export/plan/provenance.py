"""What a plan was built with and for, and whether that is what is here now."""

import ctypes
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.files import sha256, sha256_of_all

EXPORT = Path(__file__).resolve().parents[1]
BUILDER = ("to_plan.py", "plan/*.py", "graphs/*.py")
"""Files that decide what is in a plan."""

Profiles = dict[str, dict[str, list[int]]]
"""Input name -> min, opt, max -> shape."""

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@cache
def builder_sha256() -> str:
    """Of this project's code that decides what is in a plan: a plan of other code is built again."""
    return sha256_of_all(sorted(path for pattern in BUILDER for path in EXPORT.glob(pattern)))


@dataclass(frozen=True, kw_only=True)
class PlanDescription:
    """The `plan` section of the description beside a plan.

    Attributes:
        tensorrt: version; "RTX " in front for TensorRT-RTX.
        gpu: name, empty where a target was given in its place.
        compute_capability: "9.0".
        precision: fp32, tf32, fp16 or int8.
        plugin_sha256: of the library that runs the DCNv2 layers, empty where the model has none.
        onnx_sha256: of what the plan was built from, with its external data.
        profiles: shapes it serves.
        calibration_sha256: of the pictures or arrays that gave int8 its scales, else empty.
        optimization_level: TensorRT's own; its default if None.
        keep_fp32: patterns of nodes that were left in FP32.
        fp32_offsets: whether offsets are FP32.
        int8_groups: convolutions that were chosen for INT8 in place of those that it makes faster.
        tensors: inputs and outputs, as `model_tensors.ModelTensors` writes them.
        builder_sha256: as the function of that name.
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    precision: str
    plugin_sha256: str
    onnx_sha256: str
    profiles: Profiles
    calibration_sha256: str = ""
    optimization_level: int | None = None
    keep_fp32: list[str] = field(default_factory=list)
    fp32_offsets: bool = False
    int8_groups: list[str] = field(default_factory=list)
    tensors: dict[str, Any] = field(default_factory=dict)
    builder_sha256: str = field(default_factory=builder_sha256)


def read(plan: Path) -> dict[str, Any]:
    """The `plan` section of the description beside a plan.

    Raises:
        ExportError: there is none, it is damaged, or the plan is not the one that it was written with.
    """
    beside = plan.with_suffix(".json")
    try:
        description = json.loads(beside.read_text(encoding="utf-8"))
    except OSError:
        raise ExportError(f"found no {beside}, which export.to_plan writes beside a plan") from None
    except ValueError:
        raise ExportError(f"{beside} is damaged") from None
    section = description.get("plan") if isinstance(description, dict) else None
    if not isinstance(section, dict):
        raise ExportError(f"{beside} has no section 'plan'")
    # Older ones do not say it.
    if plan.is_file() and section.get("sha256") not in (None, sha256(plan)):
        raise ExportError(f"{plan} is not the plan that {beside} describes: is the copy complete?")
    return section


def misfits(section: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Why a plan cannot be used here, one line each; empty if it fits.

    Args:
        section: from `read`.
        here: those fields of a `PlanDescription` that must be the same.
    """
    return [
        f"{key}: the plan has {section.get(key)!r}, found {value!r}"
        for key, value in here.items()
        if section.get(key) != value
    ]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPU that CUDA would use: its name and compute capability ("9.0")."""

    name: str
    compute_capability: str


def find_gpu() -> Gpu | None:
    """The first visible GPU, asked of the driver itself; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    driver.cuDeviceGetName(name, len(name), device)
    numbers = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        number = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        numbers.append(str(number.value))
    return Gpu(name=name.value.decode(), compute_capability=".".join(numbers))
