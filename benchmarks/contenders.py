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
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from centernet_image import contract

from benchmarks import tensorrt_engine, weights
from benchmarks.workers import SkippedError, first_line, say
from export.errors import ExportError

Outputs = list[np.ndarray]
"""Boxes, scores and classes."""

OUTPUTS = (contract.BOXES.name, contract.SCORES.name, contract.CLASSES.name)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one process has to do.

    Attributes:
        contender: One of `CONTENDERS`.
        checkpoint: Of the network.
        onnx: The detector form of the same.
        plan: Where a plan lies, or is to be kept.
        plugin: The DCNv2 plugin's library, if it is not where `export.to_plan` looks.
        frames: A .npy file with the frames whose outputs are checked, uint8 [N, H, W, 3], as many as the
            largest batch.
        outputs: Where the outputs for the first of them go (.npz).
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


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A network with its memory; holds all that it needs.

    Attributes:
        run: Runs it; on the GPU it is enqueued on CUDA's current stream.
        load: Replaces the frames that it reads by others, uint8 [N, H, W, 3], in the same memory.
        outputs: What the last run left.
    """

    run: Callable[[], None]
    load: Callable[[np.ndarray], None]
    outputs: Callable[[], Outputs]


class Contender(ABC):
    """A network that is ready to run.

    Attributes:
        own_stream: Whether it is timed on a stream of its own; else on the default one.
    """

    own_stream = True

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    @abstractmethod
    def bind(self, frames: np.ndarray) -> Bound:
        """For frames uint8 [N, H, W, 3]; has run it on them, too."""

    def times_ms(self, run: Callable[[], None]) -> list[float]:
        """Duration of each run during the specified seconds."""
        if self.spec.device == "cuda":
            return _cuda_times_ms(run, seconds=self.spec.seconds, own_stream=self.own_stream)
        return _host_times_ms(run, seconds=self.spec.seconds)

    def layers(self, frames: np.ndarray) -> dict[str, Any] | None:
        """Milliseconds by kind of layer (`dcn`, `other`) and by name, where the contender can tell."""
        return None


class PyTorch(Contender):
    """The network in PyTorch: on a GPU FP16 and channels-last, else FP32; decode and normalisation FP32."""

    # torchvision's DCN launches there whatever the current stream is: elsewhere a part is not timed, and a
    # CUDA graph (`reduce-overhead`) does not hold it.
    own_stream = False

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

        # One compilation for each batch size.
        self.detect = torch.compile(detect, dynamic=False) if compiled else detect

    def bind(self, frames: np.ndarray) -> Bound:
        """See `Contender`."""
        frame = torch.from_numpy(frames.copy()).to(self.spec.device)
        last: list[torch.Tensor] = []

        @torch.inference_mode()
        def run() -> None:
            last[:] = self.detect(frame)

        run()
        return Bound(
            run=run,
            load=lambda others: _copy(others, frame),
            outputs=lambda: [tensor.cpu().numpy() for tensor in last],
        )


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

    def bind(self, frames: np.ndarray) -> Bound:
        """See `Contender`; its runs are synchronous."""
        from onnxruntime import OrtValue

        binding = self.session.io_binding()
        # Held by `load`: a binding does not own its input.
        frame = OrtValue.ortvalue_from_numpy(frames.copy(), self.spec.device)
        binding.bind_ortvalue_input(contract.FRAME.name, frame)
        for name in OUTPUTS:
            binding.bind_output(name, self.spec.device)

        def run() -> None:
            self.session.run_with_iobinding(binding)
            assert frame.has_value()

        run()
        return Bound(run=run, load=frame.update_inplace, outputs=binding.copy_outputs_to_cpu)

    def times_ms(self, run: Callable[[], None]) -> list[float]:
        """On the host's clock: ONNX Runtime waits for the GPU itself, on a stream of its own."""
        return _host_times_ms(run, seconds=self.spec.seconds)


