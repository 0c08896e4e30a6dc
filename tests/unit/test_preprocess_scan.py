"""The kernel that checks JPEGs' scans, on the CPU: it vouches for whole ones, and for no other."""

import shutil
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from centernet_preprocessing.gpu.jpeg import is_whole, parse
from centernet_preprocessing.gpu.packing import PART_BYTES
from pictures import picture
from scans import HostKernel, damages, jpeg, scan_start

SAMPLINGS = ({"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"subsampling": "4:4:0"}, {"grey": True})


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return HostKernel(tmp_path_factory.mktemp("scan"))


def textured(height, width, seed=0):
    """As photographs are: smooth, with some noise."""
    noise = np.random.default_rng(seed).integers(0, 25, (height, width, 3), np.uint8)
    return picture(height, width, seed=seed) // 2 + noise


def encoded(image, *, subsampling=2, grey=False, **options):
    if grey:
        return jpeg(image[..., 1].copy(), **options)
    if subsampling == "4:4:0":
        return jpeg_440(image, **options)
    return jpeg(image, subsampling=subsampling, **options)


def jpeg_440(image, **options):
    """What 4:2:2 is to a picture on its side: the same blocks under another name."""
    data = jpeg(image.transpose(1, 0, 2).copy(), subsampling=1, **options)
    frame = data.index(b"\xff\xc0")
    sides = data[frame + 7 : frame + 9] + data[frame + 5 : frame + 7]
    return data[: frame + 5] + sides + data[frame + 9 : frame + 11] + b"\x12" + data[frame + 12 :]
