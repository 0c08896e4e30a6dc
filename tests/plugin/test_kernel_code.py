"""What the compiler made of the kernels, in the library that is shipped."""

import re
import subprocess
from pathlib import Path

import pytest
from missing import missing

triton = pytest.importorskip("triton", reason="its package has the disassembler")

pytestmark = pytest.mark.plugin

LIBRARY = Path(__file__).parents[2] / "build/dcnv2/trt10/libdcnv2.so"
TILE_SHAPES = 8
"""Of `DCNV2_TILES` in tile_shape.h."""

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def kernels(architecture: str) -> dict[str, str]:
    """Machine code by mangled name of the tensor-core kernels for 16-bit types."""
    if not LIBRARY.exists():
        missing(f"no {LIBRARY}: ci/plugin builds it")
    command = [CUOBJDUMP, "--dump-sass", f"--gpu-architecture={architecture}", LIBRARY]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    parts = re.split(r"Function : (\S+)", text)[1:]
    found = {name: code for name, code in zip(parts[::2], parts[1::2], strict=True) if "tileKernel" in name}
    return {name: code for name, code in found.items() if "4Half" in name or "8Bfloat16" in name}


@pytest.mark.parametrize(
    ("architecture", "product"), [("sm_90a", "HGMMA"), ("sm_80", "HMMA"), ("sm_120", "HMMA")]
)
def test_tensor_cores_and_wide_loads(architecture, product):
    found = kernels(architecture)
    assert len(found) == 2 * TILE_SHAPES
    for name, code in found.items():
        assert re.search(rf"\b{product}\.", code), name
        # Four corners of at least one pixel, 16 bytes each; weights past the registers.
        assert len(re.findall(r"\bLDG\.E\.128", code)) >= 4, name
        assert "LDGSTS" in code, name


def test_nothing_is_spilled_on_hopper():
    found = {name: code for name, code in kernels("sm_90a").items() if "4Half" in name}
    assert len(found) == TILE_SHAPES
    for name, code in found.items():
        assert not re.search(r"\b(LDL|STL)\b", code), name
