"""Encoded pictures to frames, a batch at a time: on the CPU, or on a GPU with the CPU's help."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from centernet_image.decode import Limits

GPU_PACKAGES = ("cupy", "cuda.pathfinder", "nvidia.nvimgcodec")


class Prepared(NamedTuple):
    """A batch of N pictures.

    Attributes:
        frames: uint8 [N, *frame_size, 3], BGR, in host memory (NumPy) or the GPU's (CuPy). Complete, and kept
            until the next batch is prepared.
        sizes: Of each picture: its height and width, or the error that is its answer; its frame is then
            undefined.
    """

    frames: Any
    sizes: list[tuple[int, int] | Exception]


class Preprocessor(Protocol):
    """What prepares batches; `close` ends its threads.

    Attributes:
        frame_size: Height and width of the frames.
        fit: How pictures are laid into them.
    """

    frame_size: tuple[int, int]
    fit: str

    def prepare(self, pictures: Sequence[bytes]) -> Prepared:
        """Decodes pictures and lays each into a frame; never raises for a picture's sake."""

    def only(self, frames: Any, indices: np.ndarray) -> Any:
        """Some of the frames that were prepared last, where those are: [len(indices), *frame_size, 3]."""

    def close(self) -> None:
        """Ends its threads and gives its memory back."""


def create(
    frame_size: tuple[int, int],
    limits: Limits,
    *,
    fit: str = "whole",
    device: str,
    gpu_id: int | None,
    max_batch: int,
    host_frames: bool = False,
    check_scans: bool = True,
    warn: Callable[[str], object],
) -> Preprocessor:
    """Makes the preprocessor for this machine.

    Args:
        frame_size: Height and width of the frames.
        limits: For each picture.
        fit: How pictures are laid into the frame, one of `contract.FITS`; a letterbox is made on the CPU.
        device: `cpu`; `gpu`, with which a GPU that cannot be used is an error; or `auto`.
        gpu_id: The GPU that this instance is for, None for none.
        max_batch: Pictures in a batch, at most.
        host_frames: Whether a GPU's frames are copied to the host's memory.
        check_scans: Whether the scan of each JPEG that the GPU decodes is read first, to refuse damaged ones.
        warn: Is told, in one line, why a GPU stays unused.

    Raises:
        ValueError: `device` is none of the three.
        RuntimeError: `gpu` was asked for and cannot be had.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise ValueError(f"device: found {device!r}, expected auto, cpu or gpu")
    from centernet_preprocessing.cpu.preprocessor import CpuPreprocessor

    cpu = CpuPreprocessor(frame_size, limits, fit)
    if device == "cpu" or (device == "auto" and gpu_id is None):
        return cpu
    try:
        if gpu_id is None:
            raise RuntimeError("Triton gave this instance no GPU")
        if fit == "letterbox":
            raise RuntimeError("a letterbox is resized by area, which only the CPU does")
        if missing := [name for name in GPU_PACKAGES if not _found(name)]:
            raise RuntimeError(f"no Python package {' and no '.join(missing)}")
        from centernet_preprocessing.gpu.preprocessor import GpuPreprocessor

        return GpuPreprocessor(
            frame_size,
            limits,
            gpu_id=gpu_id,
            max_batch=max_batch,
            cpu=cpu,
            host_frames=host_frames,
            check_scans=check_scans,
        )
    except Exception as error:
        reason = f"pictures cannot be decoded on the GPU: {error}"
        if device == "gpu":
            cpu.close()
            raise RuntimeError(reason) from error
        warn(f"{reason}; they are decoded on the CPU")
        return cpu


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
