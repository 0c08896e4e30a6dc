"""The contenders of `benchmarks.engine`: each runs one network, in a process of its own.

What one has to do is a `Spec`, with paths as text: `contender`, one of `CONTENDERS`; `checkpoint`, `onnx` and
`plan` of the network, of which the plan is made if need be; `plugin`, our library or None; `frames`, a .npy
file of uint8 [N, H, W, 3], N the largest of the sizes in `batch`; `outputs`, where those for the frames go
(.npz); `seconds` for each batch size; `device`, `cuda` or `cpu`.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace as Spec
from typing import Any

import numpy as np
import onnx
import torch
from centernet_image import contract

from benchmarks import weights
from benchmarks.tensorrt_engine import Engine
from benchmarks.timing import times_ms
from benchmarks.workers import SkippedError, say
from clients import local
from export import to_plan
from export.files import write_beside
from export.plan import builder, lowering, profiles

OUTPUTS = (contract.BOXES.name, contract.SCORES.name, contract.CLASSES.name)
CALIBRATION_PICTURES = 16


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A network with its memory, on frames that it has run once.

    Attributes:
        run: Runs it; enqueues it on the contender's stream, if it has one.
        load: Replaces the frames that it reads by others, uint8 [N, H, W, 3], in the same memory.
        outputs: Boxes, scores and classes that the last run left.
    """

    run: Callable[[], object]
    load: Callable[[np.ndarray], object]
    outputs: Callable[[], Sequence[np.ndarray]]


class Contender(ABC):
    """A network that is ready to run.

    Attributes:
        stream: PyTorch's, where it is timed; None: it is synchronous, and timed on the host's clock.
    """

    stream: Any = None

    @abstractmethod
    def bind(self, frames: np.ndarray) -> Bound:
        """For frames uint8 [N, H, W, 3]."""

    def layers_ms(self, frames: np.ndarray, seconds: float) -> dict[str, Any] | None:
        """See `tensorrt_engine.Engine.layers_ms`; None where the contender cannot tell."""
        return None


