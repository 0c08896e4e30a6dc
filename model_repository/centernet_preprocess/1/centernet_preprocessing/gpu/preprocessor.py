"""Pictures to frames on a GPU: decoded by nvImageCodec, warped by a kernel, never on the host."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cupy
import cupyx
import numpy as np
from centernet_image.decode import Limits
from cuda.pathfinder import load_nvidia_dynamic_lib
from nvidia import nvimgcodec

from centernet_preprocessing import Prepared
from centernet_preprocessing.cpu.preprocessor import CpuPreprocessor
from centernet_preprocessing.gpu.jpeg import Plain, parse
from centernet_preprocessing.gpu.picture import PICTURE, describe
from centernet_preprocessing.gpu.scan import ScanCheck

MAX_PIXELS_AT_ONCE = 2**26
"""Of the pictures that are decoded together: 200 MB of the GPU's memory."""

KEPT_BYTES = 2**24
"""Of a decoded picture whose memory is kept for the next one in its place: half a gigabyte in 32 places."""

BACKENDS = (nvimgcodec.BackendKind.HW_GPU_ONLY, nvimgcodec.BackendKind.HYBRID_CPU_GPU)
"""In a decoder of its own each, the next for what the one before cannot do. One decoder with both gives the
hardware only so many pictures of a batch as suit it, 7 of 32 on an H200. The rest takes processor and
multiprocessors from other work."""

BLOCK = (32, 8)


