"""The GPU's warp kernel, compiled for the CPU, against OpenCV: arithmetic needs no GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from centernet_image.decode import Limits
from centernet_image.geometry import frame_transform, warp
from centernet_preprocessing import create
from centernet_preprocessing.gpu.picture import PICTURE, describe
from pictures import encode, picture

SOURCE = Path(__file__).parents[2] / (
    "model_repository/centernet_preprocess/1/centernet_preprocessing/gpu/warp.cu"
)
HOST = """
#include <cmath>
#define __global__
struct Index { int x, y, z; };
static Index blockIdx, threadIdx;
static const Index blockDim = {1, 1, 1};
static float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static int __float2int_rn(float a) { return (int)std::nearbyintf(a); }
#include "warp.cu"
extern "C" void run(const Picture* pictures, int count, unsigned char* frames, int height, int width) {
  for (blockIdx.z = 0; blockIdx.z < count; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < height; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < width; ++blockIdx.x) warp(pictures, frames, height, width);
}
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("warp")
    (folder / "host.cpp").write_text(HOST)
    command = ["g++", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{SOURCE.parent}"]
    subprocess.run([*command, "host.cpp", "-o", "host.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "host.so")).run


def warped(kernel, images, frame_size, fit):
    """The frames of RGB images, as the kernel makes them."""
    pictures = np.array(
        [
            describe(
                image.shape[:2], frame_size, fit, pixels=image.ctypes.data, pitch=image.strides[0], frame=i
            )
            for i, image in enumerate(images)
        ],
        PICTURE,
    )
    frames = np.full((len(images), *frame_size, 3), 77, np.uint8)
    kernel(
        ctypes.c_void_p(pictures.ctypes.data), len(images), ctypes.c_void_p(frames.ctypes.data), *frame_size
    )
    return frames


@pytest.mark.parametrize(
    ("frame_size", "fit"), [((512, 512), "whole"), ((384, 640), "whole"), ((192, 640), "width")]
)
def test_like_opencv(kernel, frame_size, fit):
    rng = np.random.default_rng(0)
    sizes = [(960, 1280), (480, 640), (1080, 1920), (33, 700), (700, 33), (8, 8), (512, 512), (1501, 999)]
    images = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    images = [cv2.add(image, rng.integers(0, 60, image.shape, np.uint8)) for image in images]
    # Rows with a gap between them, as decoders leave.
    padded = np.zeros((960, 1300, 3), np.uint8)
    padded[:, :1280] = images[0]
    found = warped(kernel, [padded[:, :1280, ::1], *images[1:]], frame_size, fit)
    for size, image, frame in zip(sizes, images, found, strict=True):
        matrix = frame_transform(size, frame_size, fit)
        expected = cv2.warpAffine(
            np.ascontiguousarray(image[..., ::-1]), matrix, frame_size[::-1], flags=cv2.INTER_LINEAR
        )
        difference = np.abs(frame.astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.0001


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_a_letterbox_is_left_to_the_cpu(device):
    said = []
    options = {"fit": "letterbox", "device": device, "gpu_id": 0, "max_batch": 1, "warn": said.append}
    if device == "gpu":
        with pytest.raises(RuntimeError, match="a letterbox is resized by area, which only the CPU does"):
            create((64, 96), Limits(), **options)
        return
    made = create((64, 96), Limits(), **options)
    assert "a letterbox is resized by area" in said[0]
    image = picture(50, 60)
    frames, sizes = made.prepare([encode(image)])
    made.close()
    assert sizes == [(50, 60)]
    np.testing.assert_array_equal(frames[0], warp(image, (64, 96), fit="letterbox"))
