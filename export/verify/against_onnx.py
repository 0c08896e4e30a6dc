"""Compares a plan with ONNX Runtime, output by output."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import onnx
from centernet_image import contract
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.backend.trt import EngineFromBytes, TrtRunner
from polygraphy.logger import G_LOGGER

from export.graphs import onnx_files
from export.verify import peaks, rows
from export.verify.candidates import Candidates

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a plan may be from FP32 on the CPU.

    A detection fits or does not; what counts is how many do. The worst of a right plan's many is anywhere
    near the limit, but only a few are beyond it; of a wrong plan's most are.

    Attributes:
        relative: difference of a raw output, by the norm of the output.
        score: largest difference of a detection's score.
        box_px: largest difference of a box's side, pixels of the frame.
        unmatched: part of the detections that may have no counterpart within the two.
    """

    relative: float
    score: float
    box_px: float
    unmatched: float


TOLERANCES = {
    "fp32": Tolerance(relative=1e-3, score=1e-3, box_px=0.1, unmatched=0.2),
    "tf32": Tolerance(relative=2e-2, score=0.02, box_px=2, unmatched=0.12),
    "fp16": Tolerance(relative=2e-2, score=0.02, box_px=2, unmatched=0.12),
    "int8": Tolerance(relative=0.1, score=0.03, box_px=3, unmatched=0.4),
}


TIMES, AT_MOST = 2.0, 0.5
"""Beyond a tolerance: how many times as far as ONNX Runtime in the same precision, and never farther."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one output, or the detections together, differ.

    Attributes:
        output: its name; "detections" for boxes, scores and classes.
        batch: pictures at once.
        passed: whether all is within the tolerance.
        facts: what was measured, by name.
    """

    output: str
    batch: int
    passed: bool
    facts: dict[str, float]

    def __str__(self) -> str:
        facts = ", ".join(
            f"{name} {value if isinstance(value, int) else f'{value:.3g}'}"
            for name, value in self.facts.items()
        )
        reason = (
            "beyond tolerance" if self.facts.get("compared", 1) else "nothing to tell apart: more pictures"
        )
        return f"{self.output}, batch {self.batch}: {facts}{'' if self.passed else f' - {reason}'}"


def verify(
    reference: onnx.ModelProto,
    engine: bytes,
    feeds: Iterable[dict[str, np.ndarray]],
    tolerance: Tolerance,
    *,
    rounded: onnx.ModelProto | None = None,
) -> list[Difference]:
    """Runs both and compares them.

    Args:
        reference: FP32, run by ONNX Runtime on the CPU.
        engine: serialized, run by TensorRT on the GPU; its plugin is loaded.
        rounded: what the engine was built from, in its precision, with standard nodes: what it cannot keep
            is not asked of the engine.
        feeds: inputs of both; the batch size may differ from one to the next.
        tolerance: one of `TOLERANCES`.
    """
    candidates = candidates_of(reference)
    runnable = with_heads(reference) if candidates is None else candidates.with_heads
    session = SessionFromOnnx(runnable.SerializeToString(), providers=["cpu"])
    runners = (OnnxrtRunner(session), TrtRunner(EngineFromBytes(engine)))
    as_written = partial(onnx_files.session, as_written=True)
    third = (lambda: OnnxrtRunner(as_written(with_heads(rounded)))) if rounded is not None else None
    return compare_runners(*runners, feeds, tolerance, rounded=third, candidates=candidates)


def candidates_of(reference: onnx.ModelProto) -> Candidates | None:
    """Of a network of ours with more than boxes."""
    outputs = {output.name for output in reference.graph.output}
    return Candidates(reference) if {*peaks.OUTPUTS} <= outputs and outputs & {*rows.FURTHER} else None


