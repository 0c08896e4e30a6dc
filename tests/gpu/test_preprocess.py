"""The GPU's preprocessing against the CPU's: the same answer to every picture, whatever it is."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from centernet_image.decode import Limits, decode
from centernet_image.geometry import warp
from centernet_preprocessing import create
from centernet_preprocessing.gpu.jpeg import is_whole, parse
from centernet_preprocessing.gpu.packing import PART_BYTES
from pictures import bomb, encode, picture
from PIL import ExifTags, Image
from scans import damages, jpeg, textured

pytestmark = pytest.mark.gpu
FRAME_SIZE = (384, 512)
LIMITS = Limits(max_pixels=8_000_000)
MAX_BATCH = 32


def oriented(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return jpeg(picture(120, 180), exif=exif, quality=90)


def cmyk():
    stream = io.BytesIO()
    Image.fromarray(picture(60, 90)[..., ::-1]).convert("CMYK").save(stream, "JPEG")
    return stream.getvalue()


def part_of(data, percent):
    return data[: len(data) * percent // 100]


def without_data_inside(data):
    """A third of the scan is missing; headers and end are there."""
    return data[: len(data) // 2] + data[len(data) * 5 // 6 :]


PLAIN = {
    **{f"4:{name}": jpeg(picture(333, 517), subsampling=i) for i, name in enumerate(("4:4", "2:2", "2:0"))},
    "grey": jpeg(picture(200, 240)[..., 0]),
    "large": jpeg(picture(1080, 1920)),
    "tiny": jpeg(picture(8, 8)),
    "thin": jpeg(picture(9, 2000)),
    "restarts": cv2.imencode(".jpg", picture(480, 640), [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1].tobytes(),
    "upright": oriented(1),
    "low quality": jpeg(picture(480, 640), quality=10),
}
UNUSUAL = {
    "progressive": jpeg(picture(333, 517), progressive=True),
    "cmyk": cmyk(),
    "rgb": jpeg(picture(60, 90), keep_rgb=True),
    **{f"orientation {i}": oriented(i) for i in range(2, 9)},
    **{name: encode(picture(60, 90), name) for name in ("PNG", "WEBP", "BMP", "TIFF", "PPM")},
    "16 bits": cv2.imencode(".png", picture(60, 90).astype(np.uint16) * 257)[1].tobytes(),
    "trailing bytes": jpeg(picture(60, 90)) + b"more",
}
REFUSED = {
    "empty": b"",
    "text": b"no picture..",
    "bomb": bomb(20000, 20000),
    "too many pixels": jpeg(np.zeros((3000, 3000, 3), np.uint8)),
    "too small": jpeg(picture(7, 90)),
    **{f"{p} %": part_of(jpeg(picture(480, 640)), p) for p in (1, 10, 50, 90)},
    "no scan": jpeg(picture(480, 640))[:600] + b"\xff\xd9",
    "hole": without_data_inside(jpeg(picture(480, 640))),
    "hole, smooth": without_data_inside(jpeg(picture(960, 1280), quality=85)),
}
ALL = {**PLAIN, **UNUSUAL, **REFUSED}


def made(device):
    def warn(text):
        raise AssertionError(text)

    gpu_id = 0 if device == "gpu" else None
    return create(FRAME_SIZE, LIMITS, device=device, gpu_id=gpu_id, max_batch=MAX_BATCH, warn=warn)


@pytest.fixture(scope="module")
def gpu():
    preprocessor = made("gpu")
    yield preprocessor
    preprocessor.close()


@pytest.fixture(scope="module")
def cpu():
    preprocessor = made("cpu")
    yield preprocessor
    preprocessor.close()


def prepared(preprocessor, pictures):
    frames, sizes = preprocessor.prepare(pictures)
    return (frames if isinstance(frames, np.ndarray) else frames.get()), sizes


def assert_alike(found, expected, name, *, exact):
    difference = np.abs(found.astype(int) - expected)
    # Decoders may round their inverse DCT, and enlarge colours, in ways of their own.
    assert difference.mean() <= (0 if exact else 1), name
    assert difference.max() <= (0 if exact else 24), name


@pytest.mark.parametrize("alone", [True, False])
def test_every_picture_gets_the_cpus_answer(cpu, gpu, alone):
    names = list(ALL)
    step = 1 if alone else MAX_BATCH
    for start in range(0, len(names), step):
        part = names[start : start + step]
        pictures = [ALL[name] for name in part]
        frames, sizes = prepared(gpu, pictures)
        expected_frames, expected_sizes = prepared(cpu, pictures)
        for name, frame, size, expected, wanted in zip(
            part, frames, sizes, expected_frames, expected_sizes, strict=True
        ):
            assert str(size) == str(wanted), name
            if not isinstance(wanted, Exception):
                assert_alike(frame, expected, name, exact=name in UNUSUAL)
        assert all(isinstance(s, Exception) == (n in REFUSED) for n, s in zip(part, sizes, strict=True))


def test_some_of_the_frames(gpu):
    pictures = [ALL[name] for name in ("large", "text", "4:2:0", "hole")]
    frames, sizes = gpu.prepare(pictures)
    good = np.flatnonzero([not isinstance(size, Exception) for size in sizes])
    assert good.tolist() == [0, 2]
    assert np.array_equal(gpu.only(frames, good).get(), frames.get()[good])


def test_plain_pictures_are_decoded_on_the_gpu(gpu, monkeypatch):
    """Else every test here would pass without one."""

    def refuse(data):
        raise AssertionError("a plain picture went the CPU's way")

    monkeypatch.setattr(gpu.cpu, "start", refuse)
    _, sizes = prepared(gpu, list(PLAIN.values()))
    assert sizes == [decode(data).shape[:2] for data in PLAIN.values()]


@pytest.mark.parametrize("frame_size", [(512, 512), (384, 640)])
def test_warp_of_the_same_decoded_picture(frame_size):
    preprocessor = create(frame_size, LIMITS, device="gpu", gpu_id=0, max_batch=MAX_BATCH, warn=pytest.fail)
    pictures = [PLAIN["large"], PLAIN["thin"], PLAIN["4:2:0"], jpeg(picture(960, 1280))]
    frames, _ = prepared(preprocessor, pictures)
    images = [image.cpu() for image in preprocessor._decode(pictures)]
    for frame, image in zip(frames, images, strict=True):
        expected = warp(np.ascontiguousarray(np.asarray(image)[..., ::-1]), frame_size)
        difference = np.abs(frame.astype(int) - expected)
        assert (difference <= 1).mean() >= 0.999
    preprocessor.close()


def test_random_damage(cpu, gpu):
    """Both refuse a damaged picture, or both show it."""
    random = np.random.default_rng(0)
    data = jpeg(picture(240, 320), quality=85)
    refused = shown = 0
    for _ in range(8):
        pictures = []
        for _ in range(MAX_BATCH):
            damaged = bytearray(data)
            for position in random.integers(2, len(data) - 2, random.integers(1, 4)):
                damaged[position] = random.integers(256)
            pictures.append(bytes(damaged))
        _, sizes = prepared(gpu, pictures)
        _, expected = prepared(cpu, pictures)
        assert list(map(str, sizes)) == list(map(str, expected))
        gpu.check_scans = False
        _, unchecked = prepared(gpu, pictures)
        gpu.check_scans = True
        refused += sum(isinstance(size, Exception) for size in expected)
        shown += sum(
            not isinstance(s, Exception) and isinstance(e, Exception)
            for s, e in zip(unchecked, expected, strict=True)
        )
    print(f"of {refused} refused pictures, the GPU alone would show {shown}")
    assert refused


@pytest.fixture
def vouches(gpu, monkeypatch):
    """The kernel's word alone, on a batch of pictures."""
    monkeypatch.setattr("centernet_preprocessing.gpu.scan.is_whole", lambda data: False)
    gpu.device.use()

    def answers(pictures):
        plain = {i: (data, found.scan) for i, data in enumerate(pictures) if (found := parse(data))}
        gpu.scans.start(plain)
        return [i in plain and gpu.scans.is_whole(i) for i in range(len(pictures))]

    return answers


