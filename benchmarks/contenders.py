"""The contenders of `benchmarks.engine`, each of which runs one network; one process each.

    python -m benchmarks.contenders SPEC.json

prints one JSON line for each thing done, so that what was measured before a crash or a hang is kept.
"""

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import tensorrt_engine, weights
from export import contract

Outputs = list[np.ndarray]
"""Boxes, scores and classes."""

OUTPUTS = (contract.BOXES.name, contract.SCORES.name, contract.CLASSES.name)


class SkippedError(Exception):
    """The contender cannot run here; its text says why."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one process has to do.

    Attributes:
        contender: One of `CONTENDERS`.
        checkpoint: Of the network.
        onnx: The detector form of the same.
        plan: Where a plan lies, or is to be kept.
        plugin: The DCNv2 plugin's library, if it is not where `export.to_plan` looks.
        frames: A .npy file with the frames whose outputs are checked, uint8 [N, H, W, 3].
        outputs: Where the outputs for them go (.npz).
        batch: Batch sizes to time.
        seconds: How long to time each.
        device: `cuda` or `cpu`.
    """

    contender: str
    checkpoint: str
    onnx: str
    plan: str
    plugin: str | None
    frames: str
    outputs: str
    batch: list[int]
    seconds: float
    device: str


class Contender(ABC):
    """A network that is ready to run."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    @abstractmethod
    def outputs(self, frames: np.ndarray) -> Outputs:
        """Run it once on frames uint8 [N, H, W, 3]."""

    @abstractmethod
    def runner(self, frames: np.ndarray) -> Callable[[], None]:
        """A call that runs it on these frames, which lie on the device then; on CUDA's current stream."""

    def times_ms(self, frames: np.ndarray) -> list[float]:
        """Duration of each run during the specified seconds."""
        timer = _cuda_times_ms if self.spec.device == "cuda" else _host_times_ms
        return timer(self.runner(frames), seconds=self.spec.seconds)

    def layers(self, frames: np.ndarray) -> dict[str, float] | None:
        """Milliseconds by kind of layer (`dcn`, `other`), where the contender can tell."""
        return None


