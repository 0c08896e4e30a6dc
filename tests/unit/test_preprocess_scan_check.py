"""Whose word counts for a JPEG: the kernel's, if it vouches for its scan, else libjpeg-turbo's."""

import importlib
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from centernet_preprocessing.gpu.jpeg import is_whole, parse
from pictures import picture
from scans import SOURCE, damages, host_kernel, jpeg

MODULE = "centernet_preprocessing.gpu.scan"


class Array(np.ndarray):
    """What is used of CuPy's."""

    def set(self, values, stream):
        self[...] = values

    def get(self, stream):
        return np.array(self)


class Stream:
    def __init__(self, *, non_blocking):
        assert non_blocking

    def synchronize(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def scan(monkeypatch):
    """The module, with the kernel on the CPU and a list of what libjpeg-turbo is asked."""
    host = host_kernel()

    def begin(grid, block, arguments):
        descriptions, memory, parts = arguments
        assert descriptions is memory
        host.begin(grid, *block, memory, parts)

    def check(grid, block, arguments):
        descriptions, memory, parts, flags = arguments
        assert descriptions is memory
        host.check(*grid, *block, memory, parts, flags)

    def empty(shape, dtype):
        return np.full(shape, 0xEE, dtype).view(Array)

    def module(code):
        assert code == SOURCE.read_text()
        return types.SimpleNamespace(get_function={"begin": begin, "check": check}.__getitem__)

    cuda = types.SimpleNamespace(Stream=Stream)
    cupy = types.SimpleNamespace(empty=empty, RawModule=module, cuda=cuda, uint8=np.uint8)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx", types.SimpleNamespace(empty_pinned=empty))
    module = importlib.import_module(MODULE)
    module.asked = []

    def asked(data):
        module.asked.append(data)
        return is_whole(data)

    monkeypatch.setattr(module, "is_whole", asked)
    yield module
    del sys.modules[MODULE]


@pytest.fixture
def check(scan):
    with ThreadPoolExecutor(2) as pool:
        checks = scan.ScanCheck(pool)
        yield checks
        checks.close()


def started(check, pictures):
    check.start({2 * i: (data, parse(data).scan) for i, data in enumerate(pictures)})
    return [2 * i for i in range(len(pictures))]


def answers(check, pictures):
    return [check.is_whole(index) for index in started(check, pictures)]


WHOLE = [jpeg(picture(60 + 20 * i, 90), quality=70 + i) for i in range(8)]
RESTARTS = cv2.imencode(".jpg", picture(480, 640), [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1].tobytes()


def test_whole_pictures_are_the_kernels_alone(scan, check):
    for batch in (WHOLE[:1], WHOLE, WHOLE[2:5], []):
        assert answers(check, batch) == [True] * len(batch)
    assert scan.asked == []


def test_the_rest_is_libjpegs(scan, check):
    damaged = [data for data in damages(WHOLE[3], np.random.default_rng(0)) if parse(data)]
    batch = [RESTARTS, *damaged, *WHOLE]
    assert answers(check, batch) == list(map(is_whole, batch))
    assert RESTARTS in scan.asked
    assert not set(WHOLE) & set(scan.asked)


@pytest.mark.parametrize(("limit", "beyond"), [("MAX_SCAN_BYTES", 8), ("MAX_BYTES", 7)])
def test_what_is_too_large_is_libjpegs(scan, check, monkeypatch, limit, beyond):
    monkeypatch.setattr(scan, limit, len(WHOLE[0]) - (limit == "MAX_SCAN_BYTES"))
    batch = WHOLE[:1] + WHOLE[:1] * 7
    assert answers(check, batch) == [True] * 8
    assert len(scan.asked) == beyond


def test_a_batch_that_nobody_asked_about(check):
    started(check, WHOLE)
    damaged = WHOLE[0][:-30] + WHOLE[0][-2:]
    assert answers(check, [damaged, WHOLE[1]]) == [False, True]
