"""`benchmarks.dcnv2`: its form for a CPU, and with stand-ins what only a GPU runs."""

import argparse
import json
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from torchvision.ops import deform_conv2d

from benchmarks import dcnv2, dcnv2_worker, roofline
from benchmarks.dcnv2_engines import OnnxRuntime, layer_model
from benchmarks.dcnv2_layers import Contender, Inputs, Ours, Torchvision
from benchmarks.roofline import Shape
from benchmarks.workers import SkippedError

pytestmark = pytest.mark.wide

SMALL = Shape(8, 16, 6)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Other tests run beside these: threads that wait by spinning would slow them all down."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def spec(**changes):
    return SimpleNamespace(**{"precision": "fp32", "layers": [], "repeats": 2, "device": "cpu"} | changes)


def measure(contender, *, batch=2, precision="fp32"):
    return dcnv2_worker.measure(contender, SMALL, batch, spec(precision=precision))


def test_cpu_form_reports_checked_times(tmp_path):
    command = ["--device", "cpu", "--models", "resdcn_18", "--batch", "1", "--repeats", "1"]
    command += ["--contenders", "torchvision,onnxruntime,nvidia"]
    assert dcnv2.main([*command, "--output-dir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "dcnv2.json").read_text())
    for row in results["layers"]:
        assert set(row["us"]) == {"torchvision", "onnxruntime"}
        assert max(row["error"].values()) < 1e-5
    text = (tmp_path / "dcnv2.md").read_text()
    assert "| onnxruntime |" in text
    assert f"- nvidia: {row['skipped']['nvidia']}\n" in text


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as exit_info:
        dcnv2.main([])
    assert exit_info.value.code == 2
    assert "--device cpu" in capsys.readouterr().err


def test_input_sets_share_their_weights_and_nothing_else():
    first, second = Inputs.rotation(SMALL, 2, torch.float32, "cpu")
    assert first.weight is second.weight
    assert first.bias is second.bias
    for name in ("input", "offset", "logits"):
        assert not torch.equal(getattr(first, name), getattr(second, name))
    (again, _) = Inputs.rotation(SMALL, 2, torch.float32, "cpu")
    assert torch.equal(first.offset, again.offset)
    assert first.offset.abs().max() <= 2


class KernelsOfTorchvision:
    """Reads a layer's tensors where and as the library would."""

    slow, fast = 16, 1

    def tactics(self, layer):
        return [self.slow, self.fast]

    def workspace_size(self, layer, tactic):
        return 0

    def run(self, layer, tactic):
        problem, tensors = layer.problem, layer.tensors
        data, packed = tensors["input"].float(), tensors["offset"].float()
        if problem.layout:
            data, packed = data.permute(0, 3, 1, 2), packed.permute(0, 3, 1, 2)
        offset, logits = packed[:, :18], packed[:, 18:27]
        weight, bias = tensors["weight"].permute(0, 3, 1, 2).float(), tensors["bias"].float()
        for _ in range(30 if tactic == self.slow else 1):
            result = deform_conv2d(data, offset, weight, padding=1, mask=logits.sigmoid())
        result = result * tensors["scale"][:, None, None] if "scale" in tensors else result
        result = result + bias[:, None, None]
        layer.output.copy_(result if layer.output.is_floating_point() else result.round().clamp(-128, 127))
        return layer.output


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_ours_keeps_the_fastest_tactic_and_one_copy_of_the_weights(precision):
    kernels = KernelsOfTorchvision()
    contender = Ours(kernels, precision)
    found = measure(contender, precision=precision)
    assert found["error"] < {"fp32": 1e-5, "fp16": 1e-3, "int8": 5e-2}[precision]
    assert precision != "int8" or found["error"] > 1e-3
    assert found["tactic"] == kernels.fast
    assert set(found["tactics_us"]) == {kernels.slow, kernels.fast}
    dtype = dcnv2_worker.DTYPES[precision]
    runs = contender.prepare(SMALL, Inputs.rotation(SMALL, 2, dtype, "cpu"))
    pointers = {
        name: {run.args[0].tensors[name].data_ptr() for run in runs} for name in ("weight", "bias", "input")
    }
    assert {name: len(found) for name, found in pointers.items()} == {"weight": 1, "bias": 1, "input": 2}


@pytest.mark.parametrize("contender", [Torchvision(), OnnxRuntime()], ids=["torchvision", "onnxruntime"])
def test_contenders_on_the_cpu(contender):
    assert measure(contender)["error"] < 1e-5


def test_the_plain_convolution_of_tensorrt_is_held_to_a_plain_convolution():
    inputs, _ = Inputs.rotation(SMALL, 2, torch.float32, "cpu")
    session = onnxruntime.InferenceSession(layer_model("Conv", SMALL, inputs).SerializeToString())
    (found,) = session.run(None, {"input": inputs.input.numpy()})
    truth = inputs.truth(2, plain=True)
    assert float((torch.from_numpy(found).double() - truth).norm() / truth.norm()) < 1e-5
    assert not torch.allclose(truth, inputs.truth(2))


class Wrong(Contender):
    """Computes the layer without its mask, once and never again, or of the first inputs only."""

    def __init__(self, how):
        self.how = how

    def prepare(self, shape, sets):
        outputs = [one.truth(len(one.input)).float() for one in sets]
        if self.how == "other":
            outputs = [output * 1.5 for output in outputs]
        if self.how == "first":
            outputs = [outputs[0]] * len(sets)
        if self.how == "nothing":
            return [partial(torch.full_like, output, float("nan")) for output in outputs]
        if self.how == "once":
            return [lambda output=output: output for output in outputs]
        return [output.clone for output in outputs]


def test_wrong_outputs_are_not_timed(capsys):
    assert measure(Wrong("not at all"))["error"] < 1e-5
    for how in ("other", "first", "nothing", "once"):
        with pytest.raises(SkippedError, match="wrong output: relative error"):
            measure(Wrong(how))
    dcnv2_worker.work(spec(layers=[(8, 16, 6, 1)]), Wrong("other"))
    (said,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(said) == {"event", "skipped"}


def stand_in_worker(processes, seen):
    """Says what each process would."""

    @contextmanager
    def working(module, arguments, *, timeout_s):
        seen.append([list(layer) for layer in arguments["layers"]])
        yield SimpleNamespace(events=lambda: iter(processes.pop(0)))

    return working


def rows_of(count):
    row = {"shape": (8, 16, 6), "layer": "8→16 @ 6"}
    return [row | {"batch": b + 1, "us": {}, "error": {}, "skipped": {}, "facts": {}} for b in range(count)]


def run_contender(monkeypatch, processes, rows):
    seen, ceilings = [], {}
    monkeypatch.setattr(dcnv2, "working", stand_in_worker(processes, seen))
    options = argparse.Namespace(batch=[1], repeats=1, device="cuda", library="", timeout_s=1)
    dcnv2.run_contender("nvidia", "fp16", rows, ceilings, options)
    return seen, ceilings


def test_after_a_failure_another_process_goes_on(monkeypatch):
    rows = rows_of(3)
    done = {"event": "layer", "us": 5.0, "error": 0.1, "sets": 2}
    failed = {"event": "failed", "reason": "hung"}
    peak = {"event": "ceilings", "tflops": 1.0, "tb_per_s": 2.0}
    seen, ceilings = run_contender(monkeypatch, [[dict(peak), dict(done), failed], [dict(done)]], rows)
    assert [len(layers) for layers in seen] == [3, 1]
    assert [row["us"].get("nvidia") for row in rows] == [5.0, None, 5.0]
    assert rows[1]["skipped"] == {"nvidia": "failed: hung"}
    assert ceilings == {"nvidia": {"tflops": 1.0, "tb_per_s": 2.0}}


def test_a_crash_after_the_last_layer_costs_nothing(monkeypatch):
    rows = rows_of(1)
    said = [{"event": "layer", "us": 5.0, "error": 0.1}, {"event": "failed", "reason": "ended with -11"}]
    run_contender(monkeypatch, [said], rows)
    assert rows[0]["us"] == {"nvidia": 5.0}
    assert not rows[0]["skipped"]


def test_what_always_fails_is_given_up(monkeypatch):
    rows = rows_of(5)
    failures = [[{"event": "failed", "reason": "hung"}] for _ in range(dcnv2.FAILURES)]
    run_contender(monkeypatch, failures, rows)
    assert [row["skipped"]["nvidia"] for row in rows[-2:]] == ["left out after 3 failures"] * 2


def test_what_cannot_run_says_why_for_each_layer(monkeypatch):
    rows = rows_of(2)
    run_contender(monkeypatch, [[{"event": "skipped", "reason": "no TensorRT"}]], rows)
    assert [row["skipped"] for row in rows] == [{"nvidia": "no TensorRT"}] * 2


@pytest.fixture
def results():
    """Every layer takes its batch size in microseconds; the others a fixed multiple of that."""
    times = {"dcnv2": 1, "torchvision": 10, "nvidia": 4, "tensorrt-convolution": 0.5}
    rows = [
        {"precision": "fp16", "layer": str(shape), "batch": batch}
        | {"flops": shape.flops(batch), "bytes": shape.bytes(batch, 2), "skipped": {}, "facts": {}}
        | {"us": {name: float(times[name] * batch) for name in times}}
        | {"error": {"dcnv2": 3e-4, "torchvision": 2e-4}}
        for batch in (1, 8, 32)
        for shape in dict.fromkeys(roofline.NETWORKS["dla_34"])
    ]
    environment = {"machine": {"gpu": "H200", "cpu": "c", "cores": 1, "memory_gib": 1, "system": "s"}}
    environment["machine"]["load_average"] = 0.0
    environment |= {"command": "c", "versions": {}, "revision": "r", "date": "d"}
    ceilings = {"fp16": {"dcnv2": {"tflops": 500, "tb_per_s": 4}, "nvidia": {"tflops": 800, "tb_per_s": 3}}}
    base = {"environment": environment, "device": "cuda", "models": ["dla_34"], "batch": [1, 8, 32]}
    return base | {"ceilings": ceilings, "layers": rows}


def test_sums_count_a_shape_as_often_as_the_network_has_it(results):
    sums = dcnv2.sums(results["layers"], [1, 8, 32], "dla_34", None)
    mean = pytest.approx((16 * 128 * 512) ** (1 / 3))
    assert sums["dcnv2"] == {"batch 1": 16, "batch 8": 128, "batch 32": 512, "geometric mean": mean}
    assert "roofline" not in sums
    peak = dcnv2.peak(results["ceilings"]["fp16"])
    assert peak == {"tflops": 800, "tb_per_s": 4}
    bound = dcnv2.sums(results["layers"], [32], "dla_34", peak)["roofline"]["batch 32"]
    assert bound == pytest.approx(575, rel=0.05)


def test_ratios_are_of_our_time(results):
    text = dcnv2.tables(results)
    assert "| torchvision | 160 | 10 | 1280 | 10 | 5120 | 10 | 1016 | 10 |" in text
    assert "| tensorrt-convolution | 8 | 0.5 | 64 | 0.5 | 256 | 0.5 | 50.8 | 0.5 |" in text


def test_a_sum_with_a_layer_missing_is_none(results):
    del results["layers"][3]["us"]["nvidia"]
    results["layers"][3]["skipped"]["nvidia"] = "hung"
    text = dcnv2.tables(results)
    assert "| nvidia | - | - | 512 | 4 | 2048 | 4 | - | - |" in text
    assert "- nvidia: hung\n" in text


def test_roofline_of_a_layer(capsys):
    shape = Shape(64, 64, 128)
    assert shape.flops(32) == 2 * 32 * 128**2 * 64 * 64 * 9
    assert shape.bytes(1, 2) == 2 * (128**2 * (64 + 64 + 18 + 9) + 64 * 64 * 9)
    row = {"flops": shape.flops(32), "bytes": shape.bytes(32, 2)}
    assert dcnv2.roofline_us(row, {"tflops": 989, "tb_per_s": 4.8}) == pytest.approx(39.1, rel=0.01)
    assert dcnv2.roofline_us(row, {"tflops": 1e9, "tb_per_s": 4.8}) == pytest.approx(33.9, rel=0.01)
    assert roofline.main(["--batch", "32"]) == 0
    assert "| 64→64 @ 128 | 5 | 32 | 38.7 | 163 | 39.1 | 33.9 | 108 | gather |" in capsys.readouterr().out
