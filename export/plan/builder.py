"""TensorRT: which module it is here, the plugin, and building an engine."""

import ctypes
import importlib
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from export.errors import ExportError, one_line
from export.graphs.foreign_nodes import unknown_nodes
from export.plan.provenance import Profiles

ROOT = Path(__file__).resolve().parents[2]
RTX = ROOT / ".toolchain" / "rtx"
PLUGIN = "DCNv2"


class PlanError(ExportError):
    """No plan could be made; the message says why and what to do."""


def load_tensorrt(*, rtx: bool = False) -> ModuleType:
    """Imports TensorRT, whatever its Python package is called here.

    Args:
        rtx: TensorRT-RTX, whose builder needs no GPU, in place of TensorRT.

    Raises:
        PlanError: it is not installed.
    """
    names = ("tensorrt_rtx", "tensorrt_rtx_bindings") if rtx else ("tensorrt", "tensorrt_bindings")
    if rtx and RTX.is_dir():
        sys.path.append(str(RTX / "python"))
    reasons = []
    for name in names:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(str(error))
        else:
            # Polygraphy asks for it by this name.
            sys.modules.setdefault(names[0], module)
            return module
    remedy = (
        "run ./ci/toolchain rtx"
        if rtx
        else "install tensorrt-cu13-bindings and put libnvinfer on LD_LIBRARY_PATH"
    )
    raise PlanError(f"no module {' or '.join(names)} ({reasons[-1]}): {remedy}")


def with_rtx_libraries() -> None:
    """Starts this process again with TensorRT-RTX's libraries on LD_LIBRARY_PATH, unless they are there.

    Its ONNX parser opens a library by name at the first plugin node, and ends the process if that fails.
    """
    folder = str(RTX / "lib")
    paths = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    if RTX.is_dir() and folder not in paths:
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([folder, *filter(None, paths)])
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def load_plugin(trt: ModuleType, path: Path | None, *, rtx: bool = False) -> Path:
    """Makes sure that TensorRT knows the plugin.

    Args:
        trt: from `load_tensorrt`.
        path: the plugin's library; by default one that is loaded already (LD_PRELOAD), else the build's.
        rtx: whether `trt` is TensorRT-RTX.

    Returns:
        Where the library that is now loaded lies.

    Raises:
        PlanError: there is none, or it did not register: it was built for another TensorRT.
    """
    found = path or loaded_library("libdcnv2")
    if found is None:
        kind = "rtx" if rtx else f"trt{trt.__version__.split('.')[0]}"
        found = ROOT / "build" / "dcnv2" / kind / "libdcnv2.so"
        if not found.is_file():
            raise PlanError(
                f"no plugin at {found}: build it (plugins/dcnv2/README.md) or name one with --plugin"
            )
    try:
        ctypes.CDLL(str(found.resolve()), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise PlanError(f"cannot load the plugin: {error}") from None
    if not _is_registered(trt):
        # Preloaded, it was there before TensorRT and registers when TensorRT is first used.
        trt.Builder(trt.Logger(trt.Logger.ERROR))
    if not _is_registered(trt):
        raise PlanError(
            f"{found} registered no {PLUGIN} version 1 with TensorRT {trt.__version__}: "
            "it was built for another one"
        )
    return found.resolve()


def _is_registered(trt: ModuleType) -> bool:
    creators = trt.get_plugin_registry().all_creators
    return any((creator.name, creator.plugin_version) == (PLUGIN, "1") for creator in creators)


def loaded_library(name: str) -> Path | None:
    """The file of a shared library of this process whose name begins with `name`."""
    for line in os.fsdecode(Path("/proc/self/maps").read_bytes()).splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith(name) and ".so" in path.name:
            return path
    return None


def build(
    trt: ModuleType,
    model: onnx.ModelProto,
    *,
    shapes: Profiles,
    tf32: bool = False,
    target: str | None = None,
    timing_cache: bytes | None = None,
    optimization_level: int | None = None,
    console: Console | None = None,
) -> tuple[bytes, bytes | None]:
    """Builds a strongly typed engine.

    Args:
        trt: from `load_tensorrt`.
        model: with DCNv2 nodes.
        shapes: from `profiles.profiles`.
        tf32: lets FP32 convolutions round their inputs to TF32.
        target: compute capability to build for ("SM86"); TensorRT-RTX only.
        timing_cache: what an earlier build measured, empty for none yet.
        optimization_level: 0 (quick) to 5; TensorRT's own default if None.
        console: where the progress is drawn.

    Returns:
        The serialized engine, and the timing cache if one was given.

    Raises:
        PlanError: TensorRT refused; the message holds its words.
    """
    logger = _logger(trt)
    builder = trt.Builder(logger)
    # TensorRT 11 has no other kind of network, and may not have the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise PlanError(_reasons([*logger.errors, *errors]) or "the parser gave no reason")

    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32") and not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if optimization_level is not None:
        config.builder_optimization_level = optimization_level
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(_compute_capability(trt, target), 0)
    cache = None
    if timing_cache is not None:
        cache = config.create_timing_cache(timing_cache)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            # Of another TensorRT or GPU: refused, it would never be brought up to date.
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape["min"], shape["opt"], shape["max"])
    config.add_optimization_profile(profile)

    with _progress(console) as progress:
        if progress is not None:
            config.progress_monitor = _monitor(trt, progress)
        engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise PlanError(_reasons(logger.errors) or "TensorRT built no engine and gave no reason")
    return bytes(engine), None if cache is None else bytes(cache.serialize())


def _reasons(texts: list[str]) -> str:
    return "; ".join(dict.fromkeys(map(one_line, texts)))


def refuse_unknown(trt: ModuleType, model: onnx.ModelProto) -> None:
    """Says where TensorRT's parser would say "Plugin not found", and not for which node.

    Raises:
        PlanError: a node is neither ONNX's nor a plugin's.
    """
    for name, operator in unknown_nodes(model):
        plugins = {creator.name for creator in trt.get_plugin_registry().all_creators}
        if operator.rpartition("::")[2] not in plugins:
            raise PlanError(
                f"{name}: found operator {operator}, expected one of ONNX's or of a loaded TensorRT plugin: "
                "load its plugin, or export the model without it"
            )


def _compute_capability(trt: ModuleType, target: str) -> Any:
    known = trt.ComputeCapability.__members__
    if target not in known:
        targets = ", ".join(sorted(name for name in known if name.startswith("SM")))
        raise PlanError(f"found target {target}, expected one that TensorRT-RTX builds for: {targets}")
    return known[target]


def _logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[name-defined]
        """Keeps the errors for the message of the exception, and drops the chatter."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message.strip())

    return Logger()


def _progress(console: Console | None) -> Any:
    if console is None:
        return nullcontext()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _monitor(trt: ModuleType, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        """Draws TensorRT's phases, the inner ones only while they last."""

        def __init__(self) -> None:
            super().__init__()
            self.tasks: dict[str, TaskID] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            indent = "  " if parent_phase else ""
            self.tasks[phase_name] = progress.add_task(indent + phase_name[:60], total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.update(self.tasks[phase_name], completed=step + 1)
            return True

        def phase_finish(self, phase_name: str) -> None:
            progress.remove_task(self.tasks.pop(phase_name))

    return Monitor()