def test_whole_scans_are_vouched_for(vouches):
    pictures = [data for name, data in PLAIN.items() if name != "restarts"]
    pictures += [jpeg(textured(30 * n, 47 * n), quality=3 * n, subsampling=n % 3) for n in range(1, 33)]
    pictures += [jpeg(np.full((960, 1280, 3), level, np.uint8)) for level in (0, 128, 255)]
    pictures += [jpeg(np.tile(textured(300, 400), (10, 10, 1)), quality=90)]  # 12 megapixels
    assert vouches(pictures) == [True] * len(pictures)
    assert all(vouches([data])[0] for data in pictures)


@pytest.mark.parametrize("subsampling", range(3))
def test_no_damaged_scan_is_vouched_for(vouches, subsampling):
    refused = shown = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        size = random.integers(1, 300, 2)
        data = jpeg(
            textured(*size, seed=seed), quality=int(random.integers(20, 100)), subsampling=subsampling
        )
        pictures = list(damages(data, random))
        whole = [is_whole(picture) for picture in pictures]
        vouched = vouches(pictures)
        assert [i for i, (v, w) in enumerate(zip(vouched, whole, strict=True)) if v and not w] == []
        refused += len(whole) - sum(whole)
        shown += sum(vouched)
    print(f"{refused} damaged pictures, {shown} that libjpeg-turbo finds nothing wrong with")
    assert refused
    assert shown