class PyTorch(Contender):
    """The network in PyTorch: on a GPU FP16 and channels-last, else FP32; decode and normalisation FP32."""

    def __init__(self, spec: Spec, *, compiled: bool) -> None:
        super().__init__(spec)
        if spec.device == "cuda" and not torch.cuda.is_available():
            raise SkippedError("found no NVIDIA GPU")
        from export.checkpoint import load
        from export.detector import Detector

        detector = Detector(load(Path(spec.checkpoint)).network, top_k=contract.TOP_K).eval().to(spec.device)
        network = detector.network
        half = spec.device == "cuda"
        if half:
            network.half().to(memory_format=torch.channels_last)

        def detect(frame: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = detector.normalise(frame)
            heads = network(x.half().contiguous(memory_format=torch.channels_last) if half else x)
            return detector.decode(*(heads[name].float() for name in ("hm", "wh", "reg")))

        # One compilation for each batch size: static shapes are what CUDA graphs want.
        self.detect = torch.compile(detect, mode="reduce-overhead", dynamic=False) if compiled else detect

    @torch.inference_mode()
    def outputs(self, frames: np.ndarray) -> Outputs:
        """See `Contender`."""
        return [tensor.cpu().numpy() for tensor in self.detect(torch.from_numpy(frames).to(self.spec.device))]

    def runner(self, frames: np.ndarray) -> Callable[[], None]:
        """See `Contender`."""
        frame = torch.from_numpy(frames).to(self.spec.device)
        # Else a CUDA graph copies it first, which no other contender does.
        torch._dynamo.mark_static_address(frame)

        @torch.inference_mode()
        def run() -> None:
            self.detect(frame)

        return run


class OnnxRuntime(Contender):
    """The ONNX file as it is (FP32), on CUDA or on the CPU."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        import onnxruntime

        provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[spec.device]
        if provider not in onnxruntime.get_available_providers():
            raise SkippedError(f"onnxruntime {onnxruntime.__version__} has no {provider}")
        self.session = onnxruntime.InferenceSession(spec.onnx, providers=[provider])
        if provider not in self.session.get_providers():
            raise SkippedError(f"onnxruntime {onnxruntime.__version__} cannot start {provider}")

    def outputs(self, frames: np.ndarray) -> Outputs:
        """See `Contender`."""
        return self.session.run(list(OUTPUTS), {contract.FRAME.name: frames})

    def runner(self, frames: np.ndarray) -> Callable[[], None]:
        """See `Contender`; synchronous."""
        from onnxruntime import OrtValue

        binding = self.session.io_binding()
        # Held by the closure: a binding does not own its input.
        frame = OrtValue.ortvalue_from_numpy(frames, self.spec.device)
        binding.bind_ortvalue_input(contract.FRAME.name, frame)
        for name in OUTPUTS:
            binding.bind_output(name, self.spec.device)

        def run() -> None:
            self.session.run_with_iobinding(binding)
            assert frame.has_value()

        return run

    def times_ms(self, frames: np.ndarray) -> list[float]:
        """On the host's clock: ONNX Runtime waits for the GPU itself, on a stream of its own."""
        return _host_times_ms(self.runner(frames), seconds=self.spec.seconds)


class TensorRT(Contender):
    """An FP16 plan, its DCN layers by our plugin or by NVIDIA's ModulatedDeformConv2d."""

    def __init__(self, spec: Spec, *, plugin: str, graph: bool) -> None:
        super().__init__(spec)
        self.engine = tensorrt_engine.Engine.load(
            Path(spec.plan),
            onnx_path=Path(spec.onnx),
            batch=spec.batch,
            plugin=plugin,
            library=Path(spec.plugin) if spec.plugin else None,
        )
        self.graph = graph

    def outputs(self, frames: np.ndarray) -> Outputs:
        """See `Contender`."""
        run, tensors = self.engine.bind(frames)
        run()
        torch.cuda.synchronize()
        return [tensors[name].cpu().numpy() for name in OUTPUTS]

    def runner(self, frames: np.ndarray) -> Callable[[], None]:
        """See `Contender`."""
        run, _ = self.engine.bind(frames)
        if not self.graph:
            return run
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def layers(self, frames: np.ndarray) -> dict[str, float] | None:
        """By TensorRT's layer profiler; layers that convert a DCN's tensors count as `dcn`."""
        return self.engine.profile(frames, seconds=self.spec.seconds)


CONTENDERS: dict[str, Callable[[Spec], Contender]] = {
    "plugin": lambda spec: TensorRT(spec, plugin="dcnv2", graph=True),
    "plugin-stream": lambda spec: TensorRT(spec, plugin="dcnv2", graph=False),
    # Not in a CUDA graph, where it was seen to hang at batch 8.
    "nvidia": lambda spec: TensorRT(spec, plugin="nvidia", graph=False),
    "compile": lambda spec: PyTorch(spec, compiled=True),
    "eager": lambda spec: PyTorch(spec, compiled=False),
    "onnxruntime": OnnxRuntime,
}
"""By name; what is timed on the GPU without `-stream` runs as a CUDA graph where the contender can."""


def _cuda_times_ms(run: Callable[[], None], *, seconds: float) -> list[float]:
    times: list[float] = []
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(5):
            run()
        stream.synchronize()
        end = time.perf_counter() + seconds
        while len(times) < 10 or time.perf_counter() < end:
            pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(10)]
            for start, stop in pairs:
                start.record(stream)
                run()
                stop.record(stream)
            stream.synchronize()
            times += [start.elapsed_time(stop) for start, stop in pairs]
    return times


def _host_times_ms(run: Callable[[], None], *, seconds: float) -> list[float]:
    from benchmarks.inprocess import times_ms

    run()
    return times_ms(run, seconds=seconds)


def _frames(batch: int, like: np.ndarray) -> np.ndarray:
    height, width = like.shape[1:3]
    return weights.pictures(batch, (height, width), seed=2)


def work(spec: Spec) -> None:
    """Prepare the contender, write its outputs for the check, time it; prints a line for each step."""
    frames = np.load(spec.frames)
    contender = CONTENDERS[spec.contender](spec)
    np.savez(spec.outputs, **dict(zip(OUTPUTS, contender.outputs(frames), strict=True)))
    _say("outputs")
    # The parent compares them, and answers before anything is timed.
    if sys.stdin.readline().strip() != "go":
        return
    for batch in spec.batch:
        times = contender.times_ms(_frames(batch, frames))
        _say("times", batch=batch, median_ms=median(times), runs=len(times))
    for batch in spec.batch:
        layers = contender.layers(_frames(batch, frames))
        if layers:
            _say("layers", batch=batch, **layers)


def _say(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event} | facts), flush=True)


def main() -> int:
    """Run the specified contender; returns the exit code."""
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text()))
    try:
        work(spec)
    except (SkippedError, ImportError, tensorrt_engine.PlanError) as error:
        _say("skipped", reason=(str(error) or type(error).__name__).splitlines()[0])
    except Exception as error:
        _say("failed", reason=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return 1
    else:
        _say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
