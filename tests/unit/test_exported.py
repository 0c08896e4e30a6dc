"""The tests' own cache of traced graphs: another module, exporter or input is never answered from it."""

import exported
import onnx
import pytest
import tiny
import torch

from export.detector import Detector


@pytest.fixture
def traced(monkeypatch, tmp_path):
    """`traced(...)`: whether `exported.trace` traced anew."""
    made = []

    def trace(module, examples, **names):
        made.append(module)
        return onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))

    def traced(*, seed=0, top_k=20, side=64, output="boxes"):
        before = len(made)
        module = Detector(tiny.network("resdcn_18", seed=seed), top_k=top_k).eval()
        frame = torch.zeros(2, side, 96, 3, dtype=torch.uint8)
        exported.trace(module, [frame], input_names=["frame"], output_names=[output])
        return len(made) > before

    monkeypatch.setenv("CENTERNET_CACHE", str(tmp_path))
    monkeypatch.setattr(exported, "TRACE", trace)
    return traced


def test_what_was_traced_is_kept(traced):
    assert traced()
    assert not traced()


@pytest.mark.parametrize("change", [{"seed": 1}, {"top_k": 21}, {"side": 32}, {"output": "scores"}])
def test_anything_else_is_traced_anew(traced, change):
    traced()
    assert traced(**change)


def test_another_exporter_traces_anew(traced, monkeypatch):
    traced()
    monkeypatch.setattr(exported, "_exporter", lambda: b"another")
    assert traced()