def test_time_of_the_check(gpu, vouches):
    """Printed, for pictures of 1280 x 960."""
    import cupy

    data = jpeg(np.tile(textured(240, 320), (4, 4, 1)), quality=85)
    for count in (1, MAX_BATCH):
        batch = [data] * count
        assert all(vouches(batch))
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        kernel, whole = [], []
        for _ in range(20):
            started = time.perf_counter()
            vouches(batch)
            whole.append(1e3 * (time.perf_counter() - started))
            begin.record(gpu.scans.stream)
            gpu.scans.launch(count, len(data) // PART_BYTES)
            end.record(gpu.scans.stream)
            end.synchronize()
            kernel.append(cupy.cuda.get_elapsed_time(begin, end))
        print(
            f"{count} of {len(data) / 1e3:.0f} kB: {np.median(kernel):.3f} ms in the kernels, "
            f"{np.median(whole):.3f} ms with headers and copies"
        )
    begun = time.perf_counter()
    assert is_whole(data)
    print(f"libjpeg-turbo: {1e3 * (time.perf_counter() - begun):.3f} ms for one")


def test_memory_stays_bounded(gpu):
    """Many large pictures at once take no more than the parts they are decoded in."""
    import cupy

    large = jpeg(np.zeros((2000, 4000, 3), np.uint8))
    prepared(gpu, [PLAIN["large"]] * MAX_BATCH)
    before, _ = cupy.cuda.runtime.memGetInfo()
    for _ in range(3):
        _, sizes = prepared(gpu, [large] * MAX_BATCH)
        assert set(sizes) == {(2000, 4000)}
        prepared(gpu, [PLAIN["4:2:0"]] * MAX_BATCH)
    after, _ = cupy.cuda.runtime.memGetInfo()
    print(f"taken and kept: {(before - after) / 2**20:.0f} MiB")
    assert before - after < 2**30


def test_without_a_gpu_the_cpu_does_it():
    """In a process that sees none, with one asked for: a warning, and the CPU's answers."""
    code = (
        "from centernet_preprocessing import create; from centernet_image.decode import Limits\n"
        "made = create((64, 64), Limits(), device='auto', gpu_id=0, max_batch=2, warn=print)\n"
        "print(type(made).__name__)"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, timeout=120
    )
    assert "pictures cannot be decoded on the GPU" in done.stdout
    assert done.stdout.splitlines()[-1] == "CpuPreprocessor"