def with_heads(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a detector of ours with its raw heads among the outputs; any other model as it is."""
    produced = {name for node in model.graph.node for name in node.output}
    outputs = {output.name for output in model.graph.output}
    if not {*peaks.OUTPUTS, peaks.HEAT, peaks.SIZE} <= produced or outputs & {*rows.FURTHER}:
        return model
    copy = onnx.shape_inference.infer_shapes(model)
    # With their types: a precision's heads may be FP16.
    copy.graph.output.extend(info for info in copy.graph.value_info if info.name in contract.HEADS)
    return copy


def compare_runners(
    expected: BaseRunner,
    actual: BaseRunner,
    feeds: Iterable[dict[str, np.ndarray]],
    tolerance: Tolerance,
    *,
    rounded: Callable[[], BaseRunner] | None = None,
    candidates: Candidates | None = None,
) -> list[Difference]:
    """Runs two of Polygraphy's runners on the same inputs and compares their outputs.

    Where that fails, `rounded` makes a third, right by construction, in the precision of `actual`: networks
    differ in how they multiply rounding, and what it cannot keep is not asked of `actual`. With `candidates`
    `expected` runs their `with_heads`.
    """
    inputs = list(feeds)
    wanted, found = _run(expected, inputs), _run(actual, inputs)
    cells: list[Outputs | None] = [None] * len(inputs)
    if candidates is not None:
        split = [candidates.split(one, score=tolerance.score) for one in wanted]
        wanted, cells = [rest for rest, _ in split], [own for _, own in split]
    differences = [
        compare_outputs(one, other, tolerance, cells=own)
        for one, other, own in zip(wanted, found, cells, strict=True)
    ]
    if rounded is not None and not all(each.passed for some in differences for each in some):
        runs = zip(wanted, found, cells, _run(rounded(), inputs), strict=True)
        differences = [
            compare_outputs(one, other, tolerance, cells=own, rounded=third)
            for one, other, own, third in runs
        ]
    if any(each.facts.get("compared") for some in differences for each in some):
        # What shows nothing even beside itself is made up for by the inputs that do.
        pairs = zip(wanted, cells, strict=True)
        blank = [not _agreement(one, one, tolerance, own)[0].compared for one, own in pairs]
        for some in (some for some, is_blank in zip(differences, blank, strict=True) if is_blank):
            some[0] = replace(some[0], passed=True)
    return [each for some in differences for each in some]


def _run(runner: BaseRunner, feeds: list[dict[str, np.ndarray]]) -> list[Outputs]:
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), runner:
        return [
            # Copies: TensorRT's runner writes the next answer into the same memory.
            {name: np.array(values) for name, values in runner.infer(feed).items()}
            for feed in feeds
        ]


def compare_outputs(
    expected: Outputs,
    actual: Outputs,
    tolerance: Tolerance,
    *,
    cells: Outputs | None = None,
    rounded: Outputs | None = None,
) -> list[Difference]:
    """Compares all outputs: detections with the heads expected, everything else value by value.

    Without heads and `cells` (see `peaks.explain`) detections are compared as sets, and what else there is of
    each with its counterpart's. Sets without a clear member show nothing, which is enough only if there are
    other outputs. What `peaks` repeats must be there to the bit. `rounded` widens the tolerance by what
    itself differs.
    """
    differences = []
    # Heads may be there for the detections' sake alone.
    names = [name for name in expected if name in actual or name not in contract.HEADS]
    if set(peaks.OUTPUTS) <= set(names):
        further = [name for name in names if name in rows.FURTHER]
        has_peaks = rows.PEAKS in names
        names = [name for name in names if name not in (*peaks.OUTPUTS, *further, rows.PEAKS)]
        agreement, pairs = _agreement(expected, actual, tolerance, cells)
        other, other_pairs = (
            (None, []) if rounded is None else _agreement(expected, rounded, tolerance, cells)
        )
        own = expected if cells is None else cells
        allowed = tolerance.unmatched if other is None else _widen(tolerance.unmatched, other.unmatched)
        passed = agreement.unmatched <= allowed and bool(agreement.compared or names)
        passed &= agreement.of_a_class <= max(AT_MOST, TIMES * allowed)
        batch = len(expected[contract.SCORES.name])
        facts = asdict(agreement)
        differences.append(Difference(output="detections", batch=batch, passed=passed, facts=facts))
        for name in further:
            beyond, worst = _beyond(name, own, actual, pairs, tolerance)
            allowed = tolerance.unmatched
            if rounded is not None:
                allowed = _widen(allowed, _beyond(name, own, rounded, other_pairs, tolerance)[0])
            passed = beyond <= allowed
            facts = {"beyond": beyond, "worst of the others": worst}
            differences.append(Difference(output=name, batch=batch, passed=passed, facts=facts))
        if has_peaks:
            unlike = len(rows.unlike_peaks(actual))
            facts = {"outputs that it does not hold": unlike}
            differences.append(Difference(output=rows.PEAKS, batch=batch, passed=not unlike, facts=facts))
    for name in names:
        relative = _relative(expected[name], actual[name])
        allowed = tolerance.relative
        if rounded is not None:
            allowed = _widen(allowed, _relative(expected[name], rounded[name]))
        # A NaN compares false, so that it never passes.
        passed = relative <= allowed
        facts = {"relative": relative}
        batch = len(expected[name]) if expected[name].ndim else 1
        differences.append(Difference(output=name, batch=batch, passed=passed, facts=facts))
    return differences


def _widen(tolerance: float, rounding: float) -> float:
    return max(tolerance, min(TIMES * rounding, AT_MOST))


def _relative(expected: np.ndarray, actual: np.ndarray) -> float:
    wanted, found = expected.astype(np.float64), actual.astype(np.float64)
    return float(np.linalg.norm(wanted - found)) / max(float(np.linalg.norm(wanted)), 1e-6)


def _agreement(
    expected: Outputs, actual: Outputs, tolerance: Tolerance, cells: Outputs | None
) -> tuple[peaks.Agreement, list]:
    limits = {"score": tolerance.score, "box_px": tolerance.box_px}
    if {peaks.HEAT, peaks.SIZE} <= set(expected):
        cells = peaks.boxes_of(expected)
    if cells is not None:
        return peaks.explain(actual, cells, **limits)
    return rows.match(expected, actual, **limits)


def _beyond(
    name: str, expected: Outputs, actual: Outputs, pairs: list, tolerance: Tolerance
) -> tuple[float, float]:
    return rows.beyond(name, expected, actual, pairs, relative=tolerance.relative, box_px=tolerance.box_px)
