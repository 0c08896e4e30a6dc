"""What a plan was built with and for, and whether that is what is here now."""

import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Profiles = dict[str, dict[str, list[int]]]
"""Input name -> min, opt, max -> shape."""

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True, kw_only=True)
class PlanDescription:
    """The `plan` section of the description beside a plan.

    Attributes:
        tensorrt: version; "RTX " in front for TensorRT-RTX.
        gpu: name, empty where a target was given in its place.
        compute_capability: "9.0".
        precision: fp32, fp16 or int8.
        plugin_sha256: of the library that runs the DCNv2 layers, empty where the model has none.
        onnx_sha256: of the file that the plan was built from.
        profiles: shapes it serves.
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    precision: str
    plugin_sha256: str
    onnx_sha256: str
    profiles: Profiles

    def misfits(self, description: Mapping[str, Any]) -> list[str]:
        """Why a plan cannot be used here and must be built again, one line each; empty if it fits.

        Args:
            description: what stands beside the plan, as `export.to_plan` wrote it.
        """
        plan = description.get("plan")
        if not isinstance(plan, dict):
            return ["its description has no section 'plan'"]
        return [
            f"{key}: the plan has {plan.get(key)!r}, found {here!r}"
            for key, here in asdict(self).items()
            if plan.get(key) != here
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


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
