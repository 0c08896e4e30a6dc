"""What `benchmarks.engine` times and how long it lives, with a stand-in for TensorRT."""

import gc
import io
import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import stand_in_tensorrt
from onnx import TensorProto, helper

from benchmarks import contenders, engine_report, tensorrt_engine
from benchmarks.contenders import OUTPUTS, Bound, Contender, Spec, TensorRT
from export.plan.provenance import PlanDescription

pytestmark = pytest.mark.wide


def frames(count, value):
    return np.full((count, 2, 2, 3), value, np.uint8)


@pytest.fixture
def trt(monkeypatch):
    stand_in_tensorrt.patch_cuda(monkeypatch)
    monkeypatch.setattr(tensorrt_engine.Engine, "device", "cpu")
    return stand_in_tensorrt.TensorRT()


@pytest.fixture
def engine(trt):
    """A detector whose boxes, scores and classes are all its frames."""
    inputs = [helper.make_tensor_value_info("frame", TensorProto.UINT8, ["batch", 2, 2, 3])]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2, 2, 3]) for n in OUTPUTS]
    nodes = [helper.make_node("Cast", ["frame"], [name], to=TensorProto.FLOAT) for name in OUTPUTS]
    graph = helper.make_graph(nodes, "detector", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    builder = trt.Builder(None)
    network = builder.create_network(0)
    network.parse(model.SerializeToString())
    return tensorrt_engine.Engine(trt, builder.build_serialized_network(network, None), [])


def bound_contender(monkeypatch, engine, *, graph):
    monkeypatch.setattr(tensorrt_engine.Engine, "load", lambda *_, **__: engine)
    return TensorRT(SPEC, plugin="dcnv2", graph=graph)


SPEC = Spec(
    contender="plugin",
    checkpoint="",
    onnx="",
    plan="",
    plugin=None,
    frames="",
    outputs="",
    batch=[1, 3],
    seconds=0,
    device="cpu",
)


@pytest.mark.parametrize("graph", [True, False])
def test_a_run_keeps_its_context_and_memory(graph, engine, monkeypatch):
    bound = bound_contender(monkeypatch, engine, graph=graph).bind(frames(2, 5))
    run = bound.run
    context = weakref.ref(run._context)
    tensors = [weakref.ref(tensor) for tensor in run.tensors.values()]
    del bound
    gc.collect()
    run()
    assert context() is not None
    assert all(tensor() is not None for tensor in tensors)
    assert (run.tensors["boxes"] == 5).all()
    del run
    gc.collect()
    assert context() is None


@pytest.mark.parametrize("graph", [True, False])
def test_a_captured_run_reads_the_frames_that_are_there(graph, engine, monkeypatch):
    bound = bound_contender(monkeypatch, engine, graph=graph).bind(frames(2, 5))
    bound.load(frames(2, 7))
    bound.run()
    assert all((output == 7).all() for output in bound.outputs())


class Recorded(Contender):
    """Says what is asked of it."""

    def __init__(self, spec, calls):
        super().__init__(spec)
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

    def times_ms(self, run):
        self.calls.append(("time", run))
        return [1.0, 2.0, 9.0]


def work(tmp_path, monkeypatch, answers):
    calls = []
    checked = np.arange(3 * 12, dtype=np.uint8).reshape(3, 2, 2, 3)
    np.save(tmp_path / "frames.npy", checked)
    spec = replace(SPEC, frames=str(tmp_path / "frames.npy"), outputs=str(tmp_path / "outputs.npz"))
    monkeypatch.setattr("sys.stdin", io.StringIO(answers))
    contender = Recorded(spec, calls)
    contenders.work(contender, spec)
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


def test_a_plan_is_used_only_if_it_fits(tmp_path):
    plan = tmp_path / "dla_34.plan"
    facts = PlanDescription(
        tensorrt="10.6.0",
        gpu="NVIDIA H200",
        compute_capability="9.0",
        precision="fp16",
        plugin_sha256="aa",
        onnx_sha256="bb",
        profiles={},
    )
    assert "no " in tensorrt_engine.misfits(plan, facts)[0]
    plan.write_bytes(b"plan")
    assert "no " in tensorrt_engine.misfits(plan, facts)[0]
    beside = plan.with_suffix(".json")
    beside.write_text(json.dumps({"plan": vars(facts)}))
    assert tensorrt_engine.misfits(plan, facts) == []
    for field in ("plugin_sha256", "onnx_sha256"):
        (reason,) = tensorrt_engine.misfits(plan, replace(facts, **{field: "cc"}))
        assert field in reason
    beside.write_text("{")
    assert "damaged" in tensorrt_engine.misfits(plan, facts)[0]


def engine_rows():
    done = {"model": "dla_34", "status": "done", "reason": "", "layers_ms": {}}
    layers = {8: {"dcn": 1.0, "other": 7.0}}
    return [
        done | {"contender": "plugin", "median_ms": {8: 2.0}, "layers_ms": layers},
        done | {"contender": "compile", "median_ms": {8: 5.0}},
        done | {"contender": "nvidia", "median_ms": {8: 4.0}},
    ]


def test_goals_of_the_engine():
    found = engine_report.goals({"rows": engine_rows()})
    assert [goal["found"] for goal in found] == [2.5, 2, 0.125]
    assert [goal["reached"] for goal in found] == [True, False, True]
    rows = engine_rows()[:2]
    rows[1]["median_ms"] = {}
    assert [goal["found"] for goal in engine_report.goals({"rows": rows})] == [None, None, 0.125]
    assert all(goal["reached"] is None for goal in engine_report.goals({"rows": []}))
