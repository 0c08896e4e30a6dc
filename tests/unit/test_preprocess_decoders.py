"""Who decodes which picture of a batch on a GPU, with stand-ins for nvImageCodec and CuPy."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest


class Image:
    """Memory with a picture in it."""

    def __init__(self):
        self.shape, self.holds, self.capacity = (2, 2, 3), None, 12


class Decoder:
    """Decodes its letters, into the memory that it is given or into new one."""

    def __init__(self, letters):
        self.letters, self.asked = letters, []

    def decode(self, streams, *, images=None, **_):
        self.asked.append(b"".join(streams))
        if not self.letters:
            raise RuntimeError("not today")
        found = [image or Image() for image in images or [None] * len(streams)]
        for image, data in zip(found, streams, strict=True):
            image.holds = data
        return [image if data in self.letters else None for image, data in zip(found, streams, strict=True)]


def code_stream(data):
    if data == b"!":
        raise RuntimeError("no picture")
    return data


@pytest.fixture
def module(monkeypatch):
    """The module of the preprocessor, which needs neither GPU nor libraries to be loaded."""
    codec = SimpleNamespace(
        BackendKind=SimpleNamespace(HW_GPU_ONLY="hardware", HYBRID_CPU_GPU="hybrid"),
        Backend=lambda kind: kind,
        CodeStream=code_stream,
    )
    stand_ins = {name: ModuleType(name) for name in ("cupy", "cupyx", "cuda", "cuda.pathfinder", "nvidia")}
    stand_ins["cuda.pathfinder"].load_nvidia_dynamic_lib = None
    stand_ins["nvidia"].nvimgcodec = codec
    for name, stand_in in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    for name in ("preprocessor", "scan"):
        monkeypatch.delitem(sys.modules, f"centernet_preprocessing.gpu.{name}", raising=False)
    loaded = importlib.import_module("centernet_preprocessing.gpu.preprocessor")
    yield loaded
    for name in ("preprocessor", "scan"):
        sys.modules.pop(f"centernet_preprocessing.gpu.{name}", None)


@pytest.fixture
def made(module):
    """A preprocessor of these decoders, and of so much memory from the batch before."""

    def make(*decoders, kept=0):
        preprocessor = module.GpuPreprocessor.__new__(module.GpuPreprocessor)
        preprocessor.decoders, preprocessor.kept = decoders, [Image() for _ in range(kept)]
        preprocessor.parameters, preprocessor.stream = None, SimpleNamespace(ptr=0)
        return preprocessor

    return make


def held(images):
    return [image and image.holds for image in images]


def test_the_next_decoder_gets_what_the_one_before_cannot_do(made):
    hardware, hybrid = Decoder([b"a", b"c"]), Decoder([b"b"])
    preprocessor = made(hardware, hybrid, kept=4)
    images = preprocessor._decode([b"a", b"b", b"c", b"d"])
    assert held(images) == [b"a", b"b", b"c", None]
    assert (hardware.asked, hybrid.asked) == ([b"abcd"], [b"bd"])


def test_memory_is_used_again_but_for_one_picture_alone(made):
    hardware, hybrid = Decoder([b"a", b"c"]), Decoder([b"b"])
    preprocessor = made(hardware, hybrid, kept=3)
    images = preprocessor._decode([b"a", b"b", b"c"])
    assert [images[0], images[2]] == [preprocessor.kept[0], preprocessor.kept[2]]
    assert len({id(image) for image in images}) == 3
    # More pictures than memory: all in new.
    assert not set(preprocessor._decode([b"a"] * 4)) & set(preprocessor.kept)


def test_one_that_is_no_picture_spoils_no_other(made):
    decoder = Decoder([b"a", b"b"])
    preprocessor = made(decoder, kept=3)
    images = preprocessor._decode([b"a", b"!", b"b"])
    assert held(images) == [b"a", None, b"b"]
    assert decoder.asked == [b"ab"]
    assert held(preprocessor._decode([b"!"])) == [None]


def test_a_batch_that_a_decoder_fails_at_goes_to_the_next(made):
    preprocessor = made(Decoder([]), Decoder([b"a", b"b"]), kept=2)
    images = preprocessor._decode([b"a", b"b"])
    assert held(images) == [b"a", b"b"]
    assert not set(images) & set(preprocessor.kept)


@pytest.mark.parametrize("missing", [["hardware"], ["hybrid"], ["hardware", "hybrid"]])
def test_decoders_are_those_that_the_gpu_has(module, monkeypatch, missing):
    def make(*, backends, **_):
        if backends[0] in missing:
            raise RuntimeError(f"no {backends[0]} here")
        return backends[0]

    monkeypatch.setattr(module.nvimgcodec, "Decoder", make, raising=False)
    there = [kind for kind in ("hardware", "hybrid") if kind not in missing]
    if there:
        assert module._decoders(0) == there
    else:
        with pytest.raises(RuntimeError, match="no hybrid here"):
            module._decoders(0)


class Frames(np.ndarray):
    """Frames of one value each, written as CuPy does."""

    def set(self, value, stream):
        self[...] = value


class Cpu:
    """Answers from a table; damaged pictures by an error."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def start(self, data):
        self.asked.append(data)
        return SimpleNamespace(result=lambda: self.answers[data])


def test_what_the_gpu_cannot_do_or_finds_damaged_is_answered_by_the_cpu(module, made):
    damaged = ValueError("damaged")
    preprocessor = made(Decoder([b"whole", b"hole", b"odd"]))
    preprocessor.cpu = Cpu(
        {b"not whole": (5, (1, 5)), b"hole": (6, damaged), b"odd": (7, (1, 7)), b"png": (8, (1, 8))}
    )
    preprocessor.device = SimpleNamespace(use=lambda: None)
    preprocessor.stream = SimpleNamespace(ptr=0, synchronize=lambda: None)
    preprocessor.frames = np.zeros((8, 1), np.uint8).view(Frames)
    preprocessor.host, preprocessor.check_scans = None, True
    preprocessor._parse = lambda data: None if data == b"png" else SimpleNamespace(size=(2, 2), scan=None)
    # Warped before the scans' answers: what is refused has a frame already, which must not stay.
    preprocessor._warp = lambda images: [preprocessor.frames[i].set(1, None) for i in images]
    preprocessor.scans = SimpleNamespace(start=lambda batch: None, is_whole=lambda index: index not in (2, 3))
    pictures = [b"png", b"whole", b"hole", b"odd", b"not whole"]
    frames, sizes = preprocessor.prepare(pictures)
    assert sizes == [(1, 8), (2, 2), damaged, (1, 7), (1, 5)]
    assert [int(frames[index, 0]) for index in (0, 1, 3, 4)] == [8, 1, 7, 5]
    assert preprocessor.cpu.asked == [b"png", b"hole", b"odd", b"not whole"]
    asked = []
    preprocessor.check_scans = False
    preprocessor.scans = SimpleNamespace(start=asked.append, is_whole=asked.append)
    assert preprocessor.prepare([b"hole"]).sizes == [(2, 2)]
    assert not asked