class TensorRT(Contender):
    """A plan, its DCN layers by our plugin or by NVIDIA's ModulatedDeformConv2d.

    NVIDIA's plugin gives wrong output on any stream but the default one, and hangs in a CUDA graph.
    """

    def __init__(self, spec: Spec, *, plugin: str, graph: bool, kind: str = "fp16") -> None:
        super().__init__(spec)
        self.engine = tensorrt_engine.Engine.load(
            Path(spec.plan),
            onnx_path=Path(spec.onnx),
            batch=spec.batch,
            plugin=plugin,
            library=Path(spec.plugin) if spec.plugin else None,
            kind=kind,
        )
        self.graph = graph
        self.own_stream = plugin != "nvidia"

    def bind(self, frames: np.ndarray) -> Bound:
        """See `Contender`."""
        execution = self.engine.bind(frames)
        if self.graph:
            execution.capture()
        else:
            execution()
        frame = execution.tensors[contract.FRAME.name]

        def outputs() -> Outputs:
            torch.cuda.synchronize()
            return [execution.tensors[name].cpu().numpy() for name in OUTPUTS]

        return Bound(
            run=execution,
            load=lambda others: _copy(others, frame),
            outputs=outputs,
        )

    def layers(self, frames: np.ndarray) -> dict[str, Any] | None:
        """By TensorRT's layer profiler; layers that convert a DCN's tensors count as `dcn`."""
        return self.engine.profile(frames, seconds=self.spec.seconds)


CONTENDERS: dict[str, Callable[[Spec], Contender]] = {
    "plugin": lambda spec: TensorRT(spec, plugin="dcnv2", graph=True),
    **{
        f"plugin-{kind}": partial(TensorRT, plugin="dcnv2", graph=True, kind=kind)
        for kind in ("int8", "tf32", "fp32")
    },
    # What INT8 costs and wins where, one group of `export.plan.quantize` more each time.
    "plugin-int8-plain": partial(TensorRT, plugin="dcnv2", graph=True, kind="int8:backbone+heads"),
    "plugin-int8-offsets": partial(
        TensorRT, plugin="dcnv2", graph=True, kind="int8:stem+backbone+heads+offsets"
    ),
    "plugin-int8-all": partial(
        TensorRT,
        plugin="dcnv2",
        graph=True,
        kind="int8:stem+backbone+heads+offsets+deformable+upsampling",
    ),
    "plugin-stream": lambda spec: TensorRT(spec, plugin="dcnv2", graph=False),
    "nvidia": lambda spec: TensorRT(spec, plugin="nvidia", graph=False),
    "compile": lambda spec: PyTorch(spec, compiled=True),
    "eager": lambda spec: PyTorch(spec, compiled=False),
    "onnxruntime": OnnxRuntime,
}
"""By name; what is timed on the GPU without `-stream` runs as a CUDA graph where the contender can."""


def _copy(frames: np.ndarray, target: torch.Tensor) -> None:
    target.copy_(torch.from_numpy(frames))


def _cuda_times_ms(run: Callable[[], None], *, seconds: float, own_stream: bool) -> list[float]:
    times: list[float] = []
    torch.cuda.synchronize()
    stream = torch.cuda.Stream() if own_stream else torch.cuda.default_stream()
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


def work(contender: Contender, spec: Spec) -> None:
    """Check and time the contender at each batch size; says a line for each step.

    What is checked is what is timed: bound with other frames, the outputs are of those that it was given
    after that, by the same call.
    """
    frames = np.load(spec.frames)
    others = weights.pictures(len(frames), frames.shape[1:3], seed=2)
    for batch in spec.batch:
        bound = contender.bind(others[:batch])
        bound.load(frames[:batch])
        bound.run()
        np.savez(spec.outputs, **dict(zip(OUTPUTS, bound.outputs(), strict=True)))
        say("outputs", batch=batch)
        # The parent compares them, and answers before anything is timed.
        if sys.stdin.readline().strip() != "go":
            return
        times = contender.times_ms(bound.run)
        say("times", batch=batch, median_ms=median(times), runs=len(times))
    for batch in spec.batch:
        layers = contender.layers(frames[:batch])
        if layers:
            say("layers", batch=batch, **layers)


def main() -> int:
    """Run the specified contender; returns the exit code."""
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        work(CONTENDERS[spec.contender](spec), spec)
    except (SkippedError, ImportError, ExportError) as error:
        say("skipped", reason=(str(error) or type(error).__name__).splitlines()[0])
    except Exception as error:
        say("failed", reason=first_line(error))
        return 1
    else:
        say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
