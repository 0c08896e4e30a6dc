"""versions.json is the only place for versions: what repeats one agrees with it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = json.loads((ROOT / "versions.json").read_text())
PIN = re.compile(r"^([a-z0-9-]+)==([^ ;]+)", re.MULTILINE)


def pins(name):
    return dict(PIN.findall((ROOT / name).read_text()))


def test_release_has_the_security_fixes():
    assert re.fullmatch(r"\d\d\.\d\d", VERSIONS["triton"])
    assert VERSIONS["triton"] >= "26.07"
    assert VERSIONS["tensorrt"]["production"] in VERSIONS["tensorrt"]["supported"]


def test_dockerfile():
    text = (ROOT / "Dockerfile.triton").read_text()
    assert re.findall(r"^ARG TRITON=(.*)$", text, re.MULTILINE) == [VERSIONS["triton"]]
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == [
        "nvcr.io/nvidia/tensorrt:${TRITON}-py3",
        "nvcr.io/nvidia/tritonserver:${TRITON}-py3",
    ]


def test_toolchain():
    found = pins("ci/requirements-toolchain.txt")
    assert found["nvidia-cuda-nvcc"].startswith(VERSIONS["cuda"] + ".")
    majors = {found[name].split(".")[0] for name in ("tensorrt-cu12-bindings", "tensorrt-cu13-bindings")}
    assert majors == set(VERSIONS["tensorrt"]["supported"])


def test_cmake_builds_for_each_supported_tensorrt_and_reads_the_targets():
    text = (ROOT / "plugins/dcnv2/CMakeLists.txt").read_text()
    assert re.findall(r"add_plugin\(trt(\d+) ", text) == VERSIONS["tensorrt"]["supported"]
    assert "versions.json" in text
    assert "gpu_targets" in text


def test_image_has_the_packages_that_were_tested():
    project = pins("ci/requirements.txt")
    image = pins("ci/container/requirements.txt")
    wanted = (ROOT / "ci/container/requirements.in").read_text().splitlines()
    names = {re.match(r"[\w-]+", line)[0] for line in wanted if line and not line.startswith("#")}
    assert names <= set(image)
    # Of no use without a GPU, and tested where there is one (ci/gpu/serving).
    assert set(image) - set(project) == {
        "cupy-cuda13x",
        "fastrlock",
        "nvidia-nvimgcodec-cu13",
        "nvidia-nvjpeg",
    }
    assert all(project[name] == version for name, version in image.items() if name in project)


def test_no_other_file_names_a_release():
    done = subprocess.run(
        ["git", "grep", "-nE", r"(tritonserver|tensorrt):[0-9]{2}\.[0-9]{2}", "--", "*", ":!docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not [line for line in done.stdout.splitlines() if VERSIONS["triton"] not in line]


@pytest.mark.parametrize("module", ["export.to_plan", "export.plan.precision", "export.graphs.rewrite"])
def test_plans_are_built_without_pytorch(module):
    """The image has none."""
    block = f"import sys; sys.modules['torch'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