class GpuPreprocessor:
    """Decodes plain JPEGs on the GPU; all other pictures go the CPU's way, at the same time."""

    def __init__(
        self,
        frame_size: tuple[int, int],
        limits: Limits,
        *,
        gpu_id: int,
        max_batch: int,
        cpu: CpuPreprocessor,
        host_frames: bool = False,
        check_scans: bool = True,
    ) -> None:
        self.frame_size, self.limits, self.cpu, self.fit = frame_size, limits, cpu, cpu.fit
        self.check_scans = check_scans
        # The kernel is compiled once in each process's life; the container's file system is read-only.
        os.environ.setdefault("CUPY_CACHE_IN_MEMORY", "1")
        # CuPy compiles by this library, and itself finds only the system's.
        load_nvidia_dynamic_lib("nvrtc")
        self.device = cupy.cuda.Device(gpu_id)
        self.device.use()
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.frames = cupy.empty((max_batch, *frame_size, 3), cupy.uint8)
        self.host = cupyx.empty_pinned(self.frames.shape, np.uint8) if host_frames else None
        self.pictures = cupy.empty(max_batch * PICTURE.itemsize, cupy.uint8)
        self.warp = cupy.RawKernel(Path(__file__).with_name("warp.cu").read_text(encoding="utf-8"), "warp")
        # nvImageCodec has decoders for the CPU, too; here the project's own has the last word.
        self.decoders = _decoders(gpu_id)
        self.parameters = nvimgcodec.DecodeParams(
            apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB
        )
        self.scans = ScanCheck(cpu.pool)
        self.kept: list[Any] = []
        self._warm_up(max_batch)

    def prepare(self, pictures: Sequence[bytes]) -> Prepared:
        """See `centernet_preprocessing.Preprocessor`; the frames are in the GPU's memory."""
        self.device.use()
        parsed = [self._parse(data) for data in pictures]
        sizes: list[Any] = [found.size if found else None for found in parsed]
        plain = {index: found for index, found in enumerate(parsed) if found}
        others = {index: self.cpu.start(pictures[index]) for index, size in enumerate(sizes) if not size}
        check = self.check_scans
        if check:  # At the same time as they are decoded.
            self.scans.start({index: (pictures[index], found.scan) for index, found in plain.items()})
        for part in _parts(plain, [sizes[index][0] * sizes[index][1] for index in plain]):
            images = self._decode([pictures[index] for index in part])
            decoded = {index: image for index, image in zip(part, images, strict=True) if image is not None}
            self._warp(decoded)
            # Asked while the GPU works. What is refused is judged by the CPU, whose answer counts.
            refused = [i for i in part if i not in decoded or (check and not self.scans.is_whole(i))]
            others |= {index: self.cpu.start(pictures[index]) for index in refused}
            self.stream.synchronize()
            kept = [image for image in images if image is not None and image.capacity <= KEPT_BYTES]
            self.kept = kept + self.kept[len(images) :]
        for index, future in others.items():
            frame, sizes[index] = future.result()
            if not isinstance(sizes[index], Exception):
                self.frames[index].set(frame, stream=self.stream)
        frames = self.frames[: len(pictures)]
        if self.host is not None:
            frames = frames.get(stream=self.stream, out=self.host[: len(pictures)])
        self.stream.synchronize()
        return Prepared(frames, sizes)

    def only(self, frames: Any, indices: np.ndarray) -> Any:
        """See `centernet_preprocessing.Preprocessor`; complete, as those are."""
        if self.host is not None:
            return frames[indices]
        with self.stream:
            some = frames[indices]
        self.stream.synchronize()
        return some

    def close(self) -> None:
        """Ends the threads and gives the memory back."""
        self.cpu.close()
        self.kept.clear()
        self.scans.close()
        del self.decoders, self.frames, self.pictures

    def _parse(self, data: bytes) -> Plain | None:
        found = parse(data) if len(data) <= self.limits.max_bytes else None
        size = found.size if found else (0, 0)
        within = size[0] * size[1] <= self.limits.max_pixels and min(size) >= self.limits.min_side
        return found if within else None

    def _decode(self, pictures: list[bytes]) -> list[Any]:
        """Decoded pictures, uint8 [height, width, 3] in RGB; None for what cannot be that."""
        images: list[Any] = [None] * len(pictures)
        # Memory is taken anew only where there is none: to give it back, the GPU must stand still.
        kept = self.kept
        for decoder in self.decoders:
            rest = [index for index, image in enumerate(images) if image is None]
            found = self._decoded(decoder, [pictures[index] for index in rest], kept)
            for index, image in zip(rest, found, strict=True):
                images[index] = image
            kept = []  # Of this batch's pictures now.
        return images

    def _decoded(self, decoder: Any, pictures: list[bytes], kept: list[Any]) -> list[Any]:
        streams = {index: stream for index, data in enumerate(pictures) if (stream := _code_stream(data))}
        images: list[Any] = [None] * len(pictures)
        if not streams:
            return images
        reused = {"images": kept[: len(streams)]} if len(kept) >= len(streams) else {}
        try:
            found = decoder.decode(
                list(streams.values()), params=self.parameters, cuda_stream=self.stream.ptr, **reused
            )
        except Exception:  # The next decoder, or the CPU, says what they are.
            return images
        for index, image in zip(streams, found, strict=True):
            if image is not None and len(image.shape) == 3 and image.shape[2] == 3:
                images[index] = image
        return images

    def _warp(self, images: dict[int, Any]) -> None:
        if not images:
            return
        pictures = np.array([self._describe(image, index) for index, image in images.items()], PICTURE)
        self.pictures[: pictures.nbytes].set(pictures.view(np.uint8), stream=self.stream)
        height, width = self.frame_size
        grid = (-(-width // BLOCK[0]), -(-height // BLOCK[1]), len(images))
        arguments = (self.pictures, self.frames, np.int32(height), np.int32(width))
        with self.stream:
            self.warp(grid, BLOCK, arguments)

    def _describe(self, image: Any, index: int) -> tuple[float, ...]:
        height, width, _ = image.shape
        interface = image.__cuda_array_interface__
        # No strides: no gap between its rows.
        pitch = interface["strides"][0] if interface.get("strides") else 3 * width
        pixels = interface["data"][0]
        return describe((height, width), self.frame_size, self.fit, pixels=pixels, pitch=pitch, frame=index)

    def _warm_up(self, max_batch: int) -> None:
        """Has the libraries take what they need, and says so if they cannot work here."""
        import cv2

        data = cv2.imencode(".jpg", np.full((*self.frame_size, 3), 128, np.uint8))[1].tobytes()
        for decoder in self.decoders:
            if self._decoded(decoder, [data], []) == [None]:
                raise RuntimeError("nvImageCodec decodes no JPEG here: is nvidia-nvjpeg installed?")
        for count in (1, max_batch):
            _, sizes = self.prepare([data] * count)
            if errors := [size for size in sizes if isinstance(size, Exception)]:
                raise errors[0]


def _decoders(gpu_id: int) -> list[Any]:
    """One for each kind that this GPU has. Colours are enlarged as by libjpeg-turbo."""
    found, errors = [], []
    for kind in BACKENDS:
        backends = [nvimgcodec.Backend(kind)]
        try:
            found.append(
                nvimgcodec.Decoder(device_id=gpu_id, backends=backends, options=":fancy_upsampling=1")
            )
        except RuntimeError as error:
            errors.append(error)
    if not found:
        raise errors[-1]
    return found


def _code_stream(data: bytes) -> Any:
    """None of what nvImageCodec does not take for a picture."""
    try:
        return nvimgcodec.CodeStream(data)
    except Exception:
        return None


def _parts(indices: Iterable[int], pixels: Iterable[int]) -> Iterator[list[int]]:
    """Cuts a batch where its pictures together would take too much memory."""
    part: list[int] = []
    total = 0
    for index, count in zip(indices, pixels, strict=True):
        if part and total + count > MAX_PIXELS_AT_ONCE:
            yield part
            part, total = [], 0
        part.append(index)
        total += count
    if part:
        yield part