class PyTorch(Contender):
    """The network in PyTorch: on a GPU FP16 and channels-last, else FP32; decode and normalisation FP32."""

    def __init__(self, spec: Spec, *, compiled: bool) -> None:
        half = spec.device == "cuda"
        if half and not torch.cuda.is_available():
            raise SkippedError("found no NVIDIA GPU")
        from export.checkpoint import load
        from export.detector import Detector

        detector = Detector(load(Path(spec.checkpoint)).network, top_k=contract.TOP_K).eval().to(spec.device)
        network = detector.network
        if half:
            network.half().to(memory_format=torch.channels_last)
            # torchvision's DCN launches there whatever the current stream is: elsewhere a part is not timed,
            # and a CUDA graph (`reduce-overhead`) does not hold it.
            self.stream = torch.cuda.default_stream()

        def detect(frame: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = detector.normalise(frame)
            heads = network(x.half().contiguous(memory_format=torch.channels_last) if half else x)
            return detector.decode({name: heads[name].float() for name in detector.reads()})

        self._device = spec.device
        # One compilation for each batch size.
        self._detect = torch.compile(detect, dynamic=False) if compiled else detect

    def bind(self, frames: np.ndarray) -> Bound:
        """See `Contender`."""
        frame = torch.from_numpy(frames.copy()).to(self._device)
        last: list[torch.Tensor] = []

        @torch.inference_mode()
        def run() -> None:
            last[:] = self._detect(frame)

        run()
        return Bound(
            run=run,
            load=lambda others: frame.copy_(torch.from_numpy(others)),
            outputs=lambda: [tensor.cpu().numpy() for tensor in last],
        )


class OnnxRuntime(Contender):
    """The ONNX file as it is (FP32), on CUDA or on the CPU; frames and answers in the host's memory."""

    def __init__(self, spec: Spec) -> None:
        import onnxruntime

        provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[spec.device]
        if provider not in onnxruntime.get_available_providers():
            raise SkippedError(f"onnxruntime {onnxruntime.__version__} has no {provider}")
        self._network = local.onnxruntime_network(Path(spec.onnx), providers=[provider])

    def bind(self, frames: np.ndarray) -> Bound:
        """See `Contender`."""
        held, last = frames.copy(), list[np.ndarray]()

        def run() -> None:
            last[:] = self._network(held)

        run()
        return Bound(run=run, load=partial(np.copyto, held), outputs=lambda: last)


class TensorRT(Contender):
    """A plan, its DCN layers by our plugin or by NVIDIA's ModulatedDeformConv2d.

    NVIDIA's plugin gives wrong output on any stream but the default one, and hangs in a CUDA graph.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        precision: str = "fp16",
        keep_fp32: Sequence[str] = (),
        nvidia: bool = False,
        graph: bool = True,
    ) -> None:
        plan = Path(spec.plan)
        if nvidia:
            _build_nvidia(spec, plan, precision)
        else:
            _build(spec, plan, precision, keep_fp32)
        self._engine = Engine(plan, Path(spec.plugin) if spec.plugin else None, nvidia=nvidia)
        self._graph = graph
        stream = self._engine.stream
        self.stream = torch.cuda.ExternalStream(stream.ptr) if stream.ptr else torch.cuda.default_stream()
        nodes = onnx.load(spec.onnx).graph.node
        self._dcn_nodes = [node.name for node in nodes if node.op_type in ("DeformConv", "DCNv2")]

    def bind(self, frames: np.ndarray) -> Bound:
        """See `Contender`."""
        execution = self._engine.bind(frames, graph=self._graph)
        return Bound(run=execution, load=execution.load, outputs=partial(execution.outputs, OUTPUTS))

    def layers_ms(self, frames: np.ndarray, seconds: float) -> dict[str, Any] | None:
        """See `Contender`."""
        return self._engine.layers_ms(frames, self._dcn_nodes, seconds=seconds)


def _sizes(spec: Spec) -> tuple[int, int, int]:
    return spec.batch[0], spec.batch[len(spec.batch) // 2], spec.batch[-1]


def _build(spec: Spec, plan: Path, precision: str, keep_fp32: Sequence[str]) -> None:
    options = [f"--precision={precision}", f"--batch={','.join(map(str, _sizes(spec)))}", "--if-needed"]
    options += [f"--keep-fp32={name}" for name in keep_fp32]
    options += [f"--plugin={spec.plugin}"] if spec.plugin else []
    if precision == "int8":
        folder = plan.with_suffix(".calibration")
        folder.mkdir(exist_ok=True)
        size = np.load(spec.frames, mmap_mode="r").shape[1:3]
        for number, frame in enumerate(weights.pictures(CALIBRATION_PICTURES, size, seed=3)):
            np.save(folder / f"{number:02}.npy", frame)
        options.append(f"--calibration={folder}")
    to_plan.main([spec.onnx, str(plan), *options])


def _build_nvidia(spec: Spec, plan: Path, precision: str) -> None:
    """The same graph, but for the plugin's nodes: TensorRT's parser makes NVIDIA's plugin of a DeformConv."""
    trt, model = builder.load_tensorrt(), onnx.load(spec.onnx)
    network = lowering.make(model, precision)
    shapes = profiles.profiles(model, _sizes(spec))
    write_beside(plan, builder.build(trt, network.rounded, shapes=shapes, tf32=network.tf32)[0])


CONTENDERS: dict[str, Callable[[Spec], Contender]] = {
    "plugin": TensorRT,
    "plugin-fp32-outputs": partial(
        TensorRT, keep_fp32=[f"network.{head}.2/Conv" for head in ("hm", "reg", "wh")]
    ),
    "plugin-int8": partial(TensorRT, precision="int8"),
    "plugin-tf32": partial(TensorRT, precision="tf32"),
    "plugin-fp32": partial(TensorRT, precision="fp32"),
    "plugin-stream": partial(TensorRT, graph=False),
    "nvidia": partial(TensorRT, nvidia=True, graph=False),
    "compile": partial(PyTorch, compiled=True),
    "eager": partial(PyTorch, compiled=False),
    "onnxruntime": OnnxRuntime,
}
"""By name; plans run as a CUDA graph without `-stream`."""


def work(spec: Spec, contender: Contender | None = None) -> None:
    """Check and time the contender at each batch size; says a line for each step.

    What is checked is what is timed: bound with other frames, the outputs are of those that it was given
    after that, by the same call.
    """
    contender = contender or CONTENDERS[spec.contender](spec)
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
        for _ in range(3):
            bound.run()
        times = times_ms(bound.run, seconds=spec.seconds, at_least=10, stream=contender.stream, in_row=10)
        say("times", batch=batch, median_ms=median(times), runs=len(times))
    for batch in spec.batch:
        layers = contender.layers_ms(frames[:batch], spec.seconds)
        if layers:
            say("layers", batch=batch, **layers)
