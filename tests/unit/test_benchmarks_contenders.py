"""What `benchmarks.engine` times and how long it lives, with a stand-in for TensorRT and CuPy."""

import gc
import io
import json
import sys
import weakref
from types import SimpleNamespace as Spec

import numpy as np
import pytest
import stand_in_tensorrt
from onnx import TensorProto, helper

from benchmarks import contenders, tensorrt_engine
from benchmarks.contenders import OUTPUTS, Bound, Contender
from export.plan import builder, command_line

pytestmark = pytest.mark.wide


def frames(count, value):
    return np.full((count, 2, 2, 3), value, np.uint8)


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """A detector whose boxes, scores and classes are all its frames."""
    inputs = [helper.make_tensor_value_info("frame", TensorProto.UINT8, ["batch", 2, 2, 3])]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2, 2, 3]) for n in OUTPUTS]
    nodes = [helper.make_node("Cast", ["frame"], [name], to=TensorProto.FLOAT) for name in OUTPUTS]
    graph = helper.make_graph(nodes, "detector", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    plan = tmp_path / "model.plan"
    plan.write_bytes(model.SerializeToString())
    monkeypatch.setitem(sys.modules, "cupy", stand_in_tensorrt.CUPY)
    monkeypatch.setattr(builder, "load_tensorrt", stand_in_tensorrt.TensorRT)
    monkeypatch.setattr(builder, "load_plugin", lambda trt, path: None)
    return tensorrt_engine.Engine(plan)


@pytest.mark.parametrize("graph", [True, False])
def test_a_run_keeps_its_context_and_memory(graph, engine):
    run = engine.bind(frames(2, 5), graph=graph)
    context = weakref.ref(run._context)
    tensors = [weakref.ref(tensor) for tensor in run.tensors.values()]
    gc.collect()
    run()
    assert context() is not None
    assert all(tensor() is not None for tensor in tensors)
    assert (run.outputs(["boxes"])[0] == 5).all()
    del run
    gc.collect()
    assert context() is None


@pytest.mark.parametrize("graph", [True, False])
def test_a_run_reads_the_frames_that_are_there(graph, engine):
    run = engine.bind(frames(2, 5), graph=graph)
    run.load(frames(2, 7))
    run()
    assert all((output == 7).all() for output in run.outputs(OUTPUTS))


def test_the_bare_engine_has_a_graph_for_each_batch(engine, monkeypatch):
    bound = []
    bind = engine.bind

    def recorded(given, *, graph):
        bound.append((len(given), graph))
        return bind(given, graph=graph)

    monkeypatch.setattr(engine, "bind", recorded)
    run = engine.bare()
    gc.collect()
    for batch in (1, 3, 1, 3):
        run(batch)
    assert bound == [(1, True), (3, True)]


def test_the_int8_contender_is_a_plan_as_users_build_it(monkeypatch, tmp_path):
    built = []
    monkeypatch.setattr(
        contenders.to_plan, "main", lambda arguments: built.append(command_line.parse(arguments))
    )
    monkeypatch.setattr(contenders, "Engine", lambda *_, **__: 1 / 0)
    np.save(tmp_path / "frames.npy", frames(2, 0))
    spec = Spec(plan=str(tmp_path / "x.plan"), onnx="x.onnx", plugin=None, batch=[32])
    spec.frames = str(tmp_path / "frames.npy")
    with pytest.raises(ZeroDivisionError):
        contenders.CONTENDERS["plugin-int8"](spec)
    (options,) = built
    assert (options.precision, options.batch, options.int8_groups) == ("int8", (32, 32, 32), [])
    assert len(list(options.calibration.glob("*.npy"))) == contenders.CALIBRATION_PICTURES


class Recorded(Contender):
    """Says what is asked of it."""

    def __init__(self, calls):
        self.calls = calls

    def bind(self, given):
        self.calls.append(("bind", given.copy()))
        held = given.copy()
        left = []

        def load(others):
            held[...] = others

        def run():
            left[:] = [held.copy()] * 3

        self.run = run
        return Bound(run=run, load=load, outputs=lambda: left)


def work(tmp_path, monkeypatch, answers):
    calls = []
    checked = np.arange(3 * 12, dtype=np.uint8).reshape(3, 2, 2, 3)
    np.save(tmp_path / "frames.npy", checked)
    spec = Spec(frames=tmp_path / "frames.npy", outputs=tmp_path / "outputs.npz", batch=[1, 3], seconds=0)
    monkeypatch.setattr("sys.stdin", io.StringIO(answers))

    def times_ms(run, **_):
        calls.append(("time", run))
        return [1.0, 2.0, 9.0]

    monkeypatch.setattr(contenders, "times_ms", times_ms)
    contender = Recorded(calls)
    contenders.work(spec, contender)
    return calls, checked, contender


def test_what_is_checked_is_what_is_timed(tmp_path, monkeypatch, capsys):
    calls, checked, contender = work(tmp_path, monkeypatch, "go\ngo\n")
    assert [name for name, _ in calls] == ["bind", "time"] * 2
    bound_with = calls[2][1]
    assert bound_with.shape == checked.shape
    assert not np.array_equal(bound_with, checked)
    assert calls[3][1] is contender.run
    with np.load(tmp_path / "outputs.npz") as found:
        assert np.array_equal(found["boxes"], checked)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["event"], one["batch"]) for one in said] == [
        (event, batch) for batch in (1, 3) for event in ("outputs", "times")
    ]
    assert said[1]["median_ms"] == 2


def test_nothing_is_timed_without_consent(tmp_path, monkeypatch):
    calls, *_ = work(tmp_path, monkeypatch, "")
    assert [name for name, _ in calls] == ["bind"]
